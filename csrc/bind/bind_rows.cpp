// Ops that work row by row: softmax, norms, activations, scaled sums, the largest, embedding, rotary.
#include <algorithm>
#include <memory>

#include "bind/array.h"
#include "bind/bind.h"
#include "bind/packed_weight.h"
#include "bind/recording.h"
#include "bind/row_checks.h"
#include "bind/token_checks.h"
#include "core/last_cache.h"
#include "core/parallel.h"
#include "cpu/dispatch.h"

namespace qkv {

namespace {

// Scratch of so many floats a thread; no more threads than rows.
struct RowScratch {
  RowScratch(const Rows& x, int64_t floats)
      : threads(x.rows < num_threads() ? static_cast<int>(x.rows) : num_threads()),
        memory(static_cast<size_t>(floats * threads * 4)) {}
  int threads;
  Scratch memory;
  float* data() const { return memory.as<float>(); }
};

bool past_caches(const py::array& out) { return qkv::past_caches(static_cast<int64_t>(out.nbytes())); }

py::object softmax(py::handle x_in, int64_t axis_in, bool log) {
  const char* op = log ? "log_softmax" : "softmax";
  const Array x = read_array(op, "x", x_in);
  const int axis = check_axis(op, x, axis_in);
  if (x.is_double) return py::none();
  py::array out = new_array(op, x.owner.dtype(), x.shape);
  if (out.size() == 0) return std::move(out);
  const Array y = view_of(out, x.dtype);
  const auto rows = rows_along(axis, {&x, &y});
  const bool past = past_caches(out);
  const UnlockedOnce unlocked;
  const auto neighbours_adjacent = [](const Rows& r) {
    return r.dtype == DType::f32 && r.rank > 0 && r.strides[r.rank - 1] == 1;
  };
  constexpr int64_t kLongest = 1 << 16;  // 16 such rows take 4 MB a thread
  const bool across = rows[0].step != 1 && rows[1].step != 1 && rows[0].n <= kLongest && neighbours_adjacent(rows[0]) &&
                      neighbours_adjacent(rows[1]);
  const RowScratch scratch(rows[0], rows[0].n * (across ? 16 : 1));
  kernels().softmax({rows[0], rows[1], log, across, past, nullptr, nullptr, scratch.data(), scratch.threads});
  return std::move(out);
}

// (rows, 2): what log_softmax subtracts from a row of contiguous float32 x (rows, n), first its maximum.
py::array log_softmax_parts(py::handle x_in) {
  const char* op = "log_softmax_parts";
  const Array x = read_array(op, "x", x_in);
  if (x.is_double || x.dtype != DType::f32 || x.rank() != 2 || x.shape[1] == 0 || !(x.owner.flags() & py::array::c_style))
    fail_value(x.where + " must be contiguous float32 (rows, n)");
  py::array parts = new_array(op, float32_dtype(), {x.shape[0], 2});
  if (x.shape[0] == 0) return parts;
  const auto rows = rows_along(1, {&x});
  const UnlockedOnce unlocked;
  const RowScratch scratch(rows[0], 0);
  kernels().softmax(
      {rows[0], rows[0], true, false, false, static_cast<float*>(parts.mutable_data()), nullptr, nullptr, scratch.threads});
  return parts;
}

py::object norm(py::handle x_in, py::handle weight_in, py::handle bias_in, double eps, bool rms, py::handle residual_in) {
  const char* op = rms ? "rms_norm" : "layer_norm";
  const Array x = read_array(op, "x", x_in), weight = read_optional(op, "weight", weight_in),
              bias = read_optional(op, "bias", bias_in), residual = read_optional(op, "residual", residual_in);
  const bool serve_double = check_dtypes(op, {&x, &residual}) || (weight && weight.is_double) || (bias && bias.is_double);
  check_norm(op, x, weight, bias, residual, eps);
  if (serve_double) return py::none();

  py::array out = new_array(op, x.owner.dtype(), x.shape), total;
  Array sum;
  if (residual) {
    total = new_array(op, x.owner.dtype(), x.shape);
    sum = view_of(total, x.dtype);
  }
  if (out.size() > 0) {
    const Array y = view_of(out, x.dtype);
    const auto rows = rows_along(x.rank() - 1, {&x, &y, &residual, &sum});
    const auto keep = std::make_shared<std::vector<std::vector<float>>>();
    const NormArgs args{rows[0],
                        rows[1],
                        rows[2],
                        rows[3],
                        as_floats(weight, keep.get()),
                        as_floats(bias, keep.get()),
                        smallest_eps(eps),
                        rms,
                        past_caches(out),
                        nullptr,
                        0};
    launch([args, keep] {
      NormArgs a = args;
      const RowScratch scratch(a.x, 2 * a.x.n);
      a.scratch = scratch.data();
      a.threads = scratch.threads;
      kernels().norm(a);
    });
  }
  if (residual) return py::make_tuple(out, total);
  return std::move(out);
}

void run(ActivationArgs a) {
  a.threads = num_threads();
  kernels().activation(a);
}

// Element by element: a dense x is one long row, and the result has its memory order, as NumPy's have.
py::object activation(const char* op, py::handle x_in, Activation a) {
  const Array x = read_array(op, "x", x_in);
  if (x.is_double) return py::none();
  if (x.size() > 0 && dense(x)) {
    py::array out = new_array(op, x.owner.dtype(), x.shape, &x.strides);
    const auto flat = [&](const void* data) {
      return Rows{static_cast<char*>(const_cast<void*>(data)), x.dtype, x.size(), 1, 1, 0, {}, {}};
    };
    launch([args = ActivationArgs{a, flat(x.data), flat(out.data()), past_caches(out), 0}] { run(args); });
    return std::move(out);
  }
  py::array out = new_array(op, x.owner.dtype(), x.shape);
  if (out.size() == 0) return std::move(out);
  const Array y = view_of(out, x.dtype);
  const auto rows = rows_along(x.rank() - 1, {&x, &y});
  launch([args = ActivationArgs{a, rows[0], rows[1], past_caches(out), 0}] { run(args); });
  return std::move(out);
}

// scale x, or x / scale, and + other. float32; x (..., n) contiguous, other (n) or of x's shape; made so by qkv.ops.
py::array scaled_sum(py::handle x_in, double scale, py::handle other_in, bool divide) {
  const char* op = "scaled_sum";
  const Array x = read_array(op, "x", x_in), other = read_optional(op, "other", other_in);
  for (const Array* p : {&x, &other})
    if (*p && (p->is_double || p->dtype != DType::f32 || !(p->owner.flags() & py::array::c_style)))
      fail_value(p->where + " must be contiguous float32");
  check_scaled_sum(x, other);
  const int64_t n = x.shape.back();
  py::array out = new_array(op, float32_dtype(), x.shape);
  if (out.size() == 0) return out;
  const auto floats = [](const Array& a) { return reinterpret_cast<const float*>(a.data); };
  ScaledSumArgs args{
      floats(x), nullptr, static_cast<float*>(out.mutable_data()), static_cast<float>(scale), divide, x.size() / n, n, 0, 0};
  if (other) {
    args.other = floats(other);
    args.other_row = other.rank() == x.rank() ? n : 0;
  }
  launch([args] {
    ScaledSumArgs a = args;
    a.threads = num_threads();
    kernels().scaled_sum(a);
  });
  return out;
}

// (values, places) of the k largest of each row of contiguous float32 x (rows, n), 1 <= k <= n.
py::tuple top_k(py::handle x_in, int64_t k) {
  const char* op = "top_k";
  const Array x = read_array(op, "x", x_in);
  if (x.is_double || x.dtype != DType::f32 || x.rank() != 2 || !(x.owner.flags() & py::array::c_style))
    fail_value(x.where + " must be contiguous float32 (rows, n)");
  check_top_k(x, k);
  const std::vector<int64_t> shape = {x.shape[0], k};
  py::array values = new_array(op, float32_dtype(), shape), places = new_array(op, py::dtype::of<int64_t>(), shape);
  launch([args = TopKArgs{reinterpret_cast<const float*>(x.data), x.shape[0], x.shape[1], k,
                          static_cast<float*>(values.mutable_data()), static_cast<int64_t*>(places.mutable_data()), 0}] {
    TopKArgs a = args;
    a.threads = num_threads();
    kernels().top_k(a);
  });
  return py::make_tuple(values, places);
}

py::object embedding(py::handle ids_in, py::handle table_in) {
  std::vector<int64_t> shape;
  const std::vector<int64_t> ids = read_ints("embedding", "ids", ids_in, &shape);
  const LiveInts live_ids(ids_in);
  EmbeddingArgs a{};
  int64_t rows = 0;
  Array table;
  const PackedView* packed = packed_view(table_in);
  if (packed) {
    rows = packed->n;
    a.width = packed->k;
  } else {
    table = read_array("embedding", "table", table_in);
    check_table(table);
    rows = table.shape[0];
    a.width = table.shape[1];
    a.table = table.data;
    a.dtype = table.dtype;
    a.row = table.strides[0];
    a.step = a.width > 1 ? table.strides[1] : 1;
  }
  check_ids(ids, rows);
  if (table && table.is_double) return py::none();
  shape.push_back(a.width);
  checked_size("embedding", shape);
  py::array out = new_array("embedding", table ? table.owner.dtype() : float32_dtype(), shape);
  if (out.size() == 0) return std::move(out);
  a.count = static_cast<int64_t>(ids.size());
  a.y = static_cast<char*>(out.mutable_data());
  a.past_caches = past_caches(out);
  const auto run = [args = a, w = packed ? *packed : PackedView{},
                    is_packed = packed != nullptr](const std::vector<int64_t>& of) {
    EmbeddingArgs a = args;
    a.ids = of.data();
    a.threads = num_threads();
    if (is_packed)
      kernels().dequantize({w, a.ids, a.count, reinterpret_cast<float*>(a.y), a.threads});
    else
      kernels().embedding(a);
  };
  launch([&] { run(ids); },
         [run, rows, live_ids, now = std::make_shared<std::vector<int64_t>>(ids)] {
           live_ids.read(now.get());
           check_ids(*now, rows);
           run(*now);
         });
  return std::move(out);
}

// angles: contiguous float32 (..., dim / 2) that broadcast to x's rows; made by qkv.ops.
py::object rotary(py::handle x_in, py::handle angles_in, double factor, int64_t dim, bool interleaved) {
  const Array x = read_array("rotary", "x", x_in), angles = read_array("rotary", "angles", angles_in);
  if (x.is_double) return py::none();
  py::array out = new_array("rotary", x.owner.dtype(), x.shape);
  if (out.size() == 0) return std::move(out);
  if (!(angles.owner.flags() & py::array::c_style)) fail_value("rotary: angles must be contiguous");
  const Array y = view_of(out, x.dtype);
  std::vector<int64_t> shape = x.shape;
  shape.back() = dim / 2;
  const Array spread = broadcast(angles, shape);
  const auto rows = rows_along(x.rank() - 1, {&x, &y, &spread});
  const RotaryArgs args{rows[0],
                        rows[1],
                        reinterpret_cast<const float*>(angles.data),
                        angles.size() / (dim / 2),
                        rows[2],
                        static_cast<float>(factor),
                        dim,
                        interleaved,
                        past_caches(out),
                        nullptr,
                        nullptr,
                        0};
  launch([args] {
    RotaryArgs a = args;
    const RowScratch scratch(a.x, 2 * a.x.n);
    const Scratch table(static_cast<size_t>(a.angle_rows * a.dim * (a.interleaved ? 2 : 1)) * sizeof(float));
    a.table = table.as<float>();
    a.scratch = scratch.data();
    a.threads = scratch.threads;
    kernels().rotary(a);
  });
  return std::move(out);
}

// (total, 1, n): positions (total) times contiguous float32 frequencies (n).
py::array rotary_angles(py::handle positions_in, py::handle frequencies_in) {
  const char* op = "rotary_angles";
  std::vector<int64_t> shape;
  const std::vector<int64_t> positions = read_ints(op, "positions", positions_in, &shape);
  const LiveInts live_positions(positions_in);
  const Array f = read_array(op, "frequencies", frequencies_in);
  check_angles(shape, f, f.owner.flags() & py::array::c_style);
  py::array out = new_array(op, float32_dtype(), {shape[0], 1, f.shape[0]});
  const auto run = [y = static_cast<float*>(out.mutable_data()), frequencies = reinterpret_cast<const float*>(f.data),
                    n = f.shape[0]](const std::vector<int64_t>& at) {
    kernels().rotary_angles({at.data(), frequencies, y, static_cast<int64_t>(at.size()), n});
  };
  launch([&] { run(positions); },
         [run, live_positions, now = std::make_shared<std::vector<int64_t>>(positions)] {
           live_positions.read(now.get());
           run(*now);
         });
  return out;
}

}  // namespace

void bind_rows(py::module_& m) {
  m.def("softmax", softmax, py::arg("x"), py::arg("axis"), py::arg("log"));
  m.def("log_softmax_parts", log_softmax_parts, py::arg("x"));
  m.def("norm", norm, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("rms"), py::arg("residual"));
  m.def("scaled_sum", scaled_sum, py::arg("x"), py::arg("scale"), py::arg("other"), py::arg("divide"));
  m.def("top_k", top_k, py::arg("x"), py::arg("k"));
  m.def("embedding", embedding, py::arg("ids"), py::arg("table"));
  m.def("rotary", rotary, py::arg("x"), py::arg("angles"), py::arg("factor"), py::arg("dim"), py::arg("interleaved"));
  m.def("rotary_angles", rotary_angles, py::arg("positions"), py::arg("frequencies"));
  const struct {
    const char* name;
    Activation op;
  } unary[] = {{"gelu", Activation::gelu},
               {"gelu_tanh", Activation::gelu_tanh},
               {"relu", Activation::relu},
               {"silu", Activation::silu},
               {"quick_gelu", Activation::quick_gelu},
               {"tanh", Activation::tanh},
               {"exp", Activation::exp},
               {"erf", Activation::erf}};
  m.def(
      "unary",
      [unary](const std::string& name, py::handle x) {
        for (const auto& u : unary)
          if (name == u.name) return activation(u.name, x, u.op);
        fail_value("unary: unknown function '" + name + "'");
      },
      py::arg("name"), py::arg("x"));
}

}  // namespace qkv

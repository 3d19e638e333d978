// matmul, linear.
#include <memory>

#include "bind/array.h"
#include "bind/bind.h"
#include "bind/packed_weight.h"
#include "bind/recording.h"
#include "core/parallel.h"
#include "cpu/dispatch.h"

namespace qkv {
namespace {

void run(GemmArgs g) {
  g.threads = num_threads();
  g.plan = plan_gemm(g);
  const Scratch scratch(static_cast<size_t>(g.plan.scratch_bytes * g.threads));
  g.scratch = scratch.as<char>();
  kernels().gemm(g);
}

void run(QuantizedGemmArgs g) {
  g.threads = num_threads();
  g.plan = plan_gemm_quantized(g);
  const Scratch scratch(static_cast<size_t>(g.plan.shared_bytes + g.plan.scratch_bytes * g.threads));
  g.scratch = scratch.as<char>();
  kernels().gemm_quantized(g);
}

Activation activation_of(const char* op, const py::object& name) {
  if (name.is_none()) return Activation::none;
  const struct {
    const char* name;
    Activation value;
  } known[] = {{"gelu", Activation::gelu}, {"gelu_tanh", Activation::gelu_tanh},   {"relu", Activation::relu},
               {"silu", Activation::silu}, {"quick_gelu", Activation::quick_gelu}, {"tanh", Activation::tanh}};
  std::string names;
  for (const auto& a : known) {
    if (py::isinstance<py::str>(name) && name.cast<std::string>() == a.name) return a.value;
    names += std::string(names.empty() ? "" : ", ") + a.name;
  }
  fail_value(std::string(op) + ": activation " + py::repr(name).cast<std::string>() + " is not one of " + names);
}

py::object matmul(py::handle a_in, py::handle b_in) {
  const Array a = read_array("matmul", "a", a_in), b = read_array("matmul", "b", b_in);
  const bool serve_double = check_dtypes("matmul", {&a, &b});
  if (a.rank() == 0) fail_value("matmul: a must have at least 1 dimension");
  if (b.rank() == 0) fail_value("matmul: b must have at least 1 dimension");
  // As (..., m, k) and (..., k, n); a 1-D operand has m or n of 1, which the result lacks.
  std::vector<int64_t> a_shape = a.shape, b_shape = b.shape, a_strides = a.strides, b_strides = b.strides;
  if (a.rank() == 1) {
    a_shape.insert(a_shape.begin(), 1);
    a_strides.insert(a_strides.begin(), 0);
  }
  if (b.rank() == 1) {
    b_shape.push_back(1);
    b_strides.push_back(1);
  }
  const size_t a_rank = a_shape.size(), b_rank = b_shape.size();
  if (a_shape[a_rank - 1] != b_shape[b_rank - 2])
    fail_value("matmul: a has shape " + shape_text(a.shape) + " and b " + shape_text(b.shape) + ": inner dimensions " +
               std::to_string(a_shape[a_rank - 1]) + " and " + std::to_string(b_shape[b_rank - 2]) + " differ");
  GemmArgs g{};
  check_length("matmul", "the inner dimension", a_shape[a_rank - 1]);
  g.m = a_shape[a_rank - 2];
  g.k = a_shape[a_rank - 1];
  g.n = b_shape[b_rank - 1];

  struct Dim {
    int64_t size, a, b;
  };
  std::vector<Dim> batch;  // innermost first
  std::vector<int64_t> shape;
  const size_t dims = std::max(a_rank, b_rank) - 2;
  for (size_t d = 0; d < dims; ++d) {
    const bool in_a = d + 2 < a_rank, in_b = d + 2 < b_rank;
    const int64_t size_a = in_a ? a_shape[a_rank - 3 - d] : 1, size_b = in_b ? b_shape[b_rank - 3 - d] : 1;
    if (size_a != size_b && size_a != 1 && size_b != 1)
      fail_value("matmul: batch dimensions of a " + shape_text(a.shape) + " and b " + shape_text(b.shape) + " do not broadcast");
    batch.push_back({size_a == 1 ? size_b : size_a, size_a == 1 ? 0 : a_strides[a_rank - 3 - d],
                     size_b == 1 ? 0 : b_strides[b_rank - 3 - d]});
    shape.insert(shape.begin(), batch.back().size);
  }
  if (a.rank() > 1) shape.push_back(g.m);
  if (b.rank() > 1) shape.push_back(g.n);
  const int64_t size = checked_size("matmul", shape);
  if (serve_double) return py::none();
  py::array out = new_array("matmul", a.owner.dtype(), shape);
  if (size == 0) return std::move(out);

  int64_t c_step = g.m * g.n, a_row = a_strides[a_rank - 2];
  g.batch = 1;
  std::vector<Dim> merged;
  std::vector<int64_t> c_strides;
  for (const Dim& d : batch) {
    const int64_t c_stride = c_step;
    c_step *= d.size;
    if (d.size == 1) continue;
    if (merged.empty() && d.b == 0 && (g.m == 1 || d.a == a_row * g.m)) {  // one b for all: more rows of the same product
      if (g.m == 1) a_row = d.a;
      g.m *= d.size;
      continue;
    }
    if (!merged.empty() && d.a == merged.back().a * merged.back().size && d.b == merged.back().b * merged.back().size)
      merged.back().size *= d.size;
    else {
      merged.push_back(d);
      c_strides.push_back(c_stride);
    }
    g.batch *= d.size;
  }
  if (merged.size() > kMaxRank)
    fail_value("matmul: more than " + std::to_string(kMaxRank) + " batch dimensions that cannot be merged");
  g.batch_rank = static_cast<int>(merged.size());
  for (int i = 0; i < g.batch_rank; ++i) {
    const size_t d = merged.size() - 1 - static_cast<size_t>(i);
    g.batch_shape[i] = merged[d].size;
    g.a_batch[i] = merged[d].a;
    g.b_batch[i] = merged[d].b;
    g.c_batch[i] = c_strides[d];
  }
  g.a = {a.data, a.dtype, g.k, g.k > 1 ? a_strides[a_rank - 1] : 1, g.m, 1, {g.m}, {a_row}};
  g.c = {static_cast<char*>(out.mutable_data()), a.dtype, g.n, 1, g.m, 1, {g.m}, {g.n}};
  g.b = b.data;
  g.b_dtype = b.dtype;
  g.b_k = b_strides[b_rank - 2];
  g.b_n = g.n > 1 ? b_strides[b_rank - 1] : 1;
  launch([g] { run(g); });
  return std::move(out);
}

py::object linear(py::handle x_in, py::handle weight, py::handle bias_in, const py::object& activation, py::handle gate_in,
                  py::handle residual_in, py::handle out_in) {
  const Array x = read_array("linear", "x", x_in), bias = read_optional("linear", "bias", bias_in);
  Array gate = read_optional("linear", "gate", gate_in), residual = read_optional("linear", "residual", residual_in);
  Array w;
  const PackedView* packed = packed_view(weight);
  if (!packed) w = read_array("linear", "weight", weight);
  bool serve_double = check_dtypes("linear", {&x, &gate, &residual});
  serve_double = serve_double || (w && w.is_double) || (bias && bias.is_double);
  check_parameter_dtype(x, w);
  check_parameter_dtype(x, bias);
  if (x.rank() == 0) fail_value("linear: x must have at least 1 dimension");
  if (w && w.rank() != 2) fail_value("linear: weight must be (out, in), got " + shape_text(w.shape));
  const int64_t n = packed ? packed->n : w.shape[0], k = packed ? packed->k : w.shape[1];
  if (x.shape.back() != k)
    fail_value("linear: x has " + std::to_string(x.shape.back()) + " features, weight " + shape_text({n, k}) + " takes " +
               std::to_string(k));
  if (bias && bias.shape != std::vector<int64_t>{n})
    fail_value("linear: bias must be " + shape_text({n}) + ", got " + shape_text(bias.shape));
  check_length("linear", "weight's in", k);
  check_length("linear", "weight's out", n);
  std::vector<int64_t> shape = x.shape;
  shape.back() = n;
  checked_size("linear", shape);
  if (gate) gate = broadcast(gate, shape);
  if (residual) residual = broadcast(residual, shape);
  Epilogue e{};
  e.activation = activation_of("linear", activation);
  if (serve_double) return py::none();

  Output out("linear", out_in, x, shape, {&x, &w, &bias, &gate, &residual});
  const Rows rows = rows_along(x.rank() - 1, {&x})[0];
  e.c = rows_along(x.rank() - 1, {&out.view()})[0];
  if (gate) e.gate = rows_along(x.rank() - 1, {&gate})[0];
  if (residual) e.residual = rows_along(x.rank() - 1, {&residual})[0];
  if (rows.rows == 0 || n == 0) return out.finish();
  const auto keep = std::make_shared<std::vector<std::vector<float>>>();
  e.bias = as_floats(bias, keep.get());
  if (packed && packed->type != WeightType::f32) {
    QuantizedGemmArgs g{};
    static_cast<Epilogue&>(g) = e;
    g.m = rows.rows;
    g.a = rows;
    g.w = *packed;
    launch([g, keep] { run(g); });
    return out.finish();
  }
  GemmArgs g{};
  static_cast<Epilogue&>(g) = e;
  g.a = rows;
  g.m = rows.rows;
  g.n = n;
  g.k = k;
  g.batch = 1;
  if (packed) {
    g.packed = reinterpret_cast<const float*>(packed->panels);
  } else {
    g.b = w.data;
    g.b_dtype = w.dtype;
    g.b_k = k > 1 ? w.strides[1] : 1;
    g.b_n = w.strides[0];
  }
  launch([g, keep] { run(g); });
  return out.finish();
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.def("matmul", matmul, py::arg("a"), py::arg("b"));
  m.def("linear", linear, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("activation"), py::arg("gate"),
        py::arg("residual"), py::arg("out"));
}

}  // namespace qkv

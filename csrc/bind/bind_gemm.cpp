// matmul, linear, linear_top_k.
#include <memory>

#include "bind/array.h"
#include "bind/bind.h"
#include "bind/gemm_checks.h"
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
  g.rows = scratch.as<char>();
  g.scratch = g.rows + g.plan.shared_bytes;
  kernels().gemm_quantized(g);
}

py::object matmul(py::handle a_in, py::handle b_in) {
  const Array a = read_array("matmul", "a", a_in), b = read_array("matmul", "b", b_in);
  const bool serve_double = check_dtypes("matmul", {&a, &b});
  MatmulPlan p = plan_matmul(a, b);
  const int64_t size = checked_size("matmul", p.shape);
  if (serve_double) return py::none();
  py::array out = new_array("matmul", a.owner.dtype(), p.shape);
  if (size == 0) return std::move(out);

  p.merge();
  GemmArgs g{};
  g.m = p.m;
  g.n = p.n;
  g.k = p.k;
  g.batch = 1;
  g.batch_rank = static_cast<int>(p.batch.size());
  for (int i = 0; i < g.batch_rank; ++i) {
    const MatmulPlan::Dim& d = p.batch[p.batch.size() - 1 - static_cast<size_t>(i)];
    g.batch *= d.size;
    g.batch_shape[i] = d.size;
    g.a_batch[i] = d.a;
    g.b_batch[i] = d.b;
    g.c_batch[i] = d.c;
  }
  g.a = {a.data, a.dtype, g.k, p.a_k, g.m, 1, {g.m}, {p.a_m}};
  g.c = {static_cast<char*>(out.mutable_data()), a.dtype, g.n, 1, g.m, 1, {g.m}, {g.n}};
  g.b = b.data;
  g.b_dtype = b.dtype;
  g.b_k = p.b_k;
  g.b_n = p.b_n;
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
  const int64_t n = packed ? packed->n : w.rank() == 2 ? w.shape[0] : 0, k = packed ? packed->k : w.rank() == 2 ? w.shape[1] : 0;
  const std::vector<int64_t> shape = check_linear(x, w, n, k, bias);
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

// (values, places, parts) of contiguous float32 x (rows, k) and a packed weight of n rows, 1 <= count <= n < 2^32, bias (n) or
// None.
py::tuple best_of_linear(py::handle x_in, py::handle weight, py::handle bias_in, int64_t count) {
  const char* op = "linear_top_k";
  const Array x = read_array(op, "x", x_in), bias = read_optional(op, "bias", bias_in);
  const PackedView* w = packed_view(weight);
  if (!w) fail_type(std::string(op) + ": weight must be a PackedWeight");
  if (x.is_double || x.dtype != DType::f32 || x.rank() != 2 || !(x.owner.flags() & py::array::c_style))
    fail_value(x.where + " must be contiguous float32 (rows, k)");
  check_linear(x, Array(), w->n, w->k, bias);
  if (w->n > INT64_C(0xFFFFFFFF)) fail_value(std::string(op) + ": weight has more than 2^32 - 1 rows");
  if (count < 1 || count > w->n)
    fail_value(std::string(op) + ": k must lie in 1 to " + std::to_string(w->n) + ", got " + std::to_string(count));
  const int64_t rows = x.shape[0];
  py::array values = new_array(op, float32_dtype(), {rows, count}),
            places = new_array(op, py::dtype::of<int64_t>(), {rows, count}), parts = new_array(op, float32_dtype(), {rows, 2});
  const auto keep = std::make_shared<std::vector<std::vector<float>>>();
  LinearTopKArgs args{};
  args.x = reinterpret_cast<const float*>(x.data);
  args.rows = rows;
  args.w = *w;
  args.bias = as_floats(bias, keep.get());
  args.k = count;
  args.values = static_cast<float*>(values.mutable_data());
  args.places = static_cast<int64_t*>(places.mutable_data());
  args.parts = static_cast<float*>(parts.mutable_data());
  if (rows > 0)
    launch([args, keep] {
      LinearTopKArgs a = args;
      a.threads = num_threads();
      const Scratch scratch(linear_top_k_scratch(a));
      a.scratch = scratch.as<char>();
      linear_top_k(a, kernels());
    });
  return py::make_tuple(values, places, parts);
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.def("matmul", matmul, py::arg("a"), py::arg("b"));
  m.def("linear", linear, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("activation"), py::arg("gate"),
        py::arg("residual"), py::arg("out"));
  m.def("linear_top_k", best_of_linear, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("k"));
}

}  // namespace qkv

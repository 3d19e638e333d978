// The ops on a GPU's arrays, but for attention: the same checks and messages as on the CPU, then a launch in the caller's stream.
#include <algorithm>
#include <cstring>

#include "bind/device_array.h"
#include "bind/gemm_checks.h"
#include "bind/gil.h"
#include "bind/row_checks.h"

namespace qkv {
namespace {

bool invariant = false;

cuda::Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<cuda::Stream>(handle); }

cuda::Vector vector_of(DeviceCall* call, const DeviceView& x) {
  if (!x) return {nullptr, DType::f32};
  if (x.size() > 1 && x.strides[0] != 1) {
    const DeviceView y = call->compact(x);
    return {y.data, y.dtype};
  }
  return {x.data, x.dtype};
}

DeviceArray softmax(py::handle x_in, int64_t axis_in, bool log, std::uintptr_t stream) {
  const char* op = log ? "log_softmax" : "softmax";
  const DeviceView x = read_device_array(op, "x", x_in);
  const int axis = check_axis(op, x, axis_in);
  DeviceCall call(op, stream_of(stream), x.array);
  call.reads(x);
  DeviceArray out = call.make(x.array.dtype, x.shape);
  if (out.size() == 0) return out;
  const DeviceView y = device_view(out);
  const auto rows = rows_along(axis, {&x, &y});
  const Unlocked unlocked;
  cuda::softmax({rows[0], rows[1], log}, call.stream());
  return out;
}

py::object norm(py::handle x_in, py::handle weight_in, py::handle bias_in, double eps, bool rms, py::handle residual_in,
                std::uintptr_t stream) {
  const char* op = rms ? "rms_norm" : "layer_norm";
  const DeviceView x = read_device_array(op, "x", x_in), weight = read_optional_device_array(op, "weight", weight_in),
                   bias = read_optional_device_array(op, "bias", bias_in),
                   residual = read_optional_device_array(op, "residual", residual_in);
  check_dtypes(op, {&x, &residual});
  check_norm(op, x, weight, bias, residual, eps);
  DeviceCall call(op, stream_of(stream), x.array);
  for (const DeviceView* p : {&x, &weight, &bias, &residual}) call.reads(*p);
  DeviceArray out = call.make(x.array.dtype, x.shape), total;
  DeviceView sum;
  if (residual) {
    total = call.make(x.array.dtype, x.shape);
    sum = device_view(total);
  }
  if (out.size() > 0) {
    const DeviceView y = device_view(out);
    const auto rows = rows_along(x.rank() - 1, {&x, &y, &residual, &sum});
    const cuda::NormArgs args{rows[0],           rows[1], rows[2], rows[3], vector_of(&call, weight), vector_of(&call, bias),
                              smallest_eps(eps), rms};
    const Unlocked unlocked;
    cuda::norm(args, call.stream());
  }
  if (residual) return py::make_tuple(out, total);
  return py::cast(out);
}

// Element by element: a dense x is one long row, and the result has its memory order, as NumPy's have.
DeviceArray unary(const std::string& name, py::handle x_in, std::uintptr_t stream) {
  const DeviceView x = read_device_array(name.c_str(), "x", x_in);
  const Activation activation = activation_of(name.c_str(), py::str(name));
  DeviceCall call(name.c_str(), stream_of(stream), x.array);
  call.reads(x);
  const bool flat = x.size() > 0 && dense(x);
  DeviceArray out = call.make(x.array.dtype, x.shape, flat ? &x.strides : nullptr);
  if (out.size() == 0) return out;
  const DeviceView y = device_view(out);
  cuda::ActivationArgs args{activation, {}, {}};
  if (flat) {
    args.x = Rows{x.data, x.dtype, x.size(), 1, 1, 0, {}, {}};
    args.y = Rows{y.data, y.dtype, y.size(), 1, 1, 0, {}, {}};
  } else {
    const auto rows = rows_along(x.rank() - 1, {&x, &y});
    args.x = rows[0];
    args.y = rows[1];
  }
  const Unlocked unlocked;
  cuda::activation(args, call.stream());
  return out;
}

// Of int64 numbers, in place.
void advance(py::handle x_in, std::uintptr_t stream) {
  if (!py::isinstance<DeviceArray>(x_in))
    fail_type("advance: x must be an array on the GPU, got " + std::string(Py_TYPE(x_in.ptr())->tp_name));
  const DeviceArray& x = x_in.cast<const DeviceArray&>();
  if (x.dtype.kind() != 'i' || x.item() != 8)
    fail_type("advance: x must hold int64, got " + py::str(x.dtype).cast<std::string>());
  View v;
  v.data = x.data;
  v.shape = x.shape;
  v.strides = x.strides;
  v.where = "advance: x";
  for (size_t d = 0; d < v.shape.size(); ++d)
    if (v.shape[d] > 1 && v.strides[d] == 0) fail_value("advance: x is broadcast: its numbers are not places of their own");
  DeviceCall call("advance", stream_of(stream), x);
  call.writes(x);
  if (x.size() == 0) return;
  if (v.shape.empty()) v.shape = v.strides = {1};
  const auto rows = rows_along(v.rank() - 1, {&v});
  const Unlocked unlocked;
  cuda::advance({rows[0]}, call.stream());
}

// ---- products

// x as (batch, rows, columns) strides, after `compact` where neither of the last two is 1.
bool has_unit_stride(int64_t rows, int64_t row, int64_t columns, int64_t column) {
  return row == 1 || column == 1 || rows <= 1 || columns <= 1;
}

// Strides of a matrix whose one dimension of size 1 may count as adjacent.
void normalise(int64_t rows, int64_t* row, int64_t columns, int64_t* column) {
  if (*row == 1 || *column == 1) return;
  if (columns <= 1)
    *column = 1;
  else if (rows <= 1)
    *row = 1;
}

DeviceArray matmul(py::handle a_in, py::handle b_in, std::uintptr_t stream) {
  DeviceView a = read_device_array("matmul", "a", a_in), b = read_device_array("matmul", "b", b_in);
  check_dtypes("matmul", {&a, &b});
  MatmulPlan p = plan_matmul(a, b);
  checked_size("matmul", p.shape);
  DeviceCall call("matmul", stream_of(stream), a.array);
  call.reads(a);
  call.reads(b);
  if (!has_unit_stride(p.m, p.a_m, p.k, p.a_k) || !has_unit_stride(p.k, p.b_k, p.n, p.b_n)) {
    if (!has_unit_stride(p.m, p.a_m, p.k, p.a_k)) a = call.compact(a);
    if (!has_unit_stride(p.k, p.b_k, p.n, p.b_n)) b = call.compact(b);
    p = plan_matmul(a, b);
  }
  DeviceArray out = call.make(a.array.dtype, p.shape);
  if (out.size() == 0) return out;
  if (p.k == 0) {
    cuda::fill_bytes(out.data, 0, out.storage->bytes, call.stream());
    return out;
  }
  p.merge();
  normalise(p.m, &p.a_m, p.k, &p.a_k);
  normalise(p.k, &p.b_k, p.n, &p.b_n);
  cuda::GemmArgs g{};
  g.m = p.m;
  g.n = p.n;
  g.k = p.k;
  g.batch = 1;
  MatmulPlan::Dim inner{1, 0, 0, 0};
  if (!p.batch.empty()) inner = p.batch[0];
  g.batch = inner.size;
  g.a = {a.data, a.dtype, inner.a, 0, p.a_m, p.a_k};
  g.b = {b.data, b.dtype, inner.b, 0, p.b_k, p.b_n};
  g.c = {out.data, a.dtype, inner.c, 0, p.n, 1};
  g.batch_invariant = batch_invariant();
  // What of the batch does not merge into one dimension: a launch for each, one after the other in the stream.
  std::vector<cuda::GemmArgs> launches;
  size_t workspace = 0;
  std::vector<int64_t> at(p.batch.size(), 0);
  const int64_t item = a.item();
  for (;;) {
    cuda::GemmArgs one = g;
    for (size_t d = 1; d < p.batch.size(); ++d) {
      one.a.data += at[d] * p.batch[d].a * item;
      one.b.data += at[d] * p.batch[d].b * item;
      one.c.data += at[d] * p.batch[d].c * item;
    }
    launches.push_back(one);
    workspace = std::max(workspace, cuda::gemm_workspace(one));
    size_t d = 1;
    while (d < p.batch.size() && ++at[d] == p.batch[d].size) at[d++] = 0;
    if (d >= p.batch.size()) break;
  }
  void* const room = call.scratch(workspace);
  const Unlocked unlocked;
  for (cuda::GemmArgs& one : launches) {
    one.workspace = room;
    cuda::gemm(one, call.stream());
  }
  return out;
}

// x (..., n) as rows at one distance, or a contiguous copy of it; only the last dimension must be adjacent.
DeviceView as_matrix(DeviceCall* call, const DeviceView& x, int64_t* rows, int64_t* row) {
  DeviceView y = x;
  if (x.size() > 0 && x.shape.back() > 1 && x.strides.back() != 1) y = call->compact(x);
  auto grid = rows_along(y.rank() - 1, {&y})[0];
  if (grid.rank > 1) {
    y = call->compact(y);
    grid = rows_along(y.rank() - 1, {&y})[0];
  }
  *rows = grid.rows;
  *row = grid.rank ? grid.strides[0] : y.shape.back();
  return y;
}

// gate or residual, broadcast to the result's shape: (rows, n) with strides, copied where its rows lie at no one distance.
Strided4 operand(DeviceCall* call, const DeviceView& x, const std::vector<int64_t>& shape) {
  if (!x) return {};
  DeviceView y = broadcast(x, shape);
  auto grid = rows_along(y.rank() - 1, {&y})[0];
  if (grid.rank > 1) {
    y = call->compact(y);
    grid = rows_along(y.rank() - 1, {&y})[0];
  }
  return {y.data, y.dtype, 0, 0, grid.rank ? grid.strides[0] : 0, grid.n > 1 ? grid.step : 1};
}

DeviceArray linear(py::handle x_in, py::handle weight, py::handle bias_in, const py::object& activation, py::handle gate_in,
                   py::handle residual_in, py::handle out_in, std::uintptr_t stream) {
  DeviceView x = read_device_array("linear", "x", x_in);
  const DeviceView bias = read_optional_device_array("linear", "bias", bias_in),
                   gate = read_optional_device_array("linear", "gate", gate_in),
                   residual = read_optional_device_array("linear", "residual", residual_in);
  const DeviceWeight* packed = py::isinstance<DeviceWeight>(weight) ? weight.cast<const DeviceWeight*>() : nullptr;
  DeviceView w;
  if (!packed)
    w = read_device_array("linear", "weight", weight);
  else if (packed->is_float)
    w = read_device_array("linear", "weight", py::cast(packed->values));
  if (packed && w && w.dtype == DType::bf16 && x.dtype != DType::bf16) {  // in float32
    DeviceCall call("linear", stream_of(stream), x.array);
    call.reads(w);
    return linear(x_in, py::cast(call.widened(w)), bias_in, activation, gate_in, residual_in, out_in, stream);
  }
  check_dtypes("linear", {&x, &gate, &residual});
  const int64_t n = !w              ? packed->view.n
                    : w.rank() == 2 ? w.shape[0]
                                    : 0,
                k = !w              ? packed->view.k
                    : w.rank() == 2 ? w.shape[1]
                                    : 0;
  const std::vector<int64_t> shape = check_linear(x, w, n, k, bias);
  const Activation act = activation_of("linear", activation);

  DeviceCall call("linear", stream_of(stream), x.array);
  for (const DeviceView* p : std::initializer_list<const DeviceView*>{&x, &w, &bias, &gate, &residual}) call.reads(*p);
  DeviceOutput out(&call, out_in, x, shape, {&x, &w, &bias, &gate, &residual});
  if (out.view().size() == 0) return out.finish();
  if (w && w.dtype != x.dtype) {  // a float32 weight beside half-width x: all of it in float32, rounded at the end
    const auto wide = [&](const DeviceView& v) -> py::object { return v ? py::cast(call.widened(v)) : py::object(py::none()); };
    const DeviceView made =
        device_view(linear(wide(x), packed ? py::cast(packed->values) : py::reinterpret_borrow<py::object>(weight), wide(bias),
                           activation, wide(gate), wide(residual), py::none(), stream));
    const auto rows = rows_along(made.rank() - 1, {&made, &out.view()});
    cuda::copy({rows[0], rows[1]}, call.stream());
    return out.finish();
  }
  int64_t m = 0, row = 0;
  x = as_matrix(&call, x, &m, &row);
  const auto c = rows_along(x.rank() - 1, {&out.view()})[0];
  DeviceView made;  // where out's rows lie at no one distance
  Strided4 to{out.view().data, x.dtype, 0, 0, c.rank ? c.strides[0] : n, 1};
  if (c.rank > 1) {
    made = device_view(call.make(x.array.dtype, shape));
    to = {made.data, x.dtype, 0, 0, n, 1};
  }
  cuda::Epilogue e{vector_of(&call, bias), act, operand(&call, gate, shape), operand(&call, residual, shape)};
  if (w) {
    if (!has_unit_stride(n, w.strides[0], k, w.strides[1])) w = call.compact(w);
    cuda::GemmArgs g{};
    static_cast<cuda::Epilogue&>(g) = e;
    g.batch = 1;
    g.m = m;
    g.n = n;
    g.k = k;
    int64_t w_n = w.strides[0], w_k = w.strides[1];
    normalise(n, &w_n, g.k, &w_k);
    g.a = {x.data, x.dtype, 0, 0, row, 1};
    g.b = {w.data, w.dtype, 0, 0, w_k, w_n};
    g.c = to;
    g.batch_invariant = batch_invariant();
    g.workspace = call.scratch(cuda::gemm_workspace(g));
    const Unlocked unlocked;
    cuda::gemm(g, call.stream());
  } else {
    for (const DeviceArray* p : {&packed->values, &packed->row_scale, &packed->scale, &packed->offset})
      if (p->storage) call.reads(*p, "linear: weight");
    cuda::QuantizedGemmArgs g{};
    static_cast<cuda::Epilogue&>(g) = e;
    g.m = m;
    g.a = {x.data, x.dtype, 0, 0, row, 1};
    g.c = to;
    g.w = packed->view;
    g.batch_invariant = batch_invariant();
    g.workspace = call.scratch(cuda::gemm_quantized_workspace(g));
    const Unlocked unlocked;
    cuda::gemm_quantized(g, call.stream());
  }
  if (made) {
    const auto rows = rows_along(made.rank() - 1, {&made, &out.view()});
    cuda::copy({rows[0], rows[1]}, call.stream());
  }
  return out.finish();
}

// ---- packed weights, from the canonical parts of qkv.PackedWeight

std::unique_ptr<DeviceWeight> weight_from_parts(const std::string& type, int64_t group, int64_t k, const py::array& values,
                                                const py::object& scale, const py::object& offset, std::uintptr_t stream_in) {
  const cuda::Stream stream = stream_of(stream_in);
  auto w = std::make_unique<DeviceWeight>();
  w->type = type;
  const int64_t n = values.shape(0);
  w->view.n = n;
  w->view.k = k;
  w->view.group = group;
  w->is_float = type == "float32" || type == "bfloat16";
  if (w->is_float) {
    w->values = upload(values, stream);
    return w;
  }
  cuda::PackedView& v = w->view;
  v.type = type == "int8" ? WeightType::int8 : WeightType::int4;
  const int64_t unit = cuda::pack_unit(v);
  v.k_padded = (k + unit - 1) / unit * unit;
  const int64_t row = v.type == WeightType::int8 ? v.k_padded : v.k_padded / 2;
  w->values = new_device_array("pack_weight", py::dtype::of<uint8_t>(), {cuda::packed_rows(v), row}, stream);
  v.values = w->values.data;
  const DeviceArray q = upload(values, stream);
  if (v.type == WeightType::int8 && !group) {
    w->row_scale = upload(scale, stream);
    v.row_scale = reinterpret_cast<float*>(w->row_scale.data);
  } else {
    w->scale = upload(scale, stream);
    v.scale = w->scale.data;
    if (v.type == WeightType::int4) {
      w->offset = upload(offset, stream);
      v.offset = w->offset.data;
    }
  }
  if (n > 0 && k > 0) cuda::pack({q.data, v}, stream);
  w->scale = w->offset = DeviceArray();  // pack has put them beside the values
  v.scale = v.offset = nullptr;
  return w;
}

// (dtype, group, in, values, scale, offset) in host memory, as weight_from_parts takes them: int4 is a byte a value.
py::tuple weight_parts(const DeviceWeight& w, std::uintptr_t stream_in) {
  const cuda::Stream stream = stream_of(stream_in);
  py::object scale = py::none(), offset = py::none();
  const cuda::PackedView& v = w.view;
  if (w.is_float) return py::make_tuple(w.type, v.group, v.k, to_host(w.values, stream), scale, offset);
  DeviceCall call("parts", stream, w.values);
  for (const DeviceArray* p : {&w.values, &w.row_scale})
    if (p->storage) call.reads(*p, "parts: weight");
  const bool int8 = v.type == WeightType::int8;
  const std::vector<int64_t> groups = {v.n, v.group ? (v.k + v.group - 1) / v.group : 0};
  const DeviceArray q = call.make(int8 ? py::dtype::of<int8_t>() : py::dtype::of<uint8_t>(), {v.n, v.k});
  const DeviceArray s = call.make(py::dtype("float16"), groups), o = call.make(py::dtype("float16"), groups);
  if (q.size() > 0) cuda::unpack({v, q.data, s.data, o.data}, stream);
  scale = to_host(w.row_scale.storage ? w.row_scale : s, stream);
  if (!int8) offset = to_host(o, stream);
  return py::make_tuple(w.type, v.group, v.k, to_host(q, stream), scale, offset);
}

DeviceArray dequantize(const DeviceWeight& w, std::uintptr_t stream_in) {
  const cuda::Stream stream = stream_of(stream_in);
  if (w.is_float) return w.values;
  DeviceCall call("dequantize", stream, w.values);
  for (const DeviceArray* p : {&w.values, &w.row_scale})
    if (p->storage) call.reads(*p, "dequantize: weight");
  DeviceArray out = call.make(py::dtype::of<float>(), {w.view.n, w.view.k});
  if (out.size() > 0) cuda::dequantize({w.view, {}, w.view.n, out.data, DType::f32}, stream);
  return out;
}

int64_t weight_bytes(const DeviceWeight& w) {
  int64_t bytes = 0;
  for (const DeviceArray* p : {&w.values, &w.row_scale, &w.scale, &w.offset})
    if (p->storage) bytes += static_cast<int64_t>(p->storage->bytes);
  return bytes;
}

}  // namespace

bool batch_invariant() { return invariant; }

void bind_cuda_ops(py::module_& m) {
  m.def("set_batch_invariant", [](bool on) { invariant = on; }, py::arg("on"));
  m.def("batch_invariant", batch_invariant);
  m.def(
      "force_gemm",
      [](const std::string& kernel, int64_t splits, int64_t group) {
        if (!cuda::force_gemm(kernel.c_str(), splits, group)) fail_value("force_gemm: there is no kernel '" + kernel + "'");
      },
      py::arg("kernel") = "", py::arg("splits") = 0, py::arg("group") = 0);
  m.def("softmax", softmax, py::arg("x"), py::arg("axis"), py::arg("log"), py::arg("stream"));
  m.def("norm", norm, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("rms"), py::arg("residual"),
        py::arg("stream"));
  m.def("unary", unary, py::arg("name"), py::arg("x"), py::arg("stream"));
  m.def("advance", advance, py::arg("x"), py::arg("stream"));
  m.def("matmul", matmul, py::arg("a"), py::arg("b"), py::arg("stream"));
  m.def("linear", linear, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("activation"), py::arg("gate"),
        py::arg("residual"), py::arg("out"), py::arg("stream"));
  py::class_<DeviceWeight>(m, "PackedWeight", "A weight matrix (out, in) on a GPU; made by qkv.cuda.array of a qkv.PackedWeight.")
      .def_property_readonly(
          "shape", [](const DeviceWeight& w) { return py::make_tuple(w.view.n, w.view.k); }, "(out, in)")
      .def_property_readonly(
          "dtype", [](const DeviceWeight& w) { return w.type; }, "Name of the stored type.")
      .def_property_readonly(
          "group_size",
          [](const DeviceWeight& w) -> py::object { return w.view.group ? py::int_(w.view.group) : py::object(py::none()); },
          "How many neighbours of a row share a scale; None: all of them, or there are no scales.")
      .def_property_readonly("nbytes", weight_bytes, "Bytes held, padding included.")
      .def_property_readonly(
          "device", [](const DeviceWeight& w) { return w.values.storage->device; }, "Number of the device.")
      .def("_dequantize", dequantize, py::arg("stream"))
      .def("_parts", weight_parts, py::arg("stream"))
      .def("__repr__", [](const DeviceWeight& w) {
        return "qkv.cuda.PackedWeight(shape=" + shape_text({w.view.n, w.view.k}) + ", dtype='" + w.type + "'" +
               (w.view.group ? ", group_size=" + std::to_string(w.view.group) : "") + ")";
      });
  m.def("weight_from_parts", weight_from_parts);
}

}  // namespace qkv

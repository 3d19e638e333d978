// attention and attention_varlen on a GPU's arrays.
#include "bind/cuda_attention.h"

namespace qkv {
namespace {

py::object attention(py::handle q_in, py::handle k_in, py::handle v_in, const py::object& causal, py::handle mask_in,
                     py::handle bias_in, py::handle relative_bias, py::handle alibi, const py::object& scale,
                     const py::object& softcap, const py::object& left, const py::object& right, py::handle sinks,
                     py::handle kv_lengths_in, bool bshd, bool return_lse, bool return_weights, py::handle out_in,
                     std::uintptr_t stream) {
  const char* op = "attention";
  DeviceView q = read_device_array(op, "q", q_in), k = read_device_array(op, "k", k_in), v = read_device_array(op, "v", v_in);
  check_dtypes(op, {&q, &k, &v});
  check_dense(q, k, v, bshd);
  cuda::AttentionArgs a{};
  const size_t h = bshd ? 2 : 1, s = bshd ? 1 : 2;
  check_heads(op, q, k, v, h, s, &a);
  const int64_t batch = q.shape[0];
  a.s = q.shape[s];
  a.t = k.shape[s];
  a.causal = causal_of(op, causal);
  read_window(op, left, right, &a);
  DeviceCall call(op, reinterpret_cast<cuda::Stream>(stream), q.array);
  for (const DeviceView* x : {&q, &k, &v}) call.reads(*x);
  DeviceOptions o;
  read_common(&call, q, relative_bias, alibi, sinks, scale, softcap, batch, &o, &a);

  const Shape scores = {batch, a.heads, a.s, a.t};
  DeviceView bias = read_optional_device_array(op, "bias", bias_in);
  check_parameter_dtype(q, bias);
  call.reads(bias);
  if (bias) {
    bias = broadcast(bias, scores);
    a.bias = {bias.data, bias.dtype, bias.strides[0], bias.strides[1], bias.strides[2], bias.strides[3]};
  }
  DeviceView mask;
  if (!mask_in.is_none()) {
    if (!py::isinstance<DeviceArray>(mask_in))
      fail_type("attention: mask must be an array on the GPU, got " + std::string(Py_TYPE(mask_in.ptr())->tp_name));
    mask.array = mask_in.cast<const DeviceArray&>();
    if (mask.array.dtype.kind() != 'b')
      fail_type("attention: mask must be a bool array (True: attend), got " + py::str(mask.array.dtype).cast<std::string>());
    mask.where = "attention: mask";
    mask.data = mask.array.data;
    mask.is_int8 = true;  // bytes
    mask.shape = mask.array.shape;
    mask.strides = mask.array.strides;
    call.reads(mask);
    mask = broadcast(mask, scores);
    a.mask = {mask.data, DType::f32, mask.strides[0], mask.strides[1], mask.strides[2], mask.strides[3]};
  }
  DeviceInts kv_lengths;
  if (!kv_lengths_in.is_none()) {
    kv_lengths = read_device_ints(&call, "kv_lengths", kv_lengths_in);
    check_kv_lengths(op, kv_lengths.host, kv_lengths.shape, batch, a.t);
    a.kv_lengths = kv_lengths.ints;
  }
  Shape out_shape = q.shape;
  out_shape[3] = a.dv;
  checked_size(op, out_shape);
  if (return_weights) checked_size(op, scores);

  DeviceOutput out(&call, out_in, q, out_shape, {&q, &k, &v, &bias, &mask, &o.relative_bias, &o.alibi, &o.sinks});
  py::object lse = py::none(), weights = py::none();
  if (return_lse) {
    const DeviceArray made = call.make(py::dtype::of<float>(), {batch, a.heads, a.s});
    a.lse = reinterpret_cast<float*>(made.data);
    lse = py::cast(made);
  }
  if (return_weights) {
    const DeviceArray made = call.make(q.array.dtype, scores);
    a.weights = made.data;
    weights = py::cast(made);
  }
  if (batch * a.heads * a.s > 0) {
    q = adjacent(&call, q);
    k = adjacent(&call, k);
    v = adjacent(&call, v);
    const auto strided = [&](const DeviceView& x) {
      return Strided4{x.data, x.dtype, x.strides[0], x.strides[h], x.strides[s], 1};
    };
    a.q = strided(q);
    a.k = strided(k);
    a.v = strided(v);
    a.out = strided(out.view());
    a.lse_b = a.heads * a.s;
    a.lse_h = a.s;
    run_attention(&call, a);
  }
  return results(py::cast(out.finish()), lse, weights);
}

py::object attention_varlen(py::handle q_in, py::handle k_in, py::handle v_in, py::handle cu_q_in, py::handle cu_k_in,
                            const py::object& causal, py::handle relative_bias, py::handle alibi, const py::object& scale,
                            const py::object& softcap, const py::object& left, const py::object& right, py::handle sinks,
                            bool return_lse, bool return_weights, py::handle out_in, std::uintptr_t stream) {
  const char* op = "attention_varlen";
  DeviceView q = read_device_array(op, "q", q_in), k = read_device_array(op, "k", k_in), v = read_device_array(op, "v", v_in);
  check_dtypes(op, {&q, &k, &v});
  check_packed(q, k, v);
  cuda::AttentionArgs a{};
  check_heads(op, q, k, v, 1, 0, &a);
  a.s = q.shape[0];
  a.t = k.shape[0];
  DeviceCall call(op, reinterpret_cast<cuda::Stream>(stream), q.array);
  for (const DeviceView* x : {&q, &k, &v}) call.reads(*x);
  DeviceInts cu_q = read_device_ints(&call, "cu_seqlens_q", cu_q_in), cu_k = read_device_ints(&call, "cu_seqlens_k", cu_k_in);
  if (cu_q.on_host) check_cu_seqlens(op, "cu_seqlens_q", cu_q.host, cu_q.shape, a.s);
  if (cu_k.on_host) check_cu_seqlens(op, "cu_seqlens_k", cu_k.host, cu_k.shape, a.t);
  for (const DeviceInts* x : {&cu_q, &cu_k})
    if (x->shape.size() != 1 || x->shape[0] < 1)
      fail_value("attention_varlen: cu_seqlens must be (B + 1,), got " + shape_text(x->shape));
  if (cu_q.shape != cu_k.shape)
    fail_value("attention_varlen: cu_seqlens_q has " + std::to_string(cu_q.shape[0]) + " entries, cu_seqlens_k has " +
               std::to_string(cu_k.shape[0]));
  const int64_t batch = cu_q.shape[0] - 1;
  a.cu_q = cu_q.ints;
  a.cu_k = cu_k.ints;
  a.causal = causal_of(op, causal);
  read_window(op, left, right, &a);
  DeviceOptions o;
  read_common(&call, q, relative_bias, alibi, sinks, scale, softcap, batch, &o, &a);
  const Shape out_shape = {a.s, a.heads, a.dv};
  checked_size(op, out_shape);

  DeviceOutput out(&call, out_in, q, out_shape, {&q, &k, &v, &o.relative_bias, &o.alibi, &o.sinks});
  py::object lse = py::none(), weights = py::none();
  if (return_lse) {
    const DeviceArray made = call.make(py::dtype::of<float>(), {a.heads, a.s});
    a.lse = reinterpret_cast<float*>(made.data);
    a.lse_h = a.s;
    lse = py::cast(made);
  }
  DeviceArray starts;
  if (return_weights) {
    // The shapes of the result are the lengths: of those that are on the device, the host must wait here.
    for (DeviceInts* x : {&cu_q, &cu_k})
      if (!x->on_host) {
        fetch_ints(x, call.stream());
        check_cu_seqlens(op, x == &cu_q ? "cu_seqlens_q" : "cu_seqlens_k", x->host, x->shape, x == &cu_q ? a.s : a.t);
      }
    std::vector<int64_t> lengths_q, lengths_k;
    for (size_t i = 0; i < static_cast<size_t>(batch); ++i) {
      lengths_q.push_back(cu_q.host[i + 1] - cu_q.host[i]);
      lengths_k.push_back(cu_k.host[i + 1] - cu_k.host[i]);
    }
    weights = make_weights(&call, q.array.dtype, lengths_q, lengths_k, &starts, &a);
  }
  if (a.s * a.heads > 0) {
    q = adjacent(&call, q);
    k = adjacent(&call, k);
    v = adjacent(&call, v);
    const auto strided = [](const DeviceView& x) { return Strided4{x.data, x.dtype, 0, x.strides[1], x.strides[0], 1}; };
    a.q = strided(q);
    a.k = strided(k);
    a.v = strided(v);
    a.out = strided(out.view());
    run_attention(&call, a);
  }
  return results(py::cast(out.finish()), lse, weights);
}

}  // namespace

void bind_cuda_attention(py::module_& m) {
  m.def("attention", attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("causal"), py::arg("mask"), py::arg("bias"),
        py::arg("relative_bias"), py::arg("alibi_slopes"), py::arg("scale"), py::arg("softcap"), py::arg("window_left"),
        py::arg("window_right"), py::arg("sinks"), py::arg("kv_lengths"), py::arg("bshd"), py::arg("return_lse"),
        py::arg("return_weights"), py::arg("out"), py::arg("stream"));
  m.def("attention_varlen", attention_varlen, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("cu_seqlens_q"),
        py::arg("cu_seqlens_k"), py::arg("causal"), py::arg("relative_bias"), py::arg("alibi_slopes"), py::arg("scale"),
        py::arg("softcap"), py::arg("window_left"), py::arg("window_right"), py::arg("sinks"), py::arg("return_lse"),
        py::arg("return_weights"), py::arg("out"), py::arg("stream"));
}

}  // namespace qkv

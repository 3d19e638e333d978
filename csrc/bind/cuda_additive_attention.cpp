// additive_attention on a GPU's arrays, after its projections; shapes are checked in qkv.ops.
#include "bind/cuda_attention.h"

namespace qkv {
namespace {

cuda::Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<cuda::Stream>(handle); }

// x with its leading dimensions broadcast to `lead`.
DeviceView spread(const DeviceView& x, const Shape& lead) {
  Shape shape = lead;
  shape.insert(shape.end(), x.shape.end() - 2, x.shape.end());
  return broadcast(x, shape);
}

// q (..., S, A) and k (..., T, A), projected, and w (A): contiguous float32. v (..., T, Dv) and mask (..., S, T) of any strides;
// kv_lengths (...). lead: what all leading dimensions broadcast to, not empty.
py::object additive_attention(py::handle q_in, py::handle k_in, py::handle w_in, py::handle v_in, py::handle mask_in,
                              py::handle kv_lengths_in, const std::vector<int64_t>& lead_in, bool return_weights,
                              std::uintptr_t stream) {
  const char* op = "additive_attention";
  DeviceView q = read_device_array(op, "q", q_in), k = read_device_array(op, "k", k_in), v = read_device_array(op, "v", v_in);
  const DeviceView w = read_device_array(op, "w_v", w_in);
  DeviceCall call(op, stream_of(stream), q.array);
  for (const DeviceView* x : std::initializer_list<const DeviceView*>{&q, &k, &v, &w}) call.reads(*x);
  const Shape lead = lead_in.empty() ? Shape{1} : lead_in;
  const size_t last = lead.size() - 1;
  cuda::AdditiveAttentionArgs a{};
  a.batch = lead[last];
  a.s = q.shape[q.shape.size() - 2];
  a.t = k.shape[k.shape.size() - 2];
  a.a = q.shape.back();
  a.dv = v.shape.back();
  a.w = call.floats(w);
  const auto full = [&](int64_t rows, int64_t columns) {
    Shape shape = lead_in;
    shape.push_back(rows);
    shape.push_back(columns);
    checked_size(op, shape);
    return shape;
  };
  const DeviceArray out = call.make(v.array.dtype, full(a.s, a.dv));
  DeviceArray weights;
  if (return_weights) weights = call.make(v.array.dtype, full(a.s, a.t));
  q = spread(q, lead);
  k = spread(k, lead);
  v = spread(v, lead);
  DeviceView mask;
  if (!mask_in.is_none()) {
    mask.array = mask_in.cast<const DeviceArray&>();
    mask.where = "additive_attention: mask";
    mask.data = mask.array.data;
    mask.is_int8 = true;  // bytes
    mask.shape = mask.array.shape;
    mask.strides = mask.array.strides;
    call.reads(mask);
    Shape scores = lead;
    scores.push_back(a.s);
    scores.push_back(a.t);
    mask = broadcast(mask, scores);
  }
  DeviceInts lengths;
  if (!kv_lengths_in.is_none()) lengths = read_device_ints(&call, "kv_lengths", kv_lengths_in);
  a.kv_lengths = lengths.ints;
  int64_t parts = 1;
  for (size_t d = 0; d < last; ++d) parts *= lead[d];

  // The leading dimensions but the last are launches: merging broadcast ones would copy them.
  Shape at(lead.size(), 0);
  for (int64_t part = 0; part < parts; ++part) {
    const auto start = [&](const DeviceView& x) {
      int64_t offset = 0;
      for (size_t d = 0; d < last; ++d) offset += at[d] * x.strides[d];
      return x.data + offset * x.item();
    };
    a.q = reinterpret_cast<const float*>(start(q));
    a.k = reinterpret_cast<const float*>(start(k));
    a.q_b = q.strides[last];
    a.k_b = k.strides[last];
    a.v = {start(v), v.dtype, v.strides[last], 0, v.strides[last + 1], v.strides[last + 2]};
    a.out = {out.data + part * a.batch * a.s * a.dv * v.item(), v.dtype, a.s * a.dv, 0, a.dv, 1};
    if (mask) a.mask = {start(mask), DType::f32, mask.strides[last], 0, mask.strides[last + 1], mask.strides[last + 2]};
    if (return_weights) a.weights = weights.data + part * a.batch * a.s * a.t * v.item();
    if (lengths.ints.data)
      a.kv_lengths.data = static_cast<const char*>(lengths.ints.data) + part * a.batch * (lengths.ints.wide ? 8 : 4);
    {
      const Unlocked unlocked;
      cuda::additive_attention(a, call.stream());
    }
    for (size_t d = last; d-- > 0;) {
      if (++at[d] < lead[d]) break;
      at[d] = 0;
    }
  }
  return results(py::cast(out), py::none(), weights.storage ? py::cast(weights) : py::none());
}

}  // namespace

void bind_cuda_additive_attention(py::module_& m) {
  m.def("additive_attention", additive_attention, py::arg("q"), py::arg("k"), py::arg("w"), py::arg("v"), py::arg("mask"),
        py::arg("kv_lengths"), py::arg("lead"), py::arg("return_weights"), py::arg("stream"));
}

}  // namespace qkv

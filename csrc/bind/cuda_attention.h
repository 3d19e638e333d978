// What the bindings of attention on a GPU share.
#pragma once
#include "bind/attention_checks.h"
#include "bind/device_array.h"
#include "bind/device_ints.h"
#include "bind/gil.h"

namespace qkv {

// relative_bias, alibi_slopes, sinks.
struct DeviceOptions {
  DeviceView relative_bias, alibi, sinks;
};

inline void read_common(DeviceCall* call, const DeviceView& q, py::handle relative_bias, py::handle alibi, py::handle sinks,
                        const py::object& scale, const py::object& softcap, int64_t batch, DeviceOptions* o,
                        cuda::AttentionArgs* a) {
  const char* op = call->op();
  a->batch = batch;
  read_scale(op, scale, softcap, a);
  o->relative_bias = read_optional_device_array(op, "relative_bias", relative_bias);
  o->alibi = read_optional_device_array(op, "alibi_slopes", alibi);
  o->sinks = read_optional_device_array(op, "sinks", sinks);
  check_score_parameters(op, q, o->relative_bias, o->alibi, o->sinks, a);
  for (const DeviceView* p : {&o->relative_bias, &o->alibi, &o->sinks}) call->reads(*p);
  a->relative_bias = call->floats(o->relative_bias);
  a->alibi = call->floats(o->alibi);
  a->sinks = call->floats(o->sinks);
}

inline void run_attention(DeviceCall* call, cuda::AttentionArgs a) {
  a.batch_invariant = batch_invariant();
  a.workspace = call->scratch(cuda::attention_workspace(a));
  const Unlocked unlocked;
  cuda::attention(a, call->stream());
}

// A list of (H, S_b, T_b), one piece of memory, for the probabilities of packed sequences. `starts` must live as long as the
// call.
inline py::list make_weights(DeviceCall* call, const py::dtype& dtype, const std::vector<int64_t>& lengths_q,
                             const std::vector<int64_t>& lengths_k, DeviceArray* starts, cuda::AttentionArgs* a) {
  std::vector<int64_t> start;
  int64_t total = 0;
  for (size_t b = 0; b < lengths_q.size(); ++b) {
    start.push_back(total);
    total += checked_size(call->op(), {a->heads, lengths_q[b], lengths_k[b]});
  }
  const DeviceArray all = call->make(dtype, {total});
  *starts = upload(py::array_t<int64_t>(static_cast<py::ssize_t>(start.size()), start.data()), call->stream());
  a->weights = all.data;
  a->weight_start = reinterpret_cast<const int64_t*>(starts->data);
  py::list list;
  for (size_t b = 0; b < start.size(); ++b) {
    const int64_t s = lengths_q[b], t = lengths_k[b];
    DeviceArray one = all;
    one.data += start[b] * one.item();
    one.shape = {a->heads, s, t};
    one.strides = {s * t, t, 1};
    list.append(py::cast(one));
  }
  return list;
}

// Only the last dimension must be adjacent.
inline DeviceView adjacent(DeviceCall* call, const DeviceView& x) {
  return x.size() > 0 && x.shape.back() > 1 && x.strides.back() != 1 ? call->compact(x) : x;
}

}  // namespace qkv

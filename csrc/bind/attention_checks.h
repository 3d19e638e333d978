// What attention checks whatever its arrays' memory is: heads, window, scale, the parameters of scores. Args is the CPU's or a
// GPU's AttentionArgs. Python hands over keyword arguments by name; see qkv.ops for their meaning.
#pragma once
#include <pybind11/pybind11.h>

#include <cmath>
#include <string>
#include <vector>

#include "bind/view.h"

namespace qkv {

namespace py = pybind11;

using Shape = std::vector<int64_t>;

// q, k, v of `attention` and of `attention_varlen`: ranks and batch.
inline void check_dense(const View& q, const View& k, const View& v, bool bshd) {
  for (const View* x : {&q, &k, &v})
    if (x->rank() != 4)
      fail_value(x->where + " must be " + (bshd ? "(B, S, H, D)" : "(B, H, S, D)") + ", got shape " + shape_text(x->shape));
  for (const View* x : {&k, &v})
    if (x->shape[0] != q.shape[0])
      fail_value(x->where + " has batch size " + std::to_string(x->shape[0]) + ", q has " + std::to_string(q.shape[0]));
}

inline void check_packed(const View& q, const View& k, const View& v) {
  for (const View* x : {&q, &k, &v})
    if (x->rank() != 3) fail_value(x->where + " must be (tokens, H, D), got shape " + shape_text(x->shape));
}

inline std::string heads_text(int64_t n) { return std::to_string(n) + (n == 1 ? " head" : " heads"); }

// q (..., H, ..., D), k, v: head counts and widths at the given axes.
template <class Args>
void check_heads(const char* op, const View& q, const View& k, const View& v, size_t head_axis, size_t token_axis, Args* a) {
  const std::string o(op);
  a->heads = q.shape[head_axis];
  a->kv_heads = k.shape[head_axis];
  a->d = q.shape.back();
  a->dv = v.shape.back();
  check_length(op, "q's width", a->d);
  check_length(op, "v's width", a->dv);
  check_length(op, "k's length", k.shape[token_axis]);
  if (v.shape[head_axis] != a->kv_heads)
    fail_value(o + ": v has " + heads_text(v.shape[head_axis]) + ", k has " + std::to_string(a->kv_heads));
  if (a->heads > 0 && (a->kv_heads == 0 || a->heads % a->kv_heads != 0))
    fail_value(o + ": k has " + heads_text(a->kv_heads) + ", which does not divide q's " + std::to_string(a->heads));
  if (a->heads == 0 && a->kv_heads != 0) fail_value(o + ": q has 0 heads, k has " + std::to_string(a->kv_heads));
  if (k.shape.back() != a->d)
    fail_value(o + ": k has width " + std::to_string(k.shape.back()) + ", q has " + std::to_string(a->d));
  if (v.shape[token_axis] != k.shape[token_axis])
    fail_value(o + ": v has " + std::to_string(v.shape[token_axis]) + " keys, k has " + std::to_string(k.shape[token_axis]));
}

template <class Args>
void read_window(const char* op, const py::object& left, const py::object& right, Args* a) {
  const auto side = [op](const py::object& w, const char* name) {
    if (w.is_none()) return kUnbounded;
    const int64_t n = w.cast<int64_t>();  // qkv.ops clips it to 62 bits
    if (n < 0)
      fail_value(std::string(op) + ": window's " + name + " side must be None or not negative, got " + std::to_string(n));
    return n < kUnbounded ? n : kUnbounded;
  };
  a->window_left = side(left, "left");
  a->window_right = side(right, "right");
}

// scale and softcap, stored. a->d is known.
template <class Args>
void read_scale(const char* op, const py::object& scale, const py::object& softcap, Args* a) {
  const std::string name(op);
  a->scale =
      static_cast<float>(scale.is_none() ? 1.0 / std::sqrt(static_cast<double>(a->d > 0 ? a->d : 1)) : scale.cast<double>());
  if (!softcap.is_none()) {
    const double c = softcap.cast<double>();
    a->softcap = static_cast<float>(c);
    if (!(c > 0)) fail_value(name + ": softcap must be positive or None, got " + py::repr(softcap).cast<std::string>());
    if (!std::isfinite(a->softcap) || !std::isfinite(1 / a->softcap)) fail_value(name + ": softcap is out of float32's range");
  }
  if (!std::isfinite(a->scale) && !scale.is_none() && std::isfinite(scale.cast<double>()))
    fail_value(name + ": scale is out of float32's range");
}

// relative_bias r, alibi_slopes s, sinks: dtypes and shapes, and what of them a has as numbers. a->heads and a->batch are known.
template <class Args>
void check_score_parameters(const char* op, const View& q, const View& r, const View& s, const View& sinks, Args* a) {
  const std::string name(op);
  for (const View* p : {&r, &s, &sinks}) check_parameter_dtype(q, *p);
  if (r && (r.rank() != 2 || r.shape[0] != a->heads || r.shape[1] % 2 == 0))
    fail_value(name + ": relative_bias must be (" + std::to_string(a->heads) + ", 2 R + 1), got " + shape_text(r.shape));
  if (s && s.shape != Shape{a->heads} && s.shape != Shape{a->batch, a->heads})
    fail_value(name + ": alibi_slopes must be " + shape_text({a->heads}) + " or " + shape_text({a->batch, a->heads}) + ", got " +
               shape_text(s.shape));
  if (sinks && sinks.shape != Shape{a->heads})
    fail_value(name + ": sinks must be " + shape_text({a->heads}) + ", got " + shape_text(sinks.shape));
  if (r) a->max_distance = (r.shape[1] - 1) / 2;
  if (s) a->alibi_b = s.rank() == 2 ? a->heads : 0;
}

inline Causal causal_of(const char* op, const py::object& causal) {
  if (py::isinstance<py::bool_>(causal)) return causal.cast<bool>() ? Causal::bottom_right : Causal::none;
  if (py::isinstance<py::str>(causal) && causal.cast<std::string>() == "top_left") return Causal::top_left;
  fail_value(std::string(op) + ": causal must be False, True or 'top_left', got " + py::repr(causal).cast<std::string>());
}

inline py::object results(const py::object& out, const py::object& lse, const py::object& weights) {
  if (lse.is_none() && weights.is_none()) return out;
  if (weights.is_none()) return py::make_tuple(out, lse);
  if (lse.is_none()) return py::make_tuple(out, weights);
  return py::make_tuple(out, lse, weights);
}

}  // namespace qkv

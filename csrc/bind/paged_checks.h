// What ops on a paged cache check whatever its memory is. Views are the CPU's or a GPU's.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "bind/attention_checks.h"

namespace qkv {

// TypeError unless both caches have one dtype (float64 mixes with all but int8).
inline void check_cache_dtypes(const View& k, const View& v) {
  const bool wide = k.is_double || v.is_double;
  if (k.is_int8 != v.is_int8 || (!wide && !k.is_int8 && k.dtype != v.dtype))
    fail_type(v.where + " is " + dtype_name(v) + " but k_cache is " + dtype_name(k));
}

// Scales of a cache are there if and only if it is int8. False: there are none.
inline bool has_scale(const char* op, const char* name, py::handle object, const View& cache) {
  if (!cache.is_int8) {
    if (!object.is_none()) fail_value(std::string(op) + ": " + name + " is for int8 caches; " + dtype_name(cache) + " has none");
    return false;
  }
  if (object.is_none()) fail_value(std::string(op) + ": an int8 cache needs " + name);
  return true;
}
inline void check_scale(const View& scale, const View& cache) {
  if (scale.is_double || scale.is_int8 || scale.dtype != DType::f32)
    fail_type(scale.where + " must be float32, got " + dtype_name(scale));
  const std::vector<int64_t> shape(cache.shape.begin(), cache.shape.end() - 1);
  if (scale.shape != shape) fail_value(scale.where + " must be " + shape_text(shape) + ", got " + shape_text(scale.shape));
}

// q (tokens, H, D) over caches (blocks, block_size, Hkv, D or Dv); sizes are stored.
template <class Args>
void check_paged(const char* op, const View& q, const View& k, const View& v, bool any_block_size, Args* a) {
  const std::string o_p = std::string(op) + ": ";
  if (q.rank() != 3) fail_value(q.where + " must be (tokens, H, D), got shape " + shape_text(q.shape));
  for (const View* x : {&k, &v})
    if (x->rank() != 4) fail_value(x->where + " must be (blocks, block_size, Hkv, D), got shape " + shape_text(x->shape));
  check_cache_dtypes(k, v);
  a->heads = q.shape[1];
  a->kv_heads = k.shape[2];
  a->d = q.shape[2];
  a->dv = v.shape[3];
  a->block_size = k.shape[1];
  check_length(op, "q's width", a->d);
  check_length(op, "v's width", a->dv);
  if (v.shape[2] != a->kv_heads)
    fail_value(v.where + " has " + heads_text(v.shape[2]) + ", k_cache has " + std::to_string(a->kv_heads));
  if (a->heads > 0 && (a->kv_heads == 0 || a->heads % a->kv_heads != 0))
    fail_value(k.where + " has " + heads_text(a->kv_heads) + ", which does not divide q's " + std::to_string(a->heads));
  if (a->heads == 0 && a->kv_heads != 0) fail_value(o_p + "q has 0 heads, k_cache has " + std::to_string(a->kv_heads));
  if (k.shape[3] != a->d) fail_value(k.where + " has width " + std::to_string(k.shape[3]) + ", q has " + std::to_string(a->d));
  if (v.shape[0] != k.shape[0] || v.shape[1] != k.shape[1])
    fail_value(v.where + " has " + std::to_string(v.shape[0]) + " blocks of " + std::to_string(v.shape[1]) + ", k_cache has " +
               std::to_string(k.shape[0]) + " of " + std::to_string(k.shape[1]));
  if (!any_block_size && (a->block_size == 0 || a->block_size % 16 != 0))
    fail_value(k.where + " has blocks of " + std::to_string(a->block_size) + ", which is no multiple of 16");
}

inline void check_per_sequence(const char* op, const char* name, const std::vector<int64_t>& shape, int64_t batch) {
  if (shape != std::vector<int64_t>{batch})
    fail_value(std::string(op) + ": " + name + " must be " + shape_text({batch}) + ", got " + shape_text(shape));
}
inline void check_tables(const char* op, const std::vector<int64_t>& shape, int64_t batch) {
  if (shape.size() != 2 || shape[0] != batch)
    fail_value(std::string(op) + ": block_tables must be (" + std::to_string(batch) + ", blocks of a sequence), got " +
               shape_text(shape));
}

// Places that `width` blocks of a table hold.
inline int64_t places_of(int64_t width, int64_t block_size) {
  int64_t places;
  return __builtin_mul_overflow(width, block_size, &places) ? INT64_MAX : places;
}

// t keys from place `start` on fit a table of `width` blocks.
inline void check_sequence(int64_t start, int64_t t, int64_t width, int64_t block_size) {
  const std::string o_p = "attention_paged: ";
  const int64_t places = places_of(width, block_size);
  check_length("attention_paged", "a sequence's length", t);
  if (start < 0 || start > places)
    fail_value(o_p + "starts must lie in 0 to " + std::to_string(places) + ", got " + std::to_string(start));
  if (t < 0 || t > places - start)
    fail_value(o_p + "kv_lengths must lie in 0 to " + std::to_string(places - start) + ", what " + std::to_string(width) +
               " blocks of " + std::to_string(block_size) + " hold, got " + std::to_string(t));
}

// Blocks [first, end) of a table that hold the keys which the s queries at the end of a sequence of t see.
struct SeenBlocks {
  int64_t first, end;
};
template <class Args>
SeenBlocks seen_blocks(const Args& a, int64_t s, int64_t t, int64_t start) {
  const int64_t shift = a.causal == Causal::top_left ? 0 : t - s;
  const int64_t first = std::max<int64_t>(shift - a.window_left, 0);
  const int64_t ahead = a.causal == Causal::none ? a.window_right : 0;
  const int64_t last = std::min(shift + s + ahead, t);  // no query sees a key from here on
  if (s == 0 || first >= last) return {0, 0};
  return {(start + first) / a.block_size, (start + last - 1) / a.block_size + 1};
}

inline void check_block(int64_t block, size_t sequence, int64_t cache_blocks) {
  if (block < 0 || block >= cache_blocks)
    fail_value("attention_paged: block_tables names block " + std::to_string(block) + " for sequence " +
               std::to_string(sequence) + ", the cache has " + std::to_string(cache_blocks));
}

}  // namespace qkv

// What paged_write and copy_blocks check whatever their arrays' memory is.
#pragma once
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "bind/paged_checks.h"

namespace qkv {

// k (tokens, Hkv, D), v (tokens, Hkv, Dv) and their caches (blocks, block_size, Hkv, D or Dv); sizes are stored.
template <class Args>
void check_paged_write(const View& k, const View& v, const View& k_cache, const View& v_cache, Args* a) {
  check_cache_dtypes(k_cache, v_cache);
  for (const View* x : {&k, &v})
    if (x->rank() != 3) fail_value(x->where + " must be (tokens, Hkv, D), got shape " + shape_text(x->shape));
  for (const View* x : {&k_cache, &v_cache})
    if (x->rank() != 4) fail_value(x->where + " must be (blocks, block_size, Hkv, D), got shape " + shape_text(x->shape));
  a->tokens = k.shape[0];
  a->heads = k.shape[1];
  a->d = k.shape[2];
  a->dv = v.shape[2];
  a->block_size = k_cache.shape[1];
  if (v.shape[0] != a->tokens || v.shape[1] != a->heads)
    fail_value(v.where + " has " + std::to_string(v.shape[0]) + " tokens of " + std::to_string(v.shape[1]) + " heads, k has " +
               std::to_string(a->tokens) + " of " + std::to_string(a->heads));
  const std::vector<int64_t> k_shape = {k_cache.shape[0], a->block_size, a->heads, a->d};
  const std::vector<int64_t> v_shape = {k_cache.shape[0], a->block_size, a->heads, a->dv};
  if (k_cache.shape != k_shape)
    fail_value(k_cache.where + " must be " + shape_text(k_shape) + ", got " + shape_text(k_cache.shape));
  if (v_cache.shape != v_shape)
    fail_value(v_cache.where + " must be " + shape_text(v_shape) + ", got " + shape_text(v_cache.shape));
}

inline void check_slots_shape(const std::vector<int64_t>& shape, int64_t tokens) {
  if (shape != std::vector<int64_t>{tokens})
    fail_value("paged_write: slots must be " + shape_text({tokens}) + ", got " + shape_text(shape));
}

// kind: of the dtype that they came in.
inline void check_unsigned_slots(const std::vector<int64_t>& slots, char kind) {
  if (kind == 'u' && std::any_of(slots.begin(), slots.end(), [](int64_t slot) { return slot < 0; }))
    fail_value("paged_write: slots holds a number beyond 2^63");
}

inline void check_slots(const std::vector<int64_t>& slots, int64_t places) {
  for (const int64_t slot : slots)
    if (slot >= places)
      fail_value("paged_write: slots must be below " + std::to_string(places) + ", got " + std::to_string(slot));
}

// Of tokens with the same slot the last one stays: the others are not stored.
inline void drop_overwritten(std::vector<int64_t>* slots) {
  std::vector<int64_t>& s = *slots;
  int64_t last = -1;
  bool rises = true;
  for (const int64_t slot : s) {
    rises = rises && (slot < 0 || slot > last);
    if (slot >= 0) last = slot;
  }
  if (rises) return;  // the usual case
  std::vector<size_t> order(s.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t x, size_t y) { return s[x] != s[y] ? s[x] < s[y] : x < y; });
  for (size_t i = 0; i + 1 < order.size(); ++i)
    if (s[order[i]] == s[order[i + 1]]) s[order[i]] = -1;
}

inline void check_copied_shapes(const std::vector<int64_t>& from, const std::vector<int64_t>& to) {
  if (from != to) fail_value("copy_blocks: from and to must have one shape");
}

// Of one of the arrays. usable: whether it is contiguous and can be written to.
inline void check_copied(const std::vector<int64_t>& shape, bool usable, int64_t filled, const std::vector<int64_t>& from,
                         const std::vector<int64_t>& to) {
  if (shape.size() < 2 || !usable) fail_value("copy_blocks: arrays must be writeable and contiguous, (blocks, block_size, ...)");
  if (filled < 0 || filled > shape[1]) fail_value("copy_blocks: filled must lie in 0 to the block size");
  for (const std::vector<int64_t>* blocks : {&from, &to})
    for (const int64_t b : *blocks)
      if (b < 0 || b >= shape[0]) fail_value("copy_blocks: there is no block " + std::to_string(b));
}

}  // namespace qkv

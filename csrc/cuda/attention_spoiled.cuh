// Rows that met a value that is not finite.
//
// mma multiplies the value of every key in a tile, excluded ones by 0, and 0 * NaN is NaN. So a tile of rows whose sums turn out
// not to be finite is summed once more with such values replaced by 0 (the others' sums are the same, to the bit, as without
// them), and here they are added to those rows which see them, one by one. That is slow, and happens to nobody whose numbers are
// numbers.
#pragma once
#include "cuda/attention_paged.cuh"
#include "cuda/attention_score.cuh"
#include "cuda/attention_softmax.cuh"

namespace qkv::cuda {

QKV_DEVICE bool is_finite(float x) { return fabsf(x) < __builtin_inff(); }

// Weight of a key that the row may see, negative if its score is -inf. It is never 0: an infinite value is felt however small its
// weight.
template <class T, bool kPaged>
QKV_DEVICE float one_weight(const Problem& p, const Entry& e, int kv_head, const Row& row, int key, const RowState& state) {
  const T* const q = query_row<T>(p, e, row);
  float s = 0;
  if constexpr (kPaged) {
    const StoredRow<T> k = stored_row<T>(p, true, kv_head, place_of(p, e, key));
#pragma unroll 1
    for (int64_t i = 0; i < p.a.d; ++i) s = fmaf(to_float(q[i]), k[i], s);
  } else {
    const T* const k = key_row<T>(p, p.a.k, e, kv_head, key);
    for (int64_t i = 0; i < p.a.d; ++i) s = fmaf(to_float(q[i]), to_float(k[i]), s);
  }
  s = adjusted_score(p, e, row, key, s);
  if (s == kMinusInfinity) return -1;
  return fmaxf(exp_from(s, state.maximum) / state.total, 1e-45f);
}

// Those who complete a row together: the threads of a block, or the lanes of a warp.
template <int kThreads>
struct BlockThreads {
  static constexpr int kCount = kThreads;
  QKV_DEVICE static int index() { return threadIdx.x; }
  QKV_DEVICE static void sync() { __syncthreads(); }
  QKV_DEVICE static bool any(bool x) { return __syncthreads_or(x); }
};
struct WarpThreads {
  static constexpr int kCount = 32;
  QKV_DEVICE static int index() { return lane_id(); }
  QKV_DEVICE static void sync() { __syncwarp(); }
  QKV_DEVICE static bool any(bool x) { return __any_sync(kFullWarp, x); }
};

// Completes an output row, in which the values that are not finite are missing or made sums that are not. All of Threads;
// `weights` is shared memory for as many floats. Also the last resort for sums of finite values that overflowed, though their
// mean does not.
template <class T, class Threads, bool kPaged>
QKV_DEVICE void restore_row(const Problem& p, const Entry& e, int kv_head, const Row& row, const RowState& state,
                            float* weights) {
  if (!is_finite(state.total)) return;  // some score is NaN or +inf, and all of the row is NaN
  constexpr int kThreads = Threads::kCount;
  T* const out = out_row<T>(p, e, row);
  for (int64_t column0 = 0; column0 < p.a.dv; column0 += kThreads) {
    const int64_t column = column0 + Threads::index();
    const bool own = column < p.a.dv;
    const bool all = own && !is_finite(to_float(out[column]));
    float sum = 0;
    for (int key0 = row.first; key0 < row.last; key0 += kThreads) {
      const int keys = min(kThreads, row.last - key0);
      const auto value = [&](int j) {
        if constexpr (kPaged)
          return stored_row<T>(p, false, kv_head, place_of(p, e, key0 + j))[column];
        else
          return to_float(key_row<T>(p, p.a.v, e, kv_head, key0 + j)[column]);
      };
      bool needed = all;
#pragma unroll 1
      for (int j = 0; own && !needed && j < keys; ++j) needed = !is_finite(value(j));
      if (!Threads::any(needed)) continue;
      const int own_key = Threads::index();
      if (own_key < keys) weights[own_key] = one_weight<T, kPaged>(p, e, kv_head, row, key0 + own_key, state);
      Threads::sync();
#pragma unroll 1
      for (int j = 0; own && j < keys; ++j) {
        const float x = value(j);
        if (weights[j] >= 0 && (all || !is_finite(x))) sum += weights[j] * x;
      }
      Threads::sync();
    }
    if (own && (all || sum != 0)) out[column] = from_float<T>(sum);
  }
}

}  // namespace qkv::cuda

// additive_attention: out_i = sum_j softmax_j(w . tanh(q_i + k_j)) v_j (Bahdanau et al. 2015, arXiv:1409.0473), q and k already
// projected. A block has a few rows and goes over the keys a tile at a time; a warp scores a key for all of the rows at once, so
// that keys are read once a block. The softmax is online, as in attention_softmax.cuh.
//
// A key that is excluded has the score -inf and a part that is negative, by which values that are not finite do not meet it.
#include "cuda/rows.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kKeys = 64;
constexpr int kColumns = 2;  // of a thread
constexpr int kMostRows = 4;
constexpr float kMinusInfinity = -__builtin_huge_valf();

template <int kRows>
struct Scores {
  float of[kRows][kKeys];  // then what e^ makes of them
  float scale[kRows];      // of what came before
};

// A block's work: rows `row` ... of batch entry b.
template <int kRows>
struct Tile {
  int64_t b, row;
  int rows;
  int64_t keys;
};

// w . tanh(q + k) of the lane's elements, for each of the rows; four neighbours at a time where kVectors.
template <int kRows, bool kVectors>
QKV_DEVICE void score_key(const AdditiveAttentionArgs& a, const float* q, const float* k, int rows, float (&sum)[kRows]) {
#pragma unroll
  for (float& x : sum) x = 0;
  if constexpr (kVectors) {
    for (int64_t i = 4 * lane_id(); i < a.a; i += 4 * 32) {
      float key[4], w[4];
      unpack<float>(load16(k + i), key);
      unpack<float>(load16(a.w + i), w);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (r < rows) {
          float query[4];
          unpack<float>(load16(q + r * a.a + i), query);
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[r] = fmaf(w[j], tanhf(query[j] + key[j]), sum[r]);
        }
    }
  } else {
    for (int64_t i = lane_id(); i < a.a; i += 32) {
      const float key = k[i], w = a.w[i];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (r < rows) sum[r] = fmaf(w, tanhf(q[r * a.a + i] + key), sum[r]);
    }
  }
#pragma unroll
  for (float& x : sum) x = warp_sum(x);
}

// Scores of the keys first ... of a tile; those beyond its last key, and masked ones, are -inf.
template <int kRows, bool kVectors>
QKV_DEVICE void score_tile(const AdditiveAttentionArgs& a, const Tile<kRows>& t, int64_t first, Scores<kRows>& s) {
  const float* const q = a.q + t.b * a.q_b + t.row * a.a;
  for (int j = threadIdx.x / 32; j < kKeys; j += kWarps) {
    const int64_t key = first + j;
    float sum[kRows];
    if (key < t.keys) score_key<kRows, kVectors>(a, q, a.k + t.b * a.k_b + key * a.a, t.rows, sum);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (lane_id() == r) {
        bool sees = key < t.keys && r < t.rows;
        if (sees && a.mask.data)
          sees = reinterpret_cast<const uint8_t*>(a.mask.data)[t.b * a.mask.b + (t.row + r) * a.mask.s + key * a.mask.d] != 0;
        s.of[r][j] = sees ? sum[r] : kMinusInfinity;
      }
  }
}

// As long as all keys were excluded 0 is subtracted, so that a NaN stays one.
QKV_DEVICE float shift_of(float maximum) { return maximum == kMinusInfinity ? 0.0f : maximum; }

// Of a warp's row: maximum and total grow, and scores become parts.
QKV_DEVICE void soften(float (&scores)[kKeys], float& maximum, float& total, float& scale) {
  const float low = scores[lane_id()], high = scores[lane_id() + 32];
  const float before = maximum;
  maximum = fmaxf(maximum, warp_max(fmaxf(low, high)));
  const float shift = shift_of(maximum);
  const float p_low = expf(low - shift), p_high = expf(high - shift);
  scale = total == 0 ? 0.0f : expf(before - shift);
  total = total * scale + warp_sum(p_low + p_high);
  scores[lane_id()] = low == kMinusInfinity ? -1.0f : p_low;
  scores[lane_id() + 32] = high == kMinusInfinity ? -1.0f : p_high;
}

template <class T, int kRows, bool kVectors>
__global__ void __launch_bounds__(kThreads, 2) additive_kernel(const __grid_constant__ AdditiveAttentionArgs a) {
  __shared__ Scores<kRows> s;
  __shared__ float totals[kRows], maxima[kRows];
  const int64_t tiles = ceil_div<int64_t>(a.s, kRows);
  Tile<kRows> t{blockIdx.x / tiles, blockIdx.x % tiles * kRows, 0, a.t};
  t.rows = static_cast<int>(min(a.s - t.row, static_cast<int64_t>(kRows)));
  if (a.kv_lengths.data) {
    const int64_t length = a.kv_lengths.wide ? static_cast<const int64_t*>(a.kv_lengths.data)[t.b]
                                             : static_cast<const int32_t*>(a.kv_lengths.data)[t.b];
    t.keys = max(min(length, a.t), static_cast<int64_t>(0));
  }
  const int warp = threadIdx.x / 32;
  const int64_t column0 = static_cast<int64_t>(blockIdx.y) * (kThreads * kColumns) + threadIdx.x;
  const T* const v = reinterpret_cast<const T*>(a.v.data) + t.b * a.v.b;
  float maximum = kMinusInfinity, total = 0, sums[kRows][kColumns] = {};
  for (int64_t first = 0; first < t.keys; first += kKeys) {
    score_tile<kRows, kVectors>(a, t, first, s);
    __syncthreads();
    if (warp < kRows) {
      float scale;
      soften(s.of[warp], maximum, total, scale);
      if (lane_id() == 0) s.scale[warp] = scale;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums[r][c] *= s.scale[r];
    const int count = static_cast<int>(min(t.keys - first, static_cast<int64_t>(kKeys)));
#pragma unroll 8
    for (int j = 0; j < count; ++j) {
      float value[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        value[c] = column0 + c * kThreads < a.dv ? to_float(v[(first + j) * a.v.s + (column0 + c * kThreads) * a.v.d]) : 0.0f;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float p = s.of[r][j];
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          if (!(p < 0)) sums[r][c] = fmaf(p, value[c], sums[r][c]);
      }
    }
    __syncthreads();
  }
  if (warp < kRows && lane_id() == 0) {
    totals[warp] = total;
    maxima[warp] = maximum;
  }
  __syncthreads();
  T* const out = reinterpret_cast<T*>(a.out.data) + t.b * a.out.b + t.row * a.out.s;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (const int64_t column = column0 + c * kThreads; r < t.rows && column < a.dv)
        out[r * a.out.s + column * a.out.d] = from_float<T>(totals[r] == 0 ? 0.0f : __fdiv_rn(sums[r][c], totals[r]));
  if (!a.weights || blockIdx.y != 0) return;

  // The scores once more, which takes less than keeping them where their number is not known.
  T* const weights = static_cast<T*>(a.weights) + (t.b * a.s + t.row) * a.t;
  for (int64_t first = 0; first < a.t; first += kKeys) {
    score_tile<kRows, kVectors>(a, t, first, s);
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * kKeys; i += kThreads) {
      const int r = i / kKeys, j = i % kKeys;
      const float score = s.of[r][j];
      // An excluded key has no part in a row that a NaN spoiled.
      if (r < t.rows && first + j < a.t)
        weights[r * a.t + first + j] =
            from_float<T>(score == kMinusInfinity ? 0.0f : __fdiv_rn(expf(score - shift_of(maxima[r])), totals[r]));
    }
    __syncthreads();
  }
}

}  // namespace

void additive_attention(const AdditiveAttentionArgs& a, Stream stream) {
  if (a.batch == 0 || a.s == 0) return;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool vectors = a.a % 4 == 0 && a.q_b % 4 == 0 && a.k_b % 4 == 0 && aligned(a.q) && aligned(a.k) && aligned(a.w);
  const int rows = a.s == 1 ? 1 : kMostRows;
  const dim3 blocks(static_cast<unsigned>(a.batch * ceil_div<int64_t>(a.s, rows)),
                    static_cast<unsigned>(a.dv > 0 ? ceil_div<int64_t>(a.dv, kThreads * kColumns) : 1));
  with_dtype(a.v.dtype, [&](auto t) {
    using T = decltype(t);
    const auto kernel = rows == 1 ? vectors ? additive_kernel<T, 1, true> : additive_kernel<T, 1, false>
                        : vectors ? additive_kernel<T, kMostRows, true>
                                  : additive_kernel<T, kMostRows, false>;
    kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a);
  });
  check_launch("additive_attention");
}

}  // namespace qkv::cuda

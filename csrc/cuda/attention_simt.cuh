// Attention of float32, and of any dtype with heads wider than 256, by ordinary multiply-adds: sums in float and in order, never
// TF32. And the probabilities of any attention, from the states in which its rows ended.
//
// A block has 64 rows, 64 keys at a time, and 128 columns of the values; wider ones are other blocks, which compute the scores
// anew. A thread has 4 rows, and of those 4 scores and 8 sums.
#pragma once
#include "cuda/attention_launch.cuh"
#include "cuda/attention_paged.cuh"
#include "cuda/attention_score.cuh"
#include "cuda/attention_softmax.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = 256, kRows = kSimtRows, kKeys = 64, kColumns = 128;
constexpr int kDepth = 32;          // of q and k at a time
constexpr int kValueKeys = 32;      // of v at a time
constexpr int kStride = kRows + 4;  // of what is stored transposed: of a multiple of 16 bytes, in which columns' banks differ
constexpr int kMostWeightBlocks = 64;

using Scores = float[4][4];

// Row 4 (thread / 16) + i and key 4 (thread % 16) + j of a tile belong to a thread, and columns 4 (thread % 16) + j and 64 more.
QKV_DEVICE int thread_row() { return threadIdx.x / 16 * 4; }
QKV_DEVICE int thread_key() { return threadIdx.x % 16 * 4; }

template <bool kPaged>
struct Shared {
  union {
    struct {
      float q[kDepth][kStride], k[kDepth][kStride];
    };
    float v[kValueKeys][kColumns];
  };
  float weights[kKeys][kStride];
  Row rows[kRows];
  Work work;
  Place places[kPaged ? kKeys : 1];  // of the tile's keys
};
static_assert(sizeof(Shared<true>) <= kSimtBytes && kSimtBytes < sizeof(Shared<true>) + 1024);

// Into shared memory: what the block works on. False: there is nothing to do.
template <bool kPaged>
QKV_DEVICE bool start_block(const Problem& p, Shared<kPaged>& shared) {
  Work found;
  if (!find_work(p, blockIdx.x, &found)) return false;
  write_rows<kRows, kThreads>(p, found, shared.rows);
  if (threadIdx.x == 0) shared.work = found;
  __syncthreads();
  return true;
}

QKV_DEVICE void read4(float (&x)[4], const float* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

// q.k of keys key0 ... key0 + 63; those outside of [first, last) are not read. All threads; begins with a barrier.
template <class T, bool kPaged>
QKV_DEVICE void multiply_keys(const Problem& p, const Work& w, Shared<kPaged>& shared, int key0, int first, int last, Scores& s) {
  if constexpr (kPaged)
    if (threadIdx.x < kKeys) {
      const int key = key0 + threadIdx.x;
      shared.places[threadIdx.x] = key >= first && key < last ? place_of(p, w.e, key) : Place{-1, 0};
    }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) s[i][j] = 0;
  for (int64_t depth = 0; depth < p.a.d; depth += kDepth) {
    __syncthreads();
    // Eight neighbours of four rows a warp: whole sectors of memory, and different banks.
    const int lane = threadIdx.x % 8;
    for (int r = threadIdx.x / 8; r < kRows; r += kThreads / 8) {
      const T* const q = query_row<T>(p, w.e, shared.rows[r]) + depth;
#pragma unroll
      for (int i = 0; i < kDepth; i += 8) shared.q[lane + i][r] = depth + lane + i < p.a.d ? to_float(q[lane + i]) : 0;
    }
    const auto store_key = [&](int j, const auto& k) {
      const bool seen = key0 + j >= first && key0 + j < last;
#pragma unroll
      for (int i = lane; i < kDepth; i += 8) shared.k[i][j] = seen && depth + i < p.a.d ? to_float(k[depth + i]) : 0;
    };
    for (int j = threadIdx.x / 8; j < kKeys; j += kThreads / 8) {
      if constexpr (kPaged)
        store_key(j, stored_row<T>(p, true, w.kv_head, shared.places[j]));
      else
        store_key(j, key_row<T>(p, p.a.k, w.e, w.kv_head, key0 + j));
    }
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < kDepth; ++i) {
      float q[4], k[4];
      read4(q, &shared.q[i][thread_row()]);
      read4(k, &shared.k[i][thread_key()]);
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int j = 0; j < 4; ++j) s[r][j] = fmaf(q[r], k[j], s[r][j]);
    }
  }
}

// Scores of a tile, -inf for what is excluded. Those that more than the scale becomes of go through the thread's places in
// shared.weights, by a loop instead of sixteen copies of its body.
template <bool kPaged>
QKV_DEVICE void adjust(const Problem& p, const Entry& e, Shared<kPaged>& shared, int key0, Scores& s) {
  if (p.adjusted) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) shared.weights[thread_key() + j][thread_row() + i] = s[i][j];
#pragma unroll 2
    for (int n = 0; n < 16; ++n) {
      const Row row = shared.rows[thread_row() + n / 4];
      const int key = key0 + thread_key() + n % 4;
      float& x = shared.weights[thread_key() + n % 4][thread_row() + n / 4];
      x = key >= row.first && key < row.last ? adjusted_score(p, e, row, key, x) : kMinusInfinity;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Row row = shared.rows[thread_row() + i];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = key0 + thread_key() + j;
      const bool seen = key >= row.first && key < row.last;
      s[i][j] = p.adjusted ? shared.weights[thread_key() + j][thread_row() + i] : seen ? s[i][j] * p.a.scale : kMinusInfinity;
    }
  }
}

// The sums of a thread's rows: keys of tiles as far as they have come.
struct Sums {
  float maximum[4], total[4];  // total: of the thread's keys
  float values[4][8];
};

QKV_DEVICE void start(Sums& sums) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums.maximum[i] = kMinusInfinity;
    sums.total[i] = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) sums.values[i][c] = 0;
  }
}

// Softmax of a tile: weights to shared memory, sums rescaled. An excluded key's weight is -0, one that underflows is +0.
template <bool kPaged>
QKV_DEVICE void add_scores(Shared<kPaged>& shared, const Scores& s, Sums& sums) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float top = warp_max<16>(fmaxf(fmaxf(s[i][0], s[i][1]), fmaxf(s[i][2], s[i][3])));
    const float now = fmaxf(sums.maximum[i], top), by = now == kMinusInfinity ? 0.0f : now;
    const float scale = sums.maximum[i] == now ? 1.0f : expf(sums.maximum[i] - by);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float weight = s[i][j] == kMinusInfinity ? -0.0f : expf(s[i][j] - by);
      shared.weights[thread_key() + j][thread_row() + i] = weight;
      sum += weight;
    }
    sums.maximum[i] = now;
    sums.total[i] = fmaf(sums.total[i], scale, sum);
#pragma unroll
    for (int c = 0; c < 8; ++c) sums.values[i][c] *= scale;
  }
}

// Weights times values of columns column0 ... + 127. All threads; begins with a barrier.
template <class T, bool kPaged>
QKV_DEVICE void multiply_values(const Problem& p, const Work& w, Shared<kPaged>& shared, int key0, int first, int last,
                                int64_t column0, Sums& sums) {
  for (int begin = 0; begin < kKeys; begin += kValueKeys) {
    __syncthreads();
    bool finite = true;
    const int column = threadIdx.x % kColumns;
    for (int j = threadIdx.x / kColumns; j < kValueKeys; j += kThreads / kColumns) {
      const int key = key0 + begin + j;
      const bool valid = key >= first && key < last && column0 + column < p.a.dv;
      float value = 0;
      if constexpr (kPaged) {
        if (valid) value = stored_row<T>(p, false, w.kv_head, shared.places[begin + j])[column0 + column];
      } else {
        if (valid) value = to_float(key_row<T>(p, p.a.v, w.e, w.kv_head, key)[column0 + column]);
      }
      finite = finite && fabsf(value) < __builtin_inff();
      shared.v[j][column] = value;
    }
    if (__syncthreads_and(finite)) {
#pragma unroll 4
      for (int j = 0; j < kValueKeys; ++j) {
        float weight[4], low[4], high[4];
        read4(weight, &shared.weights[begin + j][thread_row()]);
        read4(low, &shared.v[j][thread_key()]);
        read4(high, &shared.v[j][thread_key() + 64]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            sums.values[i][c] = fmaf(weight[i], low[c], sums.values[i][c]);
            sums.values[i][c + 4] = fmaf(weight[i], high[c], sums.values[i][c + 4]);
          }
      }
    } else {  // an excluded key counts as absent; an infinite value is felt however small its weight
#pragma unroll 1
      for (int j = 0; j < kValueKeys; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float weight = shared.weights[begin + j][thread_row() + i];
          if (weight == 0 && signbit(weight)) continue;
#pragma unroll
          for (int c = 0; c < 8; ++c) {
            const float value = shared.v[j][thread_key() + c % 4 + c / 4 * 64];
            sums.values[i][c] = weight == 0 && isinf(value) ? sums.values[i][c] + value : fmaf(weight, value, sums.values[i][c]);
          }
        }
    }
  }
}

// Four neighbouring columns of an output row, times `factor`; those that there are. __stwb: an ordinary store of four is taken
// apart by nvcc, which shares it with the stores of one.
template <class T>
QKV_DEVICE void store4(const Problem& p, T* out, int64_t column, const float* x, float factor) {
  if (p.aligned && column < p.a.dv) {
    float y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = x[i] * factor;
    if constexpr (kIs16Bit<T>)
      __stwb(reinterpret_cast<uint2*>(out + column), make_uint2(pack2<T>(y[0], y[1]), pack2<T>(y[2], y[3])));
    else
      __stwb(reinterpret_cast<float4*>(out + column), make_float4(y[0], y[1], y[2], y[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (column + i < p.a.dv) out[column + i] = from_float<T>(x[i] * factor);
}

template <class T, bool kPaged>
__global__ void __launch_bounds__(kThreads, kSimtBlocks) attention_simt(const __grid_constant__ Problem p) {
  begin_dependent();
  __shared__ Shared<kPaged> shared;
  const int64_t column0 = static_cast<int64_t>(blockIdx.z) * kColumns;
  if (!start_block(p, shared)) return;
  const Work& w = shared.work;
  const int first = shared.rows[0].first, last = shared.rows[kRows - 1].last;
  const TileRange all = tiles_seen<kKeys>(shared.rows[0], shared.rows[kRows - 1]);
  const TileRange mine = p.fold ? all : split_of<kKeys>(p, all, blockIdx.y);
  const int key_lane = threadIdx.x % 16;
  if (kPaged && !p.fold && p.splits > 1 && mine.begin >= mine.end) return leave_part<kThreads>(p, w, shared.rows, blockIdx.y);

  Sums sums;
  RowState state[4];
  // f(sum, its place in the workspace) for the thread's columns of its row i.
  const auto each_sum = [&](int i, auto&& f) {
    const int r = thread_row() + i;
    if (r >= w.rows) return;
    const int64_t index = (p.fold ? 0 : blockIdx.y * p.rows) + row_index(p, w.e, shared.rows[r]);
    float* const at = p.sums + index * p.sum_width + column0 + thread_key();
    const int64_t left = p.a.dv - column0 - thread_key();
#pragma unroll
    for (int c = 0; c < 8; ++c)
      if (c % 4 + c / 4 * 64 < left) f(sums.values[i][c], at[c % 4 + c / 4 * 64]);
  };
  const auto store_sums = [&] {
#pragma unroll
    for (int i = 0; i < 4; ++i) each_sum(i, [](float sum, float& place) { place = sum; });
  };

  for (int begin = mine.begin;;) {
    constexpr int kChunkTiles = kChunkKeys / kKeys;
    const int end = p.fold ? min(mine.end, (begin / kChunkTiles + 1) * kChunkTiles) : mine.end;
    start(sums);
    for (int tile = begin; tile < end; ++tile) {
      Scores s;
      multiply_keys<T, kPaged>(p, w, shared, tile * kKeys, first, last, s);
      if (p.a.d == 0) __syncthreads();  // else multiply_keys has waited: nobody reads weights any more
      adjust(p, w.e, shared, tile * kKeys, s);
      add_scores(shared, s, sums);
      multiply_values<T, kPaged>(p, w, shared, tile * kKeys, first, last, column0, sums);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const RowState own = {sums.maximum[i], warp_sum<16>(sums.total[i]), 0, 0};
      if (!p.fold || begin == mine.begin) {
        state[i] = own;
        continue;
      }
      const Merge m = merge(state[i], own);
      state[i] = m.state;
      each_sum(i, [&](float& sum, float place) { sum = merge_sums(place, m.earlier, sum, m.later); });
    }
    begin = end;
    if (begin >= mine.end) break;
    store_sums();
  }

  if (!p.fold && p.splits > 1) {
    store_sums();
    if (column0 > 0 || key_lane > 0) return;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (thread_row() + i < w.rows) p.parts[blockIdx.y * p.rows + row_index(p, w.e, shared.rows[thread_row() + i])] = state[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = thread_row() + i;
    if (r >= w.rows) continue;
    const Row row = shared.rows[r];
    const End end = end_of(p, row.head, state[i]);
    if (column0 == 0 && key_lane == 0) {
      if (p.a.lse) *lse_of(p, w.e, row) = end.lse;
      if (p.row_state) p.row_state[row_index(p, w.e, row)] = end.state;
    }
    T* const out = out_row<T>(p, w.e, row);
#pragma unroll
    for (int c = 0; c < 8; c += 4) store4(p, out, column0 + thread_key() + c * 16, &sums.values[i][c], end.factor);
  }
}

// weights[row][key] = e^(score - maximum) / total, 0 for what is excluded.
template <class T, bool kPaged>
__global__ void __launch_bounds__(kThreads, 2) attention_weights(const __grid_constant__ Problem p) {
  __shared__ Shared<kPaged> shared;
  __shared__ RowState states[kRows];
  if (!start_block(p, shared)) return;
  const Work& w = shared.work;
  for (int r = threadIdx.x; r < kRows; r += kThreads) states[r] = p.row_state[row_index(p, w.e, shared.rows[r])];
  __syncthreads();
  const int first = shared.rows[0].first, last = shared.rows[kRows - 1].last;
  const int64_t start = p.a.weight_start ? p.a.weight_start[w.e.b] : w.e.b * p.a.heads * p.a.s * p.a.t;
  for (int key0 = blockIdx.y * kKeys; key0 < w.e.stored_t; key0 += gridDim.y * kKeys) {
    Scores s = {};
    if (key0 < last && key0 + kKeys > first) multiply_keys<T, kPaged>(p, w, shared, key0, first, last, s);
    adjust(p, w.e, shared, key0, s);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = thread_row() + i, key = key0 + thread_key();
      if (r >= w.rows) continue;
      const Row row = shared.rows[r];
      const RowState state = states[r];
      T* const to =
          static_cast<T*>(p.a.weights) + start + (static_cast<int64_t>(row.head) * w.e.s + row.query) * w.e.stored_t + key;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (key + j >= w.e.stored_t) continue;
        bool excluded = state.total == 0 || key + j < row.first || key + j >= row.last;
        if (isnan(state.total))
          excluded = excluded || is_masked(p, w.e, row, key + j);  // weights are NaN, but not where excluded
        to[j] = from_float<T>(excluded ? 0 : expf(s[i][j] - state.maximum) / state.total);
      }
    }
  }
}

template <bool kPaged>
void launch_simt_kernel(const Problem& p, int64_t blocks, cudaStream_t stream) {
  const int64_t columns = p.a.dv > 0 ? ceil_div(p.a.dv, int64_t{kColumns}) : 1;
  if (columns > 65535) throw Error(cudaErrorInvalidValue, "attention: values wider than 2^23");
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(p.fold ? 1 : p.splits), static_cast<unsigned>(columns));
  with_dtype(p.a.q.dtype,
             [&](auto t) { launch_dependent("attention", attention_simt<decltype(t), kPaged>, grid, kThreads, 0, stream, p); });
}

template <bool kPaged>
void launch_weights_kernel(const Problem& p, int64_t blocks, cudaStream_t stream) {
  int64_t tiles = ceil_div(p.a.t, int64_t{kKeys});
  if (tiles == 0) return;
  if (tiles > kMostWeightBlocks) tiles = kMostWeightBlocks;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(tiles));
  with_dtype(p.a.q.dtype, [&](auto t) {
    attention_weights<decltype(t), kPaged><<<grid, kThreads, 0, stream>>>(p);
    check_launch("attention_weights");
  });
}

}  // namespace

}  // namespace qkv::cuda

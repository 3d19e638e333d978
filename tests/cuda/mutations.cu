// Small kernels in the style of the real ones, each with bugs to plant: kPlant == 0 is right, the others must be reported by the
// emulator. tests/test_cuda_mutations.py says as what.
#include <cuda_runtime.h>
#include <stdint.h>

#include "cuda/intrinsics.cuh"

using namespace qkv::cuda;

namespace {

using bf16 = __nv_bfloat16;

// ---- softmax of a row, one block a row

enum SoftmaxPlant {
  kSoftmaxRight,
  kNoBarrierBeforeRead,   // the warps' maxima are read before all are written
  kNoBarrierBeforeReuse,  // and overwritten before all are read
  kSlotPastEnd,           // a shared write one past the array
  kSlotNobodyWrote,       // a shared read of what nobody wrote
  kReadPastEnd,           // of the last row of x
  kWritePastEnd,          // of the last row of y
  kDivergentBarrier,      // only threads with an element come to it
  kDivergentShuffle,      // lanes that have left are still in the mask
  kShuffleFromOutside,    // reads a lane that is not in the mask
  kMisalignedVector,      // 8 bytes at 4
  kNoBarrierAtAll,
  kEachItsOwnPart,  // right, but neighbouring lanes read from places far apart
};

template <int kPlant>
__global__ void __launch_bounds__(128) softmax(const float* __restrict__ x, float* __restrict__ y, int n) {
  __shared__ float slots[4];
  __shared__ float unused[8];
  const int warp = threadIdx.x / 32, lane = lane_id();
  const float* const row = x + static_cast<int64_t>(blockIdx.x) * n;
  float* const to = y + static_cast<int64_t>(blockIdx.x) * n;
  const int limit = kPlant == kReadPastEnd ? n + 1 : n;

  float largest = -INFINITY;
  if constexpr (kPlant == kMisalignedVector) {
    const float2 two = *reinterpret_cast<const float2*>(row + threadIdx.x / 64);
    largest = fmaxf(two.x, two.y);
  }
  if constexpr (kPlant == kEachItsOwnPart) {
    const int part = (n + 127) / 128, first = threadIdx.x * part;
    for (int i = first; i < min(first + part, n); ++i) largest = fmaxf(largest, row[i]);
  } else {
    for (int i = threadIdx.x; i < limit; i += 128) largest = fmaxf(largest, row[i]);
  }
  if constexpr (kPlant == kDivergentShuffle) {
    if (threadIdx.x < n) largest = warp_max(largest);
  } else if constexpr (kPlant == kShuffleFromOutside) {
    if (lane < 16) largest = fmaxf(largest, __shfl_xor_sync(0x0000FFFFu, largest, 16));
  } else {
    largest = warp_max(largest);
  }
  if (kPlant == kSlotNobodyWrote && threadIdx.x == 0) largest += 0 * unused[n % 8];
  if (lane == 0) slots[warp + (kPlant == kSlotPastEnd ? 1 : 0)] = largest;
  if constexpr (kPlant == kDivergentBarrier) {
    if (threadIdx.x < n) __syncthreads();
  } else if constexpr (kPlant != kNoBarrierBeforeRead && kPlant != kNoBarrierAtAll) {
    __syncthreads();
  }
  largest = fmaxf(fmaxf(slots[0], slots[1]), fmaxf(slots[2], slots[3]));
  if constexpr (kPlant != kNoBarrierBeforeReuse && kPlant != kNoBarrierAtAll) __syncthreads();

  float sum = 0;
  for (int i = threadIdx.x; i < n; i += 128) sum += exp2_approx((row[i] - largest) * 1.44269504f);
  sum = warp_sum(sum);
  if (lane == 0) slots[warp] = sum;
  if constexpr (kPlant != kNoBarrierAtAll) __syncthreads();
  sum = slots[0] + slots[1] + slots[2] + slots[3];
  for (int i = threadIdx.x; i < (kPlant == kWritePastEnd ? n + 1 : n); i += 128)
    to[i] = exp2_approx((row[i < n ? i : 0] - largest) * 1.44269504f) / sum;
}

// ---- c (m, n) = a (m, k) b (n, k)^T: tiles of 64 x 64 x 32, three stages of cp.async, ldmatrix, mma

enum GemmPlant {
  kGemmRight,
  kWaitsTooLittle,   // for one group fewer
  kNoBarrierInLoop,  // after the wait
  kNoBoundCheck,     // of columns
  kReadsPastRows,    // rows of a are not clamped
  kReadsPastK,       // the tail of k is read though it is not there
  kMisalignedCopy,   // 16 bytes at 2
  kUnwaitedAtExit,
  kNoSwizzle,           // right, but with bank conflicts
  kLoadsIntoUsedStage,  // the stage that others still read
};

constexpr int kTile = 64, kDepth = 32, kStages = 3, kStageBytes = 2 * kTile * kDepth * 2;

template <int kPlant>
__global__ void __launch_bounds__(128)
    gemm(const bf16* __restrict__ a, const bf16* __restrict__ b, float* __restrict__ c, int m, int n, int k) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = lane_id(), warp = threadIdx.x / 32, m0 = blockIdx.y * kTile, n0 = blockIdx.x * kTile;
  // Rows of 64 bytes, four chunks of 16; a chunk is exchanged with another so that eight rows below each other touch all banks.
  const auto chunk = [](int row, int column) { return row * 64 + (kPlant == kNoSwizzle ? column : column ^ (row / 2 % 4)) * 16; };
  const uint32_t base = shared_address(shared);
  const auto load = [&](int stage, int k0) {
    for (int i = threadIdx.x; i < kTile * 4; i += 128) {
      const int row = i / 4, column = i % 4, left = k - k0 - column * 8;
      const int bytes = kPlant == kReadsPastK || left >= 8 ? 16 : left > 0 ? left * 2 : 0;
      const int64_t ra = kPlant == kReadsPastRows ? m0 + row : min(m0 + row, m - 1), rb = min(n0 + row, n - 1);
      const int off = kPlant == kMisalignedCopy && k0 ? 1 : 0, at = bytes ? k0 + column * 8 - off : 0;
      cp_async16(base + stage * kStageBytes + chunk(row, column), a + ra * k + at, bytes);
      cp_async16(base + stage * kStageBytes + kTile * 64 + chunk(row, column), b + rb * k + at, bytes);
    }
  };
  const int steps = (k + kDepth - 1) / kDepth;
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) load(s, s * kDepth);
    cp_async_commit();
  }
  float sum[2][4][4] = {};  // 32 rows x 32 columns a warp
  const int wm = warp / 2 * 32, wn = warp % 2 * 32;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kPlant == kWaitsTooLittle ? kStages - 1 : kStages - 2>();
    if constexpr (kPlant != kNoBarrierInLoop) __syncthreads();
    if (step + kStages - 1 < steps)
      load((step + (kPlant == kLoadsIntoUsedStage ? 0 : kStages - 1)) % kStages, (step + kStages - 1) * kDepth);
    cp_async_commit();
    const uint32_t sa = base + step % kStages * kStageBytes, sb = sa + kTile * 64;
    for (int kk = 0; kk < 2; ++kk) {
      uint32_t fa[2][4], fb[2][4];
      for (int i = 0; i < 2; ++i) ldmatrix_x4(fa[i], sa + chunk(wm + i * 16 + lane % 16, kk * 2 + lane / 16));
      for (int j = 0; j < 2; ++j) ldmatrix_x4(fb[j], sb + chunk(wn + j * 16 + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j) mma_16816<bf16>(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }
  if constexpr (kPlant == kUnwaitedAtExit) load(steps % kStages, 0);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int e = 0; e < 4; ++e) {
        int row = wm + i * 16 + lane / 4 + e / 2 * 8, column = wn + j * 8 + lane % 4 * 2 + e % 2;
        row += m0, column += n0;
        if (row < m && (kPlant == kNoBoundCheck || column < n)) c[static_cast<int64_t>(row) * n + column] = sum[i][j][e];
      }
}

// ---- out = softmax(q k^T) v, 64 queries a block, tiles of 64 keys, d = 64, in the manner of flash attention

enum FlashPlant {
  kFlashRight,
  kNextKeysTooEarly,    // the next tile is loaded while others still read this one
  kNoBarrierForValues,  // values are read as soon as this thread's own have come
  kNoWarpBarrier,       // between lanes that hand a row's scale to each other through shared memory
  kBarrierByOneWarp,    // a named barrier for more warps than come
  kReadsPastKeys,       // the last tile is not clamped
};

template <int kPlant>
__global__ void __launch_bounds__(128) flash(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                                             float* __restrict__ out, int s, int t) {
  __shared__ __align__(1024) unsigned char keys[64 * 128], values[64 * 128];
  __shared__ float scales[64];
  const int lane = lane_id(), warp = threadIdx.x / 32, q0 = blockIdx.x * 64;
  const auto chunk = [](int row, int column) { return row * 128 + (column ^ row % 8) * 16; };
  const auto load = [&](unsigned char* to, const bf16* from, int first, int rows) {
    for (int i = threadIdx.x; i < 64 * 8; i += 128) {
      const int row = i / 8, column = i % 8, at = kPlant == kReadsPastKeys ? first + row : min(first + row, rows - 1);
      cp_async16(to + chunk(row, column), from + static_cast<int64_t>(at) * 64 + column * 8);
    }
    cp_async_commit();
  };
  uint32_t fq[4][4];
  const int row = q0 + warp * 16 + lane / 4;
  for (int i = 0; i < 4; ++i)
    for (int r = 0; r < 4; ++r) {
      const int64_t at = min(row + r % 2 * 8, s - 1);
      fq[i][r] = *reinterpret_cast<const uint32_t*>(q + at * 64 + i * 16 + r / 2 * 8 + lane % 4 * 2);
    }
  float o[8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  load(keys, k, 0, t);
  for (int first = 0; first < t; first += 64) {
    load(values, v, first, t);
    cp_async_wait<1>();
    __syncthreads();
    float score[8][4] = {};
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) {
        uint32_t b[4];
        ldmatrix_x4(b, keys + chunk(j * 16 + lane % 8 + lane / 16 * 8, i * 2 + lane / 8 % 2));
        mma_16816<bf16>(score[2 * j], fq[i], b[0], b[1]);
        mma_16816<bf16>(score[2 * j + 1], fq[i], b[2], b[3]);
      }
    if constexpr (kPlant != kNextKeysTooEarly) __syncthreads();
    if (first + 64 < t)
      load(keys, k, first + 64, t);
    else
      cp_async_commit();
    for (int h = 0; h < 2; ++h) {
      float top = largest[h];
      for (int j = 0; j < 8; ++j)
        for (int e = 0; e < 2; ++e) {
          float& x = score[j][2 * h + e];
          x = first + j * 8 + lane % 4 * 2 + e < t ? x * 0.18033688f : -INFINITY;
          top = fmaxf(top, x);
        }
      top = warp_max<4>(top);
      float scale = exp2_approx(largest[h] - top), part = 0;
      // A detour through shared memory, for a bug that only a warp can have.
      if (lane % 4 == 0) scales[warp * 16 + lane / 4 + 8 * h] = scale;
      if constexpr (kPlant != kNoWarpBarrier) __syncwarp();
      scale = scales[warp * 16 + lane / 4 + 8 * h];
      for (int j = 0; j < 8; ++j)
        for (int e = 0; e < 2; ++e) part += score[j][2 * h + e] = exp2_approx(score[j][2 * h + e] - top);
      sum[h] = sum[h] * scale + part;
      for (int j = 0; j < 8; ++j) o[j][2 * h] *= scale, o[j][2 * h + 1] *= scale;
      largest[h] = top;
    }
    cp_async_wait<1>();
    if constexpr (kPlant == kBarrierByOneWarp) {
      if (warp == 0) named_barrier_sync(1, 64);
    }
    if constexpr (kPlant != kNoBarrierForValues) __syncthreads();
    for (int i = 0; i < 4; ++i) {
      uint32_t p[4];
      for (int r = 0; r < 4; ++r) p[r] = pack2<bf16>(score[2 * i + r / 2][r % 2 * 2], score[2 * i + r / 2][r % 2 * 2 + 1]);
      for (int j = 0; j < 4; ++j) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, values + chunk(i * 16 + lane % 16, j * 2 + lane / 16));
        mma_16816<bf16>(o[2 * j], p, b[0], b[1]);
        mma_16816<bf16>(o[2 * j + 1], p, b[2], b[3]);
      }
    }
    __syncthreads();
  }
  for (int h = 0; h < 2; ++h) {
    const float total = warp_sum<4>(sum[h]);
    if (row + 8 * h < s)
      for (int j = 0; j < 8; ++j)
        *reinterpret_cast<float2*>(out + static_cast<int64_t>(row + 8 * h) * 64 + j * 8 + lane % 4 * 2) =
            make_float2(o[j][2 * h] / total, o[j][2 * h + 1] / total);
  }
}

// f(integral_constant) for kPlant == plant.
template <int kCount, class F>
void with_plant(int plant, F&& f) {
  if constexpr (kCount > 0) {
    if (plant == kCount - 1)
      f(std::integral_constant<int, kCount - 1>());
    else
      with_plant<kCount - 1>(plant, f);
  }
}

}  // namespace

extern "C" {

void launch_softmax(int plant, const float* x, float* y, int rows, int n) {
  with_plant<kEachItsOwnPart + 1>(plant, [&](auto p) { softmax<p><<<rows, 128>>>(x, y, n); });
}

void launch_gemm(int plant, const bf16* a, const bf16* b, float* c, int m, int n, int k) {
  with_plant<kLoadsIntoUsedStage + 1>(plant, [&](auto p) {
    gemm<p><<<dim3((n + kTile - 1) / kTile, (m + kTile - 1) / kTile), 128, kStages * kStageBytes>>>(a, b, c, m, n, k);
  });
}

void launch_flash(int plant, const bf16* q, const bf16* k, const bf16* v, float* out, int s, int t) {
  with_plant<kReadsPastKeys + 1>(plant, [&](auto p) { flash<p><<<(s + 63) / 64, 128>>>(q, k, v, out, s, t); });
}
}

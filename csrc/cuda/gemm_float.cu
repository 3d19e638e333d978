// c = act(a b + bias) * gate + residual in float32, no TF32: each sum is one chain of fused multiply-adds in the order of k.
//
// A block makes a tile of c and keeps 8 or 16 of k of a and b in shared memory, (k, rows) both, two stages: while one is
// multiplied, the next comes through registers. A thread owns 8 x 8 (or 8 x 4) of c as blocks of 4 x 4, so that a step of k is 4
// reads of 16 bytes for 64 multiply-adds; the 32 threads of a warp are 4 x 8, which reads what they share of a row in one
// wavefront.
#include "cuda/gemm_block.cuh"
#include "cuda/launch.cuh"

namespace qkv::cuda {
namespace {

constexpr int kQuad = 4;
constexpr int kLanesM = 4, kLanesN = 8;

template <int kM_, int kN_, int kK_, int kWarpsM_, int kWarpsN_, int kBlocks_>
struct Shape {
  static constexpr int kM = kM_, kN = kN_, kK = kK_, kWarpsM = kWarpsM_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN_;
  static constexpr int kBlocks = kBlocks_;  // on an SM
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN_;
  static constexpr int kQuadsM = kWarpM / (kLanesM * kQuad), kQuadsN = kWarpN / (kLanesN * kQuad);  // of c for a thread
  static constexpr int kStageFloats = (kM + kN) * kK;
};
using Large = Shape<128, 128, 8, 4, 2, 2>;  // 16 of k would need 20 registers more than there are
using Small = Shape<64, 64, 16, 2, 2, 4>;

// An operand's stages, (kK, kRows) in shared memory, from a matrix in which k (kByK) or rows are adjacent. Groups of kGroup
// floats are permuted by k / 4: quads of adjacent k are stored one float in each of 4 rows, by 32 threads that so meet 32 banks.
template <bool kByK, int kRows, int kK, int kThreads>
class Operand {
 public:
  static constexpr int kPasses = kRows * kK / kQuad / kThreads;
  static constexpr int kQuadsK = kK / kQuad, kQuadsRows = kRows / kQuad;
  static constexpr int kPass = kThreads / (kByK ? kQuadsK : kQuadsRows);  // rows, or k, between a thread's quads
  static constexpr int kGroup = 32 / kQuadsK;

  // `matrix`: the first element of the first stage, of which `rows` rows exist; `stride`: of what is not adjacent. A quad is read
  // in one access where that is aligned and inside.
  QKV_DEVICE Operand(const float* matrix, int64_t stride, int64_t rows)
      : row_(kByK ? threadIdx.x / kQuadsK : threadIdx.x % kQuadsRows * kQuad),
        k_(kByK ? threadIdx.x % kQuadsK * kQuad : threadIdx.x / kQuadsRows),
        rows_(static_cast<int>(min(rows, int64_t{kRows}))),
        stride_(stride),
        from_(matrix + (kByK ? row_ * stride + k_ : k_ * stride + row_)),
        aligned_(aligned16(matrix) && stride % kQuad == 0) {}

  // The next stage, which has k_left of k or more, into registers; then from there to shared memory.
  QKV_DEVICE void load(int k_left) {
    const float* from = from_;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass, from += kPass * stride_) {
      // Of the quad's direction and of the other one.
      const int inside = kByK ? k_left - k_ : rows_ - row_;
      const int other = kByK ? rows_ - row_ - pass * kPass : k_left - k_ - pass * kPass;
      float4& held = held_[pass];
      if (aligned_ && inside >= kQuad && other > 0) {
        held = *reinterpret_cast<const float4*>(from);
      } else {
        const auto element = [&](int i) { return i < inside && other > 0 ? from[i] : 0.0f; };
        held = make_float4(element(0), element(1), element(2), element(3));
      }
    }
    from_ += kByK ? kK : kK * stride_;
  }
  QKV_DEVICE void land(float* stage) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const float4 v = held_[pass];
      if constexpr (kByK) {
        float* const to = stage + place(row_ + pass * kPass, k_);
        to[0] = v.x;
        to[kRows] = v.y;
        to[2 * kRows] = v.z;
        to[3 * kRows] = v.w;
      } else {
        *reinterpret_cast<float4*>(stage + place(row_, k_ + pass * kPass)) = v;
      }
    }
  }

  // Four neighbouring rows, `row` a multiple of 4, at k of the stage.
  QKV_DEVICE static float4 read(const float* stage, int row, int k) {
    return *reinterpret_cast<const float4*>(stage + place(row, k));
  }

 private:
  QKV_DEVICE static int place(int row, int k) { return k * kRows + (row ^ kGroup * (k / kQuad)); }
  int row_, k_;  // of this thread's first quad
  int rows_;
  int64_t stride_;
  const float* from_;
  bool aligned_;
  float4 held_[kPasses];
};

template <class S, bool kAByK, bool kBByK>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    gemm_float_tile(const __grid_constant__ GemmArgs g, const __grid_constant__ GemmPlan p) {
  using A = Operand<kAByK, S::kM, S::kK, S::kThreads>;
  using B = Operand<kBByK, S::kN, S::kK, S::kThreads>;
  __shared__ __align__(16) float stages[2][S::kStageFloats];
  __shared__ __align__(16) float bias[S::kN];

  const BlockPlace at = block_place(p);
  const int64_t m0 = int64_t{at.tile_m} * S::kM, n0 = int64_t{at.tile_n} * S::kN, k0 = at.split * p.k_split;
  int k_left = static_cast<int>(min(g.k - k0, p.k_split));
  const int warp = threadIdx.x / 32, lane = lane_id();
  // Opaque, or the loop would compute them anew in each round, from the thread's number.
  const int row0 = opaque(warp % S::kWarpsM * S::kWarpM + lane / kLanesN * kQuad);
  const int column0 = opaque(warp / S::kWarpsM * S::kWarpN + lane % kLanesN * kQuad);

  A a(reinterpret_cast<const float*>(g.a.data) + at.batch * g.a.b + m0 * g.a.s + k0 * g.a.d, kAByK ? g.a.s : g.a.d, g.m - m0);
  B b(reinterpret_cast<const float*>(g.b.data) + at.batch * g.b.b + k0 * g.b.s + n0 * g.b.d, kBByK ? g.b.d : g.b.s, g.n - n0);
  if (p.splits == 1) bias_to_shared(g.bias, n0, g.n, S::kN, bias);

  float sums[S::kQuadsM * kQuad][S::kQuadsN][kQuad] = {};
  a.load(k_left);
  b.load(k_left);
  a.land(stages[0]);
  b.land(stages[0] + S::kM * S::kK);
  __syncthreads();
#pragma unroll 1
  for (int stage = 0; k_left > 0; stage ^= 1) {
    k_left -= S::kK;
    if (k_left > 0) {
      a.load(k_left);
      b.load(k_left);
    }
    const float* const a_stage = stages[stage];
    const float* const b_stage = a_stage + S::kM * S::kK;
#pragma unroll
    for (int k = 0; k < S::kK; ++k) {
      float4 a_quads[S::kQuadsM], b_quads[S::kQuadsN];
#pragma unroll
      for (int i = 0; i < S::kQuadsM; ++i) a_quads[i] = A::read(a_stage, row0 + i * kLanesM * kQuad, k);
#pragma unroll
      for (int j = 0; j < S::kQuadsN; ++j) b_quads[j] = B::read(b_stage, column0 + j * kLanesN * kQuad, k);
#pragma unroll
      for (int i = 0; i < S::kQuadsM * kQuad; ++i) {
        const float4 quad = a_quads[i / kQuad];
        const float x = i % kQuad == 0 ? quad.x : i % kQuad == 1 ? quad.y : i % kQuad == 2 ? quad.z : quad.w;
#pragma unroll
        for (int j = 0; j < S::kQuadsN; ++j) {
          float (&sum)[kQuad] = sums[i][j];
          sum[0] = fmaf(x, b_quads[j].x, sum[0]);
          sum[1] = fmaf(x, b_quads[j].y, sum[1]);
          sum[2] = fmaf(x, b_quads[j].z, sum[2]);
          sum[3] = fmaf(x, b_quads[j].w, sum[3]);
        }
      }
    }
    if (k_left > 0) {
      a.land(stages[stage ^ 1]);  // which all have read: that was before the last barrier
      b.land(stages[stage ^ 1] + S::kM * S::kK);
      __syncthreads();
    }
  }

#pragma unroll 1  // the body is long, and registers have no index: so only the choice of sums is unrolled
  for (int piece = 0; piece < S::kQuadsM * kQuad * S::kQuadsN; ++piece) {
    float v[kQuad];
#pragma unroll
    for (int i = 0; i < S::kQuadsM * kQuad; ++i)
#pragma unroll
      for (int j = 0; j < S::kQuadsN; ++j)
        if (i * S::kQuadsN + j == piece)
#pragma unroll
          for (int e = 0; e < kQuad; ++e) v[e] = sums[i][j][e];
    const int i = piece / S::kQuadsN, j = piece % S::kQuadsN;
    const int row = row0 + i / kQuad * kLanesM * kQuad + i % kQuad, column = column0 + j * kLanesN * kQuad;
    hand_over<float>(g, p, at, v, bias + column, m0 + row, n0 + column);
  }
}

template <class S, bool kAByK, bool kBByK>
void launch(const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  gemm_float_tile<S, kAByK, kBByK>
      <<<static_cast<unsigned>(p.tiles_m * p.tiles_n * p.splits * g.batch), S::kThreads, 0, stream>>>(g, p);
  check_launch("matmul");
}

template <class S, bool kAByK>
void launch_b(const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  if (p.b_by_k)
    launch<S, kAByK, true>(g, p, stream);
  else
    launch<S, kAByK, false>(g, p, stream);
}

}  // namespace

void gemm_float(const GemmArgs& g, const GemmPlan& p, Stream stream_in) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_in);
  if (!p.a_by_k)  // rare: one shape of tiles must do
    launch_b<Small, false>(g, p, stream);
  else if (p.kernel == GemmKernel::float_large)
    launch_b<Large, true>(g, p, stream);
  else
    launch_b<Small, true>(g, p, stream);
}

}  // namespace qkv::cuda

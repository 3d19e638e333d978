// c = act(a b + bias) * gate + residual for few rows of a: what costs is to read b, once, in accesses of 16 bytes.
//
// The warps of a block share its columns of c and take turns along k; in the end their sums are added in the order of the warps.
// Which warp takes what depends on n and k, never on m.
//
// 16 bits: mma, with 16 of a's rows as its rows; blocks with further rows of a find b in the L2 cache. What stands in one place
// along k of an mma is free as long as a and b agree, and so is the column of c that a column of mma stands for. Hence lanes load
// what is adjacent in memory and call it what they need (g = lane / 4, t = lane % 4):
//   k adjacent in b: a lane loads k = 8t ... 8t + 7 of column g, which is b0, b1 of two mma: k = 8t, +1, +2, +3 stand for mma's
//     2t, 2t + 1, 2t + 8, 2t + 9, and the rest likewise in the second;
//   n adjacent in b: a lane loads columns 8g ... 8g + 7 of k = 4t ... 4t + 3. Pairs of two k are b's registers, and column 8g + j
//     is column g of the j-th of 8 mma.
// float32: a lane's share of the sums in registers, fused multiply-adds.
//
// Each lane has a queue of its own in shared memory, filled by cp.async three steps ahead: 6 KB under way for each warp, whatever
// the compiler does. (Loads into registers it moved to where they are used, or spilled.)
#include <algorithm>

#include "cuda/gemm_block.cuh"
#include "cuda/launch.cuh"

namespace qkv::cuda {
namespace {

constexpr int kMostWarps = 8;                           // of a block
constexpr int kBlocks = 2;                              // on an SM: 96 KB under way
constexpr int kSlots = 4;                               // of 16 bytes a lane, in a step
constexpr int kDepth = 4;                               // steps in the queue
constexpr int kQueueBytes = kDepth * kSlots * 32 * 16;  // of a warp; in the end its sums lie there
constexpr int kQueueFloats = kQueueBytes / 4;
constexpr int kMostColumns = 128;  // of a block

// What a block works on.
struct Work {
  BlockPlace at;
  int64_t m0, n0;  // the block's first row and column of c
  int64_t k_from, k_to;
  int warp, warps, lane;
};
template <int kRows, int kColumns>
QKV_DEVICE Work work_of(const GemmArgs& g, const GemmPlan& p) {
  const BlockPlace at = block_place(p);
  const int64_t from = at.split * p.k_split;
  const int thread = threadIdx.x, threads = blockDim.x;
  return {at,
          int64_t{at.tile_m} * kRows,
          int64_t{at.tile_n} * kColumns,
          from,
          min(g.k, from + p.k_split),
          thread / 32,
          threads / 32,
          thread % 32};
}

// A lane's queue of steps of kSlots times 16 bytes.
class Queue {
 public:
  QKV_DEVICE Queue(void* shared, const Work& work)
      : lane_(static_cast<char*>(shared) + work.warp * kQueueBytes + work.lane * 16), in_(shared_address(lane_)) {}

  // Zeros, and no access, if not `inside`.
  QKV_DEVICE void put(int step, int slot, const void* global, bool inside) const {
    cp_async16(in_ + (step * kSlots + slot) * 512, global, inside ? 16 : 0);
  }
  QKV_DEVICE uint4 get(int step, int slot) const { return load16(lane_ + (step * kSlots + slot) * 512); }

 private:
  const char* lane_;
  uint32_t in_;
};

// The warp's steps, each `length` of k: load(step of the queue, k, how much of k is left), then use with the same arguments when
// it is there, which use asks for by calling its last argument.
template <class Load, class Use>
QKV_DEVICE void walk(const Work& work, int length, const Load& load, const Use& use) {
  const int64_t stride = work.warps * length;
  int64_t k = work.k_from + work.warp * length, ahead = k;
  const auto left = [&](int64_t at) { return static_cast<int>(min(work.k_to - at, int64_t{length})); };
  const auto load_next = [&](int step) {
    load(step, ahead, left(ahead));
    cp_async_commit();
    ahead += stride;
  };
#pragma unroll
  for (int step = 0; step < kDepth - 1; ++step) load_next(step);
#pragma unroll 1
  for (int step = 0; k < work.k_to; k += stride) {
    load_next((step + kDepth - 1) % kDepth);
    use(step, k, left(k), [] { cp_async_wait<kDepth - 1>(); });
    step = (step + 1) % kDepth;
  }
  cp_async_wait<0>();
}

// The warps' sums lie in shared memory, kQueueFloats apart: v = those of one place, in the order of the warps.
template <int kCount, class Get>
QKV_DEVICE void add_warps(const Work& work, const float* sums, float (&v)[kCount], const Get& get) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = 0;
#pragma unroll 1
  for (int w = 0; w < work.warps; ++w) {
    float more[kCount];
    get(sums + w * kQueueFloats, more);
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] += more[i];
  }
}

template <class T, class Sums>
QKV_DEVICE void merge_tiles(const GemmArgs& g, const GemmPlan& p, const Work& work, const float* sums, const float* bias) {
  __syncthreads();
  const int piece = Sums::piece_of_lane();
#pragma unroll 1
  for (int pass = work.warp; pass < Sums::kPasses; pass += work.warps) {
    const int row = Sums::row_of_lane(pass);
    if (work.m0 + row >= g.m) continue;
    float v[8];
    add_warps(work, sums, v, [&](const float* tile, float (&more)[8]) { Sums::get(tile, row, piece, more); });
    hand_over<T>(g, p, work.at, v, bias + piece * 8, work.m0 + row, work.n0 + piece * 8);
  }
}

// 16 bits, b with k adjacent: 16 columns a block, 64 of k a step.
namespace by_k {
constexpr int kRows = 16, kColumns = 16, kTiles = kColumns / 8;
constexpr int kSlice = 32, kSlices = kSlots / kTiles, kStep = kSlice * kSlices;
using Sums = SumTile<kColumns>;
static_assert(Sums::kFloats <= kQueueFloats);
// Bytes of a column of b that a block asks of memory while the kernel before ends: of all blocks that run at once some 17 MB, a
// third of the L2 cache, and as much as memory gives in the few microseconds that there are.
constexpr int64_t kPrefetched = 4096;
}  // namespace by_k

template <class T>
__global__ void __launch_bounds__(32 * kMostWarps, kBlocks)
    gemm_skinny_by_k(const __grid_constant__ GemmArgs g, const __grid_constant__ GemmPlan p) {
  using namespace by_k;
  extern __shared__ __align__(16) float shared[];
  const Work work = work_of<kRows, kColumns>(g, p);
  float* const bias = shared + work.warps * kQueueFloats;
  const int64_t n0 = work.n0;
  const int m_left = static_cast<int>(min(g.m - work.m0, int64_t{kRows}));
  const int row = work.lane / 4, k_lane = work.lane % 4 * 8;
  const T* const a = reinterpret_cast<const T*>(g.a.data) + work.at.batch * g.a.b + (work.m0 + row) * g.a.s + k_lane;
  const T* const b = reinterpret_cast<const T*>(g.b.data) + work.at.batch * g.b.b + k_lane;
  grid_dependency_launch();
  if (const int64_t column = n0 + threadIdx.x; threadIdx.x < kColumns && column < g.n)
    prefetch_l2(b - k_lane + column * g.b.d + work.k_from, min((work.k_to - work.k_from) * 2, kPrefetched));
  grid_dependency_wait();
  if (p.splits == 1) bias_to_shared(g.bias, n0, g.n, kColumns, bias);

  const bool low_row = row < m_left, high_row = row + 8 < m_left;
  const T* b_columns[kTiles];
#pragma unroll
  for (int j = 0; j < kTiles; ++j) b_columns[j] = b + min(n0 + 8 * j + row, g.n - 1) * g.b.d;  // beyond n: unused

  const Queue queue(shared, work);
  float sums[kTiles][4] = {};
  const auto load = [&](int step, int64_t k, int left) {
#pragma unroll
    for (int s = 0; s < kSlices; ++s)
#pragma unroll
      for (int j = 0; j < kTiles; ++j) queue.put(step, s * kTiles + j, b_columns[j] + k + s * kSlice, s * kSlice + k_lane < left);
  };
  const auto use = [&](int step, int64_t k, int left, auto wait) {
    uint4 low[kSlices], high[kSlices];
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      const bool inside = s * kSlice + k_lane < left;
      low[s] = inside && low_row ? load16(a + k + s * kSlice) : make_uint4(0, 0, 0, 0);
      high[s] = inside && high_row ? load16(a + 8 * g.a.s + k + s * kSlice) : make_uint4(0, 0, 0, 0);
    }
    wait();
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      const uint32_t first[4] = {low[s].x, high[s].x, low[s].y, high[s].y};
      const uint32_t second[4] = {low[s].z, high[s].z, low[s].w, high[s].w};
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const uint4 w = queue.get(step, s * kTiles + j);
        mma_16816<T>(sums[j], first, w.x, w.y);
        mma_16816<T>(sums[j], second, w.z, w.w);
      }
    }
  };
  walk(work, kStep, load, use);

  float* const tile = shared + work.warp * kQueueFloats;  // its own queue's place, which only this warp has used
  __syncwarp();
#pragma unroll
  for (int j = 0; j < kTiles; ++j) Sums::put(tile, j, sums[j]);
  merge_tiles<T, Sums>(g, p, work, shared, bias);
}

// 16 bits, b with n adjacent: 64 columns a block, 16 of k a step.
namespace by_n {
constexpr int kRows = 16, kColumns = 64;
constexpr int kStep = 16;
using Sums = SumTile<kColumns, 32, 68>;  // 4 modulo 8: for lanes that write 4 neighbours
static_assert(Sums::kFloats <= kQueueFloats);
}  // namespace by_n

template <class T>
__global__ void __launch_bounds__(32 * kMostWarps, kBlocks)
    gemm_skinny_by_n(const __grid_constant__ GemmArgs g, const __grid_constant__ GemmPlan p) {
  begin_dependent();
  using namespace by_n;
  extern __shared__ __align__(16) float shared[];
  const Work work = work_of<kRows, kColumns>(g, p);
  float* const bias = shared + work.warps * kQueueFloats;
  const int64_t n0 = work.n0;
  const int m_left = static_cast<int>(min(g.m - work.m0, int64_t{kRows}));
  const int row = work.lane / 4, k_lane = work.lane % 4 * 4;
  if (p.splits == 1) bias_to_shared(g.bias, n0, g.n, kColumns, bias);

  const bool low_row = row < m_left, high_row = row + 8 < m_left;
  const T* const a = reinterpret_cast<const T*>(g.a.data) + work.at.batch * g.a.b + (work.m0 + row) * g.a.s + k_lane;
  const int64_t column = min(n0 + 8 * row, g.n - 8);  // beyond n: unused
  const T* const b = reinterpret_cast<const T*>(g.b.data) + work.at.batch * g.b.b + k_lane * g.b.s + column;

  const Queue queue(shared, work);
  float sums[8][4] = {};
  const auto load = [&](int step, int64_t k, int left) {  // left is a multiple of 4
    const T* const from = b + k * g.b.s;
#pragma unroll
    for (int i = 0; i < 4; ++i) queue.put(step, i, from + i * g.b.s, k_lane < left);
  };
  const auto use = [&](int step, int64_t k, int left, auto wait) {
    const bool inside = k_lane < left;
    uint2 low = make_uint2(0, 0), high = low;
    if (inside && low_row) low = *reinterpret_cast<const uint2*>(a + k);
    if (inside && high_row) high = *reinterpret_cast<const uint2*>(a + 8 * g.a.s + k);
    const uint32_t fragment[4] = {low.x, high.x, low.y, high.y};
    wait();
    uint32_t raw[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 w = queue.get(step, i);
      raw[i][0] = w.x;
      raw[i][1] = w.y;
      raw[i][2] = w.z;
      raw[i][3] = w.w;
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const auto pair = [&](int i) {  // of k = 4t + i and + 1, in column j
        return __byte_perm(raw[i][j / 2], raw[i + 1][j / 2], j % 2 ? 0x7632 : 0x5410);
      };
      mma_16816<T>(sums[j], fragment, pair(0), pair(2));
    }
  };
  walk(work, kStep, load, use);

  // Columns 2t and 2t + 1 of the j-th mma are columns 16t + j and 16t + 8 + j of c.
  float* const tile = shared + work.warp * kQueueFloats + row * Sums::kStride + work.lane % 4 * 8;
  __syncwarp();
#pragma unroll
  for (int high = 0; high < 2; ++high)
#pragma unroll
    for (int side = 0; side < 2; ++side)
#pragma unroll
      for (int plane = 0; plane < 2; ++plane) {
        const int j = 4 * plane, d = 2 * high + side;
        *reinterpret_cast<float4*>(tile + 8 * high * Sums::kStride + plane * Sums::kPlane + 4 * side) =
            make_float4(sums[j][d], sums[j + 1][d], sums[j + 2][d], sums[j + 3][d]);
      }
  merge_tiles<T, Sums>(g, p, work, shared, bias);
}

// float32, up to kRows rows.
QKV_DEVICE void get_quad(const float* from, float (&v)[4]) {
  const float4 quad = *reinterpret_cast<const float4*>(from);
  v[0] = quad.x;
  v[1] = quad.y;
  v[2] = quad.z;
  v[3] = quad.w;
}
QKV_DEVICE float dot(float4 x, float4 y, float sum) {
  return fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
}

// b with k adjacent: 4 columns a block, 128 of k a step, 4 a lane.
namespace float_by_k {
constexpr int kColumns = kSlots, kStep = 128;
}

template <int kRows>
__global__ void __launch_bounds__(32 * kMostWarps, kBlocks)
    gemm_skinny_float_by_k(const __grid_constant__ GemmArgs g, const __grid_constant__ GemmPlan p) {
  begin_dependent();
  using namespace float_by_k;
  extern __shared__ __align__(16) float shared[];
  const Work work = work_of<kRows, kColumns>(g, p);
  float* const bias = shared + work.warps * kQueueFloats;
  const int64_t n0 = work.n0;
  const int m_left = static_cast<int>(min(g.m - work.m0, int64_t{kRows}));
  const int k_lane = work.lane * 4;
  if (p.splits == 1) bias_to_shared(g.bias, n0, g.n, kColumns, bias);

  const float* const a = reinterpret_cast<const float*>(g.a.data) + work.at.batch * g.a.b + work.m0 * g.a.s + k_lane;
  const float* const b = reinterpret_cast<const float*>(g.b.data) + work.at.batch * g.b.b + k_lane;
  const float* b_columns[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) b_columns[j] = b + min(n0 + j, g.n - 1) * g.b.d;  // beyond n: unused

  const Queue queue(shared, work);
  float sums[kRows][kColumns] = {};
  const auto load = [&](int step, int64_t k, int left) {  // left is a multiple of 4
#pragma unroll
    for (int j = 0; j < kColumns; ++j) queue.put(step, j, b_columns[j] + k, k_lane < left);
  };
  const auto use = [&](int step, int64_t k, int left, auto wait) {
    float4 x[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      x[i] = k_lane < left && i < m_left ? bit_cast<float4>(load16(a + i * g.a.s + k)) : make_float4(0, 0, 0, 0);
    wait();
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float4 w = bit_cast<float4>(queue.get(step, j));
#pragma unroll
      for (int i = 0; i < kRows; ++i) sums[i][j] = dot(x[i], w, sums[i][j]);
    }
  };
  walk(work, kStep, load, use);

  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float sum = warp_sum(sums[i][j]);
      if (work.lane == 0) shared[work.warp * kQueueFloats + i * kColumns + j] = sum;
    }
  __syncthreads();
  const int row = threadIdx.x;
  if (row >= kRows || row >= m_left) return;
  float v[kColumns];
  add_warps(work, shared + row * kColumns, v, [](const float* from, float (&more)[4]) { get_quad(from, more); });
  hand_over<float>(g, p, work.at, v, bias, work.m0 + row, n0);
}

// b with n adjacent: 128 columns a block, 4 a lane, 4 of k a step.
namespace float_by_n {
constexpr int kColumns = 128, kStep = kSlots;
}

template <int kRows>
__global__ void __launch_bounds__(32 * kMostWarps, kBlocks)
    gemm_skinny_float_by_n(const __grid_constant__ GemmArgs g, const __grid_constant__ GemmPlan p) {
  begin_dependent();
  using namespace float_by_n;
  extern __shared__ __align__(16) float shared[];
  const Work work = work_of<kRows, kColumns>(g, p);
  float* const bias = shared + work.warps * kQueueFloats;
  const int64_t n0 = work.n0;
  const int m_left = static_cast<int>(min(g.m - work.m0, int64_t{kRows}));
  const int column_lane = work.lane * 4;
  if (p.splits == 1) bias_to_shared(g.bias, n0, g.n, kColumns, bias);

  const float* const a = reinterpret_cast<const float*>(g.a.data) + work.at.batch * g.a.b + work.m0 * g.a.s;
  const int64_t column = min(n0 + column_lane, g.n - 4);  // beyond n: unused
  const float* const b = reinterpret_cast<const float*>(g.b.data) + work.at.batch * g.b.b + column;

  const Queue queue(shared, work);
  float sums[kRows][4] = {};
  const auto load = [&](int step, int64_t k, int left) {
    const float* const from = b + k * g.b.s;
#pragma unroll
    for (int s = 0; s < kStep; ++s) queue.put(step, s, from + s * g.b.s, s < left);
  };
  const auto use = [&](int step, int64_t k, int left, auto wait) {
    float x[kRows][kStep];
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int s = 0; s < kStep; ++s) x[i][s] = s < left && i < m_left ? a[i * g.a.s + k + s] : 0.0f;
    wait();
#pragma unroll
    for (int s = 0; s < kStep; ++s) {
      const float4 w = bit_cast<float4>(queue.get(step, s));
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        sums[i][0] = fmaf(x[i][s], w.x, sums[i][0]);
        sums[i][1] = fmaf(x[i][s], w.y, sums[i][1]);
        sums[i][2] = fmaf(x[i][s], w.z, sums[i][2]);
        sums[i][3] = fmaf(x[i][s], w.w, sums[i][3]);
      }
    }
  };
  walk(work, kStep, load, use);

  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRows; ++i)
    *reinterpret_cast<float4*>(shared + work.warp * kQueueFloats + i * kColumns + column_lane) =
        make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
  __syncthreads();
#pragma unroll 1
  for (int row = work.warp; row < kRows && row < m_left; row += work.warps) {
    float v[4];
    add_warps(work, shared + row * kColumns + column_lane, v, [](const float* from, float (&more)[4]) { get_quad(from, more); });
    hand_over<float>(g, p, work.at, v, bias + column_lane, work.m0 + row, n0 + column_lane);
  }
}

template <class Kernel>
void launch(Kernel* kernel, const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  const size_t shared = p.threads / 32 * kQueueBytes + kMostColumns * sizeof(float);  // queues, bias
  allow_shared(kernel, shared, "matmul");
  launch_dependent("matmul", kernel, static_cast<unsigned>(p.tiles_m * p.tiles_n * p.splits * g.batch), p.threads, shared, stream,
                   g, p);
}

template <class T>
void launch_16_bit(const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  launch(p.b_by_k ? gemm_skinny_by_k<T> : gemm_skinny_by_n<T>, g, p, stream);
}

template <int kRows>
void launch_float(const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  launch(p.b_by_k ? gemm_skinny_float_by_k<kRows> : gemm_skinny_float_by_n<kRows>, g, p, stream);
}

}  // namespace

SkinnyTile skinny_tile(const GemmArgs& g, bool b_by_k) {
  if (g.c.dtype != DType::f32)
    return b_by_k ? SkinnyTile{by_k::kRows, by_k::kColumns, by_k::kStep} : SkinnyTile{by_n::kRows, by_n::kColumns, by_n::kStep};
  const int64_t rows = g.m == 1 ? 1 : 4;
  return b_by_k ? SkinnyTile{rows, float_by_k::kColumns, float_by_k::kStep}
                : SkinnyTile{rows, float_by_n::kColumns, float_by_n::kStep};
}
int skinny_warps(int64_t k_split, int64_t step, bool many) {
  // As many as it takes to have all of k under way, or enough. Many blocks of half the size have as much under way as half as
  // many, but do not begin and end all at once: where an SM has two after two others, memory is idle twice for as long as it
  // takes to fill the queues and to add up.
  const int64_t most = many ? kMostWarps / 2 : kMostWarps;
  return static_cast<int>(std::clamp(ceil_div(ceil_div(k_split, step), int64_t{kDepth - 1}), int64_t{1}, most));
}

void gemm_skinny(const GemmArgs& g, const GemmPlan& p, Stream stream_in) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_in);
  if (g.c.dtype == DType::f16)
    launch_16_bit<__half>(g, p, stream);
  else if (g.c.dtype == DType::bf16)
    launch_16_bit<__nv_bfloat16>(g, p, stream);
  else if (g.m == 1)
    launch_float<1>(g, p, stream);
  else
    launch_float<4>(g, p, stream);
}

}  // namespace qkv::cuda

// c = act(a b + bias) * gate + residual in bfloat16 and float16 on Hopper: wgmma, fed by TMA through a ring of stages, sums in
// float in the order of k. gemm.cu says which products come here (wgmma_fits), and cuts them into tiles.
//
// A block is two warpgroups that multiply and one warp that loads. It stays for as long as there are tiles, each of which it
// takes `gridDim.x` after the last: neighbouring blocks work on neighbouring tiles, whose rows of a and columns of b the L2 cache
// holds (block_place). Why it is as it is, per multiprocessor (4096 operations and 128 bytes of shared memory a cycle):
//   128 x 256 is the tile that can be fed: a step of 64 along k takes 1024 cycles of multiplying, in which wgmma reads 2 x 4 x (2
//   + 8) KB and TMA writes 48 KB, 128 bytes a cycle, which the L2 cache must give (48 bytes a cycle; it has about 39 for each).
//   128 x 128 needs 160 and 64, and is for what has too few tiles or too little k; then two blocks share a multiprocessor, and
//   one multiplies during the other's epilogue. Clusters, whose blocks load once what they share, would halve the L2 cache's
//   part: they are left until a GPU shows that it is the limit. The loading warp is alone, not one of a third warpgroup. So sums
//   and epilogue have the registers they need (168 a thread, as ptxas counts) without setmaxnreg. One wgmma group is always under
//   way: a stage is released when the next one's group has been issued. Results go through shared memory (stmatrix, swizzled, no
//   bank conflicts) to TMA, which writes whole lines while the next tile is multiplied. Gate or residual come the other way, into
//   the place where the results will be.
#include <algorithm>

#include "cuda/gemm_block.cuh"
#include "cuda/launch.cuh"
#include "cuda/ring_sm90.cuh"
#include "cuda/tensor_map.h"

namespace qkv::cuda {
namespace {

constexpr int kK = 64, kRowBytes = 128;  // of k in a stage: a row of the widest swizzle
constexpr int kGroups = 2, kGroupThreads = 128, kConsumers = kGroups * kGroupThreads, kThreads = kConsumers + 32;
constexpr int kBox = 64, kBoxBytes = kBox * kRowBytes;      // of c: 64 x 64, on its way to global memory
constexpr int kBothGroups = kGroups + 1;                    // named barriers: group i has 1 + i
constexpr int kOfProcessor = 228 * 1024, kReserved = 1024;  // bytes of shared memory; what the system takes of each block's

template <int kM_, int kN_, int kStages_, int kBoxes_, int kBlocks_>
struct Shape {
  static constexpr int kM = kM_, kN = kN_, kStages = kStages_, kBlocks = kBlocks_;  // blocks on a multiprocessor
  static constexpr int kGroupsM = kM / 64;                                          // warpgroups below one another; else beside
  static constexpr int kGroupN = kN * kGroupsM / kGroups;                           // columns of a warpgroup's sums
  static constexpr int kPieces = kGroupN / kBox, kBoxes = kBoxes_;                  // of its columns; and how many are staged
  static constexpr int kABytes = kM * kRowBytes, kBBytes = kN * kRowBytes, kStageBytes = kABytes + kBBytes;
  static constexpr int kStaged = kStages * kStageBytes;                 // in shared memory: stages, boxes,
  static constexpr int kBias = kStaged + kGroups * kBoxes * kBoxBytes;  // bias,
  static constexpr int kBarriers = kBias + kN * 4;                      // the ring's mbarriers, and one a box
  static constexpr int kShared = kBarriers + Ring<kStages>::kBytes + kGroups * kBoxes * 8;
  static_assert(kPieces % kBoxes == 0 && kN <= kConsumers && kBlocks * (kShared + kReserved) <= kOfProcessor);
};
using Large = Shape<128, 256, 4, 2, 1>;
using Medium = Shape<128, 128, 3, 1, 2>;
using Small = Shape<64, 128, 4, 1, 2>;

struct Maps {
  CUtensorMap a, b, c, other;  // (k, m, batch); (k, n, batch) or (n, k, batch); (n, m, batch), gate or residual likewise
  bool stores;                 // c by TMA
};

// f(i) for i = index, one of kFrom ... kTo - 1, as a constant: registers have no index.
template <int kFrom, int kTo, class F>
QKV_DEVICE void with_constant(int index, const F& f) {
  if constexpr (kTo - kFrom == 1)
    f(std::integral_constant<int, kFrom>{});
  else if (constexpr int kMiddle = (kFrom + kTo) / 2; index < kMiddle)
    with_constant<kFrom, kMiddle>(index, f);
  else
    with_constant<kMiddle, kTo>(index, f);
}

// What both kinds of warps know of a tile.
struct Tile {
  BlockPlace at;
  int m0, n0, k0, steps;
  template <class S>
  static QKV_DEVICE Tile of(const GemmArgs& g, const GemmPlan& p, uint32_t i) {
    const BlockPlace at = block_place(p, i);
    const int64_t k0 = at.split * p.k_split, k = min(g.k - k0, p.k_split);
    return {at, static_cast<int>(at.tile_m * S::kM), static_cast<int>(at.tile_n * S::kN), static_cast<int>(k0),
            static_cast<int>((k + kK - 1) / kK)};
  }
};

template <class S, bool kBByK>
QKV_DEVICE void load_tiles(const GemmArgs& g, const GemmPlan& p, const Maps& maps, uint32_t tiles, uint32_t stages,
                           const Ring<S::kStages>& ring) {
  RingPlace<S::kStages> at;
#pragma unroll 1
  for (uint32_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const Tile tile = Tile::of<S>(g, p, i);
    const int batch = static_cast<int>(tile.at.batch), a_batch = g.a.b ? batch : 0, b_batch = g.b.b ? batch : 0;
    int k = tile.k0;
#pragma unroll 1
    for (int step = 0; step < tile.steps; ++step, ++at, k += kK) {
      const uint32_t a = stages + at.stage * S::kStageBytes, b = a + S::kABytes, full = ring.full(at);
      ring.wait_empty(at);
      ring.expect(at, S::kStageBytes);  // what is outside of a and b counts too
      tma_load(a, &maps.a, full, k, tile.m0, a_batch);
      if constexpr (kBByK) {
        tma_load(b, &maps.b, full, k, tile.n0, b_batch);
      } else {
#pragma unroll
        for (int n = 0; n < S::kN; n += kBox) tma_load(b + n * kRowBytes, &maps.b, full, tile.n0 + n, k, b_batch);
      }
    }
  }
}

// The sums of the splits of k, for gemm_merge: lanes with an even and an odd number exchange halves, so that each has 16 bytes.
template <class T, int kCount>
QKV_DEVICE void keep_partial(const GemmArgs& g, const GemmPlan& p, const BlockPlace& at, const float (&d)[kCount], int row,
                             int column) {
  const bool odd = lane_id() & 1;
  const int half = lane_id() >> 1 & 1;
#pragma unroll
  for (int j = 0; j < kCount / 4; j += 2)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float *first = d + 4 * j + 2 * h, *second = first + 4;
      const float x = __shfl_xor_sync(kFullWarp, odd ? first[0] : second[0], 1);
      const float y = __shfl_xor_sync(kFullWarp, odd ? first[1] : second[1], 1);
      const float4 v = odd ? make_float4(x, y, second[0], second[1]) : make_float4(first[0], first[1], x, y);
      const int64_t m = row + 8 * h, n = column + 8 * (j + odd);
      if (m < g.m && n < g.n) store16_whole(partial_sums<T>(g, p, at.split, at.batch, m, n, half), bit_cast<uint4>(v));
    }
}

// A box of c to global memory where TMA cannot write it: rows that are no multiple of 16 bytes.
template <class T>
QKV_DEVICE void store_box(const GemmArgs& g, const char* box, T* c, int thread, int64_t rows, int64_t columns) {
#pragma unroll 4
  for (int i = thread; i < kBox * kBox; i += kGroupThreads) {
    const int row = i / kBox, column = i % kBox;
    if (row < rows && column < columns)
      c[row * g.c.s + column] = *reinterpret_cast<const T*>(box + row * kRowBytes + (2 * column ^ (row & 7) * 16));
  }
}

template <class T, class S, bool kBByK>
__global__ void __launch_bounds__(kThreads, S::kBlocks)
    gemm_wgmma(const __grid_constant__ GemmArgs g, const __grid_constant__ GemmPlan p, const __grid_constant__ Maps maps,
               uint32_t tiles) {
  extern __shared__ __align__(1024) char shared[];
  const uint32_t stages = shared_address(shared);
  const Ring<S::kStages> ring{stages + S::kBarriers};
  const uint32_t other_barriers = ring.barriers + ring.kBytes;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kGroups * S::kBoxes; ++i) mbarrier_init(other_barriers + 8 * i, 1);
    ring.init(kConsumers / 32);
  }
  __syncthreads();
  const int warp = __shfl_sync(kFullWarp, threadIdx.x / 32, 0);  // known to be the same in all lanes
  if (warp >= kConsumers / 32) {
    if (elect_one()) {
      prefetch_tensor_map(&maps.a);
      prefetch_tensor_map(&maps.b);
      load_tiles<S, kBByK>(g, p, maps, tiles, stages, ring);
    }
    return;
  }

  const int thread = threadIdx.x % kGroupThreads, group = warp / (kGroupThreads / 32), lane = lane_id();
  const int group_m = group % S::kGroupsM * 64, group_n = group / S::kGroupsM * S::kGroupN;
  const bool leader = thread == 0;
  const uint64_t a_first = wgmma_k_major(stages + group_m * kRowBytes);
  const uint64_t b_first = kBByK ? wgmma_k_major(stages + S::kABytes + group_n * kRowBytes)
                                 : wgmma_mn_major(stages + S::kABytes + group_n * kRowBytes, kBoxBytes);
  constexpr int kStepA = 2, kStepB = kBByK ? 2 : kRowBytes;  // of a descriptor, for 16 of k

  // A lane's place in a box, for stmatrix and ldmatrix: rows of four 8 x 8 matrices, the second 8 rows below the first.
  const int box_row = thread / 32 * 16 + lane % 16;
  const uint32_t boxes = stages + S::kStaged + group * S::kBoxes * kBoxBytes;
  const uint32_t box_lane = boxes + box_row * kRowBytes + ((lane / 16) ^ (lane & 1)) * 16;  // chunk 0 or 1 ^ row, bit 0
  const uint32_t flip = (lane & 6) * 16;                                                    // bits 1 and 2
  const uint32_t barriers = other_barriers + group * S::kBoxes * 8;
  float* const bias = reinterpret_cast<float*>(shared + S::kBias);
  const bool whole = p.splits == 1;  // the sums are all there is to add
  const Strided4& other = g.gate.data ? g.gate : g.residual;
  const bool has_other = whole && other.data;
  uint32_t uses = 0;  // of the boxes, by pieces

  RingPlace<S::kStages> at;
  float d[S::kGroupN / 2];
#pragma unroll 1
  for (uint32_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const Tile tile = Tile::of<S>(g, p, i);
    const int batch = static_cast<int>(tile.at.batch), m0 = tile.m0 + group_m, n0 = tile.n0 + group_n;
    const auto load_other = [&](int piece) {
      const int box = piece % S::kBoxes;
      mbarrier_arrive_expect_tx(barriers + 8 * box, kBoxBytes);
      tma_load(boxes + box * kBoxBytes, &maps.other, barriers + 8 * box, n0 + piece * kBox, m0, other.b ? batch : 0);
    };
    float own_bias = 0;  // of a column: it comes while the product is made
    const int64_t bias_column = tile.n0 + static_cast<int>(threadIdx.x);
    if (whole && g.bias.data && threadIdx.x < S::kN && bias_column < g.n)
      own_bias = load_float(g.bias.data, g.bias.dtype, bias_column);

    RingPlace<S::kStages> before = at;
    wgmma_hold(d);
#pragma unroll 1
    for (int step = 0; step < tile.steps; ++step) {
      ring.wait_full(at);
      const uint64_t stage = static_cast<uint64_t>(at.stage * (S::kStageBytes / 16));
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kK / 16; ++k)
        wgmma<T, S::kGroupN, false, !kBByK>(d, a_first + stage + k * kStepA, b_first + stage + k * kStepB, step | k);
      wgmma_commit();
      if (step > 0) {
        wgmma_wait<1>();
        if (lane == 0) ring.release(before);
      } else if (leader && has_other) {  // now that there is something to multiply
        bulk_wait_read<0>();
#pragma unroll
        for (int piece = 0; piece < S::kBoxes; ++piece) load_other(piece);
      }
      before = at;
      ++at;
    }
    wgmma_wait<0>();
    wgmma_hold(d);
    if (lane == 0) ring.release(before);

    const int row = m0 + thread / 32 * 16 + lane / 4;
    if (!whole) {
      keep_partial<T>(g, p, tile.at, d, row, n0);
      continue;
    }
    if (g.bias.data) {
      named_barrier_sync(kBothGroups, kConsumers);  // all have read that of the last tile
      if (threadIdx.x < S::kN) bias[threadIdx.x] = own_bias;
      named_barrier_sync(kBothGroups, kConsumers);
#pragma unroll
      for (int j = 0; j < S::kGroupN / 8; ++j) {
        const float2 b = *reinterpret_cast<const float2*>(bias + group_n + 8 * j + lane % 4 * 2);
        d[4 * j] += b.x;
        d[4 * j + 1] += b.y;
        d[4 * j + 2] += b.x;
        d[4 * j + 3] += b.y;
      }
    }
    if (g.activation != Activation::none) {
#pragma unroll 1  // the body is long
      for (int slice = 0; slice < S::kGroupN / 16; ++slice) {
        float v[8];
        with_constant<0, S::kGroupN / 16>(slice, [&](auto s) {
#pragma unroll
          for (int e = 0; e < 8; ++e) v[e] = d[8 * s() + e];
        });
        activate(g.activation, v);
        with_constant<0, S::kGroupN / 16>(slice, [&](auto s) {
#pragma unroll
          for (int e = 0; e < 8; ++e) d[8 * s() + e] = v[e];
        });
      }
    }
#pragma unroll
    for (int piece = 0; piece < S::kPieces; ++piece) {
      const int box = piece % S::kBoxes;
      if (leader) {
        if (has_other) {
          if (piece > 0 && piece - 1 + S::kBoxes < S::kPieces) {
            bulk_wait_read<0>();
            load_other(piece - 1 + S::kBoxes);
          }
        } else {
          bulk_wait_read<S::kBoxes - 1>();
        }
      }
      if (has_other)
        mbarrier_wait(barriers + 8 * box, (uses + piece) / S::kBoxes & 1);
      else
        named_barrier_sync(1 + group, kGroupThreads);  // the box is free
#pragma unroll
      for (int slice = 0; slice < kBox / 16; ++slice) {
        float* const v = d + (piece * (kBox / 16) + slice) * 8;
        const uint32_t place = box_lane + box * kBoxBytes + ((32 * slice) ^ flip);
        uint32_t pairs[4];
        if (has_other) {
          ldmatrix_x4(pairs, place);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float2 o = unpack2<T>(pairs[e]);
            v[2 * e] = g.gate.data ? v[2 * e] * o.x : v[2 * e] + o.x;
            v[2 * e + 1] = g.gate.data ? v[2 * e + 1] * o.y : v[2 * e + 1] + o.y;
          }
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) pairs[e] = pack2<T>(v[2 * e], v[2 * e + 1]);
        stmatrix_x4(place, pairs);
      }
      fence_async_shared();
      named_barrier_sync(1 + group, kGroupThreads);
      const int column = n0 + piece * kBox;
      if (!maps.stores) {
        store_box<T>(g, shared + (boxes - stages) + box * kBoxBytes,
                     reinterpret_cast<T*>(g.c.data) + batch * g.c.b + m0 * g.c.s + column, thread, g.m - m0, g.n - column);
        if (has_other) named_barrier_sync(1 + group, kGroupThreads);  // before the leader has it overwritten
      } else if (leader) {
        tma_store(&maps.c, boxes + box * kBoxBytes, column, m0, batch);
        bulk_commit();
      }
    }
    uses += S::kPieces;
  }
  if (leader) bulk_wait_read<0>();
}

// (columns, rows, batch) of a 16-bit matrix whose columns are adjacent. A batch stride of 0: one for all. What there is one of
// may have any stride, which TMA wants to be a multiple of 16 bytes.
CUtensorMap map_of(const Strided4& x, int64_t columns, int64_t rows, int64_t row_stride, int64_t batch, int box_columns,
                   int box_rows) {
  const int64_t row = rows > 1 ? row_stride : (columns + 7) / 8 * 8;
  const bool many = batch > 1 && x.b != 0;
  return tensor_map<3>(x.dtype, x.data, {columns, rows, many ? batch : 1}, {1, row, many ? x.b : row}, {box_columns, box_rows, 1},
                       kRowBytes);
}

template <class T, class S, bool kBByK>
void launch(const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  Maps maps{};
  maps.a = map_of(g.a, g.k, g.m, g.a.s, g.batch, kK, S::kM);
  maps.b = kBByK ? map_of(g.b, g.k, g.n, g.b.d, g.batch, kK, S::kN) : map_of(g.b, g.n, g.k, g.b.s, g.batch, kBox, kK);
  const Strided4& other = g.gate.data ? g.gate : g.residual;
  if (p.splits == 1 && other.data) maps.other = map_of(other, g.n, g.m, other.s, g.batch, kBox, kBox);
  // A store ends rows at the next multiple of 16 bytes.
  maps.stores = g.n % 8 == 0 && reinterpret_cast<uintptr_t>(g.c.data) % 16 == 0 && (g.m == 1 || g.c.s % 8 == 0) &&
                (g.batch == 1 || g.c.b % 8 == 0);
  if (p.splits == 1 && maps.stores) maps.c = map_of(g.c, g.n, g.m, g.c.s, g.batch, kBox, kBox);
  const auto kernel = gemm_wgmma<T, S, kBByK>;
  allow_shared(kernel, S::kShared, "matmul");
  const int64_t tiles = int64_t{p.tiles_m} * p.tiles_n * p.splits * g.batch;
  const int64_t blocks = std::min<int64_t>(tiles, int64_t{S::kBlocks} * device_attribute(cudaDevAttrMultiProcessorCount));
  kernel<<<static_cast<unsigned>(blocks), kThreads, S::kShared, stream>>>(g, p, maps, static_cast<uint32_t>(tiles));
  check_launch("matmul");
}

template <class T, class S>
void launch_b(const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  p.b_by_k ? launch<T, S, true>(g, p, stream) : launch<T, S, false>(g, p, stream);
}

template <class T>
void launch_shape(const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  if (p.kernel == GemmKernel::wgmma_large)
    launch_b<T, Large>(g, p, stream);
  else if (p.kernel == GemmKernel::wgmma_medium)
    launch_b<T, Medium>(g, p, stream);
  else
    launch_b<T, Small>(g, p, stream);
}

}  // namespace

void gemm_wgmma(const GemmArgs& g, const GemmPlan& p, Stream stream_in) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_in);
  if (g.c.dtype == DType::f16)
    launch_shape<__half>(g, p, stream);
  else
    launch_shape<__nv_bfloat16>(g, p, stream);
}

}  // namespace qkv::cuda

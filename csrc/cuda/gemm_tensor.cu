// c = act(a b + bias) * gate + residual in bfloat16 and float16 by mma.sync, sums in float in the order of k: a block makes a
// tile of c and walks along k through a ring of shared tiles of a and b, which cp.async fills while earlier ones are multiplied.
//
// Why it is as it is, for a GPU of Hopper's kind (mma.sync at about 6.4 cycles a 16x8x16, 128 bytes of shared memory a cycle):
//   Warps own 64x64 of c: a step of 16 along k reads 8 ldmatrix.x4, 32 cycles, for 32 mma, 51 cycles of the fourth of an SM that
//   runs it; with 64x32 it is 24 for 26, and shared memory, which cp.async fills meanwhile, is the limit.
//   Fragments of the next step are read before this step's mma, and those of the next tile right after the barrier, so that no
//   warp waits for ldmatrix with nothing to multiply.
//   Pointers advance; nothing in the loop computes an address from indices.
#include "cuda/gemm_block.cuh"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace qkv::cuda {
namespace {

constexpr int kK = 32;  // of k in a tile
constexpr int kStep = 16;
constexpr int kStages = 4;

// How an operand lies in memory, rows being a's or b's columns: k adjacent, rows adjacent (the other stride a multiple of 16
// bytes, as its beginning), or anything.
enum class Order { by_k, by_row, any };

template <int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kBlocks_>
struct Shape {
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kBlocks = kBlocks_;                            // on an SM
  static constexpr int kWarpM = kM / kWarpsM, kWarpN = kN / kWarpsN;  // of c for a warp
  static constexpr int kStageBytes = 2 * (kM + kN) * kK;
  static constexpr int kRing = kStages * kStageBytes;
  static constexpr int kShared = kRing + kN * 4;  // and the bias
  static_assert(kShared <= 99 * 1024);
};
using Large = Shape<128, 256, 2, 4, 1>;
using Medium = Shape<128, 128, 2, 2, 2>;
using Small = Shape<64, 64, 2, 2, 4>;
using Any = Shape<64, 64, 2, 2, 2>;  // what it holds while it loads needs registers

// Copies tiles of (kRows, kK) from a matrix with any strides. Elements wait in registers from load to land.
template <class Tile, int kThreads>
class ElementLoader {
 public:
  static constexpr int kPasses = Tile::kRows * Tile::kChunks / kThreads;

  QKV_DEVICE ElementLoader(const void* matrix, int64_t row_stride, int64_t k_stride)
      : from_(static_cast<const uint16_t*>(matrix)), row_stride_(row_stride), k_stride_(k_stride) {}

  QKV_DEVICE void load(uint32_t shared, int rows, int columns) {
    to_ = shared;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = row_of(pass), column = chunk_of(pass) * kChunk;
      const uint16_t* from = from_ + row * row_stride_ + column * k_stride_;
      const int count = row < rows ? columns - column : 0;
      uint32_t e[kChunk];
      if (k_stride_ == 1 && count >= kChunk) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) e[i] = from[i];
      } else {
#pragma unroll
        for (int i = 0; i < kChunk; ++i, from += k_stride_) e[i] = i < count ? *from : 0u;
      }
      held_[pass] = make_uint4(e[0] | e[1] << 16, e[2] | e[3] << 16, e[4] | e[5] << 16, e[6] | e[7] << 16);
    }
  }
  QKV_DEVICE void land() {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
      store16(__cvta_shared_to_generic(to_ + Tile::offset(row_of(pass), chunk_of(pass))), held_[pass]);
  }
  QKV_DEVICE void next_columns() { from_ += Tile::kColumns * k_stride_; }

 private:
  // Neighbouring threads take neighbours in memory.
  QKV_DEVICE int row_of(int pass) const {
    const int i = threadIdx.x + pass * kThreads;
    return k_stride_ == 1 ? i / Tile::kChunks : i % Tile::kRows;
  }
  QKV_DEVICE int chunk_of(int pass) const {
    const int i = threadIdx.x + pass * kThreads;
    return k_stride_ == 1 ? i % Tile::kChunks : i / Tile::kRows;
  }

  const uint16_t* from_;
  int64_t row_stride_, k_stride_;
  uint32_t to_ = 0;
  uint4 held_[kPasses];
};

// An operand's tiles, (kRows, k): how they come to shared memory, and from there into fragments.
template <Order kOrder, int kRows, int kThreads>
class Operand {
 public:
  using Tile = std::conditional_t<kOrder == Order::by_row, SharedTile<kK, kRows>, SharedTile<kRows, kK>>;

  // `matrix`: the first element of the first tile, of which `rows` rows exist.
  QKV_DEVICE Operand(const void* matrix, int64_t row_stride, int64_t k_stride, int64_t rows)
      : loader_(make_loader(matrix, row_stride, k_stride)), rows_(static_cast<int>(min(rows, int64_t{kRows}))) {}

  // The next tile, which has k_left columns of k or more.
  QKV_DEVICE void load(uint32_t shared, int k_left) {
    if constexpr (kOrder == Order::by_row) {
      loader_.load(shared, k_left, rows_);
      loader_.next_rows();
    } else {
      loader_.load(shared, rows_, k_left);
      loader_.next_columns();
    }
  }
  QKV_DEVICE void land() {
    if constexpr (kOrder == Order::any) loader_.land();
  }

  // ldmatrix of rows from first_row + 16 i on and columns from 16 step on reads `fragment_address(tile, i, step)`, with
  // `tile` = where the tile is + this. As a: r[0 ... 3] is mma's a. As b: r[0], r[1] and r[2], r[3] are those of two neighbouring
  // tiles.
  QKV_DEVICE static uint32_t first_fragment(bool as_a, int first_row) {
    const int lane = lane_id(), row8 = lane & 7, bit3 = lane >> 3 & 1, bit4 = lane >> 4;
    // The two matrices that follow each other in r are further down the rows of a, but further along k of b.
    const int down = as_a ? bit3 : bit4, along = as_a ? bit4 : bit3;
    return kOrder == Order::by_row ? Tile::offset(8 * along + row8, first_row / kChunk + down)
                                   : Tile::offset(first_row + 8 * down + row8, along);
  }
  QKV_DEVICE static void read_fragment(uint32_t (&r)[4], uint32_t tile, int i, int step) {
    if constexpr (kOrder == Order::by_row)
      ldmatrix_x4_trans(r, (tile ^ 32 * i) + step * kStep * Tile::kRowBytes);
    else
      ldmatrix_x4(r, (tile ^ 32 * step) + i * 16 * Tile::kRowBytes);
  }

 private:
  using Loader = std::conditional_t<kOrder == Order::any, ElementLoader<Tile, kThreads>, TileLoader<Tile, kThreads>>;
  QKV_DEVICE static Loader make_loader(const void* matrix, int64_t row_stride, int64_t k_stride) {
    if constexpr (kOrder == Order::any)
      return Loader(matrix, row_stride, k_stride);
    else
      return Loader(matrix, kOrder == Order::by_k ? row_stride : k_stride);
  }

  Loader loader_;
  int rows_;
};

template <class T, class S, Order kOrderA, Order kOrderB>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    gemm_tile(const __grid_constant__ GemmArgs g, const __grid_constant__ GemmPlan p) {
  using A = Operand<kOrderA, S::kM, S::kThreads>;
  using B = Operand<kOrderB, S::kN, S::kThreads>;
  constexpr int kFragmentsM = S::kWarpM / 16, kFragmentsN = S::kWarpN / 16, kSteps = kK / kStep;
  extern __shared__ __align__(128) char shared[];
  float* const bias = reinterpret_cast<float*>(shared + S::kRing);

  const BlockPlace at = block_place(p);
  const int64_t m0 = int64_t{at.tile_m} * S::kM, n0 = int64_t{at.tile_n} * S::kN, k0 = at.split * p.k_split;
  int k_left = static_cast<int>(min(g.k - k0, p.k_split));
  const int tiles = (k_left + kK - 1) / kK;
  const int warp = threadIdx.x / 32, warp_m = warp % S::kWarpsM * S::kWarpM, warp_n = warp / S::kWarpsM * S::kWarpN;

  const T* const a_first = reinterpret_cast<const T*>(g.a.data) + at.batch * g.a.b + m0 * g.a.s + k0 * g.a.d;
  const T* const b_first = reinterpret_cast<const T*>(g.b.data) + at.batch * g.b.b + k0 * g.b.s + n0 * g.b.d;
  A a(a_first, g.a.s, g.a.d, g.m - m0);
  B b(b_first, g.b.d, g.b.s, g.n - n0);
  const uint32_t ring = shared_address(shared);
  const auto load = [&](int stage) {
    a.load(ring + stage * S::kStageBytes, k_left);
    b.load(ring + stage * S::kStageBytes + A::Tile::kBytes, k_left);
    k_left -= kK;
  };

  if (p.splits == 1) bias_to_shared(g.bias, n0, g.n, S::kN, bias);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (k_left > 0) {
      load(stage);
      a.land();
      b.land();
    }
    cp_async_commit();
  }

  struct Fragments {
    uint32_t a[kFragmentsM][4], b[kFragmentsN][4];
  } fragments[2];
  // Opaque, or they would be computed anew in each round, from the thread's number, with ldmatrix waiting for them.
  const uint32_t a_lane = opaque(ring + A::first_fragment(true, warp_m));
  const uint32_t b_lane = opaque(ring + A::Tile::kBytes + B::first_fragment(false, warp_n));
  const auto read = [&](Fragments& f, int offset, int step) {
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i) A::read_fragment(f.a[i], a_lane + offset, i, step);
#pragma unroll
    for (int j = 0; j < kFragmentsN; ++j) B::read_fragment(f.b[j], b_lane + offset, j, step);
  };
  float sums[kFragmentsM][2 * kFragmentsN][4] = {};

  cp_async_wait<kStages - 2>();
  __syncthreads();
  if (tiles > 0) read(fragments[0], 0, 0);
  int reading = 0, writing = kStages - 1;  // stages
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const bool last = step == kSteps - 1;
      if (last && tile + 1 < tiles) {
        cp_async_wait<kStages - 2>();
        __syncthreads();  // the next tile is there; and all have read this one, which is overwritten in the next round
        reading = reading == kStages - 1 ? 0 : reading + 1;
      }
      if (!last || tile + 1 < tiles) read(fragments[(step + 1) % 2], reading * S::kStageBytes, (step + 1) % kSteps);
      if (step == 0) {
        if (k_left > 0) load(writing);
        cp_async_commit();
      }
      const Fragments& f = fragments[step % 2];
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i)
#pragma unroll
        for (int j = 0; j < 2 * kFragmentsN; ++j)
          mma_16816<T>(sums[i][j], f.a[i], f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]);
    }
    if constexpr (kOrderA == Order::any) {  // into the stage that everybody left a barrier ago
      if (tile + kStages - 1 < tiles) {
        a.land();
        b.land();
      }
    }
    writing = writing == kStages - 1 ? 0 : writing + 1;
  }
  cp_async_wait<0>();
  __syncthreads();

  // The ring's memory now serves to turn sums into pieces of rows, 16 rows of a warp at a time.
  using Sums = SumTile<S::kWarpN>;
  static_assert(S::kThreads / 32 * Sums::kFloats * 4 <= S::kRing);
  float* const staged = reinterpret_cast<float*>(shared) + warp * Sums::kFloats;
  const int piece = Sums::piece_of_lane();
  const int column = warp_n + piece * 8;
  alignas(16) float bias_here[8];  // a lane's columns stay the same
#pragma unroll
  for (int i = 0; i < 8; ++i) bias_here[i] = g.bias.data && p.splits == 1 ? bias[column + i] : 0.0f;
#pragma unroll 1  // what follows is long, and registers have no index: so only the choice of sums is unrolled
  for (int slice = 0; slice < kFragmentsM; ++slice) {
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i) {
      if (i != slice) continue;
#pragma unroll
      for (int j = 0; j < 2 * kFragmentsN; ++j) Sums::put(staged, j, sums[i][j]);
    }
    __syncwarp();
#pragma unroll 1
    for (int pass = 0; pass < Sums::kPasses; ++pass) {
      const int row = Sums::row_of_lane(pass);
      float v[8];
      Sums::get(staged, row, piece, v);
      hand_over<T>(g, p, at, v, bias_here, m0 + warp_m + slice * 16 + row, n0 + column);
    }
    __syncwarp();
  }
}

template <class T, class S, Order kOrderA, Order kOrderB>
void launch(const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  const auto kernel = gemm_tile<T, S, kOrderA, kOrderB>;
  allow_shared(kernel, S::kShared, "matmul");
  kernel<<<static_cast<unsigned>(p.tiles_m * p.tiles_n * p.splits * g.batch), S::kThreads, S::kShared, stream>>>(g, p);
  check_launch("matmul");
}

template <class T, class S, Order kOrderA>
void launch_b(const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  if (p.b_by_k)
    launch<T, S, kOrderA, Order::by_k>(g, p, stream);
  else
    launch<T, S, kOrderA, Order::by_row>(g, p, stream);
}

template <class T>
void launch_tensor(const GemmArgs& g, const GemmPlan& p, cudaStream_t stream) {
  if (p.kernel == GemmKernel::tensor_any) return launch<T, Any, Order::any, Order::any>(g, p, stream);
  // An a whose columns are adjacent is rare: one shape of tiles must do.
  if (!p.a_by_k) return launch_b<T, Medium, Order::by_row>(g, p, stream);
  if (p.kernel == GemmKernel::tensor_large) return launch_b<T, Large, Order::by_k>(g, p, stream);
  if (p.kernel == GemmKernel::tensor_medium) return launch_b<T, Medium, Order::by_k>(g, p, stream);
  return launch_b<T, Small, Order::by_k>(g, p, stream);
}

}  // namespace

void gemm_tensor(const GemmArgs& g, const GemmPlan& p, Stream stream_in) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_in);
  if (g.c.dtype == DType::f16)
    launch_tensor<__half>(g, p, stream);
  else
    launch_tensor<__nv_bfloat16>(g, p, stream);
}

}  // namespace qkv::cuda

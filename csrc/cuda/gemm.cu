// c = act(a b + bias) * gate + residual: which kernel, how the product is cut into blocks, and the sums of the splits of k added
// up. The kernels: gemm_sm90.cu, gemm_tensor.cu, gemm_skinny.cu, gemm_float.cu.
#include <algorithm>
#include <cstring>

#include "cuda/gemm_block.cuh"
#include "cuda/launch.cuh"

namespace qkv::cuda {
namespace {

// A tile that a block can make, and what that takes on an SM of Hopper, in cycles: a step along k of all the blocks that share
// the SM takes as long as their work, but never less than what one step must wait for; then come the ring's filling and the
// epilogue. Estimates, not measured yet: tiles of wgmma are bound by the 39 bytes a cycle that the L2 cache gives each SM; large
// and medium ones of mma.sync by it at 6.4 cycles, small ones by shared memory, float32 by its 128 multiply-adds a cycle. What
// `python -m bench cuda --sweep` measures belongs here.
struct Tile {
  GemmKernel kernel;
  int64_t m, n, k;  // of c, and of k in a step
  int64_t blocks;   // on an SM
  double step_cycles, block_cycles;
};
constexpr Tile kWgmmaTiles[] = {
    {GemmKernel::wgmma_large, 128, 256, 64, 1, 1270, 2500},
    {GemmKernel::wgmma_medium, 128, 128, 64, 2, 850, 1800},
    {GemmKernel::wgmma_small, 64, 128, 64, 2, 640, 1500},
};
constexpr Tile kTensorTiles[] = {
    {GemmKernel::tensor_large, 128, 256, 32, 1, 830, 2500},
    {GemmKernel::tensor_medium, 128, 128, 32, 2, 440, 2500},
    {GemmKernel::tensor_small, 64, 64, 32, 4, 200, 2500},
};
constexpr Tile kAnyTile = {GemmKernel::tensor_any, 64, 64, 32, 2, 1000, 2500};
constexpr Tile kFloatTiles[] = {
    {GemmKernel::float_large, 128, 128, 8, 2, 1150, 2500},
    {GemmKernel::float_small, 64, 64, 16, 4, 650, 2500},
};
constexpr double kLeastStepCycles = 350;  // latency: shared memory, mma, barrier
// A second kernel, and a float written and read for each sum and split.
constexpr double kMergeCycles = 5000, kMergeBytesPerCycle = 1500;
constexpr int64_t kLeastSplit = 256;  // of k
constexpr int64_t kMostSplits = 16;
constexpr uint32_t kTileGroup = 16;

// Of force_gemm.
constexpr struct {
  const char* name;
  GemmKernel kernel;
} kNames[] = {{"wgmma_large", GemmKernel::wgmma_large},
              {"wgmma_medium", GemmKernel::wgmma_medium},
              {"wgmma_small", GemmKernel::wgmma_small},
              {"tensor_large", GemmKernel::tensor_large},
              {"tensor_medium", GemmKernel::tensor_medium},
              {"tensor_small", GemmKernel::tensor_small},
              {"skinny", GemmKernel::skinny}};
struct {
  bool any = true;  // kernel
  GemmKernel kernel;
  int64_t splits = 0;
  uint32_t group = 0;
} forced;

bool aligned(const void* data, int64_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

// Whether rows (of `count`), `stride` apart, and the matrices of the batch begin at multiples of `unit` elements.
bool rows_aligned(const Strided4& x, int64_t batch, int64_t count, int64_t stride, int64_t unit) {
  return aligned(x.data, unit * size_of(x.dtype)) && (count <= 1 || stride % unit == 0) && (batch <= 1 || x.b % unit == 0);
}

int64_t up_to(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

void set_splits(const GemmArgs& g, GemmPlan* p, int64_t splits, int64_t k_unit) {
  p->k_split = std::max(up_to(ceil_div(g.k, splits), k_unit), k_unit);
  p->splits = static_cast<uint32_t>(std::max(ceil_div(g.k, p->k_split), int64_t{1}));
  p->pitch = up_to(g.n, 8);
}

double cycles(const GemmArgs& g, const Tile& tile, int64_t splits, int64_t multiprocessors) {
  const int64_t blocks = ceil_div(g.m, tile.m) * ceil_div(g.n, tile.n) * g.batch * splits;
  const int64_t on_one = ceil_div(blocks, multiprocessors);  // blocks on the SM that has most
  const double steps = static_cast<double>(ceil_div(ceil_div(g.k, splits), tile.k));
  const auto round = [&](int64_t together) {
    return together ? steps * std::max(static_cast<double>(together) * tile.step_cycles, kLeastStepCycles) + tile.block_cycles
                    : 0;
  };
  double all = static_cast<double>(on_one / tile.blocks) * round(tile.blocks) + round(on_one % tile.blocks);
  if (splits > 1) all += kMergeCycles + static_cast<double>(splits * g.batch * g.m * up_to(g.n, 8)) * 8 / kMergeBytesPerCycle;
  return all;
}

bool is_forced(const Tile* tiles, size_t count) {
  return !forced.any && std::any_of(tiles, tiles + count, [](const Tile& t) { return t.kernel == forced.kernel; });
}

void choose_tile(const GemmArgs& g, const Tile* tiles, size_t count, int64_t multiprocessors, GemmPlan* p) {
  const int64_t most = g.batch_invariant ? 1 : std::min(kMostSplits, std::max(g.k / kLeastSplit, int64_t{1}));
  const bool one = is_forced(tiles, count);
  double best = 0;
  for (size_t i = 0; i < count; ++i) {
    if (one && tiles[i].kernel != forced.kernel) continue;
    for (int64_t splits = 1; splits <= most; ++splits) {
      if (forced.splits && splits != std::min(forced.splits, most)) continue;
      const double c = cycles(g, tiles[i], splits, multiprocessors);
      if (best != 0 && c >= best) continue;
      best = c;
      p->kernel = tiles[i].kernel;
      p->tiles_m = static_cast<uint32_t>(ceil_div(g.m, tiles[i].m));
      p->tiles_n = static_cast<uint32_t>(ceil_div(g.n, tiles[i].n));
      set_splits(g, p, splits, tiles[i].k);
    }
  }
}

// Few rows. a and b must be such that lanes can load 16 bytes of b (8 or 4 of a) without looking.
bool skinny_fits(const GemmArgs& g, const GemmPlan& p) {
  const bool is_float = g.c.dtype == DType::f32;
  if (g.batch_invariant || !p.a_by_k || g.k == 0 || g.m > (is_float ? kSkinnyFloatRows : kSkinnyRows)) return false;
  const int64_t unit = is_float ? 4 : 8;
  if (p.b_by_k)
    return g.k % unit == 0 && rows_aligned(g.a, g.batch, g.m, g.a.s, unit) && rows_aligned(g.b, g.batch, g.n, g.b.d, unit);
  return g.n % unit == 0 && rows_aligned(g.b, g.batch, g.k, g.b.s, unit) &&
         (is_float || (g.k % 4 == 0 && rows_aligned(g.a, g.batch, g.m, g.a.s, 4)));
}

// All but the number of blocks depends on n and k alone.
void plan_skinny(const GemmArgs& g, int64_t multiprocessors, GemmPlan* p) {
  const SkinnyTile tile = skinny_tile(g, p->b_by_k);
  p->kernel = GemmKernel::skinny;
  p->tiles_m = static_cast<uint32_t>(ceil_div(g.m, tile.rows));
  p->tiles_n = static_cast<uint32_t>(ceil_div(g.n, tile.columns));
  // A block keeps enough of b under way for its SM. So k is split only where blocks are fewer than SMs, and where each still has
  // 128 KB to read, to be worth a second kernel.
  const int64_t bytes = tile.columns * g.k * size_of(g.c.dtype);
  const int64_t splits = std::min(multiprocessors / (int64_t{p->tiles_n} * g.batch), bytes / (128 << 10));
  set_splits(g, p, std::clamp(splits, int64_t{1}, kMostSplits), tile.k_step);
  const bool many = int64_t{p->tiles_n} * g.batch > 2 * multiprocessors;
  p->threads = static_cast<uint32_t>(32 * skinny_warps(p->k_split, tile.k_step, many));
}

// c from the float sums of the splits, added in their order: a thread a piece of a row.
template <class T>
__global__ void __launch_bounds__(128) gemm_merge(const __grid_constant__ GemmArgs g, const __grid_constant__ GemmPlan p) {
  begin_dependent();
  const uint32_t pieces = static_cast<uint32_t>((g.n + kPiece<T> - 1) / kPiece<T>);
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, row_of_all = i / pieces;
  const int64_t column = int64_t{i % pieces} * kPiece<T>;
  const uint32_t batch = row_of_all / static_cast<uint32_t>(g.m), row = row_of_all % static_cast<uint32_t>(g.m);
  if (batch >= g.batch) return;
  float v[kPiece<T>] = {};
#pragma unroll 4
  for (uint32_t split = 0; split < p.splits; ++split) {
#pragma unroll
    for (int j = 0; j < kPiece<T>; j += 4) {
      const float4 more = *partial_sums<T>(g, p, split, batch, row, column, j / 4);
      v[j] += more.x;
      v[j + 1] += more.y;
      v[j + 2] += more.z;
      v[j + 3] += more.w;
    }
  }
  alignas(16) float bias[kPiece<T>];
  const int count = static_cast<int>(min(g.n - column, int64_t{kPiece<T>}));
  if (g.bias.data) {
#pragma unroll
    for (int j = 0; j < kPiece<T>; ++j) bias[j] = j < count ? load_float(g.bias.data, g.bias.dtype, column + j) : 0.0f;
  }
  finish<T>(g, v, bias, batch, row, column, count, reinterpret_cast<T*>(g.c.data) + batch * g.c.b + row * g.c.s + column);
}

// Whether TMA can address rows (of `count` elements), `stride` apart, and the matrices of the batch, or one matrix for all of
// them.
bool tma_fits(const GemmArgs& g, const Strided4& x, int64_t rows, int64_t count, int64_t stride) {
  return aligned(x.data, 16) && (rows <= 1 || (stride % 8 == 0 && stride >= count)) &&
         (g.batch <= 1 || (x.b % 8 == 0 && x.b >= 0));
}

// The products of gemm_sm90.cu. What stays with gemm_tensor.cu on Hopper too: a with rows adjacent; operands that are not aligned
// to 16 bytes, or whose rows overlap, as those of something broadcast; a gate or residual like that, or whose columns are not
// adjacent; both a gate and a residual. c may be anything. And with batch_invariant everything does, because how rows lie in
// memory decides between two kinds of tensor instructions here, which need not round alike, and of one row that is not known.
bool wgmma_fits(const GemmArgs& g, const GemmPlan& p) {
  if (g.c.dtype == DType::f32 || g.batch_invariant || !p.a_by_k || g.k == 0 ||
      std::max({g.m, g.n, g.k, g.batch}) > INT32_MAX - 256)
    return false;
  if (!tma_fits(g, g.a, g.m, g.k, g.a.s)) return false;
  if (!(p.b_by_k ? tma_fits(g, g.b, g.n, g.k, g.b.d) : tma_fits(g, g.b, g.k, g.n, g.b.s))) return false;
  if (g.gate.data && g.residual.data) return false;
  const Strided4& other = g.gate.data ? g.gate : g.residual;
  return !other.data || ((g.n == 1 || other.d == 1) && tma_fits(g, other, g.m, g.n, other.s));
}

GemmDevice device_here() { return {device_attribute(cudaDevAttrMultiProcessorCount), is_hopper()}; }

}  // namespace

bool force_gemm(const char* kernel, int64_t splits, int64_t group) {
  for (const auto& known : kNames)
    if (!*kernel || std::strcmp(known.name, kernel) == 0) {
      forced = {!*kernel, known.kernel, splits, static_cast<uint32_t>(group)};
      return true;
    }
  return false;
}

GemmPlan plan_gemm(const GemmArgs& g, const GemmDevice& device) {
  const int multiprocessors = device.multiprocessors;
  GemmPlan p{};
  p.a_by_k = g.a.d == 1;
  p.b_by_k = g.b.s == 1;
  p.group = forced.group ? forced.group : kTileGroup;
  if (skinny_fits(g, p) && (forced.any || forced.kernel == GemmKernel::skinny)) {
    plan_skinny(g, multiprocessors, &p);
    return p;
  }
  const Tile* tiles = kTensorTiles;
  size_t count = std::size(kTensorTiles);
  if (device.hopper && wgmma_fits(g, p) && !is_forced(tiles, count)) {
    choose_tile(g, kWgmmaTiles, std::size(kWgmmaTiles), multiprocessors, &p);
    return p;
  }
  if (g.c.dtype == DType::f32) {
    tiles = kFloatTiles;
    count = std::size(kFloatTiles);
  } else if (!(rows_aligned(g.a, g.batch, p.a_by_k ? g.m : g.k, p.a_by_k ? g.a.s : g.a.d, 8) &&
               rows_aligned(g.b, g.batch, p.b_by_k ? g.n : g.k, p.b_by_k ? g.b.d : g.b.s, 8))) {
    tiles = &kAnyTile;
    count = 1;
  }
  if (!p.a_by_k && count > 1) {  // rare: there is one shape of tiles for it
    ++tiles;
    count = 1;
  }
  choose_tile(g, tiles, count, multiprocessors, &p);
  return p;
}

size_t gemm_workspace(const GemmArgs& g, const GemmPlan& p) {
  return p.splits > 1 ? p.splits * g.batch * g.m * p.pitch * sizeof(float) : 0;
}

void gemm(const GemmArgs& args, const GemmPlan& p, Stream stream_in) {
  // Strides along what there is one of may be anything, and loads that read nothing still want an aligned address.
  GemmArgs g = args;
  if (g.m == 1) g.a.s = 0;
  if (g.n == 1) g.b.d = 0;
  if (g.k == 1) g.a.d = g.b.s = 0;
  if (g.batch == 1) g.a.b = g.b.b = 0;
  if (p.kernel != GemmKernel::skinny && p.k_split > INT32_MAX)  // tiles count what is left of k in 32 bits
    throw Error(cudaErrorInvalidValue, "matmul: an inner dimension of 2^31 or more");
  if (int64_t{p.tiles_m} * p.tiles_n * p.splits > INT32_MAX / g.batch)
    throw Error(cudaErrorInvalidValue, "matmul: more than 2^31 tiles of results in a call");
  switch (p.kernel) {
    case GemmKernel::skinny:
      gemm_skinny(g, p, stream_in);
      break;
    case GemmKernel::float_large:
    case GemmKernel::float_small:
      gemm_float(g, p, stream_in);
      break;
    case GemmKernel::wgmma_large:
    case GemmKernel::wgmma_medium:
    case GemmKernel::wgmma_small:
      gemm_wgmma(g, p, stream_in);
      break;
    default:
      gemm_tensor(g, p, stream_in);
  }
  if (p.splits == 1) return;
  with_dtype(g.c.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t pieces = g.batch * g.m * ceil_div(g.n, int64_t{kPiece<T>});
    launch_dependent("matmul", gemm_merge<T>, static_cast<unsigned>(ceil_div(pieces, int64_t{128})), 128, 0, stream_in, g, p);
  });
}

size_t gemm_workspace(const GemmArgs& g) {
  if (g.batch == 0 || g.m == 0 || g.n == 0) return 0;
  return gemm_workspace(g, plan_gemm(g, device_here()));
}

void gemm(const GemmArgs& g, Stream stream) {
  if (g.batch == 0 || g.m == 0 || g.n == 0) return;
  gemm(g, plan_gemm(g, device_here()), stream);
}

}  // namespace qkv::cuda

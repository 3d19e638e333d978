// c (m, n) = act(a (m, k) w^T + bias) * gate + residual for weights of 8 and 4 bits, which stay packed until they are in
// registers: which kernel, into what parts, and the sums of the parts of k added up. Up to 8 rows, and in float32, they are read
// at the speed of memory: gemm_quantized_few.cu. More make tiles: gemm_quantized_tile.cu, where with batch_invariant all go.
#include <algorithm>

#include "cuda/gemm_quantized.cuh"
#include "cuda/launch.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = 256;

// Adds up the parts of k, first to last.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ QuantizedProduct p) {
  begin_dependent();
  const int64_t width = n_padded(p.w);
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  const int64_t row = i / width, n = i % width;
  if (row >= p.m || n >= p.w.n) return;
  float values[8] = {};
  for (int split = 0; split < p.splits; ++split)
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      float part[4];
      to_floats(load16(partial_sums(p, split, row) + n + j), part);
#pragma unroll
      for (int e = 0; e < 4; ++e) values[j + e] += part[e];
    }
  alignas(16) float bias[8], scales[8];
  const auto load = [&](const Vector& from, float* to) {
    if (from.data)
#pragma unroll
      for (int j = 0; j < 8; ++j) to[j] = n + j < p.w.n ? load_float(from.data, from.dtype, n + j) : 0;
  };
  load(p.bias, bias);
  load({p.w.row_scale, DType::f32}, scales);
  finish_piece<T>(p, values, scales, bias, row, n);
}

// Rows of a that are not whole, aligned pieces of 16 bytes are copied to where they are, with zeros at their ends.
template <class T>
__global__ void __launch_bounds__(kThreads) pad_kernel(const T* a, int64_t a_row, int64_t m, int64_t k, int64_t k_padded, T* to) {
  begin_dependent();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t row = i / k_padded, column = i % k_padded;
  if (row < m) to[i] = column < k ? a[row * a_row + column] : from_float<T>(0);
}

// How a product is cut up.
struct Plan {
  int rows;               // of a in a block
  bool few_rows;          // the first kernel
  int splits;             // of k
  bool pad;               // a's rows are copied first
  int64_t k;              // of what is read as a
  size_t a_bytes, bytes;  // of workspace: the copy, and all
};

// 2 for each of 132 multiprocessors, which hide each other's beginnings and ends. The multiprocessors there are do not count, so
// that results are the same on every GPU.
constexpr int64_t kBlocksWanted = 264;
constexpr int kMostSplits = 8, kFewestChunks = 4;  // to a split; estimates: beyond them adding up costs more than it brings

Plan plan_of(const QuantizedGemmArgs& args) {
  const Records w = records_of(args.w);
  const int64_t size = size_of(args.a.dtype), m = args.m;
  Plan plan{};
  const bool is_float = args.a.dtype == DType::f32;
  plan.few_rows = is_float || (m <= kFewRows && !args.batch_invariant);
  if (plan.few_rows)
    plan.rows = is_float && m == 1 ? 1 : kFewRows;
  else
    plan.rows = m <= 16 ? 16 : m <= 32 ? 32 : m <= 64 ? 64 : 128;

  plan.splits = 1;
  if (!plan.few_rows) {
    const int64_t row_blocks = args.batch_invariant ? 1 : ceil_div<int64_t>(m, plan.rows);
    const int64_t blocks = ceil_div<int64_t>(w.n, kTileColumns) * row_blocks;
    const int64_t wanted = plan.rows == 128 && !args.batch_invariant ? kBlocksWanted / 2 : kBlocksWanted;
    plan.splits =
        static_cast<int>(std::clamp<int64_t>(std::min<int64_t>(wanted / blocks, w.chunks / kFewestChunks), 1, kMostSplits));
  }

  const bool whole = (m <= 1 || args.a.s * size % 16 == 0) && reinterpret_cast<uintptr_t>(args.a.data) % 16 == 0 && w.k % 8 == 0;
  plan.pad = w.k > 0 && !whole;  // rows of nothing lie anywhere
  plan.k = plan.pad ? ceil_div<int64_t>(w.k, 8) * 8 : w.k;
  if (plan.pad) plan.a_bytes = ceil_div<int64_t>(m * plan.k * size, 16) * 16;
  plan.bytes = plan.a_bytes + (plan.splits > 1 ? plan.splits * m * n_padded(w) * sizeof(float) : 0);
  return plan;
}

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>(ceil_div<int64_t>(threads, kThreads)); }

}  // namespace

size_t gemm_quantized_workspace(const QuantizedGemmArgs& args) { return args.m && args.w.n ? plan_of(args).bytes : 0; }

void gemm_quantized(const QuantizedGemmArgs& args, Stream stream_) {
  if (!args.m || !args.w.n) return;
  if (args.w.k > INT32_MAX) throw Error(cudaErrorInvalidValue, "linear: an inner dimension of 2^31 or more");
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const Plan plan = plan_of(args);
  QuantizedProduct p{
      args, records_of(args.w), args.a.data, args.c.data, args.a.s, args.c.s, args.m, plan.k, nullptr, plan.splits, plan.rows, 0};
  p.row_blocks = static_cast<unsigned>(ceil_div<int64_t>(p.m, plan.rows));
  char* workspace = static_cast<char*>(args.workspace);
  if (plan.splits > 1) p.partial = reinterpret_cast<float*>(workspace + plan.a_bytes);
  with_dtype(args.a.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (plan.pad) {
      launch_dependent("linear", pad_kernel<T>, blocks_for(p.m * p.k), kThreads, 0, stream, static_cast<const T*>(p.a), p.a_row,
                       p.m, p.w.k, p.k, reinterpret_cast<T*>(workspace));
      p.a = workspace;
      p.a_row = p.k;
    }
    if (plan.few_rows) return gemm_quantized_few(p, args.a.dtype, args.w.type, stream);
    gemm_quantized_tile(p, args.a.dtype, args.w.type, stream);
    if constexpr (kIs16Bit<T>)
      if (p.partial) launch_dependent("linear", merge_kernel<T>, blocks_for(p.m * n_padded(p.w) / 8), kThreads, 0, stream, p);
  });
}

}  // namespace qkv::cuda

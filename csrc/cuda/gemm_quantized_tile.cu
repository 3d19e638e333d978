// c = act(a w^T + bias) * gate + residual in bfloat16 and float16, w of 8 or 4 bits: tiles of 16 ... 128 rows of a by 128 of w.
//
// Both come to shared memory by cp.async, the weights packed. They are widened, rounded once, as they are loaded for mma.sync
// (with the weight as its operand a), which runs as in any product. Parts of k go to different blocks where tiles are too few to
// fill the GPU, and leave float sums. A row's sums depend on k, group and the parts of k only, not on the tile.
#include <algorithm>

#include "cuda/gemm_quantized.cuh"
#include "cuda/launch.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = kQuantizedThreads;
constexpr int kTileRecords = kTileColumns / kRecordRows;
constexpr int kSumsColumn = kTileColumns + 4;  // floats between two rows of sums: no bank conflicts as mma's lanes write them
constexpr int kVectorBytes = 2 * kTileColumns * sizeof(float);  // bias and row scales

// Stages that fit into the 99 KB of sm_86, at most 4.
template <class Format, int kRows>
constexpr int kTileStages = [] {
  constexpr int bytes = kRows * Format::kChunk * 2 + kTileRecords * (kValueBytes + scale_bytes_of<Format>(32));
  constexpr int fit = (99 * 1024 - kVectorBytes) / bytes;
  return fit < 4 ? fit : 4;
}();

template <class T, class Format, int kRows>
size_t tile_bytes(const Records& w) {
  const size_t stage = kRows * Format::kChunk * sizeof(T) + kTileRecords * w.bytes;
  const size_t sums = kRows * kSumsColumn * sizeof(float);
  return kVectorBytes + std::max(kTileStages<Format, kRows> * stage, sums);
}

// Rows row0 ... + kRows of c, 128 columns. Warps form a grid of (8 / kAcross, kAcross) over (columns, rows of a): with kAcross =
// 2 each widens weights for half the rows, twice the widening for half the reads of a.
template <class T, class Format, int kRows, int kAcross>
__global__ void __launch_bounds__(kThreads, kRows == 128 ? 1 : 2) tile_kernel(const __grid_constant__ QuantizedProduct p) {
  extern __shared__ __align__(16) char all_shared[];
  float *bias = reinterpret_cast<float*>(all_shared), *scales = bias + kTileColumns;
  char* shared = all_shared + kVectorBytes;
  constexpr int kWarpRecords = kAcross, kWarpRows = kRows / kAcross, kRowTiles = kWarpRows / 8;
  constexpr int kPieces = Format::kChunk * 2 / 16;  // of 16 bytes, in a row of a chunk of a
  constexpr int kARow = kPieces * 16, kABytes = kRows * kARow;
  constexpr int kStages = kTileStages<Format, kRows>;

  const int warp = threadIdx.x / 32, lane = lane_id(), g = lane / 4, t = lane % 4;
  const unsigned tile0 = blockIdx.x / p.row_blocks * kTileRecords, row0 = blockIdx.x % p.row_blocks * kRows;
  const int first = static_cast<int>(static_cast<int64_t>(p.w.chunks) * blockIdx.y / p.splits);
  const int end = static_cast<int>(static_cast<int64_t>(p.w.chunks) * (blockIdx.y + 1) / p.splits);
  const int bytes = p.w.bytes, stage_bytes = kABytes + kTileRecords * bytes;

  // Warp i copies record i. Of a, a thread copies the same piece of several rows. Beyond the last record and row the last is
  // copied once more; what comes of it is not stored. Pieces of odd rows have their blocks exchanged pairwise: the 8 lanes that
  // read 128 bytes at a time are two rows by one block.
  const char* record_from = record_at(p.w, min(int64_t{tile0} + warp, p.w.tiles - 1), first) + lane * 16;
  const int piece = threadIdx.x % kPieces, a_first = threadIdx.x / kPieces;
  const uint32_t a_to = a_first * kARow + (piece ^ (a_first & 1) << 2) * 16;
  static_assert(kThreads / kPieces % 2 == 0);
  const T* a = static_cast<const T*>(p.a);
  const uint32_t base = shared_address(shared);
  const auto copy = [&](int chunk, int slot) {
    if (chunk < end) {
      const uint32_t stage = base + slot * stage_bytes;
      const uint32_t to = stage + kABytes + warp * bytes + lane * 16;
      cp_async16(to, record_from);
      cp_async16(to + 512, record_from + 512);
      if (lane * 16 < bytes - kValueBytes) cp_async16(to + kValueBytes, record_from + kValueBytes);
      record_from += bytes;
      const int64_t k = static_cast<int64_t>(chunk) * Format::kChunk + piece * 8;
      const int source_bytes = k < p.k ? 16 : 0;
      const T* a_from = a + (k < p.k ? k : 0);
#pragma unroll
      for (int r = 0; r < kRows; r += kThreads / kPieces) {
        if (kRows < kThreads / kPieces && a_first >= kRows) break;
        cp_async16(stage + a_to + r * kARow, a_from + min(int64_t{row0} + a_first + r, p.m - 1) * p.a_row, source_bytes);
      }
    }
    cp_async_commit();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) copy(first + i, i);
  bias_to_shared(p.bias, int64_t{tile0} * kRecordRows, p.w.n, kTileColumns, bias);
  bias_to_shared({p.w.row_scale, DType::f32}, int64_t{tile0} * kRecordRows, p.w.n, kTileColumns, scales);

  const int record0 = warp / kAcross * kWarpRecords, warp_row0 = warp % kAcross * kWarpRows;
  float sums[kWarpRecords][kRowTiles][4] = {};
  int slot = 0;
  for (int chunk = first; chunk < end; ++chunk) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    copy(chunk + kStages - 1, slot ? slot - 1 : kStages - 1);
    const char* stage = shared + slot * stage_bytes;
    const char* records = stage + kABytes + record0 * bytes;
    uint4 q[kWarpRecords][2];
#pragma unroll
    for (int i = 0; i < kWarpRecords; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) q[i][h] = load16(records + i * bytes + h * 512 + lane * 16);
    const char* x = stage + (warp_row0 + g) * kARow;
#pragma unroll
    for (int b = 0; b < Format::kBlocks; ++b) {
      uint4 fragments[kRowTiles];
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) fragments[j] = load16(x + j * 8 * kARow + ((b * 4 + t) ^ (g & 1) << 2) * 16);
#pragma unroll
      for (int i = 0; i < kWarpRecords; ++i) {
        uint32_t wide[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const __half2 scale =
              p.w.group ? scales_at<Format>(records + i * bytes, b >> p.w.shift, g + 8 * h) : __floats2half2_rn(1, 0);
          widen<Format>(block_of<Format>(q[i][h], b), Scale<T>::template of<Format>(scale), wide[h]);
        }
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          uint32_t w[4];
          fragment(wide[0], wide[1], step, w);
#pragma unroll
          for (int j = 0; j < kRowTiles; ++j)
            mma_16816<T>(sums[i][j], w, step ? fragments[j].z : fragments[j].x, step ? fragments[j].w : fragments[j].y);
        }
      }
    }
    slot = slot + 1 == kStages ? 0 : slot + 1;
  }

  cp_async_wait<0>();
  __syncthreads();  // the stages become (rows of a, columns of c)
  float* staged = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < kWarpRecords; ++i)
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        staged[(warp_row0 + j * 8 + 2 * t + (e & 1)) * kSumsColumn + (record0 + i) * 16 + g + (e < 2 ? 0 : 8)] = sums[i][j][e];
  __syncthreads();
  if (p.partial) {
    for (int i = threadIdx.x; i < kRows * (kTileColumns / 4); i += kThreads) {
      const int row = i / (kTileColumns / 4), column = i % (kTileColumns / 4) * 4;
      const int64_t n = int64_t{tile0} * kRecordRows + column;
      if (row0 + row < p.m && n < n_padded(p.w))
        store16(partial_sums(p, blockIdx.y, row0 + row) + n, load16(staged + row * kSumsColumn + column));
    }
    return;
  }
  for (int i = threadIdx.x; i < kRows * (kTileColumns / 8); i += kThreads) {
    const int row = i / (kTileColumns / 8), column = i % (kTileColumns / 8) * 8;
    const int64_t n = int64_t{tile0} * kRecordRows + column;
    if (row0 + row >= p.m || n >= p.w.n) continue;
    // 8 lanes read at a time: four the lower, four the upper half of their 8 sums, which are all banks.
    const float* from = staged + row * kSumsColumn + column;
    const bool upper_first = lane & 4;
    const uint4 first = load16(from + (upper_first ? 4 : 0)), second = load16(from + (upper_first ? 0 : 4));
    float values[8];
    to_floats(upper_first ? second : first, values);
    to_floats(upper_first ? first : second, values + 4);
    finish_piece<T>(p, values, scales + column, bias + column, row0 + row, n);
  }
}

template <class T, class Format, int kRows, int kAcross>
void launch(const QuantizedProduct& p, cudaStream_t stream) {
  const size_t bytes = tile_bytes<T, Format, kRows>(p.w);
  const auto kernel = tile_kernel<T, Format, kRows, kAcross>;
  allow_shared(kernel, bytes, "linear");
  const dim3 blocks(static_cast<unsigned>(ceil_div<int64_t>(p.w.tiles, kTileRecords) * p.row_blocks), p.splits);
  kernel<<<blocks, kThreads, bytes, stream>>>(p);
}

template <class T, class Format>
void launch(const QuantizedProduct& p, cudaStream_t stream) {
  switch (p.rows) {
    case 16:
      return launch<T, Format, 16, 1>(p, stream);
    case 32:
      return launch<T, Format, 32, 1>(p, stream);
    case 64:
      return launch<T, Format, 64, 2>(p, stream);
    default:
      return launch<T, Format, 128, 2>(p, stream);
  }
}

}  // namespace

void gemm_quantized_tile(const QuantizedProduct& p, DType dtype, WeightType type, Stream stream) {
  with_format(type, [&](auto format) {
    using Format = decltype(format);
    if (dtype == DType::f16)
      launch<__half, Format>(p, static_cast<cudaStream_t>(stream));
    else
      launch<__nv_bfloat16, Format>(p, static_cast<cudaStream_t>(stream));
  });
  check_launch("linear");
}

}  // namespace qkv::cuda

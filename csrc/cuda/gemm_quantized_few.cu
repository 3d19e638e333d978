// c = act(a w^T + bias) * gate + residual for few rows of a, w of 8 or 4 bits (float32: for any number).
//
// A block has 16 or 32 rows of the weight, its warps take turns at the chunks along k. What a weight costs is reading it, so
// warps only stream records (quantized.cuh) and multiply codes as they are, by mma.sync with the weight as operand a and rows of
// a as the 8 columns of b; a group's sum is scaled once: sum += scale_g sum_k(q a) + offset_g sum_k(a), in float. The sum of a
// comes from one more mma, by ones. Tensor cores for a single row look like waste, but one mma replaces 8 FMAs of each lane, and
// widening 8 weights to float for those takes longer than that.
//
// Blocks are as many as run at a time, and take one piece of 16 or 32 rows after the other. The copies of the next piece are
// under way while the sums of the last are added up; blocks of one piece, which live for 10 microseconds, would leave memory idle
// at their beginning and end.
#include <algorithm>

#include "cuda/gemm_quantized.cuh"
#include "cuda/room.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = kQuantizedThreads, kWarps = kQuantizedWarps;
constexpr int kRing = 4;          // chunks a warp has under way, one of them in use
constexpr int kSumsRow = 16 + 4;  // floats between the sums of two rows of a: no bank conflicts as mma's lanes write them

// Bytes of its first piece that a block asks of memory while the kernel before ends, as in gemm_skinny.cu.
constexpr int64_t kPrefetched = 64 << 10;

// 16 rows each of kTiles tiles of the weight by 8 of a: what a lane accumulates, laid out as mma's d.
template <class T, class Format, int kGroup, int kTiles>
struct MmaSums {
  float total[kTiles][4] = {};

  // The records of the tiles are kBytes apart. x: per block, 8 neighbours along k of this lane's row of a.
  template <int kBytes>
  QKV_DEVICE void add(const char* records, const uint4 (&x)[Format::kBlocks]) {
    constexpr int kGroupBlocks = kGroup ? kGroup / kBlock : Format::kBlocks;
    const int lane = lane_id(), g = lane / 4;
    uint4 q[kTiles][2];
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) q[i][h] = load16(records + i * kBytes + h * 512 + lane * 16);
#pragma unroll
    for (int first = 0; first < Format::kBlocks; first += kGroupBlocks) {
      float of_a[4] = {};
      if constexpr (Format::kOffset) {
        const uint32_t one = pack2<T>(1, 1), ones[4] = {one, one, one, one};
#pragma unroll
        for (int b = first; b < first + kGroupBlocks; ++b) {
          mma_16816<T>(of_a, ones, x[b].x, x[b].y);
          mma_16816<T>(of_a, ones, x[b].z, x[b].w);
        }
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        float of_group[4] = {};
        float (&sums)[4] = kGroup ? of_group : total[i];
#pragma unroll
        for (int b = first; b < first + kGroupBlocks; ++b) {
          uint32_t low[4], high[4], w[4];
          codes<Format, T>(block_of<Format>(q[i][0], b), low);
          codes<Format, T>(block_of<Format>(q[i][1], b), high);
          fragment(low, high, 0, w);
          mma_16816<T>(sums, w, x[b].x, x[b].y);
          fragment(low, high, 1, w);
          mma_16816<T>(sums, w, x[b].z, x[b].w);
        }
        if constexpr (kGroup != 0) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float2 s = __half22float2(scales_at<Format>(records + i * kBytes, first / kGroupBlocks, g + 8 * h));
            const float offset = fmaf(-kAbove<Format>, s.x, s.y);
#pragma unroll
            for (int j = 2 * h; j < 2 * h + 2; ++j) {
              total[i][j] = fmaf(s.x, sums[j], total[i][j]);
              if constexpr (Format::kOffset) total[i][j] = fmaf(offset, of_a[j & 1], total[i][j]);
            }
          }
        }
      }
    }
  }
};

// The same in float32, where a lane has rows g and g + 8 of the weight and all rows of a, but only its 8 of each 32 along k.
template <class Format, int kGroup, int kRows>
struct FloatSums {
  float total[2][kRows] = {};

  // Of a, `left` are left along k from where x is.
  QKV_DEVICE void add(const char* record, const float* const (&x)[kRows], int left) {
    const int lane = lane_id(), g = lane / 4;
    const uint4 q[2] = {load16(record + lane * 16), load16(record + 512 + lane * 16)};
#pragma unroll
    for (int b = 0; b < Format::kBlocks; ++b) {
      if (b * kBlock >= left) return;
      float w[2][8];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float2 scale = make_float2(1, 0);
        if constexpr (kGroup != 0) scale = __half22float2(scales_at<Format>(record, b * kBlock / kGroup, g + 8 * h));
        widen<Format>(block_of<Format>(q[h], b), scale, w[h]);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
          const float4 v = *reinterpret_cast<const float4*>(x[r] + b * kBlock + i);
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float& sum = total[h][r];
            sum = fmaf(w[h][i], v.x, sum);
            sum = fmaf(w[h][i + 1], v.y, sum);
            sum = fmaf(w[h][i + 2], v.z, sum);
            sum = fmaf(w[h][i + 3], v.w, sum);
          }
        }
    }
  }
};

// Codes are larger than weights. What the groups' sums make of an infinity may be infinities of two signs, of codes and offset,
// where the weight is but a number; and those of huge activations overflow where sums of weights do not. So a sum that is not
// finite is taken again, one weight after the other.
template <class T, class Format>
QKV_DEVICE float sum_one_by_one(const QuantizedProduct& p, int64_t row, int64_t n) {
  const T* x = static_cast<const T*>(p.a) + row * p.a_row;
  const int in_tile = static_cast<int>(n % kRecordRows);
  float sum = 0;
#pragma unroll 1
  for (int64_t k = 0; k < p.k; k += 8) {
    const char* record = record_at(p.w, n / kRecordRows, static_cast<int>(k / Format::kChunk));
    const int b = static_cast<int>(k % Format::kChunk) / kBlock, t = static_cast<int>(k % kBlock) / 8;
    float w[8];
    widen<Format>(block_at<Format>(record, in_tile, b, t), __half22float2(scales_at<Format>(record, b >> p.w.shift, in_tile)), w);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(w[i], to_float(x[k + i]), sum);
  }
  return sum;
}

// On a multiprocessor whose shared memory has room for them.
template <class T, int kRows>
constexpr int kBlocks = kIs16Bit<T> || kRows == 1 ? 2 : 1;

// kRows rows of c by kTiles times 16 columns at a time. Of these warp i has chunks i, i + 8, ...
template <class T, class Format, int kGroup, int kRows, int kTiles>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kRows>)
    few_rows_kernel(const __grid_constant__ QuantizedProduct p, unsigned pieces) {
  extern __shared__ __align__(16) char shared[];
  constexpr int kBytes = kValueBytes + scale_bytes_of<Format>(kGroup), kSlot = kTiles * kBytes;
  constexpr bool kMma = kIs16Bit<T>;
  const int warp = threadIdx.x / 32, lane = lane_id(), g = lane / 4, t = lane % 4;

  grid_dependency_launch();
  if (threadIdx.x == 0 && p.w.chunks > 0) {
    const int64_t tile = int64_t{blockIdx.x / p.row_blocks} * kTiles, tiles = min(p.w.tiles - tile, int64_t{kTiles});
    prefetch_l2(record_at(p.w, tile, 0), min(tiles * p.w.chunks * kBytes, kPrefetched));
  }
  grid_dependency_wait();

  // Every lane copies what it will read itself, but for the scales; so a warp needs no block-wide barrier, and shared memory only
  // makes up for registers: enough chunks under way to cover the latency of memory. A second tile beyond the last is the first
  // again.
  const char* const ring = shared + warp * kRing * kSlot;
  const uint32_t ring_address = shared_address(ring) + lane * 16;
  constexpr int kStep = kWarps * Format::kChunk;
  const int own_k = static_cast<int>(p.k) - warp * Format::kChunk;  // of a along k, from this warp's first chunk on
  unsigned copied = blockIdx.x;                                     // piece
  const char* from = nullptr;
  int64_t next_tile = 0;
  int to_copy = 0;
  const auto begin_copy = [&] {
    if (copied >= pieces) return;
    const unsigned tile = copied / p.row_blocks * kTiles;
    from = record_at(p.w, tile, warp) + lane * 16;
    next_tile = tile + 1 < p.w.tiles ? int64_t{p.w.chunks} * kBytes : 0;
    to_copy = own_k;
  };
  const auto copy = [&](int slot) {  // in bytes
    if (to_copy > 0) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const uint32_t to = ring_address + slot + i * kBytes;
        const char* record = from + i * next_tile;
        cp_async16(to, record);
        cp_async16(to + 512, record + 512);
        if (kGroup && lane * 16 < kBytes - kValueBytes) cp_async16(to + kValueBytes, record + kValueBytes);
      }
      from += kWarps * kBytes;
      to_copy -= kStep;
      if (to_copy <= 0) {
        copied += gridDim.x;
        begin_copy();
      }
    }
    cp_async_commit();
  };
  begin_copy();
#pragma unroll
  for (int i = 0; i < kRing - 1; ++i) copy(i * kSlot);

  int slot = 0;
#pragma unroll 1
  for (unsigned piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const unsigned tile = piece / p.row_blocks * kTiles, row0 = piece % p.row_blocks * kRows;
    std::conditional_t<kMma, MmaSums<T, Format, kGroup, kTiles>, FloatSums<Format, kGroup, kRows>> sums;
    // Beyond a's last row the last is read again; what comes of it is not stored.
    const T* x[kMma ? 1 : kRows];
#pragma unroll
    for (int r = 0; r < (kMma ? 1 : kRows); ++r)
      x[r] = static_cast<const T*>(p.a) + min(int64_t{row0} + (kMma ? g : r), p.m - 1) * p.a_row + warp * Format::kChunk + 8 * t;

#pragma unroll 1
    for (int left = own_k; left > 0; left -= kStep) {
      uint4 fragments[kMma ? Format::kBlocks : 1];
      if constexpr (kMma) {
#pragma unroll
        for (int b = 0; b < Format::kBlocks; ++b)
          fragments[b] = b * kBlock + 8 * t < left ? load16(x[0] + b * kBlock) : make_uint4(0, 0, 0, 0);
      }
      cp_async_wait<kRing - 2>();
      __syncwarp();
      copy(slot ? slot - kSlot : (kRing - 1) * kSlot);
      if constexpr (kMma)
        sums.template add<kBytes>(ring + slot, fragments);
      else
        sums.add(ring + slot, x, left - 8 * t);
#pragma unroll
      for (const T*& row : x) row += kStep;
      slot = slot == (kRing - 1) * kSlot ? 0 : slot + kSlot;
    }

    __syncthreads();  // all have read the sums of the piece before: (warps, tiles, rows of a, columns of c)
    float* all_sums = reinterpret_cast<float*>(shared + kWarps * kRing * kSlot);
    float* own_sums = all_sums + warp * kTiles * kRows * kSumsRow;
    if constexpr (kMma) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) own_sums[(i * kRows + 2 * t + (j & 1)) * kSumsRow + g + (j < 2 ? 0 : 8)] = sums.total[i][j];
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float sum = warp_sum<4>(sums.total[h][r]);
          if (t == 0) own_sums[r * kSumsRow + g + 8 * h] = sum;
        }
    }
    __syncthreads();
    const int column = threadIdx.x % kRecordRows, tile_row = threadIdx.x / kRecordRows;
    const int64_t row = int64_t{row0} + tile_row % kRows, n = (int64_t{tile} + tile_row / kRows) * kRecordRows + column;
    if (tile_row < kTiles * kRows && row < p.m && n < p.w.n) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) sum += all_sums[(i * kTiles * kRows + tile_row) * kSumsRow + column];
      if constexpr (kMma && kGroup != 0)
        if (!isfinite(sum)) sum = sum_one_by_one<T, Format>(p, row, n);
      finish_one<T>(p, sum, row, n);
    }
  }
}

template <class T, class Format, int kGroup, int kRows, int kTiles>
void launch(const QuantizedProduct& p, cudaStream_t stream) {
  const int bytes = kWarps * kTiles * (kRing * p.w.bytes + kRows * kSumsRow * 4);
  const auto kernel = few_rows_kernel<T, Format, kGroup, kRows, kTiles>;
  allow_shared(kernel, bytes, "linear");
  const int64_t pieces = ceil_div<int64_t>(p.w.tiles, kTiles) * p.row_blocks;
  const int64_t room = int64_t{blocks_that_fit(bytes, kBlocks<T, kRows>)} * device_attribute(cudaDevAttrMultiProcessorCount);
  const int64_t blocks = std::min(pieces, room);
  launch_dependent("linear", kernel, static_cast<unsigned>(blocks), kThreads, bytes, stream, p, static_cast<unsigned>(pieces));
}

// With two tiles a warp reads a half as often, and adds it up once for both, which 4 bits need to keep up with memory; if there
// are blocks enough for most multiprocessors to have two.
constexpr int64_t kTilesForTwo = 2 * 200;

template <class T, class Format, int kGroup>
void launch(const QuantizedProduct& p, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, float>)
    p.rows == 1 ? launch<T, Format, kGroup, 1, 1>(p, stream) : launch<T, Format, kGroup, kFewRows, 1>(p, stream);
  else if constexpr (Format::kOffset)
    p.w.tiles >= kTilesForTwo ? launch<T, Format, kGroup, kFewRows, 2>(p, stream)
                              : launch<T, Format, kGroup, kFewRows, 1>(p, stream);
  else
    launch<T, Format, kGroup, kFewRows, 1>(p, stream);
}

}  // namespace

void gemm_quantized_few(const QuantizedProduct& p, DType dtype, WeightType type, Stream stream_) {
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    if (type == WeightType::int8)
      p.w.group ? launch<T, Int8, 32>(p, stream) : launch<T, Int8, 0>(p, stream);
    else
      p.w.group == 32   ? launch<T, Int4, 32>(p, stream)
      : p.w.group == 64 ? launch<T, Int4, 64>(p, stream)
                        : launch<T, Int4, 128>(p, stream);
  });
}

}  // namespace qkv::cuda

// Packed weights, in and out: pack brings canonical values into the order of quantized.cuh, unpack brings them back; dequantize
// gives y[i, k] = scale * q + offset for rows i, all or those of a list of ids (an embedding).
#include "cuda/ints.cuh"
#include "cuda/launch.cuh"
#include "cuda/quantized.cuh"

namespace qkv::cuda {
namespace {

constexpr int kPackThreads = 64;  // one for each 16 bytes of a record's values

// Canonical: q (n, k) of one byte, scale and offset (n, groups) of float16. One block a record.
template <class Format>
__global__ void __launch_bounds__(kPackThreads)
    pack_kernel(const uint8_t* __restrict__ q, const __half* __restrict__ scale, const __half* __restrict__ offset, Records w) {
  const int64_t tile = blockIdx.x / w.chunks;
  const int chunk = static_cast<int>(blockIdx.x % w.chunks);
  char* record = const_cast<char*>(record_at(w, tile, chunk));
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const int64_t row = tile * kRecordRows + threadIdx.x / 32 * 8 + g;
  uint32_t words[4] = {};
#pragma unroll
  for (int b = 0; b < Format::kBlocks; ++b)
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t k = static_cast<int64_t>(chunk) * Format::kChunk + kBlock * b + 8 * t + i;
      const bool real = row < w.n && k < w.k;
      const uint32_t value = real ? q[row * w.k + k] : 0;
      if (Format::kOffset)
        words[b] |= (value & 15) << (4 * (i / 2) + 16 * (i & 1));
      else
        words[2 * b + i / 4] |= (value ^ 128) << 8 * (i % 4);  // two's complement to q + 128
    }
  reinterpret_cast<uint4*>(record)[threadIdx.x] = make_uint4(words[0], words[1], words[2], words[3]);

  const int groups_here = w.group ? Format::kChunk / w.group : 0;
  for (int i = threadIdx.x; i < groups_here * kRecordRows; i += kPackThreads) {
    const int64_t r = tile * kRecordRows + i % kRecordRows;
    const int64_t group = static_cast<int64_t>(chunk) * groups_here + i / kRecordRows;
    const int64_t groups = (w.k + w.group - 1) / w.group;
    const bool real = r < w.n && group < groups;
    const __half s = real ? scale[r * groups + group] : __float2half_rn(0);
    if constexpr (Format::kOffset) {
      const __half o = real ? offset[r * groups + group] : __float2half_rn(0);
      reinterpret_cast<__half2*>(record + kValueBytes)[i] = __halves2half2(s, o);
    } else {
      reinterpret_cast<__half*>(record + kValueBytes)[i] = s;
    }
  }
}

template <class Format>
__global__ void __launch_bounds__(kPackThreads)
    unpack_kernel(Records w, uint8_t* __restrict__ q, __half* __restrict__ scale, __half* __restrict__ offset) {
  const int64_t tile = blockIdx.x / w.chunks;
  const int chunk = static_cast<int>(blockIdx.x % w.chunks);
  const char* record = record_at(w, tile, chunk);
  const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
  const int64_t row = tile * kRecordRows + threadIdx.x / 32 * 8 + g;
  const uint4 all = reinterpret_cast<const uint4*>(record)[threadIdx.x];
  const uint32_t words[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
  for (int b = 0; b < Format::kBlocks; ++b)
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t k = static_cast<int64_t>(chunk) * Format::kChunk + kBlock * b + 8 * t + i;
      if (row >= w.n || k >= w.k) continue;
      q[row * w.k + k] = static_cast<uint8_t>(Format::kOffset ? words[b] >> (4 * (i / 2) + 16 * (i & 1)) & 15
                                                              : (words[2 * b + i / 4] >> 8 * (i % 4) & 255) ^ 128);
    }
  const int groups_here = w.group ? Format::kChunk / w.group : 0;
  for (int i = threadIdx.x; i < groups_here * kRecordRows; i += kPackThreads) {
    const int64_t r = tile * kRecordRows + i % kRecordRows;
    const int64_t group = static_cast<int64_t>(chunk) * groups_here + i / kRecordRows;
    const int64_t groups = (w.k + w.group - 1) / w.group;
    if (r >= w.n || group >= groups) continue;
    const __half2 both = scales_at<Format>(record, i / kRecordRows, i % kRecordRows);
    scale[r * groups + group] = __low2half(both);
    if constexpr (Format::kOffset) offset[r * groups + group] = __high2half(both);
  }
}

constexpr int kThreads = 128;

// One block a row of y (count, k), 8 neighbours a thread.
template <class Format, class T>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(Records w, Ints ids, T* y, bool whole_stores) {
  begin_dependent();
  const int64_t row = ids.data ? read_int(ids, blockIdx.x) : blockIdx.x;
  T* to = y + blockIdx.x * w.k;
  const bool real = row >= 0 && row < w.n;
  const int64_t tile = row / kRecordRows;
  const int in_tile = static_cast<int>(row % kRecordRows);
  for (int64_t k = threadIdx.x * 8; k < w.k; k += kThreads * 8) {
    float values[8];
    if (real) {
      const char* record = record_at(w, tile, static_cast<int>(k / Format::kChunk));
      const int b = static_cast<int>(k % Format::kChunk) / kBlock, t = static_cast<int>(k % kBlock) / 8;
      const float2 scale =
          w.row_scale ? make_float2(w.row_scale[row], 0) : __half22float2(scales_at<Format>(record, b >> w.shift, in_tile));
      widen<Format>(block_at<Format>(record, in_tile, b, t), scale, values);
    } else {
#pragma unroll
      for (float& value : values) value = __int_as_float(0x7FFFFFFF);
    }
    if (whole_stores) {
      alignas(16) T rounded[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) rounded[i] = from_float<T>(values[i]);
#pragma unroll
      for (size_t i = 0; i < sizeof(rounded) / 16; ++i)
        store16(reinterpret_cast<char*>(to + k) + 16 * i, reinterpret_cast<const uint4*>(rounded)[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (k + i < w.k) to[k + i] = from_float<T>(values[i]);
    }
  }
}

}  // namespace

int64_t pack_unit(const PackedView& w) {
  return with_format(w.type, [](auto format) { return decltype(format)::kChunk; });
}

// As many rows of k_padded values as hold the records.
int64_t packed_rows(const PackedView& w) {
  const Records records = records_of(w);
  return records.tiles * records.bytes / 64;
}

void pack(const PackArgs& args, Stream stream) {
  const Records w = records_of(args.to);
  const int64_t blocks = w.tiles * w.chunks;
  if (!blocks) return;
  with_format(args.to.type, [&](auto format) {
    pack_kernel<decltype(format)><<<static_cast<unsigned>(blocks), kPackThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const uint8_t*>(args.q), static_cast<const __half*>(args.to.scale),
        static_cast<const __half*>(args.to.offset), w);
  });
  check_launch("pack_weight");
}

void unpack(const UnpackArgs& args, Stream stream) {
  const Records w = records_of(args.from);
  const int64_t blocks = w.tiles * w.chunks;
  if (!blocks) return;
  with_format(args.from.type, [&](auto format) {
    unpack_kernel<decltype(format)><<<static_cast<unsigned>(blocks), kPackThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        w, static_cast<uint8_t*>(args.q), static_cast<__half*>(args.scale), static_cast<__half*>(args.offset));
  });
  check_launch("parts");
}

void dequantize(const DequantizeArgs& args, Stream stream) {
  const Records w = records_of(args.w);
  if (!args.count || !w.k) return;
  with_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool whole_stores = w.k % 8 == 0 && reinterpret_cast<uintptr_t>(args.y) % 16 == 0;
    with_format(args.w.type, [&](auto format) {
      launch_dependent("dequantize", dequantize_kernel<decltype(format), T>, static_cast<unsigned>(args.count), kThreads, 0,
                       stream, w, args.ids, static_cast<T*>(args.y), whole_stores);
    });
  });
}

}  // namespace qkv::cuda

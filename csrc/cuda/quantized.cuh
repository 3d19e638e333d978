// Weights of 8 and 4 bits: where a value lies and how it becomes a float. The one place that knows.
//
// A packed weight is one stream of records. A record holds 16 rows by 64 bytes of k (a chunk: 64 values of int8, 128 of int4),
// and then what scales them. The records of 16 rows follow each other along k, so that a warp which multiplies 16 rows reads
// memory from one end to the other, 16 bytes a lane, no byte twice and none in vain:
//
//   values: 2 halves (rows 0 ... 7, rows 8 ... 15) of 32 lanes of 16 bytes. Lane 4g + t has row g; its 16 bytes are, for each
//     block of 32 along k, the 8 neighbours k = 32 block + 8t ... 8t + 7.
//       int8: a byte is q + 128, in the order of k.
//       int4: a word is a block; nibble i is k = 2i and nibble 4 + i is k = 2i + 1: a shift and a mask give a pair.
//   scales: int8 by group of 32: (2 groups, 16 rows) of float16. int4: (128 / group, 16 rows) of pairs of float16: scale,
//     offset. (int8 by row: none here, but float32 in an array of their own.)
//
// That is the order of mma.sync's fragments (intrinsics.cuh), with the weight as the operand a and 16 of a block's 32 k a step:
// step s takes k = 8t + 4s + {0, 1} for mma's columns 2t, 2t + 1 and k = 8t + 4s + {2, 3} for its columns 2t + 8, 2t + 9. The
// activations, operand b, follow suit: 16 bytes of a row of x from k = 8t on are the fragments of two steps. So neither operand
// needs ldmatrix, and neither is shuffled between lanes. (After Marlin, Frantar et al. 2024.)
//
// Rows and k that are only padding hold q = 0, scale 0 and offset 0.
#pragma once
#include "cuda/intrinsics.cuh"
#include "cuda/kernels.h"

namespace qkv::cuda {

constexpr int kRecordRows = 16;
constexpr int kValueBytes = 1024;  // of a record
constexpr int kBlock = 32;         // values along k of two steps of mma

struct Int8 {
  static constexpr int kChunk = 64, kBlocks = 2;
  static constexpr bool kOffset = false;
  static constexpr int kScaleSize = 2;  // of a row and group
};
struct Int4 {
  static constexpr int kChunk = 128, kBlocks = 4;
  static constexpr bool kOffset = true;
  static constexpr int kScaleSize = 4;
};

// Of a record, with `group` values to a scale (0: a row).
template <class Format>
constexpr int scale_bytes_of(int group) {
  return group ? Format::kChunk / group * kRecordRows * Format::kScaleSize : 0;
}

// A packed weight as kernels see it.
struct Records {
  const char* data;
  const float* row_scale;  // (n), int8 without groups, else nullptr
  int64_t n, k;
  int64_t tiles;  // of 16 rows
  int chunks;     // records of a tile
  int group;      // values that share a scale; 0: a row
  int shift;      // log2 of a group's blocks
  int bytes;      // of a record
};

// f(Int8{}) or f(Int4{}).
template <class F>
auto with_format(WeightType type, F&& f) {
  return type == WeightType::int8 ? f(Int8{}) : f(Int4{});
}

inline Records records_of(const PackedView& w) {
  const int group = static_cast<int>(w.group);
  return with_format(w.type, [&](auto format) -> Records {
    using Format = decltype(format);
    return {static_cast<const char*>(w.values),
            group ? nullptr : w.row_scale,
            w.n,
            w.k,
            (w.n + kRecordRows - 1) / kRecordRows,
            static_cast<int>((w.k + Format::kChunk - 1) / Format::kChunk),
            group,
            group / (2 * kBlock),  // 1, 2 and 4 blocks: 0, 1, 2
            kValueBytes + scale_bytes_of<Format>(group)};
  });
}

QKV_DEVICE const char* record_at(const Records& w, int64_t tile, int chunk) {
  return w.data + (tile * w.chunks + chunk) * w.bytes;
}

// What scales row `row` in group `group` of a record, in global or in shared memory: int4 (scale, offset), int8 (scale, -).
template <class Format>
QKV_DEVICE __half2 scales_at(const char* record, int group, int row) {
  const char* scales = record + kValueBytes;
  if constexpr (Format::kOffset)
    return reinterpret_cast<const __half2*>(scales)[group * kRecordRows + row];
  else
    return __half2half2(reinterpret_cast<const __half*>(scales)[group * kRecordRows + row]);
}

// ---- in registers -------------------------------------------------------------------------------------------------------------

// Block b of a lane's 16 bytes of a row: int4 x; int8 x: k = 0 ... 3, y: k = 4 ... 7.
template <class Format>
QKV_DEVICE uint2 block_of(const uint4& lane, int b) {
  if constexpr (Format::kOffset) return make_uint2(b == 0 ? lane.x : b == 1 ? lane.y : b == 2 ? lane.z : lane.w, 0);
  return b == 0 ? make_uint2(lane.x, lane.y) : make_uint2(lane.z, lane.w);
}

// The same from memory, for row `row` and lane t of 4.
template <class Format>
QKV_DEVICE uint2 block_at(const char* record, int row, int b, int t) {
  const char* at = record + (row * 4 + t) * 16 + b * (16 / Format::kBlocks);
  if constexpr (Format::kOffset) return make_uint2(*reinterpret_cast<const uint32_t*>(at), 0);
  return *reinterpret_cast<const uint2*>(at);
}

// The bits `mask` of x, on top of the number `magic`, whose last place they are: magic + q.
QKV_DEVICE uint32_t on_top(uint32_t x, uint32_t mask, uint32_t magic) { return lop3<(0xF0 & 0xCC) | 0xAA>(x, mask, magic); }

QKV_DEVICE __half2 as_half2(uint32_t x) { return bit_cast<__half2>(x); }
QKV_DEVICE uint32_t bits(__half2 x) { return bit_cast<uint32_t>(x); }

// Byte j as a float: 2^15 + q + 128. The byte becomes bits 8 ... 15, and what stands there counts ones in a float of that size.
constexpr float kByteMagic = 32768 + 128;
QKV_DEVICE float byte_on_magic(uint32_t word, int j) { return __uint_as_float(__byte_perm(word, 0x47000000, 0x7404 | j << 4)); }

// k = i of the block's 8 as a float: 2^7 + q, in bits 16 ... 19.
constexpr float kNibbleMagic = 128;
QKV_DEVICE float nibble_on_magic(uint32_t word, int i) {
  const int from = 4 * (i / 2) + 16 * (i & 1);
  return __uint_as_float(on_top(from > 16 ? word >> (from - 16) : word << (16 - from), 0x000F0000, 0x43000000));
}

// The 8 values q of a block as pairs of T, pairs 2s and 2s + 1 for step s, each with kAbove<Format> added to it: what is added to
// a group's values costs nothing to take away from its sum, sum (q + above) a = sum q a + above sum a, where sum a is needed
// anyway. The least that q can stand on top of is 16, and then the sums lose hardly a bit.
template <class Format>
constexpr int kAbove = Format::kOffset ? 16 : 0;
template <class Format, class T>
QKV_DEVICE void codes(uint2 block, uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (Format::kOffset) {
      constexpr bool kHalf = std::is_same_v<T, __half>;
      const int left = (kHalf ? 6 : 3) - 4 * i;  // from bit 4i to the top of the mantissa
      const uint32_t x = left > 0 ? block.x << left : block.x >> -left;
      pairs[i] = kHalf ? on_top(x, 0x03C003C0, 0x4C004C00) : on_top(x, 0x00780078, 0x41804180);
    } else if constexpr (std::is_same_v<T, __half>) {
      const uint32_t q = __byte_perm(i < 2 ? block.x : block.y, 0x64646464, i % 2 ? 0x4342 : 0x4140);
      pairs[i] = bits(__hsub2(as_half2(q), __float2half2_rn(1024 + 128)));
    } else {
      // bfloat16 has 8 bits, so a byte on top of anything is one too many; but the upper half of a float is one.
      const uint32_t word = i < 2 ? block.x : block.y;
      const float low = byte_on_magic(word, i % 2 * 2) - kByteMagic, high = byte_on_magic(word, i % 2 * 2 + 1) - kByteMagic;
      pairs[i] = __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
    }
  }
}

// The 8 weights scale q + offset of a block as floats, rounded once.
template <class Format>
QKV_DEVICE void widen(uint2 block, float2 scale, float (&w)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    w[i] = Format::kOffset ? fmaf(nibble_on_magic(block.x, i) - kNibbleMagic, scale.x, scale.y)
                           : (byte_on_magic(i < 4 ? block.x : block.y, i % 4) - kByteMagic) * scale.x;
}

// What `widen` below multiplies with, made once for a row and group.
template <class T>
struct Scale;
template <>
struct Scale<__half> {
  __half2 scale, offset;
  template <class Format>
  static QKV_DEVICE Scale of(__half2 s) {
    return {__low2half2(s), __high2half2(s)};
  }
};
template <>
struct Scale<__nv_bfloat16> {
  float scale, offset;
  // scale (magic + q) + (offset - magic scale): both float16 operands fit a float's 24 bits side by side, so the difference is
  // exact unless the offset is below scale / 64, and then its last bits are far below what rounding to bfloat16 loses.
  template <class Format>
  static QKV_DEVICE Scale of(__half2 s) {
    const float2 f = __half22float2(s);
    if constexpr (Format::kOffset) return {f.x, fmaf(-kNibbleMagic, f.x, f.y)};
    return {f.x, -kByteMagic * f.x};
  }
};

// The 8 weights scale q + offset of a block as pairs of T, rounded once (to bfloat16 from a float that is exact or nearly so).
template <class Format>
QKV_DEVICE void widen(uint2 block, const Scale<__half>& scale, uint32_t (&pairs)[4]) {
  if constexpr (Format::kOffset) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Every other nibble lies 4 bits higher, and is 16 q there: one shift less than taking each to the bottom.
      const uint32_t x = i < 2 ? block.x : block.x >> 8;
      const __half2 q =
          i % 2 == 0 ? __hsub2(as_half2(on_top(x, 0x000F000F, 0x64006400)), __float2half2_rn(1024))
                     : __hfma2(as_half2(on_top(x, 0x00F000F0, 0x64006400)), __float2half2_rn(0.0625f), __float2half2_rn(-64));
      pairs[i] = bits(__hfma2(q, scale.scale, scale.offset));
    }
  } else {
    codes<Format, __half>(block, pairs);
#pragma unroll
    for (uint32_t& pair : pairs) pair = bits(__hmul2(as_half2(pair), scale.scale));
  }
}
template <class Format>
QKV_DEVICE void widen(uint2 block, const Scale<__nv_bfloat16>& scale, uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float w[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float q =
          Format::kOffset ? nibble_on_magic(block.x, 2 * i + j) : byte_on_magic(i < 2 ? block.x : block.y, i % 2 * 2 + j);
      w[j] = fmaf(q, scale.scale, scale.offset);
    }
    pairs[i] = pack2<__nv_bfloat16>(w[0], w[1]);
  }
}

// Step `step` of 16 rows as mma's operand a, from the pairs of rows g and g + 8.
QKV_DEVICE void fragment(const uint32_t (&low)[4], const uint32_t (&high)[4], int step, uint32_t (&a)[4]) {
  a[0] = low[2 * step];
  a[1] = high[2 * step];
  a[2] = low[2 * step + 1];
  a[3] = high[2 * step + 1];
}

}  // namespace qkv::cuda

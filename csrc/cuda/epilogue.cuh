// What products do with finished sums: c = act(sum + bias) * gate + residual, in float, rounded once, 16 bytes of c at a time.
//
// mma leaves neighbouring sums in four lanes, so a warp passes 16 rows at a time through shared memory (SumTile): whoever stores
// then has a whole piece of a row, whose gate and residual it reads, and whose part of c it writes, in accesses of 16 bytes.
#pragma once
#include <stdint.h>

#include "cuda/activation.cuh"
#include "cuda/intrinsics.cuh"
#include "cuda/kernels.h"

namespace qkv::cuda {

// Elements of c that a thread finishes together: 16 bytes.
template <class T>
constexpr int kPiece = 16 / sizeof(T);

QKV_DEVICE bool aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

// The first `count` of a piece, `step` elements apart; the rest is 0.
template <class T>
QKV_DEVICE void load_piece(const T* from, int64_t step, int count, float (&v)[kPiece<T>]) {
  if (step == 1 && count == kPiece<T> && aligned16(from)) {
    const uint4 raw = load16(from);
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    if constexpr (kIs16Bit<T>) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack2<T>(words[i]);
        v[2 * i] = pair.x;
        v[2 * i + 1] = pair.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = __uint_as_float(words[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPiece<T>; ++i) v[i] = i < count ? to_float(from[i * step]) : 0.0f;
  }
}

// To global memory, and 16 bytes at a time: ordinary stores become four of 4 bytes in some of these kernels (nvcc 13.0).
QKV_DEVICE void store16_whole(void* to, uint4 v) { __stwb(static_cast<uint4*>(to), v); }

template <class T>
QKV_DEVICE void store_piece(T* to, int count, const float (&v)[kPiece<T>]) {
  if (count == kPiece<T> && aligned16(to)) {
    uint4 raw;
    if constexpr (kIs16Bit<T>)
      raw = make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
    else
      raw = make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
    store16_whole(to, raw);
  } else {
#pragma unroll
    for (int i = 0; i < kPiece<T>; ++i)
      if (i < count) to[i] = from_float<T>(v[i]);
  }
}

// Elements [first, first + count) of the bias as floats for the block's epilogue, 0 beyond n; visible after a barrier.
QKV_DEVICE void bias_to_shared(const Vector& bias, int64_t first, int64_t n, int count, float* shared) {
  if (!bias.data) return;
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    shared[i] = first + i < n ? load_float(bias.data, bias.dtype, first + i) : 0.0f;
}

// v: sums of `count` neighbours, from (batch, row, column) on, which go to `c`. bias: those of the piece, aligned to 16 bytes,
// unused if there is none. Gate and residual have c's dtype.
template <class T>
QKV_DEVICE void finish(const Epilogue& e, float (&v)[kPiece<T>], const float* bias, int64_t batch, int64_t row, int64_t column,
                       int count, T* c) {
  if (e.bias.data) {
#pragma unroll
    for (int i = 0; i < kPiece<T>; i += 4) {
      const float4 b = *reinterpret_cast<const float4*>(bias + i);
      v[i] += b.x;
      v[i + 1] += b.y;
      v[i + 2] += b.z;
      v[i + 3] += b.w;
    }
  }
  activate(e.activation, v);
  float other[kPiece<T>];
  const auto load = [&](const Strided4& x) {
    load_piece(reinterpret_cast<const T*>(x.data) + batch * x.b + row * x.s + column * x.d, x.d, count, other);
  };
  if (e.gate.data) {
    load(e.gate);
#pragma unroll
    for (int i = 0; i < kPiece<T>; ++i) v[i] *= other[i];
  }
  if (e.residual.data) {
    load(e.residual);
#pragma unroll
    for (int i = 0; i < kPiece<T>; ++i) v[i] += other[i];
  }
  store_piece(c, count, v);
}

// 16 rows of kColumns sums of one warp, in shared memory: written as mma left them, read in pieces of 8. Each row is two planes,
// of the lower and the upper 4 of each 8 columns, at distances at which both ways meet no bank twice.
template <int kColumns, int kPlane_ = kColumns == 64 ? 36 : 20, int kStride_ = kColumns == 64 ? 72 : 40>
struct SumTile {
  static_assert(kColumns == 16 || kColumns == 32 || kColumns == 64);
  static constexpr int kPieces = kColumns / 8;  // of a row
  static constexpr int kPlane = kPlane_;        // for put(): 4 modulo 16
  static constexpr int kStride = kStride_;      // 8 modulo 32
  static constexpr int kFloats = 16 * kStride;
  static constexpr int kPasses = 16 * kPieces / 32;

  // d of the mma whose columns begin at 8 * piece.
  QKV_DEVICE static void put(float* tile, int piece, const float (&d)[4]) {
    const int row = lane_id() / 4, pair = lane_id() % 4;  // pairs 0, 1 in the lower plane, 2, 3 in the upper
    float* const to = tile + row * kStride + (pair & 2) * (kPlane / 2) + (pair & 1) * 2 + piece * 4;
    *reinterpret_cast<float2*>(to) = make_float2(d[0], d[1]);
    *reinterpret_cast<float2*>(to + 8 * kStride) = make_float2(d[2], d[3]);
  }

  // In pass 0 ... kPasses - 1 a lane reads piece_of_lane() of row_of_lane(pass).
  QKV_DEVICE static int piece_of_lane() { return lane_id() % kPieces; }
  QKV_DEVICE static int row_of_lane(int pass) {
    const int row = lane_id() / kPieces;
    // With 4 pieces, 8 lanes read two rows: such as lie 16 banks apart.
    return pass * (32 / kPieces) + (kPieces == 4 ? (row & 4) | (row & 1) << 1 | (row >> 1 & 1) : row);
  }
  QKV_DEVICE static void get(const float* tile, int row, int piece, float (&v)[8]) {
    const float4 low = *reinterpret_cast<const float4*>(tile + row * kStride + piece * 4);
    const float4 high = *reinterpret_cast<const float4*>(tile + row * kStride + kPlane + piece * 4);
    v[0] = low.x;
    v[1] = low.y;
    v[2] = low.z;
    v[3] = low.w;
    v[4] = high.x;
    v[5] = high.y;
    v[6] = high.z;
    v[7] = high.w;
  }
};

}  // namespace qkv::cuda

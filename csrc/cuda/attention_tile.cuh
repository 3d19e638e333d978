// Rows of 16-bit numbers in shared memory, as ldmatrix wants them.
//
// Chunk c (16 bytes) of row r stands at chunk c ^ (r % 8) of its row; rows of only 4 chunks: c ^ (r / 2 % 4). Eight rows' chunks
// of the same column then lie in different banks, and neither ldmatrix nor the copies that fill the tile wait.
#pragma once
#include "cuda/attention_problem.cuh"

namespace qkv::cuda {

template <int kWidth>
QKV_DEVICE int swizzle(int row, int chunk) {
  return row * (kWidth * 2) + ((kWidth == 32 ? chunk ^ (row / 2 & 3) : chunk ^ (row & 7)) * 16);
}

// ldmatrix's address in a tile for one lane: the tile's, the row's and the first chunk's part once, then a step along the row by
// whole pairs of chunks, which is 16 numbers. first_chunk is 0 or 1.
template <int kWidth>
struct MatrixRows {
  uint32_t row;
  uint32_t chunk;  // in bytes, after the swizzle
  QKV_DEVICE MatrixRows(uint32_t tile, int r, int first_chunk) {
    row = tile + r * (kWidth * 2);
    chunk = swizzle<kWidth>(r, first_chunk) - r * (kWidth * 2);
  }
  // `rows` is a multiple of 8, and both are constants after unrolling. The xor reaches 8 chunks (kWidth 32: 4); beyond is a sum.
  QKV_DEVICE uint32_t at(int rows, int pair) const {
    constexpr int kReach = kWidth == 32 ? 64 : 128;
    return row + rows * (kWidth * 2) + pair * 32 / kReach * kReach + (chunk ^ (pair * 32 % kReach));
  }
};

// How kThreads threads fill a tile of rows: each thread has one chunk of every kStep-th row.
template <class T, int kWidth, int kThreads>
struct RowLoader {
  static constexpr int kChunks = kWidth / 8, kStep = kThreads / kChunks;
  static_assert(kThreads % kChunks == 0);

  int first_row, chunk;

  QKV_DEVICE explicit RowLoader(int thread) : first_row(thread / kChunks), chunk(thread % kChunks) {}

  QKV_DEVICE unsigned char* place(unsigned char* tile, int row) const { return tile + swizzle<kWidth>(row, chunk); }

  // The thread's chunk of a row of `width` numbers at `from`, or zeros. Rows are aligned and of whole chunks: so a copy is of all
  // 16 bytes or of none, which is one instruction where any other number is several.
  QKV_DEVICE void copy(unsigned char* tile, int row, const T* from, int width, bool valid) const {
    cp_async16(shared_address(place(tile, row)), from + chunk * 8, valid && chunk * 8 < width ? 16 : 0);
  }

  // The same for any rows, one number at a time.
  QKV_DEVICE void copy_slowly(unsigned char* tile, int row, const T* from, int width, bool valid) const {
    T* const to = reinterpret_cast<T*>(place(tile, row));
    for (int i = 0; i < 8; ++i) to[i] = valid && chunk * 8 + i < width ? from[chunk * 8 + i] : from_float<T>(0);
  }
};

// Replaces what is not finite by 0.
template <class T>
QKV_DEVICE void remove_not_finite(uint32_t& pair) {
  constexpr uint32_t kExponent = std::is_same_v<T, __half> ? 0x7C00 : 0x7F80;
  if ((pair & kExponent) == kExponent) pair &= 0xFFFF0000u;
  if ((pair >> 16 & kExponent) == kExponent) pair &= 0x0000FFFFu;
}

}  // namespace qkv::cuda

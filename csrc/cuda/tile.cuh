// Tiles of 16-bit matrices in shared memory, and how a block of threads fills them from global memory with cp.async.
//
// A tile's rows lie one after the other without gaps; within a row, chunks of 16 bytes are permuted by an exclusive or with the
// row, so that the 8 rows of one chunk, which is what ldmatrix reads at a time, lie in all 32 banks.
#pragma once
#include <stdint.h>

#include "cuda/intrinsics.cuh"

namespace qkv::cuda {

constexpr int kChunk = 8;  // elements of 16 bits in 16 bytes

// (kRows, kColumns). Loops that need addresses of the same thread in several places can have them from one offset:
//   rows 8 r further: + 8 r * kRowBytes;
//   chunk c ^ d instead of c, d < 2, 4, 8 as the row is a multiple of 32, 64, 128 bytes: ^ 16 d, if the tile begins at a multiple
//   of 128 bytes.
template <int kRows_, int kColumns_>
struct SharedTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_;
  static constexpr int kChunks = kColumns / kChunk;
  static constexpr int kRowBytes = 2 * kColumns, kBytes = kRows * kRowBytes;
  static_assert(kColumns % kChunk == 0);

  // Where chunk `chunk` of row `row` is, in bytes from the tile's beginning.
  QKV_DEVICE static constexpr int offset(int row, int chunk) {
    int permuted = chunk;
    if (kChunks % 8 == 0)
      permuted ^= row & 7;
    else if (kChunks % 4 == 0)
      permuted ^= row >> 1 & 3;  // two rows share 128 bytes
    else if (kChunks % 2 == 0)
      permuted ^= row >> 2 & 1;
    return row * kRowBytes + permuted * 16;
  }
};

// Bytes of a chunk whose first element is `left` elements before the end.
QKV_DEVICE int chunk_bytes(int left) { return 2 * max(0, min(left, kChunk)); }

// Copies a matrix in global memory, rows `stride` elements apart, tile by tile: every thread of the block (kThreads, counted
// along x) makes one and calls it alike. The matrix's beginning and its rows must be aligned to 16 bytes; its sizes may be
// anything: what is outside is filled with zeros and not read.
//
//   TileLoader<SharedTile<64, 128>, 128> keys(k, stride);
//   keys.load(shared, t - first, 128);  cp_async_commit();  keys.next_rows();  ...
template <class Tile, int kThreads>
class TileLoader {
 public:
  static constexpr int kAll = Tile::kRows * Tile::kChunks;  // chunks
  static constexpr int kPasses = (kAll + kThreads - 1) / kThreads;
  // Whether a thread's chunks lie in one column, whole rows of threads apart, and permuted alike.
  static constexpr int kPassRows = kThreads / Tile::kChunks;
  static constexpr bool kRegular = kThreads % Tile::kChunks == 0 && kAll % kThreads == 0 && (kPassRows % 8 == 0 || kPasses == 1);

  QKV_DEVICE TileLoader(const void* matrix, int64_t stride)
      : from_(static_cast<const char*>(matrix)), stride_(2 * stride), thread_(threadIdx.x) {
    if constexpr (kRegular) {
      row_ = thread_ / Tile::kChunks;
      column_ = thread_ % Tile::kChunks * kChunk;
      from_ += row_ * stride_ + 2 * column_;
      to_ = Tile::offset(row_, thread_ % Tile::kChunks);
    }
  }

  // The tile to `shared`; of it, `rows` rows and `columns` columns from its first are inside the matrix (more than it has: all;
  // 0 or less: none).
  QKV_DEVICE void load(uint32_t shared, int rows, int columns) const {
    if constexpr (kRegular) {
      const char* from = from_;
      const int64_t step = kPassRows * stride_;
      shared += to_;
      if (columns >= Tile::kColumns) {
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass, from += step)
          cp_async16(shared + pass * kPassRows * Tile::kRowBytes, from, row_ + pass * kPassRows < rows ? 16 : 0);
      } else {
        // Rare, and a loop, lest the compiler turns it into predicates that the usual case must step through too.
        const int bytes = chunk_bytes(columns - column_);
#pragma unroll 1
        for (int row = row_; row < Tile::kRows; row += kPassRows, from += step, shared += kPassRows * Tile::kRowBytes)
          cp_async16(shared, from, row < rows ? bytes : 0);
      }
    } else {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int i = thread_ + pass * kThreads, row = i / Tile::kChunks, chunk = i % Tile::kChunks;
        if (kAll % kThreads == 0 || i < kAll)
          cp_async16(shared + Tile::offset(row, chunk), from_ + row * stride_ + 16 * chunk,
                     row < rows ? chunk_bytes(columns - chunk * kChunk) : 0);
      }
    }
  }

  // On to the tile below, or to the right.
  QKV_DEVICE void next_rows() { from_ += Tile::kRows * stride_; }
  QKV_DEVICE void next_columns() { from_ += Tile::kRowBytes; }

 private:
  const char* from_;  // of this thread's first chunk, if regular; else of the tile
  int64_t stride_;    // bytes
  int thread_, row_ = 0, column_ = 0;
  uint32_t to_ = 0;
};

}  // namespace qkv::cuda

// Views of memory that others own: plain data, free to copy.
// Every function here is `static inline`, so that a kernel compiled for AVX-512 never donates a copy to
// the rest of the program (see csrc/README.md, 'no weak symbols').
#pragma once
#include <stdint.h>

#include "core/dtype.h"

namespace qkv {

constexpr int kMaxRank = 8;  // after dimensions of size 1 are dropped and mergeable neighbours merged

// A matrix of `rows` vectors of n elements; the rows may lie anywhere on a strided grid.
struct Rows {
  char* data;
  DType dtype;
  int64_t n;     // elements in a row
  int64_t step;  // distance between neighbours in a row, in elements
  int64_t rows;  // product of shape
  int rank;      // of the grid, outermost dimension first; 0 means one row
  int64_t shape[kMaxRank];
  int64_t strides[kMaxRank];  // in elements
};

// Offset of row r from Rows::data, in elements.
static inline int64_t row_offset(const Rows& x, int64_t r) {
  if (x.rank == 1) return r * x.strides[0];
  int64_t offset = 0;
  for (int d = x.rank - 1; d >= 0; --d) {
    offset += (r % x.shape[d]) * x.strides[d];
    r /= x.shape[d];
  }
  return offset;
}

static inline char* row_ptr(const Rows& x, int64_t r) { return x.data + row_offset(x, r) * size_of(x.dtype); }

}  // namespace qkv

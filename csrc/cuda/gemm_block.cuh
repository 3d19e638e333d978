// What the blocks of all GEMM kernels do alike: find their place in c, and hand over their sums.
#pragma once
#include "cuda/epilogue.cuh"
#include "cuda/gemm_plan.h"

namespace qkv::cuda {

struct BlockPlace {
  uint32_t tile_m, tile_n, split, batch;
};

// Of the i-th piece of work; a block has one, but for those of gemm_sm90.cu.
QKV_DEVICE BlockPlace block_place(const GemmPlan& p, uint32_t i = blockIdx.x) {
  BlockPlace at;
  const uint32_t tiles = p.tiles_m * p.tiles_n;
  uint32_t tile = i % tiles;
  i /= tiles;
  at.split = i % p.splits;
  at.batch = i / p.splits;
  // Down the columns of `group` rows of tiles, group after group.
  const uint32_t in_group = p.group * p.tiles_n, first = tile / in_group * p.group;
  tile %= in_group;
  const uint32_t rows = min(p.group, p.tiles_m - first);
  at.tile_m = first + tile % rows;
  at.tile_n = tile / rows;
  return at;
}

// Where split `split` leaves the i-th 4 sums of the piece at `column` of a row, for the one that adds the splits. All first
// halves of a row's pieces precede all second ones, so that neighbouring threads meet neighbouring 16 bytes.
template <class T>
QKV_DEVICE float4* partial_sums(const GemmArgs& g, const GemmPlan& p, uint32_t split, uint32_t batch, int64_t row, int64_t column,
                                int i) {
  constexpr int kQuads = kPiece<T> / 4;
  return static_cast<float4*>(g.workspace) +
         (((split * g.batch + batch) * g.m + row) * kQuads + i) * (p.pitch / kPiece<T>)+column / kPiece<T>;
}

// v: the sums of a piece of row `row` from `column` on, as many as are inside of c, go to c or to the workspace. bias: of the
// piece, if there is one.
template <class T>
QKV_DEVICE void hand_over(const GemmArgs& g, const GemmPlan& p, const BlockPlace& at, float (&v)[kPiece<T>], const float* bias,
                          int64_t row, int64_t column) {
  if (row >= g.m || column >= g.n) return;
  if (p.splits > 1) {
#pragma unroll
    for (int i = 0; i < kPiece<T> / 4; ++i)
      store16_whole(partial_sums<T>(g, p, at.split, at.batch, row, column, i),
                    bit_cast<uint4>(make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3])));
  } else {
    const int count = static_cast<int>(min(g.n - column, int64_t{kPiece<T>}));
    T* const c = reinterpret_cast<T*>(g.c.data) + at.batch * g.c.b + row * g.c.s + column;
    finish<T>(g, v, bias, at.batch, row, column, count, c);
  }
}

}  // namespace qkv::cuda

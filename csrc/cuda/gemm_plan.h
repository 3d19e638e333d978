// How gemm.cu cuts a product into the blocks of one of four kernels, and what it calls them by.
#pragma once
#include <stdint.h>

#include "cuda/kernels.h"

namespace qkv::cuda {

enum class GemmKernel : uint8_t {
  wgmma_large,    // 128 x 256 of c a tile, on Hopper: gemm_sm90.cu
  wgmma_medium,   // 128 x 128
  wgmma_small,    // 64 x 128
  tensor_large,   // 128 x 256 of c a block, by mma: gemm_tensor.cu
  tensor_medium,  // 128 x 128
  tensor_small,   // 64 x 64
  tensor_any,     // 64 x 64 of matrices that are not aligned to 16 bytes
  skinny,         // few rows, at the speed at which b can be read; 16 bits and float32: gemm_skinny.cu
  float_large,    // float32, 128 x 128: gemm_float.cu
  float_small,    // 64 x 64
};

// Blocks are counted along x: tiles of c fastest, then splits of k, then the batch.
struct GemmPlan {
  GemmKernel kernel;
  bool a_by_k, b_by_k;        // whether k is the adjacent dimension; if not, the other one is
  uint32_t tiles_m, tiles_n;  // of c
  uint32_t group;             // tile rows that are worked on together: what they share of b is still in the L2 cache
  uint32_t splits;            // of k. From 2 on blocks leave float sums in the workspace, which a second kernel adds in order
  int64_t k_split;            // of k that a split takes; the last one the rest
  int64_t pitch;              // of a row of sums in the workspace, (splits, batch, m, pitch)
  uint32_t threads;           // of a block; skinny only
};

struct GemmDevice {
  int multiprocessors;
  bool hopper;
};
GemmPlan plan_gemm(const GemmArgs&, const GemmDevice&);
size_t gemm_workspace(const GemmArgs&, const GemmPlan&);
void gemm(const GemmArgs&, const GemmPlan&, Stream);

void gemm_wgmma(const GemmArgs&, const GemmPlan&, Stream);
void gemm_tensor(const GemmArgs&, const GemmPlan&, Stream);
void gemm_float(const GemmArgs&, const GemmPlan&, Stream);
void gemm_skinny(const GemmArgs&, const GemmPlan&, Stream);

constexpr int64_t kSkinnyRows = 32, kSkinnyFloatRows = 8;  // of c: from where on tiles are faster
struct SkinnyTile {
  int64_t rows, columns, k_step;  // of c for a block, and of k for a step of one of its warps
};
SkinnyTile skinny_tile(const GemmArgs&, bool b_by_k);
// Of a block; many: there are more blocks than two for each multiprocessor.
int skinny_warps(int64_t k_split, int64_t k_step, bool many);

}  // namespace qkv::cuda

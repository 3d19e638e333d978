// What the files of attention launch for each other.
#pragma once
#include <cuda.h>

#include "cuda/attention_problem.cuh"
#include "cuda/launch.cuh"

namespace qkv::cuda {

constexpr int64_t kMostMmaWidth = 256;
constexpr int mma_width(int64_t most) { return most <= 32 ? 32 : most <= 64 ? 64 : most <= 128 ? 128 : 256; }

// Rows of attention_mma's tiles. The large one is for many rows and plain problems: nothing adjusted, everything aligned.
constexpr int kMmaRows = 64;
constexpr int mma_rows(bool large, int width) { return large && width <= 128 ? 128 : kMmaRows; }
constexpr int mma_keys(int width) { return width <= 128 ? 64 : 32; }
// Of a block: blocks on a multiprocessor, by registers; bytes of shared memory, or a few more.
constexpr int mma_blocks(int rows, int width) { return width <= 64 && rows == kMmaRows ? 3 : 2; }
constexpr int mma_bytes(int rows, int width) {
  return (rows + 4 * mma_keys(width)) * width * 2 + rows * 20 + mma_keys(width) * 48 + 256;
}

// The same of attention_simt.
constexpr int kSimtRows = 64, kSimtBlocks = 2, kSimtBytes = 36 * 1024;

// The same of attention_sm90.cuh; plain: nothing adjusted.
constexpr int hopper_width(int64_t most) { return most <= 64 ? 64 : most <= 96 ? 96 : most <= 128 ? 128 : 256; }
constexpr int hopper_rows(int width, bool plain) { return width == 64 && plain ? 192 : 128; }
constexpr int hopper_keys(int width) { return width <= 128 ? 128 : 80; }

struct HopperMaps {
  CUtensorMap k, v;
};
// In which order blocks take tiles of rows.
struct HopperOrder {
  int tiles;        // and splits of each
  int section;      // key heads whose tiles are taken at about the same time
  int heads;        // key heads of all batch entries; packed: of one
  unsigned blocks;  // of the grid
  unsigned* taken;  // tiles taken beside the first of each block; nullptr: no more than those
};

// `blocks`: tiles of rows of all key heads. T is __half or __nv_bfloat16, in attention_f16.cu and attention_bf16.cu.
template <class T>
void launch_mma(const Problem& p, bool large, int64_t blocks, cudaStream_t stream);
// The same over a paged cache, in attention_paged_f16.cu and attention_paged_bf16.cu.
template <class T>
void launch_mma_paged(const Problem& p, int64_t blocks, cudaStream_t stream);
// On Hopper, in attention_sm90_f16.cu and attention_sm90_bf16.cu.
template <class T>
void launch_hopper(const Problem& p, const HopperOrder& order, cudaStream_t stream);
// Any width and dtype; attention_f32.cu and attention_paged_f32.cu.
void launch_simt(const Problem& p, int64_t blocks, cudaStream_t stream);
void launch_simt_paged(const Problem& p, int64_t blocks, cudaStream_t stream);
// Probabilities, of the row states that the kernels above left.
void launch_weights(const Problem& p, int64_t blocks, cudaStream_t stream);
void launch_weights_paged(const Problem& p, int64_t blocks, cudaStream_t stream);

}  // namespace qkv::cuda

// What attention_plan.cuh counts and deals out, for test_cuda_attention_plan.py.
#include "cuda/attention_plan.cuh"

using namespace qkv;
using namespace qkv::cuda;

namespace {

constexpr int kThreads = 64, kMostPieces = 64;

struct Case {
  int s, t, causal, left, right, group, tile_keys;
};

__host__ __device__ Problem problem_of(const Case& c) {
  Problem p = {};
  p.a.kv_heads = 1;
  p.a.causal = static_cast<Causal>(c.causal);
  p.group = c.group;
  p.tile_rows = kMmaRows;
  p.tile_keys = c.tile_keys;
  p.left = c.left;
  p.right = c.right;
  return p;
}

// lengths (cases, width): of the first 0, 1, ... tiles of rows.
__global__ void count_lengths(const Case* cases, int count, int64_t* lengths, int width) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const Case c = cases[i];
  const Problem p = problem_of(c);
  Entry e = {};
  e.s = c.s;
  e.t = e.stored_t = c.t;
  e.shift = p.a.causal == Causal::top_left ? 0 : c.t - c.s;
  for (int n = 0; n < width; ++n) lengths[int64_t{i} * width + n] = n <= row_tiles_of(p, e) ? length_of(p, e, n) : -1;
}

// pieces (workers, kMostPieces, 7): batch entry, key head, first row, rows, tiles of keys from and to, part; -1 behind the last.
__global__ void __launch_bounds__(kThreads) deal(const __grid_constant__ Problem p, int* pieces) {
  __shared__ Share share;
  __shared__ Work w;
  __shared__ Piece piece;
  __shared__ int64_t scratch[2 * kThreads / 32];
  find_share<kThreads>(p, &share, scratch);
  __syncthreads();
  if (threadIdx.x != 0) return;
  int* to = pieces + blockIdx.x * kMostPieces * 7;
  for (int i = 0; i < kMostPieces; ++i, to += 7) {
    next_piece(p, &share, &w, &piece);
    if (piece.none) {
      to[0] = -1;
      return;
    }
    const int fields[7] = {static_cast<int>(w.e.b), w.kv_head, w.row0, w.rows, piece.keys.begin, piece.keys.end, piece.part};
    for (int j = 0; j < 7; ++j) to[j] = fields[j];
  }
}

}  // namespace

extern "C" {
// cases (count, 7)
void run_count_lengths(const int* cases, int count, int64_t* lengths, int width) {
  count_lengths<<<(count + 31) / 32, 32>>>(reinterpret_cast<const Case*>(cases), count, lengths, width);
}
// cu_q (B + 1), kv_lengths (B): int32.
void run_deal(const int* of_all, int batch, int tokens, int most_keys, int kv_heads, const int* cu_q, const int* kv_lengths,
              int workers, int64_t* starts, int* pieces) {
  Problem p = problem_of(*reinterpret_cast<const Case*>(of_all));
  p.a.batch = batch;
  p.a.s = tokens;
  p.a.t = most_keys;
  p.a.kv_heads = kv_heads;
  p.a.cu_q = {cu_q, false};
  p.a.kv_lengths = {kv_lengths, false};
  p.a.block_tables = {cu_q, false};  // any: a plan asks only whether there is one
  p.workers = workers;
  p.slot_rows = kMmaRows;
  p.starts = starts;
  deal<<<workers, kThreads>>>(p, pieces);
}
}

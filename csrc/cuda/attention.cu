// attention: out_i = sum_j p_ij v_j with p_i = softmax_j(softcap(scale q_i.k_j) + bias_ij + relative_bias[j - i] - slope |i - j|)
//
// The plan: which kernel, which tile of rows, and into how many splits the keys go where there are fewer tiles than the GPU has
// room for (flash-decoding). What the splits have summed, attention_merge merges in order. Few rows over a paged cache, which
// are decoding, are planned where their lengths are: attention_plan.cuh.
//
// Results depend neither on the tile nor on the rows beside a row; they do depend on the splits. With batch_invariant these are
// chunks at fixed keys, so that a row's sums are the same in any batch: where tiles abound, or the workspace would not stay
// linear in the length, a block takes its chunks one after the other and merges as it goes.
#include <algorithm>

#include "cuda/attention_launch.cuh"
#include "cuda/attention_plan.cuh"
#include "cuda/attention_softmax.cuh"
#include "cuda/attention_spoiled.cuh"
#include "cuda/room.cuh"

namespace qkv::cuda {
namespace {

constexpr int kMergeThreads = 128;
constexpr int64_t kLeastSplitKeys = 256;       // below, a merge costs more than it saves
constexpr int64_t kMostPartBytes = 256 << 20;  // in rows a number of 32 bits; bench/NOTES.md says what less would cost

// One row of the output, a block each, from the sums of its splits, or of the pieces that workers had.
template <class T, bool kPaged>
__global__ void __launch_bounds__(kMergeThreads) attention_merge(const __grid_constant__ Problem p) {
  begin_dependent();
  __shared__ RowState parts[kMostSplits];
  __shared__ float2 merges[kMostSplits];  // factors of the sums before a part and of its own
  __shared__ float weights[kMergeThreads];
  const int64_t index = blockIdx.x, token = index / p.a.heads;
  int64_t b = p.a.s ? token / p.a.s : 0;
  if (p.a.cu_q.data) {
    int64_t end = p.a.batch;
    b = 0;
    while (end - b > 1) {
      const int64_t middle = (b + end) / 2;
      (read_int(p.a.cu_q, middle) <= token ? b : end) = middle;
    }
  }
  const Entry e = entry_of(p, b);
  const int head = static_cast<int>(index - token * p.a.heads), kv_head = head / p.group;
  const int query = static_cast<int>(token - e.token0);
  if (query < 0 || query >= e.s) return;  // a token that cu_seqlens give to nobody
  const int r = query * p.group + head % p.group;
  const Row row = row_of(p, e, kv_head, r);
  const Parts stored = parts_of(p, e, kv_head, r, static_cast<int>(index));
  if (stored.count <= 1) return;

  for (int i = threadIdx.x; i < stored.count; i += kMergeThreads) parts[i] = p.parts[stored.at(i)];
  __syncthreads();
  RowState state = {kMinusInfinity, 0, 0, 0};
#pragma unroll 4
  for (int i = 0; i < stored.count; ++i) {
    const Merge m = merge(state, parts[i]);
    state = m.state;
    if (threadIdx.x == 0) merges[i] = {m.earlier, m.later};
  }
  __syncthreads();
  const End end = end_of(p, head, state);
  if (threadIdx.x == 0) {
    if (p.a.lse) *lse_of(p, e, row) = end.lse;
    if (p.row_state) p.row_state[index] = end.state;
  }
  T* const out = out_row<T>(p, e, row);
  for (int64_t column = threadIdx.x; column < p.a.dv; column += kMergeThreads) {
    constexpr int kAtOnce = 8;  // loads under way
    float sum = 0;
    for (int i = 0; i < stored.count; i += kAtOnce) {
      float value[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        value[j] = i + j < stored.count && parts[i + j].total != 0 ? p.sums[int64_t{stored.at(i + j)} * p.sum_width + column] : 0;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (i + j < stored.count) sum = merge_sums(sum, merges[i + j].x, value[j], merges[i + j].y);
    }
    out[column] = from_float<T>(sum * end.factor);
  }
  if (!state.spoiled) return;
  __syncthreads();
  restore_row<T, BlockThreads<kMergeThreads>, kPaged>(p, e, kv_head, row, end.state, weights);
}

struct Plan {
  Problem p;
  bool mma, large, hopper;
  int64_t blocks;
  HopperOrder order;
  size_t part_bytes, start_bytes, row_state_bytes, order_bytes;
};

// Whether each eight neighbours of x (of `item` bytes) can be read at once, or four and four.
bool chunks_aligned(const Strided4& x, int64_t b, int64_t h, int64_t s, int item = 2) {
  const auto whole = [&](int64_t n, int64_t stride) { return n <= 1 || stride % (item == 4 ? 4 : 8) == 0; };
  return reinterpret_cast<uintptr_t>(x.data) % (item == 1 ? 8 : 16) == 0 && whole(b, x.b) && whole(h, x.h) && whole(s, x.s);
}

// Blocks that a multiprocessor holds.
int64_t blocks_at_once(const Plan& plan, int width) {
  if (plan.hopper) return 1;
  if (!plan.mma) return blocks_that_fit(kSimtBytes, kSimtBlocks);
  return blocks_that_fit(mma_bytes(plan.p.tile_rows, width), mma_blocks(plan.p.tile_rows, width));
}

// What attention_sm90.cuh can do; its head says who does the rest.
bool hopper_takes(const Problem& p) {
  const AttentionArgs& a = p.a;
  const auto apart = [&](const Strided4& x) {
    return (a.t == 1 || x.s > 0) && (a.kv_heads == 1 || x.h > 0) && (a.batch == 1 || a.cu_k.data || x.b > 0);
  };
  return a.q.dtype != DType::f32 && std::max(a.d, a.dv) <= 256 && a.t > 0 && p.aligned && apart(a.k) && apart(a.v) &&
         !a.block_tables.data && !a.batch_invariant;
}

constexpr int64_t kSectionBytes = 32 << 20;  // of keys and values that stay in the L2 cache while others come

HopperOrder hopper_order(const Plan& plan, int multiprocessors) {
  const Problem& p = plan.p;
  const AttentionArgs& a = p.a;
  HopperOrder order = {};
  order.tiles = static_cast<int>(plan.blocks * p.splits);
  order.heads = static_cast<int>(plan.blocks / p.row_tiles);
  order.section = 1;
  if (a.causal != Causal::none && !a.cu_q.data)
    order.section = static_cast<int>(std::clamp(kSectionBytes / (a.t * (a.d + a.dv) * 2), int64_t{1}, int64_t{order.heads}));
  order.blocks = static_cast<unsigned>(std::min(order.tiles, multiprocessors));
  return order;
}

int clip_window(int64_t side) { return static_cast<int>(side < kMostTokens - 1 ? side : kMostTokens - 1); }

// The splits, at most `most`, that are over first, where `room` blocks run at once and each has `tiles` of keys before it is
// split. Counted in tiles: the blocks that run one after another in one place, each with what it takes to begin and, as one of
// several, to write and read its `part`, and the merge's launch. (The fewest that kept 85 % of the places busy left one sequence
// of 32768 keys at 0.69 of an H200's bandwidth: 232 blocks in 264 places, two of 18 tiles on a multiprocessor where 31 in all
// would do.)
int choose_splits(int64_t blocks, int64_t room, int64_t tiles, int64_t part, int64_t most) {
  constexpr int64_t kMerge = 2;
  const auto cost = [&](int64_t splits) {
    const int64_t each = ceil_div(tiles, splits) + kTilesToBegin + (splits > 1 ? part : 0);
    return ceil_div(blocks * splits, room) * each + (splits > 1 ? kMerge : 0);
  };
  int64_t best = 1;
  for (int64_t splits = 2; splits <= most; ++splits)
    if (cost(splits) < cost(best)) best = splits;
  return static_cast<int>(best);
}

Plan plan_of(const AttentionArgs& a) {
  Plan plan = {};
  Problem& p = plan.p;
  const bool packed = a.cu_q.data, paged = a.block_tables.data;
  p.a = a;
  p.group = static_cast<int>(a.heads / a.kv_heads);
  if (a.s > kMostTokens / p.group || a.t > kMostTokens || a.max_distance > kMostTokens || a.d > kMostTokens || a.dv > kMostTokens)
    throw Error(cudaErrorInvalidValue, "attention: more than 2^30 tokens, or rows of one key head, in a call");
  if (paged) {
    if (a.block_size > kMostTokens || a.blocks > INT32_MAX || a.more_keys > kMostTokens)
      throw Error(cudaErrorInvalidValue, "attention: a cache of more than 2^31 blocks, or of blocks of more than 2^30 tokens");
    // Granlund & Montgomery 1994, for dividends below 2^31.
    const uint64_t size = a.block_size > 0 ? static_cast<uint64_t>(a.block_size) : 1;
    while (uint64_t{1} << p.block_shift < size) ++p.block_shift;
    p.block_magic = static_cast<unsigned>(((uint64_t{1} << 32) * ((uint64_t{1} << p.block_shift) - size)) / size + 1);
  }
  p.left = clip_window(a.window_left);
  p.right = a.causal == Causal::none ? clip_window(a.window_right) : 0;
  if (a.softcap > 0 || a.bias.data || a.mask.data || a.relative_bias || a.alibi || !(a.scale > 0)) p.adjusted = true;
  const int64_t q_b = packed ? 1 : a.batch, most = a.d > a.dv ? a.d : a.dv;
  p.aligned = a.d % 8 == 0 && a.dv % 8 == 0 && chunks_aligned(a.q, q_b, a.heads, a.s) && chunks_aligned(a.out, q_b, a.heads, a.s);
  for (const Strided4* x : {&a.k, &a.v})
    p.aligned = p.aligned && (paged ? chunks_aligned(*x, a.blocks, a.kv_heads, a.block_size, stored_size(a.stored))
                                    : chunks_aligned(*x, q_b, a.kv_heads, a.t));
  p.rows = (packed ? 1 : a.batch) * a.s * a.heads;
  p.sum_width = static_cast<int>((a.dv + 3) / 4 * 4);

  const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
  const int64_t head_rows = a.s * p.group;                              // of a batch entry and key head; packed: of all entries
  const int64_t usual_rows = packed ? head_rows / a.batch : head_rows;  // of one entry
  const int64_t usual_keys = packed && !paged ? ceil_div(a.t, a.batch) : a.t;
  const auto tiles = [&](int64_t rows) { return packed ? head_rows / rows + a.batch : ceil_div(head_rows, rows); };
  const auto blocks = [&](int64_t rows) { return tiles(rows) * a.kv_heads * (packed ? 1 : a.batch); };

  plan.mma = a.q.dtype != DType::f32 && most <= kMostMmaWidth;
  const int width = mma_width(most);
  // With few rows tensor cores wait for keys, and smaller blocks have more of those under way. Narrow heads would be half zeros.
  plan.hopper = hopper_takes(p) && use_hopper(usual_rows > kMmaRows && most > 32);
  if (plan.hopper) {
    p.tile_rows = hopper_rows(hopper_width(most), !p.adjusted);
  } else if (plan.mma) {
    plan.large =
        !paged && !p.adjusted && p.aligned && usual_rows > kMmaRows && blocks(mma_rows(true, width)) * 2 >= multiprocessors;
    p.tile_rows = mma_rows(plan.large, width);
  } else {
    p.tile_rows = kSimtRows;
  }
  p.row_tiles = tiles(p.tile_rows);
  plan.blocks = blocks(p.tile_rows);
  if (plan.blocks > INT32_MAX) throw Error(cudaErrorInvalidValue, "attention: more than 2^31 tiles of queries in a call");

  const int64_t room = multiprocessors * blocks_at_once(plan, width), part_row = p.rows * (p.sum_width * 4 + sizeof(RowState));
  const int64_t keys = plan.hopper ? hopper_keys(hopper_width(most)) : mma_keys(width);  // of a tile
  // Few rows each: how long sequences are, which the host does not know, decides how their keys are dealt out. Of very many
  // blocks a long one ends with the others anyway; there each worker's look at all lengths and the merge would be the cost.
  const bool deal = paged && plan.mma && usual_rows <= p.tile_rows && plan.blocks < 16 * room &&
                    (plan.blocks + p.group) * (ceil_div(a.t, keys) + kTilesToBegin + 1) <= INT32_MAX;
  p.splits = 1;
  if (a.batch_invariant) {
    const int64_t chunks = ceil_div(a.t, int64_t{kChunkKeys});
    p.chunks = chunks > 1;
    p.fold = p.chunks && ((plan.blocks * 2 > room && !deal) || chunks > kMostSplits || chunks * part_row > kMostPartBytes);
    if (p.chunks) p.splits = p.fold ? 2 : static_cast<int>(chunks);  // fold: any number that is not 1
  } else if (!deal) {
    const int64_t useful = usual_keys / kLeastSplitKeys, affordable = kMostPartBytes / (part_row + 1);
    const int64_t part = 2 * std::min(usual_rows, int64_t{p.tile_rows}) / keys;  // float sums beside keys and values of 16 bits
    p.splits =
        choose_splits(plan.blocks, room, ceil_div(usual_keys, keys), part, std::min({useful, affordable, int64_t{kMostSplits}}));
  }
  if (p.splits > 1) plan.part_bytes = static_cast<size_t>((p.fold ? 1 : p.splits) * part_row);
  if (deal && !p.fold && (p.chunks || (!a.batch_invariant && a.t >= 2 * kLeastSplitKeys))) {
    p.workers = static_cast<int>(std::min(room, plan.blocks * ceil_div(a.t, p.chunks ? int64_t{kChunkKeys} : keys)));
    p.tile_keys = static_cast<int>(keys);
    plan.start_bytes = static_cast<size_t>(a.batch + 1) * sizeof(*p.starts);
    if (!p.chunks) {
      p.slot_rows = static_cast<int>(std::min((a.most_s > 0 ? a.most_s : a.s) * p.group, int64_t{p.tile_rows}));
      plan.part_bytes = static_cast<size_t>(2 * p.workers * p.slot_rows) * (p.sum_width * 4 + sizeof(RowState));
    }
  }
  if (plan.hopper) {
    plan.order = hopper_order(plan, multiprocessors);
    if (plan.order.tiles > multiprocessors) plan.order_bytes = 16;
  }
  if (a.weights) plan.row_state_bytes = static_cast<size_t>(p.rows) * sizeof(RowState);
  return plan;
}

bool nothing_to_do(const AttentionArgs& a) { return a.batch * a.heads * a.s == 0; }

}  // namespace

size_t attention_workspace(const AttentionArgs& a) {
  if (nothing_to_do(a)) return 0;
  const Plan plan = plan_of(a);
  return plan.part_bytes + plan.start_bytes + plan.row_state_bytes + plan.order_bytes;
}

void attention(const AttentionArgs& a, Stream on) {
  if (nothing_to_do(a)) return;
  Plan plan = plan_of(a);
  Problem& p = plan.p;
  const auto stream = static_cast<cudaStream_t>(on);
  char* const workspace = static_cast<char*>(a.workspace);
  if (a.weights) p.row_state = reinterpret_cast<RowState*>(workspace);
  if (plan.part_bytes) {
    p.parts = reinterpret_cast<RowState*>(workspace + plan.row_state_bytes);
    p.sums = reinterpret_cast<float*>(p.parts + plan.part_bytes / (p.sum_width * 4 + sizeof(RowState)));
  }
  if (p.workers) p.starts = reinterpret_cast<int64_t*>(workspace + plan.row_state_bytes + plan.part_bytes);
  if (plan.order_bytes) plan.order.taken = reinterpret_cast<unsigned*>(workspace + plan.row_state_bytes + plan.part_bytes);
  if (plan.hopper)
    (a.q.dtype == DType::f16 ? launch_hopper<__half> : launch_hopper<__nv_bfloat16>)(p, plan.order, stream);
  else if (!plan.mma)
    (a.block_tables.data ? launch_simt_paged : launch_simt)(p, plan.blocks, stream);
  else if (a.block_tables.data)
    (a.q.dtype == DType::f16 ? launch_mma_paged<__half> : launch_mma_paged<__nv_bfloat16>)(p, plan.blocks, stream);
  else if (a.q.dtype == DType::f16)
    launch_mma<__half>(p, plan.large, plan.blocks, stream);
  else
    launch_mma<__nv_bfloat16>(p, plan.large, plan.blocks, stream);
  if ((p.splits > 1 && !p.fold) || p.workers)
    with_dtype(a.q.dtype, [&](auto t) {
      const auto kernel = a.block_tables.data ? attention_merge<decltype(t), true> : attention_merge<decltype(t), false>;
      launch_dependent("attention", kernel, static_cast<unsigned>(p.rows), kMergeThreads, 0, stream, p);
    });
  if (a.weights) {
    p.tile_rows = kSimtRows;
    p.row_tiles = a.cu_q.data ? a.s * p.group / kSimtRows + a.batch : ceil_div(a.s * p.group, int64_t{kSimtRows});
    (a.block_tables.data ? launch_weights_paged : launch_weights)(p, p.row_tiles * a.kv_heads * (a.cu_q.data ? 1 : a.batch),
                                                                  stream);
  }
}

}  // namespace qkv::cuda

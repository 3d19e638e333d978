// Few rows over a paged cache: which block attends to which keys, planned on the device, where the lengths are.
//
// The tiles of keys of all tiles of rows stand in a line, and each block of a grid that just fills the GPU, a worker, takes an
// equal share of it, wherever that begins and ends: Stream-K (Osama et al. 2023, arXiv:2301.03598) for attention. So all
// multiprocessors are busy whatever the lengths, with a grid that the host can fix, and a captured step stays right when they
// change. (The line is shorter than 2^31, or else the host asks for no workers; one that is longer all the same, by offsets on
// the device that do not rise, is left alone.) At most the first and the last of a worker's pieces are parts of a tile of rows:
// those two go to slots of its own in the workspace, and attention_merge, which finds them by the same arithmetic, adds them up
// in the order of the keys.
//
// Where the splits must not depend on the batch (Problem::chunks) a worker takes those chunks of kChunkKeys that begin in its
// share, each for itself.
#pragma once
#include "cuda/attention_launch.cuh"

namespace qkv::cuda {

constexpr int kMostSplits = 128;
constexpr int kTilesToBegin = 2;  // what beginning and ending a tile of rows costs, in tiles of keys
constexpr int kLeastShare = 2;    // tiles; below, a worker more does not make the others faster

// Tiles of keys that tile `tile` of an entry's rows sees.
QKV_DEVICE TileRange keys_of(const Problem& p, const Entry& e, int tile) {
  const int row0 = tile * p.tile_rows, rows = e.s * p.group;
  if (row0 >= rows) return {0, 0};
  return tiles_seen(row_of(p, e, 0, row0), row_of(p, e, 0, min(row0 + p.tile_rows, rows) - 1), p.tile_keys);
}
QKV_DEVICE int row_tiles_of(const Problem& p, const Entry& e) { return (e.s * p.group + p.tile_rows - 1) / p.tile_rows; }

// The sum of min(i / group, most) over i < n, which are positive. A plan with workers has group * most < 2^31.
QKV_DEVICE int64_t ramp(const Problem& p, int64_t n, int most) {
  const int slope = static_cast<int>(min(max(n, int64_t{0}), int64_t{most} * p.group)), whole = slope / p.group;
  return int64_t{p.group} * whole * (whole - 1) / 2 + int64_t{whole} * (slope - whole * p.group) +
         max(n - slope, int64_t{0}) * most;
}

// The part of the line that belongs to an entry: for each key head its tiles of rows, and for each of those kTilesToBegin without
// a key, then the tiles of keys that it sees. Here: how long the first `count` tiles of rows of a key head are, as the sum of
// what keys_of says of each, in closed form. In tiles of keys of which m are as high as the R rows of a tile, tile t sees
// floor((m t + a) / G) to floor((m t + b) / G), cut at the first and at the last that some row sees. Each is a sum of m ramps,
// since floor(m x) = floor(x) + floor(x + 1 / m) + ... (Hermite), of which each rises by 1 in G tiles of rows. Tiles whose first
// row has left all keys behind see none.
QKV_DEVICE int64_t length_of(const Problem& p, const Entry& e, int count) {
  if (count == 0) return 0;
  if (count == 1) {
    const TileRange first = keys_of(p, e, 0);
    return kTilesToBegin + first.end - first.begin;
  }
  constexpr int kRows = kMmaRows;  // R
  const auto tile_at = [](int64_t x) { return (x < 0 ? x - kRows + 1 : x) / kRows; };
  const int64_t first = int64_t{e.shift} - p.left, last = int64_t{e.shift} + p.right;  // keys of query 0
  const int64_t n = clamp(tile_at((e.t - first) * p.group + kRows - 1), 0, count);
  const int most = static_cast<int>((clamp(e.s + last, 0, e.t) + p.tile_keys - 1) / p.tile_keys), m = kRows / p.tile_keys;
  int64_t seen = 0;
#pragma unroll 1  // or attention_merge spills on sm_80
  for (int i = 0; i < 2 * m; ++i) {
    const bool is_a = i < m;
    const int part = is_a ? i : i - m, cap = (most + part) / m;
    const int64_t key = (is_a ? first : last + p.tile_keys) + part * p.tile_keys;
    const int64_t x = tile_at(key * p.group + (is_a ? 0 : kRows - 1)), rise = ramp(p, x + n, cap) - ramp(p, x, cap);
    seen += is_a ? -rise : rise;
  }
  return count * kTilesToBegin + seen;
}
QKV_DEVICE int64_t length_of(const Problem& p, const Entry& e) { return p.a.kv_heads * length_of(p, e, row_tiles_of(p, e)); }

// What of the line is left to a worker, and the entry in which that begins.
struct Share {
  int64_t begin, end;
  int64_t b, start;  // of entry b's stretch
};

// Keys of a tile of rows.
struct Piece {
  TileRange keys;
  int part;   // its number in the workspace; kWhole: nothing is to be merged
  bool none;  // there is nothing more
};
constexpr int kWhole = -1;

// Finds the block's share and, in block 0, leaves for the merge where stretches begin and how long shares are. All threads;
// others see `share` after a barrier. `scratch`: shared memory for two numbers a warp.
template <int kThreads>
QKV_DEVICE void find_share(const Problem& p, Share* share, int64_t* scratch) {
  constexpr int kWarps = kThreads / 32;
  const int64_t each = (p.a.batch + kThreads - 1) / kThreads;
  const int64_t first = min(threadIdx.x * each, p.a.batch), last = min(first + each, p.a.batch);
  int64_t own = 0;
  int most = 0;  // tiles of keys
  for (int64_t b = first; b < last; ++b) {
    const Entry e = entry_of(p, b);
    own += length_of(p, e);
    if (e.s > 0) {
      const TileRange all = tiles_seen(row_of(p, e, 0, 0), row_of(p, e, 0, e.s * p.group - 1), p.tile_keys);
      most = max(most, all.end - all.begin);
    }
  }
  int64_t up_to = up_to_lane(own);
  most = __reduce_max_sync(kFullWarp, most);
  const int warp = threadIdx.x / 32;
  if (lane_id() == 31) {
    scratch[warp] = up_to;
    scratch[kWarps + warp] = most;
  }
  __syncthreads();
  int64_t total = 0, longest = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) up_to += scratch[i];
    total += scratch[i];
    longest = max(longest, scratch[kWarps + i]);
  }
  const auto shares = [](int64_t length, int64_t of) { return (length + of - 1) / of; };
  if (total > INT32_MAX) total = 0;
  const int64_t length =
      total == 0 ? 0 : max(max(shares(total, p.workers), int64_t{kLeastShare}), shares(longest, kMostSplits - 1));
  const int64_t begin = blockIdx.x * length;
  if (threadIdx.x == 0) {
    *share = {total, total, 0, 0};
    if (blockIdx.x == 0) p.starts[p.a.batch] = length;
  }
  __syncthreads();
  if (total == 0) return;
  int64_t start = up_to - own;
  if (blockIdx.x > 0 && (begin < start || begin >= up_to)) return;
  for (int64_t b = first; b < last; ++b) {
    const int64_t next = start + length_of(p, entry_of(p, b));
    if (blockIdx.x == 0) p.starts[b] = start;
    if (start <= begin && begin < next) *share = {begin, min(begin + length, total), b, start};
    start = next;
  }
}

// The next piece of the block's share. By one thread.
QKV_DEVICE void next_piece(const Problem& p, Share* share, Work* w, Piece* piece) {
  const int round = p.chunks ? kChunkKeys / p.tile_keys : 1;
  piece->none = true;
  while (share->begin < share->end) {
    const Entry e = entry_of(p, share->b);
    const int row_tiles = row_tiles_of(p, e);
    const int64_t each = length_of(p, e, row_tiles), at = share->begin - share->start;
    if (at >= p.a.kv_heads * each) {
      share->start += p.a.kv_heads * each;
      ++share->b;
      continue;
    }
    const int kv_head = static_cast<int>(at / each);
    const int64_t place = at - kv_head * each;
    int tile = 0;
    for (int end = row_tiles; end - tile > 1;) {
      const int middle = (tile + end) / 2;
      (length_of(p, e, middle) <= place ? tile : end) = middle;
    }
    const int64_t start = length_of(p, e, tile);
    const int from = static_cast<int>(place - start);
    const int to = static_cast<int>(min(length_of(p, e, tile + 1) - start, from + share->end - share->begin));
    const TileRange seen = keys_of(p, e, tile);
    // The first key at or behind a place of the stretch. Pieces of one worker, and of the next, fit together, since each asks so.
    const auto key_at = [&](int place) {
      const int key = seen.begin + max(place - kTilesToBegin, 0);
      return place <= kTilesToBegin ? seen.begin : min((key + round - 1) / round * round, seen.end);
    };
    TileRange keys = {key_at(from), key_at(to)};
    int done = to;
    if (p.chunks && keys.begin < keys.end) {
      keys.end = min((keys.begin / round + 1) * round, seen.end);
      done = keys.end - seen.begin + kTilesToBegin;
    }
    share->begin += done - from;
    const bool nothing_seen = seen.begin == seen.end && from == 0;  // zeros are to be written
    if (keys.begin >= keys.end && !nothing_seen) continue;
    const int row0 = tile * p.tile_rows;
    *w = {e, kv_head, row0, min(e.s * p.group - row0, p.tile_rows), 0};
    const bool begins = keys.begin == seen.begin, whole = begins && keys.end == seen.end;
    *piece = {keys, whole ? kWhole : p.chunks ? keys.begin / round : static_cast<int>(2 * blockIdx.x) + begins, false};
    return;
  }
}

// Where the parts of a row stand in the workspace, in rows: `first`, then `rest` + i `step` for i = 1 ... count - 1. No more than
// one: it has been written already.
struct Parts {
  int count, first, rest, step;
  QKV_DEVICE int at(int i) const { return i == 0 ? first : rest + i * step; }
};

// Of row r of a key head, which is row `index` of all.
QKV_DEVICE Parts parts_of(const Problem& p, const Entry& e, int kv_head, int r, int index) {
  const int rows = static_cast<int>(p.rows);
  if (!p.workers) return {p.splits, index, index, rows};
  const int tile = r / p.tile_rows;
  const TileRange seen = keys_of(p, e, tile);
  if (seen.begin == seen.end) return {0, 0, 0, 0};
  if (p.chunks) {
    const int round = kChunkKeys / p.tile_keys, chunk = seen.begin / round, first = chunk * rows + index;
    return {(seen.end + round - 1) / round - chunk, first, first, rows};
  }
  const int length = static_cast<int>(p.starts[p.a.batch]);
  if (length == 0) return {0, 0, 0, 0};
  const int keys =
      static_cast<int>(p.starts[e.b] + kv_head * length_of(p, e, row_tiles_of(p, e)) + length_of(p, e, tile)) + kTilesToBegin;
  const int first = keys / length, row = r - tile * p.tile_rows;  // first: a worker
  const int last = (keys + seen.end - seen.begin - 1) / length;
  return {last - first + 1, (2 * first + 1) * p.slot_rows + row, 2 * first * p.slot_rows + row, 2 * p.slot_rows};
}

}  // namespace qkv::cuda

// What the kernels of attention share: the arguments with the plan beside them, batch entries, rows of a tile and the keys that
// they see.
//
// A tile's rows are the queries of one key head: row r is query r / G of the G heads that read that key head, head r % G among
// them, so that keys are read once for the whole group. A tile's keys begin at multiples of the tile's height, whatever the rows:
// a row's sums are then the same, to the bit, in a tile of any shape.
#pragma once
#include <stdint.h>

#include "cuda/intrinsics.cuh"
#include "cuda/ints.cuh"
#include "cuda/kernels.h"

namespace qkv::cuda {

constexpr int kMostTokens = 1 << 30;  // of one sequence: positions are 32-bit numbers
constexpr int kChunkKeys = 1024;      // of a split that does not depend on the batch; a multiple of every tile's keys

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kMinusInfinity = -__builtin_inff();

// Softmax of a row as far as it has come: e^maximum * total is the sum of e^score. total == 0: no key yet.
struct __align__(16) RowState {
  float maximum, total;
  int spoiled;  // some value was not finite and is missing from the sums: see attention_spoiled.cuh
  int unused;
};

struct Problem {
  AttentionArgs a;
  int group;             // heads that share a key head
  int64_t row_tiles;     // of a key head and batch entry; packed: of a key head, in all, at most
  int tile_rows;         // of the kernel that runs
  bool adjusted;         // scores are not scale * q.k alone
  bool aligned;          // rows of q, k, v and out begin at multiples of 16 bytes and are multiples of 16 bytes long
  int left, right;       // the window, with causality in it
  int splits;            // of the keys; each is a block of its own, and attention_merge follows
  bool chunks;           // splits are chunks of kChunkKeys; else each tile's keys are dealt out evenly
  bool fold;             // a block takes one chunk after the other and merges as it goes
  int workers;           // attention_plan.cuh: blocks, of which each takes a share of all tiles of keys; or 0
  int tile_keys;         // workers: of the kernel that runs
  int slot_rows;         // workers without chunks: rows of a part, else 0
  int64_t* starts;       // workers: (B + 1), what merging must know of the plan
  int64_t rows;          // (token, head) in all
  int sum_width;         // dv, up to a multiple of 4
  float* sums;           // of parts, (..., sum_width): values summed but not divided
  RowState* parts;       // (splits, rows); fold: (rows); with slot_rows (workers, 2, slot_rows)
  RowState* row_state;   // (rows), for the weights, or nullptr
  unsigned block_magic;  // paged: place / block_size = (mulhi(place, block_magic) + place) >> block_shift
  int block_shift;
};

// Batch entry b.
struct Entry {
  int64_t b, q0, k0;  // q0, k0: first token on a packed axis, else 0; paged: k0 is the place of key 0
  int64_t token0;     // of query 0 among all tokens
  int s, t;           // t: keys that count
  int stored_t;       // keys that are there: the width of weights
  int shift;          // position of query 0
};

// A row of a tile, and the keys [first, last) that it may see. 16 bytes of shared memory.
struct __align__(16) Row {
  int first, last, query, head;
};

QKV_DEVICE int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

QKV_DEVICE Entry entry_of(const Problem& p, int64_t b) {
  const AttentionArgs& a = p.a;
  Entry e;
  e.b = b;
  e.q0 = e.k0 = 0;
  e.token0 = b * a.s;
  e.s = static_cast<int>(a.s);
  e.stored_t = static_cast<int>(a.t);
  if (a.cu_q.data) {  // nobody has checked them: whatever they hold, memory of others is safe
    e.q0 = e.token0 = clamp(read_int(a.cu_q, b), 0, a.s);
    e.s = static_cast<int>(clamp(read_int(a.cu_q, b + 1), e.q0, a.s) - e.q0);
  }
  if (a.block_tables.data) {
    constexpr int64_t kFar = int64_t{1} << 60;
    const int64_t length =
        a.cu_k.data ? clamp(read_int(a.cu_k, b + 1), 0, kFar) - clamp(read_int(a.cu_k, b), 0, kFar) : read_int(a.kv_lengths, b);
    if (a.starts.data) e.k0 = clamp(read_int(a.starts, b), 0, a.t);
    e.stored_t = static_cast<int>(clamp(clamp(length, 0, a.t) + a.more_keys, e.k0, a.t) - e.k0);
  } else if (a.cu_q.data) {
    e.k0 = clamp(read_int(a.cu_k, b), 0, a.t);
    e.stored_t = static_cast<int>(clamp(read_int(a.cu_k, b + 1), e.k0, a.t) - e.k0);
  }
  e.t =
      a.kv_lengths.data && !a.block_tables.data ? static_cast<int>(clamp(read_int(a.kv_lengths, b), 0, e.stored_t)) : e.stored_t;
  e.shift = a.causal == Causal::top_left ? 0 : e.t - e.s;
  return e;
}

QKV_DEVICE Row row_of(const Problem& p, const Entry& e, int kv_head, int r) {
  Row row;
  row.query = r / p.group;
  row.head = kv_head * p.group + (r - row.query * p.group);
  const int position = row.query + e.shift;
  row.first = min(max(position - p.left, 0), e.t);
  row.last = max(min(position + p.right + 1, e.t), row.first);
  return row;
}

QKV_DEVICE int64_t row_index(const Problem& p, const Entry& e, const Row& row) {
  return (e.token0 + row.query) * p.a.heads + row.head;
}

// First of the tiles set aside for packed sequence b. floor(x + y) + 1 - floor(x) >= ceil(y), so each has as many as it needs.
QKV_DEVICE int64_t packed_tile(const Problem& p, int64_t b) {
  return clamp(read_int(p.a.cu_q, b), 0, p.a.s) * p.group / p.tile_rows + b;
}

// What a block works on.
struct Work {
  Entry e;
  int kv_head, row0, rows;  // rows row0 ... row0 + rows - 1 of the key head
  int unused;               // is written, since it is read with the others
};

// The share of block `block`; false: there is nothing to do. Tiles of one key head are neighbours, so that their keys stay in the
// L2 cache; under causality those that see most keys come first, so that none is left over at the end.
QKV_DEVICE bool find_work(const Problem& p, unsigned block, Work* w) {
  const AttentionArgs& a = p.a;
  const unsigned tiles = static_cast<unsigned>(p.row_tiles), rest = block / tiles;  // there are fewer than 2^31 in all
  int64_t tile = block - rest * tiles;
  int64_t b = 0;
  if (a.cu_q.data) {
    int64_t end = a.batch;
    while (end - b > 1) {
      const int64_t middle = (b + end) / 2;
      (packed_tile(p, middle) <= tile ? b : end) = middle;
    }
    tile -= packed_tile(p, b);
    w->kv_head = static_cast<int>(rest);
  } else {
    b = rest / static_cast<unsigned>(a.kv_heads);
    w->kv_head = static_cast<int>(rest - b * a.kv_heads);
    if (a.causal != Causal::none) tile = p.row_tiles - 1 - tile;
  }
  w->e = entry_of(p, b);
  const int64_t rows = static_cast<int64_t>(w->e.s) * p.group, row0 = tile * p.tile_rows;
  if (row0 < 0 || row0 >= rows) return false;  // below 0: tokens before the first sequence, which cu_q may skip
  w->unused = 0;
  w->row0 = static_cast<int>(row0);
  w->rows = static_cast<int>(rows - row0 < p.tile_rows ? rows - row0 : p.tile_rows);
  return true;
}

// The block's rows into shared memory. Rows past the last are its copies: they are computed and not stored.
template <int kRows, int kThreads>
QKV_DEVICE void write_rows(const Problem& p, const Work& w, Row* rows) {
  for (int r = threadIdx.x; r < kRows; r += kThreads) rows[r] = row_of(p, w.e, w.kv_head, w.row0 + min(r, w.rows - 1));
}

// Tiles of keys [begin, end).
struct TileRange {
  int begin, end;
};

// Those of `keys` keys that some row between `first` and `last` (inclusive: rows follow each other) sees.
QKV_DEVICE TileRange tiles_seen(const Row& first, const Row& last, int keys) {
  if (first.first >= last.last) return {0, 0};
  return {first.first / keys, (last.last + keys - 1) / keys};
}
template <int kKeys>
QKV_DEVICE TileRange tiles_seen(const Row& first, const Row& last) {
  return tiles_seen(first, last, kKeys);
}

// The part of `all` that falls to split `split`.
template <int kKeys>
QKV_DEVICE TileRange split_of(const Problem& p, TileRange all, int split) {
  if (p.splits == 1) return all;
  int from = kChunkKeys / kKeys * split, to = from + kChunkKeys / kKeys;
  if (!p.chunks) {
    const int each = (all.end - all.begin + p.splits - 1) / p.splits;
    from = all.begin + each * split;
    to = from + each;
  }
  return {max(all.begin, from), min(all.end, to)};
}

// Where row r of the tile stands in the workspace, as part number `part`.
QKV_DEVICE int64_t part_index(const Problem& p, const Work& w, const Row* rows, int r, int part) {
  return p.slot_rows ? static_cast<int64_t>(part) * p.slot_rows + r : part * p.rows + row_index(p, w.e, rows[r]);
}

// For a part without a key: what the merge must know of it. All threads of the block.
template <int kThreads>
QKV_DEVICE void leave_part(const Problem& p, const Work& w, const Row* rows, int part) {
  for (int r = threadIdx.x; r < w.rows; r += kThreads) p.parts[part_index(p, w, rows, r, part)] = {kMinusInfinity, 0, 0, 0};
}

// Where the values of a head's row lie: x is q or out (token: query) or k or v (token: key, its head).
template <class T>
QKV_DEVICE T* element(const Strided4& x, const Entry& e, int64_t token0, int64_t head, int64_t token, bool packed) {
  return reinterpret_cast<T*>(x.data) + (packed ? 0 : e.b * x.b) + head * x.h + (token0 + token) * x.s;
}
template <class T>
QKV_DEVICE const T* query_row(const Problem& p, const Entry& e, const Row& row) {
  return element<T>(p.a.q, e, e.q0, row.head, row.query, p.a.cu_q.data);
}
template <class T>
QKV_DEVICE T* out_row(const Problem& p, const Entry& e, const Row& row) {
  return element<T>(p.a.out, e, e.q0, row.head, row.query, p.a.cu_q.data);
}
template <class T>
QKV_DEVICE const T* key_row(const Problem& p, const Strided4& x, const Entry& e, int kv_head, int key) {
  return element<T>(x, e, e.k0, kv_head, key, p.a.cu_k.data);
}

QKV_DEVICE float* lse_of(const Problem& p, const Entry& e, const Row& row) {
  return p.a.lse + e.b * p.a.lse_b + row.head * p.a.lse_h + e.q0 + row.query;
}

}  // namespace qkv::cuda

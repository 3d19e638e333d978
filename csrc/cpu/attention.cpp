// attention: out_i = sum_j p_ij v_j with p_i = softmax_j(softcap(scale q_i.k_j) + bias_ij + relative_bias[j - i] - slope |i - j|)
//
// Flash style: a tile of query rows walks over blocks of keys; scores of one block are all that exists of the S x T matrix. The
// heads that share a key head are rows of the same tile, so that keys are packed once for all of them. Blocks that causality, the
// window or the lengths exclude for every row of the tile are skipped, and excluded keys inside a block are never read into a
// row.
#include <math.h>

#include "cpu/flash.h"
#include "cpu/kernels.h"
#include "cpu/keys.h"

namespace qkv {
namespace QKV_ISA {

// Batch entry b: its lengths and where its tokens start.
struct Entry {
  int64_t b, s, t;   // t: keys that count
  int64_t stored_t;  // keys that are there: the width of weights
  int64_t q0, k0;    // first token on a packed axis, else 0
  int64_t shift;     // position of query 0
};

static Entry entry_of(const AttentionArgs& a, int64_t b) {
  Entry e;
  e.b = b;
  e.q0 = a.cu_q ? a.cu_q[b] : 0;
  e.k0 = a.cu_k ? a.cu_k[b] : 0;
  e.s = a.cu_q ? a.cu_q[b + 1] - e.q0 : a.s;
  e.stored_t = a.cu_k ? a.cu_k[b + 1] - e.k0 : a.blocks ? a.kv_lengths[b] : a.t;
  e.t = a.kv_lengths ? a.kv_lengths[b] : e.stored_t;
  e.shift = a.causal == Causal::top_left ? 0 : e.t - e.s;
  return e;
}

// Where the keys (x is a.k) or values of an entry lie.
static KeySource source_of(const AttentionArgs& a, const Strided4& x, const Strided4& scale, const Entry& e, int64_t kv_head) {
  KeySource s = {};
  const int64_t size = scale.data ? 1 : size_of(x.dtype);
  s.data = x.data + ((a.cu_k || a.blocks ? 0 : e.b * x.b) + kv_head * x.h + e.k0 * x.s) * size;
  s.dtype = x.dtype;
  s.row = x.s;
  s.step = x.d;
  if (scale.data) s.scale = (const float*)scale.data + kv_head * scale.h;
  s.scale_row = scale.s;
  s.scale_block = scale.b;
  if (a.blocks) s.table = a.blocks + a.cu_blocks[e.b];
  s.block_size = a.block_size;
  s.block = x.b;
  s.start = a.blocks ? a.starts[e.b] : 0;
  return s;
}

// Row r of a tile: a query and a head.
struct Row {
  int64_t query, head, position;
  int64_t first, last;  // keys [first, last) are its to see
};

static inline Row row_of(const AttentionArgs& a, const Entry& e, int64_t kv_head, int64_t r) {
  const int64_t group = a.heads / a.kv_heads;
  Row row;
  row.query = r / group;
  row.head = kv_head * group + r % group;
  row.position = row.query + e.shift;
  row.first = row.position - a.window_left;
  row.last = row.position + a.window_right + 1;
  if (a.causal != Causal::none && row.last > row.position + 1) row.last = row.position + 1;
  if (row.first < 0) row.first = 0;
  if (row.last > e.t) row.last = e.t;
  if (row.last < row.first) row.last = row.first;
  return row;
}

// Adds what stands beside q.k to the scores s[j] of keys key + j, j in [begin, end), and excludes what is masked.
static void adjust(const AttentionArgs& a, const Entry& e, const Row& row, float* s, int64_t key, int64_t begin, int64_t end) {
  const int64_t n = end - begin, k = key + begin;
  float* const x = s + begin;
  if (a.softcap > 0) {
    const Vec cap = set(a.softcap), inverse = set(1.0f / a.softcap);
    each(n, [&](int64_t j, auto count) { store(x + j, mul(cap, tanh(mul(load(x + j, count), inverse))), count); });
  }
  if (a.bias.data) {
    const int64_t at = e.b * a.bias.b + row.head * a.bias.h + row.query * a.bias.s + k * a.bias.d;
    with_type(a.bias.dtype, (const void*)(a.bias.data + at * size_of(a.bias.dtype)), [&](auto* bias) {
      if (a.bias.d == 1)
        each(n, [&](int64_t j, auto count) { store(x + j, add(load(x + j, count), load(bias + j, count)), count); });
      else
        for (int64_t j = 0; j < n; ++j) x[j] += to_float(bias[j * a.bias.d]);
    });
  }
  if (a.relative_bias) {
    const int64_t most = a.max_distance;
    const float* table = a.relative_bias + row.head * (2 * most + 1) + most;
    const int64_t distance = k - row.position;  // of j = 0
    int64_t j = 0;
    for (; j < n && distance + j < -most; ++j) x[j] += table[-most];
    const int64_t inside = most + 1 - distance < n ? most + 1 - distance : n;  // first j beyond the table
    if (inside > j) {
      float* const y = x + j;
      const float* const from = table + distance + j;
      each(inside - j, [&](int64_t i, auto count) { store(y + i, add(load(y + i, count), load(from + i, count)), count); });
      j = inside;
    }
    for (; j < n; ++j) x[j] += table[most];
  }
  if (a.alibi) {
    const Vec slope = set(a.alibi[e.b * a.alibi_b + row.head]);
    const float distance = (float)(row.position - k);
    each(n, [&](int64_t j, auto count) {
      const Vec d = abs(sub(set(distance - (float)j), iota()));
      store(x + j, fnma(slope, d, load(x + j, count)), count);
    });
  }
  if (a.mask.data) {
    const uint8_t* mask =
        (const uint8_t*)a.mask.data + e.b * a.mask.b + row.head * a.mask.h + row.query * a.mask.s + k * a.mask.d;
    if (a.mask.d == 1)
      each(n, [&](int64_t j, auto count) {
        store(x + j, select(load_mask(mask + j, count), load(x + j, count), set(kMinusInfinity)), count);
      });
    else
      for (int64_t j = 0; j < n; ++j)
        if (!mask[j * a.mask.d]) x[j] = kMinusInfinity;
  }
}

static void attention_tile(const AttentionArgs& a, const Entry& e, int64_t kv_head, int64_t row0, int64_t rows, float* scratch) {
  const int64_t tile_rows = a.plan.tile_rows;
  FlashTile f;
  f.rows = rows;
  f.dv = a.dv;
  f.dv_padded = panels_of(a.dv) * kPanel;
  float* const q = scratch;                 // (rows, D)
  float* const keys = q + tile_rows * a.d;  // panels of (D, 16)
  f.scores = keys + kKeyBlock * a.d;
  f.sums = f.scores + tile_rows * kKeyBlock;
  f.values = f.sums + tile_rows * f.dv_padded;
  f.maximum = f.values + kKeyBlock * f.dv_padded;
  f.total = f.maximum + tile_rows;
  float* const raw_rows = f.total + tile_rows;  // (rows, stored T), where weights are not float

  int64_t first = e.t, last = 0;  // keys that some row sees
  flash_start(f);
  for (int64_t r = 0; r < rows; ++r) {
    const Row row = row_of(a, e, kv_head, row0 + r);
    if (row.first < row.last) {
      if (row.first < first) first = row.first;
      if (row.last > last) last = row.last;
    }
    const char* from =
        a.q.data + ((a.cu_q ? 0 : e.b * a.q.b) + row.head * a.q.h + (e.q0 + row.query) * a.q.s) * size_of(a.q.dtype);
    float* to = q + r * a.d;
    gather(to, a.q.dtype, from, a.q.d, a.d);
    each(a.d, [&](int64_t i, auto count) { store(to + i, mul(load(to + i, count), set(a.scale)), count); });
    if (a.sinks && a.sinks[row.head] != kMinusInfinity) {  // one more logit, without a value
      f.maximum[r] = a.sinks[row.head];
      f.total[r] = 1;
    }
  }

  const auto raw_row = [&](int64_t r, const Row& row) {
    if (a.plan.weight_rows) return raw_rows + r * e.stored_t;
    return (float*)a.weights[e.b] + (row.head * e.s + row.query) * e.stored_t;
  };
  if (a.weights)
    for (int64_t r = 0; r < rows; ++r) {
      float* raw = raw_row(r, row_of(a, e, kv_head, row0 + r));
      for (int64_t j = 0; j < e.stored_t; ++j) raw[j] = kMinusInfinity;
    }

  const KeySource k = source_of(a, a.k, a.k_scale, e, kv_head), v = source_of(a, a.v, a.v_scale, e, kv_head);
  for (int64_t key = first / kKeyBlock * kKeyBlock; key < last; key += kKeyBlock) {
    // Keys [begin, end) of the block are touched. A lane's place depends on the key alone.
    const int64_t begin = key < first ? first - key : 0, end = last - key < kKeyBlock ? last - key : kKeyBlock;
    const int64_t panel = begin / kPanel * kPanel, width = end - panel;
    load_keys(keys, k, key + begin, end - begin, begin - panel, a.d);
    block(rows, width, a.d, q, a.d, keys, kPanel, a.d * kPanel, f.scores + panel, kKeyBlock, true);

    for (int64_t r = 0; r < rows; ++r) {
      const Row row = row_of(a, e, kv_head, row0 + r);
      float* const s = f.scores + r * kKeyBlock;
      int64_t from = row.first - key, to = row.last - key;
      from = from < begin ? begin : from > end ? end : from;
      to = to < from ? from : to > end ? end : to;
      for (int64_t j = 0; j < from; ++j) s[j] = kMinusInfinity;
      for (int64_t j = to; j < end; ++j) s[j] = kMinusInfinity;
      if (from < to) adjust(a, e, row, s, key, from, to);
      if (a.weights) memcpy(raw_row(r, row) + key + from, s + from, (size_t)(to - from) * 4);
      flash_softmax(f, r, end);
    }
    const bool finite = load_values(f.values + begin * f.dv_padded, v, key + begin, end - begin, f.dv, f.dv_padded);
    flash_accumulate(f, begin, end, finite);
  }

  for (int64_t r = 0; r < rows; ++r) {
    const Row row = row_of(a, e, kv_head, row0 + r);
    const int64_t token = e.q0 + row.query;
    flash_finish(f, r, a.out.dtype,
                 a.out.data + ((a.cu_q ? 0 : e.b * a.out.b) + row.head * a.out.h + token * a.out.s) * size_of(a.out.dtype));
    if (a.lse)
      a.lse[e.b * a.lse_b + row.head * a.lse_h + token] = f.total[r] == 0 ? kMinusInfinity : f.maximum[r] + logf(f.total[r]);
    if (a.weights)
      flash_weights(f, r, raw_row(r, row), e.stored_t, a.q.dtype,
                    a.weights[e.b] + (row.head * e.s + row.query) * e.stored_t * size_of(a.q.dtype));
  }
}

void attention(const AttentionArgs& a) {
  const int64_t group = a.heads / a.kv_heads, per_head = a.tiles[a.batch];
  parallel(per_head * a.kv_heads, 1, a.threads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t item = begin; item < end; ++item) {
      // Tiles of one head are neighbours: their keys stay in cache. The last tile sees most keys under causality: it goes first.
      const int64_t kv_head = item / per_head, tile = per_head - 1 - item % per_head;
      int64_t low = 0, high = a.batch;  // tiles[low] <= tile < tiles[high]
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (a.tiles[middle] <= tile ? low : high) = middle;
      }
      const Entry e = entry_of(a, low);
      const int64_t row = (tile - a.tiles[low]) * a.plan.tile_rows, left = e.s * group - row;
      attention_tile(a, e, kv_head, row, left < a.plan.tile_rows ? left : a.plan.tile_rows,
                     (float*)(a.scratch + thread * a.plan.scratch_bytes));
    }
  });
}

}  // namespace QKV_ISA
}  // namespace qkv

// attention: out_i = sum_j p_ij v_j with p_i = softmax_j(softcap(scale q_i.k_j) + bias_ij + relative_bias[j - i] - slope |i - j|)
//
// Flash style: a tile of query rows walks over blocks of keys; scores of one block are all that exists of the S x T matrix. The
// heads that share a key head are rows of the same tile, so that keys are packed once for all of them. Blocks that causality, the
// window or the lengths exclude for every row of the tile are skipped, and excluded keys inside a block are never read into a
// row.
#include <math.h>

#include "cpu/kernels.h"
#include "cpu/keys.h"

namespace qkv {
#if defined(QKV_BASE_ISA)
namespace QKV_BASE_ISA {
void attention(const AttentionArgs&);
}
#endif

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
  const int64_t group = a.plan.group;
  Row row;
  row.query = r < group ? 0 : r / group;  // divisions are a part of what a tile of few keys takes
  row.head = kv_head * group + r - row.query * group;
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

// Scores, softmax and values of a tile: rows that share a key head, all keys or those of one split.
struct Tile {
  const AttentionArgs& a;
  const Entry e;
  const int64_t rows;
  const KeySource k, v;
  const bool adjusted;  // scores are not q.k alone
  Row* row;             // (rows)
  float* q;             // (rows, row_room(D)), scaled
  float* panels;        // of (row_room(D), 16): keys of one block
  float* loaded;        // (16, D): keys that are not floats in a row in memory
  float* columns;       // (row_room(D), 16): queries of few rows, for tiles
  float* two_values;    // (2, dv_padded), for pairs
  float* values;        // panels of (kKeyBlock, 16)
  float* scores;        // (kGroupRows, kKeyBlock)
  FlashRows whole, part;
  float* raw_rows;  // (rows, stored T), where weights are not float

  Tile(const AttentionArgs& args, const Entry& entry, int64_t kv_head, int64_t row0, int64_t n, char* scratch)
      : a(args),
        e(entry),
        rows(n),
        k(source_of(args, args.k, args.k_scale, entry, kv_head)),
        v(source_of(args, args.v, args.v_scale, entry, kv_head)),
        adjusted(args.softcap > 0 || args.bias.data || args.relative_bias || args.alibi || args.mask.data) {
    const int64_t most = a.plan.tile_rows, dv_padded = panels_of(a.dv) * kPanel;
    values = (float*)scratch;  // what vectors are read from comes first: aligned
    scores = values + kKeyBlock * dv_padded;
    whole = {a.dv, dv_padded, scores + kGroupRows * kKeyBlock, nullptr, nullptr};
    part = {a.dv, dv_padded, whole.sums + most * dv_padded, nullptr, nullptr};
    panels = part.sums + most * dv_padded;
    loaded = panels + kKeyBlock * row_room(a.d);
    columns = loaded + kPanel * row_room(a.d);
    two_values = columns + kPanel * row_room(a.d);
    q = two_values + 2 * dv_padded;
    row = (Row*)(q + (most * row_room(a.d) + 1) / 2 * 2);
    whole.maximum = (float*)(row + most);
    whole.total = whole.maximum + most;
    part.maximum = whole.total + most;
    part.total = part.maximum + most;
    raw_rows = part.total + most;
    for (int64_t r = 0; r < rows; ++r) row[r] = row_of(a, e, kv_head, row0 + r);
  }

  float* raw_row(int64_t r) const {
    if (a.plan.weight_rows) return raw_rows + r * e.stored_t;
    return (float*)a.weights[e.b] + (row[r].head * e.s + row[r].query) * e.stored_t;
  }

  // Keys [first, last) that some row sees.
  void range(int64_t* first, int64_t* last) const {
    *first = e.t;
    *last = 0;
    for (int64_t r = 0; r < rows; ++r)
      if (row[r].first < row[r].last) {
        if (row[r].first < *first) *first = row[r].first;
        if (row[r].last > *last) *last = row[r].last;
      }
  }

  // Of a query or key: with tiles their rows are whole ones, filled up with zeros.
  template <class M>
  int64_t words() const {
    return round_up((a.d + M::kWidth - 1) / M::kWidth, kKeyUnit<M> / M::kWidth);
  }

  template <class M>
  void load_queries() const {
    const Vec scale = set(a.scale);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = (a.cu_q ? 0 : e.b * a.q.b) + row[r].head * a.q.h + (e.q0 + row[r].query) * a.q.s;
      float* const to = q + r * row_room(a.d);
      gather(to, a.q.dtype, a.q.data + at * size_of(a.q.dtype), a.q.d, a.d);
      each(a.d, [&](int64_t i, auto count) { store(to + i, mul(load(to + i, count), scale), count); });
      if (M::kWidth == 2) to_pairs(to, to, a.d);
      for (int64_t i = (a.d + M::kWidth - 1) / M::kWidth; i < words<M>(); ++i) to[i] = 0;
    }
#if defined(QKV_TILES)
    if (rows == 1 || !keys_as_they_lie()) return;
    memset(columns, 0, (size_t)(words<M>() * kPanelRowBytes));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < words<M>(); ++i) columns[i * kPanel + r] = q[r * row_room(a.d) + i];
#endif
  }

  // The sinks, before any key: one more logit each, without a value.
  void start() const {
    flash_start(whole, rows);
    for (int64_t r = 0; a.sinks && r < rows; ++r)
      if (a.sinks[row[r].head] != kMinusInfinity) {
        whole.maximum[r] = a.sinks[row[r].head];
        whole.total[r] = 1;
      }
  }

  // A few rows score the keys of several splits before any value of theirs is read, since memory is read ahead in long runs only:
  // 1.01 to 1.09 times as fast over caches of 25 to 800 MB (Zen 4). The arithmetic, and so each bit, is the same.
  static constexpr int64_t kScoredBlocks = kGroupRows / kFewRows, kScoredKeys = kScoredBlocks * kKeyBlock;
  static_assert(kGroupRows % kFewRows == 0 && kScoredKeys % kKeySplit == 0, "all scores, and whole splits");

#if defined(QKV_TILES)
  // Up to 16 rows score keys without making panels of them: keys times queries instead of queries times keys, the same sums.
  bool keys_as_they_lie() const { return rows <= kTileRows && a.d % kKeyUnit<DotBf16> == 0; }
  bool few() const { return rows <= kFewRows && keys_as_they_lie(); }

  // q.k of up to R rows and the keys [first, last). Four panels at a time: a product takes 16 cycles, its result 52. One query is
  // a column as it lies, and its scores a row.
  template <int R>
  void score_as_they_lie(int64_t first, int64_t last) const {
    constexpr int kColumns = R == 1 ? 1 : kPanel;
    shape_tiles(kTileRows, kTileRowBytes, kColumns, R == 1 ? kLastOfKeys : 4);  // else all are whole, as any_tile has them
    const float* const queries = R == 1 ? q : columns;
    for (int64_t key = first / kPanel * kPanel; key < last;) {
      const float* from[4];
      int64_t ld[4];
      int n = 0;
      for (bool copied = false; !copied && n < 4 && key + n * kPanel < last; ++n) {  // there is room for one copy
        const int64_t at = key + n * kPanel;
        from[n] = panel_rows<DotBf16>(k, at, first - at, last - at, a.d, loaded, &ld[n]);
        copied = from[n] == loaded;
      }
      // The next panels, where they follow: caches of 67 MB and more 1.2 times as fast.
      for (int p = 0; p < n && key + n * kPanel < last; ++p)
        for (int64_t at = 0; at < kPanel * ld[p] && ld[p] == a.d / 2; at += 16)
          __builtin_prefetch(from[p] + n * kPanel * ld[p] + at);
      alignas(64) float sums[4][kPanel * kPanel];
      with_panels<1, 4>(
          n, [&](auto, auto panels) { key_tiles<decltype(panels)::value, kColumns>(sums, from, ld, queries, a.d / 2); });
      for (int p = 0; p < n; ++p, key += kPanel) {
        Vec row[kLanes];
        if (R == 1)
          row[0] = load(sums[p], Full{});
        else
          transpose(sums[p], kPanel, row);
        float* const to = scores_of(key) + key % kKeyBlock;
        QKV_UNROLL(16)
        for (int r = 0; r < R; ++r) store(to + r * kKeyBlock, row[r], Full{});
      }
    }
  }
#else
  bool few() const { return rows <= kFewRows; }
#endif

  // (kGroupRows or, of a few rows, kFewRows; kKeyBlock): where the scores of the block that starts with `key` go.
  float* scores_of(int64_t key) const {
    return few() ? scores + key / kKeyBlock % kScoredBlocks * (kFewRows * kKeyBlock) : scores;
  }

  // q.k of a few rows and the keys [first, last).
  template <class M>
  void score(int64_t first, int64_t last) const {
#if defined(QKV_TILES)
    rows == 1 ? score_as_they_lie<1>(first, last) : score_as_they_lie<kFewRows>(first, last);
#else
    for (int64_t key = first / kPanel * kPanel; key < last; key += kPanel) {
      int64_t ld;
      const float* const from = panel_rows<M>(k, key, first - key, last - key, a.d, loaded, &ld);
      float* const to = scores_of(key) + key % kKeyBlock;
      if (rows == 1)
        score_panel<1, M>(to, q, row_room(a.d), from, ld, words<M>());
      else if (rows == 2)
        score_panel<2, M>(to, q, row_room(a.d), from, ld, words<M>());
      else
        score_panel<3, M>(to, q, row_room(a.d), from, ld, words<M>());
    }
#endif
  }

  // Adds the keys [first, last), which are of one split, to the empty state f. A few rows have scored them.
  template <class M>
  void attend(const FlashRows& f, int64_t first, int64_t last) const {
    flash_start(f, rows);
    for (int64_t key = first / kKeyBlock * kKeyBlock; key < last; key += kKeyBlock)
      attend_block<M>(f, key, key < first ? first - key : 0, last - key < kKeyBlock ? last - key : kKeyBlock);
  }

#if defined(QKV_AVX512_BF16_VNNI)
  // Softmax and values of a block for a few rows that see the same keys, from values where they lie. False, and nothing done but
  // that the scores may be *ready, if that is not so, or a key is excluded, whose value must not count.
  bool few_values(const FlashRows& f, int64_t key, int64_t begin, int64_t end, bool* ready) const {
    float* const scores = scores_of(key);
    const int64_t from = row[0].first - key < begin ? begin : row[0].first - key;
    const int64_t to = row[0].last - key > end ? end : row[0].last - key;
    for (int64_t r = 1; r < rows; ++r)
      if (row[r].first != row[0].first || row[r].last != row[0].last) return false;
    const bf16* at[kKeyBlock + 1];
    memset(two_values, 0, (size_t)a.dv * 2);
    if (from >= to || a.weights || !value_rows(at, v, key, from, to, a.dv, (const bf16*)two_values)) return false;
    bool excluded = false;
    for (int64_t r = 0; r < rows; ++r) {
      float* const s = scores + r * kKeyBlock;
      if (!*ready) adjust(a, e, row[r], s, key, from, to);
      each(to - from, [&](int64_t j, auto count) { excluded |= any(eq(load(s + from + j, count), set(kMinusInfinity))); });
    }
    *ready = true;
    if (excluded) return false;
    const int64_t first = from / 2 * 2, last = (to + 1) / 2 * 2;
    for (int64_t r = 0; r < rows; ++r) flash_softmax<bf16>(f, r, scores + r * kKeyBlock, from, to, first, last);
    if (rows == 1)
      add_value_rows<1>(f, scores, at, first, last);
    else if (rows == 2)
      add_value_rows<2>(f, scores, at, first, last);
    else if (rows == 3)
      add_value_rows<3>(f, scores, at, first, last);
    else
      add_value_rows<kFewRows>(f, scores, at, first, last);
    return true;
  }
#endif

  // Keys key + [begin, end), of one block. A key's place in it depends on its position alone.
  template <class M>
  void attend_block(const FlashRows& f, int64_t key, int64_t begin, int64_t end) const {
    const int64_t words = this->words<M>(), filled = (a.d + M::kWidth - 1) / M::kWidth;
    float* const scores = scores_of(key);
    bool scored = few();
#if defined(QKV_TILES)
    if (!scored && (scored = keys_as_they_lie())) score_as_they_lie<kTileRows>(key + begin, key + end);
#endif
    for (int64_t j = begin / kPanel * kPanel; !scored && j < end; j += kPanel) {
      int64_t ld;
      const float* const from = panel_rows<M>(k, key + j, begin - j, end - j, a.d, loaded, &ld);
      transpose_panel(panels + j * words, from, ld, filled);
      memset(panels + j * words + filled * kPanel, 0, (size_t)((words - filled) * kPanelRowBytes));
    }
    bool ready = !adjusted;  // the scores
#if defined(QKV_AVX512_BF16_VNNI)
    if constexpr (M::kWidth == 2)
      if (few() && few_values(f, key, begin, end, &ready)) return;
#endif
    // Many rows read the values from panels, which lie better in the caches; a few read each but once.
    FlashValues x = {nullptr, v.row, kPanel};
    if (M::kWidth == 1 && rows <= kGroupRows && a.dv % kPanel == 0) x.data = rows_in_place<M>(v, key + begin, end - begin, a.dv);
    if (x.data) {
      x.data -= begin * x.k;
    } else if (M::kWidth == 2) {
#if defined(QKV_AVX512_BF16_VNNI)
      load_value_pairs(values, v, key, begin, end, a.dv, two_values);
#endif
      x = {values, kPanel, kKeyBlock / 2 * kPanel};
      const int64_t first = begin / kKeyUnit<M> * kKeyUnit<M>, last = round_up(end, kKeyUnit<M>);
      for (int64_t i = 0; i < f.dv_padded; i += kPanel) {  // keys that products of tiles take along
        float* const pairs = values + i * (kKeyBlock / 2);
        memset(pairs + first / 2 * kPanel, 0, (size_t)((begin / 2 - first / 2) * kPanelRowBytes));
        memset(pairs + (end + 1) / 2 * kPanel, 0, (size_t)((last / 2 - (end + 1) / 2) * kPanelRowBytes));
      }
    } else {
      load_values(values, v, key, begin, end, a.dv);
      x = {values, kPanel, kKeyBlock * kPanel};
    }
    bool checked = false, finite = true;  // values, once that matters

    for (int64_t row0 = 0; row0 < rows; row0 += kGroupRows) {
      FlashUnit units[kGroupRows / 2];
      const int count = flash_units(units, row0, rows - row0 < kGroupRows ? rows - row0 : kGroupRows);
      int64_t panel = kKeyBlock / kPanel, panel_end = 0;
      for (int u = 0; u < count; ++u) {
        FlashUnit& unit = units[u];
        unit.from = end;
        unit.to = begin;
        for (int64_t r = unit.row; r < unit.row + unit.rows; ++r) {
          const int64_t from = row[r].first - key, to = row[r].last - key;
          if (from >= end || to <= begin || from >= to) continue;
          if (from < unit.from) unit.from = from < begin ? begin : from;
          if (to > unit.to) unit.to = to > end ? end : to;
        }
        if (unit.from >= unit.to) continue;
        if (unit.from / kPanel < panel) panel = unit.from / kPanel;
        if (panels_of(unit.to) > panel_end) panel_end = panels_of(unit.to);
        unit.from = unit.from / kKeyUnit<M> * kKeyUnit<M>;
        unit.to = round_up(unit.to, kKeyUnit<M>);
      }
      while (!scored && panel < panel_end) {
        const int group = panels_for(kMostRows, panel_end - panel);
        for (int u = 0; u < count; ++u) {
          const FlashUnit& unit = units[u];
          const int64_t left = unit.from < unit.to ? panels_of(unit.to) - panel : 0;
          const int n = left < group ? (int)left : group;
          if (n > 0 && (panel + n) * kPanel > unit.from)
            any_tile<M>(unit.rows, n, words, q + unit.row * row_room(a.d), row_room(a.d), panels + panel * kPanel * words, kPanel,
                        kPanel * words, scores + (unit.row - row0) * kKeyBlock + panel * kPanel, kKeyBlock, n * kPanel, true);
        }
        panel += group;
      }
      bool excluded = false;
      for (int u = 0; u < count; ++u) {
        FlashUnit& unit = units[u];
        for (int64_t r = unit.row; unit.from < unit.to && r < unit.row + unit.rows; ++r) {
          float* const s = scores + (r - row0) * kKeyBlock;
          int64_t from = row[r].first - key, to = row[r].last - key;
          if (from < unit.from) from = unit.from;
          if (to > unit.to) to = unit.to;
          if (from < to) {
            if (!ready) adjust(a, e, row[r], s, key, from, to);
            if (a.weights) memcpy(raw_row(r) + key + from, s + from, (size_t)(to - from) * 4);
          }
          if (flash_softmax<typename M::Element>(f, r, s, from, to, unit.from, unit.to)) unit.excluded = excluded = true;
        }
      }
      if (excluded && !checked) {
        finite = flash_finite<M>(x, f.dv_padded, begin / M::kWidth, (end + M::kWidth - 1) / M::kWidth);
        checked = true;
      }
      flash_accumulate<M>(f, units, count, scores, x, finite);
    }
  }

  void finish() const {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = e.q0 + row[r].query, head = row[r].head;
      const int64_t at = (a.cu_q ? 0 : e.b * a.out.b) + head * a.out.h + token * a.out.s;
      flash_finish(whole, r, a.out.dtype, a.out.data + at * size_of(a.out.dtype));
      if (a.lse)
        a.lse[e.b * a.lse_b + head * a.lse_h + token] =
            whole.total[r] == 0 ? kMinusInfinity : whole.maximum[r] + logf(whole.total[r]);
      if (a.weights)
        flash_weights(whole, r, raw_row(r), e.stored_t, a.q.dtype,
                      a.weights[e.b] + (head * e.s + row[r].query) * e.stored_t * size_of(a.q.dtype));
    }
  }

  // Splits of the keys are summed apart and then merged in order, whether one thread does all of them or many do one each.
  template <class M>
  void all_splits() const {
    load_queries<M>();
    start();
    for (int64_t r = 0; a.weights && r < rows; ++r) {
      float* const raw = raw_row(r);
      for (int64_t j = 0; j < e.stored_t; ++j) raw[j] = kMinusInfinity;
    }
    int64_t first, last;
    range(&first, &last);
    bool empty = !a.sinks;  // the first split may be summed in place: merging into nothing copies
    int64_t scored = first;
    for (int64_t from = first; from < last; empty = false) {
      const int64_t next = (from / kKeySplit + 1) * kKeySplit, to = next < last ? next : last;
      if (few() && from == scored) {
        scored = (from / kScoredKeys + 1) * kScoredKeys;
        if (scored > last) scored = last;
        score<M>(from, scored);
      }
      attend<M>(empty ? whole : part, from, to);
      for (int64_t r = 0; !empty && r < rows; ++r) flash_merge(whole, part, r);
      from = to;
    }
    finish();
  }

  template <class M>
  void one_split(const FlashRows& f, int64_t split) const {
    int64_t first, last;
    range(&first, &last);
    if (first < split * kKeySplit) first = split * kKeySplit;
    if (last > (split + 1) * kKeySplit) last = (split + 1) * kKeySplit;
    if (first < last) {
      load_queries<M>();
      if (few()) score<M>(first, last);
      attend<M>(f, first, last);
    } else {
      for (int64_t r = 0; r < rows; ++r) f.total[r] = 0;
    }
  }
};

// The entry of the batch whose tiles, of one key head, tile `index` is among.
static int64_t entry_of_tile(const AttentionArgs& a, int64_t index) {
  if (index < a.batch && a.tiles[index] == index && a.tiles[index + 1] > index) return index;  // as where all have one tile
  int64_t low = 0, high = a.batch;  // tiles[low] <= index < tiles[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (a.tiles[middle] <= index ? low : high) = middle;
  }
  return low;
}

// Tile `index` of a key head, counted over the batch, in entry b.
static Tile make_tile(const AttentionArgs& a, int64_t kv_head, int64_t b, int64_t index, int thread) {
  const Entry e = entry_of(a, b);
  const int64_t row = (index - a.tiles[b]) * a.plan.tile_rows, left = e.s * a.plan.group - row;
  return Tile(a, e, kv_head, row, left < a.plan.tile_rows ? left : a.plan.tile_rows, a.scratch + thread * a.plan.scratch_bytes);
}

template <class M>
static void attention_by(const AttentionArgs& a) {
  const int64_t per_head = a.tiles[a.batch], tiles = per_head * a.kv_heads, splits = a.plan.splits;
  if (splits == 1) {
    parallel(tiles, a.plan.grain, a.threads, [&](int64_t begin, int64_t end, int thread) {
      // Tiles of one head are neighbours: their keys stay in cache. The last tile sees most keys under causality: it goes first.
      // Heads of one sequence are neighbours: their keys lie side by side (Zen 4, 32 sequences of 16 to 1000 keys, one tile each:
      // 0.78 to 0.94 of the time; fetching the next head's keys, or on AMX the next sequence's, meanwhile gained nothing), and a
      // thread that makes products of some rows finds them in its own cache.
      for (int64_t item = begin; item < end; ++item) {
        const int64_t b = entry_of_tile(a, item / a.kv_heads), first = a.tiles[b], n = a.tiles[b + 1] - first;
        const int64_t at = item - first * a.kv_heads, head = n == 1 ? at : at / n;
        make_tile(a, head, b, first + n - 1 - (at - head * n), thread).template all_splits<M>();
      }
      leave<M>();
    });
    return;
  }
  // What each split of each tile sums: sums (rows, dv_padded), maximum and total (rows).
  const int64_t dv_padded = panels_of(a.dv) * kPanel, most = a.plan.tile_rows;
  const auto part_of = [&](int64_t item) {
    float* const sums = (float*)(a.scratch + a.threads * a.plan.scratch_bytes + item * a.plan.part_bytes);
    return FlashRows{a.dv, dv_padded, sums, sums + most * dv_padded, sums + most * (dv_padded + 1)};
  };
  const auto tile_of = [&](int64_t tile, int thread) {
    const int64_t index = tile % per_head;
    return make_tile(a, tile / per_head, entry_of_tile(a, index), index, thread);
  };
  parallel(tiles * splits, 1, a.threads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t tile = item / splits;
      tile_of(tile, thread).template one_split<M>(part_of(item), item % splits);
    }
    leave<M>();
  });
  parallel(tiles, 16, a.threads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const Tile t = tile_of(tile, thread);
      t.start();
      for (int64_t split = 0; split < splits; ++split)
        for (int64_t r = 0; r < t.rows; ++r) flash_merge(t.whole, part_of(tile * splits + split), r);
      t.finish();
    }
  });
}

void attention(const AttentionArgs& a) {
#if defined(QKV_AVX512_BF16_VNNI)
  if (a.bf16) return attention_by<DotBf16>(a);
#endif
#if defined(QKV_BASE_ISA)
  QKV_BASE_ISA::attention(a);
#else
  attention_by<DotFloat>(a);
#endif
}

}  // namespace QKV_ISA
}  // namespace qkv

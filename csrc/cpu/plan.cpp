// How the large kernels cut up their work and how much scratch that takes: chosen once per call, from sizes and the number of
// threads, outside the ISA code. bind/ keeps every length below 2^40 (check_length), so that no product here overflows.
#include "cpu/kernels.h"

namespace qkv {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t less(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int64_t kRowUnit = 24;  // a multiple of the tiles on registers of vectors
// Of k, in sums of floats: a panel group of 48 columns takes 96 KB of floats or of pairs of bf16, of the second cache. bf16 in
// blocks of 512: 2 to 8 % slower on dot products; where they are unpacked to floats it was not measured.
constexpr int64_t kFloatBlock = 512, kHalfBlock = 1024;

// Four chunks per thread, or a thread that is held up costs much; up to twelve as long as each has some 40 microseconds of work.
int64_t chunks_wanted(double products, int threads) {
  constexpr double kFine = 1 << 21;
  const int64_t least = 4 * threads, most = 12 * threads;
  return products < kFine * (double)least ? least : products > kFine * (double)most ? most : (int64_t)(products / kFine);
}

// Smaller chunks of c, near squares, until there are as many as wanted.
template <class Plan, class Chunks>
void shrink(Plan& p, int64_t m, int64_t least, int64_t panel_unit, Chunks chunks) {
  while (chunks() < least) {
    const bool rows = p.rows > kRowUnit && m > kRowUnit, panels = p.panels > panel_unit;
    if (rows && (!panels || less(p.rows, m) > p.panels * kPanel))
      p.rows = round_up(less(p.rows, m) / 2, kRowUnit);
    else if (panels)
      p.panels = round_up(p.panels / 2, panel_unit);
    else
      break;
  }
}

}  // namespace

GemmPlan plan_gemm(const GemmArgs& g) {
  constexpr int64_t kPanelUnit = 3, kMostPanels = 6;  // of the widest tile
  constexpr int64_t kMostRows = 240;
  constexpr int64_t kWorth = 1 << 16;  // multiply-adds that repay waking a thread

  GemmPlan p;
  p.k_block = g.k > 0 ? ceil_div(g.k, ceil_div(g.k, kFloatBlock)) : 1;
  p.copy_a = g.a.dtype != DType::f32 || g.a.step != 1 || g.a.rank > 1;
  p.separate_c = g.c.dtype != DType::f32 || g.c.rank > 1;
  const int64_t panels = panels_of(g.n);
  // An unpacked b is packed anew by every row chunk: then rather long chunks of rows. Converted rows should stay in L2.
  p.rows = g.packed ? kMostRows : 4 * kMostRows;
  if (p.copy_a)
    while (p.rows > kRowUnit && p.rows * p.k_block > 1 << 17) p.rows = round_up(p.rows / 2, kRowUnit);
  p.panels = kChunkPanels;
  const auto chunks = [&] {
    p.row_chunks = ceil_div(g.m, p.rows);
    p.panel_chunks = ceil_div(panels, p.panels);
    return p.row_chunks * p.panel_chunks * g.batch;
  };
  const int64_t least = chunks_wanted((double)g.m * (double)g.n * (double)g.k * (double)g.batch, g.threads);
  if (g.packed) {
    shrink(p, g.m, least, kPanelUnit, chunks);
  } else {
    while (chunks() < least && p.panels > kPanelUnit) p.panels = round_up(p.panels / 2, kPanelUnit);
    while (chunks() < 2 * g.threads && p.rows > kRowUnit && g.m > kRowUnit) p.rows = round_up(p.rows / 2, kRowUnit);
  }
  const int64_t cost = p.rows < g.m ? p.rows * p.panels * kPanel * g.k : g.m * p.panels * kPanel * g.k;
  p.grain = cost > 0 && cost < kWorth ? kWorth / cost : 1;

  const int64_t rows = p.rows < g.m ? p.rows : g.m;
  p.a_floats = p.copy_a ? round_up(rows * p.k_block, 16) : 0;
  p.b_floats = g.packed ? 0 : kMostPanels * kPanel * p.k_block;  // one group at a time
  const int64_t c_floats = p.separate_c ? rows * p.panels * kPanel : 0;
  p.scratch_bytes = round_up((p.a_floats + p.b_floats + c_floats) * 4, 64);
  return p;
}

QuantizedGemmPlan plan_gemm_quantized(const QuantizedGemmArgs& g) {
  constexpr int64_t kMostRows = 240, kPanelUnit = 6;
  constexpr int64_t kWorth = 1 << 17;  // multiply-adds that repay waking a thread

  QuantizedGemmPlan p;
  const int64_t k = padded_k(g.w);
  // Sums of floats are cut into blocks as in plan_gemm. 32 bits hold all of a row of int8 (kMostInt8), groups are summed up one
  // by one.
  p.k_block = k == 0 ? 1 : g.w.type == WeightType::bf16 ? round_up(ceil_div(k, ceil_div(k, kHalfBlock)), 2) : k;
  p.separate_c = g.c.dtype != DType::f32 || g.c.rank > 1;
  p.row_bytes = round_up(k + 16, 16) * 4 + 128;  // rows a power of two apart would share few sets of the cache
  p.stats_bytes = round_up(8 * (groups_of(g.w) + 2), 16);
  const int64_t panels = panels_of(g.w.n);
  p.rows = kMostRows;
  while (p.rows > kRowUnit && p.rows * k > 1 << 18) p.rows = round_up(p.rows / 2, kRowUnit);  // quantised rows stay in L2
  p.panels = kChunkPanels;
  const auto chunks = [&] {
    p.row_chunks = ceil_div(g.m, p.rows);
    p.panel_chunks = ceil_div(panels, p.panels);
    return p.row_chunks * p.panel_chunks;
  };
  shrink(p, g.m, chunks_wanted((double)g.m * (double)g.w.n * (double)k, g.threads), kPanelUnit, chunks);
  const int64_t rows = p.rows < g.m ? p.rows : g.m, cost = rows * p.panels * kPanel * k;
  p.grain = cost > 0 && cost < kWorth ? kWorth / cost : 1;
  // Tiles of AMX want 16 rows at a time, scales beside them.
  const int64_t rows_of_tiles = round_up(g.m, 16) * (round_up(k, 64) + 64 + 8 * groups_of(g.w));
  p.shared_bytes = round_up(g.m * (p.row_bytes + p.stats_bytes), 64);
  if (g.m >= unpack_rows(g.w.type) && p.shared_bytes < rows_of_tiles) p.shared_bytes = round_up(rows_of_tiles, 64);
  p.sum_floats = p.separate_c ? round_up(rows * p.panels * kPanel, 16) : 0;
  // The widest tile of so many rows has three panels; unpacked, they take at most a word for each element.
  const int64_t unpacked = g.m >= unpack_rows(g.w.type) ? 3 * kPanelRowBytes * p.k_block : 0;
  p.scratch_bytes = round_up((round_up(g.w.k, 16) + p.sum_floats) * 4 + unpacked, 64);
  return p;
}

AttentionPlan plan_attention(const AttentionArgs& a, int64_t rows, int64_t longest) {
  constexpr int64_t kGroup = 24;                // rows that are scored together, on every ISA
  constexpr int64_t kTile = 8;                  // rows of the widest tile of vectors: tiles of a head should be of a size
  constexpr int64_t kFewest = 16, kMost = 192;  // loading the keys costs about as much as three rows of work
  constexpr int64_t kL2 = 72 << 10;             // floats of a tile that the second cache holds beside keys and values
  constexpr int64_t kWorth = 1 << 16;           // multiply-adds that repay waking a thread
  constexpr int64_t kTileCost = 1 << 12;        // as many take as long as what a tile takes without keys
  AttentionPlan p = {};
  p.group = a.kv_heads > 0 ? a.heads / a.kv_heads : 1;
  const int64_t dv = round_up(a.dv, kPanel);
  int64_t most = kMost;
  while (most > kGroup && most * (a.d + 2 * dv) > kL2) most -= kGroup;
  // Two tiles per thread: under causality the long one of one thread stands against two of another.
  p.tile_rows = a.threads > 1 ? ceil_div(rows, 2 * a.threads) : rows;
  if (p.tile_rows < kFewest) p.tile_rows = kFewest;
  if (p.tile_rows > most) p.tile_rows = most;
  if (p.tile_rows >= longest) {
    p.tile_rows = longest > 0 ? longest : 1;
  } else {
    p.tile_rows = ceil_div(longest, ceil_div(longest, p.tile_rows));  // all of a size
    if (p.tile_rows > kGroup) p.tile_rows = round_up(p.tile_rows, kTile);
  }
  const int64_t tiles = ceil_div(rows, p.tile_rows), cost = kTileCost + p.tile_rows * a.longest_k * (a.d + a.dv);
  p.grain = cost < kWorth ? ceil_div(kWorth, cost) : 1;
  int64_t keys = a.kv_lengths ? 0 : a.longest_k;
  for (int64_t b = 0; a.kv_lengths && b < a.batch; ++b)
    if (a.kv_lengths[b] > keys) keys = a.kv_lengths[b];
  p.splits = 1;
  if (tiles < 4 * a.threads && a.threads > 1 && !a.weights && p.tile_rows <= kGroup && keys > kKeySplit)
    p.splits = ceil_div(keys, kKeySplit);
  p.part_bytes = p.splits > 1 ? round_up(4 * p.tile_rows * (dv + 2), 64) : 0;
  p.weight_rows = a.weights && a.q.dtype != DType::f32;
  const int64_t d = row_room(a.d);
  p.scratch_bytes = 4 * ((kKeyBlock + 2 * kPanel) * d + (kKeyBlock + 2) * dv + kGroup * kKeyBlock  // keys, values, scores
                         + p.tile_rows * (d + 2 * dv + 4 + 10) + 2                                 // q, two states, rows
                         + (p.weight_rows ? p.tile_rows * a.longest_k : 0));                       // raw scores
  p.scratch_bytes = round_up(p.scratch_bytes, 64);
  return p;
}

AttentionPlan plan_additive_attention(const AdditiveAttentionArgs& a) {
  AttentionPlan p = {};
  p.tile_rows = 24;
  while (p.tile_rows > 4 && a.batch * a.s < p.tile_rows * 3 * a.threads) p.tile_rows /= 2;
  p.weight_rows = a.weights && a.v.dtype != DType::f32;
  const int64_t dv = round_up(a.dv, kPanel);
  p.scratch_bytes = 4 * (p.tile_rows * (kKeyBlock + dv + 2) + kKeyBlock * (a.a + dv) + (p.weight_rows ? p.tile_rows * a.t : 0));
  p.scratch_bytes = round_up(p.scratch_bytes, 64);
  return p;
}

}  // namespace qkv

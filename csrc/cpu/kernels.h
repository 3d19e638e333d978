// What a kernel is given: plain structs, checked by bind/ before they get here. All lengths and strides count elements.
// Kernels never allocate: `scratch` holds what the plan or the comment asks for, once per thread.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "core/tensor.h"

namespace qkv {

static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

enum class Activation : uint8_t { none, gelu, gelu_tanh, relu, silu, quick_gelu, tanh, exp, erf };

// Columns of a packed panel, on every ISA: packed weights need no repacking when the ISA changes.
// Panel p holds w[16p .. 16p+15, 0 .. K) in rows of 16 columns x 32 bits, q = 0 or zeros beyond the last column: the GEMM reads
// one stream per panel.
constexpr int64_t kPanel = 16;
static inline int64_t panels_of(int64_t n) { return (n + kPanel - 1) / kPanel; }

enum class WeightType : uint8_t { f32, bf16, int8, int4 };

// A packed weight (n, k): w = value, or scale * q, or scale * q + offset.
struct PackedView {
  WeightType type;
  int64_t n, k;
  int64_t group;        // of neighbours along k that share a scale; 0: float types, and int8 with one scale a row
  char* panels;         // aligned to 64 bytes
  float* row_scale;     // (n) int8 by row, zeros up to whole panels
  int32_t* row_sum;     // (n) likewise: sum of q
  f16 *scale, *offset;  // (panels, groups, 16) with a group; offset: int4 only
};

// Elements of k in 32 bits, in a row padded to whole groups and panel rows, rows of a panel, groups of a row.
static inline int64_t per_panel_row(WeightType t) {
  return t == WeightType::f32 ? 1 : t == WeightType::bf16 ? 2 : t == WeightType::int8 ? 4 : 8;
}
static inline int64_t padded_k(const PackedView& w) {
  const int64_t unit = w.group ? w.group : per_panel_row(w.type);
  return (w.k + unit - 1) / unit * unit;
}
static inline int64_t panel_rows(const PackedView& w) { return padded_k(w) / per_panel_row(w.type); }
static inline int64_t groups_of(const PackedView& w) { return w.group ? padded_k(w) / w.group : 0; }
constexpr int64_t kPanelRowBytes = kPanel * 4;
constexpr int64_t kMostInt8 =
    1 << 16;  // features of a row of int8 with one scale: 127 * 255 times that is below 2^31 (sums on the way may wrap)

// Element (n, k) stands in row k / per_panel_row of panel n / kPanel, in its word of 32 bits n % kPanel, there in the order of k;
// a word of int4 has k .. k + 3 in the lower halves of its bytes and k + 4 .. k + 7 in the upper ones.

// Rows of a chunk from which on panels are unpacked for all of its tiles: at 16 rows bf16 gains a fifth, integers lose a fifth.
static constexpr int64_t unpack_rows(WeightType type) { return type == WeightType::bf16 ? 14 : 18; }
constexpr int64_t kChunkPanels = 12;  // of c that a thread works on at a time, at most

// How a GEMM is cut up. Depends on sizes, never on the ISA, so that scratch can be sized without asking the kernel.
struct GemmPlan {
  int64_t k_block;                            // K blocks: by k alone, so that summation order is too
  int64_t rows, panels;                       // of c in one chunk
  int64_t row_chunks, panel_chunks;           // per matrix of the batch
  int64_t grain;                              // chunks worth a thread
  bool copy_a;                                // a must be converted to contiguous float rows
  bool separate_c;                            // sums need a float buffer beside c
  int64_t a_floats, b_floats, scratch_bytes;  // per thread: [a rows | a group of b's panels | sums]
};

// What becomes of a product: c = act(sum + bias) * gate + residual.
struct Epilogue {
  Rows c;             // m rows of n, neighbours adjacent
  Rows gate;          // m rows of n, or data == nullptr
  Rows residual;      // m rows of n, or data == nullptr
  const float* bias;  // (n) or nullptr
  Activation activation;
};

// c = act(a b + bias) * gate + residual, over a batch.
struct GemmArgs : Epilogue {
  int64_t m, n, k;
  Rows a;               // m rows of k; with a batch, those of its first matrix
  const float* packed;  // panels of b's columns, or nullptr: then b is raw
  const char* b;        // element (k, n) at b[k * b_k + n * b_n]
  DType b_dtype;
  int64_t b_k, b_n;
  int batch_rank;  // outermost first
  int64_t batch_shape[kMaxRank], a_batch[kMaxRank], b_batch[kMaxRank], c_batch[kMaxRank];
  int64_t batch;
  GemmPlan plan;
  char* scratch;
  int threads;
};
GemmPlan plan_gemm(const GemmArgs&);

struct QuantizedGemmPlan {
  int64_t k_block;       // by k alone; whole groups
  int64_t rows, panels;  // of c in one chunk; tiles of AMX have chunks of their own
  int64_t row_chunks, panel_chunks;
  int64_t grain;                        // chunks worth a thread
  bool separate_c;                      // sums need a float buffer beside c
  int64_t row_bytes, stats_bytes;       // of one row of activations, in any form, and of what is known about it
  int64_t sum_floats;                   // of a chunk, if separate_c
  int64_t shared_bytes, scratch_bytes;  // m such rows; per thread: [a row as floats | sums | unpacked panels of a tile]
};

enum class Stage : uint8_t { both, rows, product };  // rows: no more than a; product: by what a call before has made of it

// c = act(a w^T + bias) * gate + residual, w bf16, int8 or int4: a is rounded to bf16 or quantised first.
struct QuantizedGemmArgs : Epilogue {
  Stage stage;
  int64_t m;
  Rows a;  // m rows of w.k
  PackedView w;
  QuantizedGemmPlan plan;
  char* rows;     // shared_bytes: a, as products read it
  char* scratch;  // scratch_bytes a thread
  int threads;
};
QuantizedGemmPlan plan_gemm_quantized(const QuantizedGemmArgs&);

// Fills `to` from rows of floats.
struct QuantizeArgs {
  Rows w;  // to.n rows of to.k
  PackedView to;
  float* scratch;  // to.k floats a thread
  int* bad;        // set to 1 if a value cannot be stored
  int threads;
};

// y[i] = row ids[i] of the packed weight (row i without ids) as floats.
struct DequantizeArgs {
  PackedView w;
  const int64_t* ids;  // checked, or nullptr
  int64_t count;
  float* y;
  int threads;
};

// out = panels of w (n, k), element (n, k) at w[n * w_n + k * w_k].
struct PackArgs {
  const char* w;
  DType dtype;
  int64_t n, k, w_n, w_k;
  float* out;
  int threads;
};

enum class Causal : uint8_t { none, bottom_right, top_left };
constexpr int64_t kUnbounded = INT64_MAX / 4;  // a window side without limit

// An array addressed as (b, h, s, d).
struct Strided4 {
  char* data;
  DType dtype;
  int64_t b, h, s, d;
};

constexpr int64_t kKeyBlock = 256;  // keys of a block; blocks start at multiples of it, whatever the queries
constexpr int64_t kKeySplit = 512;  // keys that are summed before they are merged with those before; likewise
// Room for a query or key of D features, in floats: tiles of AMX take whole rows of 64 bytes.
static inline int64_t row_room(int64_t d) { return d < 16 ? 16 : d; }

struct AttentionPlan {
  int64_t group;          // heads that share a key head
  int64_t tile_rows;      // rows of a tile: one per query and per head of the group
  int64_t grain;          // tiles worth a thread
  int64_t splits;         // of the keys, each given to a thread of its own; 1: tiles are enough
  int64_t scratch_bytes;  // per thread
  int64_t part_bytes;     // per tile and split, behind the scratch of all threads: what the split sums
  bool weight_rows;       // weights need float rows beside the output
};

// Attention over dense (B, H, S, D) or packed tokens: with cu_q and cu_k, batch entry b has queries cu_q[b] .. cu_q[b+1]
// of the token axis and the b strides are unused.
// Paged: with cu_q and blocks, k and v are (blocks, Hkv, block_size, D) in the order of strides; batch entry b has kv_lengths[b]
// keys, from place starts[b] of blocks[cu_blocks[b]], blocks[cu_blocks[b] + 1] ... on. Blocks without a key that is seen are not
// looked up.
struct AttentionArgs {
  int64_t batch, heads, kv_heads, d, dv;
  int64_t s, t;  // dense lengths
  const int64_t *cu_q, *cu_k;
  const int64_t* kv_lengths;                   // (B) or nullptr
  Strided4 q, k, v, out;                       // out.d == 1
  const int64_t *blocks, *cu_blocks, *starts;  // block numbers, (B), (B); or nullptr
  int64_t block_size;
  Strided4 k_scale, v_scale;  // int8 k and v: floats, d unused; data == nullptr: not int8
  float scale, softcap;       // softcap 0: none
  bool bf16;                  // products may be of bf16, where the ISA has them; sums and softmax stay float
  Causal causal;
  int64_t window_left, window_right;
  Strided4 mask;  // bytes, dtype unused; data == nullptr: none
  Strided4 bias;
  const float* relative_bias;  // (H, 2 * max_distance + 1) or nullptr
  int64_t max_distance;
  const float* alibi;  // slope of head h in batch entry b at alibi[b * alibi_b + h], or nullptr
  int64_t alibi_b;
  const float* sinks;  // (H) or nullptr
  float* lse;          // at lse[b * lse_b + h * lse_h + query], or nullptr; packed: lse_b = 0 and query counts all tokens
  int64_t lse_b, lse_h;
  char* const* weights;  // per batch entry (H, S_b, T_b) of q's dtype, or nullptr
  int64_t longest_k;     // longest T_b
  AttentionPlan plan;
  const int64_t* tiles;  // (B + 1) query tiles of the batch entries before b, for one key head
  char* scratch;
  int threads;
};
// `rows`: queries times group size, summed over the batch and the key heads; `longest`: the most of one key head.
AttentionPlan plan_attention(const AttentionArgs&, int64_t rows, int64_t longest);

// Rows of new tokens into the slots of a paged cache.
struct PagedWriteArgs {
  int64_t tokens, heads, d, dv;
  const int64_t* slots;  // (tokens), block * block_size + place; negative: not stored; no two alike
  int64_t block_size;
  Strided4 k, v;              // s: tokens, b unused
  Strided4 k_cache, v_cache;  // b: blocks, s: places of a block
  Strided4 k_scale, v_scale;  // int8 caches: floats, d unused; data == nullptr: not int8
  float* scratch;             // max(d, dv) floats per thread
  int threads;
};

// The beginnings of some blocks to others, in each of several arrays of blocks.
struct CopyBlocksArgs {
  char* const* arrays;            // (count)
  const int64_t *block, *copied;  // (count), bytes of a block, and those of them that are copied
  int64_t count;
  const int64_t *from, *to;  // (blocks)
  int64_t blocks;
  int threads;
};

// out_i = sum_j softmax_j(w . tanh(q_i + k_j)) v_j over already projected q (B, S, A) and k (B, T, A).
struct AdditiveAttentionArgs {
  int64_t batch, s, t, a, dv;
  const float *q, *k;  // rows adjacent; batch entries q_b and k_b apart
  int64_t q_b, k_b;
  const float* w;   // (A)
  Strided4 v, out;  // h unused
  Strided4 mask;    // bytes (B, S, T), h unused; data == nullptr: none
  const int64_t* kv_lengths;
  char* weights;  // (B, S, T) of v's dtype or nullptr
  AttentionPlan plan;
  char* scratch;
  int threads;
};
AttentionPlan plan_additive_attention(const AdditiveAttentionArgs&);

constexpr int64_t kLogCut = 1024;  // numbers that log_softmax adds up at once

struct SoftmaxArgs {
  Rows x, y;
  bool log;
  // Rows lie across memory and neighbours of the innermost grid dimension are adjacent, in both: 16 rows are worked on at once.
  bool across;
  bool past_caches;  // write y past the caches, which it would not fit into
  float* parts;      // (rows, 2): m and ln sum of log_softmax, instead of y; nullptr: y
  double* totals;    // (rows): of rows that are a cut, the sums beside m instead of their logarithms; nullptr: those
  float* scratch;    // n floats per thread, 16 n with `across`
  int threads;
};

struct NormArgs {
  Rows x, y;
  Rows residual, sum;          // sum = x + residual; data == nullptr: none
  const float *weight, *bias;  // (n) or nullptr
  float eps;
  bool rms;
  bool past_caches;  // write y and sum past the caches
  float* scratch;    // 2 n floats per thread
  int threads;
};

struct ActivationArgs {
  Activation op;
  Rows x, y;
  bool past_caches;  // write y past the caches
  int threads;
};

// y = scale x + other, or x / scale + other
struct ScaledSumArgs {
  const float *x, *other;  // (rows, n); other == nullptr: none
  float* y;
  float scale;
  bool divide;
  int64_t rows, n, other_row;  // other's rows lie so far apart
  int threads;
};

// The k largest of each row of x.
struct TopKArgs {
  const float* x;  // (rows, n)
  int64_t rows, n;
  int64_t k;        // 1 ... n
  float* values;    // (rows, k)
  int64_t* places;  // (rows, k)
  int threads;
};

// Columns of rows, from `first` on: those of them that are among the k largest so far take their place there.
struct KeepBestArgs {
  const float* x;  // (rows, n), rows ldx apart
  int64_t rows, n, ldx, first, k;
  uint64_t* keys;  // (rows, k), descending, as key_of has them; 0: nothing yet
};

// The order of elements: of equal ones the first counts as larger, a NaN as smaller than any number.
static inline uint64_t key_of(float x, int64_t place) {
  uint32_t bits;
  x += 0.0f;  // zeros are equal
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t order = x != x ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
  return (uint64_t)order << 32 | (0xFFFFFFFFu - (uint32_t)place);
}
// Among the k largest, in descending order, if it is one of them.
static inline void keep(uint64_t* keys, int64_t k, uint64_t key) {
  if (key <= keys[k - 1]) return;
  int64_t i = k - 1;
  for (; i > 0 && keys[i - 1] < key; --i) keys[i] = keys[i - 1];
  keys[i] = key;
}
static inline int64_t place_of(uint64_t key) { return 0xFFFFFFFFu - (uint32_t)key; }
static inline float value_of(uint64_t key) {
  const uint32_t order = (uint32_t)(key >> 32), bits = order >> 31 ? order & 0x7FFFFFFFu : ~order;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

// The k largest of each row of x w^T + bias, and its parts of log_softmax.
struct LinearTopKArgs {
  const float* x;  // (rows, w.k)
  int64_t rows;
  PackedView w;  // of less than 2^32 rows
  const float* bias;
  int64_t k;        // 1 ... w.n
  float* values;    // (rows, k)
  int64_t* places;  // (rows, k)
  float* parts;     // (rows, 2)
  char* scratch;    // linear_top_k_scratch
  int threads;
};
size_t linear_top_k_scratch(const LinearTopKArgs&);
struct Kernels;
void linear_top_k(const LinearTopKArgs&, const Kernels&);

// y[i] = table[ids[i]].
struct EmbeddingArgs {
  const int64_t* ids;  // checked
  int64_t count, width;
  const char* table;
  DType dtype;
  int64_t row, step;  // strides of the table
  char* y;
  bool past_caches;  // write y past the caches
  int threads;
};

// y = x with the first `dim` elements of every row rotated by the row's angles, cos and sin times `factor`.
struct RotaryArgs {
  Rows x, y;
  const float* angle_values;  // (angle_rows, dim / 2)
  int64_t angle_rows;
  Rows angles;  // the same, spread over x's grid
  float factor;
  int64_t dim;
  bool interleaved;
  bool past_caches;  // write y past the caches
  float* table;      // (angle_rows, dim) floats, (angle_rows, 2 dim) if interleaved
  float* scratch;    // 2 n floats per thread
  int threads;
};

// y[i] = positions[i] * frequencies
struct RotaryAngleArgs {
  const int64_t* positions;
  const float* frequencies;  // (n)
  float* y;                  // (count, n)
  int64_t count, n;
};

// Peaks of the machine, for the benchmarks.
enum class Limit : uint8_t { fma, bf16_dot, int8_dot, read, copy, stream };
constexpr int64_t kLimitChunk = 1 << 16;  // floats

struct LimitArgs {
  Limit limit;
  int64_t chunks;  // of work: kLimitChunk floats of the buffers, or a fixed number of multiply-adds
  const float* x;
  float* y;       // aligned to 64 bytes; each chunks * kLimitChunk floats, used by the memory limits
  int64_t* done;  // += operations, or bytes read and written; nothing for stream on an ISA without it
  int threads;
};

// The kernels of one ISA.
struct Kernels {
  const char* isa;
#define KERNEL(name, Args) void (*name)(const Args&);
#include "cpu/kernels.inc"
};

#define QKV_DECLARE_ISA(isa)         \
  namespace isa {                    \
  extern const ::qkv::Kernels table; \
  }
QKV_DECLARE_ISA(scalar)
QKV_DECLARE_ISA(avx2)
QKV_DECLARE_ISA(avx512)
QKV_DECLARE_ISA(avx512_bf16)
QKV_DECLARE_ISA(amx)
#undef QKV_DECLARE_ISA

}  // namespace qkv

// What bind/ calls on a GPU: one function an op, plain structs that bind/ has checked. Lengths and strides count elements,
// pointers are device memory unless they say `host`. A call enqueues kernels on a stream and returns: it never allocates, never
// waits, and throws cuda::Error if a launch fails. Scratch comes in as `workspace`, of as many bytes as <op>_workspace says.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "core/tensor.h"
#include "cpu/kernels.h"  // Activation, Causal, Strided4, kUnbounded

namespace qkv::cuda {

using Stream = void*;  // a cudaStream_t; nullptr is the legacy default stream

// A vector (n), neighbours adjacent, of any float type; data == nullptr: none.
struct Vector {
  const void* data;
  DType dtype;
};

// Integers on the device, of 4 or 8 bytes.
struct Ints {
  const void* data;  // nullptr: none
  bool wide;         // int64, else int32
};

// y = softmax(x) or log_softmax(x), row by row.
struct SoftmaxArgs {
  Rows x, y;
  bool log;
  float* parts = nullptr;  // (rows, 2): instead of y, what log_softmax subtracts from a row, first its maximum
};
void softmax(const SoftmaxArgs&, Stream);

// y = norm(x + residual) * weight + bias, row by row; sum = x + residual, rounded to its dtype, which is what is normalised.
struct NormArgs {
  Rows x, y;
  Rows residual, sum;   // data == nullptr: none; both or neither
  Vector weight, bias;  // (n)
  float eps;
  bool rms;
};
void norm(const NormArgs&, Stream);

// y = op(x), element by element; same dtype.
struct ActivationArgs {
  Activation op;
  Rows x, y;
};
void activation(const ActivationArgs&, Stream);

// y = x: any strides, any two of the float types. Bytes as they are where both dtypes are equal.
struct CopyArgs {
  Rows x, y;
  int item = 0;              // not 0: bytes are moved, elements of so many, whatever the dtypes
  bool from_double = false;  // x is float64
};
void copy(const CopyArgs&, Stream);

// What becomes of a product: c = act(sum + bias) * gate + residual, in float, rounded once.
struct Epilogue {
  Vector bias;  // (n)
  Activation activation;
  Strided4 gate;      // (batch as b, m as s, n as d), h unused, c's dtype; data == nullptr: none
  Strided4 residual;  // likewise
};

// c (batch, m, n) = act(a (batch, m, k) b (batch, k, n) + bias) * gate + residual. b of `linear` is the weight (n, k) with b.d =
// k's and b.s = n's stride exchanged: whichever stride is 1 is fast.
struct GemmArgs : Epilogue {
  int64_t batch, m, n, k;
  // Strided4 as (b: batch, s: rows, d: columns), h unused. a: s over m, d over k. b: s over k, d over n. c: s over m, d over n.
  // One of a's and one of b's (s, d) is 1; c.d == 1. The dtypes of a, b and c are equal. b.b == 0: one b for all.
  Strided4 a, b, c;
  bool batch_invariant;  // sums of a row must not depend on m or batch
  void* workspace;
};
size_t gemm_workspace(const GemmArgs&);
void gemm(const GemmArgs&, Stream);
// For benchmarks and tests: from here on products take this kernel, by its name in gemm_plan.h ("" and where it cannot do one:
// the best), cut k into so many splits and work on so many rows of tiles together (0: as planned). False if there is no such
// kernel.
bool force_gemm(const char* kernel, int64_t splits, int64_t group);

// A weight (n, k) of 8 or 4 bits on the device: w = scale q + offset.
//   int8: a scale a row, row_scale (n) float32; or group 32, scale (n, groups) float16
//   int4: scale and offset (n, groups) float16, groups of 32, 64 or 128
// Values, and the scales of groups among them, lie in the order of quantized.cuh. pack makes it; after it scale and offset are
// not read any more, and may be freed.
struct PackedView {
  WeightType type;  // int8 or int4
  int64_t n, k, k_padded, group;
  void* values;  // packed_rows() rows of k_padded values, aligned to 16 bytes
  float* row_scale;
  void *scale, *offset;  // float16, canonical
};

// k_padded is k up to a multiple of this; and rows of memory for values (n and what the layout adds). By type, n, k and group.
int64_t pack_unit(const PackedView&);
int64_t packed_rows(const PackedView&);

// to.values from canonical q: (n, k) int8, or (n, k) uint8 of 0 ... 15 for int4; the padding is such that it adds nothing.
struct PackArgs {
  const void* q;
  PackedView to;
};
void pack(const PackArgs&, Stream);

// The way back: q as it was, and scale and offset (n, groups) float16 of a weight that has groups.
struct UnpackArgs {
  PackedView from;
  void *q, *scale, *offset;
};
void unpack(const UnpackArgs&, Stream);

// y (n, k) = the weight's values; ids: only these rows (count), a row of NaN where there is none; data == nullptr: all.
struct DequantizeArgs {
  PackedView w;
  Ints ids;
  int64_t count;
  void* y;
  DType dtype;
};
void dequantize(const DequantizeArgs&, Stream);

// c = act(a w^T + bias) * gate + residual: the weight is widened to a's type in registers, sums are float.
struct QuantizedGemmArgs : Epilogue {
  int64_t m;
  Strided4 a, c;  // (s: rows, d: columns), d strides 1; same dtype
  PackedView w;
  bool batch_invariant;
  void* workspace;
};
size_t gemm_quantized_workspace(const QuantizedGemmArgs&);
void gemm_quantized(const QuantizedGemmArgs&, Stream);

// What a paged cache holds.
enum class Stored : uint8_t { f32, f16, bf16, int8 };

// Attention over dense (B, H, S, D) or, with cu_q and cu_k, packed tokens: batch entry b has queries cu_q[b] .. cu_q[b+1] of the
// token axis, and the b strides are unused. See qkv.ops.attention for the formula. What the host does not know (lengths,
// cu_seqlens) the kernels read; lengths are clamped to 0 ... t.
struct AttentionArgs {
  int64_t batch, heads, kv_heads, d, dv;
  int64_t s, t;           // dense lengths; packed: tokens in all, total_q and total_k
  Ints cu_q, cu_k;        // (B + 1)
  int64_t most_s;         // packed: queries of a sequence, at most; 0: nobody knows
  Ints kv_lengths;        // (B)
  Strided4 q, k, v, out;  // d strides 1, one dtype
  float scale, softcap;   // softcap 0: none
  Causal causal;
  int64_t window_left, window_right;  // kUnbounded: no limit
  Strided4 mask;                      // bytes, dtype unused, any strides (0 where broadcast); data == nullptr: none
  Strided4 bias;                      // any float dtype, any strides
  const float* relative_bias;         // (H, 2 * max_distance + 1) or nullptr
  int64_t max_distance;
  const float* alibi;  // slope of head h in batch entry b at alibi[b * alibi_b + h], or nullptr
  int64_t alibi_b;
  const float* sinks;  // (H) or nullptr
  float* lse;          // at lse[b * lse_b + h * lse_h + query], or nullptr; packed: lse_b = 0 and query counts all tokens
  int64_t lse_b, lse_h;
  // Probabilities, q's dtype, or nullptr. Dense: (B, H, S, T). Packed: entry b's (H, S_b, T_b) starts at weight_start[b].
  void* weights;
  const int64_t* weight_start;  // (B), device
  // Paged: k and v are (blocks, Hkv, block_size, D) in the order of strides, of dtype `stored`, and k.dtype and v.dtype unused.
  // Entry b's keys lie at places starts[b] ... kv_lengths[b] + more_keys - 1 (or its length by cu_k instead of kv_lengths), and
  // place i at i % block_size of block block_tables[b * table_row + i / block_size], of which none is looked up without a key
  // that is seen. A key in a block that the cache does not have counts as NaN. t: no place of a key is beyond; tables reach that
  // far. Queries are packed, or with cu_q.data == nullptr s each, of which the b strides are used.
  Ints block_tables;  // data == nullptr: not paged
  Ints starts;        // (B) or none: 0
  int64_t more_keys;
  int64_t table_row, blocks, block_size;
  Stored stored;
  Strided4 k_scale, v_scale;  // of int8: float32, (blocks, Hkv, block_size) in the order of strides
  bool batch_invariant;       // the split over keys must not depend on batch or s
  void* workspace;
};
size_t attention_workspace(const AttentionArgs&);
void attention(const AttentionArgs&, Stream);

// Rows of new tokens into the slots of a paged cache; of tokens with the same slot the last one stays.
struct PagedWriteArgs {
  int64_t tokens, heads, d, dv;
  Ints slots;     // (tokens), block * block_size + place; negative, or not in the cache: not stored
  bool distinct;  // no slot is there twice
  int64_t blocks, block_size;
  Strided4 k, v;              // s: tokens, b unused; one dtype
  Strided4 k_cache, v_cache;  // b: blocks, s: places of a block; dtype unused
  Stored stored;
  Strided4 k_scale, v_scale;  // of int8: float32, d unused
  void* workspace;
};
size_t paged_write_workspace(const PagedWriteArgs&);
void paged_write(const PagedWriteArgs&, Stream);

// slots (B, count): where tokens lengths[b] ... + count - 1 of sequence b go, for paged_write; -1 for one that the table has no
// block of the cache for.
struct PagedSlotsArgs {
  int64_t batch, count;
  Ints lengths;  // (B)
  Ints tables;   // (B, width), rows table_row apart
  int64_t table_row, width, blocks, block_size;
  int64_t* slots;
};
void paged_slots(const PagedSlotsArgs&, Stream);

// The beginnings of some blocks to others, all different, in each of several arrays of blocks.
struct CopyBlocksArgs {
  void* const* arrays;            // (count), device
  const int64_t *block, *copied;  // (count), device: bytes of a block, and those of them that are copied
  int64_t count;
  const int64_t *from, *to;  // (blocks), device
  int64_t blocks;
};
void copy_blocks(const CopyBlocksArgs&, Stream);

// y[i] = table[ids[i]], a row of NaN where there is no such row.
struct EmbeddingArgs {
  Ints ids;
  int64_t count, rows, n;
  Strided4 table;  // s: rows, d: columns
  void* y;         // (count, n)
  DType dtype;     // of y
};
void embedding(const EmbeddingArgs&, Stream);

// y = x with the first `dim` elements of every row rotated by the row's angles, cos and sin times `factor`.
struct RotaryArgs {
  Rows x, y;    // same dtype
  Rows angles;  // float32, dim / 2 a row, neighbours adjacent, spread over x's grid: strides 0 where rows share them
  float factor;
  int64_t dim;
  bool interleaved;
};
void rotary(const RotaryArgs&, Stream);

// y (B, S, H, D) contiguous = x with the first 2 `half` features of every row turned by a table's row, which is lengths[b], or
// with `moves` lengths[b] + s; NaN where there is no such row.
struct RotaryTableArgs {
  Strided4 x;  // any strides
  int64_t batch, s, heads, d;
  Strided4 cos, sin;  // (positions, half): s and d, b and h unused; any float dtypes
  int64_t positions, half;
  Ints lengths;  // (B)
  bool moves, interleaved;
  void* y;
};
void rotary_table(const RotaryTableArgs&, Stream);

// y[i] = positions[i] * frequencies
struct RotaryAngleArgs {
  Ints positions;            // (count)
  const float* frequencies;  // (n)
  float* y;                  // (count, n)
  int64_t count, n;
};
void rotary_angles(const RotaryAngleArgs&, Stream);

// y = scale x + other, or x / scale + other; in float, rounded once to x's dtype.
struct ScaledSumArgs {
  const void* x;  // (rows, n)
  DType dtype;
  const void* other;  // nullptr: none
  DType other_dtype;
  int64_t other_row;  // n, or 0: one row for all
  void* y;            // (rows, n)
  float scale;
  bool divide;
  int64_t rows, n;
};
void scaled_sum(const ScaledSumArgs&, Stream);

// The k largest of each row of x in descending order and where they stand; of equal ones the first counts as larger, a NaN as
// smaller than any number.
struct TopKArgs {
  const void* x;  // (rows, n)
  DType dtype;
  int64_t rows, n;
  int64_t k;        // 1 ... n
  void* values;     // (rows, k), x's dtype; nullptr: not wanted
  int64_t* places;  // (rows, k)
  void* workspace;
};
size_t top_k_workspace(const TopKArgs&);
void top_k(const TopKArgs&, Stream);

// A token of each row of logits: from softmax(x / temperature) as far as top_k, top_p and min_p leave it, by one number of
// [0, 1) a row. -1 where there is no token to draw.
struct SampleArgs {
  const void* x;  // (rows, n)
  DType dtype;
  int64_t rows, n;
  float temperature;
  int64_t k;        // 0: all
  double p, min_p;  // 1 and 0: all
  const double* u;  // (rows)
  int64_t* tokens;  // (rows)
};
void sample(const SampleArgs&, Stream);

// out_i = sum_j softmax_j(w . tanh(q_i + k_j)) v_j over already projected q (B, S, A) and k (B, T, A).
struct AdditiveAttentionArgs {
  int64_t batch, s, t, a, dv;
  const float *q, *k;  // rows adjacent; batch entries q_b and k_b apart
  int64_t q_b, k_b;
  const float* w;   // (A)
  Strided4 v, out;  // h unused
  Strided4 mask;    // bytes (B, S, T), h unused; data == nullptr: none
  Ints kv_lengths;  // (B)
  void* weights;    // (B, S, T) of v's dtype or nullptr
};
void additive_attention(const AdditiveAttentionArgs&, Stream);

// x += 1 in place, int64 numbers; of different places.
struct AdvanceArgs {
  Rows x;  // dtype unused
};
void advance(const AdvanceArgs&, Stream);

}  // namespace qkv::cuda

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

// y = softmax(x) or log_softmax(x), row by row.
struct SoftmaxArgs {
  Rows x, y;
  bool log;
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

// y (n, k) = the weight's values; ids: only these rows (count), data of int64; nullptr: all.
struct DequantizeArgs {
  PackedView w;
  const int64_t* ids;
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

// Integers on the device, of 4 or 8 bytes.
struct Ints {
  const void* data;  // nullptr: none
  bool wide;         // int64, else int32
};

// Attention over dense (B, H, S, D) or, with cu_q and cu_k, packed tokens: batch entry b has queries cu_q[b] .. cu_q[b+1] of the
// token axis, and the b strides are unused. See qkv.ops.attention for the formula. What the host does not know (lengths,
// cu_seqlens) the kernels read; lengths are clamped to 0 ... t.
struct AttentionArgs {
  int64_t batch, heads, kv_heads, d, dv;
  int64_t s, t;           // dense lengths; packed: tokens in all, total_q and total_k
  Ints cu_q, cu_k;        // (B + 1)
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
  bool batch_invariant;         // the split over keys must not depend on batch or s
  void* workspace;
};
size_t attention_workspace(const AttentionArgs&);
void attention(const AttentionArgs&, Stream);

}  // namespace qkv::cuda

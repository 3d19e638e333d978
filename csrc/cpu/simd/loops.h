// Loops over arrays of any length and dtype, and the parallel loop: what kernels use instead of scalar tails and casts.
#pragma once
#include "core/parallel.h"
#include "core/tensor.h"
#include "cpu/simd/vec.h"

namespace qkv {
namespace QKV_ISA {

// Calls body(i, Full{}) for whole vectors and body(i, Rest{n}) once for what remains.
template <class Body>
QKV_INLINE void each(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, Full{});
  if (i < n) body(i, Rest{n - i});
}

// Calls body(from, length) for stretches of 4096: long sums are sums of such parts, or a float stops growing at 2^24 of its unit.
template <class Body>
QKV_INLINE void each_block(int64_t n, Body&& body) {
  constexpr int64_t kBlock = 4096;
  for (int64_t from = 0; from < n; from += kBlock) body(from, n - from < kBlock ? n - from : kBlock);
}

// Lanes that a count covers.
QKV_INLINE Mask active(Full) { return first(kLanes); }
QKV_INLINE Mask active(Rest r) { return first(r.n); }

// Calls body(p) with p as a pointer to the dtype's element.
template <class Body>
QKV_INLINE void with_type(DType t, const void* p, Body&& body) {
  switch (t) {
    case DType::f32:
      return body((const float*)p);
    case DType::f16:
      return body((const f16*)p);
    case DType::bf16:
      return body((const bf16*)p);
  }
}
template <class Body>
QKV_INLINE void with_type(DType t, void* p, Body&& body) {
  switch (t) {
    case DType::f32:
      return body((float*)p);
    case DType::f16:
      return body((f16*)p);
    case DType::bf16:
      return body((bf16*)p);
  }
}

// to[0..n) = from[0], from[step], ... as floats.
static inline void gather(float* to, DType t, const void* from, int64_t step, int64_t n) {
  with_type(t, from, [&](auto* p) {
    if (step == 1)
      each(n, [&](int64_t i, auto count) { store(to + i, load(p + i, count), count); });
    else
      for (int64_t i = 0; i < n; ++i) to[i] = to_float(p[i * step]);
  });
}

static inline void scatter(DType t, void* to, int64_t step, const float* from, int64_t n) {
  with_type(t, to, [&](auto* p) {
    if (step == 1)
      each(n, [&](int64_t i, auto count) { store(p + i, load(from + i, count), count); });
    else
      for (int64_t i = 0; i < n; ++i) from_float(from[i], p + i * step);
  });
}

// A row as contiguous floats: in place where it is that already, else gathered into `buffer`.
static inline const float* read_row(const Rows& x, int64_t r, float* buffer) {
  const char* p = row_ptr(x, r);
  if (x.dtype == DType::f32 && x.step == 1) return (const float*)p;
  gather(buffer, x.dtype, p, x.step, x.n);
  return buffer;
}

// Where to build an output row: in place, or in `buffer`, which finish_row then scatters.
static inline float* write_row(const Rows& y, int64_t r, float* buffer) {
  return y.dtype == DType::f32 && y.step == 1 ? (float*)row_ptr(y, r) : buffer;
}
static inline void finish_row(const Rows& y, int64_t r, const float* built) {
  char* p = row_ptr(y, r);
  if ((char*)built != p) scatter(y.dtype, p, y.step, built, y.n);
}

// body(begin, end, thread) over [0, n) in chunks of `grain`.
template <class Body>
static inline void parallel(int64_t n, int64_t grain, int threads, Body body) {
  parallel_for(
      n, grain, threads, [](void* context, int64_t begin, int64_t end, int thread) { (*(Body*)context)(begin, end, thread); },
      &body);
}

// Chunk length for items that cost about `cost` float operations or loads each: long enough to be worth a thread.
QKV_INLINE int64_t grain_for(int64_t cost) {
  constexpr int64_t kWorth = 16384;
  const int64_t grain = kWorth / (cost > 0 ? cost : 1);
  return grain > 0 ? grain : 1;
}

}  // namespace QKV_ISA
}  // namespace qkv

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

// The same with body(i, Two{}) for pairs of vectors first.
template <class Body>
QKV_INLINE void each_pair(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) body(i, Two{});
  if (i + kLanes <= n) {
    body(i, Full{});
    i += kLanes;
  }
  if (i < n) body(i, Rest{n - i});
}

// Calls body(from, length) for stretches of 4096: long sums are sums of such parts, or a float stops growing at 2^24 of its unit.
template <class Body>
QKV_INLINE void each_block(int64_t n, Body&& body) {
  constexpr int64_t kBlock = 4096;
  for (int64_t from = 0; from < n; from += kBlock) body(from, n - from < kBlock ? n - from : kBlock);
}

// v in the lanes that a count covers, `other` beyond.
QKV_INLINE Pair within(Two, Pair v, Vec) { return v; }
QKV_INLINE Vec within(Full, Vec v, Vec) { return v; }
QKV_INLINE Vec within(Rest r, Vec v, Vec other) { return select(first(r.n), v, other); }

// Two sums, of the first and second vectors of pairs; what is left over joins the first.
QKV_INLINE Pair add_to(Pair sum, Pair v) { return add(sum, v); }
QKV_INLINE Pair add_to(Pair sum, Vec v) { return {add(sum.a, v), sum.b}; }

// start, a Vec or Group, to which f(so far, i, count) adds what is at i: four chains, because one waits for the latency of its
// addition, joined by join(). The order depends on n alone.
template <class State, class F, class Join>
QKV_INLINE State fold(int64_t n, State start, F&& f, Join&& join) {
  State a = start, b = start, c = start, d = start;
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a = f(a, i, Full{});
    b = f(b, i + kLanes, Full{});
    c = f(c, i + 2 * kLanes, Full{});
    d = f(d, i + 3 * kLanes, Full{});
  }
  for (; i + kLanes <= n; i += kLanes) a = f(a, i, Full{});
  if (i < n) b = f(b, i, Rest{n - i});
  return join(join(a, b), join(c, d));
}

template <class T>
QKV_INLINE void stream(T* p, Pair v, Two) {
  stream(p, v.a);
  stream(p + kLanes, v.b);
}
template <class T>
QKV_INLINE void stream(T* p, Vec v, Full) {
  stream(p, v);
}
template <class T>
QKV_INLINE void stream(T* p, Vec v, Rest r) {
  store(p, v, r);
}

// Asks for the lines of a pair of vectors that will be read soon. The hardware's own reading ahead ends at every page of memory,
// and a long function leaves it too little time to begin again.
template <class T>
QKV_INLINE void fetch(const T* p, Two) {
  for (int64_t b = 0; b < 2 * kLanes * (int64_t)sizeof(T); b += 64) __builtin_prefetch((const char*)p + b);
}
template <class T, class Count>
QKV_INLINE void fetch(const T*, Count) {}

// One vector of each of R rows.
template <int R>
struct Group {
  Vec v[R];
};
template <int R, class F>
QKV_INLINE Group<R> group(F&& f) {
  Group<R> g;
  QKV_UNROLL(4)
  for (int r = 0; r < R; ++r) g.v[r] = f(r);
  return g;
}

// y[i] = f(i, count) over [0, n); with `past` whole vectors go past the caches. The caller ends its part with fence().
template <class T, class F>
QKV_INLINE void write_each(T* y, int64_t n, bool past, F&& f) {
  if (!past) return each_pair(n, [&](int64_t i, auto count) { store(y + i, f(i, count), count); });
  constexpr int64_t kBytes = kLanes * (int64_t)sizeof(T);
  int64_t head = (-(intptr_t)y & (kBytes - 1)) / (int64_t)sizeof(T);
  if (head > n) head = n;
  if (head) store(y, f(0, Rest{head}), Rest{head});
  each_pair(n - head, [&](int64_t i, auto count) { stream(y + head + i, f(head + i, count), count); });
}

// The same for R rows side by side, y[r][i] = f(r, i, count); past the caches one after the other.
template <int R, class T, class F>
QKV_INLINE void write_rows(T* const (&y)[R], int64_t n, bool past, F&& f) {
  if (past)
    for (int r = 0; r < R; ++r) write_each(y[r], n, true, [&](int64_t i, auto count) { return f(r, i, count); });
  else
    each_pair(n, [&](int64_t i, auto count) {
      QKV_UNROLL(4)
      for (int r = 0; r < R; ++r) store(y[r] + i, f(r, i, count), count);
    });
}

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
// The same for one of many items: 64 chunks a thread are enough, and long runs of memory are fetched ahead.
QKV_INLINE int64_t grain_for(int64_t cost, int64_t items, int threads) {
  const int64_t least = grain_for(cost), fair = items / (64 * (int64_t)threads);
  return fair > least ? fair : least;
}

}  // namespace QKV_ISA
}  // namespace qkv

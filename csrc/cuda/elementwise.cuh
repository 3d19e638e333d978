// y = f(x), element by element, over two grids of rows: what activation.cu and copy.cu share. Where rows are aligned a thread
// moves pieces of 16 bytes, several of them in flight, else single elements, neighbouring threads neighbouring elements of y.
#pragma once
#include <stdlib.h>

#include <algorithm>

#include "cuda/rows.cuh"

namespace qkv::cuda {

// Many threads with little each, as blocks that wait for memory and blocks that compute must take turns: 6 blocks an SM.
constexpr int kMapThreads = 256, kMapBlocks = 6;
constexpr int kMapPieces = 2, kMapElements = 4;  // of a thread

// The f that leaves everything as it is. Between equal types it moves bits, so that a NaN keeps its payload.
struct Same {
  template <int kCount>
  QKV_DEVICE void operator()(float (&)[kCount]) const {}
};
template <class From, class To, class F>
constexpr bool kMovesBits = std::is_same_v<F, Same> && std::is_same_v<From, To>;

// Elements of a piece: 16 bytes of the wider type, and so 8 or 16 of the other.
template <class From, class To>
constexpr int kPieceOf = 16 / (sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));

template <class T, int kCount>
using RawPiece = std::conditional_t<kCount == kLanes<T>, uint4, uint2>;

QKV_DEVICE uint4 load_raw(const uint4* p) { return load16_streaming(p); }
QKV_DEVICE uint2 load_raw(const uint2* p) { return *p; }

template <class T>
QKV_DEVICE void unpack(const uint2& raw, float (&x)[4]) {
  const float2 low = unpack2<T>(raw.x), high = unpack2<T>(raw.y);
  x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
}

template <class T, int kCount>
QKV_DEVICE RawPiece<T, kCount> pack_piece(const float (&x)[kCount]) {
  if constexpr (kCount == kLanes<T>)
    return pack<T>(x);
  else
    return make_uint2(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]));
}

// Element number `at` of a grid whose rows have n elements.
QKV_DEVICE int64_t element_of(const Rows& x, int64_t at, int64_t n) {
  if (x.rank == 0) return at * x.step;
  const int64_t row = at / n;
  return offset_of(x, row) + (at - row * n) * x.step;
}

template <class From, class To, class F>
QKV_DEVICE void map_element(const From* from, To* to, int64_t x, int64_t y, const F& f) {
  if constexpr (kMovesBits<From, To, F>) {
    to[y] = from[x];
  } else {
    float v[1] = {to_float(from[x])};
    f(v);
    to[y] = from_float<To>(v[0]);
  }
}

// Rows of whole pieces; or, kFlat, one row, of which the first block does what is left after the last piece.
template <class From, class To, bool kFlat, class F>
__global__ void __launch_bounds__(kMapThreads, kFlat ? kMapBlocks : 4)
    map_pieces(const __grid_constant__ Rows x, const __grid_constant__ Rows y, const F f) {
  begin_dependent();
  constexpr int kCount = kPieceOf<From, To>;
  const auto* const from = reinterpret_cast<const From*>(x.data);
  auto* const to = reinterpret_cast<To*>(y.data);
  const auto element = [&](const Rows& rows, int64_t at) { return kFlat ? at : element_of(rows, at, x.n); };
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * (kMapThreads * kMapPieces) + threadIdx.x) * kCount;
  const int64_t end = x.rows * (x.n / kCount) * kCount;
  RawPiece<From, kCount> raw[kMapPieces];
#pragma unroll
  for (int i = 0; i < kMapPieces; ++i)
    if (const int64_t at = first + i * kMapThreads * kCount; at < end)
      raw[i] = load_raw(reinterpret_cast<const RawPiece<From, kCount>*>(from + element(x, at)));
#pragma unroll
  for (int i = 0; i < kMapPieces; ++i)
    if (const int64_t at = first + i * kMapThreads * kCount; at < end) {
      auto* const p = reinterpret_cast<RawPiece<To, kCount>*>(to + element(y, at));
      if constexpr (kMovesBits<From, To, F>) {
        *p = raw[i];
      } else {
        float v[kCount];
        unpack<From>(raw[i], v);
        f(v);
        *p = pack_piece<To>(v);
      }
    }
  if (kFlat && blockIdx.x == 0 && end + threadIdx.x < x.n) map_element(from, to, end + threadIdx.x, end + threadIdx.x, f);
}

template <class From, class To, class F>
__global__ void __launch_bounds__(kMapThreads, kMapBlocks)
    map_elements(const __grid_constant__ Rows x, const __grid_constant__ Rows y, const F f) {
  begin_dependent();
  const auto* const from = reinterpret_cast<const From*>(x.data);
  auto* const to = reinterpret_cast<To*>(y.data);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kMapThreads * kMapElements) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kMapElements; ++i)
    if (const int64_t at = first + i * kMapThreads; at < x.rows * x.n)
      map_element(from, to, element_of(x, at, x.n), element_of(y, at, x.n), f);
}

// The same elements with y's dimensions in the order of its memory, rows along the innermost, as few dimensions as possible.
inline void simplify(Rows* x, Rows* y) {
  struct Dim {
    int64_t size, x, y;
  };
  Dim dims[kMaxRank + 1];
  int count = 0;
  for (int d = 0; d < x->rank; ++d)
    if (x->shape[d] > 1) dims[count++] = {x->shape[d], x->strides[d], y->strides[d]};
  if (x->n > 1) dims[count++] = {x->n, x->step, y->step};
  std::stable_sort(dims, dims + count, [](const Dim& a, const Dim& b) { return llabs(a.y) > llabs(b.y); });
  int last = 0;
  for (int d = 1; d < count; ++d)
    if (dims[last].x == dims[d].x * dims[d].size && dims[last].y == dims[d].y * dims[d].size)
      dims[last] = {dims[last].size * dims[d].size, dims[d].x, dims[d].y};
    else
      dims[++last] = dims[d];
  if (count == 0) dims[0] = {1, 1, 1};
  x->rank = y->rank = last;
  x->rows = y->rows = 1;
  for (int d = 0; d < last; ++d) {
    x->shape[d] = y->shape[d] = dims[d].size;
    x->strides[d] = dims[d].x;
    y->strides[d] = dims[d].y;
    x->rows = y->rows *= dims[d].size;
  }
  x->n = y->n = dims[last].size;
  x->step = dims[last].x;
  y->step = dims[last].y;
}

// Whether x, simplified, is made of pieces of `count` elements, aligned to their size.
inline bool in_pieces(const Rows& x, int64_t count, size_t item) {
  if (reinterpret_cast<uintptr_t>(x.data) % (static_cast<size_t>(count) * item) != 0 || x.step != 1) return false;
  for (int d = 0; d < x.rank; ++d)
    if (x.strides[d] % count != 0) return false;
  return x.rank == 0 || x.n % count == 0;
}

// x and y are simplified and not empty.
template <class From, class To, class F>
void map(const char* op, const Rows& x, const Rows& y, F f, Stream stream) {
  const auto blocks = [](int64_t items, int64_t each) { return static_cast<unsigned>(ceil_div(items, kMapThreads * each)); };
  if constexpr (!std::is_same_v<From, double>) {  // which is converted once, on its way in
    constexpr int kCount = kPieceOf<From, To>;
    if (in_pieces(x, kCount, sizeof(From)) && in_pieces(y, kCount, sizeof(To))) {
      const auto kernel = x.rank == 0 ? map_pieces<From, To, true, F> : map_pieces<From, To, false, F>;
      return launch_dependent(op, kernel, blocks(x.rows * ceil_div<int64_t>(x.n, kCount), kMapPieces), kMapThreads, 0, stream, x,
                              y, f);
    }
  }
  launch_dependent(op, map_elements<From, To, F>, blocks(x.rows * x.n, kMapElements), kMapThreads, 0, stream, x, y, f);
}

}  // namespace qkv::cuda

// embedding: y[i] = table[ids[i]], a row of NaN where there is no such row. Between equal types bits are moved.
#include <algorithm>

#include "cuda/elementwise.cuh"
#include "cuda/ints.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = 256, kInFlight = 4;

// A row of blockDim.x threads has a row of y.
template <class From, class To, bool kVectors>
__global__ void __launch_bounds__(kThreads) gather(const __grid_constant__ EmbeddingArgs a) {
  begin_dependent();
  constexpr int kCount = kVectors ? kPieceOf<From, To> : 1;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (i >= a.count) return;
  const int64_t id = read_int(a.ids, i), pieces = a.n / kCount;
  const bool real = id >= 0 && id < a.rows;
  const From* const from = reinterpret_cast<const From*>(a.table.data) + (real ? id : 0) * a.table.s;
  To* const to = static_cast<To*>(a.y) + i * a.n;
  const float nan = __int_as_float(0x7FFFFFFF);
  for (int64_t first = threadIdx.x; first < pieces; first += kInFlight * blockDim.x) {
    if constexpr (kVectors) {
      RawPiece<From, kCount> raw[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        if (const int64_t p = first + j * blockDim.x; real && p < pieces)
          raw[j] = load_raw(reinterpret_cast<const RawPiece<From, kCount>*>(from + p * kCount));
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        if (const int64_t p = first + j * blockDim.x; p < pieces) {
          auto* const at = reinterpret_cast<RawPiece<To, kCount>*>(to + p * kCount);
          float x[kCount];
          if (!real) {
#pragma unroll
            for (float& e : x) e = nan;
            *at = pack_piece<To>(x);
          } else if constexpr (std::is_same_v<From, To>) {
            *at = raw[j];
          } else {
            unpack<From>(raw[j], x);
            *at = pack_piece<To>(x);
          }
        }
    } else {
      From raw[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        if (const int64_t p = first + j * blockDim.x; real && p < pieces) raw[j] = from[p * a.table.d];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j)
        if (const int64_t p = first + j * blockDim.x; p < pieces) {
          if (!real)
            to[p] = from_float<To>(nan);
          else if constexpr (std::is_same_v<From, To>)
            to[p] = raw[j];
          else
            to[p] = from_float<To>(to_float(raw[j]));
        }
    }
  }
}

}  // namespace

void embedding(const EmbeddingArgs& a, Stream stream) {
  if (a.count == 0 || a.n == 0) return;
  with_dtype(a.table.dtype, [&](auto x) {
    with_dtype(a.dtype, [&](auto y) {
      using From = decltype(x);
      using To = decltype(y);
      constexpr int kCount = kPieceOf<From, To>;
      const bool vectors = a.n % kCount == 0 && a.table.d == 1 && a.table.s % kCount == 0 &&
                           reinterpret_cast<uintptr_t>(a.table.data) % (kCount * sizeof(From)) == 0 &&
                           reinterpret_cast<uintptr_t>(a.y) % (kCount * sizeof(To)) == 0;
      const int64_t each = ceil_div<int64_t>(a.n / (vectors ? kCount : 1), kInFlight);
      int threads = 1;
      while (threads < kThreads && threads < each) threads *= 2;
      const dim3 block(static_cast<unsigned>(threads), static_cast<unsigned>(kThreads / threads));
      const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(a.count, block.y));
      const auto kernel = vectors ? gather<From, To, true> : gather<From, To, false>;
      launch_dependent("embedding", kernel, blocks, block, 0, stream, a);
    });
  });
}

}  // namespace qkv::cuda

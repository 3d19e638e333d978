// scaled_sum: y = scale x, or x / scale, and + other: in float, where each operation is rounded by itself, so that float32 has
// NumPy's bits.
#include "cuda/elementwise.cuh"

namespace qkv::cuda {
namespace {

template <class Other>
QKV_DEVICE float finish(const ScaledSumArgs& a, float x, const Other* other) {
  x = a.divide ? __fdiv_rn(x, a.scale) : __fmul_rn(x, a.scale);
  return other ? __fadd_rn(x, to_float(*other)) : x;
}

// 16 bytes of x; the first block does what is left after the last of them.
template <class T, class Other>
__global__ void __launch_bounds__(kMapThreads) sum_pieces(const __grid_constant__ ScaledSumArgs a) {
  begin_dependent();
  constexpr int kCount = kLanes<T>, kWords = kCount * sizeof(Other) / 16;
  const auto* const x = static_cast<const T*>(a.x);
  const auto* const other = static_cast<const Other*>(a.other);
  auto* const y = static_cast<T*>(a.y);
  const int64_t total = a.rows * a.n, pieces = total / kCount, per_row = a.n / kCount;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kMapThreads * kMapPieces) + threadIdx.x;
  const auto beside = [&](int64_t p) {  // where other's piece is
    if (a.other_row == 0 && a.rows > 1) p %= per_row;
    return other + p * kCount;
  };
  uint4 raw[kMapPieces], more[kMapPieces][kWords];
#pragma unroll
  for (int i = 0; i < kMapPieces; ++i)
    if (const int64_t p = first + i * kMapThreads; p < pieces) {
      raw[i] = load16_streaming(x + p * kCount);
      if (other)
#pragma unroll
        for (int w = 0; w < kWords; ++w) more[i][w] = load16(reinterpret_cast<const uint4*>(beside(p)) + w);
    }
#pragma unroll
  for (int i = 0; i < kMapPieces; ++i)
    if (const int64_t p = first + i * kMapThreads; p < pieces) {
      float v[kCount];
      unpack<T>(raw[i], v);
#pragma unroll
      for (float& e : v) e = finish<float>(a, e, nullptr);
      if (other) {
#pragma unroll
        for (int w = 0; w < kWords; ++w) {
          float o[kLanes<Other>];
          unpack<Other>(more[i][w], o);
#pragma unroll
          for (int j = 0; j < kLanes<Other>; ++j) v[w * kLanes<Other> + j] = __fadd_rn(v[w * kLanes<Other> + j], o[j]);
        }
      }
      store16(y + p * kCount, pack<T>(v));
    }
  if (const int64_t rest = pieces * kCount + threadIdx.x; blockIdx.x == 0 && rest < total)
    y[rest] = from_float<T>(finish(a, to_float(x[rest]), other ? other + rest : nullptr));
}

template <class T, class Other>
__global__ void __launch_bounds__(kMapThreads) sum_elements(const __grid_constant__ ScaledSumArgs a) {
  begin_dependent();
  const auto* const x = static_cast<const T*>(a.x);
  const auto* const other = static_cast<const Other*>(a.other);
  auto* const y = static_cast<T*>(a.y);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (kMapThreads * kMapElements) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kMapElements; ++i)
    if (const int64_t at = first + i * kMapThreads; at < a.rows * a.n) {
      const Other* const beside = other ? other + (a.other_row == 0 ? at % a.n : at) : nullptr;
      y[at] = from_float<T>(finish(a, to_float(x[at]), beside));
    }
}

template <class T, class Other>
void launch(const ScaledSumArgs& a, Stream stream) {
  const auto blocks = [](int64_t items, int64_t each) { return static_cast<unsigned>(ceil_div(items, kMapThreads * each)); };
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool whole_rows = !a.other || a.other_row != 0 || a.rows == 1 || a.n % kLanes<T> == 0;
  if (aligned(a.x) && aligned(a.y) && aligned(a.other) && whole_rows)
    launch_dependent("scaled_sum", sum_pieces<T, Other>, blocks(ceil_div<int64_t>(a.rows * a.n, kLanes<T>), kMapPieces),
                     kMapThreads, 0, stream, a);
  else
    launch_dependent("scaled_sum", sum_elements<T, Other>, blocks(a.rows * a.n, kMapElements), kMapThreads, 0, stream, a);
}

}  // namespace

void scaled_sum(const ScaledSumArgs& a, Stream stream) {
  if (a.rows == 0 || a.n == 0) return;
  with_dtype(a.dtype, [&](auto x) {
    using T = decltype(x);
    if (a.other && a.other_dtype == DType::f32)
      launch<T, float>(a, stream);
    else
      launch<T, T>(a, stream);
  });
}

}  // namespace qkv::cuda

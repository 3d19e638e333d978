// Rotary position embedding by tables of cosines and sines, as flash-attn has it: with c and s of a token's position,
//
//   y_first = x_first c - x_second s;  y_second = x_second c + x_first s
//
// In float64, which makes the products exact, and rounded once, as on a CPU: of new tokens only, so it costs nothing that is
// felt.
#include "cuda/attention_problem.cuh"
#include "cuda/launch.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
QKV_DEVICE T from_double(double x) {
  if constexpr (std::is_same_v<T, float>) return __double2float_rn(x);
  // To odd first: what is cut off leaves its trace in the last bit, and the second rounding is as if it were the only one.
  const float cut = __double2float_rz(x);
  return from_float<T>(static_cast<double>(cut) == x || cut != cut ? cut : __uint_as_float(__float_as_uint(cut) | 1));
}

// A thread has a pair, or one of the features that stay as they are.
template <class T>
__global__ void __launch_bounds__(kThreads) rotary_table_kernel(const __grid_constant__ RotaryTableArgs a) {
  begin_dependent();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, each = a.d - a.half;
  if (i >= a.batch * a.s * a.heads * each) return;
  const int64_t row = i / each, token = row / a.heads, b = token / a.s;
  const int64_t pair = i - row * each, head = row - token * a.heads, s = token - b * a.s;
  const T* const x = reinterpret_cast<const T*>(a.x.data) + b * a.x.b + s * a.x.s + head * a.x.h;
  T* const y = static_cast<T*>(a.y) + row * a.d;
  if (pair >= a.half) {
    const int64_t at = pair + a.half;
    y[at] = x[at * a.x.d];
    return;
  }
  const int64_t position = read_int(a.lengths, b) + (a.moves ? s : 0);
  const int64_t first = a.interleaved ? 2 * pair : pair, second = a.interleaved ? first + 1 : first + a.half;
  double c = __builtin_nan(""), si = c;
  if (position >= 0 && position < a.positions) {
    c = load_float(a.cos.data, a.cos.dtype, position * a.cos.s + pair * a.cos.d);
    si = load_float(a.sin.data, a.sin.dtype, position * a.sin.s + pair * a.sin.d);
  }
  const double low = to_float(x[first * a.x.d]), high = to_float(x[second * a.x.d]);
  y[first] = from_double<T>(__dsub_rn(__dmul_rn(low, c), __dmul_rn(high, si)));
  y[second] = from_double<T>(__dadd_rn(__dmul_rn(high, c), __dmul_rn(low, si)));
}

}  // namespace

void rotary_table(const RotaryTableArgs& a, Stream stream) {
  const int64_t blocks = ceil_div<int64_t>(a.batch * a.s * a.heads * (a.d - a.half), kThreads);
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw Error(cudaErrorInvalidValue, "rotary_table: more than 2^39 features in a call");
  with_dtype(a.x.dtype, [&](auto t) {
    launch_dependent("rotary_table", rotary_table_kernel<decltype(t)>, static_cast<unsigned>(blocks), kThreads, 0, stream, a);
  });
}

}  // namespace qkv::cuda

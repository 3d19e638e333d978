// layer_norm: y = (x - mean x) / sqrt(var x + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450; biased variance)
// rms_norm:   y = x / sqrt(mean x^2 + eps) * weight                (Zhang & Sennrich 2019, arXiv:1910.07467)
// row by row; with a residual, x + residual, rounded, takes the place of x and is written too.
//
// The variance is that of the centred row, which registers still hold: E[x^2] - mean^2 cancels. The centred row's own mean, what
// rounding left of the first, is taken off too, so that rows far from zero come out as exact as others.
#include "cuda/rows.cuh"

namespace qkv::cuda {
namespace {

// The sum of a team's row, or of a piece.
template <class Row>
QKV_DEVICE float total_of(Row& row) {
  float total = 0;
  row.each([&](const auto& x, int) { total += sum_of(x); });
  return total;
}

// As sum_of. Written out, so that the compiler has no choice and all kernels get the same bits.
template <int kCount>
QKV_DEVICE float square_sum_of(const float (&x)[kCount]) {
  float pairs[kCount / 2];
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) pairs[i] = fmaf(x[2 * i], x[2 * i], __fmul_rn(x[2 * i + 1], x[2 * i + 1]));
  if constexpr (kCount == 4)
    return pairs[0] + pairs[1];
  else
    return sum_of(pairs);
}

// The sums of x - mean and of its square over n elements.
template <class Row>
QKV_DEVICE float2 moments_of(Row& row, int n, float mean) {
  float first = 0, second = 0;
  row.each([&](const auto& x, int at) {
    constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(x)>>;
    float d[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) d[j] = (Row::kVectors ? at : at + j * Row::kStride) < n ? x[j] - mean : 0;
    first += sum_of(d);
    second += square_sum_of(d);
  });
  return make_float2(first, second);
}

// What turns x into y.
struct Finish {
  float mean, rest, scale;

  // Of n elements, from the sums of x - mean and of its square.
  template <class V>
  QKV_DEVICE Finish(float mean, V first, V second, V n, float eps, bool rms) : mean(mean) {
    const V middle = rms ? 0 : first / n, variance = (second - (rms ? 0 : first) * middle) / n;
    rest = static_cast<float>(middle);
    scale = __frsqrt_rn(static_cast<float>(variance < 0 ? 0 : variance) + eps);
  }

  QKV_DEVICE float operator()(float x, float weight, float bias) const {
    return fmaf(__fmul_rn(x - mean - rest, scale), weight, bias);
  }
};

// What leaves x as it is, the sign of zero included.
constexpr float kNoWeight = 1, kNoBias = -0.0f;

// Elements `at` and those after it of a vector of T or of float.
template <class T>
QKV_DEVICE void load_parameters(float (&x)[kLanes<T>], const Vector& vector, int64_t at, float none) {
  if (!vector.data) {
#pragma unroll
    for (float& e : x) e = none;
  } else if (vector.dtype == DType::f32) {
#pragma unroll
    for (int j = 0; j < kLanes<T>; j += 4) {
      float four[4];
      unpack<float>(load16_read_only(static_cast<const float*>(vector.data) + at + j), four);
#pragma unroll
      for (int k = 0; k < 4; ++k) x[j + k] = four[k];
    }
  } else {
    unpack<T>(load16_read_only(static_cast<const T*>(vector.data) + at), x);
  }
}

template <class T>
QKV_DEVICE float parameter(const Vector& vector, int64_t at, float none) {
  if (!vector.data) return none;
  return vector.dtype == DType::f32 ? static_cast<const float*>(vector.data)[at]
                                    : to_float(static_cast<const T*>(vector.data)[at]);
}

// x becomes y, for the elements from `start` on of a row of n.
template <class T, int kChunks>
QKV_DEVICE void apply(const Finish& finish, const NormArgs& a, HeldRow<T, kChunks>& row, int64_t start) {
  row.change([&](auto& x, int at) {
    if (start + at >= a.x.n) return;
    float weight[kLanes<T>], bias[kLanes<T>];
    load_parameters<T>(weight, a.weight, start + at, kNoWeight);
    load_parameters<T>(bias, a.bias, start + at, kNoBias);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) x[j] = finish(x[j], weight[j], bias[j]);
  });
}
template <class T>
QKV_DEVICE void apply(const Finish& finish, const NormArgs& a, Piece<T, false>& piece, int64_t start) {
  piece.change([&](auto& x, int at) {
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {
      const int64_t i = start + at + j * piece.kStride;
      if (i < a.x.n) x[j] = finish(x[j], parameter<T>(a.weight, i, kNoWeight), parameter<T>(a.bias, i, kNoBias));
    }
  });
}

// What lies between reading a row and writing it.
template <class Row>
QKV_DEVICE Finish norm_row(const NormArgs& a, Row& row, int n) {
  __shared__ Scratch<float, 1> total_scratch;
  __shared__ Scratch<float, 2> moments_scratch;
  const float count = static_cast<float>(a.x.n);
  float total[1] = {0};
  if (!a.rms) {
    total[0] = total_of(row);
    reduce<Add>(total, total_scratch);
  }
  const float mean = total[0] / count;
  const float2 mine = moments_of(row, n, mean);
  float moments[2] = {mine.x, mine.y};
  reduce<Add>(moments, moments_scratch);
  return Finish(mean, moments[0], moments[1], count, a.eps, a.rms);
}

template <class T>
QKV_DEVICE T rounded_sum(T x, T residual) {
  return from_float<T>(to_float(x) + to_float(residual));
}

// to = from + other, rounded.
template <class T, int kChunks>
QKV_DEVICE void add(uint4 (&to)[kChunks], const uint4 (&from)[kChunks], const uint4 (&other)[kChunks]) {
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    float x[kLanes<T>], y[kLanes<T>];
    unpack<T>(from[i], x);
    unpack<T>(other[i], y);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) x[j] += y[j];
    to[i] = pack<T>(x);
  }
}

template <class T>
QKV_DEVICE void add(float (&to)[kPieceChunks][kLanes<T>], const float (&from)[kPieceChunks][kLanes<T>],
                    const float (&other)[kPieceChunks][kLanes<T>]) {
#pragma unroll
  for (int i = 0; i < kPieceChunks; ++i)
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) to[i][j] = to_float(from_float<T>(from[i][j] + other[i][j]));
}

// In all kernels lanes without a row still take part in what a warp does together, with n = 0.
template <class T, int kChunks>
__global__ void __launch_bounds__(kMostThreads, kChunks == 4 ? 2 : 1) norm_held(const __grid_constant__ NormArgs a) {
  const int64_t r = team_row();
  const int n = r < a.x.rows ? static_cast<int>(a.x.n) : 0;
  HeldRow<T, kChunks> row;
  if (!a.residual.data) {
    row.load(row_of<const T>(a.x, r), n, 0);
  } else {
    const T *x = row_of<const T>(a.x, r), *residual = row_of<const T>(a.residual, r);
    T* sum = row_of<T>(a.sum, r);
    constexpr int kPart = kChunks == 4 ? 4 : 2;  // chunks of x and of the residual at once
#pragma unroll
    for (int first = 0; first < kChunks; first += kPart) {
      const int skipped = first * blockDim.x * kLanes<T>;
      HeldRow<T, kPart> part, other;
      part.load(x + skipped, n - skipped, 0);
      other.load(residual + skipped, n - skipped, 0);
      add<T>(part.chunk, part.chunk, other.chunk);
      part.store(sum + skipped, n - skipped);
#pragma unroll
      for (int i = 0; i < kPart; ++i) row.chunk[first + i] = part.chunk[i];
    }
  }
  apply(norm_row(a, row, n), a, row, 0);
  row.store(row_of<T>(a.y, r), n);
}

template <class T>
__global__ void __launch_bounds__(kMostThreads) norm_shared(const __grid_constant__ NormArgs a) {
  const int64_t r = team_row();
  const int n = r < a.x.rows ? static_cast<int>(a.x.n) : 0;
  const SharedRow<T> row{reinterpret_cast<T*>(shared_chunks() + threadIdx.y * shared_pitch<T>(a.x.n)), n};
  const T* const x = row_of<const T>(a.x, r);
  if (!a.residual.data) {
    row.load(0, [&](int i) { return x[i * a.x.step]; });
  } else {
    const T* const residual = row_of<const T>(a.residual, r);
    row.load(0, [&](int i) { return rounded_sum(x[i * a.x.step], residual[i * a.residual.step]); });
    row.store(row_of<T>(a.sum, r), a.sum.step, [](T e, int) { return e; });
  }
  const Finish finish = norm_row(a, row, n);
  row.store(row_of<T>(a.y, r), a.y.step, [&](T e, int i) {
    return from_float<T>(finish(to_float(e), parameter<T>(a.weight, i, kNoWeight), parameter<T>(a.bias, i, kNoBias)));
  });
}

// Rows that are longer than what a block holds: read three times, back and forth so that the caches still have some. The sums of
// a piece are float, those of all pieces double.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kMostThreads, kVectors ? 2 : 1) norm_pieces(const __grid_constant__ NormArgs a) {
  __shared__ Scratch<double, 1> total_scratch;
  __shared__ Scratch<double, 2> moments_scratch;
  constexpr int64_t kLength = Piece<T, kVectors>::kLength;
  const bool adds = a.residual.data;
  const T* const x = row_of<const T>(a.x, blockIdx.x);
  const T* const residual = adds ? row_of<const T>(a.residual, blockIdx.x) : nullptr;
  T* const sum = adds ? row_of<T>(a.sum, blockIdx.x) : nullptr;
  const int64_t pieces = ceil_div(a.x.n, kLength);
  const auto length = [&](int64_t i) { return static_cast<int>(min(kLength, a.x.n - i * kLength)); };

  Piece<T, kVectors> piece;
  double total[1] = {0};
  for (int64_t i = 0; i < pieces; ++i) {
    piece.load(x + i * kLength * a.x.step, a.x.step, length(i), 0);
    if (adds) {
      Piece<T, kVectors> other;
      other.load(residual + i * kLength * a.residual.step, a.residual.step, length(i), 0);
      add<T>(piece.chunk, piece.chunk, other.chunk);
      piece.store(sum + i * kLength * a.sum.step, a.sum.step, length(i));
    }
    total[0] += total_of(piece);
  }
  reduce<Add>(total, total_scratch);

  // From here on every thread reads what it wrote itself.
  const T* const from = adds ? sum : x;
  const int64_t step = adds ? a.sum.step : a.x.step;
  const auto count = static_cast<double>(a.x.n);
  const float mean = a.rms ? 0 : static_cast<float>(total[0] / count);
  double moments[2] = {0, 0};
  for (int64_t i = pieces; i-- > 0;) {
    piece.template load<false>(from + i * kLength * step, step, length(i), 0);
    const float2 more = moments_of(piece, length(i), mean);
    moments[0] += more.x;
    moments[1] += more.y;
  }
  reduce<Add>(moments, moments_scratch);

  const Finish finish(mean, moments[0], moments[1], count, a.eps, a.rms);
  T* const y = row_of<T>(a.y, blockIdx.x);
  for (int64_t i = 0; i < pieces; ++i) {
    piece.template load<false>(from + i * kLength * step, step, length(i), 0);
    apply(finish, a, piece, i * kLength);
    piece.store(y + i * kLength * a.y.step, a.y.step, length(i));
  }
}

bool in_chunks(const Vector& x) { return reinterpret_cast<uintptr_t>(x.data) % 16 == 0; }

}  // namespace

void norm(const NormArgs& a, Stream stream_in) {
  if (a.x.rows == 0 || a.x.n == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_in);
  const bool vectors = in_chunks(a.x) && in_chunks(a.y) && in_chunks(a.weight) && in_chunks(a.bias) &&
                       (!a.residual.data || (in_chunks(a.residual) && in_chunks(a.sum)));
  with_dtype(a.x.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.x.n);
    const unsigned blocks = plan.blocks(a.x.rows);
    const size_t shared = shared_bytes<T>(plan, a.x.n);
    if (vectors && plan.chunks > 0) {
      with_chunks(plan.chunks,
                  [&](auto chunks) { norm_held<T, decltype(chunks)::value><<<blocks, plan.block(), 0, stream>>>(a); });
    } else if (plan.chunks > 0 && shared <= kMostShared) {
      allow_shared(norm_shared<T>, shared + kStaticShared, "norm");
      norm_shared<T><<<blocks, plan.block(), shared, stream>>>(a);
    } else {
      const auto kernel = vectors ? norm_pieces<T, true> : norm_pieces<T, false>;
      kernel<<<static_cast<unsigned>(a.x.rows), kMostThreads, 0, stream>>>(a);
    }
  });
  check_launch("norm");
}

}  // namespace qkv::cuda

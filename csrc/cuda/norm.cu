// layer_norm: y = (x - mean x) / sqrt(var x + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450; biased variance)
// rms_norm:   y = x / sqrt(mean x^2 + eps) * weight                (Zhang & Sennrich 2019, arXiv:1910.07467)
// row by row; with a residual, x + residual, rounded, takes the place of x and is written too.
//
// The variance is that of the centred row, which registers still hold: E[x^2] - mean^2 cancels.
#include "cuda/rows.cuh"

namespace qkv::cuda {
namespace {

// The mean of x is `start`, an element, and the mean of x - start, so that constant rows come out as zeros. float32 takes off
// what rounding left of it, the mean of x - mean, as well, so that rows far from zero come out as exact as others; what 16 bits
// hold is not that fine, and for them every instruction counts.
template <class T>
constexpr bool kTakesRest = !kIs16Bit<T>;

// The sum of x - start over the chunks of a team's row of n elements, or of a piece.
template <class Row>
QKV_DEVICE float total_of(Row& row, int n, float start) {
  float total = 0;
  row.each([&](const auto& x, int at) {
    constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(x)>>;
    if (Row::kVectors && at >= n) return;
    float d[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) d[j] = Row::kVectors || at + j * Row::kStride < n ? x[j] - start : 0;
    total += sum_of(d);
  });
  return total;
}

// The sums of x - mean, where it is of use, and of its square.
template <class T, class Row>
QKV_DEVICE float2 moments_of(Row& row, int n, float mean) {
  float first = 0, second[2] = {0, 0};
  row.each([&](const auto& x, int at) {
    constexpr int kCount = std::extent_v<std::remove_reference_t<decltype(x)>>;
    if (Row::kVectors && at >= n) return;
    float d[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      d[j] = Row::kVectors || at + j * Row::kStride < n ? x[j] - mean : 0;
      second[j % 2] = fmaf(d[j], d[j], second[j % 2]);
    }
    if constexpr (kTakesRest<T>) first += sum_of(d);
  });
  return make_float2(first, second[0] + second[1]);
}

// What turns x into y.
template <class T>
struct Finish {
  float mean, rest, scale;

  // From the sums of x - mean and of its square, and 1 / n.
  template <class V>
  QKV_DEVICE Finish(float mean, V first, V second, V inverse, float eps, bool rms) : mean(mean) {
    const V sum = rms || !kTakesRest<T> ? 0 : first, middle = sum * inverse, variance = (second - sum * middle) * inverse;
    rest = static_cast<float>(middle);
    scale = __frsqrt_rn(static_cast<float>(variance < 0 ? 0 : variance) + eps);
  }

  // Written out, so that the compiler has no choice and all kernels get the same bits.
  QKV_DEVICE float operator()(float x, float weight, float bias) const {
    const float centred = kTakesRest<T> ? x - mean - rest : x - mean;
    return fmaf(__fmul_rn(centred, scale), weight, bias);
  }
};

// What leaves x as it is, the sign of zero included.
constexpr float kNoWeight = 1, kNoBias = -0.0f;

template <class P, int kCount>
QKV_DEVICE void load_typed(float (&x)[kCount], const void* data, int64_t at) {
  const P* const p = static_cast<const P*>(data) + at;
#pragma unroll
  for (int j = 0; j < kCount; j += kLanes<P>) {
    float v[kLanes<P>];
    unpack<P>(load16_read_only(p + j), v);
#pragma unroll
    for (int k = 0; k < kLanes<P>; ++k) x[j + k] = v[k];
  }
}

// Elements `at` and those after it of a vector of T or of float.
template <class T, int kCount>
QKV_DEVICE void load_parameters(float (&x)[kCount], const Vector& vector, int64_t at, float none) {
  if (!vector.data) {
#pragma unroll
    for (float& e : x) e = none;
  } else if (!kIs16Bit<T> || vector.dtype == DType::f32) {
    load_typed<float>(x, vector.data, at);
  } else {
    load_typed<T>(x, vector.data, at);
  }
}

template <class T>
QKV_DEVICE float parameter(const Vector& vector, int64_t at, float none) {
  if (!vector.data) return none;
  return vector.dtype == DType::f32 ? static_cast<const float*>(vector.data)[at]
                                    : to_float(static_cast<const T*>(vector.data)[at]);
}

// Makes y of x, for chunks and for the elements of Piece<T, false>; the first is number `start` of the row.
template <class T>
struct Apply {
  const Finish<T> finish;
  const NormArgs& a;
  const int64_t start = 0;

  template <int kCount>
  QKV_DEVICE void operator()(float (&x)[kCount], int at) const {
    float weight[kCount], bias[kCount];
    if (start + at >= a.x.n) return;
    load_parameters<T>(weight, a.weight, start + at, kNoWeight);
    load_parameters<T>(bias, a.bias, start + at, kNoBias);
#pragma unroll
    for (int j = 0; j < kCount; ++j) x[j] = finish(x[j], weight[j], bias[j]);
  }
  QKV_DEVICE float operator()(float x, int64_t i) const {
    return finish(x, parameter<T>(a.weight, i, kNoWeight), parameter<T>(a.bias, i, kNoBias));
  }
};

template <class T>
QKV_DEVICE void apply(const Apply<T>& f, Piece<T, true>& piece) {
  piece.change(f);
}
template <class T>
QKV_DEVICE void apply(const Apply<T>& f, Piece<T, false>& piece) {
  piece.change([&](auto& x, int at) {
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j)
      if (const int64_t i = f.start + at + j * piece.kStride; i < f.a.x.n) x[j] = f(x[j], i);
  });
}

// What lies between reading a row and writing it. odd: of the calls of a block, every other. inverse: 1 / n of all rows.
template <class T, class Row>
QKV_DEVICE Finish<T> norm_row(const NormArgs& a, Row& row, int n, float start, float inverse, bool odd = false) {
  __shared__ Scratch<float, 1> total_scratch;
  __shared__ Scratch<float, kTakesRest<T> ? 2 : 1> moments_scratch[2];
  static_assert(sizeof(total_scratch) + sizeof(moments_scratch) <= kStaticShared);
  float mean = 0;
  if (!a.rms) {
    float total[1] = {total_of(row, n, start)};
    reduce<Add>(total, total_scratch);
    mean = start + total[0] * inverse;
  }
  const float2 mine = moments_of<T>(row, n, mean);
  if constexpr (kTakesRest<T>) {
    float moments[2] = {mine.x, mine.y};
    reduce<Add>(moments, moments_scratch[odd]);
    return Finish<T>(mean, moments[0], moments[1], inverse, a.eps, a.rms);
  } else {
    float moments[1] = {mine.y};
    reduce<Add>(moments, moments_scratch[odd]);
    return Finish<T>(mean, 0.0f, moments[0], inverse, a.eps, a.rms);
  }
}

// x + y, rounded.
template <class T>
QKV_DEVICE uint4 rounded_sum(const uint4& x, const uint4& y) {
  float v[kLanes<T>], w[kLanes<T>];
  unpack<T>(x, v);
  unpack<T>(y, w);
#pragma unroll
  for (int j = 0; j < kLanes<T>; ++j) v[j] += w[j];
  return pack<T>(v);
}
template <class T>
QKV_DEVICE void add(HeldRow<T>& to, const HeldRow<T>& other) {
#pragma unroll
  for (int i = 0; i < kHeldChunks; ++i) to.chunk[i] = rounded_sum<T>(to.chunk[i], other.chunk[i]);
}
// piece += the n elements at `residual`, rounded.
template <class T>
QKV_DEVICE void add_row(Piece<T, true>& piece, const T* residual, int64_t, int n) {
  HeldRow<T> other;
  other.load(residual, n, 0);
  add(piece, other);
}
template <class T>
QKV_DEVICE void add_row(Piece<T, false>& piece, const T* residual, int64_t step, int n) {
#pragma unroll
  for (int i = 0; i < kHeldChunks; ++i)
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j)
      if (const int at = piece.place(i, j); at < n)
        piece.chunk[i][j] = to_float(from_float<T>(piece.chunk[i][j] + to_float(residual[at * step])));
}

// The first element of what is normalised.
template <class T>
QKV_DEVICE float first_of(const NormArgs& a, int64_t r) {
  const float x = to_float(*row_of<const T>(a.x, r));
  return a.residual.data ? to_float(from_float<T>(x + to_float(*row_of<const T>(a.residual, r)))) : x;
}

// In all kernels lanes without a row still take part in what a warp does together, with n = 0.
template <class T>
__global__ void __launch_bounds__(kMostThreads, 2) norm_held(const __grid_constant__ NormArgs a, float inverse) {
  begin_dependent();
  const int64_t r = team_row();
  const int n = r < a.x.rows ? static_cast<int>(a.x.n) : 0;
  HeldRow<T> row;
  row.load(row_of<const T>(a.x, r), n, 0);
  const float start = n > 0 ? first_of<T>(a, r) : 0;
  if (a.residual.data) {
    HeldRow<T> residual;
    residual.load(row_of<const T>(a.residual, r), n, 0);
    add(row, residual);
    row.store(row_of<T>(a.sum, r), n);
  }
  row.change(Apply<T>{norm_row<T>(a, row, n, start, inverse), a});
  row.store(row_of<T>(a.y, r), n);
}

template <class T>
__global__ void __launch_bounds__(kMostThreads) norm_ahead(const __grid_constant__ NormArgs a, float inverse) {
  begin_dependent();
  AheadRow<T> row(static_cast<int>(a.x.n));
  row.fetch(row_of<const T>(a.x, blockIdx.x));
  bool odd = false;
  for (int64_t r = blockIdx.x; r < a.x.rows; r += gridDim.x, odd = !odd) {
    row.take();
    const float start = first_of<T>(a, r);
    T* const y = row_of<T>(a.y, r);  // here, where registers are free for the divisions
    const T* const residual = a.residual.data ? row_of<const T>(a.residual, r) : nullptr;
    T* const sum = a.residual.data ? row_of<T>(a.sum, r) : nullptr;
    if (r + gridDim.x < a.x.rows) row.fetch(row_of<const T>(a.x, r + gridDim.x));
    if (residual) {
      constexpr int kBeside = kLoadsKeepOrder ? 2 : 1;  // loads before the stores that they may not be moved across
#pragma unroll(2 / kBeside)
      for (int i = 0; row.place(i) < row.n; i += kBeside) {
        uint4 beside[kBeside];
#pragma unroll
        for (int j = 0; j < kBeside; ++j)
          if (j == 0 || row.place(i + j) < row.n) beside[j] = load16_streaming(residual + row.place(i + j));
#pragma unroll
        for (int j = 0; j < kBeside; ++j)
          if (j == 0 || row.place(i + j) < row.n) {
            row.chunk(i + j) = rounded_sum<T>(row.chunk(i + j), beside[j]);
            store16(sum + row.place(i + j), row.chunk(i + j));
          }
      }
    }
    row.store(y, Apply<T>{norm_row<T>(a, row, row.n, start, inverse, odd), a});
  }
}

template <class T>
__global__ void __launch_bounds__(kMostThreads, 2) norm_shared(const __grid_constant__ NormArgs a, float inverse) {
  begin_dependent();
  const int64_t r = team_row();
  const int n = r < a.x.rows ? static_cast<int>(a.x.n) : 0;
  const SharedRow<T> row{reinterpret_cast<T*>(shared_chunks() + threadIdx.y * shared_pitch<T>(a.x.n)), n};
  const T* const x = row_of<const T>(a.x, r);
  if (!a.residual.data) {
    row.load(0, [&](int i) { return x[i * a.x.step]; });
  } else {
    const T* const residual = row_of<const T>(a.residual, r);
    row.load(0, [&](int i) { return from_float<T>(to_float(x[i * a.x.step]) + to_float(residual[i * a.residual.step])); });
    row.store(row_of<T>(a.sum, r), a.sum.step, [](T e, int) { return e; });
  }
  const Apply<T> f{norm_row<T>(a, row, n, n > 0 ? to_float(row.row[0]) : 0, inverse), a};
  row.store(row_of<T>(a.y, r), a.y.step, [&](T e, int i) { return from_float<T>(f(to_float(e), static_cast<int64_t>(i))); });
}

// Rows that are longer than what a block holds: read three times, back and forth so that the caches still have some. The sums of
// a piece are float, those of all pieces double.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kMostThreads, kVectors ? 2 : 1) norm_pieces(const __grid_constant__ NormArgs a) {
  begin_dependent();
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
      add_row(piece, residual + i * kLength * a.residual.step, a.residual.step, length(i));
      piece.store(sum + i * kLength * a.sum.step, a.sum.step, length(i));
    }
    total[0] += total_of(piece, length(i), 0);
  }
  reduce<Add>(total, total_scratch);

  // From here on every thread reads what it wrote itself.
  const T* const from = adds ? sum : x;
  const int64_t step = adds ? a.sum.step : a.x.step;
  const double inverse = 1.0 / static_cast<double>(a.x.n);
  const float mean = a.rms ? 0 : static_cast<float>(total[0] * inverse);
  double moments[2] = {0, 0};
  for (int64_t i = pieces; i-- > 0;) {
    piece.template load<false>(from + i * kLength * step, step, length(i), 0);
    const float2 more = moments_of<T>(piece, length(i), mean);
    moments[0] += more.x;
    moments[1] += more.y;
  }
  reduce<Add>(moments, moments_scratch);

  const Finish<T> finish(mean, moments[0], moments[1], inverse, a.eps, a.rms);
  T* const y = row_of<T>(a.y, blockIdx.x);
  for (int64_t i = 0; i < pieces; ++i) {
    piece.template load<false>(from + i * kLength * step, step, length(i), 0);
    apply({finish, a, i * kLength}, piece);
    piece.store(y + i * kLength * a.y.step, a.y.step, length(i));
  }
}

bool in_chunks(const Vector& x) { return reinterpret_cast<uintptr_t>(x.data) % 16 == 0; }

}  // namespace

void norm(const NormArgs& a, Stream stream) {
  if (a.x.rows == 0 || a.x.n == 0) return;
  const bool vectors = in_chunks(a.x) && in_chunks(a.y) && in_chunks(a.weight) && in_chunks(a.bias) &&
                       (!a.residual.data || (in_chunks(a.residual) && in_chunks(a.sum)));
  with_dtype(a.x.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.x.n);
    const unsigned blocks = plan.blocks(a.x.rows);
    const size_t shared = shared_bytes<T>(plan, a.x.n), ahead = ahead_bytes(plan);
    const float inverse = 1.0f / static_cast<float>(a.x.n);
    if (vectors && plan.chunks == kHeldChunks) {
      launch_dependent("norm", norm_held<T>, blocks, plan.block(), 0, stream, a, inverse);
    } else if (vectors && plan.chunks == kAheadChunks && ahead > 0) {
      allow_shared(norm_ahead<T>, ahead, "norm");
      launch_dependent("norm", norm_ahead<T>, blocks_ahead(plan, a.x.rows), plan.block(), ahead, stream, a, inverse);
    } else if (!vectors && plan.chunks > 0 && shared <= kMostShared) {
      allow_shared(norm_shared<T>, shared, "norm");
      launch_dependent("norm", norm_shared<T>, blocks, plan.block(), shared, stream, a, inverse);
    } else {
      const auto kernel = vectors ? norm_pieces<T, true> : norm_pieces<T, false>;
      launch_dependent("norm", kernel, static_cast<unsigned>(a.x.rows), kMostThreads, 0, stream, a);
    }
  });
}

}  // namespace qkv::cuda

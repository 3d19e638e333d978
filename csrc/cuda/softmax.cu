// softmax: y_i = e^(x_i - m) / sum_j e^(x_j - m), log_softmax: y_i = x_i - m - ln sum_j e^(x_j - m), with m = max x, row by row.
#include "cuda/rows.cuh"

namespace qkv::cuda {
namespace {

constexpr float kInfinity = __builtin_huge_valf();
constexpr int kAcrossThreads = 256;  // of a block of softmax_across, at most

// e^x for x <= 0. For results of 16 bits the rounding of x log2 e, half an ulp of it, does no harm.
template <class T>
QKV_DEVICE float exp_of(float x) {
  if constexpr (kIs16Bit<T>)
    return exp2_approx(x * 1.44269504f);
  else
    return expf(x);
}

template <int kCount>
QKV_DEVICE float max_of(const float (&x)[kCount], float top) {
#pragma unroll
  for (float e : x) top = fmaxf(top, e);
  return top;
}

template <class T, int kCount>
QKV_DEVICE float exp_sum_of(const float (&x)[kCount], float top) {
  float e[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) e[i] = exp_of<T>(x[i] - top);
  return sum_of(e);
}

// What turns x into y.
template <class T>
struct Finish {
  float top, last;  // ln of the sum, or 1 / the sum
  bool log;
  QKV_DEVICE Finish(float top, float total, bool log) : top(top), last(log ? logf(total) : 1.0f / total), log(log) {}
  QKV_DEVICE float operator()(float x) const { return log ? x - top - last : exp_of<T>(x - top) * last; }
  template <int kCount>
  QKV_DEVICE void operator()(float (&x)[kCount], int) const {
#pragma unroll
    for (float& e : x) e = (*this)(e);
  }
};

// What lies between reading a team's row and writing it. The row is padded with -inf, which adds e^-inf = 0.
template <class T, class Row>
QKV_DEVICE Finish<T> softmax_row(Row& row, bool log) {
  __shared__ Scratch<float, 1> scratch[2];  // a third call of reduce can only come when the first is over
  static_assert(sizeof(scratch) <= kStaticShared);
  float top[1] = {-kInfinity}, total[1] = {0};
  row.each([&](const auto& x, int) { top[0] = max_of(x, top[0]); });
  reduce<Max>(top, scratch[0]);
  row.each([&](const auto& x, int) { total[0] += exp_sum_of<T>(x, top[0]); });
  reduce<Add>(total, scratch[1]);
  return Finish<T>(top[0], total[0], log);
}

// Of row r, if there is one: instead of y, what log_softmax subtracts.
template <class T>
QKV_DEVICE void give_parts(const Finish<T>& finish, float* parts, int64_t r, int64_t rows) {
  if (threadIdx.x == 0 && r < rows) reinterpret_cast<float2*>(parts)[r] = make_float2(finish.top, finish.last);
}

// In all kernels lanes without a row still take part in what a warp does together, with n = 0.
template <class T>
__global__ void __launch_bounds__(kMostThreads, kHeldBlocks<T>)
    softmax_held(const __grid_constant__ Rows x, const __grid_constant__ Rows y, bool log) {
  begin_dependent();
  const int64_t r = team_row();
  const int n = r < x.rows ? static_cast<int>(x.n) : 0;
  HeldRow<T> row;
  row.load(row_of<const T>(x, r), n, -kInfinity);
  row.change(softmax_row<T>(row, log));
  row.store(row_of<T>(y, r), n);
}

template <class T>
__global__ void __launch_bounds__(kMostThreads, kHeldBlocks<T>) parts_held(const __grid_constant__ Rows x, float* parts) {
  begin_dependent();
  const int64_t r = team_row();
  HeldRow<T> row;
  row.load(row_of<const T>(x, r), r < x.rows ? static_cast<int>(x.n) : 0, -kInfinity);
  give_parts(softmax_row<T>(row, true), parts, r, x.rows);
}

template <class T>
__global__ void __launch_bounds__(kMostThreads)
    softmax_ahead(const __grid_constant__ Rows x, const __grid_constant__ Rows y, bool log) {
  begin_dependent();
  AheadRow<T> row(static_cast<int>(x.n));
  row.fetch(row_of<const T>(x, blockIdx.x));
  for (int64_t r = blockIdx.x; r < x.rows; r += gridDim.x) {
    row.take();
    if (r + gridDim.x < x.rows) row.fetch(row_of<const T>(x, r + gridDim.x));
    row.store(row_of<T>(y, r), softmax_row<T>(row, log));
  }
}

template <class T>
__global__ void __launch_bounds__(kMostThreads) parts_ahead(const __grid_constant__ Rows x, float* parts) {
  begin_dependent();
  AheadRow<T> row(static_cast<int>(x.n));
  row.fetch(row_of<const T>(x, blockIdx.x));
  for (int64_t r = blockIdx.x; r < x.rows; r += gridDim.x) {
    row.take();
    if (r + gridDim.x < x.rows) row.fetch(row_of<const T>(x, r + gridDim.x));
    give_parts(softmax_row<T>(row, true), parts, r, x.rows);
  }
}

template <class T>
__global__ void __launch_bounds__(kMostThreads)
    softmax_shared(const __grid_constant__ Rows x, const __grid_constant__ Rows y, bool log, float* parts) {
  begin_dependent();
  const int64_t r = team_row();
  const SharedRow<T> row{reinterpret_cast<T*>(shared_chunks() + threadIdx.y * shared_pitch<T>(x.n)),
                         r < x.rows ? static_cast<int>(x.n) : 0};
  const T* const from = row_of<const T>(x, r);
  row.load(-kInfinity, [&](int i) { return from[i * x.step]; });
  const Finish<T> finish = softmax_row<T>(row, log);
  if (parts) return give_parts(finish, parts, r, x.rows);
  row.store(row_of<T>(y, r), y.step, [&](T e, int) { return from_float<T>(finish(to_float(e))); });
}

// Along an axis that is not the last, where neighbouring rows are neighbours in memory and a row alone would fetch a sector of 32
// bytes for each element: `columns` rows at once go through shared memory.
template <class T>
__global__ void __launch_bounds__(kAcrossThreads)
    softmax_across(const __grid_constant__ Rows x, const __grid_constant__ Rows y, bool log, int columns) {
  const int64_t inner = x.shape[x.rank - 1], groups = ceil_div(inner, static_cast<int64_t>(columns));
  const int64_t group = blockIdx.x % groups, first = blockIdx.x / groups * inner + group * columns;
  const int count = static_cast<int>(min(static_cast<int64_t>(columns), inner - group * columns));
  const int n = static_cast<int>(x.n), pitch = (shared_pitch<T>(n) | 1) * kLanes<T>, threads = blockDim.x * blockDim.y;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, column = thread % columns, start = thread / columns;
  T* const rows = reinterpret_cast<T*>(shared_chunks());
  if (column < count) {
    const T* const from = row_of<const T>(x, first) + column;
#pragma unroll 8
    for (int i = start; i < pitch; i += threads / columns)
      rows[column * pitch + i] = i < n ? from[i * x.step] : from_float<T>(-kInfinity);
  }
  __syncthreads();
  for (int c = threadIdx.y; c - static_cast<int>(threadIdx.y) < count; c += blockDim.y) {
    const SharedRow<T> row{rows + c * pitch, c < count ? n : 0};
    const Finish<T> finish = softmax_row<T>(row, log);
    team_sync();
    row.store(row.row, 1, [&](T e, int) { return from_float<T>(finish(to_float(e))); });
  }
  __syncthreads();
  if (column < count) {
    T* const to = row_of<T>(y, first) + column;
#pragma unroll 4
    for (int i = start; i < n; i += threads / columns) to[i * y.step] = rows[column * pitch + i];
  }
}

// Rows that are longer than what a block holds: read twice, first for m and the sum, which grow together, then from the end,
// where the caches still have them. The sum of a piece is float, that of all pieces double: sums of millions stay exact.
template <class T, bool kVectors>
__global__ void __launch_bounds__(kMostThreads, 2)
    softmax_pieces(const __grid_constant__ Rows x, const __grid_constant__ Rows y, bool log, float* parts) {
  begin_dependent();
  __shared__ Scratch<float, 1> top_scratch;
  __shared__ Scratch<double, 1> total_scratch;
  constexpr int64_t kLength = Piece<T, kVectors>::kLength;
  const T* const from = row_of<const T>(x, blockIdx.x);
  const int64_t pieces = ceil_div(x.n, kLength);
  const auto length = [&](int64_t i) { return static_cast<int>(min(kLength, x.n - i * kLength)); };
  Piece<T, kVectors> piece;
  float top[1] = {-kInfinity};
  double total[1] = {0};
  for (int64_t i = 0; i < pieces; ++i) {
    piece.load(from + i * kLength * x.step, x.step, length(i), -kInfinity);
    float higher = top[0], sum = 0;
    piece.each([&](const auto& v, int) { higher = max_of(v, higher); });
    if (higher != top[0]) total[0] *= expf(top[0] - higher);
    top[0] = higher;
    if (higher == -kInfinity) higher = 0;  // -inf - -inf is NaN, e^(-inf - 0) is 0
    piece.each([&](const auto& v, int) { sum += exp_sum_of<T>(v, higher); });
    total[0] += sum;
  }
  const float mine = top[0];
  reduce<Max>(top, top_scratch);
  if (mine != top[0]) total[0] *= expf(mine - top[0]);
  reduce<Add>(total, total_scratch);

  const Finish<T> finish(top[0], static_cast<float>(total[0]), log);
  if (parts) return give_parts(finish, parts, blockIdx.x, x.rows);
  T* const to = row_of<T>(y, blockIdx.x);
  for (int64_t i = pieces; i-- > 0;) {
    piece.load(from + i * kLength * x.step, x.step, length(i), -kInfinity);
    piece.change(finish);
    piece.store(to + i * kLength * y.step, y.step, length(i));
  }
}

// How many columns of n elements softmax_across takes at once: 32 where shared memory allows, else 16; 0: it cannot.
template <class T>
int columns_across(const SoftmaxArgs& a) {
  constexpr int64_t kMostBytes = 80 * 1024;
  const Rows &x = a.x, &y = a.y;
  if (x.rank == 0 || x.step == 1 || x.shape[x.rank - 1] < 8 || x.strides[x.rank - 1] != 1 || y.strides[y.rank - 1] != 1) return 0;
  const int64_t bytes = 16 * (shared_pitch<T>(x.n) | 1);
  return 32 * bytes <= kMostBytes ? 32 : 16 * bytes <= kMostBytes ? 16 : 0;
}

template <class T>
void launch_across(const SoftmaxArgs& a, const RowPlan& plan, int columns, cudaStream_t stream) {
  const int64_t inner = a.x.shape[a.x.rank - 1];
  const dim3 block(static_cast<unsigned>(plan.threads), static_cast<unsigned>(kAcrossThreads / plan.threads));
  const size_t shared = 16 * static_cast<size_t>(columns * (shared_pitch<T>(a.x.n) | 1));
  const auto blocks = static_cast<unsigned>(a.x.rows / inner * ceil_div<int64_t>(inner, columns));
  allow_shared(softmax_across<T>, shared, "softmax");
  softmax_across<T><<<blocks, block, shared, stream>>>(a.x, a.y, a.log, columns);
  check_launch("softmax");
}

}  // namespace

void softmax(const SoftmaxArgs& a, Stream stream_in) {
  if (a.x.rows == 0 || a.x.n == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_in);
  with_dtype(a.x.dtype, [&](auto t) {
    using T = decltype(t);
    const RowPlan plan = plan_rows<T>(a.x.n);
    const unsigned blocks = plan.blocks(a.x.rows);
    const bool vectors = in_chunks(a.x) && in_chunks(a.y);
    const int columns = !a.parts && plan.chunks == kHeldChunks && plan.threads <= kAcrossThreads / 2 ? columns_across<T>(a) : 0;
    const size_t shared = shared_bytes<T>(plan, a.x.n), ahead = ahead_bytes(plan);
    if (columns > 0) {
      launch_across<T>(a, plan, columns, stream);
    } else if (vectors && plan.chunks == kHeldChunks) {
      if (a.parts)
        launch_dependent("softmax", parts_held<T>, blocks, plan.block(), 0, stream, a.x, a.parts);
      else
        launch_dependent("softmax", softmax_held<T>, blocks, plan.block(), 0, stream, a.x, a.y, a.log);
    } else if (vectors && plan.chunks == kAheadChunks && ahead > 0) {
      allow_shared(softmax_ahead<T>, ahead, "softmax");
      allow_shared(parts_ahead<T>, ahead, "log_softmax_parts");
      if (a.parts)
        launch_dependent("softmax", parts_ahead<T>, blocks_ahead(plan, a.x.rows), plan.block(), ahead, stream, a.x, a.parts);
      else
        launch_dependent("softmax", softmax_ahead<T>, blocks_ahead(plan, a.x.rows), plan.block(), ahead, stream, a.x, a.y, a.log);
    } else if (!vectors && plan.chunks > 0 && shared <= kMostShared) {
      allow_shared(softmax_shared<T>, shared, "softmax");
      launch_dependent("softmax", softmax_shared<T>, blocks, plan.block(), shared, stream, a.x, a.y, a.log, a.parts);
    } else {
      const auto kernel = vectors ? softmax_pieces<T, true> : softmax_pieces<T, false>;
      launch_dependent("softmax", kernel, static_cast<unsigned>(a.x.rows), kMostThreads, 0, stream, a.x, a.y, a.log, a.parts);
    }
  });
}

}  // namespace qkv::cuda

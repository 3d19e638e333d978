// y = x: from any strides to any strides, from any float type to any.
#include "cuda/elementwise.cuh"

namespace qkv::cuda {
namespace {

// Where neighbours in x are not neighbours in y: tiles go through shared memory, read along x's rows and written along y's.
constexpr int kTile = 64, kTileRows = 8;  // a block is (32, kTileRows)

// x (across, n) has neighbours along `across`, y along n; the grid of both is what remains.
template <class From, class To>
__global__ void __launch_bounds__(32 * kTileRows)
    transpose(const __grid_constant__ Rows x, const __grid_constant__ Rows y, int64_t across, int64_t y_across) {
  __shared__ To tile[kTile][kTile + (sizeof(To) < 4 ? 4 / sizeof(To) : 1)];  // columns in different banks
  const int64_t tiles_n = ceil_div<int64_t>(x.n, kTile), tiles = tiles_n * ceil_div<int64_t>(across, kTile);
  const int64_t r = blockIdx.x / tiles, rest = blockIdx.x - r * tiles;
  const int64_t a0 = rest / tiles_n * kTile, n0 = (rest - rest / tiles_n * tiles_n) * kTile;
  const From* const from = row_of<const From>(x, r) + n0 * x.step + a0;
  To* const to = row_of<To>(y, r) + a0 * y_across + n0;
  const int left_n = static_cast<int>(min(x.n - n0, static_cast<int64_t>(kTile)));
  const int left_a = static_cast<int>(min(across - a0, static_cast<int64_t>(kTile)));
#pragma unroll
  for (int i = 0; i < kTile; i += kTileRows)
#pragma unroll
    for (int j = 0; j < kTile; j += 32) {
      const int n = i + threadIdx.y, a = j + threadIdx.x;
      if (n < left_n && a < left_a) {
        const From element = from[n * x.step + a];
        if constexpr (std::is_same_v<From, To>)
          tile[n][a] = element;
        else
          tile[n][a] = from_float<To>(to_float(element));
      }
    }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTile; i += kTileRows)
#pragma unroll
    for (int j = 0; j < kTile; j += 32) {
      const int a = i + threadIdx.y, n = j + threadIdx.x;
      if (n < left_n && a < left_a) to[a * y_across + n] = tile[n][a];
    }
}

// The dimension of x's grid along which it has neighbours, if rows do not run along it already, as y's do; else -1.
int dimension_across(const Rows& x, const Rows& y) {
  if (x.step == 1 || y.step != 1) return -1;
  for (int d = 0; d < x.rank; ++d)
    if (x.strides[d] == 1 && x.shape[d] >= 8 && x.n >= 8) return d;
  return -1;
}

void remove_dimension(Rows* x, int d) {
  x->rows /= x->shape[d];
  --x->rank;
  for (; d < x->rank; ++d) {
    x->shape[d] = x->shape[d + 1];
    x->strides[d] = x->strides[d + 1];
  }
}

template <class From, class To>
void launch(Rows x, Rows y, cudaStream_t stream) {
  const int d = dimension_across(x, y);
  if (d < 0) return map<From, To>("copy", x, y, Same{}, stream);
  const int64_t across = x.shape[d], y_across = y.strides[d];
  remove_dimension(&x, d);
  remove_dimension(&y, d);
  const int64_t tiles = ceil_div<int64_t>(x.n, kTile) * ceil_div<int64_t>(across, kTile);
  transpose<From, To><<<static_cast<unsigned>(x.rows * tiles), dim3(32, kTileRows), 0, stream>>>(x, y, across, y_across);
}

}  // namespace

void copy(const CopyArgs& args, Stream stream_in) {
  if (args.x.rows == 0 || args.x.n == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_in);
  Rows x = args.x, y = args.y;
  simplify(&x, &y);
  if (args.from_double) {
    with_dtype(y.dtype, [&](auto to) { map<double, decltype(to)>("copy", x, y, Same{}, stream); });
  } else if (args.item || x.dtype == y.dtype) {
    switch (args.item ? args.item : size_of(x.dtype)) {
      case 1:
        launch<uint8_t, uint8_t>(x, y, stream);
        break;
      case 2:
        launch<uint16_t, uint16_t>(x, y, stream);
        break;
      case 4:
        launch<uint32_t, uint32_t>(x, y, stream);
        break;
      default:
        launch<uint64_t, uint64_t>(x, y, stream);
    }
  } else {
    with_dtype(x.dtype, [&](auto from) {
      with_dtype(y.dtype, [&](auto to) {
        using From = decltype(from);
        using To = decltype(to);
        if constexpr (!std::is_same_v<From, To>) launch<From, To>(x, y, stream);
      });
    });
  }
  check_launch("copy");
}

}  // namespace qkv::cuda

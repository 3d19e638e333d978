// What sample_search.cuh says that scores weigh, each by itself and summed up, for test_cuda_sample_weights.py.
#include "cuda/sample_search.cuh"

using namespace qkv::cuda;
using namespace qkv::cuda::sampling;

namespace {

// x, weights (n); sums: of x's pieces of WeightSum::kMost.
__global__ void weigh_pieces(const float* x, int64_t n, Weight weight, uint64_t* weights, uint64_t* sums) {
  const int64_t piece = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, from = piece * WeightSum::kMost,
                to = min(n, from + WeightSum::kMost);
  if (from >= to) return;
  WeightSum sum(weight.bits);
  for (int64_t i = from; i < to; ++i) {
    weights[i] = weight(ordered(x[i]));
    sum.add(weight.of(x[i]));
  }
  sums[piece] = sum.total(static_cast<uint32_t>(to - from), weight.bits);
}

}  // namespace

extern "C" int most_weights() { return WeightSum::kMost; }
extern "C" int bits_of_row(int64_t n) { return weight_bits(n); }
extern "C" void weigh(const float* x, int64_t n, float top, float scale, int bits, uint64_t* weights, uint64_t* sums) {
  const int64_t pieces = (n + WeightSum::kMost - 1) / WeightSum::kMost;
  weigh_pieces<<<static_cast<unsigned>((pieces + 63) / 64), 64>>>(x, n, Weight{top, scale, bits}, weights, sums);
}

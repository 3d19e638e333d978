// x += 1: the counters of recorded steps, positions and lengths, which count on without the host.
#include "cuda/rows.cuh"

namespace qkv::cuda {
namespace {

// A few numbers: one load and one store a thread, neighbours by neighbouring threads.
constexpr int kAdvanceThreads = 128;

__global__ void __launch_bounds__(kAdvanceThreads) advance_kernel(const __grid_constant__ Rows x) {
  begin_dependent();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kAdvanceThreads + threadIdx.x;
  if (at >= x.rows * x.n) return;
  const int64_t row = at / x.n;
  int64_t* const p = row_of<int64_t>(x, row) + (at - row * x.n) * x.step;
  *p += 1;
}

}  // namespace

void advance(const AdvanceArgs& a, Stream stream) {
  const int64_t count = a.x.rows * a.x.n;
  if (count == 0) return;
  launch_dependent("advance", advance_kernel, static_cast<unsigned>(ceil_div<int64_t>(count, kAdvanceThreads)), kAdvanceThreads,
                   0, stream, a.x);
}

}  // namespace qkv::cuda

// Slots of the tokens that come next in each sequence of a paged cache, where only the device knows how many there are.
#include "cuda/attention_problem.cuh"
#include "cuda/launch.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) slots_kernel(const __grid_constant__ PagedSlotsArgs a) {
  begin_dependent();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.batch * a.count) return;
  const int64_t b = i / a.count, place = read_int(a.lengths, b) + (i - b * a.count);
  int64_t slot = -1;
  if (place >= 0 && place < a.width * a.block_size) {
    const int64_t n = place / a.block_size, block = read_int(a.tables, b * a.table_row + n);
    if (block >= 0 && block < a.blocks) slot = block * a.block_size + (place - n * a.block_size);
  }
  a.slots[i] = slot;
}

}  // namespace

void paged_slots(const PagedSlotsArgs& a, Stream stream) {
  const int64_t blocks = ceil_div<int64_t>(a.batch * a.count, kThreads);
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw Error(cudaErrorInvalidValue, "paged_slots: more than 2^38 tokens in a call");
  launch_dependent("paged_slots", slots_kernel, static_cast<unsigned>(blocks), kThreads, 0, stream, a);
}

}  // namespace qkv::cuda

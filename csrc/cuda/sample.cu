// sample (sample.cuh) by one block a row; and into how many blocks rows are shared out.
#include "cuda/sample.cuh"

namespace qkv::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kSampleThreads, kSampleBlocks)
    sample_rows(const __grid_constant__ SampleArgs a, const __grid_constant__ SamplePlan plan) {
  sampling::sample_row<T>(a, plan, sampling::OneBlock(), blockIdx.x);
}

constexpr int kMostBlocks = 8;      // of a cluster, on any device that has them
constexpr int kLeastShare = 1024;   // chunks
constexpr size_t kReserved = 1024;  // bytes of each block's shared memory that the system takes

// More blocks a row where there are fewer rows than multiprocessors, or where two shares do not fit one: so that one block reads
// while the other computes.
template <class T>
SamplePlan plan_sample(const SampleArgs& a, bool clusters) {
  SamplePlan plan{};
  plan.bits = 44;  // so that the weights of a row are less than 2^62
  while (plan.bits > 24 && (a.n >> (61 - plan.bits)) != 0) --plan.bits;
  plan.filters = (a.k > 0 && a.k < a.n) || a.p < 1;
  const size_t beside = plan.filters ? 2 * sizeof(sampling::Histogram) : 0, of_chunk = sizeof(uint32_t) * kLanes<T>;
  const int64_t chunks = ceil_div<int64_t>(a.n, kLanes<T>) + 1, processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const size_t of_processor = static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  const size_t most = static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) - kStaticShared;
  const auto bytes = [&](int blocks) { return beside + static_cast<size_t>(ceil_div<int64_t>(chunks, blocks)) * of_chunk; };
  plan.blocks = 1;
  while (clusters && plan.blocks < kMostBlocks && chunks >= 2 * kLeastShare * plan.blocks &&
         (a.rows * plan.blocks < processors || bytes(plan.blocks) > of_processor / kSampleBlocks - kReserved - kStaticShared))
    plan.blocks *= 2;
  // Whole lines of 128 bytes.
  plan.share = static_cast<int>(ceil_div<int64_t>(chunks, 8 * plan.blocks) * 8);
  plan.held = static_cast<int>(std::min(static_cast<size_t>(plan.share), (most - beside) / of_chunk));
  plan.shared = beside + static_cast<size_t>(plan.held) * of_chunk;
  return plan;
}

}  // namespace

size_t sample_workspace(const SampleArgs&) { return 0; }

void sample(const SampleArgs& a, Stream stream_in) {
  if (a.rows == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_in);
  with_dtype(a.dtype, [&](auto t) {
    using T = decltype(t);
    const SamplePlan plan = plan_sample<T>(a, use_hopper(true));
    if (plan.blocks > 1) return launch_sample_clusters(a, plan, stream);
    allow_shared(sample_rows<T>, plan.shared, "sample");
    sample_rows<T><<<static_cast<unsigned>(a.rows), kSampleThreads, plan.shared, stream>>>(a, plan);
  });
  check_launch("sample");
}

}  // namespace qkv::cuda

// sample (sample.cuh) by one block a row; and into how many blocks rows are shared out.
#include <cmath>

#include "cuda/sample.cuh"

namespace qkv::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kSampleThreads, kSampleBlocks)
    sample_rows(const __grid_constant__ SampleArgs a, const __grid_constant__ SamplePlan plan) {
  begin_dependent();
  sampling::sample_row<T>(a, plan, sampling::OneBlock());
}

constexpr int kMostBlocks = 8;     // of a cluster, on any device that has them
constexpr int kLeastShare = 1024;  // chunks

// More blocks a row where there are fewer rows than multiprocessors, or where two shares do not fit one: so that one block reads
// while the other computes.
template <class T>
SamplePlan plan_sample(const SampleArgs& a, bool clusters) {
  SamplePlan plan{};
  plan.bits = sampling::weight_bits(a.n);
  plan.lists = (a.k > 0 && a.k < a.n) || a.p < 1 || a.min_p > 0;
  // Filters go by scores. Without one the weights take the temperature in, unless differences might be too large or too small.
  const bool divides = plan.lists || a.temperature < 1e-6f || a.temperature > 1e6f;
  plan.temperature = divides ? a.temperature : 1;
  plan.scale = static_cast<float>(1.4426950408889634 / a.temperature);
  plan.of_score = divides ? sampling::kLog2E : plan.scale;
  const double least = std::ceil(std::ldexp(static_cast<double>(static_cast<float>(a.min_p)), plan.bits));
  plan.least_weight = static_cast<uint64_t>(least);
  // What weighs so much has an exponential of half a unit less, within 2^-22, and an exponent that is within 2^-22 of itself.
  plan.reach = static_cast<float>((0x1p-22 - std::log(std::ldexp(std::max(least, 1.0) - 0.5, -plan.bits))) * (1 + 0x1p-20));
  plan.beside = plan.lists ? 2 * sizeof(sampling::Histogram) + kSampleListed * (sizeof(uint64_t) + sizeof(int)) : 0;
  constexpr size_t of_chunk = 16;
  const int64_t chunks = ceil_div<int64_t>(a.n, kLanes<T>) + 1, processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const size_t of_processor = static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor));
  const size_t taken = static_cast<size_t>(device_attribute(cudaDevAttrReservedSharedMemoryPerBlock)) + kStaticShared;
  const size_t most = static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) - kStaticShared;
  const auto bytes = [&](int blocks) { return plan.beside + static_cast<size_t>(ceil_div<int64_t>(chunks, blocks)) * of_chunk; };
  plan.blocks = 1;
  while (clusters && plan.blocks < kMostBlocks && chunks >= 2 * kLeastShare * plan.blocks &&
         (a.rows * plan.blocks < processors || bytes(plan.blocks) > of_processor / kSampleBlocks - taken))
    plan.blocks *= 2;
  // Whole lines of 128 bytes.
  plan.share = static_cast<int>(ceil_div<int64_t>(chunks, 8 * plan.blocks) * 8);
  plan.stretch = ceil_div(plan.share, sampling::kWarps);
  plan.held = static_cast<int>(std::min(static_cast<size_t>(plan.share), (most - plan.beside) / of_chunk));
  plan.shared = plan.beside + static_cast<size_t>(plan.held) * of_chunk;
  return plan;
}

}  // namespace

void sample(const SampleArgs& a, Stream stream_in) {
  if (a.rows == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_in);
  with_dtype(a.dtype, [&](auto t) {
    using T = decltype(t);
    const SamplePlan plan = plan_sample<T>(a, use_hopper(true));
    if (plan.blocks > 1) return launch_sample_clusters(a, plan, stream);
    allow_shared(sample_rows<T>, plan.shared, "sample");
    launch_dependent("sample", sample_rows<T>, static_cast<unsigned>(a.rows), kSampleThreads, plan.shared, stream, a, plan);
  });
}

}  // namespace qkv::cuda

// sample (sample.cuh) by a cluster of blocks a row, which see each other's shared memory.
#include "cuda/intrinsics_sm90.cuh"
#include "cuda/sample.cuh"

namespace qkv::cuda {
namespace {

struct Cluster {
  int blocks;  // a power of two

  // opaque: each time anew, as a register is dearer.
  QKV_DEVICE int64_t row() const { return blockIdx.x >> (__ffs(opaque(blocks)) - 1); }
  QKV_DEVICE int rank() const { return cluster_rank(); }
  QKV_DEVICE int size() const { return blocks; }
  QKV_DEVICE void sync() const { cluster_sync(); }
  QKV_DEVICE uint32_t read(const uint32_t& x, int rank) const { return cluster_load(cluster_address(shared_address(&x), rank)); }
  QKV_DEVICE sampling::Part exchange(const sampling::Part& mine, sampling::Part& slot) const {
    if (threadIdx.x == 0) slot = mine;
    cluster_sync();
    sampling::Part other{0, 0};
    if (const int rank = lane_id(); rank < blocks) {
      const auto* const words = reinterpret_cast<const uint32_t*>(&slot.weight);
      other = {static_cast<uint64_t>(read(words[1], rank)) << 32 | read(words[0], rank), read(slot.equal, rank)};
    }
    return other;
  }
  QKV_DEVICE void leave() const { cluster_sync(); }
};

template <class T>
__global__ void __launch_bounds__(kSampleThreads, kSampleBlocks)
    sample_clusters(const __grid_constant__ SampleArgs a, const __grid_constant__ SamplePlan plan) {
  begin_dependent();
  sampling::sample_row<T>(a, plan, Cluster{plan.blocks});
}

}  // namespace

void launch_sample_clusters(const SampleArgs& a, const SamplePlan& plan, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(plan.blocks);
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = blocks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(a.rows) * blocks);
  config.blockDim = dim3(kSampleThreads);
  config.dynamicSmemBytes = plan.shared;
  config.stream = stream;
  config.attrs = attributes;
  with_dtype(a.dtype, [&](auto t) {
    const auto kernel = sample_clusters<decltype(t)>;
    allow_shared(kernel, plan.shared, "sample");
    config.numAttrs = 1 + make_dependent(kernel, attributes[1]);
    check(cudaLaunchKernelEx(&config, kernel, a, plan), "sample");
  });
}

}  // namespace qkv::cuda

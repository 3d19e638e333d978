// The kernels of attention_simt.cuh over a paged cache.
#include "cuda/attention_simt.cuh"

namespace qkv::cuda {

void launch_simt_paged(const Problem& p, int64_t blocks, cudaStream_t stream) { launch_simt_kernel<true>(p, blocks, stream); }
void launch_weights_paged(const Problem& p, int64_t blocks, cudaStream_t stream) {
  launch_weights_kernel<true>(p, blocks, stream);
}

}  // namespace qkv::cuda

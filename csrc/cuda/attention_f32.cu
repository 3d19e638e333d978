// The kernels of attention_simt.cuh over dense and packed keys.
#include "cuda/attention_simt.cuh"

namespace qkv::cuda {

void launch_simt(const Problem& p, int64_t blocks, cudaStream_t stream) { launch_simt_kernel<false>(p, blocks, stream); }
void launch_weights(const Problem& p, int64_t blocks, cudaStream_t stream) { launch_weights_kernel<false>(p, blocks, stream); }

}  // namespace qkv::cuda

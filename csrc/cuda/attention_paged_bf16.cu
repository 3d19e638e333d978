// The kernels of attention_mma.cuh for bfloat16 queries over a paged cache.
#include "cuda/attention_mma.cuh"

namespace qkv::cuda {

template void launch_mma_paged<__nv_bfloat16>(const Problem&, int64_t, cudaStream_t);

}  // namespace qkv::cuda

// The kernels of attention_mma.cuh for float16 queries over a paged cache.
#include "cuda/attention_mma.cuh"

namespace qkv::cuda {

template void launch_mma_paged<__half>(const Problem&, int64_t, cudaStream_t);

}  // namespace qkv::cuda

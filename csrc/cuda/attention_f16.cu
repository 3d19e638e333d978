// The kernels of attention_mma.cuh for float16.
#include "cuda/attention_mma.cuh"

namespace qkv::cuda {

template void launch_mma<__half>(const Problem&, bool, int64_t, cudaStream_t);

}  // namespace qkv::cuda

// The kernels of attention_mma.cuh for bfloat16.
#include "cuda/attention_mma.cuh"

namespace qkv::cuda {

template void launch_mma<__nv_bfloat16>(const Problem&, bool, int64_t, cudaStream_t);

}  // namespace qkv::cuda

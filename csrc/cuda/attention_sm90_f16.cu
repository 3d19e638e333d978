// The kernels of attention_sm90.cuh for float16.
#include "cuda/attention_sm90.cuh"

namespace qkv::cuda {

template void launch_hopper<__half>(const Problem&, const HopperOrder&, cudaStream_t);

}  // namespace qkv::cuda

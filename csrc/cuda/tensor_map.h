// CUtensorMaps, which tell TMA how a tensor lies in global memory and what box of it moves at a time. Kernels take them as
// parameters, `const __grid_constant__ CUtensorMap`.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include "core/dtype.h"
#include "cuda/error.h"
#include "cuda/launch.cuh"

namespace qkv::cuda {

// Dimension 0 is that whose elements are neighbours. data and the strides in bytes are multiples of 16; a row of the box, size
// box[0], is at most `swizzle` bytes (128, 64, 32; 0: as it is) and a multiple of 16. Elements outside the tensor are loaded as
// 0.
template <int kDimensions>
CUtensorMap tensor_map(DType dtype, const void* data, const int64_t (&size)[kDimensions], const int64_t (&stride)[kDimensions],
                       const int (&box)[kDimensions], int swizzle) {
  // Through the runtime, because a program that is linked with the driver's library does not start where there is none.
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) throw Error(cudaErrorNotSupported, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(f);
  }();
  const auto type = dtype == DType::f32   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                    : dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                          : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const auto mode = swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                    : swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                    : swizzle == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                    : CU_TENSOR_MAP_SWIZZLE_NONE;
  cuuint64_t sizes[kDimensions], bytes[kDimensions];
  cuuint32_t boxes[kDimensions], steps[kDimensions];
  for (int i = 0; i < kDimensions; ++i) {
    sizes[i] = static_cast<cuuint64_t>(size[i]);
    bytes[i] = static_cast<cuuint64_t>(stride[i] * size_of(dtype));
    boxes[i] = static_cast<cuuint32_t>(box[i]);
    steps[i] = 1;
  }
  CUtensorMap map;
  const CUresult result =
      encode(&map, type, kDimensions, const_cast<void*>(data), sizes, bytes + 1, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             mode, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw Error(cudaErrorInvalidValue, "cuTensorMapEncodeTiled refused a tensor of " + std::to_string(kDimensions) +
                                           " dimensions (error " + std::to_string(result) + ")");
  return map;
}

}  // namespace qkv::cuda

// Integers that the host does not know.
#pragma once
#include "cuda/intrinsics.cuh"
#include "cuda/kernels.h"

namespace qkv::cuda {

QKV_DEVICE int64_t read_int(const Ints& x, int64_t i) {
  return x.wide ? static_cast<const int64_t*>(x.data)[i] : static_cast<const int32_t*>(x.data)[i];
}

}  // namespace qkv::cuda

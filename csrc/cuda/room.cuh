// How many blocks a multiprocessor holds at a time, for grids of as many as run at once.
#pragma once
#include <algorithm>

#include "cuda/launch.cuh"

namespace qkv::cuda {

// Of `bytes` of shared memory each, at most `most`: for so many __launch_bounds__ have left registers.
inline int blocks_that_fit(int bytes, int most) {
  const int each = bytes + device_attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  return std::clamp(device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) / each, 1, most);
}

}  // namespace qkv::cuda

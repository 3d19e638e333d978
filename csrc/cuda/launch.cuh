// What every launcher needs: errors as exceptions, shared memory beyond 48 KB, dtypes as template arguments.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>

#include "core/dtype.h"
#include "cuda/error.h"
#include "cuda/kernels.h"
#include "cuda/runtime.h"

namespace qkv::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(error, what);
}

// After <<<>>>: what the launch itself said.
inline void check_launch(const char* op) { check(cudaGetLastError(), op); }

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

// Whether the device runs what is compiled for sm_90a: wgmma, TMA. (No newer one does.)
inline bool is_hopper() {
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 && device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

// Whether kernels for Hopper run where the device has them and they are `worth` it: unless tests or comparisons have said which.
inline bool use_hopper(bool worth) {
  return is_hopper() && (chosen_path() == Path::hopper || (chosen_path() == Path::fastest && worth));
}

constexpr size_t kStaticShared = 2048;  // more than any kernel has of it beside dynamic shared memory

// Allows `dynamic` bytes of dynamic shared memory; if those and the static ones are more than 48 KB, the kernel must be told. It
// is told all that there is: another thread may be about to launch the same kernel with more. Grids count on as many blocks as
// shared memory has room for; left alone, the driver may give some of it to the L1 cache.
template <class Kernel>
void allow_shared(Kernel* kernel, size_t dynamic, const char* op) {
  constexpr size_t kWhereverItLies = 16 * 1024;  // a multiprocessor has room for the usual number of such blocks
  if (dynamic + kStaticShared <= kWhereverItLies) return;
  cudaFuncAttributes now;
  check(cudaFuncGetAttributes(&now, kernel), op);
  const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - static_cast<int>(now.sharedSizeBytes);
  if (now.maxDynamicSharedSizeBytes == most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), op);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), op);
}

// f(T{}) with T float, __half or __nv_bfloat16.
template <class F>
void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      f(float{});
      break;
    case DType::f16:
      f(__half{});
      break;
    case DType::bf16:
      f(__nv_bfloat16{});
      break;
  }
}

template <class T>
constexpr int64_t ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace qkv::cuda

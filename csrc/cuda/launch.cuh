// What every launcher needs: errors as exceptions, shared memory beyond 48 KB, dtypes as template arguments.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>

#include "core/dtype.h"
#include "cuda/error.h"
#include "cuda/kernels.h"

namespace qkv::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(error, what);
}

// After <<<>>>: what the launch itself said.
inline void check_launch(const char* op) { check(cudaGetLastError(), op); }

// Allows `bytes` of dynamic shared memory; from 48 KB on the kernel must be told.
template <class Kernel>
void allow_shared(Kernel* kernel, size_t bytes, const char* op) {
  if (bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), op);
}

// f(T{}) with T float, __half or __nv_bfloat16.
template <class F>
void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: f(float{}); break;
    case DType::f16: f(__half{}); break;
    case DType::bf16: f(__nv_bfloat16{}); break;
  }
}

template <class T>
constexpr int64_t ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace qkv::cuda

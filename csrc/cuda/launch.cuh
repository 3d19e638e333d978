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

// ---- programmatic dependent launch
//
// On Hopper a kernel's blocks begin where there is room beside those of the kernel before it in the stream, in a captured one
// too, and wait there for its end, instead of being launched after it.
//
// The rule. Every thread of such a kernel calls grid_dependency_wait() before it touches global memory in any way, and before it
// returns. Until then it computes, and calls prefetch_l2 at the most, which reads no value, so that it is right whatever others
// still write. Nothing is loaded by ld.global.nc. The emulator checks this of every thread, tests/test_cuda_static.py the code.
//
// Why it is enough. The wait returns when the kernel before has ended and its writes are seen. Of kernels A, B, C of a stream, B
// ends after its threads have waited, so after A has ended; hence C, which waits for B's end, waits for A's, though C's blocks
// may have begun while A still ran. So all that came before has written what C reads, and has read what C writes over, be it that
// B has to do with neither; and so on along the stream. What is launched plainly, copies, and what other streams wait for begin
// after the end of what is before them, and so are links of the chain without a wait.
//
// When the next may begin: once all blocks have called grid_dependency_launch() or ended. Then no block is left that one of the
// next kernel could keep out. So kernels call it first of all, and what follows two or three behind a long one is there when that
// ends.
//
// Others' kernels in the stream, torch's or a user's, are links if they are launched plainly, or wait too. One that is launched
// so and reads before its wait what a kernel from here has written would read it too early: who writes such a kernel has to know
// what runs before it.

// Makes `attribute` the one that says so, and returns 1; 0 where there is no such thing. The driver must know it in captures,
// which it does from CUDA 12.3 on, and the kernel must be the one for sm_90a (CUDA_FORCE_PTX_JIT takes another, of all), as no
// other waits. The first of a type answers for all of it.
template <class Kernel>
unsigned make_dependent(Kernel* kernel, cudaLaunchAttribute& attribute) {
  if (!use_hopper(true)) return 0;
  static const bool possible = [&] {
    int driver = 0;
    cudaFuncAttributes code;
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    check(cudaFuncGetAttributes(&code, kernel), "cudaFuncGetAttributes");
    return driver >= 12030 && code.ptxVersion >= 90;
  }();
  if (!possible) return 0;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return 1;
}

// kernel<<<grid, block, shared, stream>>>(arguments...) of a kernel that keeps the rule.
template <class... Parameters, class... Arguments>
void launch_dependent(const char* op, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Stream stream,
                      Arguments&&... arguments) {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = make_dependent(kernel, attribute);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), op);
}

}  // namespace qkv::cuda

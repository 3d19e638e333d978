// One tiny kernel an intrinsic, called from Python: words in, words out. Built as a library for a GPU or for the emulator.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

namespace conformance {

// Memory on the device that begins and ends as the host's.
class Words {
 public:
  Words(void* host, int64_t bytes) : host_(host), bytes_(bytes) {
    if (bytes == 0) return;
    error_ = cudaMalloc(&data, bytes);
    if (error_ == cudaSuccess) error_ = cudaMemcpy(data, host, bytes, cudaMemcpyHostToDevice);
  }
  Words(const void* host, int64_t bytes) : Words(const_cast<void*>(host), bytes) {}
  ~Words() { cudaFree(data); }
  cudaError_t error() const { return error_; }
  cudaError_t fetch() const { return cudaMemcpy(host_, data, bytes_, cudaMemcpyDeviceToHost); }
  void* data = nullptr;

 private:
  void* host_;
  int64_t bytes_;
  cudaError_t error_ = cudaSuccess;
};

// Launches through launch(in, out) and copies what came out.
template <class Launch>
int run(const void* in, int64_t in_bytes, void* out, int64_t out_bytes, Launch&& launch) {
  const Words from(in, in_bytes), to(out, out_bytes);
  if (from.error() != cudaSuccess) return from.error();
  if (to.error() != cudaSuccess) return to.error();
  launch(static_cast<const uint32_t*>(from.data), static_cast<uint32_t*>(to.data));
  cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  return error == cudaSuccess ? to.fetch() : error;
}

}  // namespace conformance

// CASE(name, threads, bytes of dynamic shared memory) { body of the kernel, with in and out, and an extern array `words` }
#define CASE(name, threads, shared)                                                                            \
  __global__ void name(const uint32_t* in, uint32_t* out);                                                     \
  extern "C" int run_##name(const void* in, int64_t in_bytes, void* out, int64_t out_bytes) {                  \
    return conformance::run(in, in_bytes, out, out_bytes, [](const uint32_t* from, uint32_t* to) {             \
      if (shared > 48 * 1024) cudaFuncSetAttribute(name, cudaFuncAttributeMaxDynamicSharedMemorySize, shared); \
      name<<<1, threads, shared>>>(from, to);                                                                  \
    });                                                                                                        \
  }                                                                                                            \
  __global__ void __launch_bounds__(threads, 1) name(const uint32_t* in, uint32_t* out)

extern "C" inline const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// The CUDA runtime's device, versions and errors.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>

#include "cuda/emulation/cudart.h"
#include "cuda/emulation/hopper.h"
#include "cuda/emulation/memory.h"

namespace qkv::emulation {

namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local std::string fault_text = "unspecified launch failure";

}  // namespace

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

void set_fault_text(const std::string& text) { fault_text = text; }

Device device() {
  const Config c = configuration();
  const int cc = c.compute_capability;
  const size_t kilobytes = cc == 80 || cc == 87 ? 163 : cc == 86 || cc == 89 || cc >= 120 ? 99 : 227;
  return {cc / 10, cc % 10, c.multiprocessors, kilobytes * 1024, std::min(c.memory, kDeviceBytes)};
}

}  // namespace qkv::emulation

using namespace qkv::emulation;

extern "C" {

// ---- devices

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int id) { return report(id == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDevice(int* id) {
  *id = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceFlags(unsigned* flags) {
  *flags = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
cudaError_t cudaInitDevice(int id, unsigned, unsigned) { return cudaSetDevice(id); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int id) {
  if (id != 0) return report(cudaErrorInvalidDevice);
  const Device d = device();
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = d.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = d.minor;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = d.multiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(d.shared_per_block);
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(d.shared_per_block) + 1024;
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 * 1024;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      *value = 32;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *value = 65536;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMaxGridDimX:
      *value = 0x7FFFFFFF;
      break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      *value = 65535;
      break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      *value = 1024;
      break;
    case cudaDevAttrMaxBlockDimZ:
      *value = 64;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    case cudaDevAttrClockRate:
      *value = 1000000;
      break;
    case cudaDevAttrMemoryClockRate:
      *value = 1000000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = 5120;
      break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrConcurrentKernels:
      *value = 1;
      break;
    case cudaDevAttrClusterLaunch:
      *value = d.major >= 9;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int id) {
  if (id != 0) return report(cudaErrorInvalidDevice);
  std::memset(p, 0, sizeof *p);
  const Device d = device();
  std::strcpy(p->name, "qkv emulator");
  p->totalGlobalMem = device().memory;
  p->sharedMemPerBlock = 48 * 1024;
  p->sharedMemPerBlockOptin = d.shared_per_block;
  p->sharedMemPerMultiprocessor = d.shared_per_block + 1024;
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7FFFFFFF;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = d.major;
  p->minor = d.minor;
  p->multiProcessorCount = d.multiprocessors;
  p->l2CacheSize = 50 << 20;
  p->unifiedAddressing = p->memoryPoolsSupported = p->concurrentKernels = 1;
  p->memoryBusWidth = 5120;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = driver_function(symbol);
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

// ---- errors

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function (the emulator has no PTX of this kernel, or two .cu files have a static one of its name)";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorInvalidSymbol:
      return "invalid device symbol";
    case cudaErrorLaunchOutOfResources:
      return "too many resources requested for launch";
    case cudaErrorInvalidClusterSize:
      return "a cluster size that does not divide the grid or is too large";
    case cudaErrorLaunchFailure:
      return fault_text.c_str();
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureMerge:
      return "operation would make one of two captures wait for the other";
    case cudaErrorStreamCaptureUnjoined:
      return "the capture ended before all streams that joined it were waited for";
    case cudaErrorStreamCaptureIsolation:
      return "a capturing stream cannot wait for what is not captured";
    case cudaErrorStreamCaptureWrongThread:
      return "the capture was begun by another thread";
    case cudaErrorCapturedEvent:
      return "the event was recorded in a capture";
    case cudaErrorNotSupported:
      return "operation not supported";
    case cudaErrorStreamCaptureUnmatched:
      return "capture was not ended in the same stream as it began";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
    case cudaErrorIllegalState:
      return "the operation cannot be performed in the present state";
    case cudaErrorNotReady:
      return "device not ready";
    default:
      return "an error of the emulated CUDA runtime";
  }
}

const char* cudaGetErrorName(cudaError_t error) {
#define QKV_NAME(e) \
  case e:           \
    return #e;
  switch (error) {
    QKV_NAME(cudaSuccess)
    QKV_NAME(cudaErrorInvalidValue)
    QKV_NAME(cudaErrorMemoryAllocation)
    QKV_NAME(cudaErrorInvalidConfiguration)
    QKV_NAME(cudaErrorInvalidDevice)
    QKV_NAME(cudaErrorInvalidDeviceFunction)
    QKV_NAME(cudaErrorInvalidResourceHandle)
    QKV_NAME(cudaErrorInvalidSymbol)
    QKV_NAME(cudaErrorLaunchOutOfResources)
    QKV_NAME(cudaErrorInvalidClusterSize)
    QKV_NAME(cudaErrorLaunchFailure)
    QKV_NAME(cudaErrorNotSupported)
    QKV_NAME(cudaErrorStreamCaptureUnsupported)
    QKV_NAME(cudaErrorStreamCaptureInvalidated)
    QKV_NAME(cudaErrorStreamCaptureMerge)
    QKV_NAME(cudaErrorStreamCaptureUnmatched)
    QKV_NAME(cudaErrorStreamCaptureUnjoined)
    QKV_NAME(cudaErrorStreamCaptureIsolation)
    QKV_NAME(cudaErrorStreamCaptureImplicit)
    QKV_NAME(cudaErrorStreamCaptureWrongThread)
    QKV_NAME(cudaErrorCapturedEvent)
    QKV_NAME(cudaErrorIllegalState)
    QKV_NAME(cudaErrorNotReady)
    default:
      return "cudaErrorUnknown";
  }
#undef QKV_NAME
}

}  // extern "C"

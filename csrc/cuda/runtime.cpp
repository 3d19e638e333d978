// Memory, streams and devices of the GPU.
#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <mutex>
#include <vector>

namespace qkv::cuda {
namespace {

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }

std::string version(int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); }

std::string bytes_text(size_t bytes) {
  char text[32];
  if (bytes >= size_t{1} << 30)
    std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  else
    std::snprintf(text, sizeof text, "%.2f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

// The driver's words, and what they mean for the user.
std::string explain(cudaError_t error) {
  const std::string said = std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
  int driver = 0, runtime = 0;
  const std::string needed = CUDART_VERSION >= 13000 ? "580" : "525";  // of CUDA 13 and 12
  switch (error) {
    case cudaErrorInsufficientDriver:
      cudaDriverGetVersion(&driver);
      cudaRuntimeGetVersion(&runtime);
      if (driver == 0)
        return "no NVIDIA driver was found; CUDA " + version(runtime) + " needs driver " + needed + " or newer: " + said;
      return "the NVIDIA driver knows CUDA up to " + version(driver) + ", this build of qkv needs " + version(runtime) +
             ": install driver " + needed + " or newer: " + said;
    case cudaErrorInitializationError:
      return "CUDA does not start; in a process that was forked from one that used it, it cannot: use multiprocessing's "
             "'spawn': " +
             said;
    case cudaErrorNoKernelImageForDevice:
      return "the device is too old: compute capability 8.0 or newer is needed: " + said;
    case cudaErrorUnsupportedPtxVersion:
      return "the NVIDIA driver is too old to compile this build's kernels for the device: install a newer one: " + said;
    case cudaErrorNoDevice:
      return "there is no CUDA device, or CUDA_VISIBLE_DEVICES hides it: " + said;
    case cudaErrorDevicesUnavailable:
      return "the CUDA device is busy or in exclusive use: " + said;
    case cudaErrorLaunchFailure:
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorLaunchTimeout:
    case cudaErrorContained:
      return "the device was lost, and nothing on it can be used by this process any more: " + said;
    default:
      return said;
  }
}

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(error, what);
}

// The pool of the current device, made when it is first asked for.
cudaMemPool_t pool() {
  // Never destroyed: daemon threads still run when the process exits.
  static std::mutex& mutex = *new std::mutex;
  static std::vector<cudaMemPool_t>& pools = *new std::vector<cudaMemPool_t>;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  if (pools.size() <= static_cast<size_t>(device)) pools.resize(static_cast<size_t>(device) + 1, nullptr);
  cudaMemPool_t& made = pools[static_cast<size_t>(device)];
  if (!made) {
    cudaMemPoolProps props{};
    props.allocType = cudaMemAllocationTypePinned;
    props.location.type = cudaMemLocationTypeDevice;
    props.location.id = device;
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "qkv.cuda");
    cudaMemPool_t fresh = nullptr;
    check(cudaMemPoolCreate(&fresh, &props), "qkv.cuda");
    uint64_t keep = total / 4;
    check(cudaMemPoolSetAttribute(fresh, cudaMemPoolAttrReleaseThreshold, &keep), "qkv.cuda");
    made = fresh;
  }
  return made;
}

}  // namespace

void fail(int code, const char* what) {
  cudaGetLastError();  // told once, unless it is sticky
  throw Error(code, std::string(what) + ": " + explain(static_cast<cudaError_t>(code)));
}

int device_count() {
  int n = 0;
  check(cudaGetDeviceCount(&n), "qkv.cuda");
  return n;
}

std::string why_not() {
  try {
    return device_count() > 0 ? "" : "qkv.cuda: there is no CUDA device";
  } catch (const Error& error) {
    return error.what();
  }
}

std::string device_name(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "qkv.cuda");
  return properties.name;
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "qkv.cuda");
  return device;
}

void set_device(int device) { check(cudaSetDevice(device), "qkv.cuda"); }

OnDevice::OnDevice(int device) {
  const int now = current_device();
  if (now == device) return;
  check(cudaSetDevice(device), "qkv.cuda");
  before_ = now;
}

OnDevice::~OnDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

void* allocate(size_t bytes, Stream stream) {
  void* data = nullptr;
  const cudaError_t error = cudaMallocFromPoolAsync(&data, bytes, pool(), native(stream));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    const MemoryInfo info = memory_info();
    throw Error(error, "out of GPU memory: asked for " + bytes_text(bytes) + "; " + bytes_text(info.free) + " of " +
                           bytes_text(info.total) + " are free, " + bytes_text(info.used) + " are in qkv's arrays, " +
                           bytes_text(info.cached) + " wait for reuse");
  }
  check(error, "qkv.cuda");
  return data;
}

void join(int device, Stream stream, const Stream* others, size_t count) noexcept {
  try {
    const OnDevice on(device);
    for (size_t i = 0; i < count; ++i) wait_for(stream, others[i]);
  } catch (const Error&) {  // the device was lost
    cudaGetLastError();
  }
}

void release(void* data, int device, Stream stream, const Stream* others, size_t count) noexcept {
  try {
    const OnDevice on(device);
    for (size_t i = 0; i < count; ++i) wait_for(stream, others[i]);
    check(cudaFreeAsync(data, native(stream)), "qkv.cuda");
  } catch (const Error&) {  // the runtime is gone at exit, or the device was lost: their memory went with them
    cudaGetLastError();
  }
}

MemoryInfo memory_info() {
  MemoryInfo info{};
  uint64_t reserved = 0, used = 0;
  check(cudaMemPoolGetAttribute(pool(), cudaMemPoolAttrReservedMemCurrent, &reserved), "qkv.cuda");
  check(cudaMemPoolGetAttribute(pool(), cudaMemPoolAttrUsedMemCurrent, &used), "qkv.cuda");
  info.used = used;
  info.cached = reserved - used;
  check(cudaMemGetInfo(&info.free, &info.total), "qkv.cuda");
  return info;
}

void set_cache_limit(size_t bytes) {
  uint64_t keep = bytes;
  check(cudaMemPoolSetAttribute(pool(), cudaMemPoolAttrReleaseThreshold, &keep), "qkv.cuda");
}

void trim() { check(cudaMemPoolTrimTo(pool(), 0), "qkv.cuda"); }

void upload(void* to, const void* from, size_t bytes, Stream stream) {
  if (!bytes) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(stream)), "qkv.cuda");
  // Ordinary memory has been copied to where the driver takes it from; page-locked memory is read by the device itself.
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, from), "qkv.cuda");
  if (attributes.type == cudaMemoryTypeHost) synchronize(stream);
}

void download(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(stream)), "qkv.cuda");
  synchronize(stream);
}

void copy_bytes(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(stream)), "qkv.cuda");
}

void fill_bytes(void* to, int value, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemsetAsync(to, value, bytes, native(stream)), "qkv.cuda");
}

Stream create_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "qkv.cuda");
  return stream;
}

void synchronize(Stream stream) { check(cudaStreamSynchronize(native(stream)), "qkv.cuda"); }

void wait_for(Stream waiter, Stream other) {
  if (waiter == other) return;
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "qkv.cuda");
  const cudaError_t recorded = cudaEventRecord(event, native(other));
  const cudaError_t waits = recorded == cudaSuccess ? cudaStreamWaitEvent(native(waiter), event, 0) : recorded;
  cudaEventDestroy(event);  // destroyed once the wait is over
  check(waits, "qkv.cuda");
}

}  // namespace qkv::cuda

// Memory, streams and devices of the GPU.
#include "cuda/runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

// Only the emulator has it.
extern "C" __attribute__((weak)) void qkv_emulator_forget(void* data, size_t bytes, cudaStream_t stream);

namespace qkv::cuda {
namespace {

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }

std::string version(int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); }

std::string bytes_text(size_t bytes) {
  char text[32];
  if (bytes >= size_t{1} << 30)
    std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  else if (bytes > 0 && bytes < size_t{1} << 20)
    std::snprintf(text, sizeof text, "%.2f KiB", static_cast<double>(bytes) / (1 << 10));
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

// Page-locked memory that uploads to a device pass through, made piece by piece as it is needed. A copy from ordinary memory
// would first wait for all that is in its stream, and would read a mapped file while the device does nothing.
constexpr size_t kStagedPiece = size_t{4} << 20;
constexpr int kStagedPieces = 4;
constexpr size_t kUnstaged = size_t{64} << 10;  // up to so many bytes the driver itself copies aside and returns

struct Staging {
  struct Piece {
    void* data = nullptr;
    cudaEvent_t fetched = nullptr;
  };
  std::mutex mutex;
  Piece pieces[kStagedPieces];
  int next = 0;

  // A piece that the device has fetched, or nullptr where no more host memory can be locked.
  Piece* take() {
    Piece& p = pieces[next];
    next = (next + 1) % kStagedPieces;
    if (p.data) {
      check(cudaEventSynchronize(p.fetched), "qkv.cuda");
      return &p;
    }
    if (!p.fetched) check(cudaEventCreateWithFlags(&p.fetched, cudaEventDisableTiming), "qkv.cuda");
    if (cudaHostAlloc(&p.data, kStagedPiece, cudaHostAllocDefault) != cudaSuccess) {
      cudaGetLastError();
      p.data = nullptr;
      return nullptr;
    }
    return &p;
  }

  void trim() {
    for (Piece& p : pieces) {
      if (!p.data) continue;
      check(cudaEventSynchronize(p.fetched), "qkv.cuda");
      check(cudaFreeHost(std::exchange(p.data, nullptr)), "qkv.cuda");
    }
  }
};

// That of the current device.
template <class T>
T& of_current_device() {
  static std::mutex& mutex = *new std::mutex;  // as in pool()
  static std::vector<std::unique_ptr<T>>& all = *new std::vector<std::unique_ptr<T>>;
  const auto device = static_cast<size_t>(current_device());
  const std::lock_guard<std::mutex> lock(mutex);
  if (all.size() <= device) all.resize(device + 1);
  if (!all[device]) all[device] = std::make_unique<T>();
  return *all[device];
}

// How many bytes went through staging: all, unless host memory cannot be locked. One thread at a time.
size_t upload_staged(void* to, const void* from, size_t bytes, Stream stream) {
  auto& s = of_current_device<Staging>();
  const std::lock_guard<std::mutex> lock(s.mutex);
  for (size_t at = 0; at < bytes; at += kStagedPiece) {
    const size_t n = std::min(kStagedPiece, bytes - at);
    const Staging::Piece* const p = s.take();
    if (!p) return at;
    std::memcpy(p->data, static_cast<const char*>(from) + at, n);
    check(cudaMemcpyAsync(static_cast<char*>(to) + at, p->data, n, cudaMemcpyHostToDevice, native(stream)), "qkv.cuda");
    check(cudaEventRecord(p->fetched, native(stream)), "qkv.cuda");
  }
  return bytes;
}

// The streams that memory goes back in, but for those of other libraries and those that captures use.
class OwnStreams {
 public:
  void add(Stream stream) {
    const int device = current_device();
    const std::lock_guard<std::mutex> lock(mutex_);
    streams_.push_back({device, stream});
  }
  // Of the current device. The device as a whole is not waited for: that is an error while anything captures.
  void synchronize() {
    const int device = current_device();
    std::vector<Stream> of_device = {nullptr};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& [number, stream] : streams_)
        if (number == device) of_device.push_back(stream);
    }
    for (const Stream stream : of_device) {
      cudaStreamCaptureStatus status{};  // an error for the default stream while one that it would wait for captures
      if (cudaStreamIsCapturing(native(stream), &status) != cudaSuccess)
        cudaGetLastError();
      else if (status == cudaStreamCaptureStatusNone)
        check(cudaStreamSynchronize(native(stream)), "qkv.cuda");
    }
  }

 private:
  std::mutex mutex_;
  std::vector<std::pair<int, Stream>> streams_;
};

OwnStreams& own_streams() {
  static OwnStreams& it = *new OwnStreams;  // as in pool()
  return it;
}

thread_local bool capturing = false;

}  // namespace

// Page-locked memory that a Fetch brings its bytes to: a copy to ordinary memory would wait for all that is in its stream.
struct Landing {
  void* data = nullptr;
  size_t bytes = 0;
  cudaEvent_t fetched = nullptr;
};

// A device's. They are used again, and never given back: that, and making one, may wait for the device. Where a Fetch ends the
// device may still write to its own, so the next one takes it only if the event says that this is over.
struct Landings {
  std::mutex mutex;
  std::vector<std::unique_ptr<Landing>> spare;

  std::unique_ptr<Landing> take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      for (std::unique_ptr<Landing>& one : spare) {
        if (one->bytes < bytes) continue;
        if (cudaEventQuery(one->fetched) != cudaSuccess) {
          cudaGetLastError();  // not ready, or the device was lost
          continue;
        }
        std::swap(one, spare.back());
        std::unique_ptr<Landing> taken = std::move(spare.back());
        spare.pop_back();
        return taken;
      }
    }
    constexpr size_t kPage = 4096;  // no less can be locked
    auto made = std::make_unique<Landing>();
    made->bytes = std::max((bytes + kPage - 1) / kPage, size_t{1}) * kPage;
    check(cudaHostAlloc(&made->data, made->bytes, cudaHostAllocDefault), "qkv.cuda");
    const cudaError_t error = cudaEventCreateWithFlags(&made->fetched, cudaEventDisableTiming);
    if (error != cudaSuccess) cudaFreeHost(made->data);
    check(error, "qkv.cuda");
    return made;
  }

  void give(std::unique_ptr<Landing> one) {
    const std::lock_guard<std::mutex> lock(mutex);
    spare.push_back(std::move(one));
  }
};

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

int compute_capability(int device) {
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "qkv.cuda");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "qkv.cuda");
  return 10 * major + minor;
}

std::string driver_version() {
  int v = 0;
  check(cudaDriverGetVersion(&v), "qkv.cuda");
  return version(v);
}

std::string runtime_version() {
  int v = 0;
  check(cudaRuntimeGetVersion(&v), "qkv.cuda");
  return version(v);
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "qkv.cuda");
  return device;
}

void set_device(int device) { check(cudaSetDevice(device), "qkv.cuda"); }

static std::atomic<Path> path{Path::fastest};
Path chosen_path() { return path; }
void choose_path(Path chosen) { path = chosen; }

OnDevice::OnDevice(int device) {
  const int now = current_device();
  if (now == device) return;
  check(cudaSetDevice(device), "qkv.cuda");
  before_ = now;
}

OnDevice::~OnDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

void* allocate(size_t bytes, Stream stream, const char* op) {
  void* data = nullptr;
  cudaError_t error = cudaMallocFromPoolAsync(&data, bytes, pool(), native(stream));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    // What was released goes back once the work before it is done, and what the pool holds in pieces that are too small once it
    // is trimmed.
    own_streams().synchronize();
    check(cudaMemPoolTrimTo(pool(), 0), op);
    error = cudaMallocFromPoolAsync(&data, bytes, pool(), native(stream));
  }
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    const MemoryInfo info = memory_info();
    throw Error(error, "out of GPU memory: " + bytes_text(bytes) + " asked for by " + op + "; " + bytes_text(info.free) + " of " +
                           bytes_text(info.total) + " are free, " + bytes_text(info.used) + " are in qkv's arrays, " +
                           bytes_text(info.cached) + " wait for reuse");
  }
  check(error, op);
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

void trim() {
  check(cudaMemPoolTrimTo(pool(), 0), "qkv.cuda");
  auto& s = of_current_device<Staging>();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.trim();
}

void set_capturing(bool on) { capturing = on; }

void refuse_while_capturing(const char* what) {
  if (capturing)
    throw Error(cudaErrorStreamCaptureUnsupported,
                std::string("a recorded step takes arrays on the device only, and waits for nothing: ") + what);
}

void upload(void* to, const void* from, size_t bytes, Stream stream) {
  refuse_while_capturing("host memory is copied once, not in each replay");
  if (!bytes) return;
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, from), "qkv.cuda");
  const bool ordinary = attributes.type == cudaMemoryTypeUnregistered;
  if (ordinary && bytes > kUnstaged) {
    const size_t done = upload_staged(to, from, bytes, stream);
    to = static_cast<char*>(to) + done;
    from = static_cast<const char*>(from) + done;
    bytes -= done;
  }
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, native(stream)), "qkv.cuda");
  // Ordinary memory has been copied to where the device takes it from; page-locked memory it reads itself.
  if (!ordinary) synchronize(stream);
}

void download(void* to, const void* from, size_t bytes, Stream stream) {
  refuse_while_capturing("what is recorded is not done yet");
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, native(stream)), "qkv.cuda");
  synchronize(stream);
}

Fetch::Fetch(size_t bytes) : home_(of_current_device<Landings>()), to_(home_.take(bytes).release()), bytes_(bytes) {}

Fetch::~Fetch() { home_.give(std::unique_ptr<Landing>(to_)); }

void Fetch::start(const void* from, Stream stream) {
  refuse_while_capturing("what is recorded is not done yet");
  if (bytes_) check(cudaMemcpyAsync(to_->data, from, bytes_, cudaMemcpyDeviceToHost, native(stream)), "qkv.cuda");
  const cudaError_t recorded = cudaEventRecord(to_->fetched, native(stream));
  if (recorded != cudaSuccess) cudaStreamSynchronize(native(stream));  // nothing else would tell when the copy is over
  check(recorded, "qkv.cuda");
}

const void* Fetch::wait() const {
  check(cudaEventSynchronize(to_->fetched), "qkv.cuda");
  return to_->data;
}

void forget(void* data, size_t bytes, Stream stream) {
  if (qkv_emulator_forget) qkv_emulator_forget(data, bytes, native(stream));
}

void copy_bytes(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(stream)), "qkv.cuda");
}

void fill_bytes(void* to, int value, size_t bytes, Stream stream) {
  if (bytes) check(cudaMemsetAsync(to, value, bytes, native(stream)), "qkv.cuda");
}

Stream create_stream(bool captures) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "qkv.cuda");
  if (!captures) own_streams().add(stream);
  return stream;
}

void synchronize(Stream stream) {
  refuse_while_capturing("what is recorded is not done yet");
  check(cudaStreamSynchronize(native(stream)), "qkv.cuda");
}

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

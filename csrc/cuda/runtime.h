// Memory, streams and devices of the GPU, as bind/ uses them: every failure is a cuda::Error that says in words what is missing.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>

#include "cuda/error.h"
#include "cuda/kernels.h"

namespace qkv::cuda {

// Devices that can be used. Error where there is no driver, too old a one, or no device.
int device_count();
// What device_count would throw, or nothing.
std::string why_not();
std::string device_name(int device);
// Ten times the major and the minor number.
int compute_capability(int device);
// As "12.8": the newest CUDA that the driver knows, and that of this build.
std::string driver_version();
std::string runtime_version();
int current_device();
// Which kernels run where the device has two that can, the portable ones and Hopper's: for tests and comparisons.
enum class Path { fastest, portable, hopper };
Path chosen_path();
void choose_path(Path);
void set_device(int device);

// Makes `device` current for the calling thread, and the one before again at the end.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = -1;
};

// Stream-ordered memory of the current device: usable in `stream` from here on, and taken back in its order. It comes from a pool
// that keeps what is released, up to set_cache_limit. Where there is too little, what waits for reuse is given back before the
// Error, which names `op`.
void* allocate(size_t bytes, Stream stream, const char* op);
// `stream` waits for what is enqueued in `others` by now.
void join(int device, Stream stream, const Stream* others, size_t count) noexcept;
// After that, too.
void release(void* data, int device, Stream stream, const Stream* others, size_t count) noexcept;

struct MemoryInfo {
  size_t used, cached;  // by qkv: in arrays, and waiting for reuse
  size_t free, total;   // of the device
};
MemoryInfo memory_info();
// Bytes that the current device's pool keeps for reuse; at first a quarter of the device's memory.
void set_cache_limit(size_t bytes);
// Gives what waits for reuse back to the device, and the host memory that uploads pass through to the system.
void trim();

// While this thread's work is captured (graph.h), host memory can neither be read nor written, and nothing waited for: uploads,
// downloads and synchronize are an Error.
void set_capturing(bool);                       // said by a Capture
void refuse_while_capturing(const char* what);  // that Error, if it is

// Host memory to the device; `from` may be changed once this returns. Ordinary memory goes through a few page-locked pieces, one
// of which is filled, by reading a file if it is mapped, while the device fetches the others.
void upload(void* to, const void* from, size_t bytes, Stream stream);
// Device memory to the host; waits until it is there.
void download(void* to, const void* from, size_t bytes, Stream stream);
// Few bytes of device memory to the host again and again, while the device goes on. It may end while they are on their way, and
// waits for nothing then.
class Fetch {
 public:
  explicit Fetch(size_t bytes);
  ~Fetch();
  Fetch(const Fetch&) = delete;
  Fetch& operator=(const Fetch&) = delete;
  // In the stream's order; what was started before must have been waited for.
  void start(const void* from, Stream stream);
  const void* wait() const;  // until they are there

 private:
  struct Landings& home_;  // of the device
  struct Landing* to_;
  size_t bytes_;
};
void copy_bytes(void* to, const void* from, size_t bytes, Stream stream);
void fill_bytes(void* to, int value, size_t bytes, Stream stream);

// What is in the memory counts for nothing from here on, in the stream's order: the emulator reports who reads it.
void forget(void* data, size_t bytes, Stream stream);

// Of the current device; never destroyed, since memory goes back in the order of its stream. `captures`: it is used for nothing
// but captures.
Stream create_stream(bool captures);
void synchronize(Stream stream);
// What is enqueued in `waiter` from here on runs after what is in `other` now; nobody waits on the host.
void wait_for(Stream waiter, Stream other);

}  // namespace qkv::cuda

// Ops that can be done again, as one call: on a GPU a CUDA graph, of what a thread's ops enqueue while it records. The twin of
// Recording (recording.h).
//
// While a thread records, its ops run in a stream that captures, and what they make lies in an arena (cuda/arena.h). Waits for
// other streams cannot be part of a graph: what was read and written is noted instead, and each replay waits for whoever uses it,
// before it is launched, as an op would.
#pragma once
#include <pybind11/pybind11.h>

#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "cuda/arena.h"
#include "cuda/graph.h"

namespace qkv {

namespace py = pybind11;

struct Storage;

class DeviceRecording {
 public:
  explicit DeviceRecording(cuda::Stream home) : arena_(std::make_shared<cuda::Arena>(home)) {}
  DeviceRecording(const DeviceRecording&) = delete;
  DeviceRecording& operator=(const DeviceRecording&) = delete;

  // That which this thread makes, or nullptr.
  static DeviceRecording* current();

  // While there is one, its thread records.
  class Open {
   public:
    Open(DeviceRecording* r, cuda::Stream stream);  // throws std::logic_error if the thread records already
    ~Open();
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;
    void end();

   private:
    DeviceRecording* recording_;
    cuda::Capture capture_;
  };

  // Error unless an op is recorded in this stream and on this device.
  void check(const char* op, cuda::Stream stream, int device) const;
  // Memory for `storage`, whose bytes are known.
  void allocate(const char* op, const std::shared_ptr<Storage>& storage);
  void reads(const std::shared_ptr<Storage>& storage);
  void writes(const std::shared_ptr<Storage>& storage);

  void replay(cuda::Stream stream);
  size_t kernels() const { return graph_.kernels(); }

 private:
  std::shared_ptr<cuda::Arena> arena_;
  cuda::Stream stream_ = nullptr;  // that captures
  cuda::Graph graph_;
  std::vector<std::shared_ptr<Storage>> read_, written_;  // of others; what is written is among what is read
  std::unordered_set<const Storage*> reading_, writing_;
  std::vector<std::weak_ptr<Storage>> made_;  // a replay writes those that still live
  std::mutex launching_;
};

void bind_device_recording(py::module_& m);

}  // namespace qkv

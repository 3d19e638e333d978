// Work of a stream that was captured instead of done: a CUDA graph, which is launched as one call.
#pragma once
#include <stddef.h>

#include <utility>

#include "cuda/runtime.h"

namespace qkv::cuda {

class Graph {
 public:
  Graph() = default;
  Graph(void* executable, size_t kernels) : executable_(executable), kernels_(kernels) {}
  Graph(Graph&& other) noexcept { *this = std::move(other); }
  Graph& operator=(Graph&& other) noexcept {
    std::swap(executable_, other.executable_);
    std::swap(kernels_, other.kernels_);
    return *this;
  }
  ~Graph();  // what was launched goes on

  size_t kernels() const { return kernels_; }
  // After all that was launched of it before, in whatever stream. One thread at a time.
  void launch(Stream stream) const;

 private:
  void* executable_ = nullptr;  // a cudaGraphExec_t
  size_t kernels_ = 0;
};

// While there is one, `stream` captures what this thread enqueues there.
class Capture {
 public:
  explicit Capture(Stream stream);
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  Graph end();

 private:
  Stream stream_;
  bool open_ = true;
};

}  // namespace qkv::cuda

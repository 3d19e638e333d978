// Shared by the files that stand in for the CUDA runtime: what a stream is, where errors go, and the one lock.
//
// Work is done when it is issued, in the order in which it is issued: one of the orders that streams allow. With
// Config::late_streams it is another one: a stream does its work when somebody waits for it, on the host or in another stream,
// and no sooner. What lacks such a wait then reads what is not there yet, or memory that was given back.
#pragma once
#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cuda/emulation/emulator.h"

// The runtime's opaque type: a call that was captured.
struct CUgraphNode_st {
  cudaGraphNodeType type;
  std::function<cudaError_t()> work;
};

namespace qkv::emulation {

using Work = std::function<cudaError_t()>;

// A captured graph: the calls, in the order in which they were made.
struct Graph {
  std::deque<CUgraphNode_st> nodes;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;  // that began the capture
  bool valid = true;       // false once something was called that cannot be captured
  bool ended = false;
};

struct Stream {
  bool non_blocking = false;
  std::shared_ptr<Graph> capturing;  // nullptr: not capturing
  bool origin = false;               // of the capture: where it must end
  uint64_t captured = 0;             // how much of the capture went here
  bool joined = true;                // the origin, or another stream, waits for all of it
  std::deque<Work> waiting;          // issued and not done
  uint64_t issued = 0, done = 0;
};

// The stream behind a handle; nullptr: no such stream.
Stream* find_stream(cudaStream_t);

// Does `work` now, or puts it into the graph that `stream` is capturing into.
cudaError_t issue(cudaStream_t stream, Work work, cudaGraphNodeType type = cudaGraphNodeTypeKernel);

// Does what was issued to `stream`, up to the n-th work ever; and to all streams.
cudaError_t catch_up(Stream* stream, uint64_t n);
cudaError_t catch_up();

// For calls that are "potentially unsafe" (cudaMalloc ...): not allowed while this thread captures, or any does in the global
// mode, unless relaxed. Invalidates the captures.
bool forbidden_by_capture();
// For calls that use the legacy stream, which would wait for a blocking stream that captures. Invalidates its capture.
bool forbidden_to_legacy_stream();

// Remembers an error for cudaGetLastError, and hands it on.
cudaError_t report(cudaError_t);
// What cudaGetErrorString(cudaErrorLaunchFailure) says from now on.
void set_fault_text(const std::string&);

// What the emulated device is.
struct Device {
  int major, minor, multiprocessors;
  size_t shared_per_block;  // opt-in
  size_t memory;
};
Device device();

}  // namespace qkv::emulation

// Work of a stream that was captured instead of done.
#include "cuda/graph.h"

#include <cuda_runtime_api.h>

#include <vector>

namespace qkv::cuda {
namespace {

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(error, what);
}

struct Captured {
  cudaGraph_t graph = nullptr;
  ~Captured() {
    if (graph) cudaGraphDestroy(graph);
  }
};

size_t count_kernels(cudaGraph_t graph) {
  size_t count = 0, kernels = 0;
  check(cudaGraphGetNodes(graph, nullptr, &count), "record");
  std::vector<cudaGraphNode_t> nodes(count);
  if (count) check(cudaGraphGetNodes(graph, nodes.data(), &count), "record");
  for (const cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type{};
    check(cudaGraphNodeGetType(node, &type), "record");
    kernels += type == cudaGraphNodeTypeKernel;
  }
  return kernels;
}

}  // namespace

Graph::~Graph() {
  if (executable_ && cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_)) != cudaSuccess) cudaGetLastError();
}

void Graph::launch(Stream stream) const {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), native(stream)), "replay");
}

// Relaxed: the stricter modes forbid this thread, or all of them, what may wait for the device, and so cudaMalloc and what loads
// a kernel that is launched for the first time. What would be wrong in a capture we refuse ourselves: runtime.cpp.
Capture::Capture(Stream stream) : stream_(stream) {
  check(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeRelaxed), "record");
  set_capturing(true);
}

Capture::~Capture() {
  if (!open_) return;
  set_capturing(false);
  Captured thrown_away;
  if (cudaStreamEndCapture(native(stream_), &thrown_away.graph) != cudaSuccess) cudaGetLastError();
}

Graph Capture::end() {
  open_ = false;
  set_capturing(false);
  Captured captured;
  check(cudaStreamEndCapture(native(stream_), &captured.graph), "record");
  const size_t kernels = count_kernels(captured.graph);
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiate(&executable, captured.graph, 0), "record");
  return Graph(executable, kernels);
}

}  // namespace qkv::cuda

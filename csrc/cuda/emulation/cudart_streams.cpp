// The CUDA runtime's streams, events and graphs.
#include <cuda_runtime_api.h>

#include <chrono>
#include <unordered_set>

#include "cuda/emulation/cudart.h"

using namespace qkv::emulation;

namespace qkv::emulation {
void trim_pools();  // cudart_memory.cpp
}

// The runtime's opaque types.
struct CUevent_st {
  std::shared_ptr<Graph> capturing;  // recorded in a stream that was capturing
  std::chrono::steady_clock::time_point time;
};
struct CUgraph_st {
  std::shared_ptr<Graph> graph;
};
struct CUgraphExec_st {
  std::shared_ptr<Graph> graph;
};

namespace {

using Lock = std::lock_guard<std::recursive_mutex>;

std::unordered_set<Stream*>& streams() {
  static auto* it = new std::unordered_set<Stream*>;
  return *it;
}
Stream& legacy_stream() {
  static auto* it = new Stream;
  return *it;
}
thread_local std::vector<std::shared_ptr<Graph>> captures;  // begun by this thread in a mode that forbids unsafe calls
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

cudaStream_t handle(Stream* s) { return reinterpret_cast<cudaStream_t>(s); }

cudaError_t wait_for(Stream* s) {
  if (s->capturing) {
    s->capturing->valid = false;
    return cudaErrorStreamCaptureUnsupported;
  }
  trim_pools();
  return cudaSuccess;
}

}  // namespace

namespace qkv::emulation {

Stream* find_stream(cudaStream_t stream) {
  if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return &legacy_stream();
  Stream* s = reinterpret_cast<Stream*>(stream);
  return streams().count(s) ? s : nullptr;
}

cudaError_t issue(cudaStream_t stream, Work work) {
  const Lock lock(runtime_mutex());
  Stream* s = find_stream(stream);
  if (!s) return cudaErrorInvalidResourceHandle;
  if (s->capturing) {
    if (!s->capturing->valid) return cudaErrorStreamCaptureInvalidated;
    s->capturing->work.push_back(std::move(work));
    return cudaSuccess;
  }
  if (s == &legacy_stream())
    for (Stream* other : streams())
      if (other->capturing && !other->non_blocking) {
        other->capturing->valid = false;
        return cudaErrorStreamCaptureImplicit;
      }
  return work();
}

bool forbidden_by_capture() {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
  for (auto& graph : captures) graph->valid = false;
  return !captures.empty();
}

}  // namespace qkv::emulation

extern "C" {

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const Lock lock(runtime_mutex());
  Stream* s = new Stream;
  s->non_blocking = flags & cudaStreamNonBlocking;
  streams().insert(s);
  *stream = handle(s);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(runtime_mutex());
  Stream* s = find_stream(stream);
  if (!s || s == &legacy_stream()) return report(cudaErrorInvalidResourceHandle);
  streams().erase(s);
  delete s;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(runtime_mutex());
  Stream* s = find_stream(stream);
  return report(s ? wait_for(s) : cudaErrorInvalidResourceHandle);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

cudaError_t cudaDeviceSynchronize() {
  const Lock lock(runtime_mutex());
  if (forbidden_by_capture()) return report(cudaErrorStreamCaptureUnsupported);
  trim_pools();
  return cudaSuccess;
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  const Lock lock(runtime_mutex());
  const Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  *flags = s->non_blocking ? cudaStreamNonBlocking : cudaStreamDefault;
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return report(issue(stream, [=] {
    function(data);
    return cudaSuccess;
  }));
}

// ---- events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(runtime_mutex());
  const Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  event->capturing = s->capturing;
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) { return cudaEventRecord(event, stream); }

// A stream that waits for an event of a capturing stream joins the capture.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Lock lock(runtime_mutex());
  Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  if (!event->capturing || event->capturing == s->capturing) return cudaSuccess;
  if (s->capturing || s == &legacy_stream()) {
    event->capturing->valid = false;
    return report(s->capturing ? cudaErrorStreamCaptureMerge : cudaErrorStreamCaptureImplicit);
  }
  s->capturing = event->capturing;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(runtime_mutex());
  if (event->capturing) {
    event->capturing->valid = false;
    return report(cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

// ---- capture and graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock lock(runtime_mutex());
  Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  if (s == &legacy_stream()) return report(cudaErrorStreamCaptureUnsupported);
  if (s->capturing) return report(cudaErrorIllegalState);
  s->capturing = std::make_shared<Graph>();
  s->origin = true;
  if (mode != cudaStreamCaptureModeRelaxed) captures.push_back(s->capturing);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(runtime_mutex());
  *graph = nullptr;
  Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  if (!s->capturing) return report(cudaErrorIllegalState);
  if (!s->origin) return report(cudaErrorStreamCaptureUnmatched);
  const std::shared_ptr<Graph> captured = s->capturing;
  for (Stream* other : streams())
    if (other->capturing == captured) {
      other->capturing = nullptr;
      other->origin = false;
    }
  for (auto it = captures.begin(); it != captures.end(); ++it)
    if (*it == captured) {
      captures.erase(it);
      break;
    }
  if (!captured->valid) return report(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st{captured};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Lock lock(runtime_mutex());
  const Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  *status = !s->capturing         ? cudaStreamCaptureStatusNone
            : s->capturing->valid ? cudaStreamCaptureStatusActive
                                  : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  const Lock lock(runtime_mutex());
  *executable = new CUgraphExec_st{graph->graph};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const std::shared_ptr<Graph> graph = executable->graph;
  return report(issue(stream, [graph] {
    for (const Work& work : graph->work) {
      const cudaError_t error = work();
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }));
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  const Lock lock(runtime_mutex());
  if (nodes) return report(cudaErrorNotSupported);  // only their number is known
  *count = graph->graph->work.size();
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const Lock lock(runtime_mutex());
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const Lock lock(runtime_mutex());
  delete graph;
  return cudaSuccess;
}

}  // extern "C"

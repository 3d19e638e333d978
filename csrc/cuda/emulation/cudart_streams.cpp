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
  Stream* stream = nullptr;          // where it was recorded, after so much work
  uint64_t issued = 0, captured = 0;
  std::chrono::steady_clock::time_point time;
};
struct CUgraph_st {
  std::shared_ptr<Graph> graph;
};
struct CUgraphExec_st {
  std::shared_ptr<Graph> graph;
  Stream* last = nullptr;  // where it was launched last, after so much work: a launch comes after those before
  uint64_t issued = 0;
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
std::vector<std::shared_ptr<Graph>>& captures() {  // that have not ended
  static auto* it = new std::vector<std::shared_ptr<Graph>>;
  return *it;
}
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

cudaStream_t handle(Stream* s) { return reinterpret_cast<cudaStream_t>(s); }

bool known(Stream* s) { return s == &legacy_stream() || streams().count(s); }

cudaError_t wait_for(Stream* s) {
  if (s == &legacy_stream() && forbidden_to_legacy_stream()) return cudaErrorStreamCaptureImplicit;
  if (s->capturing) {
    s->capturing->valid = false;
    return cudaErrorStreamCaptureUnsupported;
  }
  const cudaError_t error = catch_up(s, s->issued);
  trim_pools();
  return error;
}

void add(Stream* s, Work work) {
  s->waiting.push_back(std::move(work));
  ++s->issued;
}

// What is added to s from here on runs after what `other` has now.
void add_wait(Stream* s, Stream* other, uint64_t n) {
  add(s, [other, n] { return known(other) ? catch_up(other, n) : cudaSuccess; });
}

}  // namespace

namespace qkv::emulation {

cudaError_t catch_up(Stream* s, uint64_t n) {
  cudaError_t first = cudaSuccess;
  while (s->done < n && !s->waiting.empty()) {
    const Work work = std::move(s->waiting.front());
    s->waiting.pop_front();
    ++s->done;
    const cudaError_t error = work();
    if (first == cudaSuccess) first = error;
  }
  return first;
}

cudaError_t catch_up() {
  cudaError_t first = catch_up(&legacy_stream(), legacy_stream().issued);
  for (Stream* s : streams()) {
    const cudaError_t error = catch_up(s, s->issued);
    if (first == cudaSuccess) first = error;
  }
  return first;
}

Stream* find_stream(cudaStream_t stream) {
  if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return &legacy_stream();
  Stream* s = reinterpret_cast<Stream*>(stream);
  return streams().count(s) ? s : nullptr;
}

cudaError_t issue(cudaStream_t stream, Work work, cudaGraphNodeType type) {
  const Lock lock(runtime_mutex());
  Stream* s = find_stream(stream);
  if (!s) return cudaErrorInvalidResourceHandle;
  if (s->capturing) {
    if (!s->capturing->valid) return cudaErrorStreamCaptureInvalidated;
    s->capturing->nodes.push_back({type, std::move(work)});
    ++s->captured;
    s->joined = s->origin;
    return cudaSuccess;
  }
  if (s == &legacy_stream() && forbidden_to_legacy_stream()) return cudaErrorStreamCaptureImplicit;
  if (!configuration().late_streams) return work();
  if (s == &legacy_stream()) {
    for (Stream* other : streams())
      if (!other->non_blocking) add_wait(s, other, other->issued);
  } else if (!s->non_blocking) {
    add_wait(s, &legacy_stream(), legacy_stream().issued);
  }
  add(s, std::move(work));
  return cudaSuccess;
}

bool forbidden_by_capture() {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
  bool forbidden = false;
  for (auto& graph : captures()) {
    const bool own = graph->thread == std::this_thread::get_id();
    if (own ? graph->mode == cudaStreamCaptureModeRelaxed
            : graph->mode != cudaStreamCaptureModeGlobal || thread_mode != cudaStreamCaptureModeGlobal)
      continue;
    graph->valid = false;
    forbidden = true;
  }
  return forbidden;
}

bool forbidden_to_legacy_stream() {
  bool forbidden = false;
  for (Stream* other : streams())
    if (other->capturing && !other->non_blocking) {
      other->capturing->valid = false;
      forbidden = true;
    }
  return forbidden;
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
  const cudaError_t error = catch_up(s, s->issued);
  streams().erase(s);
  delete s;
  return report(error);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(runtime_mutex());
  Stream* s = find_stream(stream);
  return report(s ? wait_for(s) : cudaErrorInvalidResourceHandle);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

cudaError_t cudaDeviceSynchronize() {
  const Lock lock(runtime_mutex());
  if (!captures().empty()) {  // in whatever mode: it would wait for them
    for (auto& graph : captures()) graph->valid = false;
    return report(cudaErrorStreamCaptureUnsupported);
  }
  const cudaError_t error = catch_up();
  trim_pools();
  return report(error);
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  const Lock lock(runtime_mutex());
  const Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  *flags = s->non_blocking ? cudaStreamNonBlocking : cudaStreamDefault;
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return report(issue(
      stream,
      [=] {
        function(data);
        return cudaSuccess;
      },
      cudaGraphNodeTypeHost));
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
  Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  if (s->capturing && !s->capturing->valid) return report(cudaErrorStreamCaptureInvalidated);
  event->capturing = s->capturing;
  event->stream = s;
  event->issued = s->issued;
  event->captured = s->captured;
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) { return cudaEventRecord(event, stream); }

// A stream that waits for an event of a capturing stream joins the capture; one that captures cannot wait for what is outside.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Lock lock(runtime_mutex());
  Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  if (!event->stream) return cudaSuccess;  // never recorded
  if (event->capturing && event->capturing->ended) return report(cudaErrorCapturedEvent);
  if (!event->capturing) {
    if (s->capturing) {
      s->capturing->valid = false;
      return report(cudaErrorStreamCaptureIsolation);
    }
    if (configuration().late_streams) add_wait(s, event->stream, event->issued);
    return cudaSuccess;
  }
  if (event->capturing == s->capturing) {
    if (s != event->stream && known(event->stream) && event->stream->captured == event->captured) event->stream->joined = true;
    return cudaSuccess;
  }
  if (s->capturing || s == &legacy_stream()) {
    event->capturing->valid = false;
    if (s->capturing) s->capturing->valid = false;
    return report(s->capturing ? cudaErrorStreamCaptureMerge : cudaErrorStreamCaptureImplicit);
  }
  s->capturing = event->capturing;
  s->captured = 0;
  s->joined = false;
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(runtime_mutex());
  if (event->capturing) {
    event->capturing->valid = false;
    return report(cudaErrorCapturedEvent);
  }
  return report(event->stream && known(event->stream) ? catch_up(event->stream, event->issued) : cudaSuccess);
}
// With late streams nothing is ever ready before somebody waits for it.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock lock(runtime_mutex());
  const Stream* s = event->stream;
  if (!event->capturing && s && known(event->stream) && s->done < event->issued) return report(cudaErrorNotReady);
  return cudaEventSynchronize(event);
}

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
  s->capturing->mode = mode;
  s->capturing->thread = std::this_thread::get_id();
  s->origin = s->joined = true;
  s->captured = 0;
  captures().push_back(s->capturing);
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
  if (captured->mode != cudaStreamCaptureModeRelaxed && captured->thread != std::this_thread::get_id())
    return report(cudaErrorStreamCaptureWrongThread);
  bool joined = true;
  for (Stream* other : streams())
    if (other->capturing == captured) {
      joined = joined && other->joined;
      other->capturing = nullptr;
      other->origin = false;
    }
  captured->ended = true;
  for (auto it = captures().begin(); it != captures().end(); ++it)
    if (*it == captured) {
      captures().erase(it);
      break;
    }
  if (!captured->valid) return report(cudaErrorStreamCaptureInvalidated);
  if (!joined) return report(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{captured};
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Lock lock(runtime_mutex());
  const Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  if (s == &legacy_stream())
    for (const Stream* other : streams())
      if (other->capturing && !other->non_blocking) return report(cudaErrorStreamCaptureImplicit);  // and the capture goes on
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
  if (!graph) return report(cudaErrorInvalidValue);
  *executable = new CUgraphExec_st{graph->graph};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(runtime_mutex());
  Stream* s = find_stream(stream);
  if (!executable) return report(cudaErrorInvalidValue);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  if (!s->capturing && executable->last && executable->last != s && configuration().late_streams)
    add_wait(s, executable->last, executable->issued);
  const std::shared_ptr<Graph> graph = executable->graph;
  const cudaError_t error = issue(
      stream,
      [graph] {
        for (const CUgraphNode_st& node : graph->nodes) {
          const cudaError_t failed = node.work();
          if (failed != cudaSuccess) return failed;
        }
        return cudaSuccess;
      },
      cudaGraphNodeTypeGraph);
  if (!s->capturing) {
    executable->last = s;
    executable->issued = s->issued;
  }
  return report(error);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

// As many as there is room for; `count` says how many that were, or, without room, how many there are.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  const Lock lock(runtime_mutex());
  std::deque<CUgraphNode_st>& all = graph->graph->nodes;
  if (nodes) {
    for (size_t i = 0; i < *count; ++i) nodes[i] = i < all.size() ? &all[i] : nullptr;
    *count = *count < all.size() ? *count : all.size();
  } else {
    *count = all.size();
  }
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  const Lock lock(runtime_mutex());
  *type = node->type;
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

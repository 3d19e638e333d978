// The CUDA runtime's memory: allocation, pools, copies.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "cuda/emulation/cudart.h"
#include "cuda/emulation/memory.h"

using namespace qkv::emulation;

// A pool gives memory back at once, so that a use after cudaFreeAsync is seen; it only keeps account of what a real one would
// hold.
struct CUmemPoolHandle_st {
  uint64_t threshold = 0, used = 0, reserved = 0, used_high = 0, reserved_high = 0;
};

namespace {

using Pool = CUmemPoolHandle_st;
using Lock = std::lock_guard<std::recursive_mutex>;

struct PooledBlock {
  Pool* pool;
  size_t bytes;
};

std::map<const void*, PooledBlock>& pooled() {
  static auto* it = new std::map<const void*, PooledBlock>;
  return *it;
}
std::map<uintptr_t, size_t>& host_blocks() {
  static auto* it = new std::map<uintptr_t, size_t>;
  return *it;
}
std::vector<Pool*>& pools() {
  static auto* it = new std::vector<Pool*>;
  return *it;
}

Pool* default_pool() {
  static Pool* it = [] {
    pools().push_back(new Pool);
    return pools().back();
  }();
  return it;
}

// What no pool and no program has.
size_t free_bytes() {
  size_t taken = device_bytes_used();
  for (const Pool* p : pools()) taken += p->reserved - p->used;
  const size_t memory = device().memory;
  return memory - std::min(memory, taken);
}

// What is idle in a pool serves one allocation that is no larger, else stays in its way until the pool is trimmed: as where it
// lies in pieces that are too small.
void* allocate(size_t bytes, Pool* pool) {
  const bool idle = pool && pool->reserved - pool->used >= bytes;
  if (!idle && bytes > free_bytes()) return nullptr;
  void* data = device_allocate(bytes);
  if (!data || !pool) return data;
  pooled()[data] = {pool, bytes};
  pool->used += bytes;
  if (!idle) pool->reserved += bytes;
  pool->used_high = std::max(pool->used_high, pool->used);
  pool->reserved_high = std::max(pool->reserved_high, pool->reserved);
  return data;
}

cudaError_t release(void* data) {
  if (!data) return cudaSuccess;
  if (!device_free(data)) return cudaErrorInvalidValue;
  const auto it = pooled().find(data);
  if (it != pooled().end()) {
    it->second.pool->used -= it->second.bytes;
    pooled().erase(it);
  }
  return cudaSuccess;
}

bool is_pinned(const void* data) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  const auto it = host_blocks().upper_bound(address);
  return it != host_blocks().begin() && address < std::prev(it)->first + std::prev(it)->second;
}

// In a capture, allocating and freeing become nodes of the graph, and the memory the graph's. Nothing here needs that.
cudaError_t no_memory_nodes(const Stream* s) {
  s->capturing->valid = false;
  return cudaErrorNotSupported;
}

enum class Where { host, device, bad };  // bad: in the arena, but not inside an allocation

Where where(const void* data, size_t bytes) {
  const Allocation* a = allocation_at(reinterpret_cast<uint64_t>(data));
  if (!a) return Where::host;
  const uint64_t at = reinterpret_cast<uint64_t>(data);
  return a->live && at >= a->base && bytes <= a->bytes && at - a->base <= a->bytes - bytes ? Where::device : Where::bad;
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (!bytes) return cudaSuccess;
  const Where t = where(to, bytes), f = where(from, bytes);
  if (t == Where::bad || f == Where::bad) return cudaErrorInvalidValue;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  // Variables of the device lie outside the arena, so a host address is accepted for them; a device address never stands for the
  // host.
  if (kind != cudaMemcpyDefault && ((!to_device && t == Where::device) || (!from_device && f == Where::device)))
    return cudaErrorInvalidValue;
  std::memmove(to, from, bytes);
  if (t == Where::device) {
    if (f == Where::device)
      host_copied(to, from, bytes);
    else
      host_wrote(to, bytes);
  }
  return cudaSuccess;
}

cudaError_t fill(void* to, int value, size_t bytes) {
  if (!bytes) return cudaSuccess;
  if (where(to, bytes) == Where::bad) return cudaErrorInvalidValue;
  std::memset(to, value, bytes);
  host_wrote(to, bytes);
  return cudaSuccess;
}

cudaError_t copy_2d(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                    cudaMemcpyKind kind) {
  for (size_t i = 0; i < height; ++i) {
    const cudaError_t error =
        copy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width, kind);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

// What waits for the device also lets pools give back what they hold beyond their thresholds.
namespace qkv::emulation {

void trim_pools() {
  for (Pool* p : pools()) p->reserved = std::max(p->used, std::min(p->reserved, p->threshold));
}

}  // namespace qkv::emulation

extern "C" {

cudaError_t cudaMalloc(void** data, size_t bytes) {
  const Lock lock(runtime_mutex());
  *data = nullptr;
  if (forbidden_by_capture()) return report(cudaErrorStreamCaptureUnsupported);
  if (!bytes) return cudaSuccess;
  *data = allocate(bytes, nullptr);
  return report(*data ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* data) {
  const Lock lock(runtime_mutex());
  if (data && forbidden_by_capture()) return report(cudaErrorStreamCaptureUnsupported);
  return report(release(data));
}

cudaError_t cudaMallocFromPoolAsync(void** data, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  const Lock lock(runtime_mutex());
  *data = nullptr;
  const Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  if (s->capturing) return report(no_memory_nodes(s));
  if (!bytes) return cudaSuccess;
  *data = allocate(bytes, pool);
  return report(*data ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocAsync(void** data, size_t bytes, cudaStream_t stream) {
  return cudaMallocFromPoolAsync(data, bytes, default_pool(), stream);
}

cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  const Lock lock(runtime_mutex());
  const Stream* s = find_stream(stream);
  if (!s) return report(cudaErrorInvalidResourceHandle);
  if (!data) return cudaSuccess;
  if (where(data, 0) != Where::device) return report(cudaErrorInvalidValue);
  if (s->capturing) return report(no_memory_nodes(s));
  if (!configuration().late_streams) return report(release(data));
  return report(issue(stream, [data] { return release(data); }));
}

cudaError_t cudaMallocHost(void** data, size_t bytes) {
  const Lock lock(runtime_mutex());
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
  if (!*data) return report(cudaErrorMemoryAllocation);
  host_blocks()[reinterpret_cast<uintptr_t>(*data)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) { return cudaMallocHost(data, bytes); }

cudaError_t cudaFreeHost(void* data) {
  const Lock lock(runtime_mutex());
  if (!data) return cudaSuccess;
  if (!host_blocks().erase(reinterpret_cast<uintptr_t>(data))) return report(cudaErrorInvalidValue);
  std::free(data);
  return cudaSuccess;
}

// ---- pools

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  const Lock lock(runtime_mutex());
  pools().push_back(*pool = new Pool);
  return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  const Lock lock(runtime_mutex());
  auto& all = pools();
  const auto it = std::find(all.begin(), all.end(), pool);
  if (it == all.end()) return report(cudaErrorInvalidValue);
  pool->threshold = 0;
  pool->reserved = pool->used;  // lives on until its memory is freed
  return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
  const Lock lock(runtime_mutex());
  *pool = default_pool();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int id) { return cudaDeviceGetDefaultMemPool(pool, id); }

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep) {
  const Lock lock(runtime_mutex());
  pool->reserved = std::max<uint64_t>(pool->used, std::min<uint64_t>(pool->reserved, keep));
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  const Lock lock(runtime_mutex());
  switch (attribute) {
    case cudaMemPoolAttrReleaseThreshold:
      std::memcpy(&pool->threshold, value, 8);
      break;
    case cudaMemPoolAttrUsedMemHigh:
      pool->used_high = pool->used;
      break;
    case cudaMemPoolAttrReservedMemHigh:
      pool->reserved_high = pool->reserved;
      break;
    default:
      break;  // how memory may be reused makes no difference here
  }
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  const Lock lock(runtime_mutex());
  uint64_t v = 0;
  switch (attribute) {
    case cudaMemPoolAttrReleaseThreshold:
      v = pool->threshold;
      break;
    case cudaMemPoolAttrUsedMemCurrent:
      v = pool->used;
      break;
    case cudaMemPoolAttrReservedMemCurrent:
      v = pool->reserved;
      break;
    case cudaMemPoolAttrUsedMemHigh:
      v = pool->used_high;
      break;
    case cudaMemPoolAttrReservedMemHigh:
      v = pool->reserved_high;
      break;
    default: {
      const int yes = 1;
      std::memcpy(value, &yes, sizeof yes);
      return cudaSuccess;
    }
  }
  std::memcpy(value, &v, sizeof v);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Lock lock(runtime_mutex());
  *total = device().memory;
  *free = free_bytes();
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* to, const void* data) {
  const Lock lock(runtime_mutex());
  std::memset(to, 0, sizeof *to);
  to->device = -2;  // cudaInvalidDeviceId
  if (where(data, 0) == Where::device) {
    to->type = cudaMemoryTypeDevice;
    to->device = 0;
    to->devicePointer = const_cast<void*>(data);
    return cudaSuccess;
  }
  if (is_pinned(data)) {
    to->type = cudaMemoryTypeHost;
    to->device = 0;
    to->hostPointer = to->devicePointer = const_cast<void*>(data);
  }
  return cudaSuccess;
}

// ---- copies

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const Lock lock(runtime_mutex());
  const Stream* s = find_stream(stream);
  const bool host = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToHost;
  if (!host || !s || s->capturing || !configuration().late_streams || is_pinned(kind == cudaMemcpyHostToDevice ? from : to))
    return report(issue(stream, [=] { return copy(to, from, bytes, kind); }, cudaGraphNodeTypeMemcpy));
  // Pageable memory of the host: read before the call returns, and written.
  if (kind == cudaMemcpyHostToDevice) {
    const auto* first = static_cast<const unsigned char*>(from);
    const auto staged = std::make_shared<std::vector<unsigned char>>(first, first + bytes);
    return report(issue(stream, [=] { return copy(to, staged->data(), bytes, kind); }));
  }
  const cudaError_t error = issue(stream, [=] { return copy(to, from, bytes, kind); });
  return error == cudaSuccess ? cudaStreamSynchronize(stream) : report(error);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return report(issue(stream, [=] { return fill(to, value, bytes); }, cudaGraphNodeTypeMemset));
}
void qkv_emulator_forget(void* data, size_t bytes, cudaStream_t stream) {
  const auto work = [=] {
    if (configuration().check) {
      std::memset(data, 0xFF, bytes);
      host_forgot(data, bytes);
    }
    return cudaSuccess;
  };
  report(issue(stream, work, cudaGraphNodeTypeMemset));
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  return report(
      issue(stream, [=] { return copy_2d(to, to_pitch, from, from_pitch, width, height, kind); }, cudaGraphNodeTypeMemcpy));
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const Lock lock(runtime_mutex());
  if (forbidden_by_capture()) return report(cudaErrorStreamCaptureUnsupported);
  if (forbidden_to_legacy_stream()) return report(cudaErrorStreamCaptureImplicit);
  catch_up();
  return report(copy(to, from, bytes, kind));
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
  const Lock lock(runtime_mutex());
  if (forbidden_by_capture()) return report(cudaErrorStreamCaptureUnsupported);
  if (forbidden_to_legacy_stream()) return report(cudaErrorStreamCaptureImplicit);
  catch_up();
  return report(copy_2d(to, to_pitch, from, from_pitch, width, height, kind));
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  const Lock lock(runtime_mutex());
  if (forbidden_by_capture()) return report(cudaErrorStreamCaptureUnsupported);
  if (forbidden_to_legacy_stream()) return report(cudaErrorStreamCaptureImplicit);
  catch_up();
  return report(fill(to, value, bytes));
}
cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset, cudaMemcpyKind) {
  void* data = nullptr;
  const cudaError_t error = cudaGetSymbolAddress(&data, symbol);
  if (error == cudaSuccess) std::memcpy(static_cast<char*>(data) + offset, from, bytes);
  return error;
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset, cudaMemcpyKind) {
  void* data = nullptr;
  const cudaError_t error = cudaGetSymbolAddress(&data, symbol);
  if (error == cudaSuccess) std::memcpy(to, static_cast<char*>(data) + offset, bytes);
  return error;
}

}  // extern "C"

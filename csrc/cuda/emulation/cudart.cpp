// The CUDA runtime, as far as kernels.h's launchers and bind/ use it, for the object code that nvcc made of them: registration of
// kernels, launches, devices, errors. Memory is in cudart_memory.cpp, streams, events and graphs in cudart_streams.cpp.
#include "cuda/emulation/cudart.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "cuda/emulation/block.h"
#include "cuda/emulation/memory.h"

namespace qkv::emulation {

// ---- kernels

namespace {

// What the launchers hold in their hands: the address of a kernel's host stub, or the handle that __cudaGetKernel gave for it.
struct Function {
  std::string name;
  const Kernel* kernel = nullptr;  // looked up when it is first needed: static initialisers run in any order
  int max_dynamic_shared = 48 * 1024;
  bool changed = false;  // max_dynamic_shared was set
};

std::unordered_map<const void*, Function>& functions() {
  static auto* it = new std::unordered_map<const void*, Function>;
  return *it;
}

struct HostVariable {
  std::string name;
  size_t size;
};
std::unordered_map<const void*, HostVariable>& host_variables() {
  static auto* it = new std::unordered_map<const void*, HostVariable>;
  return *it;
}

Function* find_function(const void* handle) {
  auto& all = functions();
  auto it = all.find(handle);
  if (it == all.end())
    for (auto& entry : all)
      if (&entry.second == handle) {  // a cudaKernel_t
        it = all.find(entry.first);
        break;
      }
  if (it == all.end()) return nullptr;
  Function& f = it->second;
  if (!f.kernel) f.kernel = find_kernel(f.name.c_str());
  return f.kernel ? &f : nullptr;
}

unsigned align_up(unsigned value, unsigned alignment) { return (value + alignment - 1) / alignment * alignment; }

// The extern array starts behind the static ones, aligned as it was declared and, so that kernels cannot rely on luck, to no
// more.
unsigned dynamic_base(const Kernel& k) {
  const unsigned alignment = std::max(16u, k.dynamic_alignment);
  const unsigned base = align_up(k.shared_end + (k.shared_count ? 32 : 0), alignment);
  return base % (2 * alignment) ? base : base + alignment;
}

cudaError_t run(const Launch& l) {
  std::string text;
  if (run_launch(l, text)) return cudaSuccess;
  set_fault_text(text);
  return cudaErrorLaunchFailure;
}

cudaError_t launch(const void* handle, dim3 grid, dim3 block, Index3 cluster_size, void** arguments, size_t dynamic,
                   cudaStream_t stream, bool dependent = false) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  const Function* f = find_function(handle);
  if (!f) return cudaErrorInvalidDeviceFunction;
  const Kernel& k = *f->kernel;
  const Device d = device();
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (!threads || threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (k.max_threads && threads > k.max_threads) return cudaErrorLaunchOutOfResources;
  if (k.required_threads[0] &&
      (k.required_threads[0] != block.x || k.required_threads[1] != block.y || k.required_threads[2] != block.z))
    return cudaErrorInvalidValue;
  const size_t allowed =
      f->changed ? static_cast<size_t>(f->max_dynamic_shared) : 48 * 1024 - std::min(k.shared_bytes, 48u * 1024);
  if (dynamic > allowed || k.shared_bytes + dynamic > d.shared_per_block) return cudaErrorInvalidValue;
  if (!cluster_size.x)
    cluster_size =
        k.required_cluster[0] ? Index3{k.required_cluster[0], k.required_cluster[1], k.required_cluster[2]} : Index3{1, 1, 1};
  Launch l;
  l.kernel = &k;
  l.grid = {grid.x, grid.y, grid.z};
  l.block = {block.x, block.y, block.z};
  l.cluster = cluster_size;
  l.cluster_size = cluster_size.x * cluster_size.y * cluster_size.z;
  if (!l.cluster_size || l.cluster_size > kMaxClusterBlocks || grid.x % cluster_size.x || grid.y % cluster_size.y ||
      grid.z % cluster_size.z)
    return cudaErrorInvalidClusterSize;
  l.threads = static_cast<unsigned>(threads);
  l.dynamic_shared = static_cast<unsigned>(dynamic);
  l.dynamic_base = dynamic_base(k);
  l.dependent = dependent;
  // Parameters are copied now: the caller's are gone by the time a graph runs. 128 bytes of alignment, for tensor maps.
  const auto bytes = std::shared_ptr<unsigned char>(
      static_cast<unsigned char*>(std::aligned_alloc(128, align_up(k.parameter_bytes + 1, 128))), std::free);
  for (unsigned i = 0; i < k.parameter_count; ++i)
    std::memcpy(bytes.get() + k.parameters[i].offset, arguments[i], k.parameters[i].size);
  l.parameters = bytes.get();
  return issue(stream, [l, bytes] { return run(l); });
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> pushed;  // by <<<>>>, until the stub pops it

Index3 cluster_of(const cudaLaunchConfig_t& c) {
  Index3 size{0, 0, 0};  // as the kernel says
  for (unsigned i = 0; i < c.numAttrs; ++i)
    if (c.attrs[i].id == cudaLaunchAttributeClusterDimension)
      size = {c.attrs[i].val.clusterDim.x, c.attrs[i].val.clusterDim.y, c.attrs[i].val.clusterDim.z};
  return size;
}

bool is_dependent(const cudaLaunchConfig_t& c) {
  return std::any_of(c.attrs, c.attrs + c.numAttrs, [](const cudaLaunchAttribute& a) {
    return a.id == cudaLaunchAttributeProgrammaticStreamSerialization && a.val.programmaticStreamSerializationAllowed;
  });
}

}  // namespace
}  // namespace qkv::emulation

using namespace qkv::emulation;

extern "C" {

// ---- what nvcc's host code calls

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  functions()[host].name = name;
}

void __cudaRegisterVar(void**, char* host, char*, const char* name, int, size_t size, int, int) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  host_variables()[host] = {name, size};
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  pushed.push_back({grid, block, shared, static_cast<cudaStream_t>(stream)});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (pushed.empty()) return report(cudaErrorMissingConfiguration);
  const Configuration c = pushed.back();
  pushed.pop_back();
  *grid = c.grid;
  *block = c.block;
  *shared = c.shared;
  *static_cast<cudaStream_t*>(stream) = c.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  const auto it = functions().find(host);
  if (it == functions().end()) return report(cudaErrorInvalidDeviceFunction);
  *kernel = reinterpret_cast<cudaKernel_t>(&it->second);
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream) {
  return report(launch(kernel, grid, block, {0, 0, 0}, arguments, shared, stream));
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream) {
  return report(launch(function, grid, block, {0, 0, 0}, arguments, shared, stream));
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* function, void** arguments) {
  return report(
      launch(function, c->gridDim, c->blockDim, cluster_of(*c), arguments, c->dynamicSmemBytes, c->stream, is_dependent(*c)));
}

// ---- attributes of kernels

cudaError_t cudaGetKernel(cudaKernel_t* kernel, const void* host) { return __cudaGetKernel(kernel, host); }

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  Function* f = find_function(function);
  if (!f) return report(cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || static_cast<size_t>(value) + f->kernel->shared_bytes > device().shared_per_block)
      return report(cudaErrorInvalidValue);
    f->max_dynamic_shared = value;
    f->changed = true;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* to, const void* function) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  const Function* f = find_function(function);
  if (!f) return report(cudaErrorInvalidDeviceFunction);
  std::memset(to, 0, sizeof *to);
  const Device d = device();
  to->sharedSizeBytes = f->kernel->shared_bytes;
  to->maxThreadsPerBlock = f->kernel->max_threads ? static_cast<int>(f->kernel->max_threads) : 1024;
  to->numRegs = 64;
  to->ptxVersion = to->binaryVersion = d.major * 10 + d.minor;
  to->maxDynamicSharedSizeBytes = f->changed ? f->max_dynamic_shared : 48 * 1024 - static_cast<int>(f->kernel->shared_bytes);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function, int threads, size_t dynamic,
                                                                   unsigned) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  const Function* f = find_function(function);
  if (!f) return report(cudaErrorInvalidDeviceFunction);
  if (threads <= 0 || threads > 1024) return report(cudaErrorInvalidValue);
  // Registers are not known here: as if 64 were used, which is what two blocks of 512 threads can have.
  const size_t of_shared = device().shared_per_block + 1024, shared = f->kernel->shared_bytes + dynamic + 1024;
  *blocks = static_cast<int>(std::min<size_t>(
      {size_t{32}, 2048u / static_cast<unsigned>(threads), 65536u / (64u * static_cast<unsigned>(threads)), of_shared / shared}));
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads, size_t dynamic) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, dynamic, 0);
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function, const cudaLaunchConfig_t* c) {
  const Index3 size = cluster_of(*c);
  int blocks = 0;
  const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
      &blocks, function, static_cast<int>(c->blockDim.x * c->blockDim.y * c->blockDim.z), c->dynamicSmemBytes, 0);
  *clusters = blocks * device().multiprocessors / static_cast<int>(std::max(1u, size.x * size.y * size.z));
  return error;
}

cudaError_t cudaGetSymbolAddress(void** data, const void* symbol) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  const auto it = host_variables().find(symbol);
  const Variable* v = it == host_variables().end() ? nullptr : find_variable(it->second.name.c_str());
  if (!v) return report(cudaErrorInvalidSymbol);
  *data = v->data;
  return cudaSuccess;
}

cudaError_t cudaGetSymbolSize(size_t* size, const void* symbol) {
  const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
  const auto it = host_variables().find(symbol);
  if (it == host_variables().end()) return report(cudaErrorInvalidSymbol);
  *size = it->second.size;
  return cudaSuccess;
}

}  // extern "C"

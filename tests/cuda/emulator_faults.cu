// Kernels that do one thing wrong each, and their corrected twins, for tests/test_cuda_emulator.py. Kernels here spell out PTX
// where CUDA C++ has no name for an instruction, so that the emulator is tested without the project's own intrinsics.
#include <cuda_runtime.h>
#include <stdint.h>

#include <thread>

namespace {

__device__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

template <bool kBarrier>
__global__ void shared_race(int* y) {
  __shared__ int s[64];
  s[threadIdx.x] = threadIdx.x;
  s[63 - threadIdx.x] += 0;  // so that all of it has been written when it is read
  if (kBarrier) __syncthreads();
  y[threadIdx.x] = s[63 - threadIdx.x];
}

template <bool kBarrier>
__global__ void shared_exchange(int* y) {
  __shared__ int s[64];
  s[threadIdx.x] = 1;
  __syncthreads();
  const int v = s[63 - threadIdx.x];
  if (kBarrier) __syncthreads();
  s[threadIdx.x] = v + 1;  // others may still read
  y[threadIdx.x] = v;
}

__global__ void shared_uninitialised(int* y) {
  __shared__ int s[64];
  if (threadIdx.x < 32) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void shared_out_of_bounds(int* y, int n) {
  __shared__ int a[32];
  __shared__ int b[32];
  a[threadIdx.x] = b[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) a[n] = 2;
  __syncthreads();
  y[threadIdx.x] = a[threadIdx.x] + b[threadIdx.x];
}

__global__ void dynamic_out_of_bounds(int* y, int n) {
  extern __shared__ int s[];
  s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x == 0 ? n : threadIdx.x];
}

__global__ void copy_ints(int* y, const int* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}

__global__ void misaligned(float4* y, const float* x, int offset) { y[0] = *reinterpret_cast<const float4*>(x + offset); }

__global__ void named_barrier(int threads) {
  if (threadIdx.x < 32) asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

// One half says how many threads there are, and the other that it waits for all.
__global__ void barrier_of_all(int* y, int threads) {
  __shared__ int s[64];
  s[threadIdx.x] = threadIdx.x;
  if (threadIdx.x < 32)
    asm volatile("bar.sync 0, %0;" ::"r"(threads) : "memory");
  else
    asm volatile("bar.sync 0;" ::: "memory");
  y[threadIdx.x] = s[63 - threadIdx.x];
}

__global__ void divergent_barriers(int* y) {
  if (threadIdx.x < 32) {
    y[threadIdx.x] = 1;
    __syncthreads();
  } else {
    y[threadIdx.x] = 2;
    __syncthreads();
  }
}

__global__ void divergent_shuffle(int* y) {
  int v = threadIdx.x;
  if (threadIdx.x < 16) v += __shfl_xor_sync(0xFFFFFFFF, v, 1);
  if (threadIdx.x >= 16) v += __shfl_xor_sync(0xFFFFFFFF, v, 2);
  y[threadIdx.x] = v;
}

__global__ void shuffle_from_nobody(int* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_down_sync(0xFFFF, static_cast<int>(threadIdx.x), 8);
}

// A shuffle orders no memory; __syncwarp does.
template <bool kSync>
__global__ void warp_order(int* y) {
  __shared__ int s[32];
  s[threadIdx.x] = threadIdx.x;
  int v = __shfl_xor_sync(0xFFFFFFFF, threadIdx.x, 1);
  if (kSync) __syncwarp();
  y[threadIdx.x] = v + s[threadIdx.x ^ 1];
}

// 0: right; 1: no wait; 2: waits, but no barrier for the others; 3: returns without a wait
template <int kFault>
__global__ void async_copy(float* y, const float* x) {
  __shared__ float4 s[32];
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(s + threadIdx.x)), "l"(x + 4 * threadIdx.x)
               : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (kFault != 1 && kFault != 3) asm volatile("cp.async.wait_group 0;" ::: "memory");
  if (kFault == 3) return;
  if (kFault != 2) __syncthreads();
  y[threadIdx.x] = s[kFault == 1 ? threadIdx.x : 31 - threadIdx.x].x;
  if (kFault == 1) asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// Another thread, or the same, writes to where a cp.async reads. 0: right, after its wait; 1: another, before; 2: the same,
// before
template <int kFault>
__global__ void async_source(int* y, int* x) {
  __shared__ int s[64];
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\ncp.async.commit_group;" ::"r"(shared_address(s + threadIdx.x)),
               "l"(x + threadIdx.x)
               : "memory");
  if (kFault == 0) asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  x[kFault == 2 ? threadIdx.x : threadIdx.x ^ 32] = 2;
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  y[threadIdx.x] = s[threadIdx.x];
}

template <bool kBarrier>
__global__ void global_race(int* y) {
  y[threadIdx.x] = threadIdx.x;
  if (kBarrier) __syncthreads();
  const int v = y[threadIdx.x ^ 32];
  if (kBarrier) __syncthreads();
  y[threadIdx.x] = v;
}

// All threads read a word and one of the last block writes it.
template <bool kBarrier>
__global__ void all_read_one_writes(int* y) {
  y[1 + blockIdx.x * blockDim.x + threadIdx.x] = y[0];
  if (kBarrier)
    __syncthreads();
  else
    __syncwarp();
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) y[0] = 1;
}

__global__ void blocks_write_the_same(int* y) { y[threadIdx.x] = blockIdx.x; }

// The last block adds what all have written: right if a barrier and a fence for the whole device stand before the atomic.
// 0: right; 1: no fence; 2: a fence for the block; 3: no barrier
template <int kFault>
__global__ void last_block_adds(int* y, int* parts, unsigned* arrived) {
  __shared__ bool last;
  if (threadIdx.x == 31) parts[blockIdx.x] = blockIdx.x + 1;
  if (kFault != 3) __syncthreads();
  if (threadIdx.x == 0) {
    if (kFault == 2) __threadfence_block();
    if (kFault == 0 || kFault == 3) __threadfence();
    last = atomicAdd(arrived, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += reinterpret_cast<volatile int*>(parts)[i];
    *y = sum;
    *arrived = 0;  // for the next launch
  }
}

// All threads read a word and one writes it, which a barrier orders after all the others or all but the last 32.
__global__ void last_warp_races(int* y, int threads) {
  __shared__ int s;
  if (threadIdx.x == 0) s = 1;
  __syncthreads();
  y[threadIdx.x] = s;
  if (threadIdx.x >= threads) return;
  asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
  if (threadIdx.x == 0) s = 2;
}

// nvcc puts an array of a device function that several kernels call before all of them; each kernel has those that it reaches.
template <int kSize>
__device__ int of_neighbour(int v) {
  __shared__ int s[kSize];
  s[threadIdx.x] = v;
  __syncthreads();
  return s[threadIdx.x ^ 1];
}
template <int kSize>
__device__ __noinline__ int called(int v) {
  return of_neighbour<kSize>(v);
}
template <int kSize, bool kCall>
__global__ void array_of_function(int* y) {
  y[threadIdx.x] = kCall ? called<kSize>(threadIdx.x) : of_neighbour<kSize>(threadIdx.x);
}

// A flag in shared memory passes data between two warps.
template <bool kFence>
__global__ void flag(int* y) {
  __shared__ int data;
  __shared__ int ready;
  if (threadIdx.x == 0) ready = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    // Not plain C++: the compiler would see that only 42 can be read.
    asm volatile("st.shared.u32 [%0], 42;" ::"r"(shared_address(&data)) : "memory");
    if (kFence) __threadfence_block();
    atomicExch(&ready, 1);
  } else if (threadIdx.x == 32) {
    while (atomicAdd(&ready, 0) == 0) {
    }
    if (kFence) __threadfence_block();
    *y = data;
  }
}

// The same through global memory, between threads that have not met before.
__global__ void volatile_flag(int* y, volatile int* ready) {
  if (threadIdx.x == 0) {
    y[0] = 42;
    __threadfence();
    *ready = 1;
  } else if (threadIdx.x >= 32) {
    while (*ready == 0) {
    }
    __threadfence();
    y[threadIdx.x] = y[0];
  }
}

__global__ void read_only_of_own(int* y) {
  y[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x + 32] = __ldg(y + (threadIdx.x ^ 1));
}

__global__ void spins(volatile int* y) {
  while (*y == 0) {
  }
}

__global__ void waits_for_the_next_block(int* y) {
  atomicAdd(y, 1);
  while (atomicAdd(y, 0) < static_cast<int>(gridDim.x * blockDim.x)) {
  }
}
// Ordinary loads, which give nobody else a turn by themselves.
__global__ void spins_on_a_load(const int* y) {
  while (__ldcg(y) == 0) {
  }
}

__device__ int variable[64], other_variable[64];
__global__ void reads_variables(int* y, int n) { y[threadIdx.x] = variable[threadIdx.x + n] + other_variable[threadIdx.x + n]; }

// vote.uni; lanes return as soon as they have voted.
__global__ void votes(int* y, int limit) {
  int uniform;
  asm volatile(
      "{\n.reg .pred mine, all;\nsetp.lt.s32 mine, %1, %2;\nvote.sync.uni.pred all, mine, 0xFFFFFFFF;\nselp.u32 %0, 1, 0, all;\n}"
      : "=r"(uniform)
      : "r"(static_cast<int>(threadIdx.x)), "r"(limit));
  y[threadIdx.x] = uniform;
}

// Each half of the warp has a __syncwarp of its own, which is one: since sm_70 they need not be the same instruction.
__global__ void two_places_of_one_barrier(int* y) {
  __shared__ int s[32];
  s[threadIdx.x] = threadIdx.x;
  if (threadIdx.x < 16) {
    asm volatile("bar.warp.sync 0xFFFFFFFF;" ::: "memory");
    y[threadIdx.x] = s[31 - threadIdx.x];
  } else {
    asm volatile("bar.warp.sync 0xFFFFFFFF;" ::: "memory");
    y[threadIdx.x] = -s[31 - threadIdx.x];
  }
}

__global__ void traps(int* y) {
  if (y[0]) __trap();
}

__global__ void all_threads(int* y) { y[threadIdx.x] = 1; }
__global__ void __launch_bounds__(64) at_most_64(int* y) { y[threadIdx.x] = 1; }

// ---- counters

__global__ void shared_stride(int* y, int stride) {
  __shared__ int s[32 * 32];
  for (int i = threadIdx.x; i < 32 * 32; i += 32) s[i] = i;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x * stride];
}
__global__ void shared_wide(float4* y) {
  __shared__ float4 s[64];
  s[threadIdx.x] = make_float4(1, 2, 3, 4);
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}
// The last lane copies only `tail` bytes of its 16.
__global__ void copy_with_tail(float* y, const float* x, int tail) {
  __shared__ float4 s[32];
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\ncp.async.wait_all;" ::"r"(shared_address(s + threadIdx.x)),
               "l"(x + 4 * threadIdx.x), "r"(threadIdx.x == 31 ? tail : 16)
               : "memory");
  y[threadIdx.x] = s[threadIdx.x].x;
}
// What was there counts for an addition, and for an exchange (kind 2) whose result is used, not for another (kind 0), be its
// register written twice (kind 3).
template <int kKind>
__global__ void atomics_alone(int* y) {
  __shared__ int s[32];
  if (kKind == 1)
    atomicAdd(y + threadIdx.x, 1);
  else
    atomicExch(y + threadIdx.x, 1);
  const int before = atomicExch(s + threadIdx.x, 2);
  if (kKind == 2) y[32 + threadIdx.x] = before;
  if (kKind == 3)
    asm volatile(
        "{\n.reg .b32 t;\natom.global.exch.b32 t, [%0], 1;\natom.global.exch.b32 t, [%0], 1;\n}" ::"l"(y + 64 + threadIdx.x)
        : "memory");
  y[threadIdx.x] += s[threadIdx.x];
}
__global__ void global_stride(float* y, const float* x, int stride) { y[threadIdx.x] = x[threadIdx.x * stride]; }

}  // namespace

// A kernel of emulator_faults_sm90.cu has the same name.
static __global__ void of_this_name_are_two(int* y) { *y = 80; }

extern "C" {
void run_of_this_name_are_two_sm80(int* y) { of_this_name_are_two<<<1, 1>>>(y); }
void run_shared_race(int* y, int right) { right ? shared_race<true><<<1, 64>>>(y) : shared_race<false><<<1, 64>>>(y); }
void run_shared_exchange(int* y, int right) {
  right ? shared_exchange<true><<<1, 64>>>(y) : shared_exchange<false><<<1, 64>>>(y);
}
void run_shared_uninitialised(int* y) { shared_uninitialised<<<1, 64>>>(y); }
void run_atomics_alone(int* y, int kind) {
  if (kind == 0) atomics_alone<0><<<1, 32>>>(y);
  if (kind == 1) atomics_alone<1><<<1, 32>>>(y);
  if (kind == 2) atomics_alone<2><<<1, 32>>>(y);
  if (kind == 3) atomics_alone<3><<<1, 32>>>(y);
}
void run_shared_out_of_bounds(int* y, int n) { shared_out_of_bounds<<<1, 32>>>(y, n); }
void run_dynamic_out_of_bounds(int* y, int n) { dynamic_out_of_bounds<<<1, 32, 32 * sizeof(int)>>>(y, n); }
void run_copy_ints(int* y, const int* x, int n, int threads) { copy_ints<<<1, threads>>>(y, x, n); }
void run_misaligned(float4* y, const float* x, int offset) { misaligned<<<1, 1>>>(y, x, offset); }
void run_named_barrier(int threads) { named_barrier<<<1, 64>>>(threads); }
void run_barrier_of_all(int* y, int threads) { barrier_of_all<<<1, 64>>>(y, threads); }
void run_divergent_barriers(int* y) { divergent_barriers<<<1, 64>>>(y); }
void run_divergent_shuffle(int* y) { divergent_shuffle<<<1, 32>>>(y); }
void run_shuffle_from_nobody(int* y) { shuffle_from_nobody<<<1, 32>>>(y); }
void run_warp_order(int* y, int right) { right ? warp_order<true><<<1, 32>>>(y) : warp_order<false><<<1, 32>>>(y); }
void run_async_copy(float* y, const float* x, int fault) {
  if (fault == 0) async_copy<0><<<1, 32>>>(y, x);
  if (fault == 1) async_copy<1><<<1, 32>>>(y, x);
  if (fault == 2) async_copy<2><<<1, 32>>>(y, x);
  if (fault == 3) async_copy<3><<<1, 32>>>(y, x);
}
void run_async_source(int* y, int* x, int fault) {
  if (fault == 0) async_source<0><<<1, 64>>>(y, x);
  if (fault == 1) async_source<1><<<1, 64>>>(y, x);
  if (fault == 2) async_source<2><<<1, 64>>>(y, x);
}
void run_global_race(int* y, int right) { right ? global_race<true><<<1, 64>>>(y) : global_race<false><<<1, 64>>>(y); }
void run_all_read_one_writes(int* y, int blocks, int barrier) {
  barrier ? all_read_one_writes<true><<<blocks, 128>>>(y) : all_read_one_writes<false><<<blocks, 128>>>(y);
}
void run_blocks_write_the_same(int* y) { blocks_write_the_same<<<2, 32>>>(y); }
void run_last_block_adds(int* y, int* parts, unsigned* arrived, int fault) {
  if (fault == 0) last_block_adds<0><<<8, 32>>>(y, parts, arrived);
  if (fault == 1) last_block_adds<1><<<8, 32>>>(y, parts, arrived);
  if (fault == 2) last_block_adds<2><<<8, 32>>>(y, parts, arrived);
  if (fault == 3) last_block_adds<3><<<8, 32>>>(y, parts, arrived);
}
void run_array_of_function(int* y, int call, int threads) {
  const auto kernel = threads == 32 ? call ? array_of_function<32, true> : array_of_function<32, false>
                      : call        ? array_of_function<64, true>
                                    : array_of_function<64, false>;
  cudaFuncAttributes attributes;
  cudaFuncGetAttributes(&attributes, kernel);
  kernel<<<1, threads>>>(y);
  cudaMemcpy(y + threads, &attributes.sharedSizeBytes, sizeof(int), cudaMemcpyHostToDevice);
}
void run_last_warp_races(int* y, int threads) { last_warp_races<<<1, 1024>>>(y, threads); }
void run_flag(int* y, int right) { right ? flag<true><<<1, 64>>>(y) : flag<false><<<1, 64>>>(y); }
void run_volatile_flag(int* y, int* ready) { volatile_flag<<<1, 64>>>(y, ready); }
void run_read_only_of_own(int* y) { read_only_of_own<<<1, 32>>>(y); }
void run_spins(int* y) { spins<<<1, 1>>>(y); }
void run_waits_for_the_next_block(int* y) { waits_for_the_next_block<<<2, 256>>>(y); }
void run_spins_on_a_load(int* y) { spins_on_a_load<<<1, 1>>>(y); }
void run_reads_variables(int* y, int n) { reads_variables<<<1, 64>>>(y, n); }
void run_votes(int* y, int limit) { votes<<<1, 32>>>(y, limit); }
void run_two_places_of_one_barrier(int* y) { two_places_of_one_barrier<<<1, 32>>>(y); }
void run_traps(int* y) { traps<<<1, 1>>>(y); }
void run_all_threads(int* y, int blocks, int threads, int shared) { all_threads<<<blocks, threads, shared>>>(y); }
void run_at_most_64(int* y, int threads) { at_most_64<<<1, threads>>>(y); }
int allow_shared(int bytes) { return cudaFuncSetAttribute(all_threads, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); }
void run_shared_stride(int* y, int stride) { shared_stride<<<1, 32>>>(y, stride); }
void run_shared_wide(float4* y) { shared_wide<<<1, 64>>>(y); }
void run_copy_with_tail(float* y, const float* x, int tail) { copy_with_tail<<<1, 32>>>(y, x, tail); }
void run_global_stride(float* y, const float* x, int stride) { global_stride<<<1, 32>>>(y, x, stride); }

// y = x, captured once and replayed twice with other contents of x. Returns the first error.
int run_graph(int* y, int* x, int n, int* nodes) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  copy_ints<<<1, n, 0, stream>>>(y, x, n);
  cudaMemcpyAsync(x, y + n, n * sizeof(int), cudaMemcpyDeviceToDevice, stream);
  cudaError_t error = cudaStreamEndCapture(stream, &graph);
  if (error != cudaSuccess) return error;
  size_t count = 0;
  cudaGraphGetNodes(graph, nullptr, &count);
  *nodes = static_cast<int>(count);
  error = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  for (int i = 0; i < 2 && error == cudaSuccess; ++i) error = cudaGraphLaunch(executable, stream);
  cudaStreamSynchronize(stream);
  cudaGraphExecDestroy(executable);
  cudaStreamDestroy(stream);
  return error;
}

// Allocates from a pool that keeps all, frees, allocates so much, and then more, before and after the pool is trimmed: the errors
// of those two, in thousands the second.
int run_idle_pool(int first, int same, int more) {
  cudaMemPool_t pool;
  cudaMemPoolProps properties{};
  cudaMemPoolCreate(&pool, &properties);
  uint64_t keep = UINT64_MAX;
  cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep);
  void* data = nullptr;
  for (const int bytes : {first, same}) {
    if (cudaMallocFromPoolAsync(&data, bytes, pool, nullptr) != cudaSuccess) return -1;
    cudaFreeAsync(data, nullptr);
  }
  cudaError_t errors[2];
  for (cudaError_t& error : errors) {
    error = cudaMallocFromPoolAsync(&data, more, pool, nullptr);
    cudaMemPoolTrimTo(pool, 0);
  }
  cudaFreeAsync(data, nullptr);
  cudaMemPoolDestroy(pool);
  cudaGetLastError();
  return errors[1] * 1000 + errors[0];
}

// What happens while a stream captures: the first error of that and, in thousands, of the capture's end.
int run_in_capture(int what, int mode) {
  cudaStream_t stream, other;
  cudaGraph_t graph;
  cudaEvent_t event;
  void* data = nullptr;
  const bool blocking = what == 7;
  cudaStreamCreateWithFlags(&stream, blocking ? cudaStreamDefault : cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
  cudaEventCreate(&event);
  if (what == 4) cudaEventRecord(event, other);
  cudaStreamBeginCapture(stream, static_cast<cudaStreamCaptureMode>(mode));
  const auto in_thread = [](auto call) {
    cudaError_t error = cudaSuccess;
    std::thread([&] { error = call(); }).join();
    return error;
  };
  const auto fork = [&](bool joins) {
    cudaEventRecord(event, stream);
    cudaStreamWaitEvent(other, event, 0);
    copy_ints<<<1, 1, 0, other>>>(nullptr, nullptr, 0);
    cudaEventRecord(event, other);
    if (joins) cudaStreamWaitEvent(stream, event, 0);
    return cudaGetLastError();
  };
  cudaError_t error = cudaSuccess;
  switch (what) {
    case 0:
      error = cudaMalloc(&data, 16);
      break;
    case 1:
      error = cudaStreamSynchronize(stream);
      break;
    case 2:
      error = cudaDeviceSynchronize();
      break;
    case 3:
      cudaEventRecord(event, stream);
      error = cudaEventSynchronize(event);
      break;
    case 4:
      error = cudaStreamWaitEvent(stream, event, 0);
      break;
    case 5:
      error = fork(false);
      break;
    case 6:
      error = fork(true);
      break;
    case 7:
      error = cudaStreamSynchronize(nullptr);
      break;
    case 8:
      error = cudaMallocAsync(&data, 16, stream);
      break;
    case 9:
      error = cudaMemcpy(nullptr, nullptr, 0, cudaMemcpyHostToDevice);
      break;
    case 10:
      error = in_thread([&] { return cudaStreamEndCapture(stream, &graph); });
      break;
    case 11:
      error = in_thread([&] { return cudaMalloc(&data, 16); });
      break;
    case 12:
      error = cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
      break;
  }
  cudaStreamCaptureStatus status;
  cudaStreamIsCapturing(stream, &status);
  const cudaError_t end = status == cudaStreamCaptureStatusNone ? cudaSuccess : cudaStreamEndCapture(stream, &graph);
  if (data && what != 8) cudaFree(data);
  cudaEventDestroy(event);
  cudaStreamDestroy(other);
  cudaStreamDestroy(stream);
  cudaGetLastError();
  return end * 1000 + error;
}
}

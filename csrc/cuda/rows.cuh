// What kernels over rows share: where a row is, which threads hold it, how they read, reduce and write it.
//
// A row is cut into chunks of 16 bytes, which is what a thread moves at once. A team of blockDim.x threads holds a row: thread t
// has chunks t, t + blockDim.x, t + 2 blockDim.x ... until it writes them, so that a row is read once and written once: in
// registers where chunks are aligned (HeldRow), else, or if it is long, in shared memory (SharedRow, AheadRow). A team is either
// a power of two of lanes within a warp, or a number of warps; threadIdx.y counts the teams of a block. plan_rows chooses by the
// length of a row alone, so a row's sums come out the same to the bit in any batch, and at any strides if it is no longer than
// kMostShared.
#pragma once
#include <stdint.h>

#include "cuda/intrinsics.cuh"
#include "cuda/launch.cuh"

namespace qkv::cuda {

// ---- on the host: how a row is spread over threads ----------------------------------------------------------------------------

template <class T>
constexpr int kLanes = 16 / sizeof(T);  // elements of a chunk

// Of a team whose threads have kChunks chunks each.
constexpr int kMostThreads = 512;

// Of a thread. Rows that are too long for the first take the second; those that are too long for both go in pieces of the first.
constexpr int kHeldChunks = 4, kAheadChunks = 16;

constexpr int64_t kMostShared = 96 * 1024;  // bytes of a SharedRow; longer ones go in pieces too

struct RowPlan {
  int chunks;   // of a thread: kHeldChunks or kAheadChunks; 0: in pieces
  int threads;  // of a team
  int teams;    // of a block
  unsigned blocks(int64_t rows) const { return static_cast<unsigned>((rows + teams - 1) / teams); }
  dim3 block() const { return dim3(static_cast<unsigned>(threads), static_cast<unsigned>(teams)); }
};

// To keep many bytes in flight, 64 KB an SM and more.
template <class T>
RowPlan plan_rows(int64_t n) {
  const int64_t chunks = (n + kLanes<T> - 1) / kLanes<T>;
  if (chunks > kAheadChunks * kMostThreads) return {0, kMostThreads, 1};
  const int each = chunks <= kHeldChunks * kMostThreads ? kHeldChunks : kAheadChunks;
  int threads = static_cast<int>((chunks + each - 1) / each);
  if (threads > 32)
    threads = (threads + 31) / 32 * 32;
  else
    while (threads & (threads - 1)) ++threads;
  return {each, threads, threads > 256 / 2 ? 1 : 256 / threads};
}

// 16 bytes each: the distance between the SharedRows of a block.
template <class T>
__host__ __device__ int shared_pitch(int64_t n) {
  return static_cast<int>((n + kLanes<T> - 1) / kLanes<T>);
}
template <class T>
size_t shared_bytes(const RowPlan& plan, int64_t n) {
  return 16 * static_cast<size_t>(plan.teams) * static_cast<size_t>(shared_pitch<T>(n));
}

// Of AheadRow: the shared memory of a block, or 0 where a block may not have that much.
inline size_t ahead_bytes(const RowPlan& plan) {
  const size_t bytes = 16 * kAheadChunks * static_cast<size_t>(plan.threads);
  return bytes + kStaticShared <= static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) ? bytes : 0;
}
inline unsigned blocks_ahead(const RowPlan& plan, int64_t rows) {
  const int64_t most = device_attribute(cudaDevAttrMultiProcessorCount) * (kMostThreads / plan.threads);
  return static_cast<unsigned>(rows < most ? rows : most);
}

// Whether every row of x is made of whole, aligned chunks.
inline bool in_chunks(const Rows& x) {
  const int64_t lanes = 16 / size_of(x.dtype);
  if (reinterpret_cast<uintptr_t>(x.data) % 16 != 0 || x.step != 1 || x.n % lanes != 0) return false;
  for (int d = 0; d < x.rank; ++d)
    if (x.strides[d] % lanes != 0) return false;
  return true;
}

// ---- where a row is -----------------------------------------------------------------------------------------------------------

// core/tensor.h's row_offset.
QKV_DEVICE int64_t offset_of(const Rows& x, int64_t r) {
  if (x.rank == 0) return 0;
  int64_t offset = 0;
#pragma unroll 1
  for (int d = x.rank - 1; d > 0; --d) {
    const int64_t next = r / x.shape[d];
    offset += (r - next * x.shape[d]) * x.strides[d];
    r = next;
  }
  return offset + r * x.strides[0];
}

template <class T>
QKV_DEVICE T* row_of(const Rows& x, int64_t r) {
  return reinterpret_cast<T*>(x.data) + offset_of(x, r);
}

// The team's row; may lie beyond the last one.
QKV_DEVICE int64_t team_row() { return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; }

// ---- chunks as floats ---------------------------------------------------------------------------------------------------------

template <class T>
QKV_DEVICE void unpack(const uint4& chunk, float (&x)[kLanes<T>]) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kIs16Bit<T>) {
      const float2 pair = unpack2<T>(words[i]);
      x[2 * i] = pair.x;
      x[2 * i + 1] = pair.y;
    } else {
      x[i] = __uint_as_float(words[i]);
    }
  }
}

template <class T>
QKV_DEVICE uint4 pack(const float (&x)[kLanes<T>]) {
  if constexpr (kIs16Bit<T>)
    return make_uint4(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7]));
  else
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
}

// Added as a tree: shorter chains, smaller errors.
template <int kCount>
QKV_DEVICE float sum_of(const float (&x)[kCount]) {
  const float low = (x[0] + x[1]) + (x[2] + x[3]);
  if constexpr (kCount == 4)
    return low;
  else
    return low + ((x[4] + x[5]) + (x[6] + x[7]));
}

// ---- a team's row -------------------------------------------------------------------------------------------------------------
//
// each(f) calls f(const float (&x)[kLanes<T>], int at) for each of this thread's chunks: x[j] is element at + j kStride of the
// row or piece; change(f) lets f change x. Elements beyond the row's n are the `pad` of load().

QKV_DEVICE uint4* shared_chunks() {
  extern __shared__ uint4 chunks[];
  return chunks;
}

template <class T>
struct HeldRow {
  static constexpr int kStride = 1;
  static constexpr bool kVectors = true;  // all of a chunk is within the row, or nothing
  uint4 chunk[kHeldChunks];

  static QKV_DEVICE int place(int i) { return (i * blockDim.x + threadIdx.x) * kLanes<T>; }

  // kRead: nobody writes the row while the kernel runs.
  template <bool kRead = true>
  QKV_DEVICE void load(const T* row, int n, float pad) {
    float padding[kLanes<T>];
#pragma unroll
    for (float& e : padding) e = pad;
#pragma unroll
    for (int i = 0; i < kHeldChunks; ++i) {
      chunk[i] = pack<T>(padding);
      if (place(i) < n) chunk[i] = kRead ? load16_streaming(row + place(i)) : load16(row + place(i));
    }
  }
  QKV_DEVICE void store(T* row, int n) const {
#pragma unroll
    for (int i = 0; i < kHeldChunks; ++i)
      if (place(i) < n) store16(row + place(i), chunk[i]);
  }
  template <class F>
  QKV_DEVICE void each(F&& f) {
    visit<false>(f);
  }
  template <class F>
  QKV_DEVICE void change(F&& f) {
    visit<true>(f);
  }

 private:
  template <bool kWrite, class F>
  QKV_DEVICE void visit(F& f) {
    // Hides from the compiler that the registers hold what they held, so that it unpacks them again rather than keep all floats
    // of a row, for which there is no room.
#pragma unroll
    for (uint4& c : chunk) asm volatile("" : "+r"(c.x), "+r"(c.y), "+r"(c.z), "+r"(c.w));
#pragma unroll
    for (int i = 0; i < kHeldChunks; ++i) {
      float x[kLanes<T>];
      unpack<T>(chunk[i], x);
      f(x, place(i));
      if constexpr (kWrite) chunk[i] = pack<T>(x);
    }
  }
};

// Blocks of kMostThreads with a HeldRow each that an SM has registers for.
template <class T>
constexpr int kHeldBlocks = kIs16Bit<T> ? 2 : 3;

// Barrier of a team.
QKV_DEVICE void team_sync() {
  if (blockDim.x <= 32)
    __syncwarp();
  else
    named_barrier_sync(1 + threadIdx.y, blockDim.x);
}

// Only read by chunks: in what needs no sums, neighbouring threads have neighbours.
template <class T>
struct SharedRow {
  static constexpr int kStride = 1;
  static constexpr bool kVectors = false;
  T* const row;  // in shared memory, aligned to 16 bytes
  const int n;

  // element(i): number i of the row.
  template <class Element>
  QKV_DEVICE void load(float pad, Element&& element) const {
    const int padded = shared_pitch<T>(n) * kLanes<T>;
#pragma unroll 8
    for (int i = threadIdx.x; i < padded; i += blockDim.x) row[i] = i < n ? element(i) : from_float<T>(pad);
    team_sync();
  }
  // finish(x, i): what becomes of x, which is element i.
  template <class Finish>
  QKV_DEVICE void store(T* to, int64_t step, Finish&& finish) const {
#pragma unroll 4
    for (int i = threadIdx.x; i < n; i += blockDim.x) to[i * step] = finish(row[i], i);
  }
  template <class F>
  QKV_DEVICE void each(F&& f) const {
    for (int at = threadIdx.x * kLanes<T>; at < n; at += blockDim.x * kLanes<T>) {
      float x[kLanes<T>];
      unpack<T>(load16(row + at), x);
      f(x, at);
    }
  }
};

// A row in shared memory, each thread's chunks in places of its own, while its next row is on its way to registers: of long rows
// an SM has room for so few that otherwise all would wait for memory together, and then all compute.
template <class T>
struct AheadRow {
  static constexpr int kStride = 1;
  static constexpr bool kVectors = true;
  const int n;
  uint4 next[kAheadChunks];

  QKV_DEVICE explicit AheadRow(int n) : n(n) {}
  QKV_DEVICE int place(int i) const { return (i * blockDim.x + threadIdx.x) * kLanes<T>; }
  QKV_DEVICE uint4& chunk(int i) const { return shared_chunks()[i * blockDim.x + threadIdx.x]; }

  QKV_DEVICE void fetch(const T* row) {
    const T* from = row + place(0);
#pragma unroll
    for (int i = 0; i < kAheadChunks; ++i, from += blockDim.x * kLanes<T>)
      if (place(i) < n) next[i] = load16_streaming(from);
  }
  QKV_DEVICE void take() {
#pragma unroll
    for (int i = 0; i < kAheadChunks; ++i)
      if (place(i) < n) chunk(i) = next[i];
  }
  template <class F>
  QKV_DEVICE void each(F&& f) const {
#pragma unroll 2
    for (int i = 0; place(i) < n; ++i) {
      float x[kLanes<T>];
      unpack<T>(chunk(i), x);
      f(x, place(i));
    }
  }
  // What f makes of each chunk goes to `to`.
  template <class F>
  QKV_DEVICE void store(T* to, F&& f) const {
#pragma unroll 1
    for (int i = 0; place(i) < n; ++i) {
      float x[kLanes<T>];
      unpack<T>(chunk(i), x);
      f(x, place(i));
      store16(to + place(i), pack<T>(x));
    }
  }
};

// A piece of a long row, in registers. Where chunks are not aligned they are made of elements that lie kMostThreads apart, so
// that neighbouring threads read neighbours.
template <class T, bool kVectors>
struct Piece : HeldRow<T> {
  static constexpr int64_t kLength = kHeldChunks * kMostThreads * kLanes<T>;
  template <bool kRead = true>
  QKV_DEVICE void load(const T* row, int64_t, int n, float pad) {
    HeldRow<T>::template load<kRead>(row, n, pad);
  }
  QKV_DEVICE void store(T* row, int64_t, int n) const { HeldRow<T>::store(row, n); }
};

template <class T>
struct Piece<T, false> {
  static constexpr int64_t kLength = kHeldChunks * kMostThreads * kLanes<T>;
  static constexpr int kStride = kMostThreads;
  static constexpr bool kVectors = false;
  float chunk[kHeldChunks][kLanes<T>];

  static QKV_DEVICE int place(int i, int j) { return (i * kLanes<T> + j) * kStride + threadIdx.x; }

  template <bool kRead = true>
  QKV_DEVICE void load(const T* row, int64_t step, int n, float pad) {
#pragma unroll
    for (int i = 0; i < kHeldChunks; ++i)
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) chunk[i][j] = place(i, j) < n ? to_float(row[place(i, j) * step]) : pad;
  }
  QKV_DEVICE void store(T* row, int64_t step, int n) const {
#pragma unroll
    for (int i = 0; i < kHeldChunks; ++i)
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j)
        if (place(i, j) < n) row[place(i, j) * step] = from_float<T>(chunk[i][j]);
  }
  template <class F>
  QKV_DEVICE void each(F&& f) {
#pragma unroll
    for (int i = 0; i < kHeldChunks; ++i) f(chunk[i], place(i, 0));
  }
  template <class F>
  QKV_DEVICE void change(F&& f) {
    each(f);
  }
};

// ---- a team's reductions ------------------------------------------------------------------------------------------------------

struct Add {
  template <class V>
  static QKV_DEVICE V neutral() {
    return 0;
  }
  template <class V>
  QKV_DEVICE V operator()(V a, V b) const {
    return a + b;
  }
};

// A NaN only if both are.
struct Max {
  template <class V>
  static QKV_DEVICE V neutral() {
    return -__int_as_float(0x7F800000);
  }
  QKV_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

constexpr int kMostTeams = 4;  // of several warps, in a block
template <class V, int kCount>
using Scratch = V[kMostTeams][kCount][kMostThreads / 32];  // a value of each warp

// Each of x over the team; every thread gets the results, the same to the bit. scratch: shared memory for this call alone.
template <class Combine, class V, int kCount>
QKV_DEVICE void reduce(V (&x)[kCount], Scratch<V, kCount>& scratch) {
  const Combine combine;
  const auto over_lanes = [&](int width) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2)
      if (step < width)
#pragma unroll
        for (int k = 0; k < kCount; ++k) x[k] = combine(x[k], __shfl_xor_sync(kFullWarp, x[k], step));
  };
  over_lanes(blockDim.x);
  if (blockDim.x <= 32) return;
  constexpr unsigned kMostWarps = kMostThreads / 32;
  const unsigned warp = threadIdx.x / 32, other = threadIdx.x % kMostWarps;
  auto& of_team = scratch[threadIdx.y];
#pragma unroll
  for (int k = 0; k < kCount; ++k)
    if (threadIdx.x % 32 == 0) of_team[k][warp] = x[k];
  team_sync();
#pragma unroll
  for (int k = 0; k < kCount; ++k) x[k] = other < blockDim.x / 32 ? of_team[k][other] : Combine::template neutral<V>();
  over_lanes(kMostWarps);
}

}  // namespace qkv::cuda

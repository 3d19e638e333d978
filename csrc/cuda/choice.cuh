// What choosing among the elements of a row shares: an order of floats as integers, reading rows of any alignment, and finding
// and sorting the largest.
//
// The order is total: by value, of equal ones the first in the row is larger, and NaN are smaller than any number. As an integer
// of 64 bits: the value's order above the place, inverted. Since no two keys of a row are equal, a result does not depend on the
// order in which threads get there.
#pragma once
#include <math.h>

#include "cuda/rows.cuh"

namespace qkv::cuda {

// More for a larger number, and never 0; -0 is +0.
QKV_DEVICE uint32_t ordered_number(float x) {
  const int bits = __float_as_int(x + 0.0f);
  return static_cast<uint32_t>(bits ^ (bits >> 31 | static_cast<int>(0x80000000u)));
}
// 0 for NaN.
QKV_DEVICE uint32_t ordered(float x) { return x != x ? 0 : ordered_number(x); }
QKV_DEVICE float from_ordered(uint32_t key) {
  return __int_as_float(static_cast<int>(key) ^ (~(static_cast<int>(key) >> 31) | static_cast<int>(0x80000000u)));
}

QKV_DEVICE uint64_t key_of(uint32_t order, int64_t place) {
  return static_cast<uint64_t>(order) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(place));
}
QKV_DEVICE int64_t place_of(uint64_t key) { return 0xFFFFFFFFu - static_cast<uint32_t>(key); }

constexpr int64_t kLongestRow = 0x7FFFFFFF;  // places must fit a key

// A row as chunks of 16 bytes that are aligned, whatever the row is: the first may begin before it, the last end behind it.
template <class T>
struct Chunks {
  const T* row;
  int64_t n;
  int lead;  // elements of the first chunk before the row

  QKV_DEVICE Chunks(const T* row, int64_t n)
      : row(row), n(n), lead(static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T))) {}
  QKV_DEVICE int64_t count() const { return (lead + n + kLanes<T> - 1) / kLanes<T>; }
  QKV_DEVICE int64_t place(int64_t chunk) const { return chunk * kLanes<T> - lead; }  // of its first element

  // Elements that are not of the row are `beyond`; NaN is smaller than all.
  template <bool kAgain = false>
  QKV_DEVICE uint4 load(int64_t chunk, float beyond = NAN) const {
    const int64_t at = place(chunk);
    if (at >= 0 && at + kLanes<T> <= n) return kAgain ? load16(row + at) : load16_streaming(row + at);
    float x[kLanes<T>];
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) x[j] = at + j >= 0 && at + j < n ? to_float(row[at + j]) : beyond;
    return pack<T>(x);
  }
  QKV_DEVICE bool has(int64_t at) const { return at >= 0 && at < n; }
};

// f(x, place) for the chunks first, first + step ... before end, kUnroll of them in flight; what is not of the row is NaN.
template <bool kAgain, int kUnroll, class T, class F>
QKV_DEVICE void each_chunk(const Chunks<T>& row, int64_t first, int64_t end, int step, F&& f) {
  for (int64_t i = first; i < end; i += kUnroll * step) {
    uint4 raw[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (i + u * step < end) raw[u] = row.template load<kAgain>(i + u * step);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (i + u * step < end) {
        float x[kLanes<T>];
        unpack<T>(raw[u], x);
        f(x, row.place(i + u * step));
      }
  }
}

// ---- a block's digit by digit search -----------------------------------------------------------------------------------------

constexpr int kBins = 256;

// In which bin of a histogram, from the largest down, the number `need` lies (1 ... the sum), and how many are above that bin.
struct Bin {
  uint32_t bin, above, count, unused;  // 16 bytes, as they are read together
};

// By one warp; every lane gets the same. The histogram is aligned to 16 bytes.
QKV_DEVICE Bin find_bin(const uint32_t (&histogram)[kBins], uint32_t need) {
  constexpr int kEach = kBins / 32;
  static_assert(kEach == 8);
  // A lane's eight lie side by side. Of each eight lanes, which read 16 bytes at once, half begin with the one half of theirs,
  // and half with the other: so all banks are read.
  const int lane = lane_id();
  const bool low_first = lane & 4;
  const uint4* const own = reinterpret_cast<const uint4*>(histogram + kBins - kEach * (lane + 1));
  const uint4 one = own[low_first ? 0 : 1], two = own[low_first ? 1 : 0];
  const uint4 low = low_first ? one : two, high = low_first ? two : one;
  const uint32_t counts[kEach] = {high.w, high.z, high.y, high.x, low.w, low.z, low.y, low.x};
  uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) mine += counts[i];
  const uint32_t up_to = up_to_lane(mine);
  const int holder = __ffs(__ballot_sync(kFullWarp, up_to >= need)) - 1;
  Bin found{static_cast<uint32_t>(kBins - 1 - kEach * lane), up_to - mine, counts[0], 0};
#pragma unroll
  for (int i = 1; i < kEach; ++i)
    if (found.above + found.count < need) {
      --found.bin;
      found.above += found.count;
      found.count = counts[i];
    }
  found.bin = __shfl_sync(kFullWarp, found.bin, holder);
  found.above = __shfl_sync(kFullWarp, found.above, holder);
  found.count = __shfl_sync(kFullWarp, found.count, holder);
  return found;
}

struct SelectScratch {
  alignas(16) uint32_t histogram[kBins];
  Bin bin;
};

// The threshold that exactly k of `count` keys, no two of which are equal, reach. key(i) is one of them.
template <class Key>
QKV_DEVICE uint64_t select_largest(int count, int k, SelectScratch& scratch, Key&& key) {
  if (k >= count) return 0;
  uint64_t prefix = 0;
  uint32_t need = k;
  for (int shift = 56;; shift -= 8) {
    for (int i = threadIdx.x; i < kBins; i += blockDim.x) scratch.histogram[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const uint64_t own = key(i);
      if (shift == 56 || own >> (shift + 8) == prefix >> (shift + 8))
        atomicAdd(&scratch.histogram[own >> shift & (kBins - 1)], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      const Bin found = find_bin(scratch.histogram, need);
      if (threadIdx.x == 0) scratch.bin = found;
    }
    __syncthreads();
    const Bin found = scratch.bin;
    prefix |= static_cast<uint64_t>(found.bin) << shift;
    need -= found.above;
    if (found.count == need || shift == 0) return prefix;
  }
}

// The bitonic merge of runs of `size` neighbours, alternately descending and ascending, from distances below 32 on: each lane has
// the key at its place i.
QKV_DEVICE uint64_t merged_by_lanes(uint64_t own, int i, int size) {
  for (int step = min(size / 2, 16); step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(kFullWarp, own, step);
    if ((own < other) == (((i & step) == 0) == ((i & size) == 0))) own = other;
  }
  return own;
}

// keys in shared memory, a power of two of them, in descending order; after a barrier, or where each thread has written
// keys[threadIdx.x + i * blockDim.x] itself, and with a barrier behind it. Near ones meet in registers, as lanes that skip every
// other key would meet in a bank.
QKV_DEVICE void sort_descending(uint64_t* keys, int count) {
  for (int size = 32;; size *= 2) {
    for (int step = size / 2; step >= 32; step /= 2) {
      for (int i = threadIdx.x; i < count / 2; i += blockDim.x) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const uint64_t a = keys[low], b = keys[high];
        if ((a < b) == ((low & size) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncthreads();
    }
    for (int i = threadIdx.x; i - lane_id() < count; i += blockDim.x) {
      uint64_t own = i < count ? keys[i] : 0;
      for (int run = size == 32 ? 2 : size; run <= size; run *= 2) own = merged_by_lanes(own, i, run);
      if (i < count) keys[i] = own;
    }
    __syncthreads();
    if (size >= count) return;
  }
}

}  // namespace qkv::cuda

// top_k: the k largest of each row in descending order, and where they stand (choice.cuh has the order).
//
// k = 1: parts of a row each find their largest, then one warp a row finds the largest of those. A few hundred: each segment of a
// row finds its own k largest in shared memory, then one block a row finds those among them, and sorts. More: all is sorted, in
// shared memory first, then by merging.
#include <algorithm>

#include "cuda/choice.cuh"

namespace qkv::cuda {
namespace {

// ---- the largest one

constexpr int kLargestThreads = 256, kLargestUnroll = 4;

QKV_DEVICE uint64_t warp_largest(uint64_t x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(kFullWarp, x, step));
  return x;
}

template <class T>
QKV_DEVICE void give(const TopKArgs& a, int64_t row, int64_t at, uint64_t key) {
  const int64_t place = place_of(key);
  a.places[row * a.k + at] = place;
  if (a.values) static_cast<T*>(a.values)[row * a.k + at] = static_cast<const T*>(a.x)[row * a.n + place];
}

// A block finds the largest of part blockIdx.x of row blockIdx.y.
template <class T>
__global__ void __launch_bounds__(kLargestThreads) largest_of_parts(const __grid_constant__ TopKArgs a, int64_t part) {
  begin_dependent();
  __shared__ uint64_t of_warps[kLargestThreads / 32];
  const int64_t row = blockIdx.y;
  const Chunks<T> chunks(static_cast<const T*>(a.x) + row * a.n, a.n);
  const int64_t first = blockIdx.x * part, end = min(first + part, chunks.count());
  // A thread looks at its places from the first to the last, so only what is larger counts.
  uint32_t best = 0;
  int64_t place = kLongestRow;
  each_chunk<false, kLargestUnroll>(chunks, first + threadIdx.x, end, kLargestThreads, [&](const auto& x, int64_t at) {
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {
      const uint32_t order = ordered(x[j]);
      if (order > best) {
        best = order;
        place = at + j;
      }
    }
  });
  // A row of NaN has its first element for its largest.
  uint64_t key = warp_largest(key_of(best, best == 0 ? 0 : place));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = key;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  key = warp_largest(threadIdx.x < kLargestThreads / 32 ? of_warps[threadIdx.x] : 0);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1)
    give<T>(a, row, 0, key);
  else
    static_cast<uint64_t*>(a.workspace)[row * gridDim.x + blockIdx.x] = key;
}

// A warp a row.
template <class T>
__global__ void __launch_bounds__(128) largest_of_rows(const __grid_constant__ TopKArgs a, int parts) {
  begin_dependent();
  const int64_t row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= a.rows) return;
  uint64_t key = 0;
  for (int i = threadIdx.x % 32; i < parts; i += 32) key = max(key, static_cast<const uint64_t*>(a.workspace)[row * parts + i]);
  key = warp_largest(key);
  if (threadIdx.x % 32 == 0) give<T>(a, row, 0, key);
}

// Parts of a row for two blocks and more an SM, none of which has less than a few chunks a thread.
int parts_of(const TopKArgs& a) {
  const int64_t chunks = ceil_div<int64_t>(a.n * size_of(a.dtype), 16) + 1;
  const int64_t wanted = ceil_div<int64_t>(2 * device_attribute(cudaDevAttrMultiProcessorCount), a.rows);
  const int64_t most = ceil_div<int64_t>(chunks, kLargestThreads * kLargestUnroll);
  return static_cast<int>(wanted < most ? wanted : most);
}

// ---- a few

constexpr int kMostSelected = 1024, kSelectThreads = 512;
constexpr int64_t kSegment = 8192;

struct SelectShared {
  alignas(16) uint32_t order[kSegment + 8];  // as the segment's chunks are aligned: element i is at lead + i
  uint64_t sorted[kMostSelected];
  SelectScratch scratch;
  uint32_t count;
};

// The keys that reach the threshold, in any order.
template <class Key>
QKV_DEVICE void gather(SelectShared& s, int count, uint64_t threshold, Key&& key) {
  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    if (const uint64_t own = key(i); own >= threshold) s.sorted[atomicAdd(&s.count, 1u)] = own;
  __syncthreads();
}

template <class T>
QKV_DEVICE void sort_and_give(const TopKArgs& a, int64_t row, SelectShared& s) {
  const int k = static_cast<int>(a.k);
  int count = 1;
  while (count < k) count *= 2;
  for (int i = k + threadIdx.x; i < count; i += blockDim.x) s.sorted[i] = 0;
  __syncthreads();
  sort_descending(s.sorted, count);
  for (int i = threadIdx.x; i < k; i += blockDim.x) give<T>(a, row, i, s.sorted[i]);
}

// Segment blockIdx.x of row blockIdx.y: its k largest go to the workspace, or, if it is the whole row, sorted to the result.
template <class T>
__global__ void __launch_bounds__(kSelectThreads) select_of_segments(const __grid_constant__ TopKArgs a) {
  begin_dependent();
  SelectShared& s = *reinterpret_cast<SelectShared*>(shared_chunks());
  const int64_t row = blockIdx.y, first = blockIdx.x * kSegment;
  const int count = static_cast<int>(min(kSegment, a.n - first));
  const Chunks<T> chunks(static_cast<const T*>(a.x) + row * a.n + first, count);
  each_chunk<false, 4>(chunks, threadIdx.x, chunks.count(), kSelectThreads, [&](const auto& x, int64_t at) {
    uint4 order[kLanes<T> / 4];
#pragma unroll
    for (int i = 0; i < kLanes<T> / 4; ++i)
      order[i] = make_uint4(ordered(x[4 * i]), ordered(x[4 * i + 1]), ordered(x[4 * i + 2]), ordered(x[4 * i + 3]));
    uint32_t* const to = s.order + at + chunks.lead;
    if constexpr (kLanes<T> == 4) {
      store16(to, order[0]);
    } else {  // of eight lanes, which write at once, four begin with the second half: so all banks are written
      const bool second = lane_id() & 4;
      store16(to + (second ? 4 : 0), second ? order[1] : order[0]);
      store16(to + (second ? 0 : 4), second ? order[0] : order[1]);
    }
  });
  // The next barrier is the first of select_largest, or of gather where that needs to look at nothing.
  const auto key = [&](int i) { return key_of(s.order[chunks.lead + i], first + i); };
  gather(s, count, select_largest(count, static_cast<int>(a.k), s.scratch, key), key);
  if (gridDim.x == 1) return sort_and_give<T>(a, row, s);
  uint64_t* const to = static_cast<uint64_t*>(a.workspace) + (row * gridDim.x + blockIdx.x) * a.k;
  for (int i = threadIdx.x; i < a.k; i += blockDim.x) to[i] = i < s.count ? s.sorted[i] : 0;
}

// Of all segments of row blockIdx.x. A segment of less than k elements has zeros, which are smaller than any key and not needed.
template <class T>
__global__ void __launch_bounds__(kSelectThreads) select_of_rows(const __grid_constant__ TopKArgs a, int segments) {
  begin_dependent();
  SelectShared& s = *reinterpret_cast<SelectShared*>(shared_chunks());
  const int64_t row = blockIdx.x, each = segments * a.k;
  const uint64_t* const keys = static_cast<const uint64_t*>(a.workspace) + row * each;
  const int count = static_cast<int>(each);
  const auto key = [&](int i) { return keys[i]; };
  gather(s, count, select_largest(count, static_cast<int>(a.k), s.scratch, key), key);
  sort_and_give<T>(a, row, s);
}

// ---- many

constexpr int kSortThreads = 512, kSorted = 2048;

template <class T>
__global__ void __launch_bounds__(kSortThreads) sort_pieces(const __grid_constant__ TopKArgs a) {
  __shared__ uint64_t keys[kSorted];
  const int64_t row = blockIdx.y, first = static_cast<int64_t>(blockIdx.x) * kSorted;
  const T* const from = static_cast<const T*>(a.x) + row * a.n;
  for (int i = threadIdx.x; i < kSorted; i += kSortThreads)
    keys[i] = first + i < a.n ? key_of(ordered(to_float(from[first + i])), first + i) : 0;
  sort_descending(keys, kSorted);
  uint64_t* const to = static_cast<uint64_t*>(a.workspace) + row * a.n;
  for (int i = threadIdx.x; i < kSorted && first + i < a.n; i += kSortThreads) to[first + i] = keys[i];
}

// Each pair of sorted runs becomes one: an element's place among both is its own in its run, and how many of the other are
// larger.
__global__ void __launch_bounds__(256) merge_runs(const uint64_t* from, uint64_t* to, int64_t n, int64_t run) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, row = blockIdx.y * n;
  if (i >= n) return;
  const int64_t pair = i / (2 * run) * 2 * run, middle = min(pair + run, n), end = min(pair + 2 * run, n);
  const bool second = i >= middle;
  const int64_t other = second ? pair : middle, other_end = second ? middle : end;
  const uint64_t key = from[row + i];
  int64_t low = other, high = other_end;
  while (low < high) {
    const int64_t at = (low + high) / 2;
    if (from[row + at] > key)
      low = at + 1;
    else
      high = at;
  }
  to[row + pair + (i - (second ? middle : pair)) + (low - other)] = key;
}

template <class T>
__global__ void __launch_bounds__(256) give_sorted(const __grid_constant__ TopKArgs a, const uint64_t* from) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, row = blockIdx.y;
  if (i < a.k) give<T>(a, row, i, from[row * a.n + i]);
}

template <class T>
void sort_rows(const TopKArgs& a, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(a.rows);
  const auto blocks = [&](int64_t n, int64_t each) { return dim3(static_cast<unsigned>(ceil_div(n, each)), rows); };
  sort_pieces<T><<<blocks(a.n, kSorted), kSortThreads, 0, stream>>>(a);
  uint64_t *from = static_cast<uint64_t*>(a.workspace), *to = from + a.rows * a.n;
  for (int64_t run = kSorted; run < a.n; run *= 2) {
    merge_runs<<<blocks(a.n, 256), 256, 0, stream>>>(from, to, a.n, run);
    std::swap(from, to);
  }
  give_sorted<T><<<blocks(a.k, 256), 256, 0, stream>>>(a, from);
  check_launch("top_k");
}

constexpr int64_t kMostRows = 65535;  // of a grid's y

size_t workspace_of(const TopKArgs& a) {
  int64_t keys = 2 * a.n;
  if (a.k == 1) {
    const int parts = parts_of(a);
    keys = parts > 1 ? parts : 0;
  } else if (a.k <= kMostSelected) {
    keys = a.n > kSegment ? ceil_div(a.n, kSegment) * a.k : 0;
  }
  return static_cast<size_t>(8 * a.rows * keys);
}

template <class T>
void launch(const TopKArgs& a, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(a.rows);
  if (a.k == 1) {
    const int parts = parts_of(a);
    // Whole lines of 128 bytes, so that no two parts read the same sector.
    const int64_t each = ceil_div<int64_t>(ceil_div<int64_t>(a.n, kLanes<T>) + 1, 8 * parts) * 8;
    launch_dependent("top_k", largest_of_parts<T>, dim3(static_cast<unsigned>(parts), rows), kLargestThreads, 0, stream, a, each);
    if (parts > 1)
      launch_dependent("top_k", largest_of_rows<T>, static_cast<unsigned>(ceil_div<int64_t>(a.rows, 4)), 128, 0, stream, a,
                       parts);
  } else if (a.k <= kMostSelected) {
    const auto segments = static_cast<unsigned>(ceil_div(a.n, kSegment));
    allow_shared(select_of_segments<T>, sizeof(SelectShared), "top_k");
    launch_dependent("top_k", select_of_segments<T>, dim3(segments, rows), kSelectThreads, sizeof(SelectShared), stream, a);
    if (segments == 1) return;
    allow_shared(select_of_rows<T>, sizeof(SelectShared), "top_k");
    launch_dependent("top_k", select_of_rows<T>, rows, kSelectThreads, sizeof(SelectShared), stream, a,
                     static_cast<int>(segments));
  } else {
    sort_rows<T>(a, stream);
  }
}

// As many rows as a launch may have.
TopKArgs some_rows(const TopKArgs& a, int64_t first) {
  TopKArgs some = a;
  some.rows = std::min(kMostRows, a.rows - first);
  some.x = static_cast<const char*>(a.x) + first * a.n * size_of(a.dtype);
  if (a.values) some.values = static_cast<char*>(a.values) + first * a.k * size_of(a.dtype);
  some.places += first * a.k;
  return some;
}

}  // namespace

size_t top_k_workspace(const TopKArgs& a) {
  size_t bytes = 0;
  for (int64_t first = 0; first < a.rows; first += kMostRows) bytes = std::max(bytes, workspace_of(some_rows(a, first)));
  return bytes;
}

void top_k(const TopKArgs& a, Stream stream) {
  for (int64_t first = 0; first < a.rows; first += kMostRows)
    with_dtype(a.dtype, [&](auto t) { launch<decltype(t)>(some_rows(a, first), static_cast<cudaStream_t>(stream)); });
}

}  // namespace qkv::cuda

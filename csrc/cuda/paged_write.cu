// paged_write: new keys and values go to their slots in a paged cache, rounded to its dtype. int8, per token and head:
//
//   scale = max_i |x_i| / 127,  q_i = x_i / scale to the nearest even integer
//
// copy_blocks: what a sequence writes to and others have too becomes its own.
#include <algorithm>

#include "cuda/elementwise.cuh"
#include "cuda/ints.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = 256;

// ---- which token stays of those with one slot: the last one ---------------------------------------------------------------
//
// Of few tokens each looks through those after it. Of many, the number of the last one stands beside each slot, in the workspace.
constexpr int64_t kFewTokens = 1024;

__device__ bool in_cache(const PagedWriteArgs& a, int64_t slot) { return slot >= 0 && slot < a.blocks * a.block_size; }

__global__ void __launch_bounds__(kThreads) find_last(const __grid_constant__ PagedWriteArgs a, int* __restrict__ last) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (token >= a.tokens) return;
  const int64_t slot = read_int(a.slots, token);
  if (in_cache(a, slot)) atomicMax(last + slot, static_cast<int>(token));
}

// ---- rows: a head of a token's k or v --------------------------------------------------------------------------------------

// Elements that a thread moves at once: a piece, or one.
template <class From, class To, bool kVectors>
constexpr int kAtOnce = kVectors ? kPieceOf<From, To> : 1;

template <class T, int kCount>
QKV_DEVICE void read_floats(const T* from, float (&x)[kCount]) {
  if constexpr (kCount == 1)
    x[0] = to_float(*from);
  else
    unpack<T>(load_raw(reinterpret_cast<const RawPiece<T, kCount>*>(from)), x);
}

template <int kCount>
QKV_DEVICE void write_codes(int8_t* to, const float (&x)[kCount], float scale) {
  uint32_t words[(kCount + 3) / 4] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    // Where the scale is denormal, x / scale may exceed 127.
    const float code = fminf(fmaxf(rintf(__fdiv_rn(x[i], scale)), -127.0f), 127.0f);
    words[i / 4] |= (static_cast<uint32_t>(static_cast<int>(code)) & 255) << (8 * (i % 4));
  }
  if (!(scale > 0)) words[0] = words[(kCount + 3) / 4 - 1] = 0;
  if constexpr (kCount == 1)
    *to = static_cast<int8_t>(words[0]);
  else if constexpr (kCount == 4)
    *reinterpret_cast<uint32_t*>(to) = words[0];
  else
    *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
}

// A token's block; teams of `lanes` threads, a power of two up to 32, have a row each.
template <class From, class To, bool kVectors>
__global__ void __launch_bounds__(kThreads) write_tokens(const __grid_constant__ PagedWriteArgs a, const int* last, int lanes) {
  begin_dependent();
  constexpr int kCount = kAtOnce<From, To, kVectors>;
  const int64_t token = blockIdx.x, slot = read_int(a.slots, token);
  if (!in_cache(a, slot)) return;
  if (last) {
    if (last[slot] != token) return;
  } else if (!a.distinct) {
    bool later = false;
    for (int64_t i = token + 1 + threadIdx.x; i < a.tokens; i += kThreads) later = later || read_int(a.slots, i) == slot;
    if (__syncthreads_or(later)) return;
  }
  const int64_t block = slot / a.block_size, place = slot - block * a.block_size;
  const int lane = threadIdx.x & (lanes - 1), teams = kThreads / lanes;
  for (int64_t first = 0; first < 2 * a.heads; first += teams) {
    const int64_t row = first + threadIdx.x / lanes;
    const bool real = row < 2 * a.heads, of_v = row >= a.heads;
    const int64_t h = of_v ? row - a.heads : row, pieces = real ? (of_v ? a.dv : a.d) / kCount : 0;
    const Strided4 &x = of_v ? a.v : a.k, &cache = of_v ? a.v_cache : a.k_cache;
    const From* const from = reinterpret_cast<const From*>(x.data) + token * x.s + h * x.h;
    To* const to = reinterpret_cast<To*>(cache.data) + block * cache.b + place * cache.s + h * cache.h;
    const int64_t from_step = kVectors ? kCount : x.d, to_step = kVectors ? kCount : cache.d;
    if constexpr (std::is_same_v<To, int8_t>) {
      // Sizes in the order of their bits: a NaN is above infinity.
      uint32_t most = 0;
      const auto look = [&](const float (&values)[kCount]) {
#pragma unroll
        for (const float v : values) most = max(most, __float_as_uint(v) & 0x7FFFFFFFu);
      };
      float held[kCount] = {};  // of most rows all that there is
      if (lane < pieces) read_floats(from + lane * from_step, held);
      look(held);
      for (int64_t p = lane + lanes; p < pieces; p += lanes) {
        float more[kCount];
        read_floats(from + p * from_step, more);
        look(more);
      }
      for (int step = lanes / 2; step > 0; step /= 2) most = max(most, __shfl_xor_sync(kFullWarp, most, step));
      const float scale = most < 0x7F800000u ? __fdiv_rn(__uint_as_float(most), 127.0f) : __int_as_float(0x7FFFFFFF);
      if (lane < pieces) write_codes(to + lane * to_step, held, scale);
      for (int64_t p = lane + lanes; p < pieces; p += lanes) {
        float more[kCount];
        read_floats(from + p * from_step, more);
        write_codes(to + p * to_step, more, scale);
      }
      const Strided4& scales = of_v ? a.v_scale : a.k_scale;
      if (real && lane == 0) reinterpret_cast<float*>(scales.data)[block * scales.b + place * scales.s + h * scales.h] = scale;
    } else {
#pragma unroll 1
      for (int64_t p = lane; p < pieces; p += lanes) {  // __stwb: an ordinary store, which nvcc would take apart here
        if constexpr (!kVectors) {
          map_element(from, to, p * from_step, p * to_step, Same{});
        } else if constexpr (std::is_same_v<From, To>) {
          __stwb(reinterpret_cast<uint4*>(to + p * kCount), load16_streaming(from + p * kCount));
        } else {
          float values[kCount];
          read_floats(from + p * kCount, values);
          __stwb(reinterpret_cast<RawPiece<To, kCount>*>(to + p * kCount), pack_piece<To>(values));
        }
      }
    }
  }
}

// Whether rows of `width` lie in pieces of `count` elements, aligned to their size.
bool in_pieces(const Strided4& x, int64_t width, int64_t count, size_t item) {
  return width % count == 0 && (x.d == 1 || width == 0) && x.b % count == 0 && x.h % count == 0 && x.s % count == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % (static_cast<size_t>(count) * item) == 0;
}

template <class F>
void with_stored(Stored stored, F&& f) {
  switch (stored) {
    case Stored::f32:
      return f(float{});
    case Stored::f16:
      return f(__half{});
    case Stored::bf16:
      return f(__nv_bfloat16{});
    case Stored::int8:
      return f(int8_t{});
  }
}

// A block of threads an array and pair of blocks.
__global__ void __launch_bounds__(kThreads) copy_pairs(const __grid_constant__ CopyBlocksArgs a) {
  begin_dependent();
  const int64_t i = blockIdx.x / a.blocks, pair = blockIdx.x - i * a.blocks, bytes = a.copied[i];
  char* const array = static_cast<char*>(a.arrays[i]);
  const char* const from = array + a.from[pair] * a.block[i];
  char* const to = array + a.to[pair] * a.block[i];
  if ((reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) | static_cast<uintptr_t>(bytes)) % 16 != 0) {
    for (int64_t at = threadIdx.x; at < bytes; at += kThreads) to[at] = from[at];
    return;
  }
  constexpr int kInFlight = 4;
  for (int64_t first = threadIdx.x * 16; first < bytes; first += kInFlight * kThreads * 16) {
    uint4 moved[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j)
      if (first + j * kThreads * 16 < bytes) moved[j] = load16(from + first + j * kThreads * 16);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j)
      if (first + j * kThreads * 16 < bytes) store16(to + first + j * kThreads * 16, moved[j]);
  }
}

}  // namespace

size_t paged_write_workspace(const PagedWriteArgs& a) {
  return a.distinct || a.tokens <= kFewTokens ? 0 : static_cast<size_t>(a.blocks * a.block_size) * sizeof(int);
}

void paged_write(const PagedWriteArgs& a, Stream stream_in) {
  if (a.tokens == 0 || a.heads == 0 || a.blocks * a.block_size == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_in);
  int* const last = paged_write_workspace(a) > 0 ? static_cast<int*>(a.workspace) : nullptr;
  if (last) {
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(a.tokens, kThreads));
    check(cudaMemsetAsync(last, 0xFF, paged_write_workspace(a), stream), "paged_write");  // -1
    find_last<<<blocks, kThreads, 0, stream>>>(a, last);
    check_launch("paged_write");
  }
  with_dtype(a.k.dtype, [&](auto x) {
    with_stored(a.stored, [&](auto y) {
      using From = decltype(x);
      using To = decltype(y);
      constexpr int kCount = kAtOnce<From, To, true>;
      const bool vectors = in_pieces(a.k, a.d, kCount, sizeof(From)) && in_pieces(a.v, a.dv, kCount, sizeof(From)) &&
                           in_pieces(a.k_cache, a.d, kCount, sizeof(To)) && in_pieces(a.v_cache, a.dv, kCount, sizeof(To));
      const int64_t pieces = std::max(a.d, a.dv) / (vectors ? kCount : 1);
      int lanes = 1;
      while (lanes < 32 && lanes < pieces) lanes *= 2;
      const auto kernel = vectors ? write_tokens<From, To, true> : write_tokens<From, To, false>;
      launch_dependent("paged_write", kernel, static_cast<unsigned>(a.tokens), kThreads, 0, stream, a, last, lanes);
    });
  });
}

void copy_blocks(const CopyBlocksArgs& a, Stream stream) {
  if (a.count * a.blocks == 0) return;
  launch_dependent("copy_blocks", copy_pairs, static_cast<unsigned>(a.count * a.blocks), kThreads, 0, stream, a);
}

}  // namespace qkv::cuda

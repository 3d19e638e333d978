// Tiles of keys and values from a paged cache into the shared memory of attention_mma.
//
// A tile's keys may lie in several blocks, which may be of any size. Some threads look up where each key lies, two tiles ahead,
// and leave it in shared memory; all copy by cp.async from there, one tile ahead. What is stored as another 16-bit type than T,
// or as 8 bits with scales, becomes T where it stands, when it is there.
#pragma once
#include "cuda/attention_paged.cuh"
#include "cuda/attention_tile.cuh"

namespace qkv::cuda {

// Where a key's numbers of the block's head lie from k's and v's beginning on, in bytes; or one of those below, which no offset
// is.
struct __align__(16) KeyPlace {
  int64_t k, v;
};
constexpr int64_t kNotSeen = INT64_MIN, kNoBlock = INT64_MIN + 1;

// How a block's threads bring keys and values of a paged cache into its stages.
template <class T, class Shape>
struct PagedKeys {
  static constexpr int kKeys = Shape::kKeys, kThreads = Shape::kThreads, kWidth = Shape::kWidth;
  static constexpr bool kHalf = std::is_same_v<T, __half>;
  using Loader = RowLoader<T, kWidth, kThreads>;

  // Thread r of the last kKeys, which are the last to have rows, looks up key r of a tile.
  QKV_DEVICE static int own_key() { return static_cast<int>(threadIdx.x) - (kThreads - kKeys); }
  QKV_DEVICE static KeyPlace* places(unsigned char* shared, int tile) {
    return reinterpret_cast<KeyPlace*>(shared + Shape::kPlaces) + (tile & 1) * kKeys;
  }
  QKV_DEVICE static float2* scales(unsigned char* shared, int tile) {
    return reinterpret_cast<float2*>(shared + Shape::kScales) + (tile & 1) * kKeys;
  }
  // Whether keys are stored as something that must become T once it is in shared memory: float32 does so on its way.
  QKV_DEVICE static bool converts(const Problem& p) {
    return p.a.stored == Stored::int8 || p.a.stored == (kHalf ? Stored::bf16 : Stored::f16);
  }

  QKV_DEVICE static bool looks(int tile, int first_key, int end_key) {
    const int key = tile * kKeys + own_key();
    return own_key() >= 0 && key >= first_key && key < end_key;
  }
  // Begins to read the table, and ends once the entry is there.
  QKV_DEVICE static int64_t begin_look_up(const Problem& p, const Entry& e, int tile, int first_key, int end_key) {
    return looks(tile, first_key, end_key) ? table_entry(p, e, tile * kKeys + own_key()) : 0;
  }
  QKV_DEVICE static void end_look_up(const Problem& p, const Work& w, unsigned char* shared, int tile, int first_key, int end_key,
                                     int64_t entry) {
    const int r = own_key();
    if (r < 0) return;
    KeyPlace place = {kNotSeen, kNotSeen};
    Place at = {-1, 0};
    if (looks(tile, first_key, end_key)) {
      at = place_of(p, w.e, tile * kKeys + r, entry);
      const int size = stored_size(p.a.stored);
      place = {kNoBlock, kNoBlock};
      if (at.block >= 0) place = {offset_of(p.a.k, w.kv_head, at) * size, offset_of(p.a.v, w.kv_head, at) * size};
    }
    places(shared, tile)[r] = place;
    if (p.a.stored != Stored::int8) return;
    float2* const scale = scales(shared, tile) + r;
    if (at.block < 0) {
      *scale = make_float2(place.k == kNoBlock ? kNaN : 0, 0);
      return;
    }
    cp_async<4>(&scale->x, reinterpret_cast<const float*>(p.a.k_scale.data) + offset_of(p.a.k_scale, w.kv_head, at));
    cp_async<4>(&scale->y, reinterpret_cast<const float*>(p.a.v_scale.data) + offset_of(p.a.v_scale, w.kv_head, at));
  }

  // In which half of a chunk's 16 bytes its eight of int8 stand: such that those of 16 threads fill all banks.
  QKV_DEVICE static int half() { return threadIdx.x & 8; }

  QKV_DEVICE static void store_floats(unsigned char* to, const float (&x)[8]) {
    store16(to, make_uint4(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7])));
  }

  // The thread's chunk of one row, as it is stored (float32: as T), which nothing waits for. NaN, in whatever type, for a key in
  // no block.
  template <bool kKey>
  QKV_DEVICE static void load_chunk(const Problem& p, const Loader& loader, unsigned char* to, const char* base, int64_t place,
                                    int width) {
    if (kKey && place == kNoBlock) return store16(to, make_uint4(~0u, ~0u, ~0u, ~0u));
    const bool there = place > kNoBlock;
    const int left = there ? width - loader.chunk * 8 : 0;  // numbers
    const char* const from = base + (there ? place : 0) + loader.chunk * 8 * stored_size(p.a.stored);
    if (p.a.stored == Stored::f32) {
      float x[8];
      if (p.aligned && left > 0) {
        const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w, x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = i < left ? reinterpret_cast<const float*>(from)[i] : 0;
      }
      store_floats(to, x);
    } else if (!p.aligned) {
      for (int i = 0; i < 8; ++i) {
        if (p.a.stored == Stored::int8)
          to[half() + i] = i < left ? from[i] : 0;
        else
          reinterpret_cast<uint16_t*>(to)[i] = i < left ? reinterpret_cast<const uint16_t*>(from)[i] : 0;
      }
    } else if (p.a.stored == Stored::int8) {
      cp_async<8>(to + half(), left > 0 ? from : base, left > 0 ? 8 : 0);
    } else {
      cp_async16(to, left > 0 ? from : base, left > 0 ? 16 : 0);
    }
  }
  QKV_DEVICE static void load_tile(const Problem& p, unsigned char* shared, int tile, int stage) {
    unsigned char* const to = shared + Shape::kStages + stage * (2 * Shape::kTile);
    const Loader loader(opaque(threadIdx.x));
    const KeyPlace* const at = places(shared, tile);
    const int d = static_cast<int>(p.a.d), dv = static_cast<int>(p.a.dv);
#pragma unroll
    for (int i = 0; i < kKeys; i += Loader::kStep) {
      const int row = loader.first_row + i;
      const KeyPlace place = at[row];
      unsigned char* const k = loader.place(to, row);
      load_chunk<true>(p, loader, k, p.a.k.data, place.k, d);
      load_chunk<false>(p, loader, k + Shape::kTile, p.a.v.data, place.v, dv);
    }
  }

  // Stored numbers to T where they stand. All threads, after a barrier and before one.
  QKV_DEVICE static void convert_tile(const Problem& p, unsigned char* shared, int tile, int stage) {
    unsigned char* const to = shared + Shape::kStages + stage * (2 * Shape::kTile);
    const Loader loader(opaque(threadIdx.x));
#pragma unroll 2
    for (int i = 0; i < 2 * kKeys; i += Loader::kStep) {
      const bool is_value = i >= kKeys;
      const int row = loader.first_row + (is_value ? i - kKeys : i);
      unsigned char* const chunk = loader.place(to, row) + (is_value ? Shape::kTile : 0);
      float x[8];
      if (p.a.stored == Stored::int8) {
        const float2 both = scales(shared, tile)[row];
        const float scale = is_value ? both.y : both.x;
        const uint2 raw = *reinterpret_cast<const uint2*>(chunk + half());
#pragma unroll
        for (int j = 0; j < 8; ++j)
          x[j] = __fmul_rn(static_cast<float>(static_cast<int8_t>((j < 4 ? raw.x : raw.y) >> (8 * (j % 4)))), scale);
      } else {
        const uint4 raw = load16(chunk);
        const uint32_t pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 two = unpack2<std::conditional_t<kHalf, __nv_bfloat16, __half>>(pairs[j]);
          x[2 * j] = two.x, x[2 * j + 1] = two.y;
        }
      }
      store_floats(chunk, x);
    }
  }
};

}  // namespace qkv::cuda

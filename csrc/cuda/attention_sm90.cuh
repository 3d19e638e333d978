// Attention of bfloat16 and float16 on Hopper, FlashAttention-3 style (Shah et al. 2024, arXiv:2407.08608).
//
// A block stays on its multiprocessor and takes one tile of rows after the other. One warp finds the tiles; one brings their keys
// and values by TMA into two rings; two or three warpgroups compute. A computing warpgroup has 64 rows and all keys of a tile: it
// orders q.k of the next tile of keys, then weights times values of this one, and turns the next scores into weights while the
// values are multiplied. Warpgroups take turns at ordering products (named barriers), so that one's exponentials fall into the
// time of the other's products. Weights stay in registers: they are the products' left operand. Keys come in falling order, since
// those that some rows do not see are usually the last.
//
// Not here, but in attention_mma.cuh and attention_simt.cuh: float32; heads wider than 256; rows whose addresses or lengths are
// not multiples of 16 bytes, and keys that repeat by a stride of 0, which TMA refuses; paged caches; results that may not depend
// on the batch. And, unless this path is asked for, few rows a key head and heads of up to 32, which are faster there.
#pragma once
#include "cuda/attention_score.cuh"
#include "cuda/attention_sm90_load.cuh"
#include "cuda/attention_softmax.cuh"
#include "cuda/attention_spoiled.cuh"
#include "cuda/tensor_map.h"

namespace qkv::cuda {

template <class Element, int kTiles, int kEach>
QKV_DEVICE auto flat(Element (&x)[1][kTiles][kEach]) -> Element (&)[kTiles * kEach] {
  return reinterpret_cast<Element(&)[kTiles * kEach]>(x);
}

template <class T, class Shape, bool kPlain>
struct HopperGroup {
  static constexpr int kWidth = Shape::kWidth, kKeys = Shape::kKeys, kColumns = kWidth / 8, kScoreTiles = kKeys / 8;
  using Scores = float[1][kScoreTiles][4];
  using Weights = uint32_t[kKeys / 16][4];
  using Sums = float[1][kColumns][4];

  const Problem& p;
  const Channels<Shape>& from;
  int group, warp_row;  // of the tile's rows, the first of the warp

  QKV_DEVICE HopperGroup(const Problem& p, const Channels<Shape>& from)
      : p(p), from(from), group(static_cast<int>(threadIdx.x) / 128), warp_row(static_cast<int>(threadIdx.x) / 32 * 16) {}

  QKV_DEVICE static Row row_at(const Problem& p, const Work& w, int r) {  // rows past the last are its copies
    return row_of(p, w.e, w.kv_head, w.row0 + min(r, w.rows - 1));
  }

  // ---- queries, by ordinary copies: rows of a tile are those of a key head's queries and heads in turn, which are no box

  // The warp's 16 rows begin to come.
  QKV_DEVICE void load_queries(const Work& w) const {
    constexpr int kChunks = Shape::kMatrices * 8;
    const int d = static_cast<int>(p.a.d);
#pragma unroll
    for (int i = 0; i < 16 * kChunks / 32; ++i) {
      const int at = 32 * i + lane_id(), row = at / kChunks, chunk = at % kChunks, r = warp_row + row;
      const T* const source = query_row<T>(p, w.e, row_at(p, w, r)) + chunk * 8;
      const uint32_t to =
          from.base + group * Shape::kQueries + chunk / 8 * Shape::kQueryMatrix + r % 64 * kMatrixRow + ((chunk ^ r) % 8) * 16;
      cp_async16(to, source, chunk * 8 < d ? 16 : 0);
    }
    cp_async_commit();
  }
  QKV_DEVICE void wait_for_queries() const {
    cp_async_wait<0>();
    fence_async_shared();
    wait_for_group();
  }
  QKV_DEVICE void wait_for_group() const { named_barrier_sync(1 + Shape::kGroups + group, 128); }

  // ---- turns: barrier 1 + g is that of warpgroup g's turn

  QKV_DEVICE void wait_for_turn() const {
    if constexpr (Shape::kTurns) named_barrier_sync(1 + group, 256);
  }
  QKV_DEVICE void end_turn() const {
    if constexpr (Shape::kTurns) named_barrier_arrive(1 + (group + 1 == Shape::kGroups ? 0 : group + 1), 256);
  }

  // ---- products

  QKV_DEVICE void multiply_keys(int stage, Scores& s) const {
    const uint64_t q = wgmma_k_major(from.base + opaque(group) * Shape::kQueries);  // in the loop: it has no registers to spare
    const uint64_t k = wgmma_k_major(from.base + Shape::kKeysAt + stage * Shape::kTile);
#pragma unroll
    for (int i = 0; i < kWidth / 16; ++i)
      wgmma<T, kKeys>(flat(s), q + (i / 4 * Shape::kQueryMatrix + i % 4 * 32) / 16,
                      k + (i / 4 * Shape::kKeyMatrix + i % 4 * 32) / 16, i > 0);
    wgmma_commit();
  }
  QKV_DEVICE void multiply_values(int stage, const Weights& weights, Sums& sums) const {
    const uint64_t v = wgmma_mn_major(from.base + Shape::kValuesAt + stage * Shape::kTile, Shape::kKeyMatrix);
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) wgmma<T, kWidth, true>(flat(sums), weights[i], v + i * (16 * kMatrixRow / 16), 1);
    wgmma_commit();
  }
  QKV_DEVICE static void release(const Ring<2>& ring, const RingPlace<2>& at) {
    if (lane_id() == 0) ring.release(at);
  }

  // ---- scores

  QKV_DEVICE Row* rows() const { return reinterpret_cast<Row*>(from.shared + Shape::kRowsAt) + warp_row; }

  // Excludes what a row does not see, and adds what stands beside q.k.
  QKV_DEVICE void exclude(const Work& w, int tile, Scores& s) const {
    const Row* const rows = this->rows();
    const int key0 = tile * kKeys, key = key0 + 2 * (lane_id() % 4);
    if (kPlain && key0 >= rows[15].first && key0 + kKeys <= rows[0].last) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Row row = rows[lane_id() / 4 + 8 * h];
      if constexpr (kPlain) {
        const unsigned seen = row.last - row.first;
        each_score(s[0], h, [&](float& x, int j) {
          if (static_cast<unsigned>(key + j - row.first) >= seen) x = kMinusInfinity;
        });
      } else {
        adjust_scores(p, w.e, row, key, s[0], h);
      }
    }
  }
  QKV_DEVICE static void round(const Scores& s, Weights& weights) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weights[k][i] = pack2<T>(s[0][2 * k + i / 2][2 * (i % 2)], s[0][2 * k + i / 2][2 * (i % 2) + 1]);
  }

  // 0, but only the totals say so. ptxas would move all of the softmax behind the wait for the values of the tile before, where
  // there is nothing left to hide it; what another wait's address depends on stays in front of that.
  QKV_DEVICE static uint32_t softmax_is_over(const RunningSoftmax<1>& softmax) {
    return softmax.total[0][0] < 0 || softmax.total[0][1] < 0;
  }

  // ---- the end of a tile of rows

  // Four lanes have a row's columns 8 c + 2 lane and + 1 of c = 0 ... 3, and get those 8 of c = lane.
  QKV_DEVICE static uint4 transposed(uint32_t (&x)[4]) {
    const int lane = lane_id();
#pragma unroll
    for (int step = 2; step > 0; step /= 2) {
      const bool upper = lane & step;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i & step) continue;
        const uint32_t taken = __shfl_xor_sync(kFullWarp, upper ? x[i] : x[i + step], step);
        x[i] = upper ? taken : x[i];
        x[i + step] = upper ? x[i + step] : taken;
      }
    }
    return make_uint4(x[0], x[1], x[2], x[3]);
  }

  QKV_DEVICE void store(const Task& task, const Sums& sums, const RunningSoftmax<1>& softmax) const {
    const Work& w = task.work;
    Row* const rows = this->rows();
    const int lane = lane_id(), dv = static_cast<int>(p.a.dv);
    RowState states[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      RowState& state = states[h];
      state = softmax.template state<kPlain>(0, h);
      float probe = 0;  // NaN if a sum is not finite
#pragma unroll
      for (int c = 0; c < kColumns; ++c) probe = fmaf(sums[0][c][2 * h], 0.0f, fmaf(sums[0][c][2 * h + 1], 0.0f, probe));
      state.spoiled = warp_sum<4>(probe) != 0 && is_finite(state.total);
      const Row row = rows[lane / 4 + 8 * h];
      const bool there = warp_row + lane / 4 + 8 * h < w.rows;
      state.spoiled &= there;
      if (p.splits > 1) {
        if (!there) continue;
        const int64_t index = task.split * p.rows + row_index(p, w.e, row);
        const int column = 2 * (lane % 4);
        float* const to = p.sums + index * p.sum_width + column;
        if (column == 0) p.parts[index] = state;
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          if (8 * c + column < p.sum_width)
            *reinterpret_cast<float2*>(to + 8 * c) = make_float2(sums[0][c][2 * h], sums[0][c][2 * h + 1]);
        continue;
      }
      const End end = end_of(p, row.head, state);
      state = end.state;
      if (there && lane % 4 == 0) {
        if (p.a.lse) *lse_of(p, w.e, row) = end.lse;
        if (p.row_state) p.row_state[row_index(p, w.e, row)] = state;
      }
      T* const out = out_row<T>(p, w.e, row);
#pragma unroll
      for (int c = 0; c < kColumns; c += 4) {
        uint32_t pairs[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          pairs[i] = pack2<T>(sums[0][c + i][2 * h] * end.factor, sums[0][c + i][2 * h + 1] * end.factor);
        const uint4 eight = transposed(pairs);
        const int column = 8 * (c + lane % 4);
        if (there && column < dv) __stwb(reinterpret_cast<uint4*>(out + column), eight);  // nvcc makes four of some store16
      }
    }
    if (p.splits > 1 || !__any_sync(kFullWarp, states[0].spoiled | states[1].spoiled)) return;
    __syncwarp();
#pragma unroll 1
    for (int r = 0; r < 16; ++r) {
      RowState state;
      const auto of_row = [&](auto x, auto y) { return __shfl_sync(kFullWarp, r < 8 ? x : y, r % 8 * 4); };
      state.maximum = of_row(states[0].maximum, states[1].maximum);
      state.total = of_row(states[0].total, states[1].total);
      // In shared memory where rows stand that nobody needs any more.
      if (of_row(states[0].spoiled, states[1].spoiled))
        restore_row<T, WarpThreads, false>(p, w.e, w.kv_head, row_at(p, w, warp_row + r), state, reinterpret_cast<float*>(rows));
    }
  }

  // ---- everything

  QKV_DEVICE void compute() {
    const float factor = p.a.scale * kLog2E;
    if (group == Shape::kGroups - 1) end_turn();  // of one before the first, after which it is the first warpgroup's
    from.tasks.wait_full(place_of_use(0));
    if (!from.task(place_of_use(0)).none) load_queries(from.task(place_of_use(0)).work);
    unsigned tiles = 0;  // of keys, so far
    for (unsigned n = 0;; ++n) {
      const Task& task = from.task(place_of_use(n));
      if (task.none) return;
      const Work& w = task.work;
      if (lane_id() < 16) rows()[lane_id()] = row_at(p, w, warp_row + lane_id());  // for the warp, after wait_for_queries

      Scores s;
      Sums sums;
      Weights weights;
      RunningSoftmax<1> softmax;
      softmax.start();
#pragma unroll
      for (float& x : flat(sums)) x = 0;

      int tile = task.keys.end - 1;
      wait_for_queries();
      from.keys.wait_full(place_of_use(tiles));
      wgmma_hold(flat(s));
      wgmma_fence();
      multiply_keys(tiles & 1, s);
      wgmma_wait<0>();
      for (;; ++tiles) {
        wgmma_hold(flat(s));
        release(from.keys, place_of_use(tiles));
        exclude(w, tile, s);
        const auto change = softmax.template weigh<kPlain>(s, factor);
        wgmma_hold(flat(s));
        const bool more = --tile >= task.keys.begin;
        const RingPlace<2> next = place_of_use(tiles + 1);
        if (more) mbarrier_wait(from.keys.full(next) + softmax_is_over(softmax), next.phase);
        wgmma_wait<0>();  // for the values of the tile before
        wgmma_hold(flat(sums));
        if (tile + 2 != task.keys.end) release(from.values, place_of_use(tiles - 1));
        RunningSoftmax<1>::rescale(change, sums);
        round(s, weights);
        from.values.wait_full(place_of_use(tiles));
        if (!more) break;

        wait_for_turn();
        wgmma_hold(flat(s));
        wgmma_hold(flat(sums));
        wgmma_fence();
        multiply_keys(next.stage, s);
        multiply_values(tiles & 1, weights, sums);
        end_turn();
        wgmma_wait<1>();
      }

      wgmma_hold(flat(sums));
      wgmma_fence();
      multiply_values(tiles & 1, weights, sums);
      // All warps know that the queries have been read: the next tile's may come while this one's end is worked on.
      const RingPlace<2> next = place_of_use(n + 1);
      from.tasks.wait_full(next);
      wait_for_group();
      if (!from.task(next).none) load_queries(from.task(next).work);
      wgmma_wait<0>();
      wgmma_hold(flat(sums));
      release(from.values, place_of_use(tiles++));
      store(task, sums, softmax);
      __syncwarp();
      release(from.tasks, place_of_use(n));
    }
  }
};

template <class T, class Shape, bool kPlain>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_hopper(const __grid_constant__ Problem p, const __grid_constant__ HopperMaps maps,
                     const __grid_constant__ HopperOrder order) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const Channels<Shape> channels(shared);
  if (threadIdx.x == 0) channels.init();
  __syncthreads();
  if (threadIdx.x >= 128 * Shape::kGroups) {
    give_registers<Shape::kLoadRegisters>();
    const int warp = static_cast<int>(threadIdx.x) / 32 - 4 * Shape::kGroups;
    if (warp == 0) load<Shape>(p, maps, channels);
    if (warp == 1 && lane_id() == 0) find_tasks<Shape>(p, order, channels);
  } else {
    take_registers<Shape::kRegisters>();
    HopperGroup<T, Shape, kPlain>(p, channels).compute();
  }
}

// ---- launch -----------------------------------------------------------------------------------------------------

template <class T, int kWidth, bool kPlain>
void launch_hopper(const Problem& p, const HopperOrder& order, cudaStream_t stream) {
  using Shape = HopperShape<kWidth, kPlain>;
  const auto kernel = attention_hopper<T, Shape, kPlain>;
  allow_shared(kernel, Shape::kSharedBytes, "attention");
  const AttentionArgs& a = p.a;
  const auto map = [&](const Strided4& x, int64_t width) {
    const int64_t batch = a.cu_k.data ? 1 : a.batch;
    const auto stride = [](int64_t n, int64_t step) { return n > 1 ? step : 8; };
    return tensor_map<4>(a.q.dtype, x.data, {width, a.t, a.kv_heads, batch},
                         {1, stride(a.t, x.s), stride(a.kv_heads, x.h), stride(batch, x.b)}, {64, Shape::kKeys, 1, 1}, 128);
  };
  const HopperMaps maps = {map(a.k, a.d), map(a.v, a.dv)};
  if (order.taken) check(cudaMemsetAsync(order.taken, 0, sizeof(*order.taken), stream), "attention");
  kernel<<<order.blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(p, maps, order);
  check_launch("attention");
}

template <class T>
void launch_hopper(const Problem& p, const HopperOrder& order, cudaStream_t stream) {
  const auto launch = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    (p.adjusted ? launch_hopper<T, kWidth, false> : launch_hopper<T, kWidth, true>)(p, order, stream);
  };
  switch (hopper_width(p.a.d > p.a.dv ? p.a.d : p.a.dv)) {
    case 64:
      return launch(std::integral_constant<int, 64>());
    case 96:
      return launch(std::integral_constant<int, 96>());
    case 128:
      return launch(std::integral_constant<int, 128>());
    default:
      return launch(std::integral_constant<int, 256>());
  }
}

}  // namespace qkv::cuda

// Attention of bfloat16 and float16 on tensor cores, FlashAttention-2 style (Dao 2023, arXiv:2307.08691): a block has a tile of
// rows and walks over tiles of keys; scores of one tile are all that exists of the S x T matrix, in registers.
//
// Each warp has its own rows and all keys of a tile. Keys and values arrive by cp.async in two stages: tile n + 1 is on its way
// while tile n is worked on. Those of a paged cache too: where the keys of tile n + 2 lie is looked up while tile n is worked on,
// and what is stored as something else than T becomes T in shared memory. With two fragments (32 rows) a warp, each ldmatrix of
// keys or values feeds four mma.sync: with one, shared memory is the limit.
#pragma once
#include <utility>

#include "cuda/attention_launch.cuh"
#include "cuda/attention_mma_paged.cuh"
#include "cuda/attention_plan.cuh"
#include "cuda/attention_score.cuh"
#include "cuda/attention_softmax.cuh"
#include "cuda/attention_spoiled.cuh"
#include "cuda/attention_tile.cuh"

namespace qkv::cuda {

enum class Memory { plain, general, paged };  // plain: nothing adjusted, everything aligned

// kWidth: D and Dv, whichever is larger, up to 32, 64, 128 or 256. Sums of a row depend on kWidth and the keys alone.
template <int kWidth_, int kWarps, int kFragments_>
struct MmaShape {
  static constexpr int kWidth = kWidth_, kFragments = kFragments_;
  static constexpr int kThreads = 32 * kWarps, kWarpRows = 16 * kFragments, kRows = kWarps * kWarpRows;
  static constexpr int kKeys = mma_keys(kWidth);
  static constexpr int kTile = kKeys * kWidth * 2;                  // bytes of a tile of keys or values
  static constexpr int kStages = kRows * kWidth * 2;                // offsets in shared memory: queries, then two stages
  static constexpr int kRowTable = kStages + 4 * kTile;             // Row (kRows)
  static constexpr int kSpoiled = kRowTable + kRows * sizeof(Row);  // int (kRows)
  static constexpr int kWork = kSpoiled + kRows * sizeof(int);      // Work
  static constexpr int kPlaces = (kWork + static_cast<int>(sizeof(Work)) + 15) / 16 * 16;  // paged: KeyPlace (2, kKeys)
  static constexpr int kScales = kPlaces + 2 * kKeys * sizeof(KeyPlace);                   // of int8: float2 (2, kKeys)
  static constexpr int kShare = kScales + 2 * kKeys * sizeof(float2);                      // paged: Share, Piece
  static constexpr int kPiece = kShare + sizeof(Share);
  static constexpr int kSharedBytes = kWork + sizeof(Work);
  static constexpr int kPagedBytes = kPiece + sizeof(Piece);
  static constexpr int kBlocks = mma_blocks(kRows, kWidth);  // that a multiprocessor should hold, which limits registers
  static_assert(kPagedBytes <= mma_bytes(kRows, kWidth));
};

// One tile of keys for one warp: scores of its rows, softmax, values.
template <class T, class Shape, bool kPlain>
struct MmaTile {
  static constexpr int kFragments = Shape::kFragments, kWidth = Shape::kWidth, kKeys = Shape::kKeys;
  static constexpr int kColumns = kWidth / 8, kScoreTiles = kKeys / 8;
  using Scores = float[kFragments][kScoreTiles][4];
  using Sums = float[kFragments][kColumns][4];

  QKV_DEVICE static void multiply_keys(const MatrixRows<kWidth>& q, const MatrixRows<kWidth>& k, Scores& s) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int j = 0; j < kScoreTiles; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[f][j][i] = 0;
#pragma unroll
    for (int d = 0; d < kWidth / 16; ++d) {
      uint32_t a[kFragments][4];
#pragma unroll
      for (int f = 0; f < kFragments; ++f) ldmatrix_x4(a[f], q.at(16 * f, d));
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        uint32_t b[4];
        ldmatrix_x4(b, k.at(16 * j, d));
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
          mma_16816<T>(s[f][2 * j], a[f], b[0], b[1]);
          mma_16816<T>(s[f][2 * j + 1], a[f], b[2], b[3]);
        }
      }
    }
  }

  QKV_DEVICE static void multiply_values(const Scores& s, const MatrixRows<kWidth>& v, Sums& sums) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t a[kFragments][4];
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[f][i] = pack2<T>(s[f][2 * k + i / 2][2 * (i % 2)], s[f][2 * k + i / 2][2 * (i % 2) + 1]);
#pragma unroll
      for (int c = 0; c < kWidth / 16; ++c) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, v.at(16 * k, c));
#pragma unroll
        for (int f = 0; f < kFragments; ++f) {
          mma_16816<T>(sums[f][2 * c], a[f], b[0], b[1]);
          mma_16816<T>(sums[f][2 * c + 1], a[f], b[2], b[3]);
        }
      }
    }
  }

  // Excludes what a row does not see, and adds what stands beside q.k. `rows` are the warp's.
  QKV_DEVICE static void exclude(const Problem& p, const Entry& e, const Row* rows, int key0, Scores& s) {
    const int lane = lane_id(), key = key0 + 2 * (lane % 4);
    const bool adjusted = !kPlain && p.adjusted;
    if (!adjusted && key0 >= rows[Shape::kWarpRows - 1].first && key0 + kKeys <= rows[0].last) return;
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const Row row = rows[16 * f + 8 * h + lane / 4];
        if (adjusted) {
          adjust_scores(p, e, row, key, s[f], h);
        } else {
          const unsigned seen = row.last - row.first;
          each_score(s[f], h, [&](float& x, int j) {
            if (static_cast<unsigned>(key + j - row.first) >= seen) x = kMinusInfinity;
          });
        }
      }
  }
};

// What a warp does with its rows once their keys are summed. A thread has two rows of each fragment (h), in each the columns
// 8 c + 2 (lane % 4) and + 1.
template <class Shape>
struct MmaRows {
  static constexpr int kFragments = Shape::kFragments, kColumns = Shape::kWidth / 8;
  using Sums = float[kFragments][kColumns][4];
  using States = RowState[kFragments][2];

  // By templates, since a loop whose body is long stays a loop, and arrays that it indexes go to memory.
  template <class F>
  QKV_DEVICE static void each_row(F&& f) {
    each_row(f, std::make_integer_sequence<int, 2 * kFragments>());
  }
  template <class F, int... i>
  QKV_DEVICE static void each_row(F& f, std::integer_sequence<int, i...>) {
    const int row = threadIdx.x / 32 * Shape::kWarpRows + lane_id() / 4;
    (f(i / 2, i % 2, row + 8 * i), ...);
  }

  // Marks rows whose sums are not finite though their totals are. True if this thread has one.
  QKV_DEVICE static bool find_spoiled(const Sums& sums, const States& state, int* spoiled) {
    bool found = false;
    each_row([&](int f, int h, int r) {
      float probe = 0;  // NaN if a sum is not finite
#pragma unroll
      for (int c = 0; c < kColumns; ++c) probe = fmaf(sums[f][c][2 * h], 0.0f, fmaf(sums[f][c][2 * h + 1], 0.0f, probe));
      probe = warp_sum<4>(probe);
      if (probe == 0 || !is_finite(state[f][h].total)) return;
      found = true;
      if (lane_id() % 4 == 0) spoiled[r] = 1;
    });
    return found;
  }

  // Into the workspace, as part number `part`.
  QKV_DEVICE static void store_part(const Problem& p, const Work& w, const Row* rows, int part, const Sums& sums,
                                    const States& state) {
    each_row([&](int f, int h, int r) {
      if (r >= w.rows) return;
      const int64_t index = part_index(p, w, rows, r, part);
      const int column = 2 * (lane_id() % 4);
      float* const to = p.sums + index * p.sum_width + column;
      if (column == 0) p.parts[index] = state[f][h];
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        if (8 * c + column < p.sum_width)
          *reinterpret_cast<float2*>(to + 8 * c) = make_float2(sums[f][c][2 * h], sums[f][c][2 * h + 1]);
    });
  }

  // What store_part has stored as part 0 comes before.
  QKV_DEVICE static void merge_part(const Problem& p, const Work& w, const Row* rows, Sums& sums, States& state) {
    each_row([&](int f, int h, int r) {
      if (r >= w.rows) return;
      const int64_t index = row_index(p, w.e, rows[r]);
      const int column = 2 * (lane_id() % 4);
      const float* const from = p.sums + index * p.sum_width + column;
      const Merge m = merge(p.parts[index], state[f][h]);
      state[f][h] = m.state;
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        if (8 * c + column < p.sum_width) {
          const float2 earlier = *reinterpret_cast<const float2*>(from + 8 * c);
          sums[f][c][2 * h] = merge_sums(earlier.x, m.earlier, sums[f][c][2 * h], m.later);
          sums[f][c][2 * h + 1] = merge_sums(earlier.y, m.earlier, sums[f][c][2 * h + 1], m.later);
        }
    });
    __syncwarp();  // four lanes have read what one of them is to overwrite
  }

  // Output, LSE and states, which become those of the ends. `tile` is the block's rows in shared memory, where nobody reads any
  // more: through it rows leave in pieces of 16 bytes.
  template <class T>
  QKV_DEVICE static void store_out(const Problem& p, const Work& w, const Row* rows, unsigned char* tile, const Sums& sums,
                                   States& state) {
    constexpr int kWidth = Shape::kWidth, kChunks = kWidth / 8;
    const int lane = lane_id(), dv = static_cast<int>(p.a.dv);
    each_row([&](int f, int h, int r) {
      const End end = end_of(p, rows[r].head, state[f][h]);
      state[f][h] = end.state;
      if (lane % 4 == 0 && r < w.rows) {
        if (p.a.lse) *lse_of(p, w.e, rows[r]) = end.lse;
        if (p.row_state) p.row_state[row_index(p, w.e, rows[r])] = end.state;
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        *reinterpret_cast<uint32_t*>(tile + swizzle<kWidth>(r, c) + lane % 4 * 4) =
            pack2<T>(sums[f][c][2 * h] * end.factor, sums[f][c][2 * h + 1] * end.factor);
    });
    __syncwarp();
    const int warp_row = threadIdx.x / 32 * Shape::kWarpRows, chunk = lane % kChunks;
#pragma unroll
    for (int i = lane / kChunks; i < Shape::kWarpRows; i += 32 / kChunks) {
      const int r = warp_row + i, left = dv - chunk * 8;
      if (r >= w.rows || left <= 0) continue;
      const unsigned char* const from = tile + swizzle<kWidth>(r, chunk);
      T* const to = out_row<T>(p, w.e, rows[r]) + chunk * 8;
      if (p.aligned && left >= 8) {
        store16(to, load16(from));
      } else {
        for (int j = 0; j < min(left, 8); ++j) to[j] = reinterpret_cast<const T*>(from)[j];
      }
    }
  }
};

template <class T, class Shape, Memory kMemory>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks) attention_mma(const __grid_constant__ Problem p) {
  begin_dependent();
  constexpr bool kPlain = kMemory == Memory::plain, kPaged = kMemory == Memory::paged;
  using Tile = MmaTile<T, Shape, kPlain>;
  using Paged = PagedKeys<T, Shape>;
  using Rows = MmaRows<Shape>;
  constexpr int kChunkTiles = kChunkKeys / Shape::kKeys;
  constexpr int kWidth = Shape::kWidth, kKeys = Shape::kKeys, kThreads = Shape::kThreads, kFragments = Shape::kFragments;
  extern __shared__ __align__(128) unsigned char shared[];
  Row* const rows = reinterpret_cast<Row*>(shared + Shape::kRowTable);
  int* const spoiled = reinterpret_cast<int*>(shared + Shape::kSpoiled);
  const int lane = lane_id(), warp = threadIdx.x / 32, warp_row = warp * Shape::kWarpRows;
  const int d = static_cast<int>(p.a.d), dv = static_cast<int>(p.a.dv);

  // In shared memory, which leaves more registers to the loop.
  Work& w = *reinterpret_cast<Work*>(shared + Shape::kWork);
  Share* const share = reinterpret_cast<Share*>(shared + Shape::kShare);
  Piece& piece = *reinterpret_cast<Piece*>(shared + Shape::kPiece);
  const bool worker = kPaged && p.workers > 0;

  // Asked for anew where it is needed, for the registers' sake.
  const auto my_tiles = [&] {
    const TileRange all = tiles_seen<kKeys>(rows[0], rows[Shape::kRows - 1]);
    if (!worker) return p.fold ? all : split_of<kKeys>(p, all, blockIdx.y);
    return TileRange{max(all.begin, piece.keys.begin), min(all.end, piece.keys.end)};
  };
  const auto my_part = [&] { return worker ? piece.part : !p.fold && p.splits > 1 ? static_cast<int>(blockIdx.y) : kWhole; };

  const auto attend_to_rows = [&] {
    for (int r = threadIdx.x; r < Shape::kRows; r += kThreads) spoiled[r] = 0;
    __syncthreads();
    if constexpr (kPaged)
      if (my_part() != kWhole && my_tiles().begin >= my_tiles().end) return leave_part<kThreads>(p, w, rows, my_part());

    using Loader = RowLoader<T, kWidth, kThreads>;
    const Loader loader(threadIdx.x);
    for (int r = loader.first_row; r < Shape::kRows; r += loader.kStep) {
      if (kPlain || p.aligned)
        loader.copy(shared, r, query_row<T>(p, w.e, rows[r]), d, true);
      else
        loader.copy_slowly(shared, r, query_row<T>(p, w.e, rows[r]), d, true);
    }
    cp_async_commit();
    const int first_key = rows[0].first, end_key = rows[Shape::kRows - 1].last;
    const T* const keys = kPaged ? nullptr : key_row<T>(p, p.a.k, w.e, w.kv_head, 0);
    const T* const values = kPaged ? nullptr : key_row<T>(p, p.a.v, w.e, w.kv_head, 0);
    const auto load_half = [&](const Loader& loader, unsigned char* to, const T* from, int64_t step, int key0, int width) {
      from += (key0 + loader.first_row) * step;
      const auto valid = [&](int row) {
        return static_cast<unsigned>(key0 + row - first_key) < static_cast<unsigned>(end_key - first_key);
      };
      if (kPlain || p.aligned) {
#pragma unroll
        for (int row = loader.first_row; row < loader.first_row + kKeys; row += loader.kStep, from += loader.kStep * step)
          loader.copy(to, row, from, width, valid(row));
      } else {
#pragma unroll 1
        for (int row = loader.first_row; row < kKeys; row += loader.kStep, from += loader.kStep * step)
          loader.copy_slowly(to, row, from, width, valid(row));
      }
    };
    const auto load_tile = [&](int tile, int stage) {
      if constexpr (kPaged) {
        Paged::load_tile(p, shared, tile, stage);
      } else {
        unsigned char* const to = shared + Shape::kStages + stage * (2 * Shape::kTile);
        const Loader loader(opaque(threadIdx.x));
        load_half(loader, to, keys, p.a.k.s, tile * kKeys, d);
        load_half(loader, to + Shape::kTile, values, p.a.v.s, tile * kKeys, dv);
      }
      cp_async_commit();
    };

    float sums[kFragments][kWidth / 8][4];
    RunningSoftmax<kFragments> softmax;
    const float factor = p.a.scale * kLog2E;

    // Work on a tile that is there. All threads.
    const auto attend_to_tile = [&](int tile, int stage, bool careful) {
      if constexpr (kPaged)
        if (Paged::converts(p)) {
          Paged::convert_tile(p, shared, tile, stage);
          __syncthreads();
        }
      if (careful) {
        uint32_t* const pairs = reinterpret_cast<uint32_t*>(shared + Shape::kStages + stage * (2 * Shape::kTile) + Shape::kTile);
        for (int i = threadIdx.x; i < Shape::kTile / 4; i += kThreads) remove_not_finite<T>(pairs[i]);
        __syncthreads();
      }
      const int key0 = tile * kKeys;
      if (warp_row < w.rows && key0 < rows[warp_row + Shape::kWarpRows - 1].last && key0 + kKeys > rows[warp_row].first) {
        // Lanes' rows and chunks as intrinsics.cuh says for a, for b of (n, k) and for b of (k, n).
        const int lane = opaque(lane_id());
        const uint32_t tiles = shared_address(shared + Shape::kStages) + stage * (2 * Shape::kTile);
        const MatrixRows<kWidth> q(shared_address(shared), warp_row + lane % 16, lane / 16);
        const MatrixRows<kWidth> k(tiles, lane % 8 + lane / 16 * 8, lane / 8 % 2);
        const MatrixRows<kWidth> v(tiles + Shape::kTile, lane % 16, lane / 16);
        typename Tile::Scores s;
        Tile::multiply_keys(q, k, s);
        Tile::exclude(p, w.e, rows + warp_row, key0, s);
        if (!kPlain && p.adjusted)
          softmax.template add<false>(s, sums, factor);
        else
          softmax.template add<true>(s, sums, factor);
        Tile::multiply_values(s, v, sums);
      }
    };

    // Attends to the keys of tiles [begin, end) from a fresh state.
    const auto attend = [&](int begin, int end, bool careful) {
      softmax.start();
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
#pragma unroll
        for (int c = 0; c < kWidth / 8; ++c)
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[f][c][i] = 0;
      if constexpr (kPaged)
        if (begin < end)
          Paged::end_look_up(p, w, shared, begin, first_key, end_key, Paged::begin_look_up(p, w.e, begin, first_key, end_key));
      for (int tile = begin - 1, stage = 1; tile < end; ++tile, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // the tile is there for all, and nobody reads the other stage any more
        if (tile + 1 < end) load_tile(tile + 1, stage ^ 1);
        int64_t entry = 0;
        if constexpr (kPaged)
          if (tile + 2 < end) entry = Paged::begin_look_up(p, w.e, tile + 2, first_key, end_key);
        if (tile >= begin) attend_to_tile(tile, stage, careful);
        if constexpr (kPaged)
          if (tile + 2 < end) Paged::end_look_up(p, w, shared, tile + 2, first_key, end_key, entry);
      }
      cp_async_wait<0>();
      __syncthreads();
    };

    typename Rows::States state;
    for (int begin = my_tiles().begin;;) {
      int end = my_tiles().end;
      if (p.fold) end = min(end, (begin / kChunkTiles + 1) * kChunkTiles);
      for (bool careful = false;; careful = true) {
        attend(begin, end, careful);
        Rows::each_row([&](int f, int h, int) {
          state[f][h] = !kPlain && p.adjusted ? softmax.template state<false>(f, h) : softmax.template state<true>(f, h);
        });
        if (careful || !__syncthreads_or(Rows::find_spoiled(sums, state, spoiled))) break;
      }
      Rows::each_row([&](int f, int h, int r) { state[f][h].spoiled = spoiled[r]; });
      if (p.fold && begin > my_tiles().begin) Rows::merge_part(p, w, rows, sums, state);
      begin = end;
      if (begin >= my_tiles().end) break;
      Rows::store_part(p, w, rows, 0, sums, state);
    }
    if (my_part() != kWhole) return Rows::store_part(p, w, rows, my_part(), sums, state);

    Rows::template store_out<T>(p, w, rows, shared, sums, state);
    if (!__syncthreads_or(spoiled[threadIdx.x % Shape::kRows])) return;
    RowState* const ends = reinterpret_cast<RowState*>(shared + Shape::kStages);
    Rows::each_row([&](int f, int h, int r) {
      if (lane % 4 == 0) ends[r] = state[f][h];
    });
    __syncthreads();
    for (int r = 0; r < w.rows; ++r)
      if (spoiled[r])
        restore_row<T, BlockThreads<kThreads>, kPaged>(p, w.e, w.kv_head, rows[r], ends[r],
                                                       reinterpret_cast<float*>(ends + Shape::kRows));
  };

  if (worker) find_share<kThreads>(p, share, reinterpret_cast<int64_t*>(shared));
  do {
    if (worker) {
      __syncthreads();  // nobody reads any more what is shared
      if (threadIdx.x == 0) next_piece(p, share, &w, &piece);
      __syncthreads();
      if (piece.none) return;
      write_rows<Shape::kRows, kThreads>(p, w, rows);
    } else {
      Work found;
      if (!find_work(p, blockIdx.x, &found)) return;
      write_rows<Shape::kRows, kThreads>(p, found, rows);
      if (threadIdx.x == 0) w = found;
    }
    attend_to_rows();
  } while (worker);
}

// ---- launch
// --------------------------------------------------------------------------------------------------------------------

template <int kWidth>
using LargeShape = MmaShape<kWidth, 4, kWidth <= 128 ? 2 : 1>;

template <class T, class Shape, Memory kMemory>
void launch_mma(const Problem& p, int64_t blocks, cudaStream_t stream) {
  const auto kernel = attention_mma<T, Shape, kMemory>;
  static_assert(Shape::kRows == mma_rows(kMemory == Memory::plain, Shape::kWidth));
  constexpr int kBytes = kMemory == Memory::paged ? Shape::kPagedBytes : Shape::kSharedBytes;
  static_assert(kBytes <= 99 * 1024);  // what sm_86 and sm_89 have
  allow_shared(kernel, kBytes, "attention");
  dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(p.fold ? 1 : p.splits));
  if (p.workers) grid = dim3(static_cast<unsigned>(p.workers));
  launch_dependent("attention", kernel, grid, Shape::kThreads, kBytes, stream, p);
}

template <class T, int kWidth>
void launch_mma(const Problem& p, bool large, int64_t blocks, cudaStream_t stream) {
  if (large)
    launch_mma<T, LargeShape<kWidth>, Memory::plain>(p, blocks, stream);
  else
    launch_mma<T, MmaShape<kWidth, 4, 1>, Memory::general>(p, blocks, stream);
}

template <class T>
void launch_mma(const Problem& p, bool large, int64_t blocks, cudaStream_t stream) {
  switch (mma_width(p.a.d > p.a.dv ? p.a.d : p.a.dv)) {
    case 32:
      return launch_mma<T, 32>(p, large, blocks, stream);
    case 64:
      return launch_mma<T, 64>(p, large, blocks, stream);
    case 128:
      return launch_mma<T, 128>(p, large, blocks, stream);
    default:
      return launch_mma<T, 256>(p, large, blocks, stream);
  }
}

template <class T>
void launch_mma_paged(const Problem& p, int64_t blocks, cudaStream_t stream) {
  switch (mma_width(p.a.d > p.a.dv ? p.a.d : p.a.dv)) {
    case 32:
      return launch_mma<T, MmaShape<32, 4, 1>, Memory::paged>(p, blocks, stream);
    case 64:
      return launch_mma<T, MmaShape<64, 4, 1>, Memory::paged>(p, blocks, stream);
    case 128:
      return launch_mma<T, MmaShape<128, 4, 1>, Memory::paged>(p, blocks, stream);
    default:
      return launch_mma<T, MmaShape<256, 4, 1>, Memory::paged>(p, blocks, stream);
  }
}

}  // namespace qkv::cuda

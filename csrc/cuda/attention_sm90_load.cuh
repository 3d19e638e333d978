// The first half of attention_sm90.cuh: shapes of tiles, what its warps tell each other, and the two warps that find tiles of
// rows and load tiles of keys.
#pragma once
#include "cuda/attention_launch.cuh"
#include "cuda/ring_sm90.cuh"

namespace qkv::cuda {

constexpr int kMatrixRow = 128;  // bytes of a row of a matrix as wgmma and TMA have it; wider ones are several, side by side

// A tile of rows, and the tiles of keys that some of them sees, at least one.
struct Task {
  Work work;
  TileRange keys;
  int number, split;
  bool none;  // there is nothing more
};

// kWidth: D and Dv, whichever is larger, up to 64, 96, 128 or 256.
template <int kWidth_, bool kPlain>
struct HopperShape {
  static constexpr int kWidth = kWidth_, kGroups = hopper_rows(kWidth, kPlain) / 64, kRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);  // the last 128 load
  static constexpr int kKeys = hopper_keys(kWidth);
  static constexpr int kMatrices = (kWidth + 63) / 64;  // side by side in a tile
  // Of a thread that loads and of one that computes: 512 for one thread of each warpgroup are all that there are.
  static constexpr int kLoadRegisters = kGroups == 3 ? 32 : 40, kRegisters = kGroups == 3 ? 160 : 232;
  // With wide rows softmax is a small part, and the turns cost more than they bring.
  static constexpr bool kTurns = kWidth <= 128;

  static constexpr int kQueryMatrix = 64 * kMatrixRow, kKeyMatrix = kKeys * kMatrixRow;
  static constexpr int kQueries = kMatrices * kQueryMatrix, kTile = kMatrices * kKeyMatrix;  // bytes: of a warpgroup; of a stage
  // Offsets in shared memory.
  static constexpr int kKeysAt = kGroups * kQueries;      // two stages
  static constexpr int kValuesAt = kKeysAt + 2 * kTile;   // two stages
  static constexpr int kTasksAt = kValuesAt + 2 * kTile;  // Task (2)
  static constexpr int kRowsAt = kTasksAt + 2 * 128;      // Row (kRows)
  static constexpr int kBarriersAt = kRowsAt + kRows * sizeof(Row);
  static constexpr int kSharedBytes = kBarriersAt + 3 * Ring<2>::kBytes + 8;
  static_assert(sizeof(Task) <= 128 && kSharedBytes <= 227 * 1024);
};

// Stage and phase of use number n of a ring.
QKV_DEVICE RingPlace<2> place_of_use(unsigned n) { return {static_cast<int>(n & 1), n >> 1 & 1}; }

// What the roles tell each other.
template <class Shape>
struct Channels {
  unsigned char* shared;
  uint32_t base;
  Ring<2> keys, values, tasks;
  uint32_t patched;  // an mbarrier: values that the loading warp works on before they count as there

  QKV_DEVICE explicit Channels(unsigned char* shared) : shared(shared), base(shared_address(shared)) {
    keys.barriers = base + Shape::kBarriersAt;
    values.barriers = keys.barriers + Ring<2>::kBytes;
    tasks.barriers = values.barriers + Ring<2>::kBytes;
    patched = tasks.barriers + Ring<2>::kBytes;
  }
  QKV_DEVICE void init() const {  // by one thread
    keys.init(4 * Shape::kGroups);
    values.init(4 * Shape::kGroups);
    tasks.init(4 * Shape::kGroups + 1);  // and the warp that loads
    mbarrier_init(patched, 1);
    mbarrier_init_fence();
  }
  QKV_DEVICE Task& task(const RingPlace<2>& at) const { return reinterpret_cast<Task*>(shared + Shape::kTasksAt)[at.stage]; }
};

// ---- the warps that find tiles and load
// ----------------------------------------------------------------------------------------

// The task of the tile that has its number, in the order in which blocks take them: the split varies first, then the key heads of
// a section, whose keys fit the L2 cache, then their tiles, of which those that see most keys come first, then sections. False:
// it is empty.
QKV_DEVICE bool find_task(const Problem& p, const HopperOrder& order, Task* task) {
  const int tiles = static_cast<int>(p.row_tiles), i = task->number / p.splits;
  const int section = i / (order.section * tiles), within = i - section * (order.section * tiles);
  const int first_head = section * order.section, heads = min(order.section, order.heads - first_head);
  const int tile = within / heads, head = first_head + within - tile * heads;
  __builtin_assume(!p.a.block_tables.data);
  return find_work(p, static_cast<unsigned>(head) * tiles + tile, &task->work);
}

// And its keys, from what the task says of its rows.
template <class Shape>
QKV_DEVICE void find_keys(const Problem& p, Task& task) {
  const Work& w = task.work;
  task.split = task.number % p.splits;
  const Row first = row_of(p, w.e, w.kv_head, w.row0), last = row_of(p, w.e, w.kv_head, w.row0 + w.rows - 1);
  TileRange keys = split_of<Shape::kKeys>(p, tiles_seen<Shape::kKeys>(first, last), task.split);
  if (keys.begin >= keys.end) keys = {0, 1};  // none of which a row sees
  task.keys = keys;
}

template <class Shape>
QKV_DEVICE void load_tile(const CUtensorMap& map, uint32_t to, uint32_t barrier, const Problem& p, const Work& w, int key0) {
  const int token = static_cast<int>(w.e.k0) + key0, b = p.a.cu_k.data ? 0 : static_cast<int>(w.e.b);
#pragma unroll
  for (int i = 0; i < Shape::kMatrices; ++i) tma_load(to + i * Shape::kKeyMatrix, &map, barrier, 64 * i, token, w.kv_head, b);
}

// Values behind a sequence's end, which belong to others or to nobody and may be NaN, become 0. (Weights of such keys are 0, but
// 0 * NaN is NaN.) Behind the end of all tokens they are 0 already.
template <class Shape>
QKV_DEVICE void clear_values(unsigned char* tile, int first) {
  for (int i = first * 8 + lane_id(); i < Shape::kKeys * 8; i += 32)
#pragma unroll
    for (int j = 0; j < Shape::kMatrices; ++j) store16(tile + j * Shape::kKeyMatrix + i * 16, make_uint4(0, 0, 0, 0));
}

// By one thread of a warp of its own. Each tile is taken once, by whoever comes first.
template <class Shape>
QKV_DEVICE void find_tasks(const Problem& p, const HopperOrder& order, const Channels<Shape>& to) {
  const auto next = [&] { return order.taken ? static_cast<int>(gridDim.x + atomicAdd(order.taken, 1u)) : order.tiles; };
  for (int n = 0;; ++n) {
    to.tasks.wait_empty(place_of_use(n));
    const auto anew = [&]() -> Task& { return to.task(place_of_use(opaque(n))); };  // from memory: there are few registers
    anew().number = n == 0 ? static_cast<int>(blockIdx.x) : next();
    while (anew().number < order.tiles && !find_task(p, order, &anew())) anew().number = next();
    Task& task = anew();
    task.none = task.number >= order.tiles;
    if (!task.none) find_keys<Shape>(p, task);
    mbarrier_arrive(to.tasks.full(place_of_use(n)));
    if (task.none) return;
  }
}

// By one warp.
template <class Shape>
QKV_DEVICE void load(const Problem& p, const HopperMaps& maps, const Channels<Shape>& to) {
  constexpr int kKeys = Shape::kKeys, kTile = Shape::kTile;
  const int lane = lane_id();
  unsigned tiles = 0, patches = 0;  // of values, and of those that were worked on, so far
  for (unsigned n = 0;; ++n) {
    to.tasks.wait_full(place_of_use(n));
    const Task& task = to.task(place_of_use(n));
    if (task.none) return;
    const Work& w = task.work;
    const auto load_keys = [&](unsigned number, int tile) {
      const RingPlace<2> key = place_of_use(number);
      to.keys.wait_empty(key);
      if (lane == 0) {
        to.keys.expect(key, kTile);
        load_tile<Shape>(maps.k, to.base + Shape::kKeysAt + key.stage * kTile, to.keys.full(key), p, w, tile * kKeys);
      }
    };
    int tile = task.keys.end - 1;
    const int begin = task.keys.begin, there = w.e.t - tile * kKeys;  // keys of the last tile
    const bool patch = there < kKeys && w.e.k0 + w.e.t < p.a.t;
    load_keys(tiles, tile);
    for (bool last = true; tile >= begin; --tile, ++tiles, last = false) {
      if (tile > begin) load_keys(tiles + 1, tile - 1);  // whose stage is free before that of the values
      const RingPlace<2> value = place_of_use(tiles);
      to.values.wait_empty(value);
      const uint32_t barrier = last && patch ? to.patched : to.values.full(value);
      const int stage = Shape::kValuesAt + value.stage * kTile;
      if (lane == 0) {
        mbarrier_arrive_expect_tx(barrier, kTile);
        load_tile<Shape>(maps.v, to.base + stage, barrier, p, w, tile * kKeys);
      }
      if (last && patch) {
        mbarrier_wait(to.patched, patches++ & 1);
        clear_values<Shape>(to.shared + stage, max(there, 0));
        fence_async_shared();
        __syncwarp();
        if (lane == 0) mbarrier_arrive(to.values.full(value));
      }
    }
    __syncwarp();
    if (lane == 0) to.tasks.release(place_of_use(n));
  }
}

}  // namespace qkv::cuda

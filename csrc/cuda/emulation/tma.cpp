// TMA: boxes of tensors, and rows of bytes, between global and shared memory.
//
// Who may touch what is checked when an operation is issued, for all of the time that it may take; the bytes move then, or, where
// the operation is deferred, some time before the wait for it ends.
#include <cuda.h>

#include <cstring>
#include <deque>
#include <memory>

#include "cuda/emulation/block.h"
#include "cuda/emulation/counters.h"
#include "cuda/emulation/hopper.h"
#include "cuda/emulation/memory.h"

namespace qkv::emulation {
namespace {

// What our cuTensorMapEncodeTiled writes into the 128 opaque bytes.
struct TensorMap {
  uint64_t magic;
  uint64_t base;
  uint64_t stride[4];  // bytes, of dimensions 1 ... 4
  uint32_t last[5];    // sizes - 1
  uint16_t box[5];
  uint8_t dimensions, element;  // bytes
  uint8_t swizzle;              // bytes
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap), "");
constexpr uint64_t kMagic = 0x71'6B'76'20'74'6D'61'70;

unsigned element_bytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
      return 4;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
      return 8;
    default:
      return 0;
  }
}

unsigned swizzle_bytes(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_32B:
      return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B:
      return 64;
    case CU_TENSOR_MAP_SWIZZLE_128B:
      return 128;
    default:
      return 0;
  }
}

// The driver's rules. What it allows and we do not emulate (interleaving, steps within the box, NaN for what is outside) is
// refused too.
CUresult encode_tiled(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t dimensions, void* base, const cuuint64_t* size,
                      const cuuint64_t* stride, const cuuint32_t* box, const cuuint32_t* step, CUtensorMapInterleave interleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  const unsigned element = element_bytes(type);
  const uint64_t address = reinterpret_cast<uint64_t>(base);
  if (reinterpret_cast<uint64_t>(to) % 64 || !element || dimensions < 1 || dimensions > 5 || address % 16 ||
      interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE ||
      swizzle > CU_TENSOR_MAP_SWIZZLE_128B)
    return CUDA_ERROR_INVALID_VALUE;
  TensorMap m = {};
  m.magic = kMagic;
  m.base = address;
  m.dimensions = static_cast<uint8_t>(dimensions);
  m.element = static_cast<uint8_t>(element);
  m.swizzle = static_cast<uint8_t>(swizzle_bytes(swizzle));
  for (unsigned i = 0; i < dimensions; ++i) {
    if (size[i] < 1 || size[i] > uint64_t{1} << 32 || box[i] < 1 || box[i] > 256 || step[i] != 1) return CUDA_ERROR_INVALID_VALUE;
    m.last[i] = static_cast<uint32_t>(size[i] - 1);
    m.box[i] = static_cast<uint16_t>(box[i]);
    if (i) {
      if (stride[i - 1] % 16 || stride[i - 1] >= uint64_t{1} << 40) return CUDA_ERROR_INVALID_VALUE;
      m.stride[i - 1] = stride[i - 1];
    }
  }
  const unsigned row = box[0] * element;
  if (row % 16 || (m.swizzle && row > m.swizzle)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(to, &m, sizeof m);
  return CUDA_SUCCESS;
}

// A row of a box: its place in shared memory before swizzling, and which of its elements exist.
struct Row {
  uint32_t at;           // bytes from the start of the box
  uint64_t global;       // of its first element that exists
  unsigned skip, bytes;  // bytes outside before it, and bytes that exist
};

// A box on its way: everything that the operation needs when it happens.
struct Move {
  uint32_t shared;  // address of the box
  unsigned rank;
  unsigned swizzle, row_bytes;
  std::vector<Row> rows;

  uint32_t place(uint32_t at) const {  // offset of the 16-byte chunk
    const uint32_t a = shared + at;
    return swizzle ? a ^ ((a >> 7 & (swizzle / 16 - 1)) << 4) : a;
  }
  unsigned char* chunk(uint32_t at) const { return shared_window(rank) + place(at); }
  uint32_t size() const { return static_cast<uint32_t>(rows.size()) * row_bytes; }

  void load() const {
    for (const Row& r : rows)
      for (unsigned i = 0; i < row_bytes; i += 16) {
        unsigned char bytes[16] = {};
        for (unsigned j = 0; j < 16; ++j)
          if (i + j >= r.skip && i + j < r.skip + r.bytes)
            bytes[j] = reinterpret_cast<const unsigned char*>(r.global)[i + j - r.skip];
        std::memcpy(chunk(r.at + i), bytes, 16);
      }
  }
  void store() const {
    for (const Row& r : rows)
      for (unsigned i = r.skip; i < r.skip + r.bytes; ++i)
        reinterpret_cast<unsigned char*>(r.global)[i - r.skip] = chunk(r.at + i / 16 * 16)[i % 16];
  }
  void poison() const {
    for (uint32_t i = 0; i < size(); i += 16) std::memset(chunk(i), 0xFF, 16);
  }

  // Bounds, and that who issued this may. What a store writes is over later than what it reads.
  void check(bool write_shared, const Stamp& stamp, const Stamp& in_global, const ClockRef& known) const {
    const Access of_global{in_global.agent, in_global.time, current->site, !write_shared, false, Proxy::async};
    for (const Row& r : rows)
      if (r.bytes) {
        global_bytes(r.global, r.bytes, 1);
        if (config.check) check_global_as(of_global, r.global, r.bytes);
      }
    const Access access{stamp.agent, stamp.time, current->site, write_shared, false, Proxy::async};
    const uint32_t window = rank == current->block->rank ? 0 : (rank + 1) * kSharedStride;
    for (uint32_t i = 0; i < size(); i += 16) {
      shared_bytes(window + place(i), 16, 16);
      if (config.check) check_shared_as(access, known, rank, place(i), 16);
    }
  }
};

const TensorMap& read_map(uint64_t address) {
  if (address % 64)
    fail(FaultKind::misaligned, "a CUtensorMap at %llx: not a multiple of 64", static_cast<unsigned long long>(address));
  const uint64_t parameters = reinterpret_cast<uint64_t>(launched->parameters);
  if (address < parameters || address + sizeof(CUtensorMap) > parameters + launched->kernel->parameter_bytes)
    global_bytes(address, sizeof(CUtensorMap), 64);
  const TensorMap& m = *reinterpret_cast<const TensorMap*>(address);
  if (m.magic != kMagic) fail(FaultKind::other, "not a CUtensorMap made by cuTensorMapEncodeTiled");
  return m;
}

// What an H200 does and the documentation leaves open: a first coordinate that is no multiple of 16 bytes is an illegal
// instruction, and a store ends a row at the next multiple of 16 bytes after its size, not at the size; a load fills up with
// zeros from there on.
Move plan(unsigned dimensions, uint64_t map, const int32_t* at, uint32_t shared, bool store) {
  const TensorMap& m = read_map(map);
  if (m.dimensions != dimensions) fail(FaultKind::other, "TMA of %u dimensions with a map of %u", dimensions, m.dimensions);
  Move move;
  const SharedPlace p = shared_place(shared);
  move.shared = p.offset;
  move.rank = p.rank;
  move.swizzle = m.swizzle;
  move.row_bytes = static_cast<unsigned>(m.box[0]) * m.element;
  if (m.swizzle && move.row_bytes != m.swizzle)
    fail(FaultKind::other, "TMA: rows of the box narrower than the swizzle are not emulated");
  const unsigned alignment = m.swizzle ? 8u * m.swizzle : 128u;
  if (p.offset % alignment)
    fail(FaultKind::misaligned, "TMA: the box in shared memory, at %u, does not start at a multiple of %u", p.offset, alignment);
  if (int64_t{at[0]} * m.element % 16)
    fail(FaultKind::misaligned, "TMA: the first coordinate, %d elements of %u bytes, is no multiple of 16 bytes", at[0],
         m.element);
  for (unsigned i = 0; store && i < dimensions; ++i)
    if (at[i] < 0) fail(FaultKind::out_of_bounds, "TMA: a store at coordinate %d of dimension %u", at[i], i);
  unsigned index[5] = {}, count = 1;
  for (unsigned i = 1; i < dimensions; ++i) count *= m.box[i];
  const int64_t lanes = store ? 16 / m.element : 1;
  const int64_t first = at[0], end = first + m.box[0], size = (int64_t{m.last[0]} + lanes) / lanes * lanes;
  const int64_t inside_from = first < 0 ? 0 : first, inside_to = end < size ? end : size;
  for (unsigned n = 0; n < count; ++n) {
    Row row{n * move.row_bytes, m.base, 0, 0};
    bool inside = inside_from < inside_to;
    for (unsigned i = 1; i < dimensions; ++i) {
      const int64_t x = int64_t{at[i]} + index[i];
      inside &= x >= 0 && x <= int64_t{m.last[i]};
      row.global += static_cast<uint64_t>(x) * m.stride[i - 1];
    }
    if (inside) {
      row.global += static_cast<uint64_t>(inside_from) * m.element;
      row.skip = static_cast<unsigned>(inside_from - first) * m.element;
      row.bytes = static_cast<unsigned>(inside_to - inside_from) * m.element;
    }
    move.rows.push_back(row);
    for (unsigned i = 1; i < dimensions && ++index[i] == m.box[i]; ++i) index[i] = 0;
  }
  return move;
}

Move plan_bytes(uint32_t shared, uint64_t global, uint32_t bytes) {
  if (bytes == 0 || bytes % 16) fail(FaultKind::misaligned, "cp.async.bulk of %u bytes: not a multiple of 16", bytes);
  if (global % 16)
    fail(FaultKind::misaligned, "cp.async.bulk at global memory address %llx: not a multiple of 16",
         static_cast<unsigned long long>(global));
  const SharedPlace p = shared_place(shared);
  if (p.offset % 16) fail(FaultKind::misaligned, "cp.async.bulk at shared memory address %u: not a multiple of 16", p.offset);
  Move move;
  move.shared = p.offset;
  move.rank = p.rank;
  move.swizzle = 0;
  move.row_bytes = bytes;
  move.rows.push_back({0, global, 0, bytes});
  return move;
}

// What the issuing thread knows, its own past included.
ClockRef told_by_current() {
  if (!config.check) return ClockRef();
  ClockSum sum;
  tell(*current, sum);
  return sum.take();
}

void start_load(const Move& move, const SharedPlace& barrier) {
  const Stamp stamp = next_stamp();
  move.check(true, stamp, stamp, told_by_current());
  const auto happen = [move, barrier, stamp, site = current->site] {
    move.load();
    mbarrier_complete(site, barrier.rank, barrier.offset, move.size(), stamp);
  };
  if (counted) ++counted->async_copies;
  if (happens_late()) {
    move.poison();
    defer(happen);
  } else {
    happen();
  }
}

struct Store {
  Move move;
  Stamp reads, writes;
  bool done = false, read = false;

  void happen() {
    if (!done) move.store();
    done = true;
  }
};
using Stores = std::vector<std::shared_ptr<Store>>;
struct ThreadState {
  Stores open;
  std::deque<Stores> committed;
};
std::vector<ThreadState> threads;  // by agent

void start_store(const Move& move) {
  if (move.rank != current->block->rank) fail(FaultKind::other, "a bulk store from another block's shared memory");
  auto store = std::make_shared<Store>(Store{move, next_stamp(), next_stamp()});
  move.check(false, store->reads, store->writes, told_by_current());
  if (counted) ++counted->async_copies;
  if (happens_late())
    defer([store] { store->happen(); });
  else
    store->happen();
  threads[current->agent].open.push_back(std::move(store));
}

}  // namespace

void tma_start_blocks() { threads.assign(launched->cluster_size * launched->threads, ThreadState()); }

void tma_retire(const Thread& t) {
  const ThreadState& s = threads[t.agent];
  bool read = s.open.empty();
  for (const Stores& group : s.committed)
    for (const auto& store : group) read &= store->read;
  if (!read)
    fail(FaultKind::unfinished_copy,
         "the thread returned with bulk stores it never waited for: shared memory may be gone before they read it");
}

void tma_load(int site, unsigned dimensions, uint32_t to, uint64_t map, const int32_t* at, uint32_t barrier, uint32_t blocks) {
  current->site = site;
  Move move = plan(dimensions, map, at, to, false);
  SharedPlace b = shared_place(barrier);
  if (!blocks) {
    mbarrier_check_for_tma(barrier);
    if (b.rank != move.rank) fail(FaultKind::other, "TMA: the box and its mbarrier lie in different blocks");
    start_load(move, b);
    return;
  }
  if (blocks >> launched->cluster_size)
    fail(FaultKind::out_of_bounds, "multicast to blocks %x of a cluster of %u", blocks, launched->cluster_size);
  for (unsigned rank = 0; rank < launched->cluster_size; ++rank)
    if (blocks >> rank & 1) {
      move.rank = b.rank = rank;
      mbarrier_check_for_tma((rank + 1) * kSharedStride + b.offset);
      start_load(move, b);
    }
}

void tma_store(int site, unsigned dimensions, uint64_t map, const int32_t* at, uint32_t from) {
  current->site = site;
  start_store(plan(dimensions, map, at, from, true));
}

void bulk_load(int site, uint32_t to, uint64_t from, uint32_t bytes, uint32_t barrier) {
  current->site = site;
  mbarrier_check_for_tma(barrier);
  start_load(plan_bytes(to, from, bytes), shared_place(barrier));
}

void bulk_store(int site, uint64_t to, uint32_t from, uint32_t bytes) {
  current->site = site;
  start_store(plan_bytes(from, to, bytes));
}

void bulk_commit(int site) {
  if (left_out(site)) return;
  current->site = site;
  ThreadState& s = threads[current->agent];
  s.committed.push_back(std::move(s.open));
  s.open.clear();
}

void bulk_wait(int site, unsigned pending_groups, bool reads_only) {
  if (left_out(site)) return;
  current->site = site;
  ThreadState& s = threads[current->agent];
  ClockSum over;
  for (size_t i = 0; i + pending_groups < s.committed.size(); ++i)
    for (auto& store : s.committed[i]) {
      store->happen();
      store->read = true;
      if (!config.check) continue;
      over.add(store->reads.agent, store->reads.time);
      if (!reads_only) over.add(store->writes.agent, store->writes.time);
    }
  if (!over.empty()) learn(*current, over.take());
  if (!reads_only)
    while (s.committed.size() > pending_groups) s.committed.pop_front();
}

void* driver_function(const char* name) {
  return std::strcmp(name, "cuTensorMapEncodeTiled") == 0 ? reinterpret_cast<void*>(&encode_tiled) : nullptr;
}

}  // namespace qkv::emulation

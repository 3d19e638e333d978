#include "cuda/emulation/tensor_core.h"

#include <cstring>

#include "cuda/emulation/block.h"
#include "cuda/emulation/counters.h"
#include "cuda/emulation/memory.h"
#include "cuda/emulation/numbers.h"

namespace qkv::emulation {
namespace {

constexpr uint32_t kAllLanes = 0xFFFFFFFF;

void need_whole_warp(uint32_t lanes, const char* what) {
  if (lanes != kAllLanes) fail(FaultKind::divergent, "%s by lanes %08x: it needs the whole warp", what, lanes);
}

float widen(Element e, uint32_t two, int which) {
  const uint16_t h = static_cast<uint16_t>(which ? two >> 16 : two);
  return e == Element::bf16 ? bf16_to_float(h) : f16_to_float(h);
}

struct Mma {
  Element element;
  int k;
  const uint32_t *a, *b;
  float sum[4];  // C, then D
};

// With g = lane / 4 and t = lane % 4:
//   A: register r, half h holds row g + 8 (r % 2), column 2 t + h + 8 (r / 2)
//   B: register r, half h holds row 2 t + h + 8 r, column g
//   C, D: register i holds row g + 8 (i / 2), column 2 t + i % 2
// Products are exact in float; the sum runs over k in order and C is added last. Hardware adds in an order of its own.
void multiply(void** slots, uint32_t lanes, void*) {
  need_whole_warp(lanes, "mma");
  float a[16][16], b[16][8];
  const int k = static_cast<Mma*>(slots[0])->k;
  for (int lane = 0; lane < 32; ++lane) {
    const Mma& m = *static_cast<Mma*>(slots[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < k / 4; ++r)
      for (int h = 0; h < 2; ++h) a[g + 8 * (r % 2)][2 * t + h + 8 * (r / 2)] = widen(m.element, m.a[r], h);
    for (int r = 0; r < k / 8; ++r)
      for (int h = 0; h < 2; ++h) b[2 * t + h + 8 * r][g] = widen(m.element, m.b[r], h);
  }
  float sum[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int i = 0; i < k; ++i)
      for (int column = 0; column < 8; ++column) sum[row][column] += a[row][i] * b[i][column];
  for (int lane = 0; lane < 32; ++lane) {
    Mma& m = *static_cast<Mma*>(slots[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) m.sum[i] += sum[g + 8 * (i / 2)][2 * t + i % 2];
  }
  if (counted) ++counted->mma;
}

struct MatrixRows {
  int count;
  bool transposed;
  unsigned char* row;  // nullptr: this lane gives none
  uint32_t* registers;
};

// Register m of lane l holds elements 2 (l % 4) and the next of row l / 4 of matrix m; transposed: of column l / 4.
template <bool kStore>
void move_rows(void** slots, uint32_t lanes, void*) {
  need_whole_warp(lanes, kStore ? "stmatrix" : "ldmatrix");
  const MatrixRows& first = *static_cast<MatrixRows*>(slots[0]);
  for (int m = 0; m < first.count; ++m)
    for (int row = 0; row < 8; ++row) {
      unsigned char* p = static_cast<MatrixRows*>(slots[8 * m + row])->row;
      for (int column = 0; column < 8; ++column) {
        const int lane = first.transposed ? column * 4 + row / 2 : row * 4 + column / 2;
        const int shift = 16 * (first.transposed ? row % 2 : column % 2);
        uint32_t& r = static_cast<MatrixRows*>(slots[lane])->registers[m];
        uint16_t element;
        if constexpr (kStore) {
          element = static_cast<uint16_t>(r >> shift);
          std::memcpy(p + 2 * column, &element, 2);
        } else {
          std::memcpy(&element, p + 2 * column, 2);
          r = (r & ~(0xFFFFu << shift)) | static_cast<uint32_t>(element) << shift;
        }
      }
    }
}

void check_row(int site, int count, bool write, uint32_t address, MatrixRows& m) {
  current->site = site;
  if (static_cast<int>(current->lane) >= 8 * count) return;
  m.row = shared_bytes(address, 16, 16);
  const SharedPlace p = shared_place(address);
  if (config.check) check_shared(p.rank, p.offset, 16, write);
  if (counted) count_access(TrafficKind::matrix, write, p.offset, 16);
}

}  // namespace

void mma_f32(int site, Element element, int k, float* d, const uint32_t* a, const uint32_t* b, const float* c) {
  Mma m{element, k, a, b, {c[0], c[1], c[2], c[3]}};
  meet_warp(site, kAllLanes, &m, &multiply);
  std::memcpy(d, m.sum, sizeof m.sum);
}

void mma_f16(int site, int k, uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  Mma m{Element::f16, k, a, b, {}};
  for (int i = 0; i < 4; ++i) m.sum[i] = widen(Element::f16, c[i / 2], i % 2);
  meet_warp(site, kAllLanes, &m, &multiply);
  for (int i = 0; i < 2; ++i) d[i] = float_to_f16(m.sum[2 * i]) | static_cast<uint32_t>(float_to_f16(m.sum[2 * i + 1])) << 16;
}

void load_matrix(int site, int count, bool transposed, uint32_t* to, uint32_t address) {
  MatrixRows m{count, transposed, nullptr, to};
  check_row(site, count, false, address, m);
  meet_warp(site, kAllLanes, &m, &move_rows<false>);
}

void store_matrix(int site, int count, bool transposed, const uint32_t* from, uint32_t address) {
  uint32_t registers[4];
  std::memcpy(registers, from, static_cast<size_t>(count) * 4);
  MatrixRows m{count, transposed, nullptr, registers};
  check_row(site, count, true, address, m);
  meet_warp(site, kAllLanes, &m, &move_rows<true>);
}

uint32_t move_matrix(int site, uint32_t a) {
  struct Move {
    uint32_t from, to;
  } mine{a, 0};
  meet_warp(site, kAllLanes, &mine, [](void** slots, uint32_t lanes, void*) {
    need_whole_warp(lanes, "movmatrix");
    for (int row = 0; row < 8; ++row)
      for (int column = 0; column < 8; ++column) {
        const uint32_t from = static_cast<Move*>(slots[row * 4 + column / 2])->from;
        static_cast<Move*>(slots[column * 4 + row / 2])->to |= (from >> (16 * (column % 2)) & 0xFFFF) << (16 * (row % 2));
      }
  });
  return mine.to;
}

}  // namespace qkv::emulation

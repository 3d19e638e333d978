// How a block of keys or values gets from memory into what attention works on: panels of 16 keys, rows of values, both float.
//
// Memory is dense, packed or paged (blocks named by a table), of any dtype, or int8 with a scale per token and head:
// x = scale * q, rounded once. Whatever the memory, the same keys give the same floats in the same places.
#pragma once
#include "cpu/flash.h"
#include "cpu/kernels.h"

namespace qkv {
namespace QKV_ISA {

// The keys, or the values, of one head of one sequence. Strides in elements.
struct KeySource {
  const char* data;  // place 0; with a table, of block 0
  DType dtype;
  int64_t row, step;  // from key to key (inside a block) and from feature to feature
  // int8: scales, at place 0 as above; else nullptr.
  const float* scale;
  int64_t scale_row, scale_block;
  // Paged: key j lies at place start + j of the blocks of the table, one after the other; else nullptr.
  const int64_t* table;
  int64_t block_size, block, start;  // places of a block, from block to block in memory, place of key 0
};

// Calls body(at, count, from, scale) for each stretch of keys [key, key + n) that lies in one piece: keys key + at ...
// key + at + count - 1 are rows of `from`, row apart, and of `scale`, scale_row apart.
template <class Body>
QKV_INLINE void each_run(const KeySource& s, int64_t key, int64_t n, Body&& body) {
  const int64_t size = s.scale ? 1 : size_of(s.dtype);
  if (!s.table) {
    body((int64_t)0, n, s.data + key * s.row * size, s.scale ? s.scale + key * s.scale_row : nullptr);
    return;
  }
  for (int64_t at = 0; at < n;) {
    const int64_t place = s.start + key + at, inside = place % s.block_size, block = s.table[place / s.block_size];
    const int64_t left = s.block_size - inside, count = n - at < left ? n - at : left;
    body(at, count, s.data + (block * s.block + inside * s.row) * size,
         s.scale ? s.scale + block * s.scale_block + inside * s.scale_row : nullptr);
    at += count;
  }
}

// to[0..n) = scale * from[0..n): lanes that the compiler turns into vectors.
QKV_INLINE void dequantize(float* __restrict to, const int8_t* __restrict from, int64_t step, float scale, int64_t n) {
  if (step == 1)
    for (int64_t i = 0; i < n; ++i) to[i] = (float)from[i] * scale;
  else
    for (int64_t i = 0; i < n; ++i) to[i] = (float)from[i * step] * scale;
}

// Columns [first, first + n) of one panel (d, 16), element by element.
static inline void load_columns(float* panel, const KeySource& s, const char* from, const float* scale, int64_t first, int64_t n,
                                int64_t d) {
  for (int64_t j = 0; j < n; ++j) {
    float* const to = panel + first + j;
    if (scale) {
      const int8_t* q = (const int8_t*)from + j * s.row;
      for (int64_t i = 0; i < d; ++i) to[i * kPanel] = (float)q[i * s.step] * scale[j * s.scale_row];
    } else {
      with_type(s.dtype, (const void*)(from + j * s.row * size_of(s.dtype)), [&](auto* p) {
        for (int64_t i = 0; i < d; ++i) to[i * kPanel] = to_float(p[i * s.step]);
      });
    }
  }
}

// One panel of int8 keys, zeros beyond the n-th: 8 or 16 features at a time are dequantised and transposed.
static inline void load_panel_int8(float* panel, const KeySource& s, const char* from, const float* scale, int64_t n, int64_t d) {
  const int8_t* const q = (const int8_t*)from;
  for (int64_t i = 0; i < d; i += kLanes) {
    const int64_t width = d - i < kLanes ? d - i : kLanes;
    for (int64_t v = 0; v < kPanel; v += kLanes) {
      float rows[kLanes * kLanes];
      for (int64_t j = 0; j < kLanes; ++j) {
        float* const row = rows + j * kLanes;
        if (v + j < n && s.step == 1 && width == kLanes)
          dequantize(row, q + (v + j) * s.row + i, 1, scale[(v + j) * s.scale_row], kLanes);
        else if (v + j < n)
          dequantize(row, q + (v + j) * s.row + i * s.step, s.step, scale[(v + j) * s.scale_row], width);
        else
          store(row, zero(), Full{});
      }
      if (width == kLanes) {
        transpose(rows, kLanes, panel + i * kPanel + v, kPanel);
      } else {
        for (int64_t c = 0; c < width; ++c)
          for (int64_t j = 0; j < kLanes; ++j) panel[(i + c) * kPanel + v + j] = rows[j * kLanes + c];
      }
    }
  }
}

// Keys [key, key + n) of width d to columns lead, lead + 1 ... of panels (d, 16), lead < 16; the rest of the panels is zero. No
// other key is read.
static inline void load_keys(float* panels, const KeySource& s, int64_t key, int64_t n, int64_t lead, int64_t d) {
  if (lead) memset(panels, 0, (size_t)(kPanel * d) * 4);
  each_run(s, key, n, [&](int64_t at, int64_t count, const char* from, const float* scale) {
    int64_t column = lead + at;
    if (const int64_t inside = column % kPanel) {  // a panel that was begun
      const int64_t head = count < kPanel - inside ? count : kPanel - inside;
      load_columns(panels + (column - inside) * d, s, from, scale, inside, head, d);
      column += head;
      count -= head;
      from += head * s.row * (scale ? 1 : size_of(s.dtype));
      if (scale) scale += head * s.scale_row;
    }
    if (!scale)
      pack_panels(panels + column * d, s.dtype, from, s.step, s.row, d, count);
    else
      for (int64_t j = 0; j < count; j += kPanel)
        load_panel_int8(panels + (column + j) * d, s, from + j * s.row, scale + j * s.scale_row,
                        count - j < kPanel ? count - j : kPanel, d);
  });
}

// Values [key, key + n) to rows (n, dv_padded), padded with zeros. True if all are finite.
static inline bool load_values(float* values, const KeySource& s, int64_t key, int64_t n, int64_t dv, int64_t dv_padded) {
  bool finite = true;
  Vec check = zero();
  each_run(s, key, n, [&](int64_t at, int64_t count, const char* from, const float* scale) {
    float* const to = values + at * dv_padded;
    if (!scale) {
      finite = flash_values(to, dv, dv_padded, s.dtype, from, s.row, s.step, count) && finite;
      return;
    }
    for (int64_t j = 0; j < count; ++j) {
      float* const row = to + j * dv_padded;
      dequantize(row, (const int8_t*)from + j * s.row, s.step, scale[j * s.scale_row], dv);
      for (int64_t i = dv; i < dv_padded; ++i) row[i] = 0;
      for (int64_t i = 0; i < dv_padded; i += kLanes) check = fma(zero(), load(row + i, Full{}), check);  // as flash_values
    }
  });
  return finite && reduce_add(check) == 0;
}

}  // namespace QKV_ISA
}  // namespace qkv

// Keys and values in the blocks of a cache, in any of the types that it stores: where they lie, and what they are in q's dtype T.
//
// Nobody has checked block numbers that come from the device's memory. A key in a block that the cache does not have is NaN, and
// so are the rows that see it: nothing foreign is read, and nothing goes wrong in silence.
#pragma once
#include "cuda/attention_problem.cuh"

namespace qkv::cuda {

constexpr float kNaN = __builtin_nanf("");

struct Place {
  int block, inside;  // block < 0: in none of the cache
};

QKV_DEVICE int block_index(const Problem& p, unsigned place) { return (__umulhi(place, p.block_magic) + place) >> p.block_shift; }

// The table's entry for a key, as it stands there.
QKV_DEVICE int64_t table_entry(const Problem& p, const Entry& e, int key) {
  return read_int(p.a.block_tables, e.b * p.a.table_row + block_index(p, static_cast<unsigned>(e.k0) + key));
}

QKV_DEVICE Place place_of(const Problem& p, const Entry& e, int key, int64_t entry) {
  const unsigned place = static_cast<unsigned>(e.k0) + key;
  return {entry >= 0 && entry < p.a.blocks ? static_cast<int>(entry) : -1,
          static_cast<int>(place - block_index(p, place) * static_cast<unsigned>(p.a.block_size))};
}
QKV_DEVICE Place place_of(const Problem& p, const Entry& e, int key) { return place_of(p, e, key, table_entry(p, e, key)); }

// In elements of k, v or their scales.
QKV_DEVICE int64_t offset_of(const Strided4& x, int kv_head, Place at) {
  return at.block * x.b + kv_head * x.h + at.inside * x.s;
}

QKV_DEVICE float scale_at(const Strided4& scale, int kv_head, Place at) {
  return reinterpret_cast<const float*>(scale.data)[offset_of(scale, kv_head, at)];
}

constexpr int stored_size(Stored stored) { return stored == Stored::f32 ? 4 : stored == Stored::int8 ? 1 : 2; }

// A row of k or v, number by number.
template <class T>
struct StoredRow {
  const void* data;  // nullptr: in no block
  float scale;       // of int8; of no block: what its numbers count as
  Stored stored;
  QKV_DEVICE float operator[](int64_t i) const {
    if (!data) return scale;
    float x;
    switch (stored) {
      case Stored::f32:
        x = static_cast<const float*>(data)[i];
        break;
      case Stored::f16:
        x = to_float(static_cast<const __half*>(data)[i]);
        break;
      case Stored::bf16:
        x = to_float(static_cast<const __nv_bfloat16*>(data)[i]);
        break;
      default:
        x = __fmul_rn(static_cast<float>(static_cast<const int8_t*>(data)[i]), scale);
    }
    return to_float(from_float<T>(x));
  }
};

template <class T>
QKV_DEVICE StoredRow<T> stored_row(const Problem& p, bool is_key, int kv_head, Place at) {
  const Strided4 &x = is_key ? p.a.k : p.a.v, &scale = is_key ? p.a.k_scale : p.a.v_scale;
  if (at.block < 0) return {nullptr, is_key ? kNaN : 0.0f, p.a.stored};
  return {x.data + offset_of(x, kv_head, at) * stored_size(p.a.stored),
          p.a.stored == Stored::int8 ? scale_at(scale, kv_head, at) : 0.0f, p.a.stored};
}

}  // namespace qkv::cuda

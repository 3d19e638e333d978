// Element types that cross the layers, as plain data.
#pragma once
#include <stdint.h>

namespace qkv {

enum class DType : uint8_t { f32, f16, bf16 };

// Storage of half-width floats. Arithmetic happens in float; cpu/simd/ converts on load and store.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

static inline int64_t size_of(DType t) { return t == DType::f32 ? 4 : 2; }

}  // namespace qkv

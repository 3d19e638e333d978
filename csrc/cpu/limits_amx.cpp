// The peaks of products of tiles; what else limits.cpp measures is the same with AMX.
#include "cpu/kernels.h"
#include "cpu/simd/amx.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_BASE_ISA {
void limits(const LimitArgs&);
}

namespace QKV_ISA {

// Four sums of two tiles by two, as products of many rows have them.
template <bool kBf16>
static int64_t run_tiles() {
  constexpr int64_t kRounds = 1 << 13;
  shape_tiles(kTileRows);  // and clears them
  for (int64_t i = 0; i < kRounds; ++i)
    if constexpr (kBf16)
      multiply_bf16<0, 4, 6>(), multiply_bf16<1, 4, 7>(), multiply_bf16<2, 5, 6>(), multiply_bf16<3, 5, 7>();
    else
      multiply_int8<0, 4, 6>(), multiply_int8<1, 4, 7>(), multiply_int8<2, 5, 6>(), multiply_int8<3, 5, 7>();
  leave_tiles();
  return kRounds * 4 * kTileRows * 16 * (kTileRowBytes / (kBf16 ? 2 : 1)) * 2;
}

void limits(const LimitArgs& a) {
  if (a.limit != Limit::bf16_dot && a.limit != Limit::int8_dot) return QKV_BASE_ISA::limits(a);
  parallel(a.chunks, 1, a.threads, [&](int64_t begin, int64_t end, int) {
    int64_t done = 0;
    for (int64_t i = begin; i < end; ++i) done += a.limit == Limit::bf16_dot ? run_tiles<true>() : run_tiles<false>();
    __atomic_fetch_add(a.done, done, __ATOMIC_RELAXED);
  });
}

}  // namespace QKV_ISA
}  // namespace qkv

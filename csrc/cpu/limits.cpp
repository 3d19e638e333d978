// What the machine can do at best, measured with the least code that asks for it: the yardstick of the benchmarks, used by no op.
// Arithmetic: independent chains on registers, of one instruction or of those that do its work where it is missing. Memory: one
// pass over buffers larger than the caches.
#include "cpu/kernels.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

// Chains in flight: an FMA takes 4 or 5 cycles, a dot product up to 6, and two may start per cycle; 12 fit into 16 registers.
constexpr int kChains = 12;
constexpr int64_t kRounds = 1 << 15;

// The compiler has to compute what is stored to a volatile variable.
static void keep(float x) {
  volatile float kept = x;
  (void)kept;
}

// The same value, of which the compiler knows nothing: or else one product would serve all sums.
template <class V>
QKV_INLINE V fresh(V a) {
#if defined(__AVX2__) && !defined(QKV_EMULATE_AVX512)
  asm volatile("" : "+v"(a.v));
#elif defined(QKV_X86) && !defined(QKV_EMULATE_AVX512)
  asm volatile("" : "+x"(a.v));
#else
  asm volatile("" : "+m"(a));
#endif
  return a;
}

QKV_INLINE float some_lane(Vec a) { return reduce_max(a); }
QKV_INLINE float some_lane(IVec a) { return reduce_max(to_float(a)); }

// Multiply-adds as tile.h makes them, `width` elements of k a lane; without dot-product instructions that is what replaces them.
// Returns the operations done: two per multiply-add.
template <class Dot, class Word>
static int64_t run_dots(int64_t width, Word w, Word a) {
  typename Dot::Acc sum[kChains];
  QKV_UNROLL(12)
  for (int c = 0; c < kChains; ++c) sum[c] = Dot::zero();
  for (int64_t i = 0; i < kRounds; ++i) {
    QKV_UNROLL(12)
    for (int c = 0; c < kChains; ++c) {
      a = fresh(a);  // or else a copy of it for each
      sum[c] = Dot::mac(sum[c], w, a);
    }
  }
  QKV_UNROLL(12)
  for (int c = 0; c < kChains; ++c) keep(some_lane(sum[c]));
  return kRounds * kChains * kLanes * width * 2;
}

// n a multiple of 8 vectors. In eight stretches side by side, as a product of one row reads panels (Zen 4: 33 to 35 GB/s, a
// single stretch 31 to 33). Software prefetch and longer chunks were tried and read no faster.
static void run_read(const float* x, int64_t n) {
  Vec sum[8];
  QKV_UNROLL(8)
  for (int c = 0; c < 8; ++c) sum[c] = zero();
  for (int64_t i = 0; i < n / 8; i += kLanes) {
    QKV_UNROLL(8)
    for (int c = 0; c < 8; ++c) sum[c] = max(sum[c], load(x + c * (n / 8) + i, Full{}));
  }
  Vec total = zero();
  QKV_UNROLL(8)
  for (int c = 0; c < 8; ++c) total = max(total, sum[c]);
  keep(reduce_max(total));
}

static void run_copy(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(y + i, load(x + i, Full{}), Full{});
}

// A copy that writes past the caches: what is written need not be read first.
static bool run_stream(const float* x, float* y, int64_t n) {
#if defined(QKV_AVX512)
  for (int64_t i = 0; i < n; i += kLanes) _mm512_stream_ps(y + i, load(x + i, Full{}).v);
  _mm_sfence();
#elif defined(__AVX2__)
  for (int64_t i = 0; i < n; i += kLanes) _mm256_stream_ps(y + i, load(x + i, Full{}).v);
  _mm_sfence();
#else
  (void)x, (void)y, (void)n;
  return false;
#endif
  return true;
}

void limits(const LimitArgs& a) {
  parallel(a.chunks, 1, a.threads, [&](int64_t begin, int64_t end, int) {
    int64_t done = 0;
    for (int64_t i = begin; i < end; ++i) {
      const float* x = a.x + i * kLimitChunk;
      float* y = a.y + i * kLimitChunk;
      switch (a.limit) {
        case Limit::fma:
          done += run_dots<DotFloat>(1, set(1e-3f), set(1));
          break;
        case Limit::bf16_dot:
          done += run_dots<DotBf16>(DotBf16::kWidth, as_float(iset(0x3f803f80)), as_float(iset(0x3f803f80)));
          break;
        case Limit::int8_dot:
          done += run_dots<DotInt8>(4 / DotInt8::kParts, iset(1), iset(1));
          break;
        case Limit::read:
          run_read(x, kLimitChunk), done += kLimitChunk * 4;
          break;
        case Limit::copy:
          run_copy(x, y, kLimitChunk), done += kLimitChunk * 8;
          break;
        case Limit::stream:
          done += run_stream(x, y, kLimitChunk) ? kLimitChunk * 8 : 0;
          break;
      }
    }
    __atomic_fetch_add(a.done, done, __ATOMIC_RELAXED);
  });
}

}  // namespace QKV_ISA
}  // namespace qkv

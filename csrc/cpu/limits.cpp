// What the machine can do at best, measured with the least code that asks for it: the yardstick of the benchmarks, used by no op.
// Arithmetic: independent chains of one instruction on registers. Memory: one pass over buffers larger than the caches.
#include "cpu/kernels.h"
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

// Return the operations done: two per multiply-add.
static int64_t run_fma() {
  Vec sum[kChains];
  const Vec a = set(0.5f), b = set(1.0f);  // towards 2: no denormals, no infinities
  QKV_UNROLL(12)
  for (int c = 0; c < kChains; ++c) sum[c] = set((float)c);
  for (int64_t i = 0; i < kRounds; ++i) {
    QKV_UNROLL(12)
    for (int c = 0; c < kChains; ++c) sum[c] = fma(sum[c], a, b);
  }
  Vec total = zero();
  QKV_UNROLL(12)
  for (int c = 0; c < kChains; ++c) total = add(total, sum[c]);
  keep(reduce_max(total));
  return kRounds * kChains * kLanes * 2;
}

#if defined(QKV_AVX512_BF16_VNNI)
static int64_t run_bf16_dot() {
  __m512 sum[kChains];
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = (__m512bh)_mm512_setzero_si512();
  QKV_UNROLL(12)
  for (int c = 0; c < kChains; ++c) sum[c] = _mm512_set1_ps((float)c);
  for (int64_t i = 0; i < kRounds; ++i) {
    QKV_UNROLL(12)
    for (int c = 0; c < kChains; ++c) sum[c] = _mm512_dpbf16_ps(sum[c], a, b);
  }
  __m512 total = _mm512_setzero_ps();
  QKV_UNROLL(12)
  for (int c = 0; c < kChains; ++c) total = _mm512_add_ps(total, sum[c]);
  keep(_mm512_reduce_add_ps(total));
  return kRounds * kChains * 32 * 2;
}
#else
static int64_t run_bf16_dot() { return 0; }
#endif

#if defined(QKV_AVX512_BF16_VNNI)
static int64_t run_int8_dot() {
  __m512i sum[kChains];
  const __m512i a = _mm512_set1_epi32(1), b = _mm512_setzero_si512();
  QKV_UNROLL(12)
  for (int c = 0; c < kChains; ++c) sum[c] = _mm512_set1_epi32(c);
  for (int64_t i = 0; i < kRounds; ++i) {
    QKV_UNROLL(12)
    for (int c = 0; c < kChains; ++c) sum[c] = _mm512_dpbusd_epi32(sum[c], a, b);
  }
  __m512i total = _mm512_setzero_si512();
  QKV_UNROLL(12)
  for (int c = 0; c < kChains; ++c) total = _mm512_add_epi32(total, sum[c]);
  keep((float)_mm512_reduce_add_epi32(total));
  return kRounds * kChains * 64 * 2;
}
#else
static int64_t run_int8_dot() { return 0; }
#endif

// n a multiple of 8 vectors. Software prefetch and longer chunks were tried and read no faster.
static void run_read(const float* x, int64_t n) {
  Vec sum[8];
  QKV_UNROLL(8)
  for (int c = 0; c < 8; ++c) sum[c] = zero();
  for (int64_t i = 0; i < n; i += 8 * kLanes) {
    QKV_UNROLL(8)
    for (int c = 0; c < 8; ++c) sum[c] = max(sum[c], load(x + i + c * kLanes, Full{}));
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
          done += run_fma();
          break;
        case Limit::bf16_dot:
          done += run_bf16_dot();
          break;
        case Limit::int8_dot:
          done += run_int8_dot();
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

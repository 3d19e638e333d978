// top_k: the k largest of each row in descending order, and where they stand. Of equal ones the first counts as larger, a NaN as
// smaller than any number. Few elements of a long row are larger than the k-th so far; and none that counts is smaller than the
// k-th of the maxima of its blocks, which bounds the work where a row ascends.
// keep_best: the same of rows that come in pieces (linear_top_k.cpp).
#include <math.h>

#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

// Puts x, which stands at `place`, among `count` sorted ones; the last falls off if there are k already. Returns the new count.
static int64_t insert(float* values, int64_t* places, int64_t count, int64_t k, float x, int64_t place) {
  int64_t i = count < k ? count : k - 1;
  for (; i > 0 && values[i - 1] < x; --i) {
    values[i] = values[i - 1];
    places[i] = places[i - 1];
  }
  values[i] = x;
  places[i] = place;
  return count < k ? count + 1 : k;
}

constexpr int64_t kBlock = 64;

// What at least k elements are larger than, or -inf. values, places: room for k.
static float floor_of(const float* x, int64_t n, int64_t k, float* values, int64_t* places) {
  if (n < 4 * k * kBlock) return -__builtin_inff();
  int64_t count = 0;
  for (int64_t i = 0; i + kBlock <= n; i += kBlock) {
    Vec top = load(x + i, Full{});
    for (int64_t j = kLanes; j < kBlock; j += kLanes) top = max(top, load(x + i + j, Full{}));
    const float most = reduce_max(top);  // or less, where NaN stand: that is no harm
    if (count == k ? most > values[k - 1] : most == most) count = insert(values, places, count, k, most, i);
  }
  return count == k ? nextafterf(values[k - 1], -__builtin_inff()) : -__builtin_inff();
}

static void top_of_row(const float* x, int64_t n, int64_t k, float* values, int64_t* places) {
  const float floor = floor_of(x, n, k, values, places);
  int64_t count = 0;
  const auto look_at = [&](int64_t i) {
    if (count == k ? x[i] > values[k - 1] : x[i] > floor || (floor == -__builtin_inff() && x[i] == x[i]))
      count = insert(values, places, count, k, x[i], i);
  };
  int64_t i = 0;
  if (floor == -__builtin_inff())
    for (; i < n && count < k; ++i) look_at(i);
  for (; i + kLanes <= n; i += kLanes)
    if (any(lt(set(count == k ? values[k - 1] : floor), load(x + i, Full{}))))
      for (int64_t j = i; j < i + kLanes; ++j) look_at(j);
  for (; i < n; ++i) look_at(i);
  for (i = 0; i < n && count < k; ++i)
    if (x[i] != x[i]) {
      values[count] = x[i];
      places[count++] = i;
    }
}

void top_k(const TopKArgs& a) {
  parallel(a.rows, grain_for(a.n, a.rows, a.threads), a.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) top_of_row(a.x + r * a.n, a.n, a.k, a.values + r * a.k, a.places + r * a.k);
  });
}

// The next smaller one of a finite number.
static Vec just_below(float x) {
  int32_t bits;
  memcpy(&bits, &x, 4);
  bits = x > 0 ? bits - 1 : x < 0 ? bits + 1 : INT32_MIN + 1;
  memcpy(&x, &bits, 4);
  return set(x);
}

// What at least k elements are no smaller than: the k-th of the maxima of more stretches and lanes than that. -inf for few
// elements, or where one is not finite. keys: room for k, of zeros before and after.
static float floor_of_lanes(const float* x, int64_t n, int64_t k, uint64_t* keys) {
  constexpr int64_t kTimes = 4;                                                                   // k
  const int64_t stretches = (kTimes * k + kLanes - 1) / kLanes, each = n / (stretches * kLanes);  // vectors
  if (each < 2) return -__builtin_inff();
  Vec check = zero();
  for (int64_t s = 0; s < stretches; ++s) {
    Vec top = set(-__builtin_inff());
    for (int64_t i = s * each; i < (s + 1) * each; ++i) {
      const Vec v = load(x + i * kLanes, Full{});
      check = fma(v, zero(), check);
      top = max(top, v);
    }
    float tops[kLanes];
    store(tops, top, Full{});
    for (int64_t i = 0; i < kLanes; ++i) keep(keys, k, key_of(tops[i], s * kLanes + i));
  }
  const float floor = reduce_add(check) == 0 ? value_of(keys[k - 1]) : -__builtin_inff();
  memset(keys, 0, (size_t)(k * 8));
  return floor;
}

void keep_best(const KeepBestArgs& a) {
  const int64_t k = a.k;
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* const x = a.x + r * a.ldx;
    uint64_t* const keys = a.keys + r * k;
    const float least = keys[k - 1] != 0 ? value_of(keys[k - 1])
                        : keys[0] == 0   ? floor_of_lanes(x, a.n, k, keys)
                                         : -__builtin_inff();
    // Where there is nothing to compare with, or that is NaN, elements go one by one.
    const int64_t by_blocks = least > -__builtin_inff() ? a.n / kBlock * kBlock : 0;
    Vec below = just_below(least);
    int64_t i = 0;
    for (; i < by_blocks; i += kBlock) {
      Vec top = set(-__builtin_inff());
      QKV_UNROLL(16)
      for (int64_t j = 0; j < kBlock; j += kLanes) top = max(load(x + i + j, Full{}), top);  // past NaN
      if (!any(lt(below, top))) continue;
      uint64_t found = 0;
      QKV_UNROLL(16)
      for (int64_t j = 0; j < kBlock; j += kLanes) found |= bits(lt(below, load(x + i + j, Full{}))) << j;
      for (; found != 0; found &= found - 1) {
        const int64_t at = i + __builtin_ctzll(found);
        keep(keys, k, key_of(x[at], a.first + at));
      }
      if (keys[k - 1] != 0) below = just_below(value_of(keys[k - 1]));
    }
    for (; i < a.n; ++i) keep(keys, k, key_of(x[i], a.first + i));
  }
}

}  // namespace QKV_ISA
}  // namespace qkv

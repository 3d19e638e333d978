// top_k: the k largest of each row in descending order, and where they stand. Of equal ones the first counts as larger, a NaN as
// smaller than any number. Few elements of a long row are larger than the k-th so far; and none that counts is smaller than the
// k-th of the maxima of its blocks, which bounds the work where a row ascends.
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

}  // namespace QKV_ISA
}  // namespace qkv

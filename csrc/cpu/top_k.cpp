// top_k: the k largest of each row in descending order, and where they stand. Of equal ones the first counts as larger, a NaN as
// smaller than any number. One pass: few elements of a long row are larger than the k-th so far.
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

static void top_of_row(const float* x, int64_t n, int64_t k, float* values, int64_t* places) {
  int64_t count = 0;
  const auto look_at = [&](int64_t i) {
    if (count == k ? x[i] > values[k - 1] : x[i] == x[i]) count = insert(values, places, count, k, x[i], i);
  };
  int64_t i = 0;
  for (; i < n && count < k; ++i) look_at(i);
  for (; i + kLanes <= n; i += kLanes)
    if (any(lt(set(values[k - 1]), load(x + i, Full{}))))
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

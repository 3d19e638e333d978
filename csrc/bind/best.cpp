#include "bind/best.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace qkv {

constexpr float kLeast = -std::numeric_limits<float>::infinity();

bool BestTokens::counts(int64_t place, int64_t token) const {
  return !std::binary_search(gone, gone + gone_count, place * vocabulary + token);
}

bool best_left(const BestTokens& of, int64_t* left) {
  for (int64_t row = 0; row < of.rows; ++row) {
    int64_t i = row * of.m;
    const int64_t end = i + of.m;
    while (i < end && !of.counts(row, of.tokens[i])) ++i;
    if (i == end || !(of.scores[i] > kLeast)) return false;
    left[row] = of.tokens[i];
  }
  return true;
}

bool best_sums(const BestSumsArgs& a) {
  struct Candidate {
    float sum;
    int64_t beam, token;
  };
  const int64_t m = a.of.m;
  if (a.k > a.beams * m) return false;
  std::vector<Candidate> found(static_cast<size_t>(a.beams * m));
  for (int64_t text = 0; text < a.texts; ++text) {
    float unseen = kLeast;
    auto to = found.begin();
    for (int64_t beam = 0; beam < a.beams; ++beam) {
      const int64_t place = text * a.beams + beam, first = a.row[place] * m;
      for (int64_t i = first; i < first + m; ++i) {
        const float sum = a.of.scores[i] + a.running[place];
        if (std::isnan(sum)) return false;
        *to++ = {a.of.counts(place, a.of.tokens[i]) ? sum : kLeast, beam, a.of.tokens[i]};
        if (i == first + m - 1) unseen = std::max(unseen, sum);
      }
    }
    std::partial_sort(found.begin(), found.begin() + a.k, found.end(), [](const Candidate& x, const Candidate& y) {
      if (x.sum != y.sum) return x.sum > y.sum;
      return x.beam != y.beam ? x.beam < y.beam : x.token < y.token;
    });
    if (!(found[static_cast<size_t>(a.k - 1)].sum > unseen)) return false;
    for (int64_t i = 0; i < a.k; ++i) {
      const Candidate& c = found[static_cast<size_t>(i)];
      a.best[text * a.k + i] = c.sum;
      a.best_beam[text * a.k + i] = c.beam;
      a.best_token[text * a.k + i] = c.token;
    }
  }
  return true;
}

}  // namespace qkv

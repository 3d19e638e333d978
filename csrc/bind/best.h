// What greedy and beam search choose, by the best few tokens of each row.
#pragma once
#include <cstdint>

namespace qkv {

// Each row's best, and what does not count of them.
struct BestTokens {
  const float* scores;    // (rows, m), in descending order; all that a row does not have here is at most its last
  const int64_t* tokens;  // (rows, m)
  int64_t rows, m;
  const int64_t* gone;  // place * vocabulary + token, ascending; place: a row, or text * beams + beam
  int64_t gone_count, vocabulary;

  bool counts(int64_t place, int64_t token) const;
};

// Of each row the first that counts. False, and nothing of use written, where none does, or it is -inf or NaN.
bool best_left(const BestTokens&, int64_t* left);

// Of each text the k largest of score + running[beam] over its beams, in descending order, of equal ones the first beam's and
// token's first. False, and nothing of use written, where one that is not here may be as good, or a sum is NaN.
struct BestSumsArgs {
  BestTokens of;
  const int64_t* row;    // (texts, beams): of each beam
  const float* running;  // (texts, beams)
  int64_t texts, beams, k;
  float* best;  // (texts, k)
  int64_t *best_beam, *best_token;
};
bool best_sums(const BestSumsArgs&);

}  // namespace qkv

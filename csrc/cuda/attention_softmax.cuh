// The online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867): what becomes of a row's state with every tile of keys,
//
//   m' = max(m, max_j s_j);  p_j = e^(s_j - m');  l' = l e^(m - m') + sum_j p_j;  o' = o e^(m - m') + sum_j p_j v_j
//
// how two states are merged, and how one ends: out = o / l, lse = m + ln l. A key that is excluded has s_j = -inf and changes
// nothing, to the bit.
#pragma once
#include "cuda/attention_problem.cuh"

namespace qkv::cuda {

// e^(x - maximum), where maximum is -inf as long as every key was excluded.
QKV_DEVICE float exp_from(float x, float maximum) {
  return exp2_approx((x - (maximum == kMinusInfinity ? 0.0f : maximum)) * kLog2E);
}

// State of the rows of one warp: kFragments of 16 rows, of which a thread has two each, row lane / 4 and row lane / 4 + 8.
template <int kFragments>
struct RunningSoftmax {
  float maximum[kFragments][2];  // of s, or of s * factor where that is folded in: then a power of 2
  float total[kFragments][2];    // of this thread's keys

  QKV_DEVICE void start() {
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        maximum[f][h] = kMinusInfinity;
        total[f][h] = 0;
      }
  }

  // Scores become weights. What the sums so far must be multiplied by; !moved: by 1 in all rows of the warp.
  //
  // kFolded: s * factor are powers of 2, which is one instruction less a key. Else s are powers of e, and their differences are
  // formed first: a bias of -3.4e38 times log2(e) would be -inf.
  struct Rescale {
    float scale[kFragments][2];
    bool moved;
  };
  template <bool kFolded, int kTiles>
  QKV_DEVICE Rescale weigh(float (&s)[kFragments][kTiles][4], float factor) {
    Rescale r;
    r.moved = false;
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = s[f][0][2 * h];
#pragma unroll
        for (int j = 0; j < kTiles; ++j) top = fmaxf(top, fmaxf(s[f][j][2 * h], s[f][j][2 * h + 1]));
        top = warp_max<4>(top);
        // Never contracted: the same top must give the same number in every tile.
        const float now = fmaxf(maximum[f][h], kFolded ? __fmul_rn(top, factor) : top);
        const float by = now == kMinusInfinity ? 0.0f : now;
        const float difference = __fsub_rn(maximum[f][h], by);
        r.scale[f][h] = exp2_approx(kFolded ? difference : difference * kLog2E);
        r.moved |= maximum[f][h] != now;
        maximum[f][h] = now;
        float sum = 0;
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
          for (int i = 2 * h; i < 2 * h + 2; ++i) {
            s[f][j][i] = exp2_approx(kFolded ? __fmaf_rn(s[f][j][i], factor, -by) : (s[f][j][i] - by) * kLog2E);
            sum += s[f][j][i];
          }
        total[f][h] = __fmaf_rn(total[f][h], r.scale[f][h], sum);
      }
    r.moved = __any_sync(kFullWarp, r.moved);
    return r;
  }
  template <int kColumns>
  QKV_DEVICE static void rescale(const Rescale& r, float (&sums)[kFragments][kColumns][4]) {
    if (!r.moved) return;  // most tiles, once the maximum is found
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[f][c][i] *= r.scale[f][i / 2];
  }
  template <bool kFolded, int kTiles, int kColumns>
  QKV_DEVICE void add(float (&s)[kFragments][kTiles][4], float (&sums)[kFragments][kColumns][4], float factor) {
    rescale(weigh<kFolded>(s, factor), sums);
  }

  // Of the whole row, in powers of e.
  template <bool kFolded>
  QKV_DEVICE RowState state(int f, int h) const {
    return {kFolded ? maximum[f][h] * kLn2 : maximum[f][h], warp_sum<4>(total[f][h]), 0, 0};
  }
};

// What the sums of two states must be multiplied by, and the state of both. `later` has the later keys.
struct Merge {
  float earlier, later;
  RowState state;
};
QKV_DEVICE Merge merge(const RowState& earlier, const RowState& later) {
  const float maximum = fmaxf(earlier.maximum, later.maximum);
  Merge m;
  m.earlier = exp_from(earlier.maximum, maximum);
  m.later = exp_from(later.maximum, maximum);
  m.state = {maximum, __fmaf_rn(later.total, m.later, __fmul_rn(earlier.total, m.earlier)), earlier.spoiled | later.spoiled, 0};
  if (later.total == 0) m = {1, 0, earlier};
  return m;
}
QKV_DEVICE float merge_sums(float earlier, float earlier_factor, float later, float later_factor) {
  return __fmaf_rn(later, later_factor, __fmul_rn(earlier, earlier_factor));
}

// The end of a row: the sink joins the total, sums times `factor` are the output.
struct End {
  RowState state;
  float factor, lse;
};
QKV_DEVICE End end_of(const Problem& p, int head, RowState state) {
  End end = {state, 0, kMinusInfinity};
  float scale = 1;
  if (p.a.sinks) {
    const float sink = p.a.sinks[head];
    end.state.maximum = fmaxf(state.maximum, sink);
    scale = exp_from(state.maximum, end.state.maximum);
    end.state.total = state.total * scale + exp_from(sink, end.state.maximum);
  }
  if (state.total != 0) end.factor = scale / end.state.total;  // no key: 0, whatever the sink
  if (end.state.total != 0) end.lse = end.state.maximum + logf(end.state.total);
  return end;
}

}  // namespace qkv::cuda

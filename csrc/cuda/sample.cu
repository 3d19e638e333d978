// sample: a token of each row of logits, from softmax(x / temperature) as far as top_k, top_p and min_p leave it. A block a row.
//
// Scores are x / temperature, rounded to float. Weights e^(score - the largest) are integers, multiples of a small power of two,
// so that sums are exact in any order. Each is within 2^-22 of itself and half a unit: a cumulative probability is wrong by less
// than 1e-6 in rows of up to two million.
//
// What the filters leave is what is above some score and the last ones of those that are equal to it. top_k and top_p find that
// score digit by digit, from histograms of counts and of weights; min_p is a weight. A row is read once for its largest score,
// once for each digit that a filter must look at (seldom all four), once for the weight of what is left, and 1/32 of it once
// more.
#include <math.h>

#include "cuda/choice.cuh"

namespace qkv::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32, kUnroll = 2;

// What a score is worth: e^(score - top), in units of which the largest has 1 << bits.
struct Weight {
  float top;
  int bits;

  QKV_DEVICE uint64_t operator()(float score) const {
    const double exponent = (static_cast<double>(score) - top) * 1.4426950408889634;  // in double: a float has too few digits
    if (!(exponent > -64)) return 0;
    const double whole = rint(exponent);
    const float fraction = exp2_approx(static_cast<float>(exponent - whole));  // 2^-0.5 ... 2^0.5: a multiple of 2^-24
    const auto mantissa = static_cast<uint64_t>(fraction * 16777216.0f);
    const int shift = bits - 24 + static_cast<int>(whole);
    if (shift >= 0) return mantissa << shift;
    return shift > -32 ? (mantissa + (1ull << (-shift - 1))) >> -shift : 0;
  }
};

// A score counts if it is above `least`, or equal to it and not among the first `skipped` of those; and if its weight is no less
// than least_weight.
struct Kept {
  uint32_t least, skipped;  // as `ordered` has it
  uint64_t least_weight;
};

struct Shared {
  uint32_t counts[kBins], low[kBins], high[kBins];  // weights are low + 2^32 high
  uint64_t of_warps[kWarps];
  uint32_t equal[kWarps];
  uint64_t total, above;  // weights: of all that a histogram has seen, and of what is above the bin
  uint32_t bin, count, number;
};

QKV_DEVICE uint32_t warp_most(uint32_t x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(kFullWarp, x, step));
  return x;
}

// Over the lanes of a warp, this one's and those before.
template <class V>
QKV_DEVICE V up_to_lane(V x) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const V other = __shfl_up_sync(kFullWarp, x, step);
    if (lane_id() >= step) x += other;
  }
  return x;
}

template <class T>
struct Row {
  Chunks<T> chunks;
  float temperature;

  QKV_DEVICE float score(float x) const { return temperature == 1 ? x : __fdiv_rn(x, temperature); }

  // f(score) for the chunks first, first + step ...; NaN for what is not of the row.
  template <class F>
  QKV_DEVICE void each(int64_t first, int64_t end, int step, F&& f) const {
    each_chunk<true, kUnroll>(chunks, first, end, step, [&](const auto& x, int64_t at) {
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) f(score(x[j]), at + j);
    });
  }
};

constexpr uint32_t kSpoiled = 0xFFFFFFFFu;

// The largest score as `ordered` has it, or kSpoiled if one is NaN.
template <class T>
QKV_DEVICE uint32_t top_of(const Row<T>& row, Shared& s) {
  uint32_t top = 0;
  row.each(threadIdx.x, row.chunks.count(), kThreads, [&](float score, int64_t at) {
    const bool spoiled = score != score && row.chunks.has(at);
    top = max(top, spoiled ? kSpoiled : ordered(score));
  });
  top = warp_most(top);
  if (lane_id() == 0) s.equal[threadIdx.x / 32] = top;
  __syncthreads();
  return warp_most(s.equal[lane_id()]);
}

// How many of the scores that count, and whose digits above the one at `shift` are prefix's, have which digit there, and what
// they weigh.
template <bool kWeigh, class T>
QKV_DEVICE void fill_histogram(const Row<T>& row, const Weight& weight, uint32_t least, uint32_t prefix, int shift, Shared& s) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) s.counts[i] = s.low[i] = s.high[i] = 0;
  __syncthreads();
  row.each(threadIdx.x, row.chunks.count(), kThreads, [&](float score, int64_t) {
    const uint32_t order = ordered(score);
    if (order < least || (shift < 24 && (order ^ prefix) >> (shift + 8) != 0)) return;
    const uint32_t bin = order >> shift & (kBins - 1);
    atomicAdd(&s.counts[bin], 1u);
    if constexpr (kWeigh) {
      // Half by half: 64 bits at once are a loop of attempts.
      const uint64_t own = weight(score);
      const auto low = static_cast<uint32_t>(own);
      uint32_t high = static_cast<uint32_t>(own >> 32);
      if (low != 0 && atomicAdd(&s.low[bin], low) + low < low) ++high;
      if (high != 0) atomicAdd(&s.high[bin], high);
    }
  });
  __syncthreads();
}

// The lowest bin in which there are scores of which the largest stays: stays(the weight of it and all below). If none does, the
// highest. By the first warp; s.bin, s.count and s.above, what is above the bin, are for all.
template <class Stays>
QKV_DEVICE void find_bin_by_weight(Shared& s, uint64_t above, bool first, Stays&& stays) {
  if (threadIdx.x < 32) {
    constexpr int kEach = kBins / 32;
    const int top = kBins - 1 - kEach * lane_id();
    const auto weight_of = [&](int bin) { return static_cast<uint64_t>(s.high[bin]) << 32 | s.low[bin]; };
    uint64_t mine = 0;
    for (int i = 0; i < kEach; ++i) mine += weight_of(top - i);
    const uint64_t up_to = up_to_lane(mine);
    const uint64_t total = first ? __shfl_sync(kFullWarp, up_to, 31) : s.total;
    uint64_t over = above + up_to - mine, over_highest = 0, over_lowest = 0;
    int highest = -1, lowest = -1;  // of this lane's bins: the first with scores, the last whose largest stays
    for (int i = 0; i < kEach; ++i) {
      const int bin = top - i;
      if (s.counts[bin] != 0) {
        if (highest < 0) {
          highest = bin;
          over_highest = over;
        }
        if (stays(total - over, total)) {
          lowest = bin;
          over_lowest = over;
        }
      }
      over += weight_of(bin);
    }
    const unsigned some_stay = __ballot_sync(kFullWarp, lowest >= 0), some_are = __ballot_sync(kFullWarp, highest >= 0);
    const int holder = some_stay ? 31 - __clz(some_stay) : __ffs(some_are) - 1;
    if (lane_id() == holder) {
      s.bin = some_stay ? lowest : highest;
      s.above = some_stay ? over_lowest : over_highest;
      s.count = s.counts[s.bin];
      if (first) s.total = total;
    }
  }
  __syncthreads();
}

template <class T>
QKV_DEVICE void keep_top_k(const Row<T>& row, int64_t k, Kept& kept, Shared& s) {
  uint32_t prefix = 0, need = static_cast<uint32_t>(k);
  for (int shift = 24; shift >= 0; shift -= 8) {
    fill_histogram<false>(row, Weight{}, kept.least, prefix, shift, s);
    if (threadIdx.x < 32) {
      const Bin found = find_bin(s.counts, need);
      if (threadIdx.x == 0) {
        s.bin = found.bin;
        s.number = found.above;
        s.count = found.count;
      }
    }
    __syncthreads();
    prefix |= s.bin << shift;
    need -= s.number;
    if (s.count == need) break;
  }
  kept.least = max(kept.least, prefix);
}

// limit: 1 - p.
template <class T>
QKV_DEVICE void keep_top_p(const Row<T>& row, const Weight& weight, float limit, Kept& kept, Shared& s) {
  const auto stays = [&](uint64_t from_there, uint64_t total) {
    return static_cast<float>(static_cast<double>(from_there) / static_cast<double>(total)) > limit;
  };
  uint32_t prefix = 0;
  uint64_t above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    fill_histogram<true>(row, weight, kept.least, prefix, shift, s);
    find_bin_by_weight(s, above, shift == 24, stays);
    prefix |= s.bin << shift;
    above = s.above;
    if (s.count == 1) break;
  }
  kept.least = max(kept.least, prefix);
  if (s.count == 1) return;
  // Of `count` equal ones the first that does not stay, by halves; one stays in any case.
  const uint64_t own = weight(from_ordered(prefix)), total = s.total;
  uint32_t low = 1, high = s.count;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (stays(total - above - middle * own, total))
      low = middle + 1;
    else
      high = middle;
  }
  kept.skipped = s.count - low;
}

// What counts of a warp's or a lane's scores.
struct Part {
  uint64_t weight;  // of those above the least
  uint32_t equal;   // how many are equal to it
};

// Of `equal` ones, before which there are `before` others, how many are not skipped.
QKV_DEVICE uint32_t kept_of(uint32_t equal, uint32_t before, uint32_t skipped) {
  const uint32_t end = before + equal;
  return (end > skipped ? end - skipped : 0) - (before > skipped ? before - skipped : 0);
}

QKV_DEVICE void count_score(float score, const Weight& weight, const Kept& kept, Part& part) {
  const uint32_t order = ordered(score);
  if (order == kept.least) ++part.equal;
  if (order > kept.least)
    if (const uint64_t own = weight(score); own >= kept.least_weight) part.weight += own;
}

template <class T>
__global__ void __launch_bounds__(kThreads) sample_rows(const __grid_constant__ SampleArgs a, int bits) {
  __shared__ Shared s;
  const int64_t r = blockIdx.x;
  const Row<T> row{Chunks<T>(static_cast<const T*>(a.x) + r * a.n, a.n), a.temperature};
  const uint32_t top = top_of(row, s);
  const Weight weight{from_ordered(top), bits};
  if (top == kSpoiled || !isfinite(weight.top)) {
    if (threadIdx.x == 0) a.tokens[r] = -1;
    return;
  }
  // 1: all scores are larger, and none is equal.
  Kept kept{1, 0,
            static_cast<uint64_t>(ceil(static_cast<double>(static_cast<float>(a.min_p)) * static_cast<double>(1ull << bits)))};
  if (a.k > 0 && a.k < a.n) keep_top_k(row, a.k, kept, s);
  if (a.p < 1) keep_top_p(row, weight, static_cast<float>(1 - a.p), kept, s);
  uint64_t of_equal = weight(from_ordered(kept.least));
  if (of_equal < kept.least_weight) of_equal = 0;

  // Each warp weighs a stretch of the row of its own, of whole lines of 128 bytes.
  const int lane = lane_id(), warp = threadIdx.x / 32;
  const int64_t count = row.chunks.count(), stretch = ceil_div<int64_t>(count, 8 * kWarps) * 8;
  Part part{0, 0};
  row.each(warp * stretch + lane, min((warp + 1) * stretch, count), 32,
           [&](float score, int64_t) { count_score(score, weight, kept, part); });
  part.weight = up_to_lane(part.weight);
  part.equal = up_to_lane(part.equal);
  __syncthreads();  // top_of has been read
  if (lane == 31) {
    s.of_warps[warp] = part.weight;
    s.equal[warp] = part.equal;
  }
  __syncthreads();

  // In which of them the token lies, as each warp finds for itself, and what the others before weigh.
  const uint32_t equal = s.equal[lane], equal_before = up_to_lane(equal) - equal;
  const uint64_t own = s.of_warps[lane] + of_equal * kept_of(equal, equal_before, kept.skipped);
  const uint64_t up_to = up_to_lane(own), total = __shfl_sync(kFullWarp, up_to, 31);
  uint64_t target = static_cast<uint64_t>(a.u[r] * static_cast<double>(total));
  target = min(target, total - 1);
  const int holder = __ffs(__ballot_sync(kFullWarp, up_to > target)) - 1;
  if (warp != holder) return;
  uint64_t passed = __shfl_sync(kFullWarp, up_to - own, holder);
  uint32_t equal_passed = __shfl_sync(kFullWarp, equal_before, holder);

  // 32 chunks at a time, up to the lane that has it.
  for (int64_t first = warp * stretch; first < count; first += 32) {
    float x[kLanes<T>];
    uint4 raw = make_uint4(0, 0, 0, 0);
    const bool has = first + lane < min((warp + 1) * stretch, count);
    if (has) raw = row.chunks.template load<true>(first + lane);
    unpack<T>(raw, x);
    part = {0, 0};
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {
      x[j] = has ? row.score(x[j]) : __int_as_float(0x7FC00000);
      count_score(x[j], weight, kept, part);
    }
    const uint32_t equal_to_here = equal_passed + up_to_lane(part.equal);
    uint32_t before = equal_to_here - part.equal;
    const uint64_t here = part.weight + of_equal * kept_of(part.equal, before, kept.skipped);
    const uint64_t to_here = passed + up_to_lane(here);
    const unsigned reached = __ballot_sync(kFullWarp, to_here > target);
    if (reached != 0) {
      if (lane == __ffs(reached) - 1) {
        uint64_t sum = to_here - here;
        int found = -1;
#pragma unroll
        for (int j = 0; j < kLanes<T>; ++j) {
          Part one{0, 0};
          count_score(x[j], weight, kept, one);
          sum += one.weight + of_equal * kept_of(one.equal, before, kept.skipped);
          before += one.equal;
          if (found < 0 && sum > target) found = j;
        }
        a.tokens[r] = row.chunks.place(first + lane) + found;
      }
      return;
    }
    passed = __shfl_sync(kFullWarp, to_here, 31);
    equal_passed = __shfl_sync(kFullWarp, equal_to_here, 31);
  }
}

}  // namespace

size_t sample_workspace(const SampleArgs&) { return 0; }

void sample(const SampleArgs& a, Stream stream_in) {
  if (a.rows == 0) return;
  int bits = 44;  // so that the weights of a row are less than 2^62
  while (bits > 24 && (a.n >> (61 - bits)) != 0) --bits;
  with_dtype(a.dtype, [&](auto t) {
    sample_rows<decltype(t)><<<static_cast<unsigned>(a.rows), kThreads, 0, static_cast<cudaStream_t>(stream_in)>>>(a, bits);
  });
  check_launch("sample");
}

}  // namespace qkv::cuda

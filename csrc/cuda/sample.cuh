// sample: a token of each row of logits, from softmax(x / temperature) as far as top_k, top_p and min_p leave it.
//
// Scores are x / temperature, rounded to float. Weights e^(score - the largest) are integers, multiples of a small power of two,
// so that sums are exact in any order, and a token does not depend on how many blocks share its row. Each is within 2^-22 of
// itself and half a unit: a cumulative probability is wrong by less than 1e-6 in rows of up to two million.
//
// What the filters leave is what is above some score and the last ones of those that are equal to it. top_k and top_p find that
// score digit by digit, from histograms of counts and of weights; min_p is a weight.
//
// A team, of one block (sample.cu) or of a cluster of blocks (sample_sm90.cu), reads its row once and holds its scores in shared
// memory, as integers in their order (choice.cuh). It looks at them once for each digit that a filter must see (seldom all four),
// once for the weight of what is left, and at a warp's stretch of them once more. Of a row for which there is no room the end is
// read again.
#pragma once
#include <math.h>

#include "cuda/choice.cuh"

namespace qkv::cuda {

constexpr int kSampleThreads = 512, kSampleBlocks = 2;  // of a block; of a multiprocessor

struct SamplePlan {
  int bits;      // of the largest weight
  int blocks;    // that share a row
  int share;     // chunks of a block
  int held;      // of which shared memory has room for so many
  bool filters;  // top_k or top_p
  size_t shared;
};

namespace sampling {

constexpr int kWarps = kSampleThreads / 32;

// What a score is worth: e^(score - top), in units of which the largest has 1 << bits.
struct Weight {
  float top;
  int bits;

  QKV_DEVICE uint64_t operator()(uint32_t key) const {
    const double exponent = (static_cast<double>(from_ordered(key)) - top) * 1.4426950408889634;  // a float has too few digits
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
  uint32_t least, skipped;
  uint64_t least_weight;
  uint64_t of_equal;  // the weight of one that is equal to `least`, 0 if that is too little
};

// What counts of some scores.
struct Part {
  uint64_t weight;  // of those above the least
  uint32_t equal;   // how many are equal to it
};

// Digits of the search, the first from the top: of 10 bits, so that the numbers of a usual row spread over many bins. The last
// two share bits.
constexpr int kDigit = 10, kBins = 1 << kDigit, kGroups = 32, kGroup = kBins / kGroups;

template <int kCount>
struct Bins {
  uint32_t count[kCount], low[kCount], high[kCount];  // weights are low + 2^32 high
};
struct Histogram {
  Bins<kBins> bins;
  Bins<kGroups> groups;  // of neighbouring bins
};

struct Shared {
  uint32_t top[kWarps];  // of each warp; and what Part has
  uint64_t weight[kWarps];
  uint32_t equal[kWarps];
  Part of_block[2];
  uint64_t above, total;  // what is above the bin; what all that a first digit has seen weigh
  uint32_t bin, count;
};

// A team of one block. A cluster's has the same functions.
struct OneBlock {
  QKV_DEVICE int rank() const { return 0; }
  QKV_DEVICE int size() const { return 1; }
  QKV_DEVICE void sync() const { __syncthreads(); }
  // x of the block of that rank.
  QKV_DEVICE uint32_t read(const uint32_t& x, int) const { return x; }
  // Lane r gets that of block r, if there is one; `slot` is for this call alone.
  QKV_DEVICE Part exchange(const Part& mine, Part&) const { return lane_id() == 0 ? mine : Part{0, 0}; }
  // After the last look at other blocks, and before the end.
  QKV_DEVICE void leave() const {}
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

constexpr uint32_t kSpoiled = 0xFFFFFFFFu;

// A block's chunks of a row, as the keys of their scores: 0 for what is not of the row.
template <class T>
struct Share {
  static constexpr int kQuads = kLanes<T> / 4, kUnroll = 4;
  Chunks<T> chunks;
  float temperature;
  int first, end, held;
  uint4* keys;  // held: the first four keys of all chunks, then the next

  QKV_DEVICE void keys_of(const float (&x)[kLanes<T>], uint32_t (&key)[kLanes<T>]) const {
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) key[j] = ordered(temperature == 1 ? x[j] : __fdiv_rn(x[j], temperature));
  }

  // Reads the share. The largest key that this thread has met, or kSpoiled if a score is NaN.
  QKV_DEVICE uint32_t load() const {
    uint32_t top = 0;
    each_chunk<false, kUnroll>(chunks, first + threadIdx.x, end, kSampleThreads, [&](const auto& x, int64_t at) {
      uint32_t key[kLanes<T>];
      keys_of(x, key);
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) top = max(top, key[j] == 0 && chunks.has(at + j) ? kSpoiled : key[j]);
      const int i = static_cast<int>((at + chunks.lead) / kLanes<T>) - first;
      if (i < held)
#pragma unroll
        for (int q = 0; q < kQuads; ++q)
          keys[q * held + i] = make_uint4(key[4 * q], key[4 * q + 1], key[4 * q + 2], key[4 * q + 3]);
    });
    return top;
  }

  QKV_DEVICE void read(int chunk, uint32_t (&key)[kLanes<T>]) const {
    const int i = chunk - first;
    if (i < held) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) memcpy(key + 4 * q, keys + q * held + i, 16);
    } else {
      float x[kLanes<T>];
      unpack<T>(chunks.template load<true>(chunk), x);
      keys_of(x, key);
    }
  }

  // f(key) for the chunks from, from + step ... before to.
  template <class F>
  QKV_DEVICE void each(int from, int to, int step, F&& f) const {
#pragma unroll(8 / kLanes<T>)
    for (int i = from; i < to; i += step) {
      uint32_t key[kLanes<T>];
      read(i, key);
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) f(key[j]);
    }
  }
};

// ---- digit by digit --------------------------------------------------------------------------------------------------------

struct Item {
  uint32_t count;
  uint64_t weight;
};

// Of all blocks.
template <bool kWeigh, class Team, int kCount>
QKV_DEVICE Item item_of(const Team& team, const Bins<kCount>& bins, int i) {
  Item item{0, 0};
#pragma unroll 4
  for (int r = 0; r < team.size(); ++r) {
    item.count += team.read(bins.count[i], r);
    if constexpr (kWeigh) item.weight += static_cast<uint64_t>(team.read(bins.high[i], r)) << 32 | team.read(bins.low[i], r);
  }
  return item;
}

// Two histograms that take turns: the one that others may still read is cleared when all have come to the next.
struct Search {
  Histogram* histograms;
  int turn;

  QKV_DEVICE void clear(int which, int from, int step) const {
    auto* const words = reinterpret_cast<uint4*>(histograms + which);
    for (int i = from; i < static_cast<int>(sizeof(Histogram) / 16); i += step) words[i] = make_uint4(0, 0, 0, 0);
  }

  // How many of the scores that count, and whose bits from `known` on are prefix's, have which digit at `shift`, and what they
  // weigh; then one bin of them: choose(item) is the lane whose item, of 32 from the largest down, has it. s.bin, s.count and
  // s.above, what choose finds to be above the bin, are for all.
  template <bool kWeigh, class Team, class T, class Choose>
  QKV_DEVICE void digit(const Team& team, const Share<T>& share, const Weight& weight, uint32_t least, uint32_t prefix, int known,
                        int shift, Shared& s, Choose&& choose) {
    Histogram& h = histograms[turn];
    share.each(share.first + threadIdx.x, share.end, kSampleThreads, [&](uint32_t key) {
      if (key < least || (known < 32 && (key ^ prefix) >> known != 0)) return;
      const uint32_t bin = key >> shift & (kBins - 1);
      atomicAdd(&h.bins.count[bin], 1u);
      if constexpr (kWeigh) {
        // Half by half: 64 bits at once are a loop of attempts.
        const uint64_t own = weight(key);
        const auto low = static_cast<uint32_t>(own);
        uint32_t high = static_cast<uint32_t>(own >> 32);
        if (low != 0 && atomicAdd(&h.bins.low[bin], low) + low < low) ++high;
        if (high != 0) atomicAdd(&h.bins.high[bin], high);
      }
    });
    __syncthreads();
    const int lane = lane_id(), warp = threadIdx.x / 32;
    for (int g = warp; g < kGroups; g += kWarps) {
      const Item item = item_of<kWeigh>(OneBlock(), h.bins, g * kGroup + lane);
      const uint32_t count = up_to_lane(item.count);
      const uint64_t sum = kWeigh ? up_to_lane(item.weight) : 0;
      if (lane == 31) {
        h.groups.count[g] = count;
        h.groups.low[g] = static_cast<uint32_t>(sum);
        h.groups.high[g] = static_cast<uint32_t>(sum >> 32);
      }
    }
    team.sync();
    turn ^= 1;
    if (warp == 0) {
      const int group = kGroups - 1 - choose(item_of<kWeigh>(team, h.groups, kGroups - 1 - lane));
      const Item item = item_of<kWeigh>(team, h.bins, group * kGroup + kGroup - 1 - lane);
      const int holder = choose(item);
      if (lane == holder) {
        s.bin = group * kGroup + kGroup - 1 - lane;
        s.count = item.count;
      }
    } else {
      clear(turn, threadIdx.x - 32, kSampleThreads - 32);
    }
    __syncthreads();
  }
};
static_assert(kGroup == 32);

template <class Team, class T>
QKV_DEVICE void keep_top_k(const Team& team, const Share<T>& share, int64_t k, Kept& kept, Search& search, Shared& s) {
  uint32_t prefix = 0, need = static_cast<uint32_t>(k);
  for (int known = 32, shift = 32 - kDigit;; known = shift, shift = max(shift - kDigit, 0)) {
    uint32_t above = 0;
    search.template digit<false>(team, share, Weight{}, kept.least, prefix, known, shift, s, [&](const Item& item) {
      const uint32_t up_to = above + up_to_lane(item.count);
      const int holder = __ffs(__ballot_sync(kFullWarp, up_to >= need)) - 1;
      above = __shfl_sync(kFullWarp, up_to - item.count, holder);
      if (lane_id() == 0) s.above = above;
      return holder;
    });
    prefix |= s.bin << shift;
    need -= static_cast<uint32_t>(s.above);
    if (s.count == need || shift == 0) break;
  }
  kept.least = max(kept.least, prefix);
}

// The lowest bin in which there are scores of which the largest stays: stays(the weight of it and all below). If none does, the
// highest. limit: 1 - p.
template <class Team, class T>
QKV_DEVICE void keep_top_p(const Team& team, const Share<T>& share, const Weight& weight, float limit, Kept& kept, Search& search,
                           Shared& s) {
  const auto stays = [&](uint64_t from_there, uint64_t total) {
    return static_cast<float>(static_cast<double>(from_there) / static_cast<double>(total)) > limit;
  };
  uint32_t prefix = 0;
  uint64_t above = 0, total = 0;
  for (int known = 32, shift = 32 - kDigit;; known = shift, shift = max(shift - kDigit, 0)) {
    search.template digit<true>(team, share, weight, kept.least, prefix, known, shift, s, [&](const Item& item) {
      const uint64_t up_to = above + up_to_lane(item.weight), over = up_to - item.weight;
      if (total == 0) total = __shfl_sync(kFullWarp, up_to, 31);
      const unsigned some_stay = __ballot_sync(kFullWarp, item.count != 0 && stays(total - over, total)),
                     some_are = __ballot_sync(kFullWarp, item.count != 0);
      const int holder = some_stay ? 31 - __clz(some_stay) : __ffs(some_are) - 1;
      above = __shfl_sync(kFullWarp, over, holder);
      if (lane_id() == 0) {
        s.above = above;
        s.total = total;
      }
      return holder;
    });
    prefix |= s.bin << shift;
    if (s.count == 1 || shift == 0) break;
  }
  kept.least = max(kept.least, prefix);
  if (s.count == 1) return;
  // Of `count` equal ones the first that does not stay, by halves; one stays in any case.
  const uint64_t own = weight(prefix), all = s.total, before = s.above;
  uint32_t low = 1, high = s.count;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (stays(all - before - middle * own, all))
      low = middle + 1;
    else
      high = middle;
  }
  kept.skipped = s.count - low;
}

// ---- the token -------------------------------------------------------------------------------------------------------------

// Of `equal` ones, before which there are `before` others, what those weigh that are not skipped.
QKV_DEVICE uint64_t weight_of_equal(const Kept& kept, uint32_t equal, uint32_t before) {
  const uint32_t end = before + equal;
  return kept.of_equal * ((end > kept.skipped ? end - kept.skipped : 0) - (before > kept.skipped ? before - kept.skipped : 0));
}

QKV_DEVICE void count_score(uint32_t key, const Weight& weight, const Kept& kept, Part& part) {
  if (key == kept.least) ++part.equal;
  if (key > kept.least)
    if (const uint64_t own = weight(key); own >= kept.least_weight) part.weight += own;
}

// The first of 32 parts, one a lane, up to which what is kept weighs more than the target, or 32. `passed`, which is what stands
// before the first, becomes what stands before that one.
QKV_DEVICE int reach(const Kept& kept, const Part& part, uint64_t target, Part& passed) {
  const uint32_t equal_up_to = passed.equal + up_to_lane(part.equal), before = equal_up_to - part.equal;
  const uint64_t own = part.weight + weight_of_equal(kept, part.equal, before), up_to = passed.weight + up_to_lane(own);
  const unsigned reached = __ballot_sync(kFullWarp, up_to > target);
  const int lane = reached ? __ffs(reached) - 1 : 31;
  passed = {__shfl_sync(kFullWarp, reached ? up_to - own : up_to, lane),
            __shfl_sync(kFullWarp, reached ? before : equal_up_to, lane)};
  return reached ? lane : 32;
}

template <class T, class Team>
QKV_DEVICE void sample_row(const SampleArgs& a, const SamplePlan& plan, const Team& team, int64_t r) {
  __shared__ Shared s;
  const int lane = lane_id(), warp = threadIdx.x / 32;
  Search search{reinterpret_cast<Histogram*>(shared_chunks()), 0};
  Share<T> share{Chunks<T>(static_cast<const T*>(a.x) + r * a.n, a.n),
                 a.temperature,
                 team.rank() * plan.share,
                 0,
                 plan.held,
                 reinterpret_cast<uint4*>(search.histograms + (plan.filters ? 2 : 0))};
  share.end = static_cast<int>(min(share.chunks.count(), static_cast<int64_t>(share.first) + plan.share));
  if (plan.filters) {
    search.clear(0, threadIdx.x, kSampleThreads);
    search.clear(1, threadIdx.x, kSampleThreads);
  }

  uint32_t top = warp_most(share.load());
  if (lane == 0) s.top[warp] = top;
  __syncthreads();
  top = warp_most(lane < kWarps ? s.top[lane] : 0);
  top = warp_most(team.exchange({0, top}, s.of_block[0]).equal);
  const Weight weight{from_ordered(top), plan.bits};
  if (top == kSpoiled || !isfinite(weight.top)) {
    if (threadIdx.x == 0 && team.rank() == 0) a.tokens[r] = -1;
    return team.leave();
  }

  // 1: all scores are larger, and none is equal.
  Kept kept{
      1, 0,
      static_cast<uint64_t>(ceil(static_cast<double>(static_cast<float>(a.min_p)) * static_cast<double>(1ull << plan.bits))), 0};
  if (a.k > 0 && a.k < a.n) keep_top_k(team, share, a.k, kept, search, s);
  if (a.p < 1) keep_top_p(team, share, weight, static_cast<float>(1 - a.p), kept, search, s);
  kept.of_equal = weight(kept.least);
  if (kept.of_equal < kept.least_weight) kept.of_equal = 0;

  // Each warp weighs a stretch of its own.
  const int stretch = static_cast<int>(ceil_div(plan.share, kWarps)), first = share.first + warp * stretch,
            end = min(share.end, first + stretch);
  Part part{0, 0};
  share.each(first + lane, end, 32, [&](uint32_t key) { count_score(key, weight, kept, part); });
  part = {up_to_lane(part.weight), up_to_lane(part.equal)};
  if (lane == 31) {
    s.weight[warp] = part.weight;
    s.equal[warp] = part.equal;
  }
  __syncthreads();

  // In which block the token lies, then in which warp's stretch, as each warp finds for itself.
  part = lane < kWarps ? Part{s.weight[lane], s.equal[lane]} : Part{0, 0};
  const Part of_block = team.exchange(
      {__shfl_sync(kFullWarp, up_to_lane(part.weight), 31), __shfl_sync(kFullWarp, up_to_lane(part.equal), 31)}, s.of_block[1]);
  team.leave();
  Part all{0, 0}, passed{0, 0};
  reach(kept, of_block, ~0ull, all);
  const uint64_t target = min(static_cast<uint64_t>(a.u[r] * static_cast<double>(all.weight)), all.weight - 1);
  if (reach(kept, of_block, target, passed) != team.rank()) return;
  if (reach(kept, part, target, passed) != warp) return;

  // 32 chunks at a time, up to the lane that has it.
  for (int i = first + lane; i - lane < end; i += 32) {  // beyond only if somebody writes the logits meanwhile
    uint32_t key[kLanes<T>] = {};
    part = {0, 0};
    if (i < end) share.read(i, key);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) count_score(key[j], weight, kept, part);
    const int holder = reach(kept, part, target, passed);
    if (holder == 32) continue;
    if (lane == holder) {
      int found = -1;
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) {
        Part one{0, 0};
        count_score(key[j], weight, kept, one);
        passed.weight += one.weight + weight_of_equal(kept, one.equal, passed.equal);
        passed.equal += one.equal;
        if (found < 0 && passed.weight > target) found = j;
      }
      a.tokens[r] = share.chunks.place(i) + found;
    }
    return;
  }
}

}  // namespace sampling

// In sample_sm90.cu.
void launch_sample_clusters(const SampleArgs& a, const SamplePlan& plan, cudaStream_t stream);

}  // namespace qkv::cuda

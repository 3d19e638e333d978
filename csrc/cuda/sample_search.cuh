// What sample.cuh draws from: weights of scores, and the score that top_k and top_p keep what is above, found digit by digit by a
// team of blocks.
#pragma once
#include "cuda/choice.cuh"

namespace qkv::cuda {

constexpr int kSampleThreads = 512, kSampleBlocks = 2;  // of a block; of a multiprocessor

namespace sampling {

constexpr int kWarps = kSampleThreads / 32;

constexpr float kLog2E = 1.44269504f;

// In so many bits, for rows of n, that a row weighs less than 2^62 units.
inline int weight_bits(int64_t n) {
  int bits = 45;
  while ((n >> (62 - bits)) != 0) --bits;
  return bits;
}

// What a score is worth: 2^(scale * (score - top)), as an integer in units of which the largest has 2^bits.
struct Weight {
  float top, scale;
  int bits;

  QKV_DEVICE float of(float score) const { return exp2_approx((score - top) * scale); }
  // Below 2^(-bits - 1) of the largest it is 0.
  QKV_DEVICE uint64_t operator()(uint32_t key) const {
    return __float2ull_rn(of(from_ordered(key)) * __int_as_float((127 + bits) << 23));
  }
};

// The sum of the integers that Weight makes of up to kMost weights, without making them. What is added to 2 is rounded to a
// multiple of 2^-22, and what that leaves, added to 1.5 * 2^23 units, to a whole number of units; both numbers are in the last
// bits of what comes out, so sums of the bits modulo 2^32 have theirs. A conversion to 64 bits takes longer than all of it.
// There are 23 to 45 bits: with fewer, what is added to 1.5 * 2^23 units might be half of one.
struct WeightSum {
  static constexpr int kMost = 511;  // each is up to 2^22 times 2^-22, and leaves up to 2^22 units, of either sign
  float fine;
  uint32_t coarse_bits = 0, fine_bits = 0;

  QKV_DEVICE explicit WeightSum(int bits) { fine = __int_as_float((127 + 23 - bits) << 23 | 1 << 22); }
  QKV_DEVICE void add(float weight) {
    const float coarse = weight + 2.0f;
    coarse_bits += __float_as_uint(coarse);
    fine_bits += __float_as_uint(weight - (coarse - 2.0f) + fine);
  }
  // Of `count` weights.
  QKV_DEVICE uint64_t total(uint32_t count, int bits) const {
    const int64_t low = static_cast<int32_t>(fine_bits - count * __float_as_uint(fine));
    return (static_cast<uint64_t>(coarse_bits - count * __float_as_uint(2.0f)) << (bits - 22)) + static_cast<uint64_t>(low);
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
constexpr int kDigit = 10, kDigitBins = 1 << kDigit, kGroups = 32, kGroup = kDigitBins / kGroups;

template <int kCount>
struct Bins {
  uint32_t count[kCount], low[kCount], high[kCount];  // weights are low + 2^32 high
};
struct Histogram {
  Bins<kDigitBins> bins;
  Bins<kGroups> groups;  // of neighbouring bins
};

struct Shared {
  uint32_t top[kWarps];  // of each warp; and what Part has
  uint64_t weight[kWarps];
  uint32_t equal[kWarps];
  Part of_block[3];
  uint64_t above, low, high;  // what is above the bin; between what all may weigh that a first digit has seen
  float row_top;
  uint32_t bin, count, listed, chunks;
  bool unsure;
};

// A team of one block. A cluster's has the same functions.
struct OneBlock {
  QKV_DEVICE int64_t row() const { return blockIdx.x; }
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

QKV_DEVICE uint32_t warp_most(uint32_t x) { return __reduce_max_sync(kFullWarp, x); }

// Of 32 numbers, one a lane, whose sum is less than 2^64: by pieces of 27 bits, as 32 of those are less than 2^32.
QKV_DEVICE uint64_t warp_total(uint64_t x) {
  constexpr uint32_t kPiece = (1u << 27) - 1;
  uint64_t total = 0;
#pragma unroll
  for (int shift = 0; shift < 64; shift += 27)
    total += static_cast<uint64_t>(__reduce_add_sync(kFullWarp, static_cast<uint32_t>(x >> shift) & kPiece)) << shift;
  return total;
}
QKV_DEVICE Part warp_total(const Part& part) { return {warp_total(part.weight), __reduce_add_sync(kFullWarp, part.equal)}; }

// What the warps of a block have, one a lane. Between two calls all threads must meet.
QKV_DEVICE Part of_warps(const Part& of_thread, Shared& s) {
  const Part part = warp_total(of_thread);
  if (lane_id() == 0) {
    s.weight[threadIdx.x / 32] = part.weight;
    s.equal[threadIdx.x / 32] = part.equal;
  }
  __syncthreads();
  const int lane = opaque(lane_id());  // or it would keep addresses in registers for later
  return lane < kWarps ? Part{s.weight[lane], s.equal[lane]} : Part{0, 0};
}

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

  // How many of those of each's keys that reach `least`, and whose bits from `known` on are prefix's, have which digit at
  // `shift`, and what they weigh; then one bin of them: choose(item) is the lane whose item, of 32 from the largest down, has it.
  // s.bin, s.count and s.above, what choose finds to be above the bin, are for all.
  template <bool kWeigh, class Team, class Each, class Choose>
  QKV_DEVICE void digit(const Team& team, Each&& each, const Weight& weight, uint32_t least, uint32_t prefix, int known,
                        int shift, Shared& s, Choose&& choose) {
    Histogram& h = histograms[turn];
    each([&](uint32_t key) {
      if (key < least || (known < 32 && (key ^ prefix) >> known != 0)) return;
      const uint32_t bin = key >> shift & (kDigitBins - 1);
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
      if (!__any_sync(kFullWarp, h.bins.count[g * kGroup + lane] != 0)) continue;  // as usual: its sums are 0
      const Item item = item_of<kWeigh>(OneBlock(), h.bins, g * kGroup + lane);
      const uint32_t count = __reduce_add_sync(kFullWarp, item.count);
      const uint64_t sum = kWeigh ? warp_total(item.weight) : 0;
      if (lane == 0) {
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

// The k-th largest of each's keys that reach `least`, or something below it that no more than `enough` reach.
template <class Team, class Each>
QKV_DEVICE uint32_t largest(const Team& team, Each&& each, uint32_t least, uint32_t k, uint32_t enough, Search& search,
                            Shared& s) {
  uint32_t prefix = 0, need = k;
  for (int known = 32, shift = 32 - kDigit;; known = shift, shift = max(shift - kDigit, 0)) {
    uint32_t above = 0;
    search.template digit<false>(team, each, Weight{}, least, prefix, known, shift, s, [&](const Item& item) {
      const uint32_t up_to = above + up_to_lane(item.count);
      const int holder = __ffs(__ballot_sync(kFullWarp, up_to >= need)) - 1;
      above = __shfl_sync(kFullWarp, up_to - item.count, holder);
      if (lane_id() == 0) s.above = above;
      return holder;
    });
    prefix |= s.bin << shift;
    need -= static_cast<uint32_t>(s.above);
    if (k - need + s.count <= enough || shift == 0) return prefix;
  }
}

// What scores weigh that each() does not have, all of which are below those that it has: at least and at most.
struct Rest {
  uint64_t low, high;
};

// The lowest bin in which there are scores of which the largest stays: stays(the weight of it and all below). If none does, the
// highest. limit: 1 - p. False, and nothing done, where that depends on what the rest weighs, or some of the rest may stay.
template <class Team, class Each>
QKV_DEVICE bool keep_top_p(const Team& team, Each&& each, const Rest& rest, const Weight& weight, float limit, Kept& kept,
                           Search& search, Shared& s) {
  // More often the larger the total is, where what is above stays the same.
  const auto stays = [&](uint64_t from_there, uint64_t total) {
    return static_cast<float>(static_cast<double>(from_there) / static_cast<double>(total)) > limit;
  };
  uint32_t prefix = 0;
  uint64_t above = 0, low = 0, high = 0;
  if (rest.high != 0 && threadIdx.x == 0) s.unsure = false;
  for (int known = 32, shift = 32 - kDigit;; known = shift, shift = max(shift - kDigit, 0)) {
    search.template digit<true>(team, each, weight, kept.least, prefix, known, shift, s, [&](const Item& item) {
      const uint64_t up_to = above + up_to_lane(item.weight), over = up_to - item.weight;
      if (high == 0) {
        low = rest.low + __shfl_sync(kFullWarp, up_to, 31);
        high = low + (rest.high - rest.low);
      }
      const unsigned some_are = __ballot_sync(kFullWarp, item.count != 0),
                     some_stay = __ballot_sync(kFullWarp, item.count != 0 && stays(high - over, high)),
                     surely = __ballot_sync(kFullWarp, item.count != 0 && stays(low - over, low));
      const int holder = some_stay ? 31 - __clz(some_stay) : __ffs(some_are) - 1;
      above = __shfl_sync(kFullWarp, over, holder);
      if (lane_id() == 0) {
        s.above = above;
        s.low = low;
        s.high = high;
        if (some_stay != surely) s.unsure = true;
      }
      return holder;
    });
    if (rest.high != 0 && (s.unsure || stays(rest.high, s.high))) return false;
    prefix |= s.bin << shift;
    if (s.count == 1 || shift == 0) break;
  }
  uint32_t skipped = 0;
  if (s.count > 1) {
    // Of `count` equal ones the first that does not stay, by halves; one stays in any case.
    const uint64_t own = weight(prefix), before = s.above;
    const auto stay_of = [&](uint64_t total) {
      uint32_t least = 1, most = s.count;
      while (least < most) {
        const uint32_t middle = least + (most - least) / 2;
        if (stays(total - before - middle * own, total))
          least = middle + 1;
        else
          most = middle;
      }
      return least;
    };
    const uint32_t stay = stay_of(s.high);
    if (rest.high != 0 && stay_of(s.low) != stay) return false;
    skipped = s.count - stay;
  }
  kept.least = max(kept.least, prefix);
  kept.skipped = skipped;
  return true;
}

}  // namespace sampling
}  // namespace qkv::cuda

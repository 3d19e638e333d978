// sample: a token of each row of logits, from softmax(x / temperature) as far as top_k, top_p and min_p leave it.
//
// Weights e^(score - the largest) are integers, multiples of a small power of two, so that sums are exact in any order, and a
// token does not depend on how many blocks share its row. With a filter scores are x / temperature, rounded to float; without one
// they are not rounded, which is nearer to the truth where x is large.
//
// A cumulative probability is wrong by less than 2^-23 + 3 * 2^-25 * ln n, and n / 2 units: 1.2e-6 in rows of a hundred thousand,
// 2e-6 in rows of two million. Each weight is within c = 2^-22 (that is exp2_approx) and e = 3 * 2^-24 of its exponent y (for the
// difference, the scale and the product) of what it should be. Where P is before a border, that moves the border by at most
// P (1 - P) times the sum of the mean errors of the two sides. A side's mean y is at most the logarithm of how many it has, less
// that of its probability (entropy); so both sides' are at most 2 ln(n / 2) - ln(P (1 - P)), and all of it (c + e ln n) / 2,
// where P is a half.
//
// What the filters leave is what is above some score and the last ones of those that are equal to it. top_k and top_p find that
// score digit by digit, from histograms of counts and of weights; min_p is a weight.
//
// A team, of one block (sample.cu) or of a cluster of blocks (sample_sm90.cu), reads its row once and holds it in shared memory.
// With a filter it then lists what may be left: what reaches a bound, which of numbers, unlike scores, takes a comparison each.
// For top_k and top_p the bound is one that enough of the largest that each thread has met reach: if those are k, so do the k
// largest of the row, which are seldom many fewer than all that do. Digits and weights are those of the list. top_p needs what
// the others weigh as well, but not exactly, unless the lowest score that is left depends on it: they are summed up as floats,
// with bounds for what is wrong in that.
// All scores are looked at, for each digit that a filter must see (seldom all four), where the list has no room for what reaches
// the bound, where k is large, and where what is listed weighs too little for top_p or the bounds are too wide. Of a row for
// which there is no room the end is read again.
#pragma once
#include "cuda/sample_search.cuh"

namespace qkv::cuda {

constexpr uint32_t kSampleListed = 1024;  // scores of a block, and chunks that have them; a power of two

struct SamplePlan {
  int bits;               // of the largest weight
  int blocks;             // that share a row
  int share;              // chunks of a block
  int stretch;            // and of a warp
  int held;               // of which shared memory has room for so many
  bool lists;             // with a filter
  float temperature;      // scores are numbers divided by it
  float of_score;         // 2^(of_score * (score - the largest)) is what a score weighs
  float scale;            // 2^(scale * (x - the largest)) is nearly what x weighs
  float reach;            // from the largest score down to what min_p may leave
  uint64_t least_weight;  // which min_p leaves
  size_t beside;          // histograms and the list: bytes of shared memory before the row
  size_t shared;
};

namespace sampling {

constexpr float kInfinity = INFINITY;

// A block's chunks of a row; what is not of the row is -inf.
template <class T>
struct Share {
  static constexpr int kUnroll = 4;
  static constexpr uint32_t kLeast = std::is_same_v<T, __half> ? 0xFC00FC00u : kIs16Bit<T> ? 0xFF80FF80u : 0xFF800000u;  // -inf
  Chunks<T> chunks;
  float temperature;
  int first, end, held;
  uint4* row;  // held

  QKV_DEVICE float score(float x) const { return temperature == 1 ? x : __fdiv_rn(x, temperature); }
  QKV_DEVICE uint32_t key(float x) const { return ordered(score(x)); }

  // The largest of a chunk, and of those that the word has already, in a word, if T has 16 bits in either half.
  static QKV_DEVICE uint32_t most_of(const uint4& raw, uint32_t word) {
    return max_nan_words<T>(word, max_nan_words<T>(max_nan_words<T>(raw.x, raw.y), max_nan_words<T>(raw.z, raw.w)));
  }
  static QKV_DEVICE float of_word(uint32_t word) {
    if constexpr (kIs16Bit<T>) {
      const float2 pair = unpack2<T>(word);
      return max_nan(pair.x, pair.y);
    } else {
      return __uint_as_float(word);
    }
  }
  static QKV_DEVICE bool some_reach(const uint4& raw, float least) {
    return of_word(max_nan_words<T>(max_nan_words<T>(raw.x, raw.y), max_nan_words<T>(raw.z, raw.w))) >= least;
  }

  // Reads the share. The largest that this thread has met; NaN if it has met one.
  QKV_DEVICE float load() const {
    // Those that lie in the row as a whole; the others are its first and its last.
    const int whole = first == 0 && chunks.lead > 0 ? 1 : first,
              whole_end = static_cast<int>(min(static_cast<int64_t>(end), (chunks.lead + chunks.n) / kLanes<T>));
    uint32_t most = kLeast;
    const int begin = whole + threadIdx.x;
    const uint4* from = reinterpret_cast<const uint4*>(chunks.row + chunks.place(begin));
    uint4* to = row + (begin - first);
    int left = whole_end - begin, room = held - (begin - first);
#pragma unroll 1
    for (; left > 0; left -= kUnroll * kSampleThreads, room -= kUnroll * kSampleThreads) {
      uint4 raw[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (u * kSampleThreads < left) raw[u] = load16_streaming(from + u * kSampleThreads);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (u * kSampleThreads < left) {
          most = most_of(raw[u], most);
          if (u * kSampleThreads < room) to[u * kSampleThreads] = raw[u];
        }
      from += kUnroll * kSampleThreads;
      to += kUnroll * kSampleThreads;
    }
    if (threadIdx.x < min(2, end - first))
      if (const int chunk = threadIdx.x == 0 ? first : end - 1; chunk < whole || chunk >= whole_end) {
        const uint4 raw = chunks.load(chunk, -kInfinity);
        most = most_of(raw, most);
        if (chunk - first < held) row[chunk - first] = raw;
      }
    return of_word(most);
  }

  QKV_DEVICE uint4 chunk(int i) const { return i - first < held ? row[i - first] : chunks.template load<true>(i, -kInfinity); }

  // f(chunk, its place in the row) for the chunks from, from + step ... before to.
  template <class F>
  QKV_DEVICE void each(int from, int to, int step, F&& f) const {
    int i = from;
    const int held_to = min(to, first + held);
#pragma unroll(8 / kLanes<T>)
    for (; i < held_to; i += step) f(row[i - first], i);
#pragma unroll 1
    for (; i < to; i += step) f(chunks.template load<true>(i, -kInfinity), i);
  }
  QKV_DEVICE void keys_of(const uint4& raw, uint32_t (&keys)[kLanes<T>]) const {
    float x[kLanes<T>];
    unpack<T>(raw, x);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) keys[j] = key(x[j]);
  }
  template <class F>
  QKV_DEVICE void each_keys(int from, int to, int step, F&& f) const {
#pragma unroll 1
    for (int i = from; i < to; i += step) {
      uint32_t keys[kLanes<T>];
      keys_of(chunk(i), keys);
      f(keys);
    }
  }
  template <class F>
  QKV_DEVICE void each_key(F&& f) const {
    each_keys(first + threadIdx.x, end, kSampleThreads, [&](const auto& keys) {
#pragma unroll
      for (const uint32_t one : keys) f(one);
    });
  }
};

// ---- the list --------------------------------------------------------------------------------------------------------------

// Of each: its place in the row, inverted, above its key.
struct List {
  uint64_t* entries;
  int* chunks;  // that have some
  Shared& s;

  QKV_DEVICE uint32_t count() const { return min(s.listed, kSampleListed); }
  QKV_DEVICE bool is_whole() const { return max(s.listed, s.chunks) <= kSampleListed; }
  // opaque: or the lanes that are there would be counted first, which are few.
  QKV_DEVICE void add_chunk(int i) const {
    if (const uint32_t at = atomicAdd(&s.chunks, static_cast<uint32_t>(opaque(1))); at < kSampleListed) chunks[at] = i;
  }
  QKV_DEVICE void add(int place, float x) const {
    if (const uint32_t at = atomicAdd(&s.listed, static_cast<uint32_t>(opaque(1))); at < kSampleListed)
      entries[at] = static_cast<uint64_t>(~static_cast<uint32_t>(place)) << 32 | __float_as_uint(x);
  }
  template <class F>
  QKV_DEVICE void each_key(F&& f) const {
    for (uint32_t i = threadIdx.x; i < count(); i += kSampleThreads) f(static_cast<uint32_t>(entries[i]));
  }
};

// Numbers that reach `least`. kWeigh: what the others weigh, nearly.
template <bool kWeigh, class T>
QKV_DEVICE float list_numbers(const Share<T>& share, float least, float scale, float top, const List& list) {
  const float offset = -top * scale;
  float others = 0;
  const auto weigh = [&](float x) { others += exp2_approx(fmaf(x, scale, offset)); };
  // Chunks first: most have none.
  share.each(share.first + threadIdx.x, share.end, kSampleThreads, [&](const uint4& raw, int i) {
    if (share.some_reach(raw, least)) return list.add_chunk(i);
    if constexpr (kWeigh) {
      float x[kLanes<T>];
      unpack<T>(raw, x);
#pragma unroll
      for (const float one : x) weigh(one);
    }
  });
  __syncthreads();
#pragma unroll 1
  for (uint32_t c = threadIdx.x; c < min(list.s.chunks, kSampleListed); c += kSampleThreads) {
    float x[kLanes<T>];
    unpack<T>(share.chunk(list.chunks[c]), x);
    const int place = static_cast<int>(share.chunks.place(list.chunks[c]));
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j)
      if (x[j] >= least)
        list.add(place + j, x[j]);
      else if (kWeigh)
        weigh(x[j]);
  }
  return others;
}

// Numbers become keys, each by the thread that each_key gives it to. What those weigh whose keys are below `least`: they have
// been listed for being near it.
QKV_DEVICE uint64_t make_keys(const List& list, uint32_t least, float temperature, const Weight& weight) {
  uint64_t below = 0;
  for (uint32_t i = threadIdx.x; i < list.count(); i += kSampleThreads) {
    const float x = __uint_as_float(static_cast<uint32_t>(list.entries[i]));
    const uint32_t key = ordered(temperature == 1 ? x : __fdiv_rn(x, temperature));
    if (key < least) below += weight(key);
    list.entries[i] = (list.entries[i] & ~0xFFFFFFFFull) | key;
  }
  return below;
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

// By one warp, a share of it a lane: what the numbers of the chunks from ... to - 1 weigh.
template <class T>
QKV_DEVICE uint64_t weight_of_all(const Share<T>& share, int from, int to, const Weight& weight) {
  constexpr int kStep = WeightSum::kMost / kLanes<T> * 32;
  uint64_t total = 0;
  for (; from < to; from += kStep) {
    const int own = from + lane_id(), end = min(to, from + kStep);
    WeightSum sum(weight.bits);
    share.each(own, end, 32, [&](const uint4& raw, int) {
      float x[kLanes<T>];
      unpack<T>(raw, x);
#pragma unroll
      for (const float one : x) sum.add(weight.of(one));
    });
    total += sum.total((end - own + 31) / 32 * kLanes<T>, weight.bits);
  }
  return total;
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

// By one warp: the token, of kEach neighbours each whose keys read(i, keys) has for from ... to - 1; place(i) is the first's.
template <int kEach, class Read, class Place>
QKV_DEVICE void find(int from, int to, const Weight& weight, const Kept& kept, uint64_t target, Part passed, int64_t* token,
                     Read&& read, Place&& place) {
  const int lane = lane_id();
  for (int i = from + lane; i - lane < to; i += 32) {  // beyond only if somebody writes the logits meanwhile
    uint32_t key[kEach] = {};
    Part part{0, 0};
    if (i < to) read(i, key);
#pragma unroll
    for (const uint32_t one : key) count_score(one, weight, kept, part);
    const int holder = reach(kept, part, target, passed);
    if (holder == 32) continue;
    if (lane == holder) {
      int found = -1;
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        Part one{0, 0};
        count_score(key[j], weight, kept, one);
        passed.weight += one.weight + weight_of_equal(kept, one.equal, passed.equal);
        passed.equal += one.equal;
        if (found < 0 && passed.weight > target) found = j;
      }
      *token = place(i) + found;
    }
    return;
  }
}

template <class T, class Team>
QKV_DEVICE void sample_row(const SampleArgs& a, const SamplePlan& plan, const Team& team) {
  __shared__ Shared s;
  const int lane = lane_id(), warp = threadIdx.x / 32;
  Search search{reinterpret_cast<Histogram*>(shared_chunks()), 0};
  const List list{reinterpret_cast<uint64_t*>(search.histograms + 2),
                  reinterpret_cast<int*>(reinterpret_cast<uint64_t*>(search.histograms + 2) + kSampleListed), s};
  Share<T> share{
      Chunks<T>(static_cast<const T*>(a.x) + team.row() * a.n, a.n), plan.temperature, team.rank() * plan.share, 0, plan.held,
      reinterpret_cast<uint4*>(shared_chunks()) + plan.beside / 16};
  share.end = static_cast<int>(min(share.chunks.count(), static_cast<int64_t>(share.first) + plan.share));
  if (plan.lists) {
    search.clear(0, threadIdx.x, kSampleThreads);
    search.clear(1, threadIdx.x, kSampleThreads);
  }

  const uint32_t own_top = ordered_number(share.load());  // NaN's is above all
  uint32_t top = warp_most(own_top);
  if (lane == 0) s.top[warp] = top;
  if (threadIdx.x == 0) s.listed = s.chunks = 0;
  __syncthreads();
  top = warp_most(lane < kWarps ? s.top[lane] : 0);
  top = warp_most(team.exchange({0, top}, s.of_block[0]).equal);
  if (threadIdx.x == 0) {
    const float x = from_ordered(top), score = __fdiv_rn(x, a.temperature);
    s.row_top = isfinite(score) ? share.score(x) : score;
  }
  __syncthreads();
  const auto weight = [&] { return Weight{s.row_top, plan.of_score, plan.bits}; };  // from shared memory, as registers are few
  if (!isfinite(s.row_top)) {
    if (threadIdx.x == 0 && team.rank() == 0) a.tokens[team.row()] = -1;
    return team.leave();
  }

  // 1: all scores are larger, and none is equal.
  Kept kept{1, 0, plan.least_weight, 0};
  bool listed = false;
  if (plan.lists) {
    const bool few = a.k > 0 && a.k < a.n, nucleus = a.p < 1;
    const uint32_t half = static_cast<uint32_t>(team.size()) * kSampleThreads / 2;
    // How far a sum of floats may be off, which is too much where scores are large. In 2^-24: 4 |top| and 6 y for the two
    // exponents and the scores' own rounding, where y is less than 33 or there is no weight, 8 for two exponentials, and the sum.
    const auto wrong = [&] {
      return (5 * fabsf(s.row_top) + 300 + static_cast<float>(plan.share * kLanes<T> / kSampleThreads)) * 0x1p-24f + 0x1p-20f;
    };
    const bool by_top = few ? a.k <= half : nucleus && wrong() < 0.01f && plan.scale < kInfinity;
    Rest rest{0, 0};
    if (by_top || !(few || nucleus)) {
      uint32_t bound;
      if (by_top) {
        // One digit is often enough, if a few more may reach the bound; without k, as many as the list most likely has room for.
        const uint32_t wanted = few ? static_cast<uint32_t>(a.k) : half;
        const uint32_t number = largest(team, [&](auto&& f) { f(own_top); }, 0, wanted, wanted + half / 4, search, s);
        bound = share.key(from_ordered(max(number, ordered_number(-kInfinity))));
      } else {
        bound = ordered(s.row_top - plan.reach);
      }
      // What is not above the score before the bound, times t, has no score that reaches the bound, as that is rounded by less.
      // 2: the one before 0 is -0. -inf has none, which is NaN.
      const float least = fmaxf(from_ordered(bound - 2) * a.temperature, -kInfinity);
      const bool weigh = nucleus && !few;
      const float others = weigh ? list_numbers<true>(share, least, plan.scale, from_ordered(top), list)
                                 : list_numbers<false>(share, least, 0, 0, list);
      __syncthreads();
      const uint64_t near = make_keys(list, bound, a.temperature, weight());
      listed = list.is_whole();
      kept.least = bound;
      if (weigh) {
        const Part own = of_warps({near + static_cast<uint64_t>(others * static_cast<float>(1ull << plan.bits)), 0}, s);
        const Part all = warp_total(team.exchange({warp_total(own).weight, listed ? 0u : 1u}, s.of_block[1]));
        const auto off = static_cast<uint64_t>(static_cast<double>(all.weight) * wrong()) + 2 * static_cast<uint64_t>(a.n);
        rest = {all.weight - min(all.weight, off), all.weight + off};
        if (all.equal != 0) {
          listed = false;
          kept.least = 1;
          rest = {0, 0};
        }
      }
    }
    const auto candidates = [&](auto&& f) { listed ? list.each_key(f) : share.each_key(f); };
    if (const auto k = static_cast<uint32_t>(a.k); few)
      kept.least = max(kept.least, largest(team, candidates, kept.least, k, k, search, s));
    while (nucleus && !keep_top_p(team, candidates, rest, weight(), static_cast<float>(1 - a.p), kept, search, s)) {
      listed = false;
      kept.least = 1;
      rest = {0, 0};
    }
    kept.of_equal = weight()(kept.least);
    if (kept.of_equal < kept.least_weight) kept.of_equal = 0;
  }

  // In which block the token lies, then in which warp's stretch, as each warp finds for itself.
  Part part{0, 0};
  const int from = share.first + warp * plan.stretch, to = min(share.end, from + plan.stretch);
  if (listed)
    list.each_key([&](uint32_t key) { count_score(key, weight(), kept, part); });
  else if (!plan.lists && plan.temperature == 1)
    part.weight = weight_of_all(share, from, to, weight());
  else
    share.each_keys(from + lane, to, 32, [&](const auto& keys) {
#pragma unroll
      for (const uint32_t one : keys) count_score(one, weight(), kept, part);
    });
  part = of_warps(part, s);
  const Part of_block = team.exchange(warp_total(part), s.of_block[2]);
  team.leave();
  Part all{0, 0}, passed{0, 0};
  reach(kept, of_block, ~0ull, all);
  const uint64_t target = min(static_cast<uint64_t>(a.u[team.row()] * static_cast<double>(all.weight)), all.weight - 1);
  if (reach(kept, of_block, target, passed) != team.rank()) return;
  if (!listed) {
    if (reach(kept, part, target, passed) == warp)
      find<kLanes<T>>(
          from, to, weight(), kept, target, passed, a.tokens + team.row(),
          [&](int i, auto& key) { share.keys_of(share.chunk(i), key); }, [&](int i) { return share.chunks.place(i); });
    return;
  }
  const int count = static_cast<int>(list.count());
  int sorted = 1;
  while (sorted < count) sorted *= 2;
  for (int i = count + threadIdx.x; i < sorted; i += kSampleThreads) list.entries[i] = 0;
  __syncthreads();
  sort_descending(list.entries, sorted);
  if (warp == 0)
    find<1>(
        0, count, weight(), kept, target, passed, a.tokens + team.row(),
        [&](int i, auto& key) { key[0] = static_cast<uint32_t>(list.entries[i]); },
        [&](int i) { return static_cast<int64_t>(~static_cast<uint32_t>(list.entries[i] >> 32)); });
}

}  // namespace sampling

// In sample_sm90.cu.
void launch_sample_clusters(const SampleArgs& a, const SamplePlan& plan, cudaStream_t stream);

}  // namespace qkv::cuda

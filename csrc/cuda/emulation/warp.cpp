#include "cuda/emulation/warp.h"

#include <algorithm>

#include "cuda/emulation/block.h"

namespace qkv::emulation {
namespace {

struct Lane {
  uint64_t value;
  unsigned source = 0;
  uint64_t result = 0;
};

Lane& lane_at(void** slots, unsigned i) { return *static_cast<Lane*>(slots[i]); }

template <class F>
void for_each_lane(uint32_t mask, F&& f) {
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) f(i);
}

// Everybody's bit in everybody's result.
uint32_t gather_bits(int site, bool predicate, uint32_t mask) {
  Lane mine{predicate};
  meet_warp(site, mask, &mine, [](void** slots, uint32_t lanes, void*) {
    uint32_t bits = 0;
    for_each_lane(lanes, [&](unsigned i) { bits |= static_cast<uint32_t>(lane_at(slots, i).value) << i; });
    for_each_lane(lanes, [&](unsigned i) { lane_at(slots, i).result = bits; });
  });
  return static_cast<uint32_t>(mine.result);
}

uint32_t combine(Redux op, uint32_t a, uint32_t b) {
  const int32_t x = static_cast<int32_t>(a), y = static_cast<int32_t>(b);
  switch (op) {
    case Redux::add:
      return a + b;
    case Redux::min_signed:
      return static_cast<uint32_t>(std::min(x, y));
    case Redux::max_signed:
      return static_cast<uint32_t>(std::max(x, y));
    case Redux::min_unsigned:
      return std::min(a, b);
    case Redux::max_unsigned:
      return std::max(a, b);
    case Redux::bit_and:
      return a & b;
    case Redux::bit_or:
      return a | b;
    default:
      return a ^ b;
  }
}

}  // namespace

uint32_t shuffle(int site, ShuffleMode mode, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, bool* in_range) {
  // The ISA's own formula.
  const int lane = static_cast<int>(current->lane), segment = c >> 8 & 31, clamp = c & 31, by = b & 31;
  const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
  int from = lane;
  bool in = false;
  switch (mode) {
    case ShuffleMode::up:
      from = lane - by;
      in = from >= last;
      break;
    case ShuffleMode::down:
      from = lane + by;
      in = from <= last;
      break;
    case ShuffleMode::butterfly:
      from = lane ^ by;
      in = from <= last;
      break;
    case ShuffleMode::index:
      from = first | (by & ~segment);
      in = from <= last;
      break;
  }
  if (!in) from = lane;
  if (in_range) *in_range = in;
  Lane mine{value, static_cast<unsigned>(from)};
  meet_warp(site, mask, &mine, [](void** slots, uint32_t lanes, void*) {
    for_each_lane(lanes, [&](unsigned i) {
      Lane& l = lane_at(slots, i);
      if (!(lanes >> l.source & 1))
        fail(FaultKind::divergent, "shfl: lane %u reads lane %u, which takes no part (mask %08x)", i, l.source, lanes);
      l.result = lane_at(slots, l.source).value;
    });
  });
  return static_cast<uint32_t>(mine.result);
}

uint32_t vote_ballot(int site, bool predicate, uint32_t mask) { return gather_bits(site, predicate, mask); }
bool vote_all(int site, bool predicate, uint32_t mask) { return gather_bits(site, !predicate, mask) == 0; }
bool vote_any(int site, bool predicate, uint32_t mask) { return gather_bits(site, predicate, mask) != 0; }
bool vote_uniform(int site, bool predicate, uint32_t mask) {
  // Asked twice, for lanes that took part may have returned since, and then nobody knows how many they were.
  return gather_bits(site, predicate, mask) == 0 || gather_bits(site, !predicate, mask) == 0;
}

uint32_t match_any(int site, uint64_t value, uint32_t mask) {
  Lane mine{value};
  meet_warp(site, mask, &mine, [](void** slots, uint32_t lanes, void*) {
    for_each_lane(lanes, [&](unsigned i) {
      for_each_lane(lanes, [&](unsigned j) {
        if (lane_at(slots, i).value == lane_at(slots, j).value) lane_at(slots, i).result |= 1u << j;
      });
    });
  });
  return static_cast<uint32_t>(mine.result);
}

uint32_t match_all(int site, uint64_t value, uint32_t mask, bool* all) {
  Lane mine{value};
  meet_warp(site, mask, &mine, [](void** slots, uint32_t lanes, void*) {
    const uint64_t first = lane_at(slots, static_cast<unsigned>(__builtin_ctz(lanes))).value;
    bool same = true;
    for_each_lane(lanes, [&](unsigned i) { same &= lane_at(slots, i).value == first; });
    for_each_lane(lanes, [&](unsigned i) { lane_at(slots, i).result = same ? lanes : 0; });
  });
  if (all) *all = mine.result != 0;
  return static_cast<uint32_t>(mine.result);
}

uint32_t reduce(int site, Redux op, uint32_t value, uint32_t mask) {
  Lane mine{value};
  meet_warp(
      site, mask, &mine,
      [](void** slots, uint32_t lanes, void* argument) {
        const Redux with = *static_cast<Redux*>(argument);
        const unsigned first = static_cast<unsigned>(__builtin_ctz(lanes));
        uint32_t sum = static_cast<uint32_t>(lane_at(slots, first).value);
        for_each_lane(lanes & ~(1u << first),
                      [&](unsigned i) { sum = combine(with, sum, static_cast<uint32_t>(lane_at(slots, i).value)); });
        for_each_lane(lanes, [&](unsigned i) { lane_at(slots, i).result = sum; });
      },
      &op);
  return static_cast<uint32_t>(mine.result);
}

bool elect(int site, uint32_t mask, uint32_t* leader) {
  const uint32_t lanes = gather_bits(site, true, mask);
  *leader = static_cast<uint32_t>(__builtin_ctz(lanes));
  return *leader == current->lane;
}

void warp_barrier(int site, uint32_t mask) {
  if (left_out(site)) return;
  meet_warp(site, mask, nullptr, nullptr, nullptr, true);
}

}  // namespace qkv::emulation

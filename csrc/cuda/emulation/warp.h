// Instructions that the lanes of a warp execute together, without tensor cores: shuffles, votes, matches, reductions.
#pragma once
#include <stdint.h>

namespace qkv::emulation {

enum class ShuffleMode { up, down, butterfly, index };
uint32_t shuffle(int site, ShuffleMode, uint32_t value, uint32_t b, uint32_t c, uint32_t mask, bool* in_range);

uint32_t vote_ballot(int site, bool predicate, uint32_t mask);
bool vote_all(int site, bool predicate, uint32_t mask);
bool vote_any(int site, bool predicate, uint32_t mask);
bool vote_uniform(int site, bool predicate, uint32_t mask);

// The lanes whose value is the same as this one's.
uint32_t match_any(int site, uint64_t value, uint32_t mask);
// The mask if all have the same value, else 0.
uint32_t match_all(int site, uint64_t value, uint32_t mask, bool* all);

enum class Redux { add, min_signed, max_signed, min_unsigned, max_unsigned, bit_and, bit_or, bit_xor };
uint32_t reduce(int site, Redux, uint32_t value, uint32_t mask);

bool elect(int site, uint32_t mask, uint32_t* leader);

void warp_barrier(int site, uint32_t mask);

}  // namespace qkv::emulation

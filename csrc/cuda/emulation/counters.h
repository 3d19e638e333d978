// What an access costs the memory system: wavefronts of shared memory (bank conflicts) and sectors of global memory (coalescing).
// Accesses of the lanes of a warp belong together if they are the n-th of each lane at one instruction.
#pragma once
#include <stdint.h>

#include "cuda/emulation/emulator.h"

namespace qkv::emulation {

extern Counters* counted;  // of the kernel that runs; nullptr: not counting

enum class TrafficKind : uint8_t { shared, matrix, global };

// An access of the current thread at its site.
void count_access(TrafficKind, bool write, uint64_t address, unsigned bytes);

void counters_start_blocks();
void counters_end_blocks();

}  // namespace qkv::emulation

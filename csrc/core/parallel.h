// The thread pool: one per process, its workers shared by all calling threads.
#pragma once
#include <stdint.h>

namespace qkv {

// Body of a parallel loop: handles items [begin, end). `thread` is below the loop's thread limit and unique among the
// threads that run this loop at the same time, so it may index scratch memory.
using LoopBody = void (*)(void* context, int64_t begin, int64_t end, int thread);

// Runs body over [0, n) in chunks of `grain` items, claimed one by one by the caller and at most threads - 1 workers, each
// first of a range of its own and then of the others', so that a thread that is held up costs its share only. Returns when all is
// done. A loop of one chunk, or one started inside another loop, runs on the caller alone.
void parallel_for(int64_t n, int64_t grain, int threads, LoopBody body, void* context);

// Registers the fork handler. Called when the module is loaded: a fork must not meet it half done in another thread.
void prepare_threads();

// Threads a loop may use, the caller included. Kernels get this number through their arguments (scratch is sized by it).
int num_threads();
void set_num_threads(int n);

}  // namespace qkv

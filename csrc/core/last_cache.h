// The size of the last cache, and what is too large for it.
#pragma once
#include <stdint.h>

namespace qkv {

// True for an output of so many bytes that its first part has left the last cache when its last part is written: it is then
// better written past the caches, which saves reading the lines first.
bool past_caches(int64_t bytes);

// From how many bytes on; 0 brings back the default, half of the last cache. For tests and experiments.
void set_past_caches(int64_t bytes);

}  // namespace qkv

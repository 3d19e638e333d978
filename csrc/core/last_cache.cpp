// The size of the last cache, and what is too large for it.
#include "core/last_cache.h"

#include <atomic>
#include <cstdio>

namespace qkv {
namespace {

std::atomic<int64_t> g_from{0};

// What one CPU sees. glibc's sysconf(_SC_LEVEL3_CACHE_SIZE) is no help: on AMD it adds up the caches of the whole socket.
int64_t half_last_cache() {
  int64_t last = 0;
  for (int index = 0; index < 8; ++index) {
    char path[80];
    std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
    if (std::FILE* file = std::fopen(path, "r")) {
      long size = 0;
      char unit = 0;
      if (std::fscanf(file, "%ld%c", &size, &unit) >= 1) {
        const int64_t bytes = static_cast<int64_t>(size) << (unit == 'G' ? 30 : unit == 'M' ? 20 : unit == 'K' ? 10 : 0);
        if (bytes > last) last = bytes;
      }
      std::fclose(file);
    }
  }
  return (last > 0 ? last : int64_t{32} << 20) / 2;
}

}  // namespace

bool past_caches(int64_t bytes) {
  static const int64_t usual = half_last_cache();
  const int64_t from = g_from.load(std::memory_order_relaxed);
  return bytes > (from > 0 ? from : usual);
}

void set_past_caches(int64_t bytes) { g_from.store(bytes); }

}  // namespace qkv

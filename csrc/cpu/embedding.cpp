// embedding: y[i] = table[ids[i]]. A row copy; rows of a packed table are quantize.cpp's to read.
#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

// Past the caches in whole vectors of floats, whatever the elements are. from: at any address.
static void copy_past(char* to, const char* from, int64_t bytes) {
  constexpr int64_t kBytes = kLanes * 4;
  int64_t i = -(intptr_t)to & (kBytes - 1);
  if (i > bytes) i = bytes;
  memcpy(to, from, (size_t)i);
  for (; i + kBytes <= bytes; i += kBytes) stream((float*)(to + i), load((const float*)(from + i), Full{}));
  memcpy(to + i, from + i, (size_t)(bytes - i));
}

void embedding(const EmbeddingArgs& a) {
  parallel(a.count, grain_for(a.width, a.count, a.threads), a.threads, [&](int64_t begin, int64_t end, int) {
    const int64_t size = size_of(a.dtype);
    for (int64_t i = begin; i < end; ++i) {
      char* y = a.y + i * a.width * size;
      const int64_t id = a.ids[i];
      if (a.step == 1 && a.past_caches) {
        if (i + 1 < end) {  // rows lie anywhere: nothing but the ids tells which comes next
          const char* next = a.table + a.ids[i + 1] * a.row * size;
          for (int64_t b = 0; b < a.width * size; b += 64) __builtin_prefetch(next + b);
        }
        copy_past(y, a.table + id * a.row * size, a.width * size);
      } else if (a.step == 1) {
        memcpy(y, a.table + id * a.row * size, (size_t)(a.width * size));
      } else {
        for (int64_t j = 0; j < a.width; ++j) memcpy(y + j * size, a.table + (id * a.row + j * a.step) * size, (size_t)size);
      }
    }
    if (a.past_caches) fence();
  });
}

}  // namespace QKV_ISA
}  // namespace qkv

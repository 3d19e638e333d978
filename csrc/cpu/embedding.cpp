// embedding: y[i] = table[ids[i]]. A row copy; rows of a packed table are quantize.cpp's to read.
#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

void embedding(const EmbeddingArgs& a) {
  parallel(a.count, grain_for(a.width), a.threads, [&](int64_t begin, int64_t end, int) {
    const int64_t size = size_of(a.dtype);
    for (int64_t i = begin; i < end; ++i) {
      char* y = a.y + i * a.width * size;
      const int64_t id = a.ids[i];
      if (a.step == 1) {
        memcpy(y, a.table + id * a.row * size, (size_t)(a.width * size));
      } else {
        for (int64_t j = 0; j < a.width; ++j) memcpy(y + j * size, a.table + (id * a.row + j * a.step) * size, (size_t)size);
      }
    }
  });
}

}  // namespace QKV_ISA
}  // namespace qkv

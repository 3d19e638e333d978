// PackedWeight: a weight matrix in the layout that linear and embedding read.
#pragma once
#include <string>

#include "bind/array.h"

namespace qkv {

class PackedWeight {
 public:
  // Memory for a weight (n, k), not yet filled but for zeros in scales.
  PackedWeight(WeightType type, int64_t group, int64_t n, int64_t k);
  ~PackedWeight() { lasting_release(memory_, static_cast<size_t>(bytes_)); }
  PackedWeight(const PackedWeight&) = delete;
  PackedWeight& operator=(const PackedWeight&) = delete;

  const PackedView& view() const { return view_; }
  int64_t nbytes() const { return bytes_; }
  const char* type_name() const;

 private:
  PackedView view_{};
  int64_t bytes_ = 0;
  char* memory_ = nullptr;
};

// The object's view, or nullptr if it is no PackedWeight.
const PackedView* packed_view(py::handle object);

}  // namespace qkv

// What ops on tokens check whatever their arrays' memory is: embedding, angles, scaled sums.
#pragma once
#include <string>
#include <vector>

#include "bind/view.h"

namespace qkv {

inline void check_table(const View& table) {
  if (table.rank() != 2) fail_value("embedding: table must be (vocabulary, width), got " + shape_text(table.shape));
}

inline void check_ids(const std::vector<int64_t>& ids, int64_t rows) {
  for (const int64_t id : ids)
    if (id < 0 || id >= rows)
      fail_value("embedding: id " + std::to_string(id) + " is outside the table's " + std::to_string(rows) + " rows");
}

// contiguous: whether the array is.
inline void check_angles(const std::vector<int64_t>& positions, const View& frequencies, bool contiguous) {
  if (positions.size() != 1) fail_value("rotary_angles: positions must be (total), got " + shape_text(positions));
  if (frequencies.is_double || frequencies.dtype != DType::f32 || frequencies.rank() != 1 || !contiguous)
    fail_value("rotary_angles: frequencies must be one row of contiguous float32");
}

inline void check_scaled_sum(const View& x, const View& other) {
  if (x.rank() == 0) fail_value(x.where + " must have at least 1 dimension");
  if (other && other.shape != x.shape && other.shape != std::vector<int64_t>{x.shape.back()})
    fail_value(other.where + " must have x's shape " + shape_text(x.shape) + " or be one row, got " + shape_text(other.shape));
}

}  // namespace qkv

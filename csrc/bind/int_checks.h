// Integer arguments in host memory.
#pragma once
#include <pybind11/numpy.h>

#include <string>
#include <vector>

#include "bind/view.h"

namespace qkv {

namespace py = pybind11;

// Integers of any width as int64, contiguous. TypeError for anything else.
inline py::array_t<int64_t, py::array::c_style> read_int_array(const char* op, const char* name, py::handle object) {
  const std::string where = std::string(op) + ": " + name;
  if (!py::isinstance<py::array>(object)) fail_type(where + " must be an integer array, got " + Py_TYPE(object.ptr())->tp_name);
  const py::array array = py::reinterpret_borrow<py::array>(object);
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u') fail_type(where + " must hold integers, got " + py::str(array.dtype()).cast<std::string>());
  // uint64 values beyond int64 would wrap into negative ones, which every caller refuses.
  const auto ints = py::array_t<int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
  if (!ints) throw std::bad_alloc();  // any integer array converts
  return py::reinterpret_borrow<py::array_t<int64_t, py::array::c_style>>(ints);
}

// kv_lengths (batch): 0 to t.
inline void check_kv_lengths(const char* op, const std::vector<int64_t>& lengths, const std::vector<int64_t>& shape,
                             int64_t batch, int64_t t) {
  const std::string o(op);
  if (shape != std::vector<int64_t>{batch})
    fail_value(o + ": kv_lengths must be " + shape_text({batch}) + ", got " + shape_text(shape));
  for (const int64_t n : lengths)
    if (n < 0 || n > t) fail_value(o + ": kv_lengths must lie in 0 to " + std::to_string(t) + ", got " + std::to_string(n));
}

// cu_seqlens (B + 1): from 0 to total, never falling.
inline void check_cu_seqlens(const char* op, const char* name, const std::vector<int64_t>& cu, const std::vector<int64_t>& shape,
                             int64_t total) {
  const std::string where = std::string(op) + ": " + name;
  if (shape.size() != 1 || shape[0] < 1) fail_value(where + " must be (B + 1,), got " + shape_text(shape));
  if (cu.front() != 0) fail_value(where + " must start with 0, got " + std::to_string(cu.front()));
  for (size_t i = 1; i < cu.size(); ++i)
    if (cu[i] < cu[i - 1]) fail_value(where + " falls from " + std::to_string(cu[i - 1]) + " to " + std::to_string(cu[i]));
  if (cu.back() != total)
    fail_value(where + " ends with " + std::to_string(cu.back()) + ", the tokens are " + std::to_string(total));
}

}  // namespace qkv

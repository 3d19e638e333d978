// NumPy arrays as checked views, and fresh arrays on pooled memory. With dlpack.cpp the only place that knows how NumPy's arrays
// look to Python.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "bind/view.h"
#include "core/buffer.h"

namespace qkv {

namespace py = pybind11;

// A null reference: py::array's own default is a new NumPy array, which takes longer than a small kernel.
inline py::array no_array() { return py::reinterpret_steal<py::array>(py::handle()); }

// A floating-point argument that passed the dtype check; `owner` keeps the memory alive.
struct Array : View {
  py::array owner = no_array();
};

// Raises TypeError unless `object` is a NumPy array of float32, float16, bfloat16 or float64 in native byte order.
// A misaligned array is copied (its elements cannot be addressed); any strides are fine.
Array read_array(const char* op, const char* name, py::handle object);
// As read_array, or int8: keys or values in a cache. `writeable`: in place, so a read-only or misaligned array is a ValueError.
Array read_cache(const char* op, const char* name, py::handle object, bool writeable);
// float32 scales of a cache (blocks, block_size, Hkv, D), one per token and head: there if and only if the cache is int8.
Array read_scale(const char* op, const char* name, py::handle object, const Array& cache, bool writeable);
// As read_array; None gives an empty Array.
Array read_optional(const char* op, const char* name, py::handle object);
// Integers of any width as int64, contiguous. TypeError for anything else.
std::vector<int64_t> read_ints(const char* op, const char* name, py::handle object, std::vector<int64_t>* shape);

// Such an array's place, where it is int64 and contiguous: what a recorded call reads again. Of another one a call cannot be
// recorded.
class LiveInts {
 public:
  explicit LiveInts(py::handle object);
  // What is there now, into a vector that read_ints made.
  void read(std::vector<int64_t>* to) const {
    if (data_) to->assign(data_, data_ + to->size());
  }

 private:
  const int64_t* data_ = nullptr;
};

// A parameter as contiguous floats, in place where it is that; nullptr if absent. `keep` holds converted copies.
const float* as_floats(const Array& x, std::vector<std::vector<float>>* keep);

// Uninitialised array on pooled memory: C-contiguous, or with these strides (in elements) of a dense order.
py::array new_array(const char* op, const py::dtype& dtype, const std::vector<int64_t>& shape,
                    const std::vector<int64_t>* strides = nullptr);
// The view of an array that we made or checked.
Array view_of(const py::array& array, DType dtype);
py::dtype float32_dtype();

// The array a call writes to: `given`, checked against dtype and shape, or a new one. A given array that shares memory with
// an input, or whose last dimension is not contiguous, is written at the end from a fresh one.
class Output {
 public:
  Output(const char* op, py::handle given, const Array& like, const std::vector<int64_t>& shape,
         std::initializer_list<const Array*> inputs);
  const Array& view() const { return view_; }
  py::array finish();

 private:
  bool given_;
  py::array target_ = no_array(), written_ = no_array();
  Array view_;
};

}  // namespace qkv

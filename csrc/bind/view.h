// An argument as a checked view, wherever its memory is: shapes, dtypes and the messages about them, the same for NumPy's arrays
// and a GPU's.
#pragma once
#include <initializer_list>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace qkv {

// A floating-point argument that passed the dtype check. Strides in elements; what keeps the memory alive is the caller's.
struct View {
  std::string where;  // "softmax: x", the start of every message about it
  char* data = nullptr;
  DType dtype = DType::f32;
  bool is_double = false;  // float64: checked like the others, then served by qkv.reference
  bool is_int8 = false;    // of a cache only; dtype means nothing then
  std::vector<int64_t> shape, strides;

  int rank() const { return static_cast<int>(shape.size()); }
  int64_t size() const;
  int64_t item() const { return is_double ? 8 : is_int8 ? 1 : size_of(dtype); }  // bytes of an element
  explicit operator bool() const { return data != nullptr; }
};

// x's dtype, written out.
std::string dtype_name(const View& x);
std::string shape_text(const std::vector<int64_t>& shape);
[[noreturn]] void fail_value(const std::string& message);
[[noreturn]] void fail_type(const std::string& message);

// TypeError unless all arrays share a dtype; absent ones are passed over. True if any is float64: the call then belongs to the
// reference, after all other checks.
bool check_dtypes(const char* op, const std::vector<const View*>& arrays);
// A parameter (norm weight, bias vector ...) may also be float32 beside half-width x.
void check_parameter_dtype(const View& x, const View& parameter);

// Product of dimensions; ValueError if it cannot be an array's size.
int64_t checked_size(const char* op, const std::vector<int64_t>& shape);

// ValueError unless a length that the work is cut along is below 2^40: arrays of zero stride can claim any.
void check_length(const char* op, const char* name, int64_t n);

// The same grid of rows over several arrays: `axis` of each becomes the row, all other dimensions are merged where every
// array allows. Arrays that are absent give Rows with data == nullptr. All must have the shape of the first.
std::vector<Rows> rows_along(int axis, std::initializer_list<const View*> arrays);
// -rank <= axis < rank, made non-negative; ValueError otherwise.
int check_axis(const char* op, const View& x, int64_t axis);

// Whether the memory from the first to the last byte of two arrays has anything in common.
bool overlap(const View& x, const View& y);
// Whether x's elements fill one stretch of memory without gaps, in whatever order of its dimensions.
bool dense(const View& x);

// Strides of x as if it had `shape`, by NumPy's broadcasting rules; ValueError otherwise.
std::vector<int64_t> broadcast_strides(const View& x, const std::vector<int64_t>& shape);
template <class T>
T broadcast(const T& x, const std::vector<int64_t>& shape) {
  T y = x;
  y.strides = broadcast_strides(x, shape);
  y.shape = shape;
  return y;
}

}  // namespace qkv

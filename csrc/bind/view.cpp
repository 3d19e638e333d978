// Arguments as checked views: what NumPy's arrays and a GPU's have in common.
#include "bind/view.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>

namespace py = pybind11;

namespace qkv {

void fail_value(const std::string& message) { throw py::value_error(message); }
void fail_type(const std::string& message) { throw py::type_error(message); }

int64_t View::size() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.size() == 1 ? ",)" : ")");
}

std::string dtype_name(const View& x) {
  if (x.is_double) return "float64";
  if (x.is_int8) return "int8";
  return x.dtype == DType::f32 ? "float32" : x.dtype == DType::f16 ? "float16" : "bfloat16";
}

bool check_dtypes(const char* op, const std::vector<const View*>& arrays) {
  const View* first = nullptr;
  for (const View* x : arrays)
    if (*x && x->is_double) return true;
  for (const View* x : arrays) {
    if (!*x) continue;
    if (!first) first = x;
    if (x->dtype != first->dtype)
      fail_type(x->where + " is " + dtype_name(*x) + " but " + first->where.substr(std::strlen(op) + 2) + " is " +
                dtype_name(*first));
  }
  return false;
}

void check_parameter_dtype(const View& x, const View& parameter) {
  if (!parameter || parameter.is_double || x.is_double) return;
  if (parameter.dtype != x.dtype && parameter.dtype != DType::f32)
    fail_type(parameter.where + " is " + dtype_name(parameter) + "; beside " + dtype_name(x) + " it may be " + dtype_name(x) +
              " or float32");
}

void check_length(const char* op, const char* name, int64_t n) {
  if (n >= int64_t{1} << 40) fail_value(std::string(op) + ": " + name + " of " + std::to_string(n) + " is too large");
}

int64_t checked_size(const char* op, const std::vector<int64_t>& shape) {
  int64_t n = 1;
  bool overflow = false;
  for (const int64_t d : shape) overflow = __builtin_mul_overflow(n, d > 1 ? d : 1, &n) || overflow;
  if (overflow || n > int64_t{1} << 56)
    fail_value(std::string(op) + ": an array of shape " + shape_text(shape) + " cannot exist");
  n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::vector<Rows> rows_along(int axis, std::initializer_list<const View*> arrays) {
  const View& lead = **arrays.begin();
  struct Dim {
    int64_t size;
    std::vector<int64_t> strides;
  };
  std::vector<Dim> grid;  // innermost first
  for (int d = lead.rank() - 1; d >= 0; --d) {
    if (d == axis || lead.shape[static_cast<size_t>(d)] == 1) continue;
    Dim dim{lead.shape[static_cast<size_t>(d)], {}};
    bool merges = !grid.empty();
    size_t i = 0;
    for (const View* x : arrays) {
      const int64_t stride = *x ? x->strides[static_cast<size_t>(d)] : 0;
      dim.strides.push_back(stride);
      if (merges && stride != grid.back().strides[i] * grid.back().size) merges = false;
      ++i;
    }
    if (merges)
      grid.back().size *= dim.size;
    else
      grid.push_back(dim);
  }
  if (grid.size() > kMaxRank)
    fail_value(lead.where + " has " + std::to_string(grid.size()) + " dimensions that cannot be merged; at most " +
               std::to_string(kMaxRank) + " are supported");
  std::vector<Rows> all;
  size_t i = 0;
  for (const View* x : arrays) {
    Rows r;
    r.data = x->data;
    r.dtype = x->dtype;
    r.n = axis < 0 ? 1 : lead.shape[static_cast<size_t>(axis)];
    r.step = axis < 0 || !*x ? 1 : x->strides[static_cast<size_t>(axis)];
    if (r.n <= 1) r.step = 1;
    r.rows = 1;
    r.rank = static_cast<int>(grid.size());
    for (int d = 0; d < r.rank; ++d) {
      const Dim& dim = grid[grid.size() - 1 - static_cast<size_t>(d)];
      r.shape[d] = dim.size;
      r.strides[d] = dim.strides[i];
      r.rows *= dim.size;
    }
    all.push_back(r);
    ++i;
  }
  return all;
}

int check_axis(const char* op, const View& x, int64_t axis) {
  if (axis < -x.rank() || axis >= x.rank())
    fail_value(std::string(op) + ": axis " + std::to_string(axis) + " is out of range for x of shape " + shape_text(x.shape));
  return static_cast<int>(axis < 0 ? axis + x.rank() : axis);
}

std::vector<int64_t> broadcast_strides(const View& x, const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 0);
  const size_t lead = shape.size() - x.shape.size();
  bool fits = x.shape.size() <= shape.size();
  for (size_t d = 0; fits && d < x.shape.size(); ++d) {
    if (x.shape[d] == shape[lead + d])
      strides[lead + d] = x.strides[d];
    else
      fits = x.shape[d] == 1;
  }
  if (!fits) fail_value(x.where + " of shape " + shape_text(x.shape) + " does not broadcast to " + shape_text(shape));
  return strides;
}

bool overlap(const View& x, const View& y) {
  const auto extent = [](const View& a, const char** low, const char** high) {
    *low = a.data;
    *high = a.data + a.item();
    for (size_t d = 0; d < a.shape.size(); ++d) {
      const int64_t reach = (a.shape[d] - 1) * a.strides[d] * a.item();
      (reach < 0 ? *low : *high) += reach;
    }
  };
  if (x.size() == 0 || y.size() == 0) return false;
  const char *x_low, *x_high, *y_low, *y_high;
  extent(x, &x_low, &x_high);
  extent(y, &y_low, &y_high);
  return x_low < y_high && y_low < x_high;
}

bool dense(const View& x) {
  int64_t reach = 1;
  for (size_t d = 0; d < x.shape.size(); ++d) {
    if (x.strides[d] <= 0 && x.shape[d] > 1) return false;
    reach += (x.shape[d] - 1) * x.strides[d];
  }
  if (reach != x.size()) return false;
  std::vector<size_t> order;  // innermost first
  for (size_t d = 0; d < x.shape.size(); ++d)
    if (x.shape[d] > 1) order.push_back(d);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x.strides[a] < x.strides[b]; });
  int64_t expected = 1;
  for (const size_t d : order) {
    if (x.strides[d] != expected) return false;
    expected *= x.shape[d];
  }
  return true;
}

}  // namespace qkv

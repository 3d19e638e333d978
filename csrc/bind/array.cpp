// NumPy arrays as checked views, and fresh arrays on pooled memory.
#include "bind/array.h"

#include <cmath>
#include <cstring>

#include "bind/recording.h"

namespace qkv {
namespace {

constexpr int kAligned = 0x0100;  // NPY_ARRAY_ALIGNED

// Number of ml_dtypes.bfloat16 in NumPy's type table, once an array of it came by.
int bfloat16_number = -1;

bool is_bfloat16(const py::dtype& t) {
  if (bfloat16_number >= 0) return t.num() == bfloat16_number;
  if (t.itemsize() != 2 || t.kind() != 'V' || py::str(t.attr("name")).cast<std::string>() != "bfloat16") return false;
  bfloat16_number = t.num();
  return true;
}

// 0 float32, 1 float16, 2 bfloat16, 3 float64, 4 int8; -1 none of them.
int kind_of(const py::dtype& t) {
  switch (t.num()) {
    case py::detail::npy_api::NPY_BYTE_:
      return 4;
    case py::detail::npy_api::NPY_FLOAT_:
      return 0;
    case 23:
      return 1;  // NPY_HALF
    case py::detail::npy_api::NPY_DOUBLE_:
      return 3;
  }
  return is_bfloat16(t) ? 2 : -1;
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

Array read(const char* op, const char* name, py::handle object, bool int8) {
  Array x;
  x.where = std::string(op) + ": " + name;
  if (!py::isinstance<py::array>(object)) fail_type(x.where + " must be an array, got " + type_name(object));
  x.owner = py::reinterpret_borrow<py::array>(object);
  const py::dtype type = x.owner.dtype();
  const int kind = kind_of(type);
  if (kind < 0 || (kind == 4 && !int8))
    fail_type(x.where + " must be float32, float16, bfloat16" + (int8 ? ", float64 or int8" : " or float64") + ", got " +
              py::str(type).cast<std::string>());
  if (type.byteorder() == (PY_BIG_ENDIAN ? '<' : '>'))
    fail_type(x.where + " must be in native byte order, got " + py::str(type).cast<std::string>());
  if (!(x.owner.flags() & kAligned)) {
    unrecorded();
    x.owner = py::reinterpret_steal<py::array>(x.owner.attr("copy")().release());
  }
  x.is_double = kind == 3;
  if (x.is_double) unrecorded();  // NumPy's work
  x.is_int8 = kind == 4;
  x.dtype = kind == 1 ? DType::f16 : kind == 2 ? DType::bf16 : DType::f32;
  x.data = static_cast<char*>(const_cast<void*>(x.owner.data()));
  const int64_t item = type.itemsize();
  x.shape.assign(x.owner.shape(), x.owner.shape() + x.owner.ndim());
  x.strides.assign(x.owner.strides(), x.owner.strides() + x.owner.ndim());
  for (int64_t& stride : x.strides) stride /= item;
  return x;
}

}  // namespace

void fail_value(const std::string& message) { throw py::value_error(message); }
void fail_type(const std::string& message) { throw py::type_error(message); }

int64_t Array::size() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.size() == 1 ? ",)" : ")");
}

std::string dtype_name(const Array& x) {
  if (x.is_double) return "float64";
  if (x.is_int8) return "int8";
  return x.dtype == DType::f32 ? "float32" : x.dtype == DType::f16 ? "float16" : "bfloat16";
}

Array read_array(const char* op, const char* name, py::handle object) { return read(op, name, object, false); }

Array read_cache(const char* op, const char* name, py::handle object, bool writeable) {
  const Array x = read(op, name, object, true);
  if (writeable && !py::reinterpret_borrow<py::array>(object).writeable()) fail_value(x.where + " is read-only");
  if (writeable && !x.owner.is(object)) fail_value(x.where + " is misaligned: it cannot be written in place");
  return x;
}

void check_cache_dtypes(const Array& k, const Array& v) {
  const bool wide = k.is_double || v.is_double;
  if (k.is_int8 != v.is_int8 || (!wide && !k.is_int8 && k.dtype != v.dtype))
    fail_type(v.where + " is " + dtype_name(v) + " but k_cache is " + dtype_name(k));
}

Array read_scale(const char* op, const char* name, py::handle object, const Array& cache, bool writeable) {
  if (!cache.is_int8) {
    if (!object.is_none()) fail_value(std::string(op) + ": " + name + " is for int8 caches; " + dtype_name(cache) + " has none");
    return Array();
  }
  if (object.is_none()) fail_value(std::string(op) + ": an int8 cache needs " + name);
  const Array scale = read_cache(op, name, object, writeable);
  if (scale.is_double || scale.is_int8 || scale.dtype != DType::f32)
    fail_type(scale.where + " must be float32, got " + dtype_name(scale));
  const std::vector<int64_t> shape(cache.shape.begin(), cache.shape.end() - 1);
  if (scale.shape != shape) fail_value(scale.where + " must be " + shape_text(shape) + ", got " + shape_text(scale.shape));
  return scale;
}

Array read_optional(const char* op, const char* name, py::handle object) {
  return object.is_none() ? Array() : read_array(op, name, object);
}

std::vector<int64_t> read_ints(const char* op, const char* name, py::handle object, std::vector<int64_t>* shape) {
  const std::string where = std::string(op) + ": " + name;
  if (!py::isinstance<py::array>(object)) fail_type(where + " must be an integer array, got " + type_name(object));
  const py::array array = py::reinterpret_borrow<py::array>(object);
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u') fail_type(where + " must hold integers, got " + py::str(array.dtype()).cast<std::string>());
  // uint64 values beyond int64 would wrap into negative ones, which every caller refuses.
  const auto ints = py::array_t<int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
  if (!ints) throw std::bad_alloc();  // any integer array converts

  if (shape) {
    shape->clear();
    for (py::ssize_t d = 0; d < array.ndim(); ++d) shape->push_back(array.shape(d));
  }
  return std::vector<int64_t>(ints.data(), ints.data() + ints.size());
}

LiveInts::LiveInts(py::handle object) {
  using Contiguous = py::array_t<int64_t, py::array::c_style>;
  if (py::isinstance<Contiguous>(object))
    data_ = py::reinterpret_borrow<Contiguous>(object).data();
  else
    unrecorded();
}

bool check_dtypes(const char* op, const std::vector<const Array*>& arrays) {
  const Array* first = nullptr;
  for (const Array* x : arrays)
    if (*x && x->is_double) return true;
  for (const Array* x : arrays) {
    if (!*x) continue;
    if (!first) first = x;
    if (x->dtype != first->dtype)
      fail_type(x->where + " is " + dtype_name(*x) + " but " + first->where.substr(std::strlen(op) + 2) + " is " +
                dtype_name(*first));
  }
  return false;
}

void check_parameter_dtype(const Array& x, const Array& parameter) {
  if (!parameter || parameter.is_double || x.is_double) return;
  if (parameter.dtype != x.dtype && parameter.dtype != DType::f32)
    fail_type(parameter.where + " is " + dtype_name(parameter) + "; beside " + dtype_name(x) + " it may be " + dtype_name(x) +
              " or float32");
}

const float* as_floats(const Array& x, std::vector<std::vector<float>>* keep) {
  if (!x) return nullptr;
  if (x.dtype == DType::f32 && !x.is_double && (x.owner.flags() & py::array::c_style) && x.size() > 0)
    return reinterpret_cast<const float*>(x.data);
  // Through NumPy, which knows every dtype and stride.
  const auto floats = py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(x.owner);
  if (!floats) throw std::bad_alloc();  // any float array converts
  keep->emplace_back(floats.data(), floats.data() + floats.size());
  if (keep->back().empty()) keep->back().push_back(0);  // a pointer that is not null
  return keep->back().data();
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

py::array new_array(const char* op, const py::dtype& dtype, const std::vector<int64_t>& shape,
                    const std::vector<int64_t>* strides) {
  const int64_t item = dtype.itemsize(), bytes = checked_size(op, shape) * item;
  void* data = buffer_acquire(static_cast<size_t>(bytes));
  const py::capsule owner(data, buffer_release);
  if (!strides) return py::array(dtype, shape, data, owner);
  std::vector<int64_t> in_bytes(*strides);
  for (int64_t& s : in_bytes) s *= item;
  return py::array(dtype, shape, in_bytes, data, owner);
}

Array view_of(const py::array& array, DType dtype) {
  Array x;
  x.owner = array;
  x.data = static_cast<char*>(const_cast<void*>(array.data()));
  x.dtype = dtype;
  x.shape.assign(array.shape(), array.shape() + array.ndim());
  x.strides.assign(array.strides(), array.strides() + array.ndim());
  for (int64_t& stride : x.strides) stride /= size_of(dtype);
  return x;
}

std::vector<Rows> rows_along(int axis, std::initializer_list<const Array*> arrays) {
  const Array& lead = **arrays.begin();
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
    for (const Array* x : arrays) {
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
  for (const Array* x : arrays) {
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

int check_axis(const char* op, const Array& x, int64_t axis) {
  if (axis < -x.rank() || axis >= x.rank())
    fail_value(std::string(op) + ": axis " + std::to_string(axis) + " is out of range for x of shape " + shape_text(x.shape));
  return static_cast<int>(axis < 0 ? axis + x.rank() : axis);
}

Array broadcast(const Array& x, const std::vector<int64_t>& shape) {
  Array y = x;
  y.shape = shape;
  y.strides.assign(shape.size(), 0);
  const size_t lead = shape.size() - x.shape.size();
  bool fits = x.shape.size() <= shape.size();
  for (size_t d = 0; fits && d < x.shape.size(); ++d) {
    if (x.shape[d] == shape[lead + d])
      y.strides[lead + d] = x.strides[d];
    else
      fits = x.shape[d] == 1;
  }
  if (!fits) fail_value(x.where + " of shape " + shape_text(x.shape) + " does not broadcast to " + shape_text(shape));
  return y;
}

bool overlap(const Array& x, const Array& y) {
  const auto extent = [](const Array& a, const char** low, const char** high) {
    *low = a.data;
    *high = a.data + a.owner.itemsize();
    for (size_t d = 0; d < a.shape.size(); ++d) {
      const int64_t reach = (a.shape[d] - 1) * a.strides[d] * a.owner.itemsize();
      (reach < 0 ? *low : *high) += reach;
    }
  };
  if (x.size() == 0 || y.size() == 0) return false;
  const char *x_low, *x_high, *y_low, *y_high;
  extent(x, &x_low, &x_high);
  extent(y, &y_low, &y_high);
  return x_low < y_high && y_low < x_high;
}

Output::Output(const char* op, py::handle given, const Array& like, const std::vector<int64_t>& shape,
               std::initializer_list<const Array*> inputs)
    : given_(!given.is_none()) {
  bool direct = false;
  if (given_) {
    const Array out = read_array(op, "out", given);
    if (out.shape != shape) fail_value(out.where + " has shape " + shape_text(out.shape) + ", expected " + shape_text(shape));
    if (out.is_double != like.is_double || out.dtype != like.dtype)
      fail_type(out.where + " is " + dtype_name(out) + ", expected " + dtype_name(like));
    target_ = py::reinterpret_borrow<py::array>(given);
    if (!target_.writeable()) fail_value(out.where + " is read-only");
    direct = out.owner.is(target_) && (shape.empty() || shape.back() <= 1 || out.strides.back() == 1);
    for (const Array* x : inputs) direct = direct && !(*x && overlap(*x, out));
    if (direct) view_ = out;
  }
  written_ = direct ? target_ : new_array(op, like.owner.dtype(), shape);
  if (!direct) view_ = view_of(written_, like.dtype);
}

py::array Output::finish() {
  if (!given_ || target_.is(written_)) return written_;
  unrecorded();
  py::module_::import("numpy").attr("copyto")(target_, written_);
  return target_;
}

py::dtype float32_dtype() { return py::dtype::of<float>(); }

}  // namespace qkv

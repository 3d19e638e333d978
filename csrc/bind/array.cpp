// NumPy arrays as checked views, and fresh arrays on pooled memory.
#include "bind/array.h"

#include <cmath>
#include <cstring>

#include "bind/int_checks.h"
#include "bind/paged_checks.h"
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

Array read_array(const char* op, const char* name, py::handle object) { return read(op, name, object, false); }

Array read_cache(const char* op, const char* name, py::handle object, bool writeable) {
  const Array x = read(op, name, object, true);
  if (writeable && !py::reinterpret_borrow<py::array>(object).writeable()) fail_value(x.where + " is read-only");
  if (writeable && !x.owner.is(object)) fail_value(x.where + " is misaligned: it cannot be written in place");
  return x;
}

Array read_scale(const char* op, const char* name, py::handle object, const Array& cache, bool writeable) {
  if (!has_scale(op, name, object, cache)) return Array();
  const Array scale = read_cache(op, name, object, writeable);
  check_scale(scale, cache);
  return scale;
}

Array read_optional(const char* op, const char* name, py::handle object) {
  return object.is_none() ? Array() : read_array(op, name, object);
}

std::vector<int64_t> read_ints(const char* op, const char* name, py::handle object, std::vector<int64_t>* shape) {
  const auto ints = read_int_array(op, name, object);
  if (shape) shape->assign(ints.shape(), ints.shape() + ints.ndim());
  return std::vector<int64_t>(ints.data(), ints.data() + ints.size());
}

LiveInts::LiveInts(py::handle object) {
  using Contiguous = py::array_t<int64_t, py::array::c_style>;
  if (py::isinstance<Contiguous>(object))
    data_ = py::reinterpret_borrow<Contiguous>(object).data();
  else
    unrecorded();
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

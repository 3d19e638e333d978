// Arrays in a GPU's memory: making, viewing, converting and handing them over.
#include "bind/device_array.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "bind/dlpack.h"
#include "bind/gil.h"

namespace qkv {

View plain_view(const DeviceArray& a) {
  View v;
  v.data = a.data;
  v.shape = a.shape;
  v.strides = a.strides;
  v.where = "the array";
  return v;
}

namespace {

// kDLCUDA. Managed and pinned memory are addressed alike.
constexpr int kDLCUDA = 2, kDLCUDAHost = 3, kDLCUDAManaged = 13;

cuda::Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<cuda::Stream>(handle); }
std::uintptr_t handle_of(cuda::Stream stream) { return reinterpret_cast<std::uintptr_t>(stream); }

std::vector<int64_t> c_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t step = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = step;
    step *= std::max<int64_t>(shape[d], 1);
  }
  return strides;
}

// First and last byte that the elements reach, as offsets from data.
std::pair<int64_t, int64_t> extent(const DeviceArray& a) {
  if (a.size() == 0) return {0, 0};
  int64_t low = 0, high = a.item();
  for (size_t d = 0; d < a.shape.size(); ++d) {
    const int64_t reach = (a.shape[d] - 1) * a.strides[d] * a.item();
    (reach < 0 ? low : high) += reach;
  }
  return {low, high};
}

py::tuple tuple_of(const std::vector<int64_t>& values) {
  py::tuple t(values.size());
  for (size_t i = 0; i < values.size(); ++i) t[i] = values[i];
  return t;
}

bool foreign_order(const py::dtype& t) { return t.byteorder() == (PY_BIG_ENDIAN ? '<' : '>'); }

// 0 float32, 1 float16, 2 bfloat16, else -1.
int kernel_dtype(const py::dtype& t) {
  if (foreign_order(t)) return -1;
  if (t.kind() == 'f') return t.itemsize() == 4 ? 0 : t.itemsize() == 2 ? 1 : -1;
  return t.kind() == 'V' && t.itemsize() == 2 && (t.is(bfloat16_dtype()) || t.equal(bfloat16_dtype())) ? 2 : -1;
}

// TypeError for what is no number or bool of this machine: of object a device's bytes would be taken as pointers.
void check_storable(const char* op, const py::dtype& t) {
  if (foreign_order(t)) fail_type(std::string(op) + ": the dtype must be in native byte order");
  if (!std::strchr("fiub", t.kind()) && kernel_dtype(t) != 2)
    fail_type(std::string(op) + ": dtype " + py::str(t).cast<std::string>() + " has no place on the GPU");
}

DeviceArray reshaped(const DeviceArray& a, std::vector<int64_t> shape) {
  int64_t unknown = -1;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == -1 && unknown < 0)
      unknown = static_cast<int64_t>(d);
    else if (shape[d] < 0)
      fail_value("reshape: " + shape_text(shape) + " is no shape");
  }
  if (unknown >= 0) {
    std::vector<int64_t> rest = shape;
    rest[static_cast<size_t>(unknown)] = 1;
    const int64_t known = checked_size("reshape", rest);
    shape[static_cast<size_t>(unknown)] = known > 0 ? a.size() / known : 0;
  }
  if (checked_size("reshape", shape) != a.size())
    fail_value("reshape: an array of shape " + shape_text(a.shape) + " cannot become " + shape_text(shape));
  if (!a.contiguous()) fail_value("reshape: the array is not C-contiguous; copy it first");
  DeviceArray b = a;
  b.shape = shape;
  b.strides = c_strides(shape);
  return b;
}

DeviceArray transposed(const DeviceArray& a, const std::vector<int64_t>& axes) {
  DeviceArray b = a;
  std::vector<bool> seen(a.shape.size(), false);
  if (axes.size() != a.shape.size()) fail_value("transpose: the array has " + std::to_string(a.shape.size()) + " axes");
  for (size_t d = 0; d < axes.size(); ++d) {
    const int64_t from = axes[d] < 0 ? axes[d] + static_cast<int64_t>(axes.size()) : axes[d];
    if (from < 0 || from >= static_cast<int64_t>(axes.size()) || seen[static_cast<size_t>(from)])
      fail_value("transpose: " + shape_text(axes) + " is no order of the axes");
    seen[static_cast<size_t>(from)] = true;
    b.shape[d] = a.shape[static_cast<size_t>(from)];
    b.strides[d] = a.strides[static_cast<size_t>(from)];
  }
  return b;
}

// NumPy's basic indexing: integers, slices, None and one Ellipsis; a view.
DeviceArray indexed(const DeviceArray& a, const py::object& key) {
  py::list keys;
  if (py::isinstance<py::tuple>(key))
    for (const auto& k : key) keys.append(k);
  else
    keys.append(key);
  size_t used = 0;
  bool ellipsis = false;
  for (const auto& k : keys) {
    if (py::isinstance<py::ellipsis>(k)) {
      if (ellipsis) throw py::index_error("Array: more than one ellipsis");
      ellipsis = true;
    } else if (!k.is_none()) {
      ++used;
    }
  }
  if (used > a.shape.size())
    throw py::index_error("Array: " + std::to_string(used) + " indices for " + std::to_string(a.shape.size()) + " dimensions");
  if (!ellipsis) keys.append(py::ellipsis());
  DeviceArray b = a;
  b.shape.clear();
  b.strides.clear();
  size_t d = 0;
  for (const auto& k : keys) {
    if (k.is_none()) {
      b.shape.push_back(1);
      b.strides.push_back(0);
    } else if (py::isinstance<py::ellipsis>(k)) {
      for (size_t rest = a.shape.size() - used; rest > 0; --rest, ++d) {
        b.shape.push_back(a.shape[d]);
        b.strides.push_back(a.strides[d]);
      }
    } else if (py::isinstance<py::slice>(k)) {
      py::ssize_t start = 0, stop = 0, step = 0, length = 0;
      if (!py::reinterpret_borrow<py::slice>(k).compute(a.shape[d], &start, &stop, &step, &length)) throw py::error_already_set();
      if (length > 0) b.data += start * a.strides[d] * a.item();
      b.shape.push_back(length);
      b.strides.push_back(a.strides[d] * step);
      ++d;
    } else if (PyIndex_Check(k.ptr()) && !py::isinstance<py::bool_>(k)) {
      const py::ssize_t i = PyNumber_AsSsize_t(k.ptr(), PyExc_IndexError);
      if (i == -1 && PyErr_Occurred()) throw py::error_already_set();
      const int64_t at = i < 0 ? i + a.shape[d] : i;
      if (at < 0 || at >= a.shape[d])
        throw py::index_error("Array: index " + std::to_string(i) + " is out of range for a dimension of " +
                              std::to_string(a.shape[d]));
      b.data += at * a.strides[d] * a.item();
      ++d;
    } else {
      throw py::type_error("Array: indices are integers, slices, None and Ellipsis; got " +
                           std::string(Py_TYPE(k.ptr())->tp_name));
    }
  }
  return b;
}

DeviceArray as_strided(const DeviceArray& a, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                       int64_t offset) {
  DeviceArray b = a;
  b.shape = shape;
  b.strides = strides;
  b.data = a.data + offset * a.item();
  const auto [low, high] = extent(b);
  const char* begin = static_cast<const char*>(a.storage->data);
  if (shape.size() != strides.size() || b.data + low < begin || b.data + high > begin + a.storage->bytes)
    fail_value("as_strided: the view leaves the array's memory");
  return b;
}

// Elementwise conversion between the kernels' dtypes, or a copy; C-contiguous.
DeviceArray converted(const DeviceArray& a, const py::dtype& dtype, cuda::Stream stream) {
  DeviceCall call("astype", stream, a);
  if (a.dtype.equal(dtype) && a.contiguous()) {
    call.reads(a, "x");
    DeviceArray b = call.make(dtype, a.shape);
    cuda::copy_bytes(b.data, a.data, static_cast<size_t>(a.size() * a.item()), stream);
    return b;
  }
  const int from = kernel_dtype(a.dtype), to = kernel_dtype(dtype);
  const bool same = a.dtype.equal(dtype), from_double = a.dtype.kind() == 'f' && a.item() == 8;
  if (!same && ((from < 0 && !from_double) || to < 0))
    fail_type("astype: from " + py::str(a.dtype).cast<std::string>() + " to " + py::str(dtype).cast<std::string>() +
              " is not done on the GPU: from float64, float32, float16 and bfloat16 to the last three");
  call.reads(a, "x");
  DeviceArray b = call.make(dtype, a.shape);
  if (b.size() == 0) return b;
  View x = plain_view(a), y = plain_view(b);
  if (from >= 0) x.dtype = device_view(a).dtype;
  if (to >= 0) y.dtype = device_view(b).dtype;
  const auto rows = rows_along(x.rank() - 1, {&x, &y});
  cuda::copy({rows[0], rows[1], same ? static_cast<int>(a.item()) : 0, from_double && !same}, stream);
  return b;
}

// ---- DLPack

struct Export {
  DLManagedTensor managed;
  DeviceArray array;
};

// Address for other libraries: none of no elements.
void* address(const DeviceArray& a) { return a.size() > 0 ? a.data : nullptr; }

py::capsule to_dlpack(const DeviceArray& given_array, const py::object& stream, const py::object& device,
                      const py::object& copy) {
  if (!stream.is_none() && !py::isinstance<py::int_>(stream)) fail_type("__dlpack__: stream must be an integer or None");
  if (!device.is_none() && !device.equal(py::make_tuple(kDLCUDA, given_array.storage->device)))
    throw py::buffer_error("__dlpack__: the array stays on its device; .numpy() copies it to the host");
  if (DeviceRecording::current())
    throw cuda::Error(0, "__dlpack__: this thread records, and other libraries' work is not captured; hand arrays over outside");
  const bool copies = !copy.is_none() && copy.cast<bool>();
  const DeviceArray a = copies ? converted(given_array, given_array.dtype, given_array.storage->written) : given_array;
  // The consumer's stream: None and 1 the legacy default, 2 the per-thread default, -1: it takes care itself.
  const int64_t given = stream.is_none() ? 1 : stream.cast<int64_t>();
  if (given != -1) {
    if (given == 0) fail_value("__dlpack__: stream 0 is ambiguous; 1 is the legacy default stream");
    if (given < 0) fail_value("__dlpack__: there is no stream " + std::to_string(given));
    const cuda::Stream consumer = given == 1 ? nullptr : stream_of(static_cast<std::uintptr_t>(given));
    const cuda::OnDevice on(a.storage->device);
    cuda::wait_for(consumer, a.storage->written);
    // 2 is another stream in each thread; the legacy default stream, here nullptr, waits for all of them.
    a.storage->used_in(given == 2 ? nullptr : consumer);
  }
  auto e = std::make_unique<Export>();
  e->array = a;
  DLTensor& t = e->managed.tensor;
  t.data = address(a);
  t.device = {kDLCUDA, a.storage->device};
  t.ndim = static_cast<int32_t>(a.shape.size());
  t.dtype = dlpack_dtype(a.dtype);
  t.shape = e->array.shape.data();
  t.strides = e->array.strides.data();
  t.byte_offset = 0;
  e->managed.manager = e.get();
  e->managed.deleter = [](DLManagedTensor* m) {
    if (!Py_IsInitialized()) return;  // the interpreter went first
    const py::gil_scoped_acquire gil;
    delete static_cast<Export*>(m->manager);
  };
  py::capsule capsule = give_capsule(&e->managed);
  e.release();
  return capsule;
}

// The tensor must have been made safe for `stream` by its library, which got it as __dlpack__'s argument.
DeviceArray from_dlpack(const py::capsule& capsule, std::uintptr_t stream) {
  DLManagedTensor* managed = take_capsule(capsule);
  const std::shared_ptr<void> owner(managed, [](void* p) {
    auto* m = static_cast<DLManagedTensor*>(p);
    if (m->deleter) m->deleter(m);
  });
  const DLTensor& t = managed->tensor;
  if (t.device.type != kDLCUDA && t.device.type != kDLCUDAHost && t.device.type != kDLCUDAManaged)
    fail_type("DLPack: device type " + std::to_string(t.device.type) + " is not CUDA");
  DeviceArray a;
  a.dtype = numpy_dtype(t.dtype);
  a.shape.assign(t.shape, t.shape + t.ndim);
  a.strides = t.strides ? std::vector<int64_t>(t.strides, t.strides + t.ndim) : c_strides(a.shape);
  a.data = t.data ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
  a.storage = std::make_shared<Storage>();
  a.storage->device = t.device.id;
  a.storage->foreign = owner;
  a.storage->stream = a.storage->written = stream_of(stream);
  const auto [low, high] = extent(a);
  a.storage->data = a.data + low;
  a.storage->bytes = static_cast<size_t>(high - low);
  static char empty[1];
  if (!a.data) a.data = empty;
  return a;
}

py::dict array_interface(const DeviceArray& a) {
  if (kernel_dtype(a.dtype) == 2) throw py::attribute_error("__cuda_array_interface__ has no name for bfloat16: use DLPack");
  py::dict d;
  d["shape"] = tuple_of(a.shape);
  d["typestr"] = a.dtype.attr("str");
  d["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(address(a)), false);
  d["version"] = 3;
  std::vector<int64_t> bytes = a.strides;
  for (int64_t& s : bytes) s *= a.item();
  d["strides"] = a.contiguous() ? py::object(py::none()) : py::object(tuple_of(bytes));
  const std::uintptr_t written = handle_of(a.storage->written);
  d["stream"] = written ? written : 1;
  return d;
}

}  // namespace

// ---- storage

Storage::~Storage() {
  if (arena)
    arena->give_back(data, others);
  else if (owned)
    cuda::release(data, device, stream, others.data(), others.size());
  else if (foreign)  // goes back to its library, in the order of the stream that it was handed over for
    cuda::join(device, stream, others.data(), others.size());
}

void Storage::used_in(cuda::Stream s) {
  if (s != stream && std::find(others.begin(), others.end(), s) == others.end()) others.push_back(s);
}

int64_t DeviceArray::size() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

bool DeviceArray::contiguous() const {
  int64_t step = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    if (shape[d] != 1 && strides[d] != step) return size() == 0;
    step *= shape[d];
  }
  return true;
}

DeviceArray new_device_array(const char* op, const py::dtype& dtype, const std::vector<int64_t>& shape, cuda::Stream stream,
                             const std::vector<int64_t>* strides) {
  DeviceArray a;
  a.dtype = dtype;
  a.shape = shape;
  a.strides = strides ? *strides : c_strides(shape);
  a.storage = std::make_shared<Storage>();
  Storage& s = *a.storage;
  s.bytes = static_cast<size_t>(checked_size(op, shape) * dtype.itemsize());
  s.stream = s.written = stream;
  s.device = cuda::current_device();
  if (DeviceRecording* const recording = DeviceRecording::current()) {
    recording->check(op, stream, s.device);
    if (s.bytes > 0) recording->allocate(op, a.storage);
  } else if (s.bytes > 0) {
    const Unlocked unlocked;
    s.data = cuda::allocate(s.bytes, stream, op);
  }
  s.owned = s.bytes > 0;
  static char empty[1];  // an array of no elements has no memory
  a.data = s.bytes > 0 ? static_cast<char*>(s.data) : empty;
  return a;
}

DeviceArray upload(const py::array& from, cuda::Stream stream) {
  check_storable("array", from.dtype());
  const py::array source = py::array::ensure(from, py::array::c_style);
  if (!source) throw py::error_already_set();
  DeviceArray a =
      new_device_array("array", source.dtype(), std::vector<int64_t>(source.shape(), source.shape() + source.ndim()), stream);
  const void* data = source.data();
  const Unlocked unlocked;
  cuda::upload(a.data, data, a.storage->bytes, stream);
  return a;
}

// What lies between the first and the last element is copied as it is, so any strides come over in one piece.
py::array to_host(const DeviceArray& a, cuda::Stream stream) {
  cuda::refuse_while_capturing("copy results to the host after a replay");
  const auto [low, high] = extent(a);
  if (high - low > 2 * a.size() * a.item()) return to_host(converted(a, a.dtype, stream), stream);  // mostly gaps
  py::array bytes(py::dtype::of<uint8_t>(), std::vector<py::ssize_t>{high - low});
  void* to = bytes.mutable_data();
  const cuda::Stream written = a.storage->written;
  {
    const Unlocked unlocked;
    const cuda::OnDevice on(a.storage->device);
    cuda::wait_for(stream, written);
    cuda::download(to, a.data + low, static_cast<size_t>(high - low), stream);
  }
  std::vector<py::ssize_t> strides;
  for (const int64_t s : a.strides) strides.push_back(s * a.item());
  const std::vector<py::ssize_t> shape(a.shape.begin(), a.shape.end());
  const py::array view(a.dtype, shape, strides, static_cast<char*>(to) - low, bytes);
  if (dense(plain_view(a)) && a.size() > 0) return view;
  return py::array(py::module_::import("numpy").attr("array")(view, py::arg("order") = "C"));
}

// ---- views

namespace {

DeviceView checked_view(std::string where, const DeviceArray& array, bool int8 = false) {
  DeviceView v;
  v.where = std::move(where);
  v.array = array;
  const int kind = kernel_dtype(array.dtype);
  v.is_int8 = int8 && array.dtype.kind() == 'i' && array.dtype.itemsize() == 1;
  if (kind < 0 && !v.is_int8)
    fail_type(v.where + " must be float32, float16" + (int8 ? ", bfloat16 or int8" : " or bfloat16") + ", got " +
              py::str(array.dtype).cast<std::string>());
  v.dtype = kind == 1 ? DType::f16 : kind == 2 ? DType::bf16 : DType::f32;
  v.data = array.data;
  v.shape = array.shape;
  v.strides = array.strides;
  return v;
}

}  // namespace

namespace {

DeviceView read_device(const char* op, const char* name, py::handle object, bool int8) {
  const std::string where = std::string(op) + ": " + name;
  if (!py::isinstance<DeviceArray>(object))
    fail_type(where + " must be an array on the GPU, got " + std::string(Py_TYPE(object.ptr())->tp_name));
  return checked_view(where, object.cast<const DeviceArray&>(), int8);
}

}  // namespace

DeviceView read_device_array(const char* op, const char* name, py::handle object) { return read_device(op, name, object, false); }

DeviceView read_device_cache(const char* op, const char* name, py::handle object) { return read_device(op, name, object, true); }

DeviceView read_optional_device_array(const char* op, const char* name, py::handle object) {
  return object.is_none() ? DeviceView() : read_device_array(op, name, object);
}

DeviceView device_view(const DeviceArray& array) { return checked_view("out", array); }

// ---- calls

DeviceCall::DeviceCall(const char* op, cuda::Stream stream, const DeviceArray& lead)
    : op_(op), stream_(stream), on_(lead.storage->device), device_(lead.storage->device), recording_(DeviceRecording::current()) {
  if (recording_) recording_->check(op, stream, device_);
}

void DeviceCall::reads(const DeviceArray& x, const std::string& name) {
  Storage& s = *x.storage;
  if (s.device != device_)
    fail_value(name + " is on device " + std::to_string(s.device) + ", the first array on " + std::to_string(device_));
  if (recording_) return recording_->reads(x.storage);
  if (s.written != stream_ && std::find(s.after.begin(), s.after.end(), stream_) == s.after.end()) {
    cuda::wait_for(stream_, s.written);
    s.after.push_back(stream_);
  }
  s.used_in(stream_);
}

void DeviceCall::reads(const DeviceView& x) {
  if (x) reads(x.array, x.where);
}

void DeviceCall::writes(const DeviceArray& x) {
  reads(x, std::string(op_) + ": out");
  if (recording_) return recording_->writes(x.storage);
  cuda::wait_for(stream_, x.storage->stream);
  for (const cuda::Stream s : x.storage->others) cuda::wait_for(stream_, s);  // those that still read what is there
  x.storage->written = stream_;
  x.storage->after.clear();
}

DeviceArray DeviceCall::make(const py::dtype& dtype, const std::vector<int64_t>& shape, const std::vector<int64_t>* strides) {
  return new_device_array(op_, dtype, shape, stream_, strides);
}

void* DeviceCall::scratch(size_t bytes) {
  if (bytes == 0) return nullptr;
  temporary_.push_back(make(py::dtype::of<uint8_t>(), {static_cast<int64_t>(bytes)}));
  return temporary_.back().data;
}

const float* DeviceCall::floats(const DeviceView& x) {
  if (!x) return nullptr;
  if (x.dtype == DType::f32 && x.array.contiguous()) return reinterpret_cast<const float*>(x.data);
  temporary_.push_back(converted(x.array, py::dtype::of<float>(), stream_));
  return reinterpret_cast<const float*>(temporary_.back().data);
}

DeviceArray DeviceCall::widened(const DeviceView& x) { return converted(x.array, py::dtype::of<float>(), stream_); }

DeviceView DeviceCall::compact(const DeviceView& x) {
  DeviceArray as_viewed = x.array;  // which may have been broadcast
  as_viewed.shape = x.shape;
  as_viewed.strides = x.strides;
  DeviceView y = x;
  y.array = converted(as_viewed, x.array.dtype, stream_);
  y.data = y.array.data;
  y.strides = y.array.strides;
  temporary_.push_back(y.array);
  return y;
}

// ---- outputs

DeviceOutput::DeviceOutput(DeviceCall* call, py::handle given, const DeviceView& like, const std::vector<int64_t>& shape,
                           std::initializer_list<const DeviceView*> inputs)
    : call_(call) {
  if (!given.is_none()) {
    target_ = read_device_array(call->op(), "out", given);
    if (target_.shape != shape)
      fail_value(target_.where + " has shape " + shape_text(target_.shape) + ", expected " + shape_text(shape));
    if (target_.dtype != like.dtype) fail_type(target_.where + " is " + dtype_name(target_) + ", expected " + dtype_name(like));
    direct_ = shape.empty() || shape.back() <= 1 || target_.strides.back() == 1;
    for (const DeviceView* x : inputs) direct_ = direct_ && !(*x && overlap(*x, target_));
    call->writes(target_.array);
  }
  view_ = target_ && direct_ ? target_ : device_view(call->make(like.array.dtype, shape));
}

DeviceArray DeviceOutput::finish() {
  if (!target_) return view_.array;
  if (!direct_ && view_.size() > 0) {
    const auto rows = rows_along(view_.rank() - 1, {&view_, &target_});
    cuda::copy({rows[0], rows[1]}, call_->stream());
  }
  return target_.array;
}

[[noreturn]] static bool no_comparison() {
  fail_type("Array: values are not compared on the GPU; .numpy() copies them to the host");
}

void bind_device_array(py::module_& m) {
  using A = DeviceArray;
  py::class_<A>(m, "Array", "An array in a GPU's memory. Made by qkv.cuda.array, qkv.cuda.from_dlpack and the ops.")
      .def_property_readonly("shape", [](const A& a) { return tuple_of(a.shape); })
      .def_property_readonly(
          "strides",
          [](const A& a) {
            std::vector<int64_t> bytes = a.strides;
            for (int64_t& s : bytes) s *= a.item();
            return tuple_of(bytes);
          },
          "In bytes, as NumPy's.")
      .def_property_readonly("dtype", [](const A& a) { return a.dtype; })
      .def_property_readonly("ndim", [](const A& a) { return a.shape.size(); })
      .def_property_readonly("size", &A::size)
      .def_property_readonly("itemsize", &A::item)
      .def_property_readonly("nbytes", [](const A& a) { return a.size() * a.item(); })
      .def_property_readonly(
          "device", [](const A& a) { return a.storage->device; }, "Number of the device.")
      .def_property_readonly(
          "pointer", [](const A& a) { return reinterpret_cast<std::uintptr_t>(a.data); }, "Address of the first element.")
      .def_property_readonly(
          "stream", [](const A& a) { return handle_of(a.storage->written); }, "The stream that its contents were made in last.")
      .def_property_readonly("is_contiguous", &A::contiguous, "Whether the elements lie in C order without gaps.")
      .def_property_readonly(
          "T",
          [](const A& a) {
            std::vector<int64_t> axes;
            for (size_t d = a.shape.size(); d-- > 0;) axes.push_back(static_cast<int64_t>(d));
            return transposed(a, axes);
          },
          "The view with all axes in reverse.")
      .def("_numpy", [](const A& a, std::uintptr_t stream) { return to_host(a, stream_of(stream)); })
      .def("_astype",
           [](const A& a, const py::dtype& dtype, std::uintptr_t stream) { return converted(a, dtype, stream_of(stream)); })
      .def("_as_strided", as_strided, py::arg("shape"), py::arg("strides"), py::arg("offset"))
      .def("_transposed", transposed, py::arg("axes"))
      .def("_reshaped", reshaped, py::arg("shape"))
      .def("__getitem__", indexed)
      .def("__len__",
           [](const A& a) {
             if (a.shape.empty()) throw py::type_error("len() of an array without dimensions");
             return a.shape[0];
           })
      .def(
          "__dlpack__",
          [](const A& a, const py::object& stream, const py::object&, const py::object& device, const py::object& copy) {
            return to_dlpack(a, stream, device, copy);
          },
          py::arg("stream") = py::none(), py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
          py::arg("copy") = py::none(), "DLPack: the array as a capsule, ready for `stream`.")
      .def("__dlpack_device__", [](const A& a) { return py::make_tuple(kDLCUDA, a.storage->device); })
      .def_property_readonly("__cuda_array_interface__", array_interface)
      // Python's own answers would be those of objects: wrong numbers in silence.
      .def("__eq__", [](const A&, const py::object&) -> bool { return no_comparison(); })
      .def("__bool__", [](const A&) -> bool { return no_comparison(); })
      .def("__hash__", [](const py::object& self) { return reinterpret_cast<std::intptr_t>(self.ptr()); })
      .def("__array__",
           [](const A&, const py::args&, const py::kwargs&) -> py::object {
             throw py::type_error("the array is in a GPU's memory: .numpy() copies it to the host");
           })
      .def("__repr__", [](const A& a) {
        return "qkv.cuda.Array(shape=" + shape_text(a.shape) + ", dtype=" + py::str(a.dtype).cast<std::string>() +
               ", device=" + std::to_string(a.storage->device) + ")";
      });
  m.def("array", [](const py::array& from, std::uintptr_t stream) { return upload(from, stream_of(stream)); });
  m.def(
      "empty",
      [](const std::vector<int64_t>& shape, const py::dtype& dtype, std::uintptr_t stream, const std::string& purpose) {
        for (const int64_t d : shape)
          if (d < 0) fail_value(purpose + ": shape must not be negative, got " + shape_text(shape));
        check_storable(purpose.c_str(), dtype);
        return new_device_array(purpose.c_str(), dtype, shape, stream_of(stream));
      },
      py::arg("shape"), py::arg("dtype"), py::arg("stream"), py::arg("purpose"));
  m.def("from_dlpack", from_dlpack, py::arg("capsule"), py::arg("stream"));
}

}  // namespace qkv

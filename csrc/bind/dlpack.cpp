// DLPack in and out: how torch CPU tensors (and those of any other library) reach the kernels without a copy.
// The structures are those of the DLPack ABI 0.x ("dltensor" capsules), which every library still speaks.
#include <memory>

#include "bind/array.h"
#include "bind/bind.h"

namespace qkv {
namespace {

struct DLDevice {
  int32_t type;  // 1: CPU
  int32_t id;
};
struct DLDataType {
  uint8_t code;  // 0 int, 1 uint, 2 float, 4 bfloat, 6 bool
  uint8_t bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; nullptr: C-contiguous
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* manager;
  void (*deleter)(DLManagedTensor*);
};

py::dtype bfloat16_dtype() { return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")); }

py::dtype to_numpy(const DLDataType& t) {
  if (t.lanes == 1) {
    const char* name = nullptr;
    if (t.code == 2) name = t.bits == 16 ? "f2" : t.bits == 32 ? "f4" : t.bits == 64 ? "f8" : nullptr;
    if (t.code == 0) name = t.bits == 8 ? "i1" : t.bits == 16 ? "i2" : t.bits == 32 ? "i4" : t.bits == 64 ? "i8" : nullptr;
    if (t.code == 1) name = t.bits == 8 ? "u1" : t.bits == 16 ? "u2" : t.bits == 32 ? "u4" : t.bits == 64 ? "u8" : nullptr;
    if (t.code == 6 && t.bits == 8) name = "?";
    if (name) return py::dtype(name);
    if (t.code == 4 && t.bits == 16) return bfloat16_dtype();
  }
  fail_type("DLPack: no NumPy dtype for code " + std::to_string(t.code) + " with " + std::to_string(t.bits) + " bits");
}

// Capsule "dltensor" -> array on the same memory. The capsule is used up.
py::array from_dlpack(const py::capsule& capsule) {
  if (!PyCapsule_IsValid(capsule.ptr(), "dltensor")) fail_value("DLPack: expected an unused capsule named 'dltensor'");
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  const DLTensor& t = managed->tensor;
  if (t.device.type != 1) fail_type("DLPack: device type " + std::to_string(t.device.type) + " is not the CPU");
  const py::dtype dtype = to_numpy(t.dtype);
  std::vector<py::ssize_t> shape(t.shape, t.shape + t.ndim), strides(static_cast<size_t>(t.ndim));
  py::ssize_t step = dtype.itemsize();
  for (int32_t d = t.ndim - 1; d >= 0; --d) {
    const auto i = static_cast<size_t>(d);
    strides[i] = t.strides ? t.strides[d] * dtype.itemsize() : step;
    step *= shape[i];
  }
  const py::capsule owner(managed, [](void* p) {
    auto* m = static_cast<DLManagedTensor*>(p);
    if (m->deleter) m->deleter(m);
  });
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  static char empty[1];
  void* data = t.data ? static_cast<char*>(t.data) + t.byte_offset : empty;  // tensors of no elements have no memory
  return py::array(dtype, shape, strides, data, owner);
}

struct Export {
  DLManagedTensor managed;
  py::array array;
  std::vector<int64_t> shape, strides;
};

// Array -> capsule "dltensor" that keeps the array alive.
py::capsule to_dlpack(const py::array& array) {
  auto e = std::make_unique<Export>();
  e->array = array;
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    e->shape.push_back(array.shape(d));
    e->strides.push_back(array.strides(d) / array.itemsize());
  }
  const char kind = array.dtype().kind();
  DLTensor& t = e->managed.tensor;
  t.data = const_cast<void*>(array.data());
  t.device = {1, 0};
  t.ndim = static_cast<int32_t>(array.ndim());
  t.dtype = {static_cast<uint8_t>(kind == 'f'   ? 2
                                  : kind == 'i' ? 0
                                  : kind == 'u' ? 1
                                  : kind == 'b' ? 6
                                                : 4),
             static_cast<uint8_t>(array.itemsize() * 8), 1};
  t.shape = e->shape.data();
  t.strides = e->strides.data();
  t.byte_offset = 0;
  e->managed.manager = e.get();
  e->managed.deleter = [](DLManagedTensor* m) {
    if (!Py_IsInitialized()) return;  // the interpreter went first, and its arrays with it
    const py::gil_scoped_acquire gil;
    delete static_cast<Export*>(m->manager);
  };
  PyObject* capsule = PyCapsule_New(&e->managed, "dltensor", [](PyObject* c) {
    if (!PyCapsule_IsValid(c, "dltensor")) return;  // taken over by a consumer
    auto* m = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(c, "dltensor"));
    m->deleter(m);
  });
  if (!capsule) throw py::error_already_set();
  e.release();
  return py::reinterpret_steal<py::capsule>(capsule);
}

}  // namespace

void bind_dlpack(py::module_& m) {
  m.def("from_dlpack", from_dlpack, py::arg("capsule"));
  m.def("to_dlpack", to_dlpack, py::arg("array"));
}

}  // namespace qkv

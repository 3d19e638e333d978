// DLPack in and out: how torch CPU tensors (and those of any other library) reach the kernels without a copy.
#include "bind/dlpack.h"

#include <memory>

#include "bind/array.h"
#include "bind/bind.h"

namespace qkv {
namespace {

// Capsule "dltensor" -> array on the same memory. The capsule is used up.
py::array from_dlpack(const py::capsule& capsule) {
  DLManagedTensor* managed = take_capsule(capsule);
  const py::capsule owner(managed, [](void* p) {
    auto* m = static_cast<DLManagedTensor*>(p);
    if (m->deleter) m->deleter(m);
  });
  const DLTensor& t = managed->tensor;
  if (t.device.type != 1) fail_type("DLPack: device type " + std::to_string(t.device.type) + " is not the CPU");
  const py::dtype dtype = numpy_dtype(t.dtype);
  std::vector<py::ssize_t> shape(t.shape, t.shape + t.ndim), strides(static_cast<size_t>(t.ndim));
  py::ssize_t step = dtype.itemsize();
  for (int32_t d = t.ndim - 1; d >= 0; --d) {
    const auto i = static_cast<size_t>(d);
    strides[i] = t.strides ? t.strides[d] * dtype.itemsize() : step;
    step *= shape[i];
  }
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
  DLTensor& t = e->managed.tensor;
  t.data = const_cast<void*>(array.data());
  t.device = {1, 0};
  t.ndim = static_cast<int32_t>(array.ndim());
  t.dtype = dlpack_dtype(array.dtype());
  t.shape = e->shape.data();
  t.strides = e->strides.data();
  t.byte_offset = 0;
  e->managed.manager = e.get();
  e->managed.deleter = [](DLManagedTensor* m) {
    if (!Py_IsInitialized()) return;  // the interpreter went first, and its arrays with it
    const py::gil_scoped_acquire gil;
    delete static_cast<Export*>(m->manager);
  };
  py::capsule capsule = give_capsule(&e->managed);
  e.release();
  return capsule;
}

}  // namespace

void bind_dlpack(py::module_& m) {
  m.def("from_dlpack", from_dlpack, py::arg("capsule"));
  m.def("to_dlpack", to_dlpack, py::arg("array"));
}

}  // namespace qkv

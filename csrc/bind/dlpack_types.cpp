// DLPack's dtypes and capsules.
#include "bind/dlpack.h"
#include "bind/view.h"

namespace qkv {

namespace py = pybind11;

py::dtype bfloat16_dtype() {
  static PyObject* const made = py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16")).release().ptr();
  return py::reinterpret_borrow<py::dtype>(made);
}

py::dtype numpy_dtype(const DLDataType& t) {
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

DLDataType dlpack_dtype(const py::dtype& type) {
  const char kind = type.kind();
  const int code = kind == 'f' ? 2 : kind == 'i' ? 0 : kind == 'u' ? 1 : kind == 'b' ? 6 : 4;
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(type.itemsize() * 8), 1};
}

DLManagedTensor* take_capsule(const py::capsule& capsule) {
  if (!PyCapsule_IsValid(capsule.ptr(), "dltensor")) fail_value("DLPack: expected an unused capsule named 'dltensor'");
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  return managed;
}

py::capsule give_capsule(DLManagedTensor* managed) {
  PyObject* capsule = PyCapsule_New(managed, "dltensor", [](PyObject* c) {
    if (!PyCapsule_IsValid(c, "dltensor")) return;  // taken over by a consumer
    auto* m = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(c, "dltensor"));
    m->deleter(m);
  });
  if (!capsule) throw py::error_already_set();
  return py::reinterpret_steal<py::capsule>(capsule);
}

}  // namespace qkv

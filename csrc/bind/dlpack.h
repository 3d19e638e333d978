// The structures of the DLPack ABI 0.x ("dltensor" capsules), which every library still speaks, and their dtypes as NumPy's.
#pragma once
#include <pybind11/numpy.h>

#include <cstdint>

namespace qkv {

struct DLDevice {
  int32_t type;  // 1: CPU, 2: CUDA, 3: CUDA's pinned host memory, 13: CUDA's managed memory
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

pybind11::dtype bfloat16_dtype();
// TypeError for what NumPy and ml_dtypes have no name for.
pybind11::dtype numpy_dtype(const DLDataType& type);
DLDataType dlpack_dtype(const pybind11::dtype& type);
// The tensor of an unused capsule, which is used up; ValueError otherwise.
DLManagedTensor* take_capsule(const pybind11::capsule& capsule);
// A capsule over `managed`, whose deleter runs unless a consumer takes it.
pybind11::capsule give_capsule(DLManagedTensor* managed);

}  // namespace qkv

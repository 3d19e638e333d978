// Arrays of a paged cache as arguments of ops on a GPU.
#pragma once
#include "bind/device_array.h"
#include "bind/paged_checks.h"

namespace qkv {

inline cuda::Stored stored_of(const View& x) {
  if (x.is_int8) return cuda::Stored::int8;
  return x.dtype == DType::f16 ? cuda::Stored::f16 : x.dtype == DType::bf16 ? cuda::Stored::bf16 : cuda::Stored::f32;
}

inline DeviceView read_device_scale(const char* op, const char* name, py::handle object, const DeviceView& cache) {
  if (!has_scale(op, name, object, cache)) return DeviceView();
  const DeviceView scale = read_device_cache(op, name, object);
  check_scale(scale, cache);
  return scale;
}

}  // namespace qkv

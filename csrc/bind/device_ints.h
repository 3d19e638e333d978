// Integer arguments of ops on a GPU.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "bind/device_array.h"
#include "bind/int_checks.h"

namespace qkv {

// Integers of an argument: in host memory checked and sent along, on the device taken as they are, since nothing waits for them.
struct DeviceInts {
  cuda::Ints ints{};
  DeviceArray array;
  std::vector<int64_t> host;  // where they came from there
  bool on_host = false;
  std::vector<int64_t> shape;
};

// rows_apart: rows of a matrix on the device may lie any distance apart; array.strides says which.
inline DeviceInts read_device_ints(DeviceCall* call, const char* name, py::handle object, bool rows_apart = false) {
  DeviceInts r;
  const std::string where = std::string(call->op()) + ": " + name;
  if (py::isinstance<DeviceArray>(object)) {
    r.array = object.cast<const DeviceArray&>();
    const py::dtype& t = r.array.dtype;
    if (t.kind() != 'i' && t.kind() != 'u') fail_type(where + " must hold integers, got " + py::str(t).cast<std::string>());
    if (t.kind() != 'i' || (t.itemsize() != 4 && t.itemsize() != 8))
      fail_type(where + " must hold int32 or int64, got " + py::str(t).cast<std::string>());
    DeviceArray line = r.array;
    if (rows_apart && line.shape.size() == 2) line.shape[0] = std::min<int64_t>(line.shape[0], 1);
    if (!line.contiguous()) fail_value(where + " must be contiguous");
    call->reads(r.array, where);
    r.shape = r.array.shape;
  } else {
    const py::array_t<int64_t, py::array::c_style> ints = read_int_array(call->op(), name, object);
    r.on_host = true;
    r.shape.assign(ints.shape(), ints.shape() + ints.ndim());
    r.host.assign(ints.data(), ints.data() + ints.size());
    r.array = upload(ints, call->stream());
  }
  r.ints = {r.array.data, r.array.dtype.itemsize() == 8};
  return r;
}

// Into x.host from wherever they are, which the host may have to wait for.
inline void fetch_ints(DeviceInts* x, cuda::Stream stream) {
  if (x->on_host) return;
  const py::array_t<int64_t, py::array::c_style | py::array::forcecast> ints(to_host(x->array, stream));
  x->host.assign(ints.data(), ints.data() + ints.size());
}

}  // namespace qkv

// embedding, rotary, its angles and scaled sums on a GPU's arrays.
#include "bind/device_array.h"
#include "bind/device_ints.h"
#include "bind/gil.h"
#include "bind/token_checks.h"

namespace qkv {
namespace {

cuda::Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<cuda::Stream>(handle); }

// dtype: of the result; None: the table's own, float32 of a packed table of integers.
DeviceArray embedding(py::handle ids_in, py::handle table_in, const py::object& dtype, std::uintptr_t stream) {
  const char* op = "embedding";
  const DeviceWeight* packed = py::isinstance<DeviceWeight>(table_in) ? table_in.cast<const DeviceWeight*>() : nullptr;
  DeviceView table;
  if (!packed)
    table = read_device_array(op, "table", table_in);
  else if (packed->is_float)
    table = read_device_array(op, "table", py::cast(packed->values));
  if (table) check_table(table);
  const int64_t rows = table ? table.shape[0] : packed->view.n, n = table ? table.shape[1] : packed->view.k;
  DeviceCall call(op, stream_of(stream), table ? table.array : packed->values);
  const DeviceInts ids = read_device_ints(&call, "ids", ids_in);
  check_ids(ids.host, rows);
  std::vector<int64_t> shape = ids.shape;
  shape.push_back(n);
  checked_size(op, shape);
  const py::dtype type = !dtype.is_none() ? py::dtype::from_args(dtype) : table ? table.array.dtype : py::dtype::of<float>();
  call.reads(table);
  if (!table)
    for (const DeviceArray* p : {&packed->values, &packed->row_scale})
      if (p->storage) call.reads(*p, "embedding: table");
  const DeviceArray out = call.make(type, shape);
  const DeviceView y = device_view(out);
  const int64_t count = ids.array.size();
  if (out.size() == 0) return out;
  const Unlocked unlocked;
  if (table)
    cuda::embedding({ids.ints,
                     count,
                     rows,
                     n,
                     {table.data, table.dtype, 0, 0, table.strides[0], n > 1 ? table.strides[1] : 1},
                     y.data,
                     y.dtype},
                    call.stream());
  else
    cuda::dequantize({packed->view, ids.ints, count, y.data, y.dtype}, call.stream());
  return out;
}

// angles: float32 (..., dim / 2) that broadcast to x's rows.
DeviceArray rotary(py::handle x_in, py::handle angles_in, double factor, int64_t dim, bool interleaved, std::uintptr_t stream) {
  const char* op = "rotary";
  const DeviceView x = read_device_array(op, "x", x_in);
  DeviceView angles = read_device_array(op, "angles", angles_in);
  if (angles.dtype != DType::f32) fail_type("rotary: angles must be float32, got " + dtype_name(angles));
  if (x.rank() == 0) fail_value(x.where + " must have at least 1 dimension");
  if (x.shape.back() >= int64_t{1} << 30) fail_value(x.where + " has rows of " + std::to_string(x.shape.back()));
  if (dim < 0 || dim % 2 != 0 || dim > x.shape.back())
    fail_value("rotary: dim must be even and at most " + std::to_string(x.shape.back()) + ", got " + std::to_string(dim));
  std::vector<int64_t> shape = x.shape;
  shape.back() = dim / 2;
  if (angles.rank() == 0 || angles.shape.back() != dim / 2)
    fail_value("rotary: angles must be (..., " + std::to_string(dim / 2) + "), got " + shape_text(angles.shape));
  DeviceCall call(op, stream_of(stream), x.array);
  call.reads(x);
  call.reads(angles);
  if (angles.size() > 0 && angles.shape.back() > 1 && angles.strides.back() != 1) angles = call.compact(angles);
  const DeviceView spread = broadcast(angles, shape);
  const DeviceArray out = call.make(x.array.dtype, x.shape);
  if (out.size() == 0) return out;
  const DeviceView y = device_view(out);
  auto rows = rows_along(x.rank() - 1, {&x, &y, &spread});
  const Unlocked unlocked;
  cuda::rotary({rows[0], rows[1], rows[2], static_cast<float>(factor), dim, interleaved}, call.stream());
  return out;
}

// (total, 1, n): positions (total) times contiguous float32 frequencies (n).
DeviceArray rotary_angles(py::handle positions_in, py::handle frequencies_in, std::uintptr_t stream) {
  const char* op = "rotary_angles";
  const DeviceView f = read_device_array(op, "frequencies", frequencies_in);
  DeviceCall call(op, stream_of(stream), f.array);
  const DeviceInts positions = read_device_ints(&call, "positions", positions_in);
  check_angles(positions.shape, f, f.array.contiguous());
  call.reads(f);
  const DeviceArray out = call.make(py::dtype::of<float>(), {positions.shape[0], 1, f.shape[0]});
  if (out.size() == 0) return out;
  const Unlocked unlocked;
  cuda::rotary_angles({positions.ints, reinterpret_cast<const float*>(f.data), reinterpret_cast<float*>(out.data),
                       positions.shape[0], f.shape[0]},
                      call.stream());
  return out;
}

// scale x, or x / scale, and + other: x (..., n) contiguous, other (n) or of x's shape, of x's dtype or float32.
DeviceArray scaled_sum(py::handle x_in, double scale, py::handle other_in, bool divide, std::uintptr_t stream) {
  const char* op = "scaled_sum";
  const DeviceView x = read_device_array(op, "x", x_in), other = read_optional_device_array(op, "other", other_in);
  check_parameter_dtype(x, other);
  for (const DeviceView* p : {&x, &other})
    if (*p && !p->array.contiguous()) fail_value(p->where + " must be contiguous");
  check_scaled_sum(x, other);
  DeviceCall call(op, stream_of(stream), x.array);
  call.reads(x);
  call.reads(other);
  const DeviceArray out = call.make(x.array.dtype, x.shape);
  if (out.size() == 0) return out;
  const int64_t n = x.shape.back();
  const cuda::ScaledSumArgs args{x.data,
                                 x.dtype,
                                 other.data,
                                 other.dtype,
                                 other && other.rank() == x.rank() ? n : 0,
                                 out.data,
                                 static_cast<float>(scale),
                                 divide,
                                 x.size() / n,
                                 n};
  const Unlocked unlocked;
  cuda::scaled_sum(args, call.stream());
  return out;
}

}  // namespace

void bind_cuda_tokens(py::module_& m) {
  m.def("embedding", embedding, py::arg("ids"), py::arg("table"), py::arg("dtype"), py::arg("stream"));
  m.def("rotary", rotary, py::arg("x"), py::arg("angles"), py::arg("factor"), py::arg("dim"), py::arg("interleaved"),
        py::arg("stream"));
  m.def("rotary_angles", rotary_angles, py::arg("positions"), py::arg("frequencies"), py::arg("stream"));
  m.def("scaled_sum", scaled_sum, py::arg("x"), py::arg("scale"), py::arg("other"), py::arg("divide"), py::arg("stream"));
}

}  // namespace qkv

// Choosing among the elements of rows on a GPU: top_k, argmax, sample, log_softmax_parts.
#include <cmath>

#include "bind/device_array.h"
#include "bind/gil.h"
#include "bind/row_checks.h"

namespace qkv {
namespace {

constexpr int64_t kLongestRow = 0x7FFFFFFF;  // places are counted in 32 bits

cuda::Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<cuda::Stream>(handle); }

// x (rows, n), not yet contiguous.
DeviceView read_rows(const char* op, const char* name, py::handle object) {
  const DeviceView x = read_device_array(op, name, object);
  if (x.rank() != 2) fail_value(x.where + " must be (rows, n), got " + shape_text(x.shape));
  if (x.shape[1] > kLongestRow) fail_value(x.where + " has more than " + std::to_string(kLongestRow) + " columns");
  return x;
}

// There, and its rows one after the other.
DeviceView contiguous(DeviceCall* call, const DeviceView& x) {
  call->reads(x);
  return x.array.contiguous() ? x : call->compact(x);
}

// Where (rows) int64 go: a new array, or `given`.
DeviceArray places_for(DeviceCall* call, py::handle given, const DeviceView& x) {
  const py::dtype int64 = py::dtype::of<int64_t>();
  if (given.is_none()) return call->make(int64, {x.shape[0]});
  const std::string where = std::string(call->op()) + ": out";
  if (!py::isinstance<DeviceArray>(given))
    fail_type(where + " must be an array on the GPU, got " + std::string(Py_TYPE(given.ptr())->tp_name));
  const auto& out = given.cast<const DeviceArray&>();
  if (!out.dtype.equal(int64)) fail_type(where + " must be int64, got " + py::str(out.dtype).cast<std::string>());
  if (out.shape != std::vector<int64_t>{x.shape[0]} || !out.contiguous())
    fail_value(where + " must be contiguous " + shape_text({x.shape[0]}) + ", got " + shape_text(out.shape));
  call->writes(out);
  return out;
}

void run(DeviceCall* call, cuda::TopKArgs a) {
  if (a.rows == 0) return;
  a.workspace = call->scratch(cuda::top_k_workspace(a));
  const Unlocked unlocked;
  cuda::top_k(a, call->stream());
}

py::tuple top_k(py::handle x_in, int64_t k, std::uintptr_t stream) {
  DeviceView x = read_rows("top_k", "x", x_in);
  check_top_k(x, k);
  DeviceCall call("top_k", stream_of(stream), x.array);
  x = contiguous(&call, x);
  const std::vector<int64_t> shape = {x.shape[0], k};
  const DeviceArray values = call.make(x.array.dtype, shape), places = call.make(py::dtype::of<int64_t>(), shape);
  run(&call, {x.data, x.dtype, x.shape[0], x.shape[1], k, values.data, reinterpret_cast<int64_t*>(places.data), nullptr});
  return py::make_tuple(values, places);
}

// (rows): where the largest of each row stands.
DeviceArray argmax(py::handle x_in, py::handle out_in, std::uintptr_t stream) {
  DeviceView x = read_rows("argmax", "x", x_in);
  if (x.shape[1] == 0) fail_value("argmax: x has no columns");
  DeviceCall call("argmax", stream_of(stream), x.array);
  x = contiguous(&call, x);
  const DeviceArray out = places_for(&call, out_in, x);
  run(&call, {x.data, x.dtype, x.shape[0], x.shape[1], 1, nullptr, reinterpret_cast<int64_t*>(out.data), nullptr});
  return out;
}

// (rows, 2): what log_softmax subtracts from a row of x (rows, n), first its maximum.
DeviceArray log_softmax_parts(py::handle x_in, std::uintptr_t stream) {
  const char* op = "log_softmax_parts";
  const DeviceView x = read_rows(op, "x", x_in);
  if (x.shape[1] == 0) fail_value(x.where + " has no columns");
  DeviceCall call(op, stream_of(stream), x.array);
  call.reads(x);
  const DeviceArray parts = call.make(py::dtype::of<float>(), {x.shape[0], 2});
  if (x.shape[0] == 0) return parts;
  const auto rows = rows_along(1, {&x});
  const Unlocked unlocked;
  cuda::softmax({rows[0], rows[0], true, reinterpret_cast<float*>(parts.data)}, call.stream());
  return parts;
}

// (rows): a token of each row of logits (rows, n), by u (rows) float64 of [0, 1), there or here. k = 0, p = 1 and min_p = 0: no
// filter.
DeviceArray sample(py::handle x_in, py::handle u_in, double temperature, int64_t k, double p, double min_p, py::handle out_in,
                   std::uintptr_t stream) {
  const char* op = "sample";
  DeviceView x = read_rows(op, "logits", x_in);
  if (x.shape[1] == 0) fail_value(x.where + " has no columns");
  const float divisor = static_cast<float>(temperature);
  if (!(divisor > 0) || !std::isfinite(divisor))
    fail_value("sample: temperature must be positive, got " + std::to_string(temperature));
  if (k < 0) fail_value("sample: top_k must be positive, got " + std::to_string(k));
  if (!(p >= 0 && p <= 1)) fail_value("sample: top_p must lie in 0 to 1, got " + std::to_string(p));
  if (!(min_p >= 0 && min_p <= 1)) fail_value("sample: min_p must lie in 0 to 1, got " + std::to_string(min_p));
  DeviceCall call(op, stream_of(stream), x.array);
  x = contiguous(&call, x);
  DeviceArray u;
  if (py::isinstance<DeviceArray>(u_in)) {
    u = u_in.cast<const DeviceArray&>();
    call.reads(u, "sample: u");
  } else if (py::isinstance<py::array>(u_in)) {
    u = upload(py::reinterpret_borrow<py::array>(u_in), call.stream());
  } else {
    fail_type("sample: u must be an array, got " + std::string(Py_TYPE(u_in.ptr())->tp_name));
  }
  if (!u.dtype.equal(py::dtype::of<double>()))
    fail_type("sample: u must be float64, got " + py::str(u.dtype).cast<std::string>());
  if (u.shape != std::vector<int64_t>{x.shape[0]} || !u.contiguous())
    fail_value("sample: u must be contiguous " + shape_text({x.shape[0]}) + ", got " + shape_text(u.shape));
  const DeviceArray out = places_for(&call, out_in, x);
  const cuda::SampleArgs a{x.data,
                           x.dtype,
                           x.shape[0],
                           x.shape[1],
                           divisor,
                           k,
                           p,
                           min_p,
                           reinterpret_cast<const double*>(u.data),
                           reinterpret_cast<int64_t*>(out.data)};
  const Unlocked unlocked;
  cuda::sample(a, call.stream());
  return out;
}

}  // namespace

void bind_cuda_choice(py::module_& m) {
  m.def("top_k", top_k, py::arg("x"), py::arg("k"), py::arg("stream"));
  m.def("argmax", argmax, py::arg("x"), py::arg("out"), py::arg("stream"));
  m.def("sample", sample, py::arg("logits"), py::arg("u"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
        py::arg("min_p"), py::arg("out"), py::arg("stream"));
  m.def("log_softmax_parts", log_softmax_parts, py::arg("x"), py::arg("stream"));
}

}  // namespace qkv

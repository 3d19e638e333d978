// Arrays in a GPU's memory that are written in place: from others, from the host, with one value; and several as one.
#include <cstring>
#include <optional>
#include <stdexcept>

#include "bind/device_array.h"
#include "bind/gil.h"

namespace qkv {
namespace {

cuda::Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<cuda::Stream>(handle); }

void check_same(const char* op, const DeviceArray& target, const std::vector<int64_t>& shape, const py::dtype& dtype) {
  const std::string where = std::string(op) + ": source";
  if (shape != target.shape) fail_value(where + " must be " + shape_text(target.shape) + ", got " + shape_text(shape));
  if (!dtype.equal(target.dtype))
    fail_type(where + " must be " + py::str(target.dtype).cast<std::string>() + ", got " + py::str(dtype).cast<std::string>());
}

// Both of one shape and dtype, not empty, and in no memory of each other.
void move(const DeviceArray& target, const DeviceArray& source, cuda::Stream stream) {
  if (target.contiguous() && source.contiguous())
    return cuda::copy_bytes(target.data, source.data, static_cast<size_t>(target.size() * target.item()), stream);
  const View x = plain_view(source), y = plain_view(target);
  const auto rows = rows_along(x.rank() - 1, {&x, &y});
  cuda::copy({rows[0], rows[1], static_cast<int>(target.item())}, stream);
}

DeviceArray contiguous_copy(DeviceCall* call, const DeviceArray& x) {
  const DeviceArray y = call->make(x.dtype, x.shape);
  move(y, x, call->stream());
  return y;
}

void copy_into(const DeviceArray& target, const DeviceArray& source, std::uintptr_t stream) {
  const char* op = "copy_into";
  check_same(op, target, source.shape, source.dtype);
  DeviceCall call(op, stream_of(stream), target);
  call.reads(source, "copy_into: source");
  call.writes(target);
  if (target.size() == 0) return;
  const auto end = [](const DeviceArray& x) { return static_cast<char*>(x.storage->data) + x.storage->bytes; };
  if (target.storage->data < end(source) && source.storage->data < end(target))  // it may be the same memory
    move(target, contiguous_copy(&call, source), call.stream());
  else
    move(target, source, call.stream());
}

void upload_into(const DeviceArray& target, const py::array& source_in, std::uintptr_t stream) {
  const char* op = "copy_into";
  check_same(op, target, std::vector<int64_t>(source_in.shape(), source_in.shape() + source_in.ndim()), source_in.dtype());
  DeviceCall call(op, stream_of(stream), target);
  call.writes(target);
  if (target.size() == 0) return;
  if (!target.contiguous()) return move(target, upload(source_in, call.stream()), call.stream());
  const py::array source = py::array::ensure(source_in, py::array::c_style);
  if (!source) throw py::error_already_set();
  const void* data = source.data();
  const auto bytes = static_cast<size_t>(target.size() * target.item());
  const Unlocked unlocked;
  cuda::upload(target.data, data, bytes, call.stream());
}

// value: an array () of the target's dtype.
void fill(const DeviceArray& target, const py::array& value, std::uintptr_t stream) {
  DeviceCall call("fill", stream_of(stream), target);
  call.writes(target);
  if (target.size() == 0) return;
  const auto* bytes = static_cast<const unsigned char*>(value.data());
  const auto item = static_cast<size_t>(target.item());
  if (target.contiguous() && std::memcmp(bytes, bytes + 1, item - 1) == 0)
    return cuda::fill_bytes(target.data, bytes[0], static_cast<size_t>(target.size()) * item, call.stream());
  DeviceArray one = upload(value, call.stream());
  one.shape = target.shape;
  one.strides.assign(target.shape.size(), 0);
  move(target, one, call.stream());
}

DeviceArray concatenate(const std::vector<DeviceArray>& arrays, int64_t axis_in, std::uintptr_t stream) {
  const char* op = "concatenate";
  if (arrays.empty()) fail_value("concatenate: there are no arrays");
  const DeviceArray& first = arrays[0];
  const auto rank = static_cast<int64_t>(first.shape.size());
  if (axis_in < -rank || axis_in >= rank)
    fail_value("concatenate: axis " + std::to_string(axis_in) + " is out of range for arrays of shape " +
               shape_text(first.shape));
  const auto axis = static_cast<size_t>(axis_in < 0 ? axis_in + rank : axis_in);
  std::vector<int64_t> shape = first.shape;
  shape[axis] = 0;
  for (const DeviceArray& x : arrays) {
    std::vector<int64_t> expected = first.shape;
    if (x.shape.size() == expected.size()) expected[axis] = x.shape[axis];
    if (x.shape != expected)
      fail_value("concatenate: arrays of shapes " + shape_text(first.shape) + " and " + shape_text(x.shape) +
                 " differ beside axis " + std::to_string(axis));
    if (!x.dtype.equal(first.dtype))
      fail_type("concatenate: arrays are " + py::str(first.dtype).cast<std::string>() + " and " +
                py::str(x.dtype).cast<std::string>());
    shape[axis] += x.shape[axis];
  }
  DeviceCall call(op, stream_of(stream), first);
  for (const DeviceArray& x : arrays) call.reads(x, "concatenate: an array");
  const DeviceArray out = call.make(first.dtype, shape);
  DeviceArray part = out;
  for (const DeviceArray& x : arrays) {
    part.shape[axis] = x.shape[axis];
    if (x.size() > 0) move(part, x, call.stream());
    part.data += x.shape[axis] * part.strides[axis] * part.item();
  }
  return out;
}

// A few numbers that the host reads again and again, while the device goes on.
class Fetched {
 public:
  explicit Fetched(const DeviceArray& x) : from_(x) {
    if (!x.contiguous()) fail_value("Fetched: x must be contiguous");
    const cuda::OnDevice on(x.storage->device);
    const auto bytes = static_cast<size_t>(x.size() * x.item());
    const Unlocked unlocked;  // the first of its size may wait for the device
    fetch_.emplace(bytes);
  }
  void start(std::uintptr_t stream) {
    if (state_ == State::flying) throw std::runtime_error("Fetched: what was started before has not been read");
    refuse_while_read();
    state_ = State::idle;  // if it fails
    DeviceCall call("fetch", stream_of(stream), from_);
    call.reads(from_, "fetch: x");
    fetch_->start(from_.data, call.stream());
    state_ = State::flying;
  }
  py::array numpy() {
    if (state_ == State::idle) throw std::runtime_error("Fetched: nothing was started that could be read");
    refuse_while_read();
    state_ = State::read;
    const void* data = nullptr;
    try {
      const Unlocked unlocked;
      data = fetch_->wait();
    } catch (...) {
      state_ = State::idle;
      throw;
    }
    state_ = State::landed;
    return py::array(from_.dtype, from_.shape, data);
  }

 private:
  enum class State { idle, flying, read, landed };  // read: a thread waits for the numbers
  void refuse_while_read() const {
    if (state_ == State::read) throw std::runtime_error("Fetched: another thread is reading it");
  }
  DeviceArray from_;
  std::optional<cuda::Fetch> fetch_;
  State state_ = State::idle;
};

}  // namespace

void bind_device_moves(py::module_& m) {
  py::class_<Fetched>(m, "Fetched", "Numbers of a contiguous array on a GPU, as they come to the host.")
      .def(py::init<const DeviceArray&>(), py::arg("x"), "ValueError: x is not contiguous.")
      .def("start", &Fetched::start, py::arg("stream"),
           "Enqueues a copy in the stream. RuntimeError: the one before has not been read.")
      .def("numpy", &Fetched::numpy,
           "A copy of what the last start() brought, once it is there. RuntimeError: there was none, or it failed.");
  m.def("copy_into", copy_into, py::arg("target"), py::arg("source"), py::arg("stream"));
  m.def("upload_into", upload_into, py::arg("target"), py::arg("source"), py::arg("stream"));
  m.def("fill", fill, py::arg("target"), py::arg("value"), py::arg("stream"));
  m.def("concatenate", concatenate, py::arg("arrays"), py::arg("axis"), py::arg("stream"));
}

}  // namespace qkv

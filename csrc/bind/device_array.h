// Arrays in a GPU's memory: qkv.cuda.Array. Plain views with shared storage, like NumPy's.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bind/device_recording.h"
#include "bind/view.h"
#include "cuda/runtime.h"

namespace qkv {

namespace py = pybind11;

// Memory of one device. `stream` is the one it was allocated in, and goes back in; work in others that used it is waited for
// there.
struct Storage {
  void* data = nullptr;
  size_t bytes = 0;
  int device = 0;
  cuda::Stream stream = nullptr;
  cuda::Stream written = nullptr;    // where its contents were made last
  std::vector<cuda::Stream> others;  // beside `stream`, where it is used
  std::vector<cuda::Stream> after;   // beside `written`, streams that run after that already
  bool owned = false;
  std::shared_ptr<cuda::Arena> arena;  // whose memory it is, of a recording
  std::shared_ptr<void> foreign;       // what keeps memory of another library alive

  Storage() = default;
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  ~Storage();
  void used_in(cuda::Stream s);
};

struct DeviceArray {
  std::shared_ptr<Storage> storage;
  char* data = nullptr;
  py::dtype dtype;
  std::vector<int64_t> shape, strides;  // in elements

  int64_t size() const;
  int64_t item() const { return dtype.itemsize(); }
  bool contiguous() const;
};

// A view whose dtype says nothing: of an array of any.
View plain_view(const DeviceArray& array);

// Uninitialised, C-contiguous or with these strides of a dense order, in the current device's memory.
DeviceArray new_device_array(const char* op, const py::dtype& dtype, const std::vector<int64_t>& shape, cuda::Stream stream,
                             const std::vector<int64_t>* strides = nullptr);
DeviceArray upload(const py::array& from, cuda::Stream stream);
// Waits until it is there. A dense array keeps its memory order, others become C-contiguous.
py::array to_host(const DeviceArray& array, cuda::Stream stream);

// As the checked views of NumPy's arrays: TypeError unless `object` is a DeviceArray of float32, float16 or bfloat16.
struct DeviceView : View {
  DeviceArray array;
};
DeviceView read_device_array(const char* op, const char* name, py::handle object);
DeviceView read_optional_device_array(const char* op, const char* name, py::handle object);
// As read_device_array, or int8: keys or values in a cache.
DeviceView read_device_cache(const char* op, const char* name, py::handle object);
DeviceView device_view(const DeviceArray& array);  // of an array that we made

// One op's call: its device, its stream, and what it reads and writes there.
class DeviceCall {
 public:
  DeviceCall(const char* op, cuda::Stream stream, const DeviceArray& lead);
  const char* op() const { return op_; }
  cuda::Stream stream() const { return stream_; }
  // The work to come reads `x`, after whatever made it; ValueError if it is on another device.
  void reads(const DeviceArray& x, const std::string& name);
  void reads(const DeviceView& x);
  void writes(const DeviceArray& x);
  DeviceArray make(const py::dtype& dtype, const std::vector<int64_t>& shape, const std::vector<int64_t>* strides = nullptr);
  // Memory for the kernels' own use, given back in the stream's order when the call is over.
  void* scratch(size_t bytes);
  // A vector of few floats as contiguous float32, converted on the device if need be; nullptr if absent.
  const float* floats(const DeviceView& x);
  // x as float32.
  DeviceArray widened(const DeviceView& x);
  // x with the same values and neighbours in its last dimension adjacent.
  DeviceView compact(const DeviceView& x);

 private:
  const char* op_;
  cuda::Stream stream_;
  cuda::OnDevice on_;
  int device_;
  DeviceRecording* recording_;  // that this thread makes, or nullptr
  std::vector<DeviceArray> temporary_;
};

// The array a call writes to: `given`, checked against dtype and shape, or a new one. A given array that shares memory with an
// input, or whose last dimension is not contiguous, is written at the end from a fresh one.
class DeviceOutput {
 public:
  DeviceOutput(DeviceCall* call, py::handle given, const DeviceView& like, const std::vector<int64_t>& shape,
               std::initializer_list<const DeviceView*> inputs);
  const DeviceView& view() const { return view_; }
  DeviceArray finish();

 private:
  DeviceCall* call_;
  bool direct_ = true;
  DeviceView target_, view_;
};

// Weights of 8 or 4 bits, or a float weight, on the device.
struct DeviceWeight {
  cuda::PackedView view{};                       // of integers
  DeviceArray values, row_scale, scale, offset;  // what holds it; a float weight: values (n, k) alone
  std::string type;
  bool is_float = false;
};

// Whether sums of a row must not depend on the rest of its batch.
bool batch_invariant();

void bind_device_array(py::module_& m);
void bind_cuda_ops(py::module_& m);
void bind_cuda_choice(py::module_& m);
void bind_cuda_additive_attention(py::module_& m);
void bind_cuda_attention(py::module_& m);
void bind_cuda_attention_paged(py::module_& m);
void bind_cuda_cache(py::module_& m);
void bind_cuda_tokens(py::module_& m);
void bind_device_moves(py::module_& m);

}  // namespace qkv

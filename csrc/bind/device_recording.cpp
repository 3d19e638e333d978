// record: runs a function of Python's and captures the work of its ops.
#include "bind/device_recording.h"

#include <algorithm>
#include <stdexcept>

#include "bind/device_array.h"
#include "bind/gil.h"

namespace qkv {

namespace {

thread_local DeviceRecording* t_recording = nullptr;

cuda::Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<cuda::Stream>(handle); }

// `captures` is a stream that nothing else uses; the first launch, and the memory, are in `home`.
py::tuple record(const py::function& work, std::uintptr_t captures, std::uintptr_t home) {
  if (DeviceRecording::current()) throw std::logic_error("record: this thread records already");
  auto made = std::make_unique<DeviceRecording>(stream_of(home));
  py::object result;
  {
    DeviceRecording::Open open(made.get(), stream_of(captures));
    result = work();
    open.end();
  }
  made->replay(stream_of(home));
  return py::make_tuple(result, std::move(made));
}

// Makes one stream wait for others, for each once.
class Waits {
 public:
  explicit Waits(cuda::Stream waiter) : waiter_(waiter) {}
  void add(cuda::Stream other) {
    if (other == waiter_ || std::find(done_.begin(), done_.end(), other) != done_.end()) return;
    cuda::wait_for(waiter_, other);
    done_.push_back(other);
  }
  void add_users(const Storage& s) {
    add(s.written);
    add(s.stream);
    for (const cuda::Stream other : s.others) add(other);
  }

 private:
  cuda::Stream waiter_;
  std::vector<cuda::Stream> done_;
};

}  // namespace

DeviceRecording* DeviceRecording::current() { return t_recording; }

DeviceRecording::Open::Open(DeviceRecording* r, cuda::Stream stream) : recording_(r), capture_(stream) {
  r->stream_ = stream;
  t_recording = r;
}

DeviceRecording::Open::~Open() {
  t_recording = nullptr;
  recording_->arena_->close();
}

void DeviceRecording::Open::end() {
  const Unlocked unlocked;
  recording_->graph_ = capture_.end();
}

void DeviceRecording::check(const char* op, cuda::Stream stream, int device) const {
  const char* wrong = stream != stream_            ? "in another stream than the current one of qkv.cuda.record"
                      : device != arena_->device() ? "on another device"
                                                   : nullptr;
  if (wrong) throw cuda::Error(0, std::string(op) + ": this thread records, and the op would run " + wrong);
}

void DeviceRecording::allocate(const char* op, const std::shared_ptr<Storage>& storage) {
  {
    const Unlocked unlocked;
    storage->data = arena_->acquire(storage->bytes, op);
    cuda::forget(storage->data, storage->bytes, stream_);  // in each replay: what the last one left there is not to be read
  }
  storage->arena = arena_;
  storage->stream = storage->written = arena_->home();
  made_.push_back(storage);
}

void DeviceRecording::reads(const std::shared_ptr<Storage>& s) {
  if (s->arena != arena_ && reading_.insert(s.get()).second) read_.push_back(s);
}

void DeviceRecording::writes(const std::shared_ptr<Storage>& s) {
  reads(s);
  if (s->arena != arena_ && writing_.insert(s.get()).second) written_.push_back(s);
}

void DeviceRecording::replay(cuda::Stream stream) {
  const cuda::OnDevice on(arena_->device());
  // From the waits to the launch: of two threads the later one in the streams is the later one in what is noted here.
  std::unique_lock<std::mutex> launching(launching_, std::defer_lock);
  {
    const Unlocked unlocked;  // who holds it may want the GIL
    launching.lock();
  }
  Waits waits(stream);
  for (const auto& s : read_) {
    if (s->written != stream && std::find(s->after.begin(), s->after.end(), stream) == s->after.end()) {
      waits.add(s->written);
      s->after.push_back(stream);
    }
    s->used_in(stream);
  }
  // What the last replay left in the arena is overwritten, whoever still reads it; the replay itself CUDA waits for.
  waits.add(arena_->home());
  for (const cuda::Stream s : arena_->take_readers()) waits.add(s);
  std::vector<std::shared_ptr<Storage>> written = written_;
  made_.erase(std::remove_if(made_.begin(), made_.end(), [](const auto& made) { return made.expired(); }), made_.end());
  for (const auto& made : made_)
    if (auto s = made.lock()) written.push_back(std::move(s));
  for (const auto& s : written) {
    waits.add_users(*s);
    s->used_in(stream);
    s->written = stream;
    s->after.clear();
  }
  arena_->used_in(stream);
  const Unlocked unlocked;
  graph_.launch(stream);
}

void bind_device_recording(py::module_& m) {
  using R = DeviceRecording;
  py::class_<R>(m, "Recording", "Ops that were recorded by qkv.cuda.record.")
      .def("_replay",
           [](R& r, std::uintptr_t stream) {
             if (R::current()) throw std::logic_error("replay: this thread records");
             r.replay(stream_of(stream));
           })
      .def_property_readonly(
          "complete", [](const R&) { return true; }, "Whether all calls could be recorded: what cannot is an error.")
      .def("__len__", &R::kernels, "Kernels that a replay launches.");
  m.def("record", record, py::arg("work"), py::arg("captures"), py::arg("home"));
  m.def("is_recording", [] { return R::current() != nullptr; });
}

}  // namespace qkv

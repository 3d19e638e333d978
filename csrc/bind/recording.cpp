#include "bind/recording.h"

#include <stdexcept>

#include "bind/array.h"
#include "bind/bind.h"

namespace qkv {

namespace {
thread_local Recording* t_recording = nullptr;
}

Recording* current_recording() { return t_recording; }

Recording::~Recording() {
  if (t_recording == this) stop();
}

void Recording::start() {
  if (t_recording || used_) throw std::logic_error(used_ ? "this recording was made already" : "this thread records already");
  used_ = true;
  t_recording = this;
  arena_.open();
}

void Recording::stop() {
  if (t_recording != this) throw std::logic_error("this thread does not make this recording");
  t_recording = nullptr;
  arena_.close();
}

void bind_recording(py::module_& m) {
  py::class_<Recording>(m, "Recording")
      .def(py::init<>())
      .def("start", &Recording::start)
      .def("stop", &Recording::stop)
      .def("replay",
           [](const Recording& r) {
             if (current_recording()) throw std::logic_error("replay: this thread records");
             const Unlocked unlocked;
             r.replay();
           })
      .def_property_readonly("complete", &Recording::complete)
      .def("__len__", &Recording::size);
}

}  // namespace qkv

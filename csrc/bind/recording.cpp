// record: runs a function of Python's and notes the kernel calls that its thread makes meanwhile.
#include "bind/recording.h"

#include <memory>
#include <stdexcept>

#include "bind/array.h"
#include "bind/bind.h"

namespace qkv {

namespace {

thread_local Recording* t_recording = nullptr;

py::tuple record(const py::function& work) {
  auto made = std::make_unique<Recording>();
  py::object result;
  {
    const Recording::Open open(made.get());
    result = work();
  }
  return py::make_tuple(result, std::move(made));
}

}  // namespace

Recording* current_recording() { return t_recording; }

Recording::Open::Open(Recording* r) {
  if (t_recording) throw std::logic_error("record: this thread records already");
  t_recording = r;
  r->arena_.open();
}

Recording::Open::~Open() {
  t_recording->arena_.close();
  t_recording = nullptr;
}

void bind_recording(py::module_& m) {
  py::class_<Recording>(m, "Recording")
      .def("replay",
           [](const Recording& r) {
             if (current_recording()) throw std::logic_error("replay: this thread records");
             const Unlocked unlocked;
             r.replay();
           })
      .def_property_readonly("complete", &Recording::complete)
      .def("__len__", &Recording::size);
  m.def("record", record, py::arg("work"));
}

}  // namespace qkv

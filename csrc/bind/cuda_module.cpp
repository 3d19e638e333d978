// The extension modules qkv._cuda, on a GPU, and qkv._cuda_emulated, on the emulator (QKV_CUDA_MODULE names which).
#include <algorithm>

#include "bind/device_array.h"
#include "bind/gil.h"
#ifdef QKV_CUDA_EMULATED

extern "C" {  // csrc/cuda/emulation/c_api.cpp
int qkv_emulator_configure(const char* text);
size_t qkv_emulator_report(char* to, size_t bytes);
}
#endif

namespace qkv {
namespace {

cuda::Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<cuda::Stream>(handle); }

void bind_cuda_runtime(py::module_& m) {
  static py::exception<cuda::Error> error(m, "CudaError", PyExc_RuntimeError);
  error.attr("__module__") = "qkv";
  error.attr("__doc__") = "What the CUDA runtime refused, in its words; `.code` is its number.";
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const cuda::Error& e) {
      py::object made = py::handle(error.ptr())(e.what());
      made.attr("code") = e.code;
      PyErr_SetObject(error.ptr(), made.ptr());
    }
  });
  m.def("device_count", cuda::device_count);
  m.def("why_not", cuda::why_not);
  m.def("device_name", cuda::device_name, py::arg("device"));
  m.def("compute_capability", cuda::compute_capability, py::arg("device"));
  m.def("driver_version", cuda::driver_version);
  m.def("runtime_version", cuda::runtime_version);
  m.def("current_device", cuda::current_device);
  m.def("set_device", cuda::set_device, py::arg("device"));
  m.def(
      "choose_path",
      [](const std::string& name) {
        if (name != "fastest" && name != "portable" && name != "hopper") fail_value("choose_path: no path is named " + name);
        cuda::choose_path(name == "fastest"    ? cuda::Path::fastest
                          : name == "portable" ? cuda::Path::portable
                                               : cuda::Path::hopper);
      },
      py::arg("name"), "Which kernels run where the device has two that can: 'fastest', 'portable', 'hopper'. Of the process.");
  m.def("memory_info", [] {
    const cuda::MemoryInfo i = cuda::memory_info();
    py::dict d;
    d["used_bytes"] = i.used;
    d["cached_bytes"] = i.cached;
    d["free_bytes"] = i.free;
    d["total_bytes"] = i.total;
    return d;
  });
  m.def("set_cache_limit", cuda::set_cache_limit, py::arg("nbytes"));
  m.def("trim", [] {
    const Unlocked unlocked;
    cuda::trim();
  });
  m.def(
      "create_stream", [](bool captures) { return reinterpret_cast<std::uintptr_t>(cuda::create_stream(captures)); },
      py::arg("captures") = false);
  m.def(
      "synchronize",
      [](std::uintptr_t s) {
        const Unlocked unlocked;
        cuda::synchronize(stream_of(s));
      },
      py::arg("stream"));
  m.def(
      "wait_for", [](std::uintptr_t waiter, std::uintptr_t other) { cuda::wait_for(stream_of(waiter), stream_of(other)); },
      py::arg("waiter"), py::arg("other"));
#ifdef QKV_CUDA_EMULATED
  m.attr("emulated") = true;
  m.def(
      "configure_emulator",
      [](const std::string& text) {
        if (qkv_emulator_configure(text.c_str()) != 0) fail_value("configure_emulator: " + text + " is not understood");
      },
      py::arg("text"), "Reads 'name=value,...' over the emulator's defaults: csrc/cuda/emulation/emulator.h.");
  m.def(
      "emulator_report",
      [] {
        std::string text(1 << 20, '\0');
        text.resize(std::min(text.size(), qkv_emulator_report(text.data(), text.size())) - 1);
        return text;
      },
      "What was found since the last call, as JSON.");
#else
  m.attr("emulated") = false;
#endif
}

}  // namespace
}  // namespace qkv

PYBIND11_MODULE(QKV_CUDA_MODULE, m) {
  m.doc() = "CUDA kernels of qkv. Private: use qkv.ops and qkv.cuda, where the functions are documented.";
  qkv::bind_cuda_runtime(m);
  qkv::bind_device_array(m);
  qkv::bind_device_recording(m);
  qkv::bind_cuda_ops(m);
  qkv::bind_cuda_choice(m);
  qkv::bind_cuda_additive_attention(m);
  qkv::bind_cuda_attention(m);
  qkv::bind_cuda_attention_paged(m);
  qkv::bind_cuda_cache(m);
  qkv::bind_cuda_tokens(m);
  qkv::bind_device_moves(m);
}

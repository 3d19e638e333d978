// ISA, threads and buffers.
#include <pybind11/stl.h>

#include "bind/bind.h"
#include "core/buffer.h"
#include "core/cpu_count.h"
#include "core/parallel.h"
#include "cpu/dispatch.h"

namespace py = pybind11;

namespace qkv {

void bind_runtime(py::module_& m) {
  m.def("isas", usable_isas);
  m.def("set_isa", set_isa, py::arg("name"));
  m.def("current_isa", [] { return std::string(kernels().isa); });
  m.def("kernel_names", [] {
    return std::vector<std::string>{
#define KERNEL(name, Args) #name,
#include "cpu/kernels.inc"
    };
  });
  m.def("set_num_threads", set_num_threads, py::arg("n"));
  m.def("get_num_threads", num_threads);
  m.def("usable_cpus", usable_cpus);
  m.def("affinity_cpus", affinity_cpus);
  m.def("cgroup_cpus", [](const std::string& root) { return cgroup_cpus(root.c_str()); }, py::arg("root"));
  m.def("trim", buffer_trim);
  m.def("buffer_stats", [] {
    const BufferStats s = buffer_stats();
    py::dict d;
    d["cached_bytes"] = s.cached_bytes;
    d["limit_bytes"] = s.limit_bytes;
    return d;
  });
  m.attr("compiler") = __VERSION__;
}

}  // namespace qkv

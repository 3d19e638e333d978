// ISA, threads and buffers.
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <iterator>

#include "bind/array.h"
#include "bind/bind.h"
#include "bind/gil.h"
#include "core/buffer.h"
#include "core/cpu_count.h"
#include "core/last_cache.h"
#include "core/parallel.h"
#include "cpu/dispatch.h"

namespace qkv {

namespace {

Limit limit_of(const std::string& name) {
  const char* const names[] = {"fma", "bf16_dot", "int8_dot", "read", "copy", "stream"};
  for (size_t i = 0; i < std::size(names); ++i)
    if (name == names[i]) return static_cast<Limit>(i);
  throw std::invalid_argument("limit: unknown name '" + name + "'");
}

// Operations or bytes per second, the best of `repeats` passes.
double limit(const std::string& name, int64_t chunks, int repeats) {
  const Limit which = limit_of(name);
  if (chunks < 1 || chunks > 1 << 20)
    throw std::invalid_argument("limit: chunks must lie in 1 ... 2^20, got " + std::to_string(chunks));
  const Unlocked unlocked;
  const size_t bytes = which < Limit::read ? 0 : static_cast<size_t>(chunks * kLimitChunk) * sizeof(float);
  const Scratch x(bytes), y(which == Limit::read ? 0 : bytes);
  // Untouched pages would all be the same page of zeros.
  if (x.data()) std::memset(x.data(), 0, bytes);
  if (y.data()) std::memset(y.data(), 0, bytes);
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    int64_t done = 0;
    const auto start = std::chrono::steady_clock::now();
    kernels().limits({which, chunks, x.as<float>(), y.as<float>(), &done, num_threads()});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(done) / seconds.count());
  }
  return best;
}

}  // namespace

void bind_runtime(py::module_& m) {
  // What is made once is made now, before there are threads and forks.
  prepare_threads();
  buffer_stats();
  kernels();
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
  m.def(
      "empty",
      [](const std::vector<int64_t>& shape, const py::dtype& dtype) {
        if (dtype.attr("hasobject").cast<bool>()) fail_type("empty: dtype must hold numbers");
        for (const int64_t n : shape)
          if (n < 0) fail_value("empty: a dimension is negative");
        return new_array("empty", dtype, shape);
      },
      py::arg("shape"), py::arg("dtype"));
  m.def("buffer_stats", [] {
    const BufferStats s = buffer_stats();
    py::dict d;
    d["cached_bytes"] = s.cached_bytes;
    d["limit_bytes"] = s.limit_bytes;
    d["lasting_bytes"] = s.lasting_bytes;
    return d;
  });
  m.def("set_past_caches", set_past_caches, py::arg("nbytes"));
  m.def("limit", limit, py::arg("name"), py::arg("chunks"), py::arg("repeats"));
  m.def(
      "check_arrays",
      [](const std::string& op, const py::dict& named) {
        std::vector<Array> arrays;
        for (const auto& item : named)
          arrays.push_back(read_array(op.c_str(), item.first.cast<std::string>().c_str(), item.second));
        std::vector<const View*> pointers;
        for (const Array& x : arrays) pointers.push_back(&x);
        return check_dtypes(op.c_str(), pointers);
      },
      py::arg("op"), py::arg("arrays"));
  m.attr("compiler") = __VERSION__;
}

}  // namespace qkv

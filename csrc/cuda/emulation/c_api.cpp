// Configuration and reports of the emulator with a C interface, for tests that load kernels with ctypes.
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "cuda/emulation/cudart.h"
#include "cuda/emulation/emulator.h"
#include "cuda/emulation/registry.h"

namespace {

using namespace qkv::emulation;

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out + '"';
}

std::string field(const char* name, int64_t value) { return quoted(name) + ": " + std::to_string(value) + ", "; }

std::string field(const char* name, const Traffic& t) {
  return quoted(name) + ": [" + std::to_string(t.accesses) + ", " + std::to_string(t.moved) + ", " + std::to_string(t.ideal) +
         "], ";
}

std::string json(const Report& r) {
  std::string s = "{" + field("launches", r.launches) + field("failed", r.failed) + field("races", r.races) +
                  field("uninitialised", r.uninitialised) + field("out_of_bounds", r.out_of_bounds) +
                  field("misaligned", r.misaligned) + field("deadlocks", r.deadlocks) + field("divergent", r.divergent) +
                  field("missing_fences", r.missing_fences) + field("unfinished_copies", r.unfinished_copies) +
                  field("other", r.other) + field("left_out", r.left_out) + "\"first\": " + quoted(r.first) + ", \"kernels\": {";
  bool comma = false;
  for (const auto& [name, c] : r.kernels) {
    s += (comma ? ", " : "") + quoted(name) + ": {" + field("launches", c.launches) + field("dependent", c.dependent) +
         field("blocks", c.blocks) + field("threads", c.threads) + field("dynamic_shared", c.dynamic_shared) +
         field("busiest", c.busiest) + field("shared_load", c.shared_load) + field("shared_store", c.shared_store) +
         field("matrix_load", c.matrix_load) + field("matrix_store", c.matrix_store) + field("global_load", c.global_load) +
         field("global_store", c.global_store) + field("async_copies", c.async_copies) + field("mma", c.mma) +
         field("wgmma", c.wgmma) + "\"barriers\": " + std::to_string(c.barriers) + "}";
    comma = true;
  }
  return s + "}}";
}

}  // namespace

extern "C" {

// Reads "name=value,..." over the defaults. 0: done; 1: the text is not understood.
__attribute__((visibility("default"))) int qkv_emulator_configure(const char* text) {
  try {
    Config c;
    parse(text, c);
    {
      const std::lock_guard<std::recursive_mutex> lock(runtime_mutex());
      catch_up();
    }
    configure(c);
    return 0;
  } catch (const std::invalid_argument&) {
    return 1;
  }
}

// The instructions of a kernel that Config::leave_out can name, as JSON: [[PTX line, text, file, line], ...]; sizes as below.
__attribute__((visibility("default"))) size_t qkv_emulator_sites(const char* mangled, char* to, size_t bytes) {
  std::string text = "[";
  if (const Kernel* k = find_kernel(mangled))
    for (unsigned i = k->first_site; i < k->end_site; ++i) {
      const Site& s = k->module->sites[i];
      text += (text.size() > 1 ? ", [" : "[") + std::to_string(s.ptx_line) + ", " + quoted(s.text) + ", " +
              quoted(s.file ? s.file : "") + ", " + std::to_string(s.line) + "]";
    }
  text += "]";
  std::snprintf(to, bytes, "%s", text.c_str());
  return text.size() + 1;
}

// The report as JSON, of which at most `bytes` are written, with a 0 at the end; returns how many it needs. Starts a new report.
__attribute__((visibility("default"))) size_t qkv_emulator_report(char* to, size_t bytes) {
  const std::string text = json(take_report());
  std::snprintf(to, bytes, "%s", text.c_str());
  return text.size() + 1;
}
}

// How a kernel that does something wrong ends: a Fault is thrown in its fiber, and the launch fails with the fault's words.
#pragma once
#include <string>

namespace qkv::emulation {

enum class FaultKind {
  race,
  uninitialised,
  out_of_bounds,
  misaligned,
  deadlock,
  divergent,
  missing_fence,
  unfinished_copy,
  other,
};

struct Fault {
  FaultKind kind;
  std::string text;
};

// Throws a Fault: `what`, then the running thread's block and thread, and the instruction it is at.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(FaultKind kind, const char* what, ...);

}  // namespace qkv::emulation

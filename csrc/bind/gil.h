// Releases the GIL for the time of a kernel call.
#pragma once
#include <Python.h>
#include <unistd.h>

namespace qkv {

// Like pybind11's gil_scoped_release, but safe in a daemon thread that comes back while the interpreter shuts down: before
// 3.14 Python then ends the thread by pthread_exit, whose unwinding would meet a destructor that must not throw and abort the
// process. Such a thread sleeps here until the process is gone (as 3.14 does by itself).
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  ~Unlocked() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // abi::__forced_unwind, which must not be swallowed: it is not, this never returns
      for (;;) pause();
    }
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace qkv

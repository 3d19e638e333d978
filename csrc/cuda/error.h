// What a call of the CUDA runtime that failed becomes: qkv.CudaError in Python, with the driver's words.
#pragma once
#include <stdexcept>
#include <string>

namespace qkv::cuda {

class Error : public std::runtime_error {
 public:
  Error(int code, const std::string& message) : std::runtime_error(message), code(code) {}
  int code;  // a cudaError_t
};

// Throws the Error of a cudaError_t that is none of success, `what` first, then what it means for the user: runtime.cpp.
[[noreturn]] void fail(int code, const char* what);

}  // namespace qkv::cuda

// What ptx_to_cpp.py made: kernels, their parameters and shared arrays, and for every instruction that can fail, what it is and
// where.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace qkv::emulation {

// An instruction that touches memory or waits for other threads.
struct Site {
  int ptx_line;
  const char* file;  // of the .cu, nullptr where nvcc did not say (-lineinfo)
  int line;
  const char* text;
};

struct Parameter {
  unsigned offset, size;
};

struct SharedArray {
  unsigned offset, size;
};

// A __constant__ or __device__ variable.
struct Variable {
  const char* name;
  unsigned char* data;
  size_t size;
};

struct Module;

struct Kernel {
  const char* name;  // mangled
  void (*run)(const unsigned char* parameters);
  const Module* module;
  const Parameter* parameters;
  unsigned parameter_count, parameter_bytes;
  const SharedArray* shared;  // static arrays, with gaps between them
  unsigned shared_count;
  unsigned shared_bytes;          // of static arrays, without the gaps
  unsigned shared_end;            // behind the last of them
  unsigned dynamic_alignment;     // of the extern array; 0: the kernel has none
  unsigned max_threads;           // __launch_bounds__; 0: not given
  unsigned required_threads[3];   // 0: not given
  unsigned required_cluster[3];   // __cluster_dims__; 0: not given
  unsigned first_site, end_site;  // those of its body; device functions' come before all kernels'
  bool internal;                  // static, or in an anonymous namespace: another file may have one of the same name
};

struct Module {
  const char* ptx;  // file name
  const Site* sites;
  unsigned function_sites;  // sites 0 ... function_sites-1 are in device functions
  const Kernel* kernels;
  unsigned kernel_count;
  const Variable* variables;
  unsigned variable_count;
};

// Called by static initialisers of generated code.
struct Registration {
  explicit Registration(const Module&);
};

// nullptr if there is none, or if several files have an internal one of this name: which is meant is not known here. In the
// names of anonymous namespaces the hashes, which depend on how nvcc was called, are ignored.
const Kernel* find_kernel(const char* mangled);
const Variable* find_variable(const char* name);
// The variable that holds an address, or nullptr.
const Variable* variable_at(uintptr_t address);

}  // namespace qkv::emulation

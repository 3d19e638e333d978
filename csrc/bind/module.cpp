// The extension module qkv._cpu.
#include "bind/bind.h"

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of qkv. Private: use qkv.ops, where the functions are documented.";
  qkv::bind_runtime(m);
  qkv::bind_packed_weight(m);
  qkv::bind_gemm(m);
  qkv::bind_rows(m);
  qkv::bind_attention(m);
  qkv::bind_paged_write(m);
  qkv::bind_generate(m);
  qkv::bind_dlpack(m);
  qkv::bind_recording(m);
}

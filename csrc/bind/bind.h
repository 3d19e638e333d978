// The groups of bindings, one function per source file.
#pragma once
#include <pybind11/pybind11.h>

namespace qkv {

void bind_attention(pybind11::module_& m);
void bind_paged_write(pybind11::module_& m);
void bind_dlpack(pybind11::module_& m);
void bind_gemm(pybind11::module_& m);
void bind_generate(pybind11::module_& m);
void bind_packed_weight(pybind11::module_& m);
void bind_recording(pybind11::module_& m);
void bind_rows(pybind11::module_& m);
void bind_runtime(pybind11::module_& m);

}  // namespace qkv

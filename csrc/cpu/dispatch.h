// Which kernels run: the best ISA that the CPU and the operating system offer, or the one that was asked for.
#pragma once
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace qkv {

const Kernels& kernels();                // the active table
std::vector<std::string> usable_isas();  // worst first
void set_isa(const std::string& name);   // std::invalid_argument names the usable ones

}  // namespace qkv

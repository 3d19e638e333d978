// The table of one ISA's kernels, made from the list.
#include "cpu/kernels.h"

#define QKV_NAME(x) #x
#define QKV_NAME_OF(x) QKV_NAME(x)

namespace qkv {
namespace QKV_ISA {

#define KERNEL(name, Args) void name(const Args&);
#include "cpu/kernels.inc"

const Kernels table = {
    QKV_NAME_OF(QKV_ISA),
#define KERNEL(name, Args) name,
#include "cpu/kernels.inc"
};

}  // namespace QKV_ISA
}  // namespace qkv

// The table of one ISA's kernels, made from the list.
#include "cpu/kernels.h"

#define QKV_NAME(x) #x
#define QKV_NAME_OF(x) QKV_NAME(x)

namespace qkv {

#if defined(QKV_BASE_ISA)  // what this ISA has no kernel of its own for is taken from that one
namespace QKV_BASE_ISA {
#define KERNEL(name, Args) void name(const Args&);
#include "cpu/kernels.inc"
}  // namespace QKV_BASE_ISA
namespace QKV_ISA {
using namespace QKV_BASE_ISA;
void attention(const AttentionArgs&);
void gemm_quantized(const QuantizedGemmArgs&);
void limits(const LimitArgs&);
}  // namespace QKV_ISA
#endif

namespace QKV_ISA {

#if !defined(QKV_BASE_ISA)
#define KERNEL(name, Args) void name(const Args&);
#include "cpu/kernels.inc"
#endif

const Kernels table = {
    QKV_NAME_OF(QKV_ISA),
#define KERNEL(name, Args) name,
#include "cpu/kernels.inc"
};

}  // namespace QKV_ISA
}  // namespace qkv

// CPU features -> the best table. CPUID says what the CPU has, XGETBV whether the operating system saves the registers:
// both must agree, or the first wide instruction is an illegal one.
#include "cpu/dispatch.h"

#include <atomic>
#include <stdexcept>

#if defined(QKV_X86)
#include <cpuid.h>
#endif
#if defined(QKV_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace qkv {
namespace {

#if defined(QKV_X86)
struct Features {
  bool avx2 = false, avx512 = false, avx512_bf16 = false, amx = false;
};

#if defined(QKV_EMULATE_AMX)
constexpr bool kEmulatesTiles = true;
#else
constexpr bool kEmulatesTiles = false;
#endif

// Linux keeps the tiles from a process until it asks (ARCH_REQ_XCOMP_PERM, from 5.16 on), for all its threads and children. It
// refuses where a thread has an alternate stack for signals that is too small for them (8 KB are), and such stacks from then on.
bool may_use_tiles() {
#if defined(QKV_AMX) && defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features has;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return has;
  const bool osxsave = c >> 27 & 1, avx = c >> 28 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1, popcnt = c >> 23 & 1;
  if (!osxsave || !avx) return has;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool saves_ymm = (low & 0x06) == 0x06, saves_zmm = (low & 0xe6) == 0xe6, saves_tiles = (low >> 17 & 3) == 3;
  if (!saves_ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return has;
  const unsigned most = a;  // highest subleaf
  const bool avx2 = b >> 5 & 1, bmi2 = b >> 8 & 1;
  has.avx2 = avx2 && fma && f16c && popcnt;  // 2013: Haswell; 2015: Excavator
#if defined(QKV_EMULATE_AVX512)
  has.avx512 = has.avx512_bf16 = has.amx = has.avx2 && bmi2;
  return has;
#endif
  const bool tiles = d >> 22 & 1 && d >> 24 & 1 && d >> 25 & 1;  // of bf16, at all, of int8
  const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1, vnni = c >> 11 & 1;
  has.avx512 = has.avx2 && bmi2 && saves_zmm && f && dq && bw && vl;  // 2017: Skylake-SP; 2022: Zen 4
  if (!has.avx512 || !vnni || most < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return has;
  has.avx512_bf16 = a >> 5 & 1;  // 2020: Cooper Lake; 2022: Zen 4; 2023: Sapphire Rapids
  has.amx = has.avx512_bf16 && (kEmulatesTiles || (tiles && saves_tiles && may_use_tiles()));  // 2023: Sapphire Rapids
  return has;
}
#endif

// Worst first.
const std::vector<const Kernels*>& usable() {
  static const std::vector<const Kernels*> tables = [] {
    std::vector<const Kernels*> t = {&scalar::table};
#if defined(QKV_X86)
    const Features has = detect();
    if (has.avx2) t.push_back(&avx2::table);
    if (has.avx512) t.push_back(&avx512::table);
    if (has.avx512_bf16) t.push_back(&avx512_bf16::table);
#if defined(QKV_AMX)
    if (has.amx) t.push_back(&amx::table);
#endif
#endif
    return t;
  }();
  return tables;
}

std::atomic<const Kernels*> g_active{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* active = g_active.load(std::memory_order_relaxed);
  if (!active) {
    active = usable().back();
    g_active.store(active, std::memory_order_relaxed);
  }
  return *active;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Kernels* t : usable()) names.push_back(t->isa);
  return names;
}

void set_isa(const std::string& name) {
  std::string possible;
  for (const Kernels* t : usable()) {
    if (name == t->isa) {
      g_active.store(t, std::memory_order_relaxed);
      return;
    }
    possible += std::string(possible.empty() ? "" : ", ") + t->isa;
  }
  throw std::invalid_argument("'" + name + "' is not an instruction set that this machine can run; possible: " + possible);
}

}  // namespace qkv

#include "cuda/emulation/fiber.h"

#include <stdint.h>
#include <sys/mman.h>

#include <new>
#include <vector>

#if !defined(__x86_64__)
#error "The context switch is written for x86-64: add one for this machine."
#endif

// Saves what the ABI says a callee must keep, on the stack that is left, and takes it from the stack that is entered.
extern "C" void qkv_emulation_switch(void** save, void* to);
asm(R"(
.text
.globl qkv_emulation_switch
.hidden qkv_emulation_switch
.type qkv_emulation_switch,@function
qkv_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qkv_emulation_switch, .-qkv_emulation_switch
)");

namespace qkv::emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024, kGuardBytes = 4096;

// Pages that no thread touched cost nothing, so the size is generous.
std::vector<unsigned char*> stacks;

unsigned char* map_stack() {
  void* p = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || mprotect(p, kGuardBytes, PROT_NONE) != 0) throw std::bad_alloc();
  return static_cast<unsigned char*>(p) + kGuardBytes;
}

}  // namespace

void prepare(Fiber& fiber, unsigned slot, void (*entry)()) {
  while (stacks.size() <= slot) stacks.push_back(map_stack());
  void** top = reinterpret_cast<void**>(stacks[slot] + kStackBytes);
  *--top = nullptr;  // a return address for entry, which keeps its stack aligned and ends back traces
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  fiber.stack_pointer = top;
}

void switch_fiber(Fiber& from, const Fiber& to) { qkv_emulation_switch(&from.stack_pointer, to.stack_pointer); }

bool in_stack(unsigned slot, const void* address) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(address), base = reinterpret_cast<uintptr_t>(stacks[slot]);
  return a >= base && a < base + kStackBytes;
}

}  // namespace qkv::emulation

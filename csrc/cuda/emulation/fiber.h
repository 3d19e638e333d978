// Fibers: one call stack a CUDA thread, switched by hand, so that a thousand threads of a block take turns on one CPU thread.
#pragma once
#include <stddef.h>

namespace qkv::emulation {

struct Fiber {
  void* stack_pointer = nullptr;  // where it stopped; its callee-saved registers lie there
};

// Makes `fiber` start in `entry` when it is switched to for the first time. `slot` picks the stack: slots are mapped once, with a
// guard page below, and used again for every block. `entry` must never return.
void prepare(Fiber& fiber, unsigned slot, void (*entry)());

// Stops here, goes on in `to`, returns when somebody switches back to `from`.
void switch_fiber(Fiber& from, const Fiber& to);

// Whether an address lies in the stack of a slot: local memory of that thread.
bool in_stack(unsigned slot, const void* address);

}  // namespace qkv::emulation

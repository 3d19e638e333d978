// Device memory, the shared memory of blocks, and every load and store of a kernel.
//
// Generic and global addresses are addresses of this process. Device memory lies in one arena, every allocation in pages of its
// own, so that each access can be checked against the allocation it falls into. Shared memory of the block of rank r in its
// cluster lies at window + (r + 1) * kSharedStride; the 32-bit address of shared memory is the offset in the own block's window,
// or, with (r + 1) * kSharedStride added, in that of block r.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace qkv::emulation {

constexpr uint32_t kSharedStride = 1 << 24;
constexpr uint32_t kSharedStart = 1024;      // below, the hardware keeps its own; nothing of a kernel lies there
constexpr unsigned kMaxShared = 227 * 1024;  // of a block, static and dynamic
constexpr unsigned kMaxClusterBlocks = 16;
constexpr size_t kDeviceBytes = size_t{8} << 30;

// Allocates device memory: 256-byte aligned and no more, poisoned with 0xFF (NaN of every float type). nullptr: no more left.
void* device_allocate(size_t bytes);
// false: not the start of an allocation.
bool device_free(void* data);
size_t device_bytes_used();

// What the checker knows of an allocation's words.
struct Shadow {
  struct GlobalCell* cells = nullptr;    // nullptr: nothing, it was made while the checker was off
  unsigned char* initialised = nullptr;  // a bit a byte
  uint64_t made_at = 0;                  // unchecked_launches() then
  size_t words = 0;
};
struct Allocation {
  uint64_t base;
  size_t bytes;
  bool live;
  Shadow shadow;
};
// Launches without the checker. What they wrote is not known, so that an older shadow cannot tell what is uninitialised.
uint64_t unchecked_launches();

// The allocation in whose pages an address lies (it may have been freed), or nullptr.
Allocation* allocation_at(uint64_t address);
// What the host copied or set is initialised; throws nothing.
void host_wrote(const void* data, size_t bytes);
void host_forgot(const void* data, size_t bytes);  // nobody has written it
// Same, from a copy between device buffers.
void host_copied(const void* to, const void* from, size_t bytes);

// The window of a block.
unsigned char* shared_window(unsigned rank);
// For a block that starts: nothing is known of the contents, which are 0xFF.
void poison_shared(unsigned rank);
// Which bytes may be used, for the launch that runs.
void lay_out_shared();

struct SharedPlace {
  unsigned rank;
  uint32_t offset;
};
// The place of a 32-bit shared address of the current thread.
SharedPlace shared_place(uint32_t address);
// Where `bytes` at a shared address lie; a fault unless they are `alignment`-aligned and inside an array of the kernel.
unsigned char* shared_bytes(uint32_t address, unsigned bytes, unsigned alignment);
// The same for global memory. A thread of a dependent launch must have waited.
unsigned char* global_bytes(uint64_t address, unsigned bytes, unsigned alignment);
// Nothing happens but the checks of the address.
void prefetch_global(int site, uint64_t address, unsigned bytes);
uint64_t shared_to_generic(uint32_t address);
uint32_t generic_to_shared(uint64_t address);
bool is_shared(uint64_t generic);
uint32_t dynamic_shared_address();

// Loads and stores of 1, 2, 4, 8 or 16 bytes. `generic` finds out whose memory it is.
template <int kBytes>
void load_global(int site, void* to, uint64_t address);
template <int kBytes>
void load_read_only(int site, void* to, uint64_t address);  // ld.global.nc
template <int kBytes>
void store_global(int site, const void* from, uint64_t address);
template <int kBytes>
void load_shared(int site, void* to, uint32_t address);
template <int kBytes>
void store_shared(int site, const void* from, uint32_t address);
template <int kBytes>
void load_generic(int site, void* to, uint64_t address);
template <int kBytes>
void store_generic(int site, const void* from, uint64_t address);

// Where to read or write for an atomic, volatile, relaxed, acquire or release access at a generic address. Others may run first;
// a thread that does this for ever while `spinning` is a fault.
unsigned char* synchronising_bytes(int site, uint64_t address, unsigned bytes, bool reads, bool writes, bool acquires,
                                   bool releases, bool spinning);
// The same for an exchange whose result nobody looks at: what is there need not have been written.
unsigned char* exchanging_bytes(int site, uint64_t address, unsigned bytes, bool acquires, bool releases);

}  // namespace qkv::emulation

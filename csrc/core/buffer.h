// The buffer pool: 64-byte aligned memory for outputs and scratch, recycled when it is given back.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace qkv {

constexpr size_t kAlignment = 64;

// Returns at least `bytes` bytes, aligned to 64, contents unspecified. Throws std::bad_alloc.
void* buffer_acquire(size_t bytes);
// Takes back what buffer_acquire returned; nullptr is fine.
void buffer_release(void* data);

// The same for what lives long, weights: small pieces lie together, in huge pages if the system leaves that to programs.
void* lasting_acquire(size_t bytes);
void lasting_release(void* data, size_t bytes);  // bytes: as acquired

struct BufferStats {
  size_t cached_bytes;   // waiting for reuse
  size_t limit_bytes;    // most that is kept waiting
  size_t lasting_bytes;  // of what small lasting pieces are cut from
};
BufferStats buffer_stats();
// Frees all that is cached, and what of slabs is not in use.
void buffer_trim();

// While it is open in a thread, what the thread acquires is the arena's: given back, it waits there and nowhere else, until the
// arena is gone. So memory that a series of calls uses can be used again by the same series later, and by no one else.
class Arena {
 public:
  Arena();
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  void open();  // in this thread
  void close();

 private:
  struct ArenaBlocks* blocks_;
};

// Scratch memory for the time of one call.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : data_(bytes ? buffer_acquire(bytes) : nullptr) {}
  ~Scratch() { buffer_release(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
};

}  // namespace qkv

// The memory of one recording. What its calls allocate while they are recorded is the arena's: given back, it serves later calls
// of the same recording, whose stream orders them, and nobody else, for as long as the recording or an array in it lives. So a
// replay finds its memory as it was, and allocates none. The twin of qkv::Arena (core/buffer.h).
#pragma once
#include <stddef.h>

#include <map>
#include <mutex>
#include <vector>

#include "cuda/runtime.h"

namespace qkv::cuda {

class Arena {
 public:
  // Of the current device. Memory comes from the pool and goes back to it in the order of `home`, a stream that does not capture:
  // memory that is allocated in a capture would be the graph's, new in each launch.
  explicit Arena(Stream home);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  Stream home() const { return home_; }
  int device() const { return device_; }
  void* acquire(size_t bytes, const char* op);
  // What has used `data` meanwhile, beside replays and `home`, is in `others`.
  void give_back(void* data, const std::vector<Stream>& others);
  // Nothing is recorded any more: what is given back from here on waits unused.
  void close();
  // Where memory that was given back may still be in use, which the next replay must wait for; each is told once.
  std::vector<Stream> take_readers();
  // A replay runs there: its memory goes back after it.
  void used_in(Stream stream);

 private:
  Stream home_;
  int device_;
  std::mutex mutex_;
  bool open_ = true;
  std::map<void*, size_t> blocks_;
  std::multimap<size_t, void*> idle_;
  std::vector<Stream> readers_, users_;
};

}  // namespace qkv::cuda

// Kernel calls that can be made again, as one call: what a decoding step of a model is between two tokens.
//
// While a thread records, each of its kernel calls is made and noted, with its arguments. They are made again over the same
// memory: whoever records keeps the arrays alive that the calls read and write, and changes what is in them between two replays.
// Of integers, ids, positions, slots, kv_lengths and block tables are read again (LiveInts in array.h); all other arguments stay
// what they were. What NumPy does meanwhile is not seen. What a call allocates comes from an arena (core/buffer.h) that lives as
// long as the recording.
#pragma once
#include <functional>
#include <utility>
#include <vector>

#include "bind/gil.h"
#include "core/buffer.h"

namespace qkv {

class Recording {
 public:
  Recording() = default;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  // While there is one, its thread records.
  class Open {
   public:
    explicit Open(Recording* r);  // throws std::logic_error if the thread records already
    ~Open();
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;
  };

  void note(std::function<void()> call) { calls_.push_back(std::move(call)); }
  void spoil() { complete_ = false; }
  // Whether all kernel calls could be noted.
  bool complete() const { return complete_; }
  size_t size() const { return calls_.size(); }
  void replay() const {
    for (const auto& call : calls_) call();
  }

 private:
  std::vector<std::function<void()>> calls_;
  Arena arena_;
  bool complete_ = true;
};

// Of this thread, or nullptr.
Recording* current_recording();

// Makes a kernel call without the GIL, and notes it where the thread records: `again`, which reads anew what may have changed
// since. What that holds must live as long as it does; Python objects that it holds to keep memory it must not touch: even
// py::array::itemsize() counts references.
template <class Call, class Again>
void launch(const Call& call, const Again& again) {
  if (Recording* r = current_recording()) r->note(again);
  const Unlocked unlocked;
  call();
}
template <class Call>
void launch(const Call& call) {
  launch(call, call);
}

// Said of what cannot be made again.
inline void unrecorded() {
  if (Recording* r = current_recording()) r->spoil();
}

// Releases the GIL for a call that cannot be made again.
class UnlockedOnce {
 public:
  UnlockedOnce() { unrecorded(); }

 private:
  Unlocked unlocked_;
};

}  // namespace qkv

// The memory of one recording.
#include "cuda/arena.h"

#include <algorithm>

namespace qkv::cuda {
namespace {

constexpr size_t kUnit = 512;        // as the pool rounds
constexpr size_t kSmall = 64 << 10;  // blocks of which it does not matter how much is used

void add(std::vector<Stream>* to, Stream stream) {
  if (std::find(to->begin(), to->end(), stream) == to->end()) to->push_back(stream);
}

}  // namespace

Arena::Arena(Stream home) : home_(home), device_(current_device()) {}

Arena::~Arena() {
  for (const Stream s : readers_) add(&users_, s);
  join(device_, home_, users_.data(), users_.size());
  for (const auto& block : blocks_) release(block.first, device_, home_, nullptr, 0);
}

void* Arena::acquire(size_t bytes, const char* op) {
  const size_t size = (bytes + kUnit - 1) / kUnit * kUnit;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = idle_.lower_bound(size);
    if (it != idle_.end() && it->first <= std::max(2 * size, kSmall)) {
      void* const data = it->second;
      idle_.erase(it);
      return data;
    }
  }
  void* const data = allocate(size, home_, op);
  const std::lock_guard<std::mutex> lock(mutex_);
  blocks_[data] = size;
  return data;
}

void Arena::give_back(void* data, const std::vector<Stream>& others) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Stream s : others) add(&readers_, s);
  if (open_) idle_.emplace(blocks_.at(data), data);
}

void Arena::close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  open_ = false;
}

std::vector<Stream> Arena::take_readers() {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Stream s : readers_) add(&users_, s);
  std::vector<Stream> taken;
  taken.swap(readers_);
  return taken;
}

void Arena::used_in(Stream stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  add(&users_, stream);
}

}  // namespace qkv::cuda

#include "bind/block_pool.h"

#include <algorithm>
#include <unordered_map>

namespace qkv {

void BlockPool::grow(int64_t blocks) {
  const auto before = static_cast<int32_t>(references_.size());
  references_.resize(static_cast<size_t>(blocks));
  std::vector<int32_t> fresh;
  for (auto block = static_cast<int32_t>(blocks); block-- > before;) fresh.push_back(block);
  free_.insert(free_.begin(), fresh.begin(), fresh.end());
}

int64_t BlockPool::needed(const std::vector<BlockList*>& lists, const std::vector<int64_t>& counts) const {
  int64_t blocks = 0;
  std::unordered_map<int32_t, int32_t> owners;  // of a block, once lists before have moved away
  for (size_t i = 0; i < lists.size(); ++i) {
    const BlockList& list = *lists[i];
    blocks += blocks_of(list.length + counts[i]) - static_cast<int64_t>(list.blocks.size());
    if (counts[i] == 0 || list.length % size_ == 0) continue;  // no block is written to that has tokens
    const int32_t last = list.blocks.back(), all = references_[static_cast<size_t>(last)];
    if (all == 1) continue;
    int32_t& left = owners.emplace(last, all).first->second;
    if (left > 1) {
      --left;
      ++blocks;
    }
  }
  return blocks;
}

BlockPool::Added BlockPool::append(const std::vector<BlockList*>& lists, const std::vector<int64_t>& counts) {
  Added added;
  for (size_t i = 0; i < lists.size(); ++i) {
    BlockList& list = *lists[i];
    const int64_t end = list.length + counts[i];
    if (counts[i] > 0 && list.length % size_ != 0) {
      int32_t& owners = references_[static_cast<size_t>(list.blocks.back())];
      if (owners > 1) {
        --owners;
        added.from.push_back(list.blocks.back());
        list.blocks.back() = take();
        added.to.push_back(list.blocks.back());
        added.filled = std::max(added.filled, list.length % size_);
      }
    }
    while (static_cast<int64_t>(list.blocks.size()) < blocks_of(end)) list.blocks.push_back(take());
    for (int64_t token = list.length; token < end; ++token)
      added.slots.push_back(list.blocks[static_cast<size_t>(token / size_)] * size_ + token % size_);
    list.length = end;
  }
  return added;
}

bool BlockPool::count_on(const std::vector<BlockList*>& lists) const {
  for (const BlockList* list : lists)
    if (list->length % size_ == 0) return false;
  for (BlockList* list : lists) ++list->length;
  return true;
}

BlockList BlockPool::fork(const BlockList& list, int64_t length) {
  BlockList twin;
  twin.blocks.assign(list.blocks.begin(), list.blocks.begin() + blocks_of(length));
  twin.length = length;
  for (const int32_t block : twin.blocks) ++references_[static_cast<size_t>(block)];
  return twin;
}

void BlockPool::truncate(BlockList* list, int64_t length) {
  const auto keep = static_cast<size_t>(blocks_of(length));
  while (list->blocks.size() > keep) {
    const int32_t block = list->blocks.back();
    list->blocks.pop_back();
    if (--references_[static_cast<size_t>(block)] == 0) free_.push_back(block);
  }
  list->length = length;
}

int32_t BlockPool::take() {
  const int32_t block = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(block)] = 1;
  return block;
}

}  // namespace qkv

// Which blocks of a paged cache (PagedCache in cache.py) belong to which of its sequences: a sequence is a list of block numbers
// and a count of tokens, and a block may be in several lists, which are counted. Only numbers: tokens are elsewhere.
//
// Whether sequences are the cache's, different and not frozen is checked by the caller. For one thread at a time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace qkv {

struct BlockList {
  std::vector<int32_t> blocks;
  int64_t length = 0;  // tokens; of the last block the first ones
};

class BlockPool {
 public:
  BlockPool(int64_t block_size, int64_t blocks) : size_(block_size) { grow(blocks); }

  int64_t blocks() const { return static_cast<int64_t>(references_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  int64_t references(int64_t block) const { return references_.at(static_cast<size_t>(block)); }

  // More blocks, which are taken after those that are free already.
  void grow(int64_t blocks);

  // Room for counts[i] more tokens of list i, all different lists. A list that shares the block that it would write to moves to a
  // copy: tokens 0 ... filled - 1 of from[i] are to be copied to to[i].
  struct Added {
    std::vector<int64_t> slots, from, to;  // slots: block * block_size + place
    int64_t filled = 0;
  };
  // How many blocks that takes.
  int64_t needed(const std::vector<BlockList*>& lists, const std::vector<int64_t>& counts) const;
  Added append(const std::vector<BlockList*>& lists, const std::vector<int64_t>& counts);

  // One more token of each list, if their last blocks have room: else nothing, and false. Whether blocks are shared is not asked.
  bool count_on(const std::vector<BlockList*>& lists) const;

  // A second owner of the first `length` tokens.
  BlockList fork(const BlockList& list, int64_t length);
  void truncate(BlockList* list, int64_t length);

  struct State {
    int64_t size;
    std::vector<int32_t> references, free;
  };
  State state() const { return {size_, references_, free_}; }
  explicit BlockPool(State s) : size_(s.size), references_(std::move(s.references)), free_(std::move(s.free)) {}

 private:
  int64_t blocks_of(int64_t tokens) const { return (tokens + size_ - 1) / size_; }
  int32_t take();

  int64_t size_;
  std::vector<int32_t> references_;  // of each block
  std::vector<int32_t> free_;        // a stack: what was used last is still in a CPU cache
};

}  // namespace qkv

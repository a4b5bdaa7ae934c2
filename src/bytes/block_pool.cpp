#include "penstock/bytes/block_pool.h"

#include <new>

namespace penstock {

BlockPool::~BlockPool() {
  while (free_ != nullptr) {
    Block* block = free_;
    free_ = block->next;
    deallocate(block);
  }
}

Block* BlockPool::allocate() {
  Block* block = ::new (::operator new(kBlockSize)) Block;
  block->begin = block->end = block->payload();
  block->room = kPayloadSize;
  block->charge = kBlockSize;
  return block;
}

void BlockPool::deallocate(Block* block) noexcept { ::operator delete(block, kBlockSize); }

}  // namespace penstock

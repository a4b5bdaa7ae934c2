#include "penstock/bytes/block_pool.h"

#include <new>
#include <span>
#include <utility>

namespace penstock {

BlockPool::~BlockPool() {
  while (free_ != nullptr) {
    Block* block = free_;
    free_ = block->next;
    deallocate(block);
  }
  while (free_messages_ != nullptr) {
    auto* node = static_cast<MessageNode*>(free_messages_);
    free_messages_ = node->next;
    delete node;
  }
}

Block* BlockPool::allocate() {
  Block* block = ::new (::operator new(kBlockSize)) Block;
  block->begin = block->end = block->payload();
  block->room = kPayloadSize;
  block->charge = kBlockSize;
  return block;
}

void MessageNode::hold(SharedBytes&& bytes, Sharing sharing) noexcept {
  payload = std::move(bytes);
  begin = payload.bytes().data();
  end = begin + payload.size();
  shared_charge = sharing == Sharing::together ? payload.charge() : 0;
  charge = sizeof(MessageNode) + payload.charge();
}

MessageNode* BlockPool::acquire_message() {
  MessageNode* node = nullptr;
  if (free_messages_ != nullptr) {
    node = static_cast<MessageNode*>(free_messages_);
    free_messages_ = node->next;
    --kept_messages_;
  } else {
    node = new MessageNode;
    node->destroy = [](Block* block, BlockPool& pool) noexcept {
      pool.release_message(static_cast<MessageNode*>(block));
    };
  }
  node->next = nullptr;
  node->has_key = false;
  node->droppable = false;
  return node;
}

void BlockPool::release_message(MessageNode* node) noexcept {
  if (kept_messages_ >= kKeptMessagesMax) {
    delete node;
    return;
  }
  node->payload = SharedBytes();
  node->next = free_messages_;
  free_messages_ = node;
  ++kept_messages_;
}

void BlockPool::deallocate(Block* block) noexcept { ::operator delete(block, kBlockSize); }

}  // namespace penstock

#include "penstock/bytes/message_pool.h"

#include <algorithm>
#include <new>
#include <span>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/bytes/block_pool.h"

namespace penstock {

/// A run of nodes that were allocated together; they follow this header.
struct MessageSlab final : ListLink<SlabTag> {
  explicit MessageSlab(std::size_t its_size) noexcept : size(its_size) {}

  const std::size_t size;
  std::size_t used = 0;   // nodes that have been made
  std::size_t given = 0;  // nodes that are not free
  Block* free = nullptr;  // nodes that have been made and given back

  static constexpr std::size_t kHeader =
      (sizeof(ListLink<SlabTag>) + 4 * sizeof(std::size_t) + alignof(MessageNode) - 1) /
      alignof(MessageNode) * alignof(MessageNode);

  bool has_free() const noexcept { return given < size; }

  // One that has not been made yet is made when it is wanted: memory that nobody needs is not touched.
  MessageNode* take() noexcept {
    ++given;
    if (free != nullptr) {
      auto* node = static_cast<MessageNode*>(free);
      free = node->next;
      return node;
    }
    auto* place = reinterpret_cast<std::byte*>(this) + kHeader + used++ * sizeof(MessageNode);
    auto* node = ::new (static_cast<void*>(place)) MessageNode(*this);
    node->destroy = [](Block* block, BlockPool& pool) noexcept {
      pool.release_message(static_cast<MessageNode*>(block));
    };
    return node;
  }

  void give_back(MessageNode* node) noexcept {
    node->next = free;
    free = node;
    --given;
  }

  static void destroy(MessageSlab* slab) noexcept {
    auto* first = reinterpret_cast<std::byte*>(slab) + kHeader;
    for (std::size_t i = 0; i < slab->used; ++i)
      std::launder(reinterpret_cast<MessageNode*>(first + i * sizeof(MessageNode)))->~MessageNode();
    slab->~MessageSlab();
    ::operator delete(static_cast<void*>(slab));
  }
};

static_assert(sizeof(MessageSlab) <= MessageSlab::kHeader);

void MessageNode::hold(SharedBytes&& bytes, Sharing sharing) noexcept {
  payload = std::move(bytes);
  begin = payload.bytes().data();
  end = begin + payload.size();
  shared_charge = sharing == Sharing::together ? payload.charge() : 0;
  charge = sizeof(MessageNode) + payload.charge();
}

MessagePool::MessagePool() noexcept = default;

MessagePool::~MessagePool() {
  PENSTOCK_ASSERT(free_ == nodes_, "a message outlives its loop's pool");
  while (MessageSlab* slab = available_.pop_front())
    MessageSlab::destroy(slab);
}

// Each as large as all before together, within bounds: few allocations, and not twice the memory.
MessageSlab& MessagePool::make_slab() {
  const std::size_t size = std::clamp(nodes_, kSlabNodesMin, kSlabNodesMax);
  void* memory = ::operator new(MessageSlab::kHeader + size * sizeof(MessageNode));
  auto* slab = ::new (memory) MessageSlab(size);
  available_.push_back(*slab);
  nodes_ += size;
  free_ += size;
  return *slab;
}

MessageNode* MessagePool::acquire() {
  MessageSlab* slab = available_.front();
  if (slab == nullptr) slab = &make_slab();
  MessageNode* node = slab->take();
  --free_;
  if (!slab->has_free()) static_cast<ListLink<SlabTag>*>(slab)->unlink();
  node->next = nullptr;
  node->has_key = false;
  node->droppable = false;
  return node;
}

void MessagePool::release(MessageNode* node) noexcept {
  node->payload = SharedBytes();
  MessageSlab& slab = *node->slab;
  if (!slab.has_free()) available_.push_back(slab);
  slab.give_back(node);
  ++free_;
  if (slab.given > 0 || free_ - slab.size < kKeptMax) return;
  static_cast<ListLink<SlabTag>&>(slab).unlink();
  nodes_ -= slab.size;
  free_ -= slab.size;
  MessageSlab::destroy(&slab);
}

}  // namespace penstock

// The nodes of what is waiting to be sent: blocks of 4096 bytes, the free list that recycles them, and
// the pool of message nodes. Owner: one loop; single-threaded. It keeps a bounded number of each
// (1 MiB of blocks by default), so that a burst does not pin its memory. It refuses nothing: without
// memory it throws std::bad_alloc.
#pragma once

#include <cstddef>

#include "penstock/base/assert.h"
#include "penstock/bytes/block.h"
#include "penstock/bytes/message_pool.h"

/// @cond
// Under AddressSanitizer the payload of a block in the free list must not be touched, least of all
// by a kernel that still believes it was lent to it.
#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) static_cast<void>(0)
#endif
/// @endcond

namespace penstock {

/// A loop's supply of nodes.
class BlockPool {
 public:
  /// Memory of one block, header included.
  static constexpr std::size_t kBlockSize = 4096;
  /// Bytes of payload that one block has room for.
  static constexpr std::size_t kPayloadSize = kBlockSize - sizeof(Block);
  /// Free blocks kept by default: 1 MiB.
  static constexpr std::size_t kKeptBlocksMax = 256;

  /// Keeps up to `kept_blocks_max` free blocks; what is released beyond goes back to the system.
  explicit BlockPool(std::size_t kept_blocks_max = kKeptBlocksMax) noexcept
      : kept_blocks_max_(kept_blocks_max) {}
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  /// Frees what is kept. All message nodes have been released; blocks still in use may be released to
  /// another pool.
  ~BlockPool();

  /// A block without bytes and with kPayloadSize of room. Throws std::bad_alloc, with nothing
  /// changed.
  Block* acquire() {
    Block* block = free_;
    if (block == nullptr) return allocate();
    free_ = block->next;
    --kept_blocks_;
    ASAN_UNPOISON_MEMORY_REGION(block->payload(), kPayloadSize);
    block->next = nullptr;
    block->begin = block->end = block->payload();
    block->room = kPayloadSize;
    return block;
  }

  /// Takes back a block that some pool handed out.
  void release(Block* block) noexcept {
    PENSTOCK_ASSERT(block->destroy == nullptr, "the node does not belong to a pool");
    if (kept_blocks_ >= kept_blocks_max_) {
      deallocate(block);
      return;
    }
    block->next = free_;
    free_ = block;
    ++kept_blocks_;
    ASAN_POISON_MEMORY_REGION(block->payload(), kPayloadSize);
  }

  /// As MessagePool::acquire().
  MessageNode* acquire_message() { return messages_.acquire(); }
  /// As MessagePool::release().
  void release_message(MessageNode* node) noexcept { messages_.release(node); }

  /// Free blocks at hand.
  std::size_t kept_blocks() const noexcept { return kept_blocks_; }
  /// Free message nodes at hand.
  std::size_t kept_messages() const noexcept { return messages_.kept(); }

 private:
  static Block* allocate();
  static void deallocate(Block* block) noexcept;

  Block* free_ = nullptr;
  std::size_t kept_blocks_ = 0;
  const std::size_t kept_blocks_max_;
  MessagePool messages_;
};

}  // namespace penstock

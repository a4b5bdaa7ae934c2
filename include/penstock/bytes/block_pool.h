// Blocks of 4096 bytes for what is waiting to be sent, and the free list that recycles them.
// Owner: one loop; single-threaded. It keeps a bounded number of blocks (1 MiB by default), so that
// a burst does not pin its memory. It refuses nothing: without memory it throws std::bad_alloc.
#pragma once

#include <cstddef>

#include "penstock/base/assert.h"

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

/// A node of OutputQueue: a run of bytes, [begin, end), and who owns them. It never moves, and it
/// is never empty while it is in a queue. Pool blocks and exactly sized nodes keep the bytes right
/// behind this header; other nodes hold a string, a vector or a share in a SharedBytes.
struct Block {
  Block* next = nullptr;             ///< The next node of the queue or free list.
  const std::byte* begin = nullptr;  ///< The first byte not consumed.
  const std::byte* end = nullptr;    ///< One past the last byte written.
  std::size_t room = 0;              ///< Bytes that may still be written at `end`.
  std::size_t charge = 0;            ///< Memory held by the node, itself included.
  std::size_t shared_charge = 0;     ///< The part of it that other queues hold too.
  void (*destroy)(Block*) noexcept =
      nullptr;  ///< Frees the node; nullptr: it belongs to a BlockPool.

  /// Bytes not consumed.
  std::size_t size() const noexcept { return static_cast<std::size_t>(end - begin); }

  /// The bytes right behind the header; for nodes that were allocated with such bytes.
  std::byte* payload() noexcept { return reinterpret_cast<std::byte*>(this + 1); }
};

/// A loop's supply of blocks.
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
  /// Frees the kept blocks. Blocks still in use may be released to another pool only.
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

  /// Free blocks at hand.
  std::size_t kept_blocks() const noexcept { return kept_blocks_; }

 private:
  static Block* allocate();
  static void deallocate(Block* block) noexcept;

  Block* free_ = nullptr;
  std::size_t kept_blocks_ = 0;
  const std::size_t kept_blocks_max_;
};

}  // namespace penstock

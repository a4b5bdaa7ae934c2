// The nodes of what is waiting to be sent: blocks of 4096 bytes, and nodes that share a payload; and
// the free lists that recycle them. Owner: one loop; single-threaded. It keeps a bounded number of
// each (1 MiB of blocks by default), so that a burst does not pin its memory. It refuses nothing:
// without memory it throws std::bad_alloc.
#pragma once

#include <cstddef>
#include <cstdint>

#include "penstock/base/assert.h"
#include "penstock/base/intrusive_list.h"
#include "penstock/bytes/shared_bytes.h"

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

class BlockPool;
struct MessageTag;

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
  /// Frees the node, with the loop's pool at hand; nullptr: it is one of the pool's blocks.
  void (*destroy)(Block*, BlockPool&) noexcept = nullptr;

  /// Bytes not consumed.
  std::size_t size() const noexcept { return static_cast<std::size_t>(end - begin); }

  /// The bytes right behind the header; for nodes that were allocated with such bytes.
  std::byte* payload() noexcept { return reinterpret_cast<std::byte*>(this + 1); }
};

/// Who charges the memory of a payload: every queue it is in, or all of them together
/// (SharedBytes::charge_once).
enum class Sharing : std::uint8_t { alone, together };

/// A node that shares its payload: a whole message, in a MessageQueue or in an OutputQueue.
struct MessageNode final : Block, ListLink<MessageTag> {
  SharedBytes payload{};   ///< Its bytes; empty in the free list.
  std::uint64_t key = 0;   ///< What MessageOptions said.
  bool has_key = false;    ///< Whether it did.
  bool droppable = false;  ///< Whether a policy may drop it.

  /// Takes over bytes, in place of any before.
  void hold(SharedBytes&& bytes, Sharing sharing) noexcept;
};

/// A loop's supply of nodes.
class BlockPool {
 public:
  /// Memory of one block, header included.
  static constexpr std::size_t kBlockSize = 4096;
  /// Bytes of payload that one block has room for.
  static constexpr std::size_t kPayloadSize = kBlockSize - sizeof(Block);
  /// Free blocks kept by default: 1 MiB.
  static constexpr std::size_t kKeptBlocksMax = 256;
  /// Free message nodes kept: a broadcast to as many connections allocates none of them.
  static constexpr std::size_t kKeptMessagesMax = 16'384;

  /// Keeps up to `kept_blocks_max` free blocks; what is released beyond goes back to the system.
  explicit BlockPool(std::size_t kept_blocks_max = kKeptBlocksMax) noexcept
      : kept_blocks_max_(kept_blocks_max) {}
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  /// Frees what is kept. Nodes still in use may be released to another pool only.
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

  /// A node without a payload. Throws std::bad_alloc.
  MessageNode* acquire_message();

  /// Takes back a node that some pool handed out, and gives up its share in the payload.
  void release_message(MessageNode* node) noexcept;

  /// Free blocks at hand.
  std::size_t kept_blocks() const noexcept { return kept_blocks_; }
  /// Free message nodes at hand.
  std::size_t kept_messages() const noexcept { return kept_messages_; }

 private:
  static Block* allocate();
  static void deallocate(Block* block) noexcept;

  Block* free_ = nullptr;
  Block* free_messages_ = nullptr;
  std::size_t kept_blocks_ = 0;
  std::size_t kept_messages_ = 0;
  const std::size_t kept_blocks_max_;
};

}  // namespace penstock

// The nodes of whole messages, and the slabs they are cut from: filling the queues of peers that do
// not read takes few allocations, however many messages wait. Owner: one loop, by its BlockPool;
// single-threaded. A slab goes back to the system when all its nodes are free and as many as may be
// kept are free elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>

#include "penstock/base/intrusive_list.h"
#include "penstock/bytes/block.h"
#include "penstock/bytes/shared_bytes.h"

namespace penstock {

struct MessageTag;
struct SlabTag;
struct MessageSlab;

/// Who charges the memory of a payload: every queue it is in, or all of them together
/// (SharedBytes::charge_once).
enum class Sharing : std::uint8_t { alone, together };

/// A node that shares its payload: a whole message, in a MessageQueue or in an OutputQueue.
struct MessageNode final : Block, ListLink<MessageTag> {
  /// A free node of that slab.
  explicit MessageNode(MessageSlab& its_slab) noexcept : slab(&its_slab) {}

  SharedBytes payload{};   ///< Its bytes; empty while it is free.
  std::uint64_t key = 0;   ///< What MessageOptions said.
  bool has_key = false;    ///< Whether it did.
  bool droppable = false;  ///< Whether a policy may drop it.
  MessageSlab* slab;       ///< Where it was cut from.

  /// Takes over bytes, in place of any before.
  void hold(SharedBytes&& bytes, Sharing sharing) noexcept;
};

/// A loop's supply of message nodes.
class MessagePool {
 public:
  /// Free nodes kept: a broadcast to as many connections allocates none of them.
  static constexpr std::size_t kKeptMax = 16'384;

  /// Empty: nothing is allocated before the first node is wanted.
  MessagePool() noexcept;
  MessagePool(const MessagePool&) = delete;
  MessagePool& operator=(const MessagePool&) = delete;
  /// All nodes have been released.
  ~MessagePool();

  /// A node without a payload, not droppable. Throws std::bad_alloc, with nothing changed.
  MessageNode* acquire();
  /// Takes back a node of this pool, and gives up its share in the payload.
  void release(MessageNode* node) noexcept;

  /// Free nodes at hand.
  std::size_t kept() const noexcept { return free_; }

 private:
  static constexpr std::size_t kSlabNodesMin = 64;
  static constexpr std::size_t kSlabNodesMax = 8192;  // about 1 MiB

  MessageSlab& make_slab();

  IntrusiveList<MessageSlab, SlabTag> available_;  // those with free nodes
  std::size_t nodes_ = 0;
  std::size_t free_ = 0;
};

}  // namespace penstock

// What the queues of output are made of. Owner: the queue it is in, or the pool it is free in.
#pragma once

#include <cstddef>

namespace penstock {

class BlockPool;

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

}  // namespace penstock

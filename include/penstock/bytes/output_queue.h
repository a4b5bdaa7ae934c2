// What a connection still has to send: a first-in first-out chain of immovable nodes.
// Owner: one connection; single-threaded. It refuses to limit itself: the caller compares charge()
// and charge_of...() with its caps before it appends.
//
// Rules
//   1. Bytes given out by front() stay where they are, unchanged, until they are consumed, whatever
//   is
//      appended meanwhile: a completion kernel reads them after front() has returned.
//   2. An append either happens whole or, with std::bad_alloc, not at all; a payload that was to be
//      moved is then unmoved.
//   3. No node is empty. A node is freed by the consume() that takes its last byte, so an empty
//   queue
//      owns no memory.
//   4. The BlockPool passed in is always the same one: the loop's.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "penstock/base/assert.h"
#include "penstock/bytes/block_pool.h"
#include "penstock/bytes/shared_bytes.h"

namespace penstock {

/// A message in up to three pieces, lent: what a codec puts before and behind a payload need not be
/// copied together with it.
struct MessageParts {
  std::span<const std::byte> head{};  ///< What comes first.
  std::span<const std::byte> body{};  ///< Then this.
  std::span<const std::byte> tail{};  ///< This last.

  /// Bytes of all pieces; sizes that overflow answer the largest size_t.
  std::size_t size() const noexcept {
    constexpr std::size_t kLargest = std::numeric_limits<std::size_t>::max();
    const std::size_t ends = head.size() + tail.size();
    return body.size() > kLargest - ends ? kLargest : body.size() + ends;
  }
  /// Drops the first `n` bytes; n <= size().
  void drop_front(std::size_t n) noexcept {
    for (std::span<const std::byte>* piece : {&head, &body, &tail}) {
      const std::size_t here = n < piece->size() ? n : piece->size();
      *piece = piece->subspan(here);
      n -= here;
    }
  }
};

/// The bytes a connection has accepted and not yet handed to the kernel.
class OutputQueue {
 public:
  OutputQueue() = default;
  OutputQueue(const OutputQueue&) = delete;
  OutputQueue& operator=(const OutputQueue&) = delete;
  /// The queue must be empty: call clear() first, it needs the pool.
  ~OutputQueue() { PENSTOCK_ASSERT(head_ == nullptr, "clear() the queue before it goes"); }

  /// Whether nothing is queued.
  bool empty() const noexcept { return head_ == nullptr; }

  /// Payload bytes queued.
  std::size_t bytes() const noexcept { return bytes_; }

  /// Memory held: of each node the header and the whole capacity; a SharedBytes counts in full, in
  /// every queue that it is in. The allocator's own overhead is not counted.
  std::size_t charge() const noexcept { return charge_; }

  /// The same without the payloads of SharedBytes, which are charged once for all queues.
  std::size_t owned_charge() const noexcept { return charge_ - shared_charge_; }

  /// Appends a copy. What fits goes into the room of the last block; of the rest, up to
  /// BlockPool::kPayloadSize bytes go into one new block. A larger payload goes as a whole into one
  /// node of exactly its size. Throws std::bad_alloc (rule 2).
  void append_copy(BlockPool& pool, std::span<const std::byte> payload) {
    const std::size_t size = payload.size();
    if (size == 0) return;
    if (size > room()) {
      if (head_ != nullptr || size > BlockPool::kPayloadSize) {
        append_copy_elsewhere(pool, payload);
        return;
      }
      link(pool.acquire());
    }
    write(payload.data(), size);
  }

  /// Appends a copy of the pieces, one behind the other: as append_copy() of all of them in one.
  void append_parts(BlockPool& pool, const MessageParts& pieces);

  /// Appends the payload itself, whatever its size; an empty one adds nothing. Throws
  /// std::bad_alloc (rule 2). For a small payload append_copy() is cheaper, in time and in memory.
  void append(std::string&& payload);
  void append(std::vector<std::byte>&& payload);
  void append(BlockPool& pool, SharedBytes&& payload);
  /// Appends a message that has been waiting elsewhere. Never fails.
  void append(MessageNode* message) noexcept {
    link(message);
    bytes_ += message->size();
  }

  /// By how much append_copy() of `size` bytes would raise charge(), at this moment. Exact; sizes
  /// that overflow answer the largest size_t.
  std::size_t charge_of_copy(std::size_t size) const noexcept {
    if (size <= room()) return 0;
    if (size <= BlockPool::kPayloadSize) return BlockPool::kBlockSize;
    constexpr std::size_t kLargest = std::numeric_limits<std::size_t>::max();
    return size > kLargest - sizeof(Block) ? kLargest : size + sizeof(Block);
  }

  /// By how much append() of this payload would raise charge(). Exact.
  static std::size_t charge_of(const std::string& payload) noexcept;
  static std::size_t charge_of(const std::vector<std::byte>& payload) noexcept;
  static std::size_t charge_of(const SharedBytes& payload) noexcept;
  /// By how much append() of this payload would raise owned_charge(). Exact.
  static std::size_t owned_charge_of(const SharedBytes& payload) noexcept;

  /// Describes the first bytes of the queue, node by node, in up to out.size() entries, and returns
  /// how many it filled in. The bytes are lent under rule 1, and only to be read.
  std::size_t front(std::span<iovec> out) const noexcept {
    std::size_t used = 0;
    for (const Block* block = head_; block != nullptr && used < out.size(); block = block->next) {
      out[used].iov_base = const_cast<std::byte*>(block->begin);
      out[used].iov_len = block->size();
      ++used;
    }
    return used;
  }

  /// The first `n` bytes (n <= bytes()) have been sent: forgets them, and frees each node that is
  /// finished by it at once. Never allocates.
  void consume(BlockPool& pool, std::size_t n) noexcept {
    PENSTOCK_ASSERT(n <= bytes_, "more consumed than queued");
    bytes_ -= n;
    while (n > 0) {
      const std::size_t size = head_->size();
      if (n < size) {
        head_->begin += n;
        return;
      }
      n -= size;
      drop_head(pool);
    }
  }

  /// Drops everything, what is lent included: nobody may be reading it any more.
  void clear(BlockPool& pool) noexcept { consume(pool, bytes_); }

 private:
  template <class Payload>
  struct HoldingNode;

  template <class Payload>
  void append_holding(Payload& payload);
  void append_copy_elsewhere(BlockPool& pool, std::span<const std::byte> payload);
  void write_through(Block* next, const MessageParts& pieces) noexcept;

  /// Bytes that fit behind the last ones without a new node.
  std::size_t room() const noexcept { return tail_ == nullptr ? 0 : tail_->room; }

  /// Makes `block` the last node; its bytes are counted by the caller, or by write().
  void link(Block* block) noexcept {
    (head_ == nullptr ? head_ : tail_->next) = block;
    tail_ = block;
    charge_ += block->charge;
    shared_charge_ += block->shared_charge;
  }

  /// Copies into the room of the last node; 0 < size <= room().
  void write(const std::byte* data, std::size_t size) noexcept {
    // Only a node that owns writable bytes behind `end` has room, so the cast undoes our own const.
    std::memcpy(const_cast<std::byte*>(tail_->end), data, size);
    tail_->end += size;
    tail_->room -= size;
    bytes_ += size;
  }

  void drop_head(BlockPool& pool) noexcept {
    Block* block = head_;
    head_ = block->next;
    if (head_ == nullptr) tail_ = nullptr;
    charge_ -= block->charge;
    shared_charge_ -= block->shared_charge;
    if (block->destroy == nullptr) {
      pool.release(block);
    } else {
      block->destroy(block, pool);
    }
  }

  Block* head_ = nullptr;
  Block* tail_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t charge_ = 0;
  std::size_t shared_charge_ = 0;
};

static_assert(sizeof(OutputQueue) <= 40, "every connection has one");

}  // namespace penstock

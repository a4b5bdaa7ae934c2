// Whole messages that wait behind an OutputQueue for a peer that does not keep up. What has moved on
// to the OutputQueue leaves as it is; what waits here can still be dropped, replaced or overtaken,
// but only as a whole.
// Owner: one connection; single-threaded. It refuses to limit itself but for what may be dropped:
// the caller compares charge() with its caps.
//
// Rules
//   1. A message is never cut. Those of a lane leave in the order in which they were pushed, except
//      that one with a key takes the place of the one it replaces.
//   2. The control lane leaves first, and nothing of it is ever dropped; nor is what was pushed as
//      not droppable.
//   3. The BlockPool passed in is always the same one: the loop's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>

#include "penstock/base/intrusive_list.h"
#include "penstock/bytes/block_pool.h"
#include "penstock/bytes/shared_bytes.h"

namespace penstock {

/// What becomes of messages for a peer that does not keep up, once as much waits as may
/// (ConnectionLimits::backlog_max).
enum class SlowConsumer : std::uint8_t {
  disconnect,   ///< The connection ends with `overflow`.
  reject,       ///< The new message is refused, and its sender told (`full`).
  drop_oldest,  ///< Messages that have waited longest are dropped, until the new one fits.
  drop_newest,  ///< The new message is dropped.
  /// A message with a key takes the place of the one with the same key that still waits, at once and
  /// not only when there is no room. Else as drop_oldest.
  keep_latest,
};

/// Which messages leave first.
enum class Lane : std::uint8_t {
  normal,   ///< In order, subject to the SlowConsumer policy.
  control,  ///< Before all that waits in the normal lane, and never dropped: heartbeats, errors.
};

/// How a message is to be treated while it waits.
struct MessageOptions {
  /// Says what it is about; see SlowConsumer::keep_latest.
  std::optional<std::uint64_t> key{};
  /// Which lane it takes.
  Lane lane = Lane::normal;
};

/// The messages of one connection that wait.
class MessageQueue {
 public:
  MessageQueue() = default;
  MessageQueue(const MessageQueue&) = delete;
  MessageQueue& operator=(const MessageQueue&) = delete;
  /// The queue must be empty: call clear() first, it needs the pool.
  ~MessageQueue() { PENSTOCK_ASSERT(empty(), "clear() the queue before it goes"); }

  /// Whether no message waits.
  bool empty() const noexcept { return normal_.empty() && control_.empty(); }
  /// Payload bytes that wait.
  std::size_t bytes() const noexcept { return bytes_; }
  /// Memory held, as OutputQueue::charge().
  std::size_t charge() const noexcept { return charge_; }
  /// The same without the payloads, which are charged once for all queues.
  std::size_t owned_charge() const noexcept { return charge_ - shared_charge_; }
  /// The part of charge() that may be dropped.
  std::size_t droppable_charge() const noexcept { return droppable_charge_; }
  /// What a message is charged with beside its payload.
  static constexpr std::size_t kMessageCharge = sizeof(MessageNode);

  /// Appends a message that is never dropped; it is not empty. The queue frees it, or who pops it.
  void push(MessageNode* message, Lane lane) noexcept;
  /// Appends a message that may be dropped, in the normal lane, and replaced if it has a key. Throws
  /// std::bad_alloc, with nothing appended.
  void push_droppable(MessageNode* message, std::optional<std::uint64_t> key);

  /// Memory held by the message that replace() would replace; 0: there is none.
  std::size_t charge_of(std::uint64_t key) const noexcept;

  /// Puts `payload`, which is shared (Sharing::together), in the place of the waiting message with
  /// that key. False: there is none, and `payload` is left as it was.
  bool replace(std::uint64_t key, SharedBytes& payload) noexcept;

  /// Drops the message that has waited longest of those that may be dropped. False: there is none.
  bool drop_oldest(BlockPool& pool) noexcept;

  /// Removes and returns the next message to send, or nullptr. The caller frees it.
  MessageNode* pop() noexcept;

  /// Drops everything.
  void clear(BlockPool& pool) noexcept;

  /// Messages that replace() and drop_oldest() have dropped.
  std::uint64_t dropped() const noexcept { return dropped_; }
  /// The bytes of the messages that dropped() counts.
  std::uint64_t bytes_dropped() const noexcept { return bytes_dropped_; }

 private:
  using List = IntrusiveList<MessageNode, MessageTag>;

  void forget(MessageNode& node) noexcept;
  void count_in(const MessageNode& node) noexcept;
  void count_out(const MessageNode& node) noexcept;

  List control_;
  List normal_;
  MessageNode* oldest_droppable_ = nullptr;  // of normal_
  std::unordered_map<std::uint64_t, MessageNode*> by_key_;
  std::size_t bytes_ = 0;
  std::size_t charge_ = 0;
  std::size_t shared_charge_ = 0;
  std::size_t droppable_charge_ = 0;
  std::uint64_t dropped_ = 0;
  std::uint64_t bytes_dropped_ = 0;
};

}  // namespace penstock

// All connections of one loop, whichever server or client made them: their slots, the lists that a
// turn works through, and what they share. Owner: the loop (a LoopService); loop's thread.
#pragma once

#include <cstdint>

#include "penstock/base/intrusive_list.h"
#include "penstock/base/slot_table.h"
#include "penstock/bytes/block_pool.h"
#include "penstock/loop/event_loop.h"
#include "penstock/tcp/connection.h"

namespace penstock {

/// Counters of a loop's connections since its start.
struct ConnectionStatistics {
  std::uint64_t opened = 0;       ///< Sockets taken over.
  std::uint64_t closed = 0;       ///< Ended, reported and destroyed.
  std::uint64_t refused = 0;      ///< Could not be registered with the kernel.
  std::uint64_t stale_drops = 0;  ///< Operations through handles whose connection was gone.
  /// Messages that SlowConsumer policies have dropped or refused.
  std::uint64_t messages_dropped = 0;
  std::uint64_t bytes_received = 0;  ///< Of all connections, those that live included.
  std::uint64_t bytes_sent = 0;      ///< Likewise.
  EndCounts ends{};                  ///< Of those that have ended.
};

/// The connections of one loop. Loop's thread.
class ConnectionTable final : public LoopService {
 public:
  /// Use of() instead: a loop has one table.
  explicit ConnectionTable(EventLoop& loop) : loop_(loop) {}

  /// The table of a loop.
  static ConnectionTable& of(EventLoop& loop) { return loop.service<ConnectionTable>(); }

  /// Takes over a connected, nonblocking socket; runs on_connect. `owner` may be nullptr. Error:
  /// the descriptor has been closed, no callback has run.
  Result<ConnectionHandle> adopt(UniqueFd fd, const SocketAddress& peer, BehaviourPtr behaviour,
                                 ConnectionOwner* owner);

  /// The connection of that slot and generation, or nullptr when it is gone or has ended.
  TcpConnection* find(SlotId id) noexcept;

  /// Its counters so far.
  const ConnectionStatistics& statistics() const noexcept { return statistics_; }
  /// Connections, those included that have ended and are not yet destroyed.
  std::size_t size() const noexcept { return connections_.size(); }
  /// Bytes that all connections have accepted and the kernel has not taken; looks at each.
  std::size_t queued_bytes();

  // -- LoopService --
  void flush() override;
  void notify() override;
  void bury() override;
  bool busy() const override { return !dirty_.empty() || !due_.empty(); }
  void shut_down() override;
  /// Whether no connection is left.
  bool idle() const override { return connections_.size() == 0; }

  // -- For TcpConnection and ConnectionHandle --
  /// The loop it belongs to.
  EventLoop& loop() noexcept { return loop_; }
  /// The blocks that its connections queue output in.
  BlockPool& pool() noexcept { return pool_; }
  /// The counters, for counting.
  ConnectionStatistics& counters() noexcept { return statistics_; }
  /// Has the connection flushed in this turn or the next; it must not be marked already.
  void mark_dirty(TcpConnection& connection) noexcept { dirty_.push_back(connection); }
  /// Has the connection notified in this turn or the next; it must not be scheduled already.
  void schedule_notify(TcpConnection& connection) noexcept { due_.push_back(connection); }

 private:
  EventLoop& loop_;
  BlockPool pool_;
  SlotTable<TcpConnection> connections_;
  IntrusiveList<TcpConnection, DirtyTag> dirty_;
  IntrusiveList<TcpConnection, NotifyTag> due_;
  IntrusiveList<TcpConnection, NotifyTag> over_;
  ConnectionStatistics statistics_;
};

}  // namespace penstock

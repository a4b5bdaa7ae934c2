// What of a server its connections may still need after the TcpServer itself has gone: behaviour,
// counts, the list of connections per loop. Counted; the TcpServer holds a share, each loop with
// connections holds one.
//
// Threads: the listener and stopping happen on the accepting loop; each Share belongs to its loop;
// counts are atomic (they change per connection, never per message).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "penstock/base/bounded_log.h"
#include "penstock/base/counted.h"
#include "penstock/loop/event_loop.h"
#include "penstock/tcp/behaviour.h"
#include "penstock/tcp/connection.h"
#include "penstock/tcp/listener.h"
#include "penstock/tcp/server.h"
#include "tcp/source_table.h"

namespace penstock {

/// Where a server listens: an address, or a descriptor that it inherits.
struct ListenPlace {
  SocketAddress address{};
  int inherited_fd = -1;
};

/// What a server decides by, of its options.
struct ServerPolicy {
  Balance balance = Balance::least_connections;
  std::size_t max_connections = 0;
  std::size_t connections_per_source_max = 0;  ///< 0: no limit
};

class ServerCore final : public Counted<ServerCore>, private ListenerOwner {
 public:
  ServerCore(EventLoop& accept_loop, const std::vector<EventLoop*>& loops, BehaviourPtr behaviour,
             const ServerPolicy& policy, const SourceHash& hash);
  ~ServerCore();

  // -- On the accepting loop --
  Result<void> listen(const ListenPlace& place, const ListenerOptions& options);
  /// Stops in order; see TcpServer::stop. Calls `stopped` (from on_stopped) once no connection is
  /// left.
  void stop(Duration deadline);
  /// The server object goes: no more accepting, everything is reset.
  void abandon();
  /// What stop() calls, once, when no connection is left; at once if that is so already.
  void on_stopped(std::move_only_function<void()> stopped);
  const SocketAddress& address() const noexcept { return listener_.address(); }

  // -- Thread-safe --
  /// Whether abandon() has run and no connection is left.
  bool is_gone() const noexcept { return abandoned_.load() && live() == 0; }
  std::size_t live() const noexcept { return live_.load(); }
  std::size_t max_connections() const noexcept { return policy_.max_connections; }
  ServerStatistics statistics() const;

 private:
  // The server's part in one loop.
  struct Share final : ConnectionOwner {
    Share(ServerCore& its_core, EventLoop& its_loop) noexcept
        : core(its_core), loop(its_loop), loop_id(its_loop.id()) {}
    void connection_started(TcpConnection& connection) noexcept override;
    void connection_ended(TcpConnection& connection) noexcept override;
    void close_all() noexcept;
    /// Answers how many it reset.
    std::size_t abort_all() noexcept;

    ServerCore& core;
    EventLoop& loop;
    LoopId loop_id;
    std::size_t started = 0;            // connections that were made here
    std::atomic<std::size_t> live{0};   // handed over and not yet ended
    CountedPtr<ServerCore> keep_alive;  // while there are connections
    IntrusiveList<TcpConnection, OwnerTag> connections;
  };

  // What becomes of a connection that has been accepted.
  enum class Admission : std::uint8_t { served, over_limit, no_memory };

  // A connection on its way to its loop. If it is not adopted, it is closed and no longer counted.
  struct Handover;

  void connection_accepted(UniqueFd fd, const SocketAddress& peer) override;
  Admission admit(const std::optional<PeerSource>& source) noexcept;
  void refuse(UniqueFd fd, const PeerSource& source, Admission why) noexcept;
  Share& next_share(const std::optional<PeerSource>& source) noexcept;
  Share& emptiest_share() noexcept;
  void hand_over(Share& share, UniqueFd fd, const SocketAddress& peer);
  void adopt(Share& share, UniqueFd fd, const SocketAddress& peer);
  void connection_gone(Share& share, const SocketAddress& peer) noexcept;
  void room_again();
  void abort_left();
  template <class Action>
  void for_each_share(Action action);
  template <class Action>
  void on_accept_loop(Action action);
  void check_stopped();

  EventLoop& accept_loop_;
  const LoopId accept_loop_id_;
  const BehaviourPtr behaviour_;
  const ServerPolicy policy_;
  const SourceHash hash_;
  std::optional<SourceTable> sources_;  // if connections are counted by source
  Listener listener_;
  std::vector<std::unique_ptr<Share>> shares_;
  std::size_t next_share_ = 0;
  std::move_only_function<void()> stopped_;
  Timer deadline_timer_ = Timer::calling<&ServerCore::abort_left>(*this);
  std::optional<TimerPlace> deadline_place_;  // from listen() to abandon()
  std::atomic<bool> stopping_{false};         // set on the accepting loop
  std::atomic<bool> abandoned_{false};

  std::atomic<std::size_t> live_{0};
  std::atomic<bool> wants_room_{false};  // accepting waits for a connection to end
  std::atomic<bool> room_posted_{false};
  std::atomic<bool> wants_end_{false};  // stopping waits for the last one
  std::atomic<std::uint64_t> ended_{0};
  std::atomic<std::uint64_t> refused_for_source_{0};
  std::atomic<std::uint64_t> refused_at_start_{0};
  std::atomic<std::uint64_t> refused_at_stop_{0};
  std::array<std::atomic<std::uint64_t>, kCloseReasons> ended_for_{};
  std::array<std::atomic<std::uint64_t>, kTimeoutKinds> timed_out_{};
  std::atomic<std::uint64_t> bytes_received_{0};
  std::atomic<std::uint64_t> bytes_sent_{0};
  std::atomic<std::uint64_t> aborted_at_stop_{0};
  BoundedLog source_log_;  // refused for their source
  BoundedLog start_log_;   // could not be served
};

}  // namespace penstock

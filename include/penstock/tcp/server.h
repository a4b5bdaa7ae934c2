// A TCP server: listens, accepts, hands connections to loops, keeps to its limits, and stops in
// order. Owner: the program. Either it has loops of its own (run() turns the first one), or it
// lives on a loop of the program's, beside other servers and clients.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "penstock/base/counted.h"
#include "penstock/io/io_backend.h"
#include "penstock/loop/event_loop.h"
#include "penstock/loop/loop_group.h"
#include "penstock/tcp/behaviour.h"
#include "penstock/tcp/callback_setters.h"
#include "penstock/tcp/listener.h"

namespace penstock {

class ServerCore;
struct ListenPlace;

/// Which loop gets the next connection.
enum class Balance : std::uint8_t {
  least_connections,  ///< The one with the fewest, counted when they are handed over.
  round_robin,        ///< Each in its turn.
  /// The same for all connections of one source (an IPv4 address, an IPv6 /64), as long as the
  /// server lives: what they share stays on one thread. Which one is drawn anew at each start, so
  /// that nobody can aim at a loop. Unix peers: as least_connections.
  peer_hash,
};

/// How a server is made. The defaults suit most programs; say where to listen.
struct TcpServerOptions {
  /// Where to listen: "127.0.0.1:7000", "[::1]:7000", ":7000" (all of IPv4), "[::]:7000" (IPv4 and
  /// IPv6); port 0 takes any free one. "unix:PATH", "unix:@NAME" (abstract). "fd:N" takes over
  /// descriptor N, on which somebody has called listen(); one that does not listen is left alone.
  std::string listen = "127.0.0.1:0";
  /// On an IPv6 address, leave IPv4 alone.
  bool ipv6_only = false;
  /// Loops of its own besides the first, each in a thread: 0, the first does everything; N, the
  /// first only accepts, and callbacks of different connections run at the same time.
  /// Not for a server on a program's loop.
  std::size_t loops = 0;
  /// Back-end of its own loops.
  Backend backend = Backend::automatic;
  /// How its own loops divide their time between connections.
  IoOptions io{};
  /// Which loop gets the next connection, when there are several.
  Balance balance = Balance::least_connections;
  /// Connections at a time; more wait in the backlog. 0: nine tenths of the descriptors that are
  /// free at the start.
  std::size_t max_connections = 0;
  /// Connections at a time of one source: an IPv4 address, or an IPv6 /64 (IPv4 inside IPv6 counts
  /// as IPv4). One more is reset at once and counted in refused_for_source. Peers on the loopback
  /// and Unix peers are never refused for this. 0: no such limit; a tenth of max_connections is a
  /// good value where clients do not share addresses.
  std::size_t connections_per_source_max = 0;
  /// Connections accepted per second in the long run, and at once after a quiet second; in any time
  /// t at most (t + 1 s) times this. Who comes too fast waits in the backlog. 0: as they come.
  std::size_t accepts_per_second_max = 0;
  /// Bytes that all connections on its own loops may hold in queues; 0: half of the machine's (or
  /// cgroup's) memory. A program's loop brings its own budget.
  std::size_t memory_max = 0;
  /// Bytes that handles may have under way to each of its own loops.
  std::size_t posted_bytes_max = std::size_t{64} * 1024 * 1024;
  /// Limits of each connection.
  ConnectionLimits limits{};
  /// Complete connections that may wait to be accepted.
  int backlog = 4096;
  /// How long an orderly stop may take before what is left is reset.
  Duration stop_deadline = std::chrono::seconds(30);
  /// The kernel for its own loops; nullptr is the real one. Outlives the server.
  Kernel* kernel = nullptr;
  /// Runs at the start of each thread of its own; see LoopGroupOptions.
  std::move_only_function<void(std::size_t index, EventLoop& loop)> on_thread_start{};
};

/// A server's account. Bytes are counted when their connection ends.
struct ServerStatistics {
  std::uint64_t accepted = 0;  ///< Connections taken from the backlog.
  /// Accepted with the reserve descriptor and closed at once.
  std::uint64_t refused_for_descriptors = 0;
  /// Accepted and reset at once: their source had connections_per_source_max already.
  std::uint64_t refused_for_source = 0;
  std::uint64_t refused_at_start = 0;  ///< Accepted, but there was no memory to serve them.
  /// Accepted, but the server stopped before they had reached their loop.
  std::uint64_t refused_at_stop = 0;
  std::uint64_t accept_errors = 0;  ///< accept4 failures that paused accepting.
  /// Times accepting paused because accepts_per_second_max was used up.
  std::uint64_t accept_rate_pauses = 0;
  /// Sources that have connections now, loopback and Unix peers aside; 0 without
  /// connections_per_source_max.
  std::uint64_t sources = 0;
  std::uint64_t live = 0;            ///< Connections now.
  std::uint64_t ended = 0;           ///< Connections whose on_close has run.
  std::uint64_t bytes_received = 0;  ///< Taken from the kernel.
  std::uint64_t bytes_sent = 0;      ///< Taken by the kernel.
  std::uint64_t aborted_at_stop =
      0;  ///< Reset because the stop's deadline had come, or a second stop was asked for.
  EndCounts ends{};  ///< Why connections ended.
};

/// Serves from start(), or run(), until stop(). On its first loop's thread, but for what says
/// thread-safe.
class TcpServer : public CallbackSetters {
 public:
  /// A server with loops of its own.
  explicit TcpServer(TcpServerOptions options = {});
  /// A server on a loop of the program's, which outlives it. What concerns loops of its own
  /// does not apply.
  explicit TcpServer(EventLoop& loop, TcpServerOptions options = {});
  TcpServer(const TcpServer&) = delete;
  TcpServer& operator=(const TcpServer&) = delete;
  /// Stops at once: connections are reset and their on_close runs. Outside the loops this waits
  /// until all are closed; inside a callback of its loop it returns, and they are reported in the
  /// notify step of that turn (of a later one, on a back-end whose closing takes a while). A server with loops of its own must not be destroyed from inside them.
  ~TcpServer();

  /// Called by run() once the server accepts.
  void on_listening(std::move_only_function<void()> function) {
    on_listening_ = std::move(function);
  }

  /// Called on the first loop when a stop() is complete: no connection is left.
  void on_stopped(std::move_only_function<void()> function) { on_stopped_ = std::move(function); }

  /// Listens and accepts from now on; its own further loops start. On the loop's thread, or while
  /// the loop does not run. Errors: bad_address, needs_resolver, not_listening,
  /// too_many_connections, already_started, unknown_backend, out_of_loops, and what the kernel says
  /// (also that it has no entropy, which connections_per_source_max and Balance::peer_hash are not
  /// safe without); describe_listen_error() makes a sentence of them.
  [[nodiscard]] Result<void> start();

  /// For a server with loops of its own: starts it if need be, and turns its first loop until it
  /// has stopped. SIGINT and SIGTERM stop it in order, a second one at once; their handling is
  /// restored afterwards. Answers 0, 1 if it could not start (the error is logged), or 130 after a
  /// second signal.
  int run();

  /// Thread-safe. Stops in order: no more accepting, queued output is flushed, connections are
  /// closed; what is left at the deadline is reset and reported. Zero resets at once. A second call
  /// can only bring the deadline forward.
  void stop(Duration deadline);
  void stop() { stop(stop_deadline_); }

  /// The address it listens on, with the real port; empty before start().
  SocketAddress address() const;
  /// Its own first loop, or the program's.
  EventLoop& loop() noexcept { return *loop_; }
  /// The loops that serve connections: its further ones, or loop() where it has none. Known after
  /// start(), valid as long as the server; post to them (their snapshots, for instance, are taken
  /// on their threads).
  std::vector<EventLoop*> serving_loops();
  /// Connections it takes at a time; known after start().
  std::size_t max_connections() const noexcept;
  /// Thread-safe.
  ServerStatistics statistics() const;

 private:
  CountedPtr<ServerCore> started_core() const;
  Result<void> start_loops_and_listen(const ListenPlace& place);

  std::unique_ptr<EventLoop> own_loop_;
  EventLoop* loop_;
  TcpServerOptions options_;
  Duration stop_deadline_;
  std::move_only_function<void()> on_listening_;
  std::move_only_function<void()> on_stopped_;
  CountedPtr<ServerCore> core_;  // from start() on
  mutable std::mutex mutex_;     // guards the two below: stop() may come from any thread
  CountedPtr<ServerCore> started_core_;
  std::optional<Duration> early_stop_;  // stop() came before start() was done
  std::unique_ptr<LoopGroup> group_;
  bool ran_ = false;  // run() has been called: it serves once
};

}  // namespace penstock

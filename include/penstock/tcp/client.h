// A TCP client: one connection at a time to one address, tried again after failures and, if wanted,
// made anew when it ends. Owner: the program. It lives on a loop of the program's, beside servers
// and other clients.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <system_error>

#include "penstock/base/clock.h"
#include "penstock/base/counted.h"
#include "penstock/base/result.h"
#include "penstock/loop/event_loop.h"
#include "penstock/tcp/behaviour.h"
#include "penstock/tcp/callback_setters.h"
#include "penstock/tcp/connection_handle.h"

namespace penstock {

class ClientCore;

/// How a client is made. Say where to connect.
struct TcpClientOptions {
  /// Where to connect (":7000" is this machine): "127.0.0.1:7000", "[::1]:7000", "localhost:7000", "unix:PATH", "unix:@NAME".
  std::string connect_to;
  /// Local address to connect from ("127.0.0.2:0"); empty: the kernel chooses.
  std::string connect_from{};
  /// How long one attempt may take; zero: as long as the kernel tries (minutes).
  Duration connect_timeout = std::chrono::seconds(5);
  /// Attempts in a row without a stable connection before it gives up; 0: it never does. What
  /// another attempt cannot change ends it at once: EACCES, EPERM, EAFNOSUPPORT, EPROTONOSUPPORT,
  /// EPROTOTYPE, EINVAL, ENAMETOOLONG.
  std::size_t attempts_max = 4;
  /// The pause before the n-th further attempt is a random time between zero and the smaller of
  /// retry_delay_max and retry_delay_min x 2^(n-1) ("full jitter"), so that many clients of one
  /// server do not come back at the same moment.
  Duration retry_delay_min = std::chrono::milliseconds(100);
  /// See retry_delay_min.
  Duration retry_delay_max = std::chrono::seconds(5);
  /// A connection that lasted this long was stable: the count of attempts begins anew. One that
  /// ended sooner counts as a failed attempt.
  Duration stable_after = std::chrono::seconds(10);
  /// Connect again when a connection has ended, whoever ended it; until stop().
  bool reconnect = false;
  /// Limits of the connection.
  ConnectionLimits limits{};
};

/// A failed attempt.
struct ConnectFailure {
  /// What the kernel said; ETIMEDOUT after connect_timeout; Errc::self_connected;
  /// Errc::unstable_connection when the attempts are used up by connections that did not last.
  std::error_code error{};
  std::size_t attempt = 1;           ///< Which one, since the last stable connection.
  std::optional<Duration> retry_in;  ///< When the next one comes; nothing: the client has given up.
};

/// Counters since the client was made.
struct ClientStatistics {
  std::uint64_t attempts = 0;       ///< Begun.
  std::uint64_t failures = 0;       ///< Attempts that failed, for whatever reason.
  std::uint64_t timeouts = 0;       ///< Of these, by connect_timeout or the kernel's.
  std::uint64_t self_connects = 0;  ///< Of these, by Errc::self_connected.
  std::uint64_t connections = 0;    ///< Attempts that succeeded.
};

/// What a client is doing.
enum class ClientState : std::uint8_t {
  idle,        ///< Not started, has given up, or its only connection has ended.
  connecting,  ///< An attempt is under way.
  waiting,     ///< For the next attempt.
  connected,   ///< Its connection is up.
  stopped,     ///< By stop(), for good.
};

/// Connects from start() on, until it gives up or is stopped. On its loop's thread, but for what
/// says thread-safe.
class TcpClient : public CallbackSetters {
 public:
  /// The loop outlives the client.
  TcpClient(EventLoop& loop, TcpClientOptions options);
  TcpClient(const TcpClient&) = delete;
  TcpClient& operator=(const TcpClient&) = delete;
  /// Ends all at once: an attempt is cancelled, a connection is reset and its on_close runs. Inside
  /// a callback of its loop (its own callbacks included) it returns, and on_close follows in the
  /// turn's notify step; elsewhere it waits for that.
  ~TcpClient();

  /// Called once for each failed attempt, on the loop. It may stop or destroy the client.
  void on_connect_failed(std::move_only_function<void(const ConnectFailure&)> function);

  /// Begins to connect; the outcome is told by on_connect or on_connect_failed, never before this
  /// returns. On the loop's thread, or while the loop does not run. A client that has given up, or
  /// whose only connection has ended (after its on_close), may be started again. Errors: bad_address, needs_resolver,
  /// already_started (while it is connecting, waiting or connected), stopped.
  [[nodiscard]] Result<void> start();

  /// Thread-safe. No more attempts; a connection is closed in order, as by TcpConnection::close().
  /// For good.
  void stop();

  // -- On the loop's thread --

  /// What it is doing now.
  ClientState state() const noexcept;
  /// The connection, while connected; else nullptr.
  TcpConnection* connection() const noexcept;
  /// For other threads; names no connection unless connected.
  ConnectionHandle handle() const noexcept;
  /// Its counters so far.
  ClientStatistics statistics() const noexcept;
  /// The loop it lives on.
  EventLoop& loop() noexcept { return loop_; }

 private:
  EventLoop& loop_;
  CountedPtr<ClientCore> core_;
};

}  // namespace penstock

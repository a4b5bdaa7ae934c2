// What connections do: callbacks and limits, one immutable object shared by all connections of a
// server, on every loop. Counted: it outlives the server if a connection still needs it.
// Thread-safe because it never changes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <utility>

#include "penstock/base/counted.h"
#include "penstock/bytes/input_buffer.h"
#include "penstock/tcp/close_report.h"
#include "penstock/tcp/connection.h"
#include "penstock/tcp/connection_limits.h"

namespace penstock {

/// What a connection calls, always on its loop. Const: state belongs in the connection's context.
/// An empty one is skipped. A callback that throws ends its connection, not the loop. A callback
/// may close, abort or swap anything.
struct ConnectionCallbacks {
  /// Takes the connection and perhaps more. Called as const, because loops share it: no `mutable`.
  template <class... Arguments>
  using Callback = std::move_only_function<void(TcpConnection&, Arguments...) const>;

  /// The connection is up.
  Callback<> on_connect{};
  /// Input has arrived. What is not consumed is offered again with what comes next.
  Callback<InputBuffer&> on_message{};
  /// Bytes that on_message may have to see at once, for the longest message; ConnectionLimits::
  /// input_max is raised to it.
  std::size_t message_max = 0;
  /// The peer has finished sending. Without this callback the connection answers with finish() when
  /// its output has gone and no hold is left; with it, the callback decides (and the half-close
  /// limit applies).
  Callback<> on_peer_finished{};
  /// Everything accepted for sending has been taken by the kernel. Once per drain, not per send.
  Callback<> on_write_complete{};
  /// Output has risen above the high-water mark. Not told again before on_low_water.
  Callback<> on_high_water{};
  /// Output has fallen to the low-water mark after on_high_water, or has gone after a try_send that
  /// answered `full`.
  Callback<> on_low_water{};
  /// No input has come for heartbeat_interval: time to send a ping, or whatever makes the peer
  /// answer.
  Callback<> on_heartbeat{};
  /// The connection has ended: exactly once, and nothing after it.
  Callback<const CloseReport&> on_close{};
};

/// Callbacks and limits together.
struct Behaviour final : Counted<Behaviour> {
  /// As make_behaviour(), which is the way to make one.
  Behaviour(ConnectionCallbacks its_callbacks, ConnectionLimits its_limits)
      : callbacks(std::move(its_callbacks)), limits(fitting(its_limits, callbacks.message_max)) {}

  const ConnectionCallbacks callbacks;  ///< What the connections call.
  const ConnectionLimits limits;        ///< What they may take.

 private:
  static ConnectionLimits fitting(ConnectionLimits limits, std::size_t message_max) noexcept {
    if (limits.input_max != 0) limits.input_max = std::max(limits.input_max, message_max);
    return limits;
  }
};

/// Makes a behaviour, for TcpConnection::set_behaviour and adopted descriptors.
inline BehaviourPtr make_behaviour(ConnectionCallbacks callbacks, ConnectionLimits limits = {}) {
  return BehaviourPtr(new Behaviour(std::move(callbacks), limits));
}

}  // namespace penstock

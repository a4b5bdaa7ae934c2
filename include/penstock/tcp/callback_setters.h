// The on_... setters that a server and a client have in common.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/tcp/behaviour.h"

namespace penstock {

/// Collects what the connections of a server or client will call. Each setter takes a function
/// object that can be called while const: state of a connection belongs in emplace_context(). To be
/// used before start(), on the thread that will call it.
class CallbackSetters {
 public:
  /// Sets ConnectionCallbacks::on_connect.
  template <class Function>
  void on_connect(Function function) {
    static_assert(std::is_invocable_v<const Function&, TcpConnection&>,
                  "on_connect takes (TcpConnection&) and must not be mutable: state "
                  "of a connection belongs in emplace_context()");
    callbacks().on_connect = std::move(function);
  }
  /// Sets ConnectionCallbacks::on_message, and message_max if the function has a member of that name.
  template <class Function>
  void on_message(Function function) {
    static_assert(std::is_invocable_v<const Function&, TcpConnection&, InputBuffer&>,
                  "on_message takes (TcpConnection&, InputBuffer&) and must not be mutable: state "
                  "of a connection belongs in emplace_context()");
    if constexpr (requires { function.message_max(); }) {
      callbacks().message_max = function.message_max();
    }
    callbacks().on_message = std::move(function);
  }
  /// Sets ConnectionCallbacks::on_peer_finished.
  template <class Function>
  void on_peer_finished(Function function) {
    static_assert(std::is_invocable_v<const Function&, TcpConnection&>,
                  "on_peer_finished takes (TcpConnection&) and must not be mutable: state "
                  "of a connection belongs in emplace_context()");
    callbacks().on_peer_finished = std::move(function);
  }
  /// Sets ConnectionCallbacks::on_write_complete.
  template <class Function>
  void on_write_complete(Function function) {
    static_assert(std::is_invocable_v<const Function&, TcpConnection&>,
                  "on_write_complete takes (TcpConnection&) and must not be mutable: state "
                  "of a connection belongs in emplace_context()");
    callbacks().on_write_complete = std::move(function);
  }
  /// Sets ConnectionCallbacks::on_high_water.
  template <class Function>
  void on_high_water(Function function) {
    static_assert(std::is_invocable_v<const Function&, TcpConnection&>,
                  "on_high_water takes (TcpConnection&) and must not be mutable: state "
                  "of a connection belongs in emplace_context()");
    callbacks().on_high_water = std::move(function);
  }
  /// Sets ConnectionCallbacks::on_low_water.
  template <class Function>
  void on_low_water(Function function) {
    static_assert(std::is_invocable_v<const Function&, TcpConnection&>,
                  "on_low_water takes (TcpConnection&) and must not be mutable: state "
                  "of a connection belongs in emplace_context()");
    callbacks().on_low_water = std::move(function);
  }
  /// Sets ConnectionCallbacks::on_heartbeat; ConnectionLimits::heartbeat_interval says when.
  template <class Function>
  void on_heartbeat(Function function) {
    static_assert(std::is_invocable_v<const Function&, TcpConnection&>,
                  "on_heartbeat takes (TcpConnection&) and must not be mutable: state "
                  "of a connection belongs in emplace_context()");
    callbacks().on_heartbeat = std::move(function);
  }
  /// Sets ConnectionCallbacks::on_close.
  template <class Function>
  void on_close(Function function) {
    static_assert(
        std::is_invocable_v<const Function&, TcpConnection&, const CloseReport&>,
        "on_close takes (TcpConnection&, const CloseReport&) and must not be mutable: state "
        "of a connection belongs in emplace_context()");
    callbacks().on_close = std::move(function);
  }

 protected:
  CallbackSetters() : callbacks_(std::make_unique<ConnectionCallbacks>()) {}
  ~CallbackSetters() = default;

  /// Whether on_message reads frames: it says how long a message may be.
  bool reads_frames() const noexcept { return callbacks_ && callbacks_->message_max > 0; }

  /// What has been set, with these limits. The first call makes it; no setter may be used from then
  /// on.
  BehaviourPtr behaviour(const ConnectionLimits& limits) {
    if (callbacks_) {
      // The memory comes first: if there is none, what has been set stays set.
      behaviour_ = BehaviourPtr(new Behaviour(std::move(*callbacks_), limits));
      callbacks_.reset();
    }
    return behaviour_;
  }

 private:
  ConnectionCallbacks& callbacks() {
    PENSTOCK_ASSERT(callbacks_ != nullptr, "callbacks are set before start()");
    return *callbacks_;
  }

  std::unique_ptr<ConnectionCallbacks> callbacks_;  // until behaviour()
  BehaviourPtr behaviour_;
};

}  // namespace penstock

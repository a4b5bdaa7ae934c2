// What of a client its connection and its callbacks may still need after the TcpClient itself has
// gone. Counted; the TcpClient holds a share, and so does a connection. Loop's thread.
#pragma once

#include <atomic>
#include <functional>
#include <optional>

#include "penstock/base/counted.h"
#include "penstock/loop/event_loop.h"
#include "penstock/tcp/client.h"
#include "penstock/tcp/connection.h"
#include "tcp/connector.h"

namespace penstock {

class ClientCore final : public Counted<ClientCore>, private ConnectOwner, private ConnectionOwner {
 public:
  ClientCore(EventLoop& loop, TcpClientOptions options);
  ~ClientCore();

  Result<void> start();
  void stop();
  /// The client object goes: everything ends at once.
  void abandon();

  void set_behaviour(BehaviourPtr behaviour) noexcept { behaviour_ = std::move(behaviour); }
  void set_failure_callback(std::move_only_function<void(const ConnectFailure&)> callback) {
    on_failure_ = std::move(callback);
  }
  const ConnectionLimits& limits() const noexcept { return options_.limits; }

  ClientState state() const noexcept { return state_; }
  TcpConnection* connection() const noexcept { return connection_; }
  const ClientStatistics& statistics() const noexcept { return statistics_; }

  // -- Thread-safe --
  /// stop() has been called, and may still be on its way to the loop.
  void forbid_start() noexcept { stop_requested_.store(true); }
  bool is_gone() const noexcept { return abandoned_.load() && live() == 0; }
  std::size_t live() const noexcept { return live_.load(); }

 private:
  // ConnectOwner
  void connect_succeeded(UniqueFd fd) override;
  void connect_failed(std::error_code error) override;
  // ConnectionOwner
  void connection_started(TcpConnection& connection) noexcept override;
  void connection_ended(TcpConnection& connection) noexcept override;

  void on_timer();
  void attempt();
  void attempt_over(std::error_code error);
  Duration next_delay() noexcept;
  void wait(Duration delay);
  void cancel_attempts() noexcept;

  EventLoop& loop_;
  const TcpClientOptions options_;
  BehaviourPtr behaviour_;
  std::move_only_function<void(const ConnectFailure&)> on_failure_;
  ConnectRequest request_;
  ClientState state_ = ClientState::idle;
  SlotId attempt_id_;
  std::size_t attempts_ = 0;  // in a row without a stable connection
  bool adopting_ = false;
  bool out_of_memory_ = false;  // the attempt could not even be made
  TcpConnection* connection_ = nullptr;
  CountedPtr<ClientCore> keep_alive_;  // while there is a connection
  ClientStatistics statistics_;
  std::optional<TimerPlace> timer_place_;  // until abandon()
  Timer timer_ = Timer::calling<&ClientCore::on_timer>(*this);
  std::atomic<std::size_t> live_{0};
  std::atomic<bool> abandoned_{false};
  std::atomic<bool> stop_requested_{false};
};

}  // namespace penstock

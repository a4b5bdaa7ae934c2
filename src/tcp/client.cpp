#include "penstock/tcp/client.h"

#include <utility>

#include "penstock/tcp/connection.h"
#include "tcp/client_core.h"
#include "tcp/leave_loop.h"

namespace penstock {

TcpClient::TcpClient(EventLoop& loop, TcpClientOptions options)
    : loop_(loop), core_(make_counted<ClientCore>(loop, std::move(options))) {}

TcpClient::~TcpClient() {
  if (!loop_.error()) leave_loop(loop_, core_);
}

void TcpClient::on_connect_failed(std::move_only_function<void(const ConnectFailure&)> function) {
  core_->set_failure_callback(std::move(function));
}

Result<void> TcpClient::start() {
  core_->set_behaviour(behaviour(core_->limits()));
  return core_->start();
}

void TcpClient::stop() {
  if (loop_.error()) return;
  core_->forbid_start();
  if (loop_.in_loop()) {
    core_->stop();
  } else {
    loop_.queue_in_loop([core = core_] { core->stop(); });
  }
}

ClientState TcpClient::state() const noexcept { return core_->state(); }

TcpConnection* TcpClient::connection() const noexcept { return core_->connection(); }

ConnectionHandle TcpClient::handle() const noexcept {
  const TcpConnection* connection = core_->connection();
  return connection != nullptr ? connection->handle() : ConnectionHandle();
}

ClientStatistics TcpClient::statistics() const noexcept { return core_->statistics(); }

}  // namespace penstock

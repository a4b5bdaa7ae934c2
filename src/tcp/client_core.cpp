#include "tcp/client_core.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <new>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/tcp/connection_table.h"

namespace penstock {
namespace {

// What another attempt cannot change: the address or the socket is of the wrong kind, or forbidden.
bool is_final(std::error_code error) noexcept {
  if (error.category() != std::system_category()) return false;
  switch (error.value()) {
    case EACCES:
    case EPERM:
    case EAFNOSUPPORT:
    case EPROTONOSUPPORT:
    case EPROTOTYPE:
    case EINVAL:
    case ENAMETOOLONG:
      return true;
    default:
      return false;
  }
}

}  // namespace

ClientCore::ClientCore(EventLoop& loop, TcpClientOptions options)
    : loop_(loop), options_(std::move(options)) {}

ClientCore::~ClientCore() { PENSTOCK_ASSERT(!timer_place_, "abandon() comes before the end"); }

Result<void> ClientCore::start() {
  if (loop_.error()) return std::unexpected(loop_.error());
  loop_.assert_here();
  if (stop_requested_.load()) return failure(Errc::stopped);
  if (state_ != ClientState::idle) return failure(Errc::already_started);
  const Result<SocketAddress> to = SocketAddress::parse(options_.connect_to);
  if (!to) return std::unexpected(to.error());
  SocketAddress from;
  if (!options_.connect_from.empty()) {
    const Result<SocketAddress> parsed = SocketAddress::parse(options_.connect_from);
    if (!parsed) return std::unexpected(parsed.error());
    from = *parsed;
  }
  request_ = {.to = *to,
              .from = from,
              .timeout = options_.connect_timeout,
              .user_timeout = options_.limits.write_stall_timeout};
  if (!timer_place_) timer_place_.emplace(loop_.timers());
  attempts_ = 0;
  attempt();
  return {};
}

void ClientCore::on_timer() {
  if (std::exchange(out_of_memory_, false)) {
    connect_failed(system_error(ENOMEM));
  } else {
    attempt();
  }
}

void ClientCore::attempt() {
  state_ = ClientState::connecting;
  ++attempts_;
  ++statistics_.attempts;
  try {
    attempt_id_ = Connector::of(loop_).start(request_, *this);
  } catch (const std::bad_alloc&) {
    out_of_memory_ = true;  // told later, as every failure is
    wait(Duration::zero());
  }
}

void ClientCore::connect_failed(std::error_code error) {
  ++statistics_.failures;
  if (error == system_error(ETIMEDOUT)) ++statistics_.timeouts;
  if (error == make_error_code(Errc::self_connected)) ++statistics_.self_connects;
  attempt_over(error);
}

void ClientCore::connect_succeeded(UniqueFd fd) {
  const CountedPtr<ClientCore> self(this);  // on_connect may destroy the client
  Result<ConnectionHandle> adopted = failure(ENOMEM);
  adopting_ = true;
  try {
    adopted = ConnectionTable::of(loop_).adopt(std::move(fd), request_.to, behaviour_, this);
  } catch (const std::bad_alloc&) {
    fd.reset();  // no memory for the table itself
  }
  adopting_ = false;
  if (!adopted) connect_failed(adopted.error());
}

void ClientCore::attempt_over(std::error_code error) {
  const CountedPtr<ClientCore> self(this);  // the callback may destroy the client
  ConnectFailure told{.error = error, .attempt = attempts_, .retry_in = {}};
  const bool used_up = options_.attempts_max != 0 && attempts_ >= options_.attempts_max;
  if (used_up || is_final(error)) {
    state_ = ClientState::idle;
  } else {
    told.retry_in = next_delay();
    wait(*told.retry_in);
  }
  if (!on_failure_) return;
  auto callback = std::move(on_failure_);  // it may set another one
  on_failure_ = nullptr;
  try {
    callback(told);
  } catch (...) {
    loop_.report_exception("connect-failed callback");
  }
  if (!on_failure_) on_failure_ = std::move(callback);
}

Duration ClientCore::next_delay() noexcept {
  const Duration longest = std::max(options_.retry_delay_max, Duration::zero());
  Duration bound = std::clamp(options_.retry_delay_min, Duration::zero(), longest);
  const bool grows = bound > Duration::zero();  // or there would be no end of doubling it
  for (std::size_t i = 1; grows && i < attempts_ && bound < longest; ++i)
    bound = bound > longest / 2 ? longest : bound * 2;
  std::array<std::byte, sizeof(std::uint64_t)> dice{};
  if (loop_.kernel().entropy(dice) < 0) return bound;
  const auto number = std::bit_cast<std::uint64_t>(dice);
  return Duration(
      static_cast<Duration::rep>(number % (static_cast<std::uint64_t>(bound.count()) + 1)));
}

void ClientCore::wait(Duration delay) {
  state_ = ClientState::waiting;
  loop_.timers().schedule(timer_, add_clamped(loop_.read_clock(), delay));
}

// -- The connection -------------------------------------------------------------------------------

void ClientCore::connection_started(TcpConnection& connection) noexcept {
  state_ = ClientState::connected;
  ++statistics_.connections;
  connection_ = &connection;
  live_.store(1);
  keep_alive_ = CountedPtr<ClientCore>(this);
}

void ClientCore::connection_ended(TcpConnection& connection) noexcept {
  const CountedPtr<ClientCore> last = std::move(keep_alive_);
  connection_ = nullptr;
  live_.store(0);
  // One that could not even begin is a failed attempt; connect_succeeded() tells.
  if (adopting_) --statistics_.connections;
  if (adopting_ || state_ == ClientState::stopped) return;
  const Duration lasted = loop_.now() - connection.opened_at();
  if (lasted >= options_.stable_after) attempts_ = 0;
  if (!options_.reconnect) {
    state_ = ClientState::idle;
  } else if (options_.attempts_max != 0 && attempts_ >= options_.attempts_max) {
    attempt_over(make_error_code(Errc::unstable_connection));
  } else {
    wait(next_delay());
  }
}

// -- Ending ---------------------------------------------------------------------------------------

void ClientCore::cancel_attempts() noexcept {
  timer_.cancel();
  if (state_ == ClientState::connecting) Connector::of(loop_).cancel(attempt_id_);
}

void ClientCore::stop() {
  loop_.assert_here();
  cancel_attempts();
  state_ = ClientState::stopped;
  if (connection_ != nullptr) connection_->close();
}

void ClientCore::abandon() {
  loop_.assert_here();
  cancel_attempts();
  state_ = ClientState::stopped;
  timer_place_.reset();
  if (connection_ != nullptr) connection_->abort();
  abandoned_.store(true);
}

}  // namespace penstock

#include "tcp/connector.h"

#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <utility>

#include "penstock/base/assert.h"
#include "tcp/stream_socket.h"

namespace penstock {

SlotId Connector::start(const ConnectRequest& request, ConnectOwner& owner) {
  loop_.assert_here();
  Attempt& attempt = attempts_.emplace(*this, request, owner);
  attempt.begin();
  return attempt.id();
}

void Connector::cancel(SlotId id) noexcept {
  if (Attempt* attempt = attempts_.find(id)) attempt->cancel();
}

void Connector::notify() {
  IntrusiveList<Attempt, DueTag> round;
  round.splice_back(due_);
  while (Attempt* attempt = round.pop_front()) {
    told_.push_back(*attempt);
    attempt->tell();
  }
}

void Connector::bury() {
  while (Attempt* attempt = told_.pop_front())
    attempts_.erase(attempt->id());
}

void Connector::shut_down() {
  attempts_.for_each([](SlotId, Attempt& attempt) { attempt.cancel(); });
}

// -- An attempt -----------------------------------------------------------------------------------

Connector::Attempt::Attempt(SlotId id, Connector& connector, const ConnectRequest& request,
                            ConnectOwner& owner)
    : connector_(connector),
      owner_(&owner),
      id_(id),
      request_(request),
      timer_place_(connector.loop_.timers()) {}

void Connector::Attempt::begin() {
  if (request_.timeout > Duration::zero()) {
    give_up_at_ = add_clamped(connector_.loop_.read_clock(), request_.timeout);
  }
  if (const Result<void> made = make_socket(); !made) {
    fail(made.error());
    return;
  }
  try_connect();
}

Result<void> Connector::Attempt::make_socket() {
  Kernel& kernel = connector_.loop_.kernel();
  Result<UniqueFd> socket = make_stream_socket(kernel, request_.to.family(), request_.user_timeout);
  if (!socket) return std::unexpected(socket.error());
  fd_ = std::move(*socket);
  if (request_.from.family() == AF_UNSPEC) return {};
  // The port is chosen when the peer is known, so that one port can serve several peers (ip(7)).
  if (request_.from.is_ip() && request_.from.port() == 0) {
    const int set = set_option(kernel, fd_.get(), IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
    if (set < 0) return failure(set);
  } else if (request_.from.is_ip()) {
    // Its last connection may be in TIME_WAIT (K19).
    const int set = set_option(kernel, fd_.get(), SOL_SOCKET, SO_REUSEADDR, 1);
    if (set < 0) return failure(set);
  }
  const int bound = kernel.bind(fd_.get(), request_.from.data(), request_.from.size());
  if (bound < 0) return failure(bound);
  return {};
}

void Connector::Attempt::try_connect() {
  Result<Stream*> stream;
  try {
    stream = connector_.loop_.backend().connect(fd_, request_.to, *this);
  } catch (const std::bad_alloc&) {
    stream = failure(ENOMEM);
  }
  TimePoint next = give_up_at_;
  if (stream) {
    stream_ = *stream;
    stream_->stop_receive();  // what comes is for the connection; between now and detach() none may
  } else if (request_.to.is_unix() && stream.error() == system_error(EAGAIN)) {
    // Its backlog is full, and nothing tells when it is not (K33).
    next = std::min(next, add_clamped(connector_.loop_.read_clock(), backlog_delay_));
    backlog_delay_ = std::min(backlog_delay_ * 2, kBacklogDelayMax);
  } else {
    fail(stream.error());
    return;
  }
  if (next != kNever) connector_.loop_.timers().schedule(timer_, next);
}

void Connector::Attempt::on_timer() {
  if (connector_.loop_.polled_until() >= give_up_at_) {
    fail(system_error(ETIMEDOUT));
  } else {
    try_connect();
  }
}

void Connector::Attempt::on_connected() {
  timer_.cancel();
  if (connected_to_itself()) {
    fail(make_error_code(Errc::self_connected));
  } else {
    stream_->detach();
  }
}

// A socket whose own port is the one it tries meets itself: TCP allows both ends to open at once
// (K15).
bool Connector::Attempt::connected_to_itself() const {
  if (!request_.to.is_ip()) return false;
  Kernel& kernel = connector_.loop_.kernel();
  const Result<SocketAddress> own = bound_address(kernel, stream_->descriptor());
  if (!own || own->port() != request_.to.port()) return false;
  // Not request_.to: whoever connects to 0.0.0.0 or [::] reaches the loopback address.
  const Result<SocketAddress> peer = peer_address(kernel, stream_->descriptor());
  return *own == (peer ? *peer : request_.to);
}

void Connector::Attempt::on_received(std::span<const std::byte>) {
  PENSTOCK_ASSERT(false, "receiving was off before there was anything to receive");
}

void Connector::Attempt::on_failed(int error) { fail(system_error(error)); }

void Connector::Attempt::fail(std::error_code error) {
  if (!error_) error_ = error;
  timer_.cancel();
  if (stream_ != nullptr) {
    // Reset: if the handshake has just succeeded, the peer must not wait for us.
    stream_->abort();
  } else {
    ready();
  }
}

void Connector::Attempt::cancel() noexcept {
  owner_ = nullptr;
  fail(system_error(ECANCELED));
}

void Connector::Attempt::on_closed() {
  stream_ = nullptr;
  ready();
}

void Connector::Attempt::on_detached(UniqueFd fd) {
  fd_ = std::move(fd);
  stream_ = nullptr;
  ready();
}

void Connector::Attempt::ready() {
  if (!linked()) connector_.due_.push_back(*this);
}

void Connector::Attempt::tell() {
  ConnectOwner* owner = std::exchange(owner_, nullptr);
  if (owner == nullptr) return;  // what was connected is closed with this
  if (error_) {
    fd_.reset();
    owner->connect_failed(error_);
  } else {
    owner->connect_succeeded(std::move(fd_));
  }
}

}  // namespace penstock

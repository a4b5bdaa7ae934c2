#include "penstock/tcp/listener.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "penstock/base/log.h"

namespace penstock {
namespace {

int set_option(Kernel& kernel, int fd, int level, int name, int value) {
  return kernel.setsockopt(fd, level, name, &value, sizeof value);
}

}  // namespace

Result<UniqueFd> Listener::make_socket(const SocketAddress& address,
                                       const ListenerOptions& options) {
  Kernel& kernel = loop_.kernel();
  if (!address.is_ip()) return failure(EAFNOSUPPORT);
  const int fd =
      kernel.socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
  if (fd < 0) return failure(fd);
  UniqueFd socket(kernel, fd);

  // Accepted sockets inherit these (Linux), which saves six calls for each.
  const auto user_timeout =
      std::chrono::duration_cast<std::chrono::milliseconds>(options.user_timeout).count();
  const struct {
    int level;
    int name;
    int value;
  } wanted[] = {
      {SOL_SOCKET, SO_REUSEADDR, 1},
      {IPPROTO_TCP, TCP_NODELAY, 1},
      {SOL_SOCKET, SO_KEEPALIVE, 1},
      {IPPROTO_TCP, TCP_KEEPIDLE, 60},
      {IPPROTO_TCP, TCP_KEEPINTVL, 10},
      {IPPROTO_TCP, TCP_KEEPCNT, 6},
      {IPPROTO_TCP, TCP_USER_TIMEOUT,
       static_cast<int>(std::min<std::int64_t>(user_timeout, INT32_MAX))},
  };
  for (const auto& [level, name, value] : wanted) {
    const int set = set_option(kernel, fd, level, name, value);
    if (set < 0) return failure(set);
  }
  const int bound = kernel.bind(fd, address.data(), address.size());
  if (bound < 0) return failure(bound);
  const int listening = kernel.listen(fd, options.backlog);
  if (listening < 0) return failure(listening);
  return socket;
}

Result<void> Listener::open(const SocketAddress& address, const ListenerOptions& options) {
  loop_.assert_here();
  if (open_) return failure(Errc::already_started);
  Result<UniqueFd> socket = make_socket(address, options);
  if (!socket) return std::unexpected(socket.error());

  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  auto* bound = reinterpret_cast<sockaddr*>(&storage);
  const int named = loop_.kernel().getsockname(socket->get(), bound, &size);
  if (named < 0) return failure(named);
  retry_place_.emplace(loop_.timers());
  open_reserve();
  const int fd = socket->get();
  const Result<ListenerId> id = loop_.backend().listen(std::move(*socket), *this);
  if (!id) {
    retry_place_.reset();
    reserve_.reset();
    return std::unexpected(id.error());
  }
  id_ = *id;
  fd_ = fd;
  address_ = SocketAddress(bound, size);
  open_ = true;
  apply();
  return {};
}

void Listener::close() {
  if (!open_) return;
  open_ = false;
  loop_.backend().close_listener(id_);
  fd_ = -1;
  retry_timer_.cancel();
  retry_place_.reset();
  reserve_.reset();
}

void Listener::pause() {
  paused_by_owner_ = true;
  apply();
}

void Listener::resume() {
  paused_by_owner_ = false;
  apply();
}

void Listener::retry_now() {
  if (!starved_.exchange(false)) return;
  retry_timer_.cancel();
  if (!reserve_) open_reserve();
  apply();
}

void Listener::apply() {
  if (!open_) return;
  if (paused_by_owner_ || starved_) {
    loop_.backend().pause_accepting(id_);
  } else {
    loop_.backend().resume_accepting(id_);
  }
}

void Listener::on_accepted(UniqueFd fd, const SocketAddress& peer) {
  accepted_.fetch_add(1, std::memory_order_relaxed);
  back_off_ = kBackOffMin;
  owner_.connection_accepted(std::move(fd), peer);
}

// The condition lasts, so asking again at once would spin (K8); an edge would never be told again
// (K9).
void Listener::on_accept_failed(int error) {
  accept_errors_.fetch_add(1, std::memory_order_relaxed);
  if (loop_.now() >= next_warning_) {
    next_warning_ = loop_.now() + std::chrono::seconds(1);
    log_composed(LogLevel::warning, [&] {
      return "accepting on " + address_.to_string() + " pauses: " + system_error(error).message() +
             (error == EMFILE ? "; raise the limit on descriptors with ulimit -n" : "");
    });
  }
  if (error == EMFILE || error == ENFILE) refuse_pending();
  if (!open_) return;
  starved_ = true;
  apply();
  loop_.timers().schedule(retry_timer_, add_clamped(loop_.read_clock(), back_off_));
  back_off_ = std::min(back_off_ * 2, kBackOffMax);
}

ListenerStatistics Listener::statistics() const noexcept {
  return {
      .accepted = accepted_.load(std::memory_order_relaxed),
      .refused_for_descriptors = refused_for_descriptors_.load(std::memory_order_relaxed),
      .accept_errors = accept_errors_.load(std::memory_order_relaxed),
  };
}

void Listener::open_reserve() {
  Kernel& kernel = loop_.kernel();
  const int fd = kernel.open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (fd >= 0) reserve_ = UniqueFd(kernel, fd);
}

// With the one descriptor kept for this, clients that wait are told so instead of being left in the
// backlog.
void Listener::refuse_pending() {
  if (!reserve_) return;
  Kernel& kernel = loop_.kernel();
  for (int refusals = 0; refusals < kRefusalsMax; ++refusals) {
    reserve_.reset();
    const int fd = kernel.accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) break;  // EAGAIN: all are refused; EMFILE: another thread was faster
    kernel.close(fd);
    refused_for_descriptors_.fetch_add(1, std::memory_order_relaxed);
    open_reserve();
    if (!reserve_) return;
  }
  if (!reserve_) open_reserve();
}

std::string describe_listen_error(const std::string& address, std::error_code error) {
  std::string line = "cannot listen on " + address + ": " + error.message();
  if (error.category() != std::system_category()) return line;
  switch (error.value()) {
    case EADDRINUSE:
      return line + "; another process has this port: choose another, or 0 for any free one";
    case EACCES:
      return line + "; ports below 1024 need privileges: choose a higher one";
    case EADDRNOTAVAIL:
      return line + "; no interface of this machine has that address: try 0.0.0.0 or 127.0.0.1";
    case EAFNOSUPPORT:
      return line + "; only IPv4 and IPv6 addresses are served";
    case EMFILE:
    case ENFILE:
      return line + "; raise the limit on descriptors with ulimit -n";
    default:
      return line;
  }
}

}  // namespace penstock

#include "penstock/tcp/listener.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "penstock/base/log.h"
#include "tcp/stream_socket.h"

namespace penstock {

Result<UniqueFd> Listener::make_socket(const SocketAddress& address,
                                       const ListenerOptions& options) {
  Kernel& kernel = loop_.kernel();
  Result<UniqueFd> made = make_stream_socket(kernel, address.family(), options.user_timeout);
  if (!made) return made;
  const int fd = made->get();
  int result = 0;
  if (address.is_ip()) result = set_option(kernel, fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (result == 0 && address.family() == AF_INET6) {
    result = set_option(kernel, fd, IPPROTO_IPV6, IPV6_V6ONLY, options.ipv6_only ? 1 : 0);
  }
  if (result == 0) {
    result = address.is_unix() ? bind_unix(fd, address)
                               : kernel.bind(fd, address.data(), address.size());
  }
  if (result == 0) result = kernel.listen(fd, options.backlog);
  if (result < 0) return failure(result);
  return made;
}

int Listener::bind_unix(int fd, const SocketAddress& address) {
  Kernel& kernel = loop_.kernel();
  int result = kernel.bind(fd, address.data(), address.size());
  if (result == -EADDRINUSE && remove_stale_socket(address)) {
    result = kernel.bind(fd, address.data(), address.size());
  }
  std::string path = address.path();
  if (result < 0 || path.starts_with('@')) return result;
  result = kernel.file_status(AT_FDCWD, path.c_str(), unix_status_);
  if (result == 0) {
    unix_path_ = std::move(path);
  } else {
    kernel.unlink(path.c_str());  // without its status it could not be told from others later
  }
  return result;
}

// A socket nobody listens on refuses; so does a file of another kind, which is none of ours.
bool Listener::remove_stale_socket(const SocketAddress& address) {
  Kernel& kernel = loop_.kernel();
  const std::string path = address.path();
  FileStatus status;
  if (path.starts_with('@') || kernel.file_status(AT_FDCWD, path.c_str(), status) < 0) return false;
  if (!S_ISSOCK(status.mode)) return false;
  const int fd = kernel.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const UniqueFd probe(kernel, fd);
  if (kernel.connect(fd, address.data(), address.size()) != -ECONNREFUSED) return false;
  return kernel.unlink(path.c_str()) == 0;
}

Result<void> Listener::open(const SocketAddress& address, const ListenerOptions& options) {
  loop_.assert_here();
  if (open_) return failure(Errc::already_started);
  Result<UniqueFd> socket = make_socket(address, options);
  Result<void> accepting;
  if (socket) {
    accepting = accept_on(std::move(*socket), options);
  } else {
    accepting = std::unexpected(socket.error());
  }
  if (!accepting) remove_unix_path();
  return accepting;
}

Result<void> Listener::adopt(UniqueFd fd, const ListenerOptions& options) {
  loop_.assert_here();
  if (open_) return failure(Errc::already_started);
  Kernel& kernel = loop_.kernel();
  for (const auto& [name, wanted] : {std::pair{SO_TYPE, int{SOCK_STREAM}}, {SO_ACCEPTCONN, 1}}) {
    int value = 0;
    socklen_t size = sizeof value;
    const int asked = kernel.getsockopt(fd.get(), SOL_SOCKET, name, &value, &size);
    if (asked == 0 && value == wanted) continue;
    static_cast<void>(fd.release());  // somebody else's, or nobody's
    return asked == -EBADF ? failure(EBADF) : failure(Errc::not_listening);
  }
  int result = kernel.make_nonblocking(fd.get());
  if (result < 0) return failure(result);
  const Result<SocketAddress> address = bound_address(kernel, fd.get());
  if (!address) return std::unexpected(address.error());
  result = set_tcp_options(kernel, fd.get(), address->family(), options.user_timeout);
  if (result < 0) return failure(result);
  return accept_on(std::move(fd), options);
}

Result<void> Listener::accept_on(UniqueFd socket, const ListenerOptions& options) {
  const Result<SocketAddress> bound = bound_address(loop_.kernel(), socket.get());
  if (!bound) return std::unexpected(bound.error());
  retry_place_.emplace(loop_.timers());
  rate_.reset();
  if (const std::size_t rate = options.accepts_per_second_max; rate > 0) {
    rate_.emplace(rate, rate);
    rate_place_.emplace(loop_.timers());
  }
  open_reserve();
  const int fd = socket.get();
  const Result<ListenerId> id = loop_.backend().listen(std::move(socket), *this);
  if (!id) {
    retry_place_.reset();
    rate_place_.reset();
    reserve_.reset();
    return std::unexpected(id.error());
  }
  id_ = *id;
  fd_ = fd;
  address_ = *bound;
  open_ = true;
  apply();
  return {};
}

void Listener::close() {
  if (!open_) return;
  open_ = false;
  remove_unix_path();  // first: whoever finds it could still connect
  loop_.backend().close_listener(id_);
  fd_ = -1;
  retry_timer_.cancel();
  retry_place_.reset();
  rate_timer_.cancel();
  rate_place_.reset();
  paused_for_rate_ = false;
  reserve_.reset();
}

// Only the file that we made: another server may have put its own in the place.
void Listener::remove_unix_path() {
  if (unix_path_.empty()) return;
  Kernel& kernel = loop_.kernel();
  FileStatus status;
  if (kernel.file_status(AT_FDCWD, unix_path_.c_str(), status) == 0 &&
      status.is_same(unix_status_)) {
    kernel.unlink(unix_path_.c_str());
  }
  unix_path_.clear();
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
  if (paused_by_owner_ || paused_for_rate_ || starved_) {
    loop_.backend().pause_accepting(id_);
  } else {
    loop_.backend().resume_accepting(id_);
  }
}

void Listener::on_accepted(UniqueFd fd, const SocketAddress& peer) {
  accepted_.fetch_add(1, std::memory_order_relaxed);
  back_off_ = kBackOffMin;
  if (rate_) count_for_rate();  // first: the owner may close us
  owner_.connection_accepted(std::move(fd), peer);
}

// By the end of the last poll: all that came in it came then.
void Listener::count_for_rate() {
  rate_->take(loop_.now());
  if (rate_->next_at() <= loop_.now()) return;
  rate_pauses_.fetch_add(1, std::memory_order_relaxed);
  paused_for_rate_ = true;
  apply();
  loop_.timers().schedule(rate_timer_, rate_->next_at());
}

void Listener::rate_is_due() {
  paused_for_rate_ = false;
  apply();
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
      .rate_pauses = rate_pauses_.load(std::memory_order_relaxed),
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
  const bool is_unix = address.starts_with("unix:");
  switch (error.value()) {
    case EADDRINUSE:
      return line + (is_unix ? "; another process listens there, or a file is in the way: choose "
                               "another path"
                             : "; another process has this port: choose another, or 0 for any "
                               "free one");
    case EACCES:
      return line + (is_unix ? "; choose a path in a directory you may write to"
                             : "; ports below 1024 need privileges: choose a higher one");
    case ENOENT:
    case ENOTDIR:
      return line + (is_unix ? "; its directory does not exist" : "");
    case EADDRNOTAVAIL:
      return line + "; no interface of this machine has that address: try 0.0.0.0 or 127.0.0.1";
    case EAFNOSUPPORT:
      return line + "; this machine has no sockets of that kind: try 127.0.0.1";
    case EBADF:
      return line + "; no such descriptor was inherited";
    case EMFILE:
    case ENFILE:
      return line + "; raise the limit on descriptors with ulimit -n";
    default:
      return line;
  }
}

}  // namespace penstock

#include "penstock/sim/faulty_kernel.h"

#include <algorithm>
#include <numeric>

#include "penstock/base/assert.h"

namespace penstock {
namespace {

/// Whether this thread is inside a hook: what a hook calls runs no hooks.
thread_local bool in_hook = false;

constexpr std::size_t index_of(Call call) noexcept { return static_cast<std::size_t>(call); }

bool can_fall_short(Call call) noexcept {
  switch (call) {
    case Call::any:
    case Call::recv:
    case Call::send:
    case Call::sendmsg:
    case Call::sendfile:
    case Call::splice:
    case Call::read:
    case Call::write:
    case Call::epoll_wait:
      return true;
    default:
      return false;
  }
}

std::span<const iovec> parts_of(const msghdr& message) noexcept {
  return {message.msg_iov, message.msg_iovlen};
}

std::size_t bytes_in(const msghdr& message) noexcept {
  const std::span<const iovec> parts = parts_of(message);
  return std::accumulate(parts.begin(), parts.end(), std::size_t{0},
                         [](std::size_t bytes, const iovec& part) { return bytes + part.iov_len; });
}

/// The parts that hold the first `size` bytes of the message.
std::vector<iovec> trimmed_parts(const msghdr& message, std::size_t size) {
  std::vector<iovec> parts;
  for (iovec part : parts_of(message)) {
    if (size == 0) break;
    part.iov_len = std::min(part.iov_len, size);
    size -= part.iov_len;
    parts.push_back(part);
  }
  return parts;
}

}  // namespace

FaultyKernel::Rule FaultyKernel::inject(Fault fault) {
  PENSTOCK_ASSERT((fault.error > 0) != fault.shorten_to.has_value(),
                  "a fault needs either an errno value or a size to shorten to");
  PENSTOCK_ASSERT(fault.shorten_to.value_or(1) > 0, "nothing asked for would look like the end");
  PENSTOCK_ASSERT(!fault.shorten_to || can_fall_short(fault.call), "this call cannot fall short");
  PENSTOCK_ASSERT(fault.operation == 0 || fault.call == Call::epoll_ctl,
                  "only epoll_ctl has operations");
  if (fault.times == 0) fault.times = fault.every > 0 ? UINT64_MAX : 1;
  if (fault.every == 0) fault.every = 1;
  if (fault.first == 0) fault.first = fault.every;

  const std::scoped_lock lock(mutex_);
  rules_.push_back({.fault = std::move(fault)});
  return Rule{rules_.size() - 1};
}

void FaultyKernel::heal() {
  const std::scoped_lock lock(mutex_);
  for (State& rule : rules_) {
    rule.in_force = false;
  }
}

void FaultyKernel::before(Call call, std::function<void(int fd)> hook) {
  std::shared_ptr<const Hook> shared;
  if (hook) shared = std::make_shared<const Hook>(std::move(hook));
  const std::scoped_lock lock(mutex_);
  hooks_[index_of(call)].swap(shared);
}

void FaultyKernel::advance(Duration delta) {
  PENSTOCK_ASSERT(delta >= Duration::zero(), "monotonic time does not go back");
  ahead_.fetch_add(delta.count());
}

std::uint64_t FaultyKernel::fired(Rule rule) const {
  const std::scoped_lock lock(mutex_);
  return rules_.at(static_cast<std::size_t>(rule)).fired;
}

std::uint64_t FaultyKernel::matched(Rule rule) const {
  const std::scoped_lock lock(mutex_);
  return rules_.at(static_cast<std::size_t>(rule)).matched;
}

std::uint64_t FaultyKernel::calls(Call call) const {
  const std::scoped_lock lock(mutex_);
  return calls_[index_of(call)];
}

std::uint64_t FaultyKernel::calls_on(Call call, int fd) const {
  const std::scoped_lock lock(mutex_);
  const auto found = calls_on_.find({call, fd});
  return found == calls_on_.end() ? 0 : found->second;
}

std::uint64_t FaultyKernel::wakeups() const {
  const std::scoped_lock lock(mutex_);
  return wakeups_;
}

std::uint64_t FaultyKernel::events() const {
  const std::scoped_lock lock(mutex_);
  return events_;
}

std::optional<short> FaultyKernel::polled_for(int fd) const {
  const std::scoped_lock lock(mutex_);
  const auto found = polled_.find(fd);
  if (found == polled_.end()) return std::nullopt;
  return found->second;
}

// -- Deciding --

FaultyKernel::Verdict FaultyKernel::judge(const Attempt& attempt) {
  run_hook(Call::any, attempt.fd);
  run_hook(attempt.call, attempt.fd);

  const std::scoped_lock lock(mutex_);
  for (const Call call : {Call::any, attempt.call}) {
    ++calls_[index_of(call)];
    ++calls_on_[{call, attempt.fd}];
  }
  Verdict verdict{.size = attempt.size.value_or(0)};
  bool disturbed = false;
  for (State& rule : rules_) {
    if (!rule.in_force || !matches(rule.fault, attempt)) continue;
    ++rule.matched;
    if (disturbed || !is_due(rule)) continue;
    disturbed = true;
    ++rule.fired;
    verdict.error = rule.fault.error;
    verdict.size = rule.fault.shorten_to.value_or(verdict.size);
  }
  return verdict;
}

bool FaultyKernel::matches(const Fault& fault, const Attempt& attempt) {
  if (fault.call != Call::any && fault.call != attempt.call) return false;
  if (fault.fd && *fault.fd != attempt.fd) return false;
  if (fault.operation != 0 && fault.operation != attempt.operation) return false;
  if (fault.shorten_to && attempt.size.value_or(0) <= *fault.shorten_to) return false;
  return !fault.where || fault.where(attempt.fd);
}

bool FaultyKernel::is_due(const State& rule) {
  const Fault& fault = rule.fault;
  return rule.fired < fault.times && rule.matched >= fault.first &&
         (rule.matched - fault.first) % fault.every == 0;
}

template <class Forward>
auto FaultyKernel::run(const Attempt& attempt, Forward forward) {
  using Answer = decltype(forward());
  const Verdict verdict = judge(attempt);
  if (verdict.error == 0) return forward();
  rearm(attempt);
  return static_cast<Answer>(-verdict.error);
}

template <class Forward>
auto FaultyKernel::run_sized(const Attempt& attempt, Forward forward) {
  using Answer = decltype(forward(std::size_t{}));
  const Verdict verdict = judge(attempt);
  if (verdict.error != 0) {
    rearm(attempt);
    return static_cast<Answer>(-verdict.error);
  }
  const Answer answer = forward(verdict.size);
  // A caller whose shortened request was met in full must hear of what is left.
  const bool met_in_full = answer > 0 && static_cast<std::size_t>(answer) == verdict.size;
  if (verdict.size < attempt.size && met_in_full) rearm(attempt);
  return answer;
}

void FaultyKernel::run_hook(Call call, int fd) {
  if (in_hook) return;
  std::shared_ptr<const Hook> hook;
  {
    const std::scoped_lock lock(mutex_);
    hook = hooks_[index_of(call)];
  }
  if (!hook) return;
  struct Inside {
    Inside() { in_hook = true; }
    ~Inside() { in_hook = false; }
  } const inside;
  (*hook)(fd);
}

// -- Keeping edges alive --

void FaultyKernel::rearm(const Attempt& attempt) {
  rearm(attempt.fd);
  rearm(attempt.other_fd);
}

void FaultyKernel::rearm(int fd) {
  std::vector<Registration> registrations;
  {
    const std::scoped_lock lock(mutex_);
    const auto found = registrations_.find(fd);
    if (found == registrations_.end()) return;
    registrations = found->second;
  }
  for (Registration& registration : registrations) {
    if ((registration.event.events & EPOLLONESHOT) != 0) continue;
    // May fail when the descriptor has left meanwhile; then there is no edge to keep.
    ForwardingKernel::raw_epoll_ctl(registration.epoll_fd, EPOLL_CTL_MOD, fd, &registration.event);
  }
}

void FaultyKernel::remember(int epoll_fd, int operation, int fd, const epoll_event* event) {
  const std::scoped_lock lock(mutex_);
  std::vector<Registration>& registrations = registrations_[fd];
  std::erase_if(registrations,
                [&](const Registration& known) { return known.epoll_fd == epoll_fd; });
  if (operation != EPOLL_CTL_DEL) registrations.push_back({epoll_fd, *event});
}

void FaultyKernel::forget(int fd) {
  const std::scoped_lock lock(mutex_);
  record_fds_.erase(fd);
  registrations_.erase(fd);
  for (auto& [watched, registrations] : registrations_) {
    std::erase_if(registrations, [&](const Registration& known) { return known.epoll_fd == fd; });
  }
}

int FaultyKernel::remember_record_fd(int fd) {
  if (fd >= 0) {
    const std::scoped_lock lock(mutex_);
    record_fds_.insert(fd);
  }
  return fd;
}

bool FaultyKernel::moves_records(int fd) const {
  const std::scoped_lock lock(mutex_);
  return record_fds_.contains(fd);
}

int FaultyKernel::count_wait(int result) {
  if (result > 0) {
    const std::scoped_lock lock(mutex_);
    ++wakeups_;
    events_ += static_cast<std::uint64_t>(result);
  }
  return result;
}

// -- Calls that move bytes --

ssize_t FaultyKernel::raw_recv(int fd, void* buffer, std::size_t size, int flags) {
  return run_sized({Call::recv, fd, size}, [&](std::size_t asked) {
    return ForwardingKernel::raw_recv(fd, buffer, asked, flags);
  });
}

ssize_t FaultyKernel::raw_send(int fd, const void* bytes, std::size_t size, int flags) {
  return run_sized({Call::send, fd, size}, [&](std::size_t asked) {
    return ForwardingKernel::raw_send(fd, bytes, asked, flags);
  });
}

ssize_t FaultyKernel::raw_sendmsg(int fd, const msghdr* message, int flags) {
  const std::size_t size = bytes_in(*message);
  return run_sized({Call::sendmsg, fd, size}, [&](std::size_t asked) {
    if (asked == size) return ForwardingKernel::raw_sendmsg(fd, message, flags);
    std::vector<iovec> parts = trimmed_parts(*message, asked);
    msghdr trimmed = *message;
    trimmed.msg_iov = parts.data();
    trimmed.msg_iovlen = parts.size();
    return ForwardingKernel::raw_sendmsg(fd, &trimmed, flags);
  });
}

ssize_t FaultyKernel::raw_sendfile(int to, int from, off_t* offset, std::size_t size) {
  return run_sized({Call::sendfile, to, size}, [&](std::size_t asked) {
    return ForwardingKernel::raw_sendfile(to, from, offset, asked);
  });
}

ssize_t FaultyKernel::raw_splice(int from, int to, std::size_t size, unsigned flags) {
  return run_sized(
      {.call = Call::splice, .fd = from, .size = size, .other_fd = to},
      [&](std::size_t asked) { return ForwardingKernel::raw_splice(from, to, asked, flags); });
}

ssize_t FaultyKernel::raw_read(int fd, void* buffer, std::size_t size) {
  const auto ask = [&](std::size_t asked) { return ForwardingKernel::raw_read(fd, buffer, asked); };
  if (moves_records(fd)) return run({Call::read, fd}, [&] { return ask(size); });
  return run_sized({Call::read, fd, size}, ask);
}

ssize_t FaultyKernel::raw_write(int fd, const void* bytes, std::size_t size) {
  const auto ask = [&](std::size_t asked) { return ForwardingKernel::raw_write(fd, bytes, asked); };
  if (moves_records(fd)) return run({Call::write, fd}, [&] { return ask(size); });
  return run_sized({Call::write, fd, size}, ask);
}

// -- Waiting --

int FaultyKernel::raw_epoll_create(int flags) {
  return run({Call::epoll_create}, [&] { return ForwardingKernel::raw_epoll_create(flags); });
}

int FaultyKernel::raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) {
  const Verdict verdict = judge({.call = Call::epoll_ctl, .fd = fd, .operation = operation});
  if (verdict.error != 0) return -verdict.error;
  const int answer = ForwardingKernel::raw_epoll_ctl(epoll_fd, operation, fd, event);
  if (answer == 0) remember(epoll_fd, operation, fd, event);
  return answer;
}

int FaultyKernel::raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) {
  const auto ask = [&](std::size_t asked) {
    return ForwardingKernel::raw_epoll_wait(epoll_fd, events, static_cast<int>(asked), timeout);
  };
  return count_wait(
      run_sized({Call::epoll_wait, epoll_fd, static_cast<std::size_t>(capacity)}, ask));
}

int FaultyKernel::raw_poll(std::span<pollfd> descriptors, const timespec* timeout) {
  {
    const std::scoped_lock lock(mutex_);
    polled_.clear();
    for (const pollfd& descriptor : descriptors)
      polled_[descriptor.fd] = descriptor.events;
  }
  // A pause, not a wait: it needs no memory, so the kernel has nothing to refuse.
  if (descriptors.empty()) return ForwardingKernel::raw_poll(descriptors, timeout);
  return count_wait(
      run({Call::poll}, [&] { return ForwardingKernel::raw_poll(descriptors, timeout); }));
}

int FaultyKernel::raw_eventfd(unsigned initial, int flags) {
  return remember_record_fd(
      run({Call::eventfd}, [&] { return ForwardingKernel::raw_eventfd(initial, flags); }));
}

int FaultyKernel::raw_signalfd(int fd, const sigset_t* mask, int flags) {
  return remember_record_fd(
      run({Call::signalfd, fd}, [&] { return ForwardingKernel::raw_signalfd(fd, mask, flags); }));
}

// -- Calls that act before they report --

int FaultyKernel::raw_connect(int fd, const sockaddr* address, socklen_t size) {
  const Attempt attempt{Call::connect, fd};
  const Verdict verdict = judge(attempt);
  if (verdict.error == EINTR || verdict.error == EINPROGRESS) {
    const int answer = ForwardingKernel::raw_connect(fd, address, size);
    return answer == 0 || answer == -EINPROGRESS ? -verdict.error : answer;
  }
  if (verdict.error == 0) return ForwardingKernel::raw_connect(fd, address, size);
  rearm(attempt);
  return -verdict.error;
}

int FaultyKernel::raw_close(int fd) {
  const Verdict verdict = judge({Call::close, fd});
  forget(fd);  // before its number can be given out again
  const int answer = ForwardingKernel::raw_close(fd);
  return answer == 0 ? -verdict.error : answer;
}

// -- The others --

int FaultyKernel::raw_socket(int domain, int type, int protocol) {
  return run({Call::socket}, [&] { return ForwardingKernel::raw_socket(domain, type, protocol); });
}

int FaultyKernel::raw_bind(int fd, const sockaddr* address, socklen_t size) {
  return run({Call::bind, fd}, [&] { return ForwardingKernel::raw_bind(fd, address, size); });
}

int FaultyKernel::raw_listen(int fd, int backlog) {
  return run({Call::listen, fd}, [&] { return ForwardingKernel::raw_listen(fd, backlog); });
}

int FaultyKernel::raw_accept4(int fd, sockaddr* peer, socklen_t* size, int flags) {
  return run({Call::accept4, fd},
             [&] { return ForwardingKernel::raw_accept4(fd, peer, size, flags); });
}

int FaultyKernel::raw_getsockopt(int fd, int level, int name, void* value, socklen_t* size) {
  return run({Call::getsockopt, fd},
             [&] { return ForwardingKernel::raw_getsockopt(fd, level, name, value, size); });
}

int FaultyKernel::raw_setsockopt(int fd, int level, int name, const void* value, socklen_t size) {
  return run({Call::setsockopt, fd},
             [&] { return ForwardingKernel::raw_setsockopt(fd, level, name, value, size); });
}

int FaultyKernel::raw_getsockname(int fd, sockaddr* address, socklen_t* size) {
  return run({Call::getsockname, fd},
             [&] { return ForwardingKernel::raw_getsockname(fd, address, size); });
}

int FaultyKernel::raw_getpeername(int fd, sockaddr* address, socklen_t* size) {
  return run({Call::getpeername, fd},
             [&] { return ForwardingKernel::raw_getpeername(fd, address, size); });
}

int FaultyKernel::raw_shutdown(int fd, int how) {
  return run({Call::shutdown, fd}, [&] { return ForwardingKernel::raw_shutdown(fd, how); });
}

int FaultyKernel::raw_unacknowledged_bytes(int fd) {
  return run({Call::unacknowledged_bytes, fd},
             [&] { return ForwardingKernel::raw_unacknowledged_bytes(fd); });
}

int FaultyKernel::raw_signal_mask(int how, const sigset_t* set, sigset_t* previous) {
  return run({Call::signal_mask},
             [&] { return ForwardingKernel::raw_signal_mask(how, set, previous); });
}

int FaultyKernel::raw_open(const char* path, int flags) {
  return run({Call::open}, [&] { return ForwardingKernel::raw_open(path, flags); });
}

int FaultyKernel::raw_unlink(const char* path) {
  return run({Call::unlink}, [&] { return ForwardingKernel::raw_unlink(path); });
}

int FaultyKernel::raw_file_status(int fd, const char* path, FileStatus& status) {
  return run({Call::file_status, fd},
             [&] { return ForwardingKernel::raw_file_status(fd, path, status); });
}

int FaultyKernel::raw_make_nonblocking(int fd) {
  return run({Call::make_nonblocking, fd},
             [&] { return ForwardingKernel::raw_make_nonblocking(fd); });
}

int FaultyKernel::raw_entropy(std::span<std::byte> bytes) {
  return run({Call::entropy}, [&] { return ForwardingKernel::raw_entropy(bytes); });
}

TimePoint FaultyKernel::raw_now() { return ForwardingKernel::raw_now() + Duration(ahead_.load()); }

}  // namespace penstock

// A kernel that disturbs: it stands before the real one, counts the calls, and makes chosen ones
// fail or fall short. A test owns it; the loops under test borrow it. Thread-safe.
//
//   FaultyKernel kernel(linux_kernel());
//   const auto rule = kernel.inject({.call = Call::sendmsg, .first = 3, .error = EAGAIN});
//   kernel.inject({.call = Call::recv, .every = 1, .shorten_to = 1});
//   ... run the code under test ...
//   EXPECT_EQ(kernel.fired(rule), 1u);
//
// What it promises
//   1. It tells the truth: it fails by not calling and shortens by asking for less; it never alters
//      what the kernel answered. Two calls are made nevertheless, because the real ones act before
//      they report: close (the descriptor is gone when it says EINTR or EIO, close(2)), and connect
//      failing with EINTR or EINPROGRESS (the attempt goes on, connect(2)). Should such a call
//      really fail, that answer is passed on instead.
//   2. It leaves no one waiting for an edge that will not come: after it has made a call fail or
//      fall short, it re-arms the descriptor in each epoll it was registered with through this
//      kernel (EPOLL_CTL_MOD with the same event). One-shot registrations are left alone; their
//      owner re-arms them. A failed epoll_ctl just fails.
//   3. Reads and writes of an eventfd or signalfd are never shortened: these move whole records. A
//      poll of no descriptors is a pause; Linux cannot refuse it, so it is neither disturbed nor
//      counted.
//   4. It has no clock, no dice and no memory of data: schedules come from the test.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "penstock/base/clock.h"
#include "penstock/os/forwarding_kernel.h"

namespace penstock {

/// The calls of the kernel seam that can fail; `any` stands for all of them.
enum class Call : std::size_t {
  any,
  socket,
  bind,
  listen,
  accept4,
  connect,
  getsockopt,
  setsockopt,
  getsockname,
  getpeername,
  shutdown,
  recv,
  send,
  sendmsg,
  sendfile,
  splice,
  unacknowledged_bytes,
  epoll_create,
  epoll_ctl,
  epoll_wait,
  poll,
  eventfd,
  signalfd,
  signal_mask,
  read,
  write,
  open,
  close,
  unlink,
  file_status,
  make_nonblocking,
  entropy,
};

/// How many values Call has.
inline constexpr std::size_t kCallKinds = static_cast<std::size_t>(Call::entropy) + 1;

/// Which calls to disturb, and how. Set exactly one of `error` and `shorten_to`.
///
/// The descriptor of a call is its first one, but for epoll_ctl the one it is about; -1 for a call
/// that has none. "Delay" is not a separate effect: EAGAIN delays a call that will be repeated,
/// EINTR makes a wait answer no events.
struct Fault {
  /// Only calls of this kind.
  Call call = Call::any;

  /// Only calls on this descriptor.
  std::optional<int> fd = {};
  /// Only calls on a descriptor for which this answers true. It runs under this kernel's lock and
  /// must not call it.
  std::function<bool(int fd)> where = {};
  /// For epoll_ctl, only this operation (EPOLL_CTL_ADD, ...); 0 for all.
  int operation = 0;

  /// The matching call to begin with, counted from 1 at inject(). 0 means `every`, or 1 when that
  /// is 0 too.
  std::uint64_t first = 0;
  /// After the first, every k-th matching call; 0 and 1 both mean each one.
  std::uint64_t every = 0;
  /// How often to fire. 0 means without end when `every` is given, else once.
  std::uint64_t times = 0;

  /// The errno value to fail with. EINTR at every call never ends where the seam retries.
  int error = 0;
  /// The bytes to ask for at most, 1 or more (events, for epoll_wait). Matches only calls that ask
  /// for more: recv, send, sendmsg, sendfile, splice, read, write, epoll_wait.
  std::optional<std::size_t> shorten_to = {};
};

/// Wraps a kernel and disturbs it by rule.
class FaultyKernel final : public ForwardingKernel {
 public:
  /// Names a rule of this kernel.
  enum class Rule : std::size_t {};

  /// Stands before a kernel, which outlives it; disturbs nothing yet.
  using ForwardingKernel::ForwardingKernel;

  /// Adds a rule, in force at once. Every rule counts the calls it matches; of several that are due
  /// at the same call the earliest added one fires, and the others have missed their turn (fired()
  /// tells).
  Rule inject(Fault fault);

  /// Ends all rules. Their counts stay.
  void heal();

  /// Runs `hook` before each call of that kind (before each of all kinds for `any`), with the
  /// call's descriptor: to reset a peer between readiness and recv, say. Replaces the hook the kind
  /// had; an empty one removes it. Hooks run unlocked on the calling thread; what a hook itself
  /// calls through this kernel runs no hooks.
  void before(Call call, std::function<void(int fd)> hook);

  /// Moves now() forward, so that what waits for a time falls due; a wait that has begun does not
  /// end earlier.
  void advance(Duration delta);

  /// How often the rule has disturbed a call. Assert it: a fault that never happened proves
  /// nothing.
  std::uint64_t fired(Rule rule) const;
  /// How many calls the rule has matched, disturbed or not.
  std::uint64_t matched(Rule rule) const;
  /// Calls made so far, disturbed ones included; of all kinds together by default.
  std::uint64_t calls(Call call = Call::any) const;
  /// Calls made on a descriptor number so far, in all its lives.
  std::uint64_t calls_on(Call call, int fd) const;
  /// Waits (epoll_wait and poll) that returned with at least one event.
  std::uint64_t wakeups() const;
  /// Events that all waits have returned.
  std::uint64_t events() const;
  /// The events for which the last poll waited on the descriptor; nothing if it did not.
  std::optional<short> polled_for(int fd) const;

 private:
  struct State {
    Fault fault;
    std::uint64_t matched = 0;
    std::uint64_t fired = 0;
    bool in_force = true;
  };
  struct Registration {
    int epoll_fd;
    epoll_event event;
  };
  /// A call as the rules see it.
  struct Attempt {
    Call call;
    int fd = -1;
    std::optional<std::size_t> size = {};  ///< What it asks for, when that can be shortened.
    int operation = 0;
    int other_fd = -1;  ///< The second descriptor of splice.
  };
  /// What to do with it.
  struct Verdict {
    int error = 0;         ///< Fail with this, unless 0.
    std::size_t size = 0;  ///< Ask for this much.
  };
  using Hook = std::function<void(int fd)>;

  /// Runs the hooks, counts the call and asks the rules.
  Verdict judge(const Attempt& attempt);
  static bool matches(const Fault& fault, const Attempt& attempt);
  static bool is_due(const State& rule);
  /// A call that succeeds or fails as a whole.
  template <class Forward>
  auto run(const Attempt& attempt, Forward forward);
  /// A call that can fall short; forward(size) asks the wrapped kernel for that much.
  template <class Forward>
  auto run_sized(const Attempt& attempt, Forward forward);

  void run_hook(Call call, int fd);
  void rearm(const Attempt& attempt);
  void rearm(int fd);
  void remember(int epoll_fd, int operation, int fd, const epoll_event* event);
  void forget(int fd);
  int remember_record_fd(int fd);
  bool moves_records(int fd) const;
  int count_wait(int result);

  int raw_socket(int domain, int type, int protocol) override;
  int raw_bind(int fd, const sockaddr* address, socklen_t size) override;
  int raw_listen(int fd, int backlog) override;
  int raw_accept4(int fd, sockaddr* peer, socklen_t* size, int flags) override;
  int raw_connect(int fd, const sockaddr* address, socklen_t size) override;
  int raw_getsockopt(int fd, int level, int name, void* value, socklen_t* size) override;
  int raw_setsockopt(int fd, int level, int name, const void* value, socklen_t size) override;
  int raw_getsockname(int fd, sockaddr* address, socklen_t* size) override;
  int raw_getpeername(int fd, sockaddr* address, socklen_t* size) override;
  int raw_shutdown(int fd, int how) override;
  ssize_t raw_recv(int fd, void* buffer, std::size_t size, int flags) override;
  ssize_t raw_send(int fd, const void* bytes, std::size_t size, int flags) override;
  ssize_t raw_sendmsg(int fd, const msghdr* message, int flags) override;
  ssize_t raw_sendfile(int to, int from, off_t* offset, std::size_t size) override;
  ssize_t raw_splice(int from, int to, std::size_t size, unsigned flags) override;
  int raw_unacknowledged_bytes(int fd) override;
  int raw_epoll_create(int flags) override;
  int raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) override;
  int raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) override;
  int raw_poll(std::span<pollfd> descriptors, const timespec* timeout) override;
  int raw_eventfd(unsigned initial, int flags) override;
  int raw_signalfd(int fd, const sigset_t* mask, int flags) override;
  int raw_signal_mask(int how, const sigset_t* set, sigset_t* previous) override;
  ssize_t raw_read(int fd, void* buffer, std::size_t size) override;
  ssize_t raw_write(int fd, const void* bytes, std::size_t size) override;
  int raw_open(const char* path, int flags) override;
  int raw_close(int fd) override;
  int raw_unlink(const char* path) override;
  int raw_file_status(int fd, const char* path, FileStatus& status) override;
  int raw_make_nonblocking(int fd) override;
  TimePoint raw_now() override;
  int raw_entropy(std::span<std::byte> bytes) override;

  std::atomic<Duration::rep> ahead_{0};

  mutable std::mutex mutex_;  // guards all below; never held during a call of the wrapped kernel
  std::vector<State> rules_;
  std::array<std::shared_ptr<const Hook>, kCallKinds> hooks_;
  std::array<std::uint64_t, kCallKinds> calls_{};
  std::map<std::pair<Call, int>, std::uint64_t> calls_on_;
  std::map<int, std::vector<Registration>> registrations_;
  std::set<int> record_fds_;     // eventfd and signalfd
  std::map<int, short> polled_;  // what the last poll waited for
  std::uint64_t wakeups_ = 0;
  std::uint64_t events_ = 0;
};

}  // namespace penstock

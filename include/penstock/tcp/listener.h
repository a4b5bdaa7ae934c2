// A listening socket and the policy of accepting on it: when to pause, what to do when descriptors
// run out. Owner: a server; loop's thread. It never spins: a shortage pauses it, with a back-off of
// 10 to 50 ms, until one of our connections closes; its rate pauses it until the next connection is
// due. It refuses to hand connections out: its owner does.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>

#include "penstock/base/result.h"
#include "penstock/base/token_bucket.h"
#include "penstock/io/io_backend.h"
#include "penstock/loop/event_loop.h"
#include "penstock/os/socket_address.h"
#include "penstock/os/unique_fd.h"

namespace penstock {

/// Receives the connections of a listener.
class ListenerOwner {
 public:
  /// A connection is there; the owner takes its descriptor. `peer` is valid during the call only.
  virtual void connection_accepted(UniqueFd fd, const SocketAddress& peer) = 0;

 protected:
  ~ListenerOwner() = default;
};

/// How to listen.
struct ListenerOptions {
  /// Connections the kernel may keep for us, complete and not yet accepted; capped by
  /// net.core.somaxconn.
  int backlog = 4096;
  /// TCP_USER_TIMEOUT of accepted connections; zero leaves the kernel's.
  Duration user_timeout{};
  /// On an IPv6 address, leave IPv4 alone; else [::] serves both (such a peer is called
  /// "[::ffff:10.0.0.1]:7000").
  bool ipv6_only = false;
  /// Connections taken per second in the long run, and at once after a quiet second; 0: as they
  /// come. Who comes too fast waits in the backlog.
  std::size_t accepts_per_second_max = 0;
};

/// Counters since the start.
struct ListenerStatistics {
  std::uint64_t accepted = 0;  ///< Handed to the owner.
  std::uint64_t refused_for_descriptors =
      0;                            ///< Accepted with the reserve descriptor and closed at once.
  std::uint64_t accept_errors = 0;  ///< accept4 failures that paused accepting.
  std::uint64_t rate_pauses = 0;    ///< Times accepting paused because its rate was used up.
};

/// One listening socket. Loop's thread, but for what says thread-safe.
class Listener final : private AcceptHandler {
 public:
  /// Does not listen yet. The loop and the owner outlive it.
  Listener(EventLoop& loop, ListenerOwner& owner) noexcept : loop_(loop), owner_(owner) {}
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  ~Listener() { close(); }

  /// Binds and listens. Accepted TCP sockets have TCP_NODELAY, and keep-alive after 60 s, every 10 s,
  /// 6 times. A Unix path is created with the permissions the umask leaves and removed by close(); a
  /// socket left there by a dead process (connecting to it is refused) is replaced, any other file
  /// is not. Errors: what socket, bind and listen say (EADDRINUSE, EACCES, EADDRNOTAVAIL …).
  Result<void> open(const SocketAddress& address, const ListenerOptions& options);
  /// Accepts on a socket that listens already: inherited, or made by the program. Errors:
  /// not_listening and EBADF, with the descriptor left alone, because it is somebody else's; what
  /// the kernel says, with it closed.
  Result<void> adopt(UniqueFd fd, const ListenerOptions& options);
  /// Its port refuses from now on; who is in the backlog is reset. Idempotent.
  void close();
  /// Whether it listens, paused or not.
  bool is_open() const noexcept { return open_; }

  /// Leaves new connections in the backlog (the owner is full). Idempotent.
  void pause();
  /// Ends pause(); who waits in the backlog comes first. Idempotent.
  void resume();
  /// Whether it waits for descriptors or kernel memory. Thread-safe.
  bool starved() const noexcept { return starved_.load(); }
  /// Something of ours has been closed: accept again at once.
  void retry_now();

  /// The address it listens on, with the real port.
  const SocketAddress& address() const noexcept { return address_; }
  /// Thread-safe.
  ListenerStatistics statistics() const noexcept;

 private:
  static constexpr Duration kBackOffMin = std::chrono::milliseconds(10);
  static constexpr Duration kBackOffMax = std::chrono::milliseconds(50);
  static constexpr int kRefusalsMax = 64;

  void on_accepted(UniqueFd fd, const SocketAddress& peer) override;
  void on_accept_failed(int error) override;
  void count_for_rate();
  void rate_is_due();
  Result<UniqueFd> make_socket(const SocketAddress& address, const ListenerOptions& options);
  int bind_unix(int fd, const SocketAddress& address);
  bool remove_stale_socket(const SocketAddress& address);
  Result<void> accept_on(UniqueFd socket, const ListenerOptions& options);
  void remove_unix_path();
  void open_reserve();
  void refuse_pending();
  void apply();

  EventLoop& loop_;
  ListenerOwner& owner_;
  ListenerId id_;
  int fd_ = -1;             // the back-end's; for accepting with the reserve
  std::string unix_path_;   // the file we made, if any
  FileStatus unix_status_;  // which file that was
  UniqueFd reserve_;
  SocketAddress address_;
  std::atomic<std::uint64_t> accepted_{0};
  std::atomic<std::uint64_t> refused_for_descriptors_{0};
  std::atomic<std::uint64_t> accept_errors_{0};
  std::atomic<std::uint64_t> rate_pauses_{0};
  Duration back_off_ = kBackOffMin;
  TimePoint next_warning_ = TimePoint::min();
  std::optional<TimerPlace> retry_place_;  // while open
  Timer retry_timer_ = Timer::calling<&Listener::retry_now>(*this);
  std::optional<TokenBucket> rate_;       // if it has one
  std::optional<TimerPlace> rate_place_;  // while open, if it has a rate
  Timer rate_timer_ = Timer::calling<&Listener::rate_is_due>(*this);
  // Three reasons to pause, each with an end of its own.
  bool open_ = false;
  bool paused_by_owner_ = false;
  bool paused_for_rate_ = false;
  std::atomic<bool> starved_{false};
};

/// One line for a human: what was tried, why it failed and what to do about it.
std::string describe_listen_error(const std::string& address, std::error_code error);

}  // namespace penstock

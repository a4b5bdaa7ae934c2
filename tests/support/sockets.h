// Sockets for tests: connected pairs, and bounded waits for what the kernel will do in its own
// time. All descriptors are non-blocking. No fixed ports: everything binds to port 0 of the
// loopback.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

#include "penstock/os/kernel.h"
#include "penstock/os/socket_address.h"
#include "penstock/os/unique_fd.h"

namespace penstock::test {

/// Two connected ends. For TCP, `client` connected and `server` was accepted.
struct SocketPair {
  UniqueFd client;
  UniqueFd server;
};

struct Listener {
  UniqueFd fd;
  SocketAddress address;
};

UniqueFd tcp_socket(Kernel& kernel);
/// Listens at a free port of 127.0.0.1.
Listener listen_tcp(Kernel& kernel, int backlog = 128);
/// Begins to connect; the attempt may still be under way.
UniqueFd start_connect(Kernel& kernel, const SocketAddress& address);
/// Takes the next connection; waits for it.
UniqueFd accept_one(Kernel& kernel, const Listener& listener);
SocketPair tcp_pair(Kernel& kernel);
/// socketpair(2): Unix stream sockets.
SocketPair unix_pair(Kernel& kernel);

/// The address the socket is bound to.
SocketAddress local_address(Kernel& kernel, int fd);
/// Makes close() reset the connection (SO_LINGER with zero time).
void reset_on_close(Kernel& kernel, int fd);

/// Waits until poll(2) reports any of `events` (errors and hang-up always count), and answers what
/// it reported; 0 after ten seconds, which is a failed test.
short wait_for(Kernel& kernel, int fd, short events);
/// Waits until the condition holds, asking again and again; false after ten seconds.
bool eventually(const std::function<bool()>& condition);
/// Waits until the peer's kernel has everything that was sent.
bool all_acknowledged(Kernel& kernel, int fd);

/// One sendmsg of the text.
ssize_t send_text(Kernel& kernel, int fd, std::string_view text);
/// One recv into a large buffer.
struct Received {
  ssize_t result;
  std::string text;
};
Received receive(Kernel& kernel, int fd, std::size_t size = 65536, int flags = 0);
/// Sends until the kernel takes no more; the number of bytes it took.
std::size_t send_until_full(Kernel& kernel, int fd);
/// Receives until the end: its text, and the recv result that ended it (0, or -errno other than
/// EAGAIN).
Received receive_to_end(Kernel& kernel, int fd);

/// An epoll instance and short verbs for it.
class Epoll {
 public:
  explicit Epoll(Kernel& kernel);
  int fd() const noexcept { return fd_.get(); }
  /// The results of epoll_ctl. The descriptor is the user data.
  int add(int fd, std::uint32_t events);
  int change(int fd, std::uint32_t events);
  int remove(int fd);
  /// The events of one ready descriptor, waiting up to ten seconds; 0 for none.
  std::uint32_t wait();
  /// The same without waiting: what is there now.
  std::uint32_t now();

 private:
  std::uint32_t wait_milliseconds(int timeout);
  int control(int operation, int fd, std::uint32_t events);

  Kernel& kernel_;
  UniqueFd fd_;
};

}  // namespace penstock::test

#include "tcp/stream_socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <utility>

namespace penstock {

int set_option(Kernel& kernel, int fd, int level, int name, int value) {
  return kernel.setsockopt(fd, level, name, &value, sizeof value);
}

int set_tcp_options(Kernel& kernel, int fd, int family, Duration user_timeout) {
  if (family != AF_INET && family != AF_INET6) return 0;  // Unix sockets say EOPNOTSUPP (K33)
  const auto timeout = std::chrono::duration_cast<std::chrono::milliseconds>(user_timeout).count();
  const struct {
    int level;
    int name;
    int value;
  } wanted[] = {
      {IPPROTO_TCP, TCP_NODELAY, 1},
      {SOL_SOCKET, SO_KEEPALIVE, 1},
      {IPPROTO_TCP, TCP_KEEPIDLE, 60},
      {IPPROTO_TCP, TCP_KEEPINTVL, 10},
      {IPPROTO_TCP, TCP_KEEPCNT, 6},
      {IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(std::min<std::int64_t>(timeout, INT32_MAX))},
  };
  for (const auto& [level, name, value] : wanted) {
    const int set = set_option(kernel, fd, level, name, value);
    if (set < 0) return set;
  }
  return 0;
}

Result<UniqueFd> make_stream_socket(Kernel& kernel, int family, Duration user_timeout) {
  const int fd = kernel.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return failure(fd);
  UniqueFd socket(kernel, fd);
  const int set = set_tcp_options(kernel, fd, family, user_timeout);
  if (set < 0) return failure(set);
  return socket;
}

namespace {

using AskForAddress = int (Kernel::*)(int fd, sockaddr* address, socklen_t* size);

Result<SocketAddress> address_by(AskForAddress ask, Kernel& kernel, int fd) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  const int named = (kernel.*ask)(fd, address, &size);
  if (named < 0) return failure(named);
  return SocketAddress(address, size);
}

}  // namespace

Result<SocketAddress> bound_address(Kernel& kernel, int fd) {
  return address_by(&Kernel::getsockname, kernel, fd);
}

Result<SocketAddress> peer_address(Kernel& kernel, int fd) {
  return address_by(&Kernel::getpeername, kernel, fd);
}

}  // namespace penstock

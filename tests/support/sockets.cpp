#include "support/sockets.h"

#include <gtest/gtest.h>
#include <netinet/in.h>

#include <array>
#include <chrono>
#include <thread>
#include <vector>

namespace penstock::test {
namespace {

constexpr int kPatienceSeconds = 10;
constexpr int kSocketFlags = SOCK_NONBLOCK | SOCK_CLOEXEC;

}  // namespace

UniqueFd tcp_socket(Kernel& kernel) {
  UniqueFd fd(kernel, kernel.socket(AF_INET, SOCK_STREAM | kSocketFlags, 0));
  EXPECT_TRUE(fd);
  return fd;
}

Listener listen_tcp(Kernel& kernel, int backlog) {
  Listener listener{.fd = tcp_socket(kernel), .address = {}};
  const SocketAddress any_port = SocketAddress::parse("127.0.0.1:0").value();
  EXPECT_EQ(kernel.bind(listener.fd.get(), any_port.data(), any_port.size()), 0);
  EXPECT_EQ(kernel.listen(listener.fd.get(), backlog), 0);
  listener.address = local_address(kernel, listener.fd.get());
  return listener;
}

UniqueFd start_connect(Kernel& kernel, const SocketAddress& address) {
  UniqueFd fd(kernel, kernel.socket(address.family(), SOCK_STREAM | kSocketFlags, 0));
  const int result = kernel.connect(fd.get(), address.data(), address.size());
  EXPECT_TRUE(result == 0 || result == -EINPROGRESS) << "connect answered " << result;
  return fd;
}

UniqueFd accept_one(Kernel& kernel, const Listener& listener) {
  wait_for(kernel, listener.fd.get(), POLLIN);
  UniqueFd fd(kernel, kernel.accept4(listener.fd.get(), nullptr, nullptr, kSocketFlags));
  EXPECT_TRUE(fd);
  return fd;
}

SocketPair tcp_pair(Kernel& kernel) {
  const Listener listener = listen_tcp(kernel);
  SocketPair pair;
  pair.client = start_connect(kernel, listener.address);
  pair.server = accept_one(kernel, listener);
  EXPECT_EQ(wait_for(kernel, pair.client.get(), POLLOUT), POLLOUT);
  return pair;
}

SocketPair unix_pair(Kernel& kernel) {
  std::array<int, 2> fds{-1, -1};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | kSocketFlags, 0, fds.data()), 0);
  return {.client = UniqueFd(kernel, fds[0]), .server = UniqueFd(kernel, fds[1])};
}

SocketAddress local_address(Kernel& kernel, int fd) {
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  EXPECT_EQ(kernel.getsockname(fd, address, &size), 0);
  return {address, size};
}

void reset_on_close(Kernel& kernel, int fd) {
  const linger at_once{.l_onoff = 1, .l_linger = 0};
  EXPECT_EQ(kernel.setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
}

short wait_for(Kernel& kernel, int fd, short events) {
  std::array<pollfd, 1> descriptors{pollfd{.fd = fd, .events = events, .revents = 0}};
  const timespec patience{.tv_sec = kPatienceSeconds, .tv_nsec = 0};
  EXPECT_EQ(kernel.poll(descriptors, &patience), 1) << "waited in vain for events " << events;
  return descriptors[0].revents;
}

bool eventually(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(kPatienceSeconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

bool all_acknowledged(Kernel& kernel, int fd) {
  return eventually([&] { return kernel.unacknowledged_bytes(fd) == 0; });
}

ssize_t send_text(Kernel& kernel, int fd, std::string_view text) {
  std::string copy(text);
  iovec part{.iov_base = copy.data(), .iov_len = copy.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  return kernel.sendmsg(fd, &message, 0);
}

Received receive(Kernel& kernel, int fd, std::size_t size, int flags) {
  Received received{.result = 0, .text = std::string(size, '\0')};
  received.result = kernel.recv(fd, received.text.data(), size, flags);
  received.text.resize(received.result > 0 ? static_cast<std::size_t>(received.result) : 0);
  return received;
}

std::size_t send_until_full(Kernel& kernel, int fd) {
  const std::vector<char> block(65536, 'x');
  std::size_t sent = 0;
  while (true) {
    const ssize_t count = kernel.send(fd, block.data(), block.size(), 0);
    if (count > 0) sent += static_cast<std::size_t>(count);
    if (count > 0) continue;
    EXPECT_EQ(count, -EAGAIN);
    return sent;
  }
}

Received receive_to_end(Kernel& kernel, int fd) {
  Received all{.result = -EAGAIN, .text = {}};
  while (true) {
    Received some = receive(kernel, fd);
    all.text += some.text;
    all.result = some.result;
    if (some.result > 0) continue;
    if (some.result != -EAGAIN || wait_for(kernel, fd, POLLIN) == 0) return all;
  }
}

Epoll::Epoll(Kernel& kernel) : kernel_(kernel), fd_(kernel, kernel.epoll_create(EPOLL_CLOEXEC)) {
  EXPECT_TRUE(fd_);
}

int Epoll::add(int fd, std::uint32_t events) { return control(EPOLL_CTL_ADD, fd, events); }

int Epoll::change(int fd, std::uint32_t events) { return control(EPOLL_CTL_MOD, fd, events); }

int Epoll::remove(int fd) { return control(EPOLL_CTL_DEL, fd, 0); }

std::uint32_t Epoll::wait() { return wait_milliseconds(kPatienceSeconds * 1000); }

std::uint32_t Epoll::now() { return wait_milliseconds(0); }

std::uint32_t Epoll::wait_milliseconds(int timeout) {
  epoll_event event{};
  return kernel_.epoll_wait(fd_.get(), &event, 1, timeout) == 1 ? event.events : 0;
}

int Epoll::control(int operation, int fd, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  return kernel_.epoll_ctl(fd_.get(), operation, fd, &event);
}

}  // namespace penstock::test

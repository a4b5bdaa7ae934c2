#include "support/connecting.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

namespace penstock::test {

// -- What it did with its sockets -----------------------------------------------------------------

int SocketTap::noted(const char* name, int fd, int option, int result) {
  calls.push_back({.name = name, .fd = fd, .option = option, .result = result});
  return result;
}

std::size_t SocketTap::count(const std::string& name) const {
  return static_cast<std::size_t>(
      std::ranges::count_if(calls, [&](const SocketCall& call) { return call.name == name; }));
}

std::size_t SocketTap::count_so_error() const {
  return static_cast<std::size_t>(std::ranges::count_if(calls, [](const SocketCall& call) {
    return call.name == "getsockopt" && call.option == SO_ERROR;
  }));
}

int SocketTap::raw_socket(int domain, int type, int protocol) {
  const int fd = ForwardingKernel::raw_socket(domain, type, protocol);
  return noted("socket", fd, 0, fd);
}

int SocketTap::raw_bind(int fd, const sockaddr* address, socklen_t size) {
  return noted("bind", fd, 0, ForwardingKernel::raw_bind(fd, address, size));
}

int SocketTap::raw_connect(int fd, const sockaddr* address, socklen_t size) {
  connecting_ = fd;
  return noted("connect", fd, 0, ForwardingKernel::raw_connect(fd, address, size));
}

int SocketTap::raw_getsockopt(int fd, int level, int name, void* value, socklen_t* size) {
  const int result = ForwardingKernel::raw_getsockopt(fd, level, name, value, size);
  if (level != SOL_SOCKET || name != SO_ERROR) return result;
  if (so_error) {
    const std::optional<int> error = so_error(fd);
    if (error) std::memcpy(value, &*error, sizeof *error);
  }
  return noted("getsockopt", fd, name, result);
}

int SocketTap::raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) {
  const int result = ForwardingKernel::raw_epoll_ctl(epoll_fd, operation, fd, event);
  if (result == 0 && operation != EPOLL_CTL_DEL) registered_[fd] = *event;
  if (result == 0 && operation == EPOLL_CTL_DEL) registered_.erase(fd);
  return noted("epoll_ctl", fd, operation, result);
}

int SocketTap::raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) {
  const auto odd = registered_.find(connecting_);
  if (odd_events.empty() || odd == registered_.end()) {
    return ForwardingKernel::raw_epoll_wait(epoll_fd, events, capacity, timeout);
  }
  int count = std::max(ForwardingKernel::raw_epoll_wait(epoll_fd, events, capacity, 0), 0);
  count = static_cast<int>(std::remove_if(events, events + count,
                                          [&](const epoll_event& event) {
                                            return event.data.u64 == odd->second.data.u64;
                                          }) -
                           events);
  count = std::min(count, capacity - 1);
  events[count].events = odd_events.front();
  events[count].data = odd->second.data;
  odd_events.erase(odd_events.begin());
  ++odd_events_told;
  // What was taken away must be told once more, by an edge too.
  ForwardingKernel::raw_epoll_ctl(epoll_fd, EPOLL_CTL_MOD, connecting_, &odd->second);
  return count + 1;
}

int SocketTap::raw_poll(std::span<pollfd> descriptors, const timespec* timeout) {
  const auto odd = std::ranges::find(descriptors, connecting_, &pollfd::fd);
  if (odd_events.empty() || odd == descriptors.end()) {
    return ForwardingKernel::raw_poll(descriptors, timeout);
  }
  const timespec at_once{};
  ForwardingKernel::raw_poll(descriptors, &at_once);
  odd->revents = static_cast<short>(odd_events.front());
  odd_events.erase(odd_events.begin());
  ++odd_events_told;
  return static_cast<int>(
      std::ranges::count_if(descriptors, [](const pollfd& one) { return one.revents != 0; }));
}

int SocketTap::raw_close(int fd) {
  registered_.erase(fd);
  return noted("close", fd, 0, ForwardingKernel::raw_close(fd));
}

int SocketTap::raw_entropy(std::span<std::byte> bytes) {
  if (!dice) return ForwardingKernel::raw_entropy(bytes);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(*dice >> (8 * (i % 8)));
  return 0;
}

// -- What its callbacks were told -----------------------------------------------------------------

std::size_t Diary::count(const std::string& event) const {
  return static_cast<std::size_t>(std::ranges::count(events, event));
}

void Diary::note(const std::string& event, TcpConnection* peer) {
  if (peer != nullptr) {
    EXPECT_EQ(peer, live) << event << " outside of the connection's life";
  }
  events.push_back(event);
  if (then) then(event, peer);
}

void Diary::keep(TcpClient& client) {
  client.on_connect([this, held = token](TcpConnection& peer) {
    EXPECT_EQ(live, nullptr) << "two connections at a time";
    live = &peer;
    note("connect", &peer);
  });
  client.on_message([this, held = token](TcpConnection& peer, InputBuffer& in) {
    received += in.take_string();
    note("message", &peer);
  });
  client.on_peer_finished([this, held = token](TcpConnection& peer) {
    note("peer_finished", &peer);
    peer.finish();
  });
  client.on_write_complete(
      [this, held = token](TcpConnection& peer) { note("write_complete", &peer); });
  client.on_high_water([this, held = token](TcpConnection& peer) { note("high", &peer); });
  client.on_low_water([this, held = token](TcpConnection& peer) { note("low", &peer); });
  client.on_close([this, held = token](TcpConnection& peer, const CloseReport& report) {
    EXPECT_EQ(&peer, live) << "on_close twice, or without on_connect";
    live = nullptr;
    reports.push_back(report);
    note("close", nullptr);
  });
  client.on_connect_failed([this, held = token](const ConnectFailure& failure) {
    EXPECT_EQ(live, nullptr) << "an attempt failed while connected";
    failures.push_back(failure);
    note("failed", nullptr);
  });
}

// -- Peers ----------------------------------------------------------------------------------------

Port::Port() : listener_{.fd = tcp_socket(linux_kernel()), .address = {}} {
  const SocketAddress any_port = SocketAddress::parse("127.0.0.1:0").value();
  EXPECT_EQ(linux_kernel().bind(listener_.fd.get(), any_port.data(), any_port.size()), 0);
  listener_.address = local_address(linux_kernel(), listener_.fd.get());
}

void Port::open(int backlog) { EXPECT_EQ(linux_kernel().listen(listener_.fd.get(), backlog), 0); }

bool Port::someone_waits() const {
  pollfd descriptor{.fd = listener_.fd.get(), .events = POLLIN, .revents = 0};
  const timespec at_once{};
  return linux_kernel().poll(std::span(&descriptor, 1), &at_once) == 1;
}

FullPort::FullPort() : listener_(listen_tcp(linux_kernel(), 0)) {
  filler_ = start_connect(linux_kernel(), listener_.address);
  EXPECT_NE(wait_for(linux_kernel(), listener_.fd.get(), POLLIN), 0);
}

Listener listen_unix(const SocketAddress& address, int backlog) {
  Listener listener{.fd = UniqueFd(linux_kernel(),
                                   linux_kernel().socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)),
                    .address = address};
  EXPECT_EQ(linux_kernel().bind(listener.fd.get(), address.data(), address.size()), 0);
  EXPECT_EQ(linux_kernel().listen(listener.fd.get(), backlog), 0);
  return listener;
}

namespace {

std::string unused_name() {
  static std::atomic<int> next{0};
  return "penstock-" + std::to_string(::getpid()) + "-" + std::to_string(++next);
}

}  // namespace

std::string unused_unix_path() { return testing::TempDir() + unused_name(); }

std::string unused_abstract_name() { return "@" + unused_name(); }

}  // namespace penstock::test

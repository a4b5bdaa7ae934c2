// A server under test and the raw clients of it: what its callbacks were told, checked as it
// happens, and short verbs for clients. One thread, unless a test says otherwise.
#pragma once

#include <gtest/gtest.h>

#include <cerrno>
#include <cstddef>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "penstock/tcp/server.h"
#include "support/sockets.h"

namespace penstock::test {

/// The account that a server's callbacks keep. Any callback before on_connect or after on_close is
/// a failure of the test.
struct Ledger {
  std::size_t connects = 0;
  std::size_t closes = 0;
  std::string received;
  std::vector<CloseReport> reports;
  std::set<TcpConnection*> live;

  void up(TcpConnection& peer) {
    ++connects;
    EXPECT_TRUE(live.insert(&peer).second) << "on_connect twice";
  }
  void seen(TcpConnection& peer) {
    EXPECT_TRUE(live.contains(&peer)) << "a callback outside of the connection's life";
  }
  void down(TcpConnection& peer, const CloseReport& report) {
    ++closes;
    EXPECT_EQ(live.erase(&peer), 1u) << "on_close twice, or without on_connect";
    reports.push_back(report);
  }
  std::size_t count(CloseReason reason) const {
    std::size_t found = 0;
    for (const CloseReport& report : reports)
      found += report.reason == reason ? 1 : 0;
    return found;
  }

  /// Sets the callbacks that keep this account and consume all input. Set others before or after.
  void keep(TcpServer& server) {
    server.on_connect([this](TcpConnection& peer) { up(peer); });
    server.on_message([this](TcpConnection& peer, InputBuffer& in) {
      seen(peer);
      received += in.take_string();
    });
    server.on_close([this](TcpConnection& peer, const CloseReport& report) { down(peer, report); });
  }
};

/// A raw, non-blocking client that remembers what it has read.
struct RawClient {
  RawClient() = default;
  explicit RawClient(UniqueFd its_fd) : fd(std::move(its_fd)) {}

  UniqueFd fd;
  std::size_t bytes = 0;  ///< Read so far.
  bool ended = false;
  ssize_t end = 0;  ///< What ended it: 0 or -errno.

  /// Reads what is there now. Answers the number of bytes.
  std::size_t read_some() {
    const std::size_t before = bytes;
    while (!ended) {
      const ssize_t count = linux_kernel().recv(fd.get(), scratch().data(), scratch().size(), 0);
      if (count == -EAGAIN) break;
      if (count > 0) {
        bytes += static_cast<std::size_t>(count);
      } else {
        ended = true;
        end = count;
      }
    }
    return bytes - before;
  }
  bool was_reset() const { return ended && end == -ECONNRESET; }
  bool saw_eof() const { return ended && end == 0; }

 private:
  static std::vector<char>& scratch() {
    static std::vector<char> memory(256 * 1024);
    return memory;
  }
};

/// Connects and waits until the handshake is over (the connection may still wait in the backlog).
inline UniqueFd connect_to(const SocketAddress& address) {
  UniqueFd fd = start_connect(linux_kernel(), address);
  EXPECT_NE(wait_for(linux_kernel(), fd.get(), POLLOUT) & POLLOUT, 0);
  return fd;
}

inline std::vector<RawClient> connect_many(const SocketAddress& address, std::size_t count) {
  std::vector<RawClient> clients;
  for (std::size_t i = 0; i < count; ++i)
    clients.emplace_back(connect_to(address));
  return clients;
}

/// The outcome of a connection attempt: 0 or an errno value.
inline int connect_outcome(const SocketAddress& address) {
  const UniqueFd fd = tcp_socket(linux_kernel());
  const int begun = linux_kernel().connect(fd.get(), address.data(), address.size());
  if (begun != -EINPROGRESS) return -begun;
  wait_for(linux_kernel(), fd.get(), POLLOUT);
  int error = 0;
  socklen_t size = sizeof error;
  linux_kernel().getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  return error;
}

}  // namespace penstock::test

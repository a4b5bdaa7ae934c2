// A client under test: what its callbacks were told, checked as it happens; what it did with its
// sockets, call by call; and raw peers in the states a client may meet. One thread.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "penstock/tcp/client.h"
#include "support/world.h"

namespace penstock::test {

/// The error of a result; none when it has succeeded.
inline std::error_code error_of(const Result<void>& result) {
  return result ? std::error_code() : result.error();
}

/// A call on a socket, as it reached the real kernel.
struct SocketCall {
  std::string name;
  int fd = -1;
  int option = 0;  ///< Of getsockopt and setsockopt; the operation of epoll_ctl.
  int result = 0;
};

/// Notes the calls on sockets in their order, and may put words into the kernel's mouth.
class SocketTap final : public ForwardingKernel {
 public:
  SocketTap() : ForwardingKernel(linux_kernel()) {}

  std::vector<SocketCall> calls;
  /// When set: what SO_ERROR says instead of the kernel; nothing leaves the kernel's answer.
  std::function<std::optional<int>(int fd)> so_error;
  /// When set: the events that the next waits report for the last socket that connected, instead of
  /// the kernel's; once each, then the kernel's own.
  std::vector<std::uint32_t> odd_events;
  std::size_t odd_events_told = 0;
  /// When set: the random number that every 8 bytes of entropy hold.
  std::optional<std::uint64_t> dice;

  std::size_t count(const std::string& name) const;
  std::size_t count_so_error() const;
  /// The socket of the last connect() call; -1 before.
  int last_connect() const noexcept { return connecting_; }

 private:
  int noted(const char* name, int fd, int option, int result);

  int raw_socket(int domain, int type, int protocol) override;
  int raw_bind(int fd, const sockaddr* address, socklen_t size) override;
  int raw_connect(int fd, const sockaddr* address, socklen_t size) override;
  int raw_getsockopt(int fd, int level, int name, void* value, socklen_t* size) override;
  int raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) override;
  int raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) override;
  int raw_poll(std::span<pollfd> descriptors, const timespec* timeout) override;
  int raw_close(int fd) override;
  int raw_entropy(std::span<std::byte> bytes) override;

  int connecting_ = -1;
  std::map<int, epoll_event> registered_;  // with epoll
};

/// The account that a client's callbacks keep.
struct Diary {
  /// "connect", "message", "peer_finished", "write_complete", "high", "low", "close", "failed".
  std::vector<std::string> events;
  std::vector<ConnectFailure> failures;
  std::vector<CloseReport> reports;
  std::string received;
  TcpConnection* live = nullptr;
  /// Runs in each callback, behind the note; nullptr for "failed".
  std::function<void(const std::string& event, TcpConnection* peer)> then;
  /// A share of it is held by each callback: its count tells whether they are still there.
  std::shared_ptr<int> token = std::make_shared<int>(0);

  std::size_t count(const std::string& event) const;
  /// Sets all callbacks. The end of the input is answered with finish(), as without a callback.
  void keep(TcpClient& client);

 private:
  void note(const std::string& event, TcpConnection* peer);
};

/// A port of 127.0.0.1 that refuses, and is nobody else's, until open().
class Port {
 public:
  Port();
  const SocketAddress& address() const noexcept { return listener_.address; }
  std::string text() const { return listener_.address.to_string(); }
  void open(int backlog = 128);
  /// Takes the next connection; waits for it.
  UniqueFd accept() { return accept_one(linux_kernel(), listener_); }
  /// Whether a connection waits.
  bool someone_waits() const;

 private:
  Listener listener_;
};

/// A listener whose backlog is full: further attempts hang.
class FullPort {
 public:
  FullPort();
  std::string text() const { return listener_.address.to_string(); }
  /// Makes room: takes the one that filled it.
  void make_room() { taken_ = accept_one(linux_kernel(), listener_); }

 private:
  Listener listener_;
  UniqueFd filler_;
  UniqueFd taken_;
};

/// A Unix socket that listens.
Listener listen_unix(const SocketAddress& address, int backlog = 128);
/// A name for a Unix socket that nobody else has: a path in the test's directory, or abstract.
std::string unused_unix_path();
std::string unused_abstract_name();

}  // namespace penstock::test

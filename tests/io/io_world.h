// One back-end on the real kernel with a FaultyKernel before it, and handlers that write down what they are told.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "penstock/io/io_backend.h"
#include "penstock/sim/faulty_kernel.h"
#include "support/sockets.h"
#include "support/world.h"

namespace penstock::test {

/// A stream's owner. Hooks run behind the note.
struct NotingHandler final : StreamHandler {
  void on_connected() override { note("connected", connected); }
  void on_received(std::span<const std::byte> bytes) override {
    received.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    note("received", on_data);
  }
  void on_peer_finished() override { note("peer_finished", finished); }
  void on_sent(std::size_t bytes) override {
    sent_bytes += bytes;
    note("sent", sent);
  }
  void on_failed(int failure) override {
    error = failure;
    note("failed", failed);
  }
  void on_closed() override {
    stream = nullptr;
    note("closed", closed);
  }
  void on_detached(UniqueFd fd) override {
    stream = nullptr;
    detached_fd = std::move(fd);
    note("detached", detached);
  }

  std::size_t count(std::string_view event) const {
    return static_cast<std::size_t>(std::ranges::count(events, event));
  }
  bool has(std::string_view event) const { return count(event) > 0; }

  Stream* stream = nullptr;
  std::vector<std::string> events;
  std::string received;
  std::size_t sent_bytes = 0;
  int error = 0;
  std::function<void()> connected;
  std::function<void()> on_data;
  std::function<void()> finished;
  std::function<void()> sent;
  std::function<void()> failed;
  std::function<void()> closed;
  std::function<void()> detached;
  UniqueFd detached_fd;

 private:
  void note(const char* event, const std::function<void()>& hook) {
    if (events.empty() || events.back() != event || std::string_view(event) != "received") {
      events.emplace_back(event);
    }
    if (hook) hook();
  }
};

/// The back-ends that ReadinessBackend makes. What it promises beyond the seam is tested on these.
inline constexpr Backend kReadinessBackends[] = {Backend::epoll, Backend::epoll_edge,
                                                 Backend::poll};

#define PENSTOCK_ON_EVERY_READINESS_BACKEND(Suite)                                  \
  INSTANTIATE_TEST_SUITE_P(Backends, Suite,                                         \
                           testing::ValuesIn(::penstock::test::kReadinessBackends), \
                           ::penstock::test::backend_test_name)

class IoTest : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    auto made = make_backend(GetParam(), kernel, kUntimed);
    ASSERT_TRUE(made.has_value());
    backend = std::move(*made);
  }
  void TearDown() override {
    if (!backend) return;
    for (const auto& handler : handlers_) {
      if (handler->stream != nullptr) handler->stream->close();
    }
    // The back-end may die only after on_closed.
    EXPECT_TRUE(poll_until([&] {
      return std::ranges::all_of(handlers_, [](const auto& each) { return !each->stream; });
    }));
  }

  bool edge() const { return GetParam() == Backend::epoll_edge; }

  /// One poll that does not wait.
  void poll(int times = 1) {
    for (int i = 0; i < times; ++i)
      backend->poll(TimePoint::min(), kernel.now());
  }
  /// Polls until the condition holds; false after ten seconds.
  [[nodiscard]] bool poll_until(const std::function<bool()>& condition) {
    const TimePoint end = linux_kernel().now() + std::chrono::seconds(10);
    while (!condition()) {
      if (linux_kernel().now() > end) return false;
      backend->poll(kernel.now() + std::chrono::milliseconds(2), kernel.now());
    }
    return true;
  }

  /// A handler that lives as long as the test.
  NotingHandler& make_handler() {
    handlers_.push_back(std::make_unique<NotingHandler>());
    return *handlers_.back();
  }
  /// A handler with an attached stream; `peer` gets the other end.
  NotingHandler& attach(UniqueFd& peer) {
    SocketPair pair = tcp_pair(kernel);
    peer = UniqueFd(linux_kernel(), pair.client.release());
    NotingHandler& handler = make_handler();
    const Result<Stream*> stream =
        backend->attach(std::move(pair.server), StreamKind::tcp, handler);
    EXPECT_TRUE(stream.has_value());
    if (stream) handler.stream = *stream;
    return handler;
  }
  /// Starts a connection attempt from a fresh socket.
  NotingHandler& connect(const SocketAddress& address) {
    NotingHandler& handler = make_handler();
    UniqueFd socket = tcp_socket(kernel);
    const Result<Stream*> stream = backend->connect(socket, address, handler);
    EXPECT_TRUE(stream.has_value());
    if (stream) handler.stream = *stream;
    return handler;
  }

  static iovec piece(std::string_view bytes) {
    return {.iov_base = const_cast<char*>(bytes.data()), .iov_len = bytes.size()};
  }
  static SendResult send(NotingHandler& handler, std::string_view bytes) {
    const iovec front = piece(bytes);
    return handler.stream->send({&front, 1});
  }
  static SendResult offer(NotingHandler& handler, std::string_view bytes) {
    const iovec front = piece(bytes);
    return handler.stream->offer({&front, 1});
  }

  FaultyKernel kernel{linux_kernel()};
  std::unique_ptr<IoBackend> backend;

 private:
  std::vector<std::unique_ptr<NotingHandler>> handlers_;
};

}  // namespace penstock::test

// Watches, waiting and waking at the seam, over every back-end: level semantics everywhere (R10).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdint>
#include <functional>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "io/io_world.h"
#include "penstock/os/forwarding_kernel.h"

namespace penstock::test {
namespace {

using std::chrono::hours;
using std::chrono::microseconds;
using std::chrono::milliseconds;

struct NotingWatch final : WatchHandler {
  void on_ready(Readiness readiness) override {
    ++calls;
    last = readiness;
    if (on_call) on_call();
  }
  int calls = 0;
  Readiness last;
  std::function<void()> on_call;
};

class WatchTest : public IoTest {
 protected:
  UniqueFd eventfd(unsigned count) {
    return {kernel, kernel.eventfd(count, EFD_NONBLOCK | EFD_CLOEXEC)};
  }
  std::pair<UniqueFd, UniqueFd> pipe() {
    std::array<int, 2> fds{-1, -1};
    EXPECT_EQ(::pipe2(fds.data(), O_NONBLOCK | O_CLOEXEC), 0);
    return {UniqueFd(kernel, fds[0]), UniqueFd(kernel, fds[1])};
  }
  WatchId watch(const UniqueFd& fd, Interest interest, NotingWatch& handler) {
    return backend->watch(fd.get(), interest, handler).value();
  }
  void drain(const UniqueFd& fd) {
    std::array<std::byte, 256> bytes;
    EXPECT_GT(kernel.read(fd.get(), bytes.data(), bytes.size()), 0);
  }
  /// The watch is told as long as the descriptor is readable, and then not at all.
  void expect_level_until_drained(const UniqueFd& fd, NotingWatch& handler) {
    ASSERT_TRUE(poll_until([&] { return handler.calls > 0; }));
    EXPECT_TRUE(handler.last.readable);
    EXPECT_FALSE(handler.last.writable);
    EXPECT_FALSE(handler.last.failed);
    const int calls = handler.calls;
    poll(3);
    EXPECT_EQ(handler.calls, calls + 3);
    drain(fd);
    poll(3);
    EXPECT_EQ(handler.calls, calls + 3);
  }
};

PENSTOCK_ON_EVERY_READINESS_BACKEND(WatchTest);

TEST_P(WatchTest, an_eventfd_is_told_by_level) {
  const UniqueFd fd = eventfd(3);
  NotingWatch handler;
  watch(fd, Interest::readable, handler);
  expect_level_until_drained(fd, handler);
}

TEST_P(WatchTest, a_pipe_is_told_by_level) {
  const auto [reader, writer] = pipe();
  NotingWatch handler;
  watch(reader, Interest::readable, handler);
  ASSERT_EQ(kernel.write(writer.get(), "abc", 3), 3);
  expect_level_until_drained(reader, handler);
}

TEST_P(WatchTest, a_timerfd_is_told_by_level) {
  const UniqueFd fd(kernel, ::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  const itimerspec once{.it_interval = {}, .it_value = {.tv_sec = 0, .tv_nsec = 1}};
  ASSERT_EQ(::timerfd_settime(fd.get(), 0, &once, nullptr), 0);
  NotingWatch handler;
  watch(fd, Interest::readable, handler);
  expect_level_until_drained(fd, handler);
}

TEST_P(WatchTest, a_signalfd_is_told_by_level) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  ASSERT_EQ(pthread_sigmask(SIG_BLOCK, &mask, nullptr), 0);
  const UniqueFd fd(kernel, kernel.signalfd(-1, &mask, O_NONBLOCK | O_CLOEXEC));
  NotingWatch handler;
  watch(fd, Interest::readable, handler);
  raise(SIGUSR1);
  expect_level_until_drained(fd, handler);
  ASSERT_EQ(pthread_sigmask(SIG_UNBLOCK, &mask, nullptr), 0);
}

TEST_P(WatchTest, a_socket_is_told_readable_and_writable_by_level) {
  const SocketPair pair = tcp_pair(kernel);
  NotingWatch handler;
  const WatchId id = watch(pair.client, Interest::both, handler);
  poll(2);
  EXPECT_EQ(handler.calls, 2);
  EXPECT_TRUE(handler.last.writable);
  EXPECT_FALSE(handler.last.readable);
  ASSERT_EQ(send_text(kernel, pair.server.get(), "x"), 1);
  wait_for(kernel, pair.client.get(), POLLIN);
  poll(2);
  EXPECT_TRUE(handler.last.readable && handler.last.writable);
  ASSERT_TRUE(backend->change_watch(id, Interest::readable).has_value());
  poll();
  EXPECT_FALSE(handler.last.writable);
  ASSERT_TRUE(backend->change_watch(id, Interest::writable).has_value());
  poll();
  EXPECT_FALSE(handler.last.readable);
  EXPECT_TRUE(handler.last.writable);
}

TEST_P(WatchTest, an_end_is_readable_and_a_hang_up_is_told_as_a_failure_too) {
  auto [reader, writer] = pipe();
  NotingWatch handler;
  watch(reader, Interest::readable, handler);
  writer.reset();
  ASSERT_TRUE(poll_until([&] { return handler.calls > 0; }));
  EXPECT_TRUE(handler.last.readable);
  EXPECT_TRUE(handler.last.failed);

  const SocketPair pair = tcp_pair(kernel);
  NotingWatch finished;
  watch(pair.client, Interest::readable, finished);
  ASSERT_EQ(kernel.shutdown(pair.server.get(), SHUT_WR), 0);
  ASSERT_TRUE(poll_until([&] { return finished.calls > 0; }));
  EXPECT_TRUE(finished.last.readable);
  EXPECT_FALSE(finished.last.failed);
}

// K6, K7
TEST_P(WatchTest, a_watch_for_nothing_costs_no_wake_ups_even_with_hang_up_and_error) {
  auto [reader, writer] = pipe();
  SocketPair pair = tcp_pair(kernel);
  NotingWatch on_pipe;
  NotingWatch on_socket;
  const WatchId pipe_id = watch(reader, Interest::none, on_pipe);
  const WatchId socket_id = watch(pair.client, Interest::readable, on_socket);
  ASSERT_TRUE(backend->change_watch(socket_id, Interest::none).has_value());
  writer.reset();
  reset_on_close(kernel, pair.server.get());
  pair.server.reset();
  wait_for(kernel, pair.client.get(), POLLHUP);
  const std::uint64_t wakeups = kernel.wakeups();
  poll(5);
  EXPECT_EQ(kernel.wakeups(), wakeups);
  EXPECT_EQ(on_pipe.calls + on_socket.calls, 0);
  ASSERT_TRUE(backend->change_watch(pipe_id, Interest::readable).has_value());
  ASSERT_TRUE(backend->change_watch(socket_id, Interest::readable).has_value());
  poll();
  EXPECT_TRUE(on_pipe.last.failed);
  EXPECT_TRUE(on_socket.last.failed);
}

TEST_P(WatchTest, unwatching_inside_its_own_callback_is_final) {
  const UniqueFd fd = eventfd(1);
  NotingWatch handler;
  WatchId id = watch(fd, Interest::readable, handler);
  handler.on_call = [&] {
    backend->unwatch(id);
    backend->unwatch(id);
    EXPECT_FALSE(backend->change_watch(id, Interest::readable).has_value());
  };
  poll(5);
  EXPECT_EQ(handler.calls, 1);
}

// RE2
TEST_P(WatchTest, unwatching_a_sibling_of_the_same_batch_silences_it_and_the_event_is_counted) {
  const UniqueFd first_fd = eventfd(1);
  const UniqueFd second_fd = eventfd(1);
  NotingWatch first;
  NotingWatch second;
  const WatchId first_id = watch(first_fd, Interest::readable, first);
  const WatchId second_id = watch(second_fd, Interest::readable, second);
  first.on_call = [&] { backend->unwatch(second_id); };
  second.on_call = [&] { backend->unwatch(first_id); };
  poll();
  EXPECT_EQ(first.calls + second.calls, 1);
  EXPECT_EQ(backend->statistics().stale_events, 1U);
}

TEST_P(WatchTest, changing_a_sibling_of_the_same_batch_to_nothing_silences_it) {
  const UniqueFd first_fd = eventfd(1);
  const UniqueFd second_fd = eventfd(1);
  NotingWatch first;
  NotingWatch second;
  const WatchId first_id = watch(first_fd, Interest::readable, first);
  const WatchId second_id = watch(second_fd, Interest::readable, second);
  first.on_call = [&] { EXPECT_TRUE(backend->change_watch(second_id, Interest::none)); };
  second.on_call = [&] { EXPECT_TRUE(backend->change_watch(first_id, Interest::none)); };
  poll();
  EXPECT_EQ(first.calls + second.calls, 1);
}

// RE3, K11
TEST_P(WatchTest, a_new_watch_on_a_reused_descriptor_number_gets_no_event_of_the_old_one) {
  UniqueFd first_fd = eventfd(1);
  UniqueFd second_fd = eventfd(1);
  NotingWatch first;
  NotingWatch second;
  NotingWatch successor;
  WatchId first_id = watch(first_fd, Interest::readable, first);
  WatchId second_id = watch(second_fd, Interest::readable, second);
  UniqueFd new_fd;
  const auto replace = [&](UniqueFd& victim, WatchId id) {
    if (new_fd) return;
    const int number = victim.get();
    backend->unwatch(id);
    victim.reset();
    new_fd = eventfd(0);
    ASSERT_EQ(new_fd.get(), number) << "the test is about reuse";
    watch(new_fd, Interest::readable, successor);
  };
  first.on_call = [&] { replace(second_fd, second_id); };
  second.on_call = [&] { replace(first_fd, first_id); };
  poll();
  EXPECT_EQ(successor.calls, 0);
  EXPECT_EQ(backend->statistics().stale_events, 1U);
  poll();
  EXPECT_EQ(successor.calls, 0);
}

TEST_P(WatchTest, more_events_than_fit_in_one_wait_are_all_served) {
  constexpr std::size_t kWatches = 300;
  std::vector<UniqueFd> fds;
  std::vector<NotingWatch> handlers(kWatches);
  for (std::size_t i = 0; i < kWatches; ++i) {
    fds.push_back(eventfd(1));
    watch(fds.back(), Interest::readable, handlers[i]);
  }
  // The array grows to what comes; 64 at a time would need five waits each.
  poll(20);
  for (const NotingWatch& handler : handlers)
    EXPECT_GE(handler.calls, 4);
}

// -- Waiting and waking ---------------------------------------------------------------------------------------

/// Notes the time-outs asked for, and does not wait.
class TimeoutKernel final : public ForwardingKernel {
 public:
  using ForwardingKernel::ForwardingKernel;
  std::vector<int> timeouts;
  /// Time stands still.
  TimePoint time = TimePoint(hours(1000));

 protected:
  int raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) override {
    timeouts.push_back(timeout);
    return ForwardingKernel::raw_epoll_wait(epoll_fd, events, capacity, 0);
  }
  int raw_poll(std::span<pollfd> descriptors, const timespec* timeout) override {
    const timespec at_once{};
    timeouts.push_back(timeout == nullptr ? -1
                                          : static_cast<int>(timeout->tv_sec * 1000 +
                                                             timeout->tv_nsec / 1'000'000));
    return ForwardingKernel::raw_poll(descriptors, &at_once);
  }
  TimePoint raw_now() override { return time; }
};

TEST_P(WatchTest, a_wait_is_rounded_up_to_milliseconds_and_never_negative_by_overflow) {
  TimeoutKernel still(linux_kernel());
  const auto waiting = make_backend(GetParam(), still).value();
  const auto timeout_for = [&](TimePoint deadline) {
    waiting->poll(deadline, still.now());
    return still.timeouts.back();
  };
  EXPECT_EQ(timeout_for(still.time), 0);
  EXPECT_EQ(timeout_for(still.time - hours(1)), 0);
  EXPECT_EQ(timeout_for(TimePoint::min()), 0);
  EXPECT_EQ(timeout_for(still.time + Duration(1)), 1);
  EXPECT_EQ(timeout_for(still.time + microseconds(999)), 1);
  EXPECT_EQ(timeout_for(still.time + milliseconds(1)), 1);
  EXPECT_EQ(timeout_for(still.time + milliseconds(1) + Duration(1)), 2);
  EXPECT_EQ(timeout_for(still.time + milliseconds(250)), 250);
  EXPECT_EQ(timeout_for(kNever), -1);
  // T3: far away is a long wait, neither none nor an endless one.
  for (const TimePoint far : {still.time + milliseconds(std::int64_t{INT_MAX} + 1),
                              kNever - Duration(1), still.time + hours(24 * 365 * 100)}) {
    EXPECT_GE(timeout_for(far), 60 * 60 * 1000);
  }
  EXPECT_EQ(waiting->now(), still.time);
}

TEST_P(WatchTest, a_deadline_ends_the_wait_and_not_before) {
  const TimePoint deadline = kernel.now() + milliseconds(3);
  backend->poll(deadline, kernel.now());
  EXPECT_GE(kernel.now(), deadline);
  EXPECT_GE(backend->now(), deadline);
}

TEST_P(WatchTest, wake_before_the_poll_ends_it_and_is_used_up) {
  backend->wake();
  backend->wake();
  backend->poll(kNever, kernel.now());
  const std::uint64_t wakeups = kernel.wakeups();
  poll(3);
  EXPECT_EQ(kernel.wakeups(), wakeups);
}

// PAR14
TEST_P(WatchTest, wake_from_another_thread_ends_the_wait) {
  for (int round = 0; round < 100; ++round) {
    std::thread waker([&] { backend->wake(); });
    backend->poll(kNever, kernel.now());  // would wait for ever
    waker.join();
  }
}

TEST_P(WatchTest, an_interrupted_wait_answers_no_events) {
  const UniqueFd fd = eventfd(1);
  NotingWatch handler;
  watch(fd, Interest::readable, handler);
  const auto rule = kernel.inject({.call = wait_call(GetParam()), .error = EINTR});
  backend->poll(kNever, kernel.now());
  EXPECT_EQ(kernel.fired(rule), 1U);
  EXPECT_EQ(handler.calls, 0);
  backend->poll(kNever, kernel.now());
  EXPECT_EQ(handler.calls, 1);
}

}  // namespace
}  // namespace penstock::test

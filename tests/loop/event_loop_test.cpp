// The event loop: tasks, timers, watches, stopping, on every back-end. What other threads may do to it is in
// event_loop_threads_test.cpp.
#include "penstock/loop/event_loop.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "penstock/os/forwarding_kernel.h"
#include "support/captured_log.h"
#include "support/heap.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

class EventLoopTest : public ConformanceTest {
 protected:
  EventLoop& loop = world.loop;
  FaultyKernel& kernel = world.kernel;

  /// An eventfd with a count of one: readable until it is read.
  UniqueFd readable_fd() { return {kernel, kernel.eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC)}; }
};

PENSTOCK_ON_EVERY_BACKEND(EventLoopTest);

// -- Tasks ----------------------------------------------------------------------------------------

TEST_P(EventLoopTest, tasks_run_in_the_order_queued_and_inside_the_loop) {
  std::vector<int> order;
  for (int i = 0; i < 10; ++i) {
    loop.queue_in_loop([&, i] {
      EXPECT_TRUE(loop.in_loop());
      EXPECT_EQ(EventLoop::current(), &loop);
      order.push_back(i);
    });
  }
  EXPECT_TRUE(order.empty());
  EXPECT_FALSE(loop.in_loop());
  loop.step();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(EventLoop::current(), nullptr);
  EXPECT_EQ(loop.statistics().tasks_run, 10U);
}

TEST_P(EventLoopTest, run_in_loop_runs_at_once_inside_and_queues_outside) {
  std::vector<std::string> order;
  loop.run_in_loop([&] {
    loop.queue_in_loop([&] { order.emplace_back("queued"); });
    loop.run_in_loop([&] { order.emplace_back("at once"); });
    order.emplace_back("behind");
  });
  EXPECT_TRUE(order.empty());
  world.turn(2);
  EXPECT_EQ(order, (std::vector<std::string>{"at once", "behind", "queued"}));
}

TEST_P(EventLoopTest, a_task_may_queue_tasks_and_these_run_in_the_next_turn) {
  int depth = 0;
  std::function<void()> again = [&] {
    if (++depth < 50) loop.queue_in_loop([&] { again(); });
  };
  loop.queue_in_loop([&] { again(); });
  for (int turn = 1; turn <= 50; ++turn) {
    loop.step();
    EXPECT_EQ(depth, turn);
  }
  world.turn(3);
  EXPECT_EQ(depth, 50);
}

TEST_P(EventLoopTest, a_loop_with_tasks_left_does_not_wait) {
  int runs = 0;
  loop.queue_in_loop([&] { loop.queue_in_loop([&] { ++runs; }); });
  loop.step(Duration::max());  // would wait for ever
  loop.step();
  EXPECT_EQ(runs, 1);
}

TEST_P(EventLoopTest, one_turn_runs_at_most_1024_tasks_and_the_order_stays) {
  constexpr int kTasks = 3000;
  std::vector<int> order;
  for (int i = 0; i < kTasks; ++i)
    loop.queue_in_loop([&order, i] { order.push_back(i); });
  loop.step(Duration::max());
  EXPECT_EQ(order.size(), 1024U);
  loop.queue_in_loop([&] { order.push_back(kTasks); });  // behind those that wait
  loop.step(Duration::max());
  EXPECT_EQ(order.size(), 2048U);
  world.turn(2);
  ASSERT_EQ(order.size(), std::size_t{kTasks} + 1);
  for (int i = 0; i <= kTasks; ++i)
    EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST_P(EventLoopTest, what_a_task_holds_is_released_as_soon_as_it_has_run) {
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> seen = held;
  loop.queue_in_loop([held = std::move(held)] { ++*held; });
  bool released = false;
  loop.queue_in_loop([&] { released = seen.expired(); });
  loop.step();
  EXPECT_TRUE(released);
}

TEST_P(EventLoopTest, a_task_that_throws_is_logged_and_counted_and_the_others_run) {
  const CapturedLog log;
  int runs = 0;
  loop.queue_in_loop([] { throw std::runtime_error("the first fault"); });
  loop.queue_in_loop([&] { ++runs; });
  loop.queue_in_loop([] { throw 7; });  // NOLINT: anything can be thrown
  loop.queue_in_loop([&] {
    loop.run_in_loop([] { throw std::runtime_error("the nested fault"); });
    ++runs;
  });
  loop.step();
  EXPECT_EQ(runs, 2);
  EXPECT_EQ(loop.statistics().exceptions, 3U);
  EXPECT_EQ(log.count("the first fault"), 1U);
  EXPECT_EQ(log.count("the nested fault"), 1U);
  EXPECT_EQ(log.lines().size(), 3U);
}

// R13: a task that never ends its chain must not keep input and timers out (T9).
TEST_P(EventLoopTest, tasks_without_end_starve_neither_timers_nor_input) {
  std::function<void()> again = [&] { loop.queue_in_loop([&] { again(); }); };
  again();
  std::function<void()> at_once = [&] { loop.run_after(Duration::zero(), [&] { at_once(); }); };
  at_once();
  const UniqueFd fd = readable_fd();
  int inputs = 0;
  const Result<WatchId> watch =
      loop.watch(fd.get(), Interest::readable, [&](Readiness) { ++inputs; });
  ASSERT_TRUE(watch.has_value());
  bool fired = false;
  loop.run_after(milliseconds(1), [&] { fired = true; });
  kernel.advance(milliseconds(5));
  world.turn(6);
  EXPECT_GE(inputs, 4);
  EXPECT_TRUE(fired);
  loop.unwatch(*watch);
}

TEST_P(EventLoopTest, a_loop_that_goes_destroys_its_tasks_unrun) {
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> seen = held;
  bool ran = false;
  {
    EventLoop going({.backend = GetParam(), .kernel = &kernel});
    going.queue_in_loop([held = std::move(held), &ran] { ran = true; });
    going.run_after(Duration::zero(), [&ran] { ran = true; });
  }
  EXPECT_TRUE(seen.expired());
  EXPECT_FALSE(ran);
}

// Tasks left over from a batch larger than a turn are the loop's, no longer the mailbox's.
TEST_P(EventLoopTest, a_loop_that_goes_in_the_middle_of_a_batch_destroys_the_rest) {
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> seen = held;
  {
    EventLoop going({.backend = GetParam(), .kernel = &kernel});
    for (int i = 0; i < 1500; ++i)
      going.queue_in_loop([] {});
    going.queue_in_loop([held = std::move(held)] { ++*held; });
    going.step();
    EXPECT_FALSE(seen.expired());
  }
  EXPECT_TRUE(seen.expired());
}

// -- The bound on posted bytes ----------------------------------------------------------------------

TEST_P(EventLoopTest, posted_bytes_are_given_back_when_the_tasks_have_run) {
  EventLoop small({.backend = GetParam(), .kernel = &kernel, .posted_bytes_max = 1000});
  int runs = 0;
  for (int round = 1; round <= 3; ++round) {
    ASSERT_EQ(Mailbox::post(
                  small.id(), [&] { ++runs; }, 1000),
              PostResult::posted)
        << "nothing is under way any more, round " << round;
    EXPECT_EQ(Mailbox::post(small.id(), [&] { ++runs; }, 1), PostResult::full);
    small.step();
    EXPECT_EQ(runs, round);
  }
}

// -- Wake-ups -----------------------------------------------------------------------------------------

TEST_P(EventLoopTest, posts_write_no_wake_up_unless_the_loop_waits) {
  const std::uint64_t writes = kernel.calls(Call::write);
  for (int i = 0; i < 10; ++i)
    loop.queue_in_loop([&] { loop.queue_in_loop([] {}); });
  world.turn(3);
  loop.queue_in_loop([] {});
  EXPECT_EQ(kernel.calls(Call::write), writes);
  EXPECT_EQ(loop.statistics().wakeups_written, 0U);
}

TEST_P(EventLoopTest, many_posts_to_a_waiting_loop_write_one_wake_up) {
  int runs = 0;
  bool posted = false;
  kernel.before(wait_call(GetParam()), [&](int) {
    if (std::exchange(posted, true)) return;
    for (int i = 0; i < 10; ++i)
      loop.queue_in_loop([&] { ++runs; });
  });
  loop.step(Duration::max());  // without the wake-up it waits for ever
  EXPECT_EQ(kernel.calls(Call::write), 1U);
  EXPECT_EQ(loop.statistics().wakeups_written, 1U);
  loop.step();
  EXPECT_EQ(runs, 10);
}

/// Posts before the first wait, and fills the wake-up counter to its end before the write that follows.
class FillingKernel final : public ForwardingKernel {
 public:
  using ForwardingKernel::ForwardingKernel;

  std::function<void()> at_first_wait;
  int refused = 0;

 protected:
  int raw_eventfd(unsigned initial, int flags) override {
    return counter_ = ForwardingKernel::raw_eventfd(initial, flags);
  }
  ssize_t raw_write(int fd, const void* bytes, std::size_t size) override {
    EXPECT_EQ(fd, counter_);
    const std::uint64_t most = UINT64_MAX - 1;
    EXPECT_EQ(ForwardingKernel::raw_write(fd, &most, sizeof most), 8);
    const ssize_t result = ForwardingKernel::raw_write(fd, bytes, size);
    if (result == -EAGAIN) ++refused;
    return result;
  }
  int raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) override {
    if (const auto once = std::exchange(at_first_wait, nullptr)) once();
    return ForwardingKernel::raw_epoll_wait(epoll_fd, events, capacity, timeout);
  }
  int raw_poll(std::span<pollfd> descriptors, const timespec* timeout) override {
    if (const auto once = std::exchange(at_first_wait, nullptr)) once();
    return ForwardingKernel::raw_poll(descriptors, timeout);
  }

 private:
  int counter_ = -1;
};

// XT8. The counter is really full, so the write really answers EAGAIN.
TEST_P(EventLoopTest, a_full_wake_up_counter_counts_as_signalled) {
  FillingKernel filling(linux_kernel());
  EventLoop full({.backend = GetParam(), .kernel = &filling});
  int runs = 0;
  filling.at_first_wait = [&] { full.queue_in_loop([&] { ++runs; }); };
  full.step(Duration::max());
  EXPECT_EQ(filling.refused, 1);
  full.step();
  EXPECT_EQ(runs, 1);
  // And the counter has been read: the loop does not spin on it.
  const std::uint64_t wakeups = full.statistics().io.wakeups;
  for (int i = 0; i < 3; ++i)
    full.step();
  EXPECT_EQ(full.statistics().io.wakeups, wakeups);
}

TEST_P(EventLoopTest, a_wake_up_write_that_is_interrupted_is_repeated) {
  int runs = 0;
  const auto rule =
      kernel.inject({.call = Call::write, .first = 1, .every = 1, .times = 3, .error = EINTR});
  bool posted = false;
  kernel.before(wait_call(GetParam()), [&](int) {
    if (!std::exchange(posted, true)) loop.queue_in_loop([&] { ++runs; });
  });
  loop.step(Duration::max());
  loop.step();
  EXPECT_EQ(kernel.fired(rule), 3U);
  EXPECT_EQ(runs, 1);
}

// -- Timers -----------------------------------------------------------------------------------------

// T1
TEST_P(EventLoopTest, a_thousand_timers_of_one_deadline_fire_in_the_order_set) {
  std::vector<int> order;
  const TimePoint when = loop.read_clock() + milliseconds(5);
  for (int i = 0; i < 1000; ++i)
    loop.run_at(when, [&order, i] { order.push_back(i); });
  world.turn(4);
  kernel.advance(milliseconds(10));
  world.turn(4);
  ASSERT_EQ(order.size(), 1000U);
  EXPECT_TRUE(std::ranges::is_sorted(order));
  EXPECT_EQ(loop.statistics().timers_fired, 1000U);
}

TEST_P(EventLoopTest, a_timer_never_fires_early) {
  bool fired = false;
  const TimePoint when = loop.read_clock() + hours(1);
  loop.run_at(when, [&] {
    fired = true;
    EXPECT_GE(loop.read_clock(), when);
    EXPECT_GE(loop.now(), when);
  });
  world.turn(4);
  kernel.advance(std::chrono::minutes(59));
  world.turn(4);
  EXPECT_FALSE(fired);
  kernel.advance(std::chrono::minutes(2));
  world.turn(4);
  EXPECT_TRUE(fired);
}

TEST_P(EventLoopTest, a_waiting_loop_wakes_for_its_timer) {
  bool fired = false;
  loop.run_after(milliseconds(2), [&] { fired = true; });
  ASSERT_TRUE(world.run_until([&] { return loop.statistics().tasks_run == 1; }));
  loop.step(Duration::max());  // waits for the timer, not for ever
  EXPECT_TRUE(world.run_until([&] { return fired; }));
}

// T2
TEST_P(EventLoopTest, a_timer_that_cancels_itself_and_a_sibling_that_is_due_is_the_last_to_run) {
  std::vector<std::string> fired;
  TimerId first;
  TimerId second;
  loop.queue_in_loop([&] {
    first = loop.run_after(milliseconds(1), [&] {
      fired.emplace_back("first");
      loop.cancel(first);
      loop.cancel(second);
      fired.emplace_back("still alive");
    });
    second = loop.run_after(milliseconds(1), [&] { fired.emplace_back("second"); });
  });
  loop.step();
  kernel.advance(milliseconds(5));
  world.turn(4);
  EXPECT_EQ(fired, (std::vector<std::string>{"first", "still alive"}));
}

TEST_P(EventLoopTest, a_periodic_timer_may_cancel_itself_and_its_task_is_destroyed_only_then) {
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> seen = held;
  TimerId id;
  int runs = 0;
  loop.queue_in_loop([&] {
    id = loop.run_every(milliseconds(1), [&, held = std::move(held)] {
      if (++runs < 3) return;
      loop.cancel(id);
      EXPECT_FALSE(seen.expired());
      ++*held;
    });
  });
  loop.step();
  for (int i = 0; i < 6; ++i) {
    kernel.advance(milliseconds(2));
    world.turn(4);
  }
  EXPECT_EQ(runs, 3);
  EXPECT_TRUE(seen.expired());
}

TEST_P(EventLoopTest, cancelling_a_timer_releases_what_its_task_holds) {
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> seen = held;
  loop.queue_in_loop([&] {
    const TimerId id = loop.run_after(hours(1), [held = std::move(held)] { ++*held; });
    EXPECT_FALSE(seen.expired());
    loop.cancel(id);
    EXPECT_TRUE(seen.expired());
  });
  loop.step();
  loop.cancel(TimerId{});       // names none
  loop.cancel(TimerId{12345});  // never existed
  loop.step();
}

// "On the loop it takes effect at once": also for a timer that another thread (here: the program before the turn) has set and
// that the loop has not got round to adding yet.
TEST_P(EventLoopTest, cancelling_on_the_loop_reaches_a_timer_that_is_still_in_the_mailbox) {
  bool fired = false;
  TimerId id;
  loop.queue_in_loop([&] { loop.cancel(id); });
  id = loop.run_after(milliseconds(1), [&] { fired = true; });
  loop.step();
  kernel.advance(seconds(1));
  world.turn(4);
  EXPECT_FALSE(fired);
}

// In each turn there is a timer under way, so that every cancel may be meant for one. Most of them
// name timers that have gone long ago.
TEST_P(EventLoopTest, cancels_do_not_pile_up_while_there_are_always_timers_under_way) {
  constexpr int kWarmUp = 20;
  constexpr int kRounds = 300;
  constexpr std::size_t kGone = 100;
  constexpr std::size_t kSlack = std::size_t{16} * 1024;
  std::vector<TimerId> gone(kGone);
  loop.queue_in_loop([&] {
    for (TimerId& id : gone) {
      id = loop.run_after(hours(1), [] {});
      loop.cancel(id);
    }
  });
  loop.step();
  const auto held = std::make_shared<int>(0);
  TimerId under_way;  // set by a thread that is no loop's, in the round before
  int rounds = 0;
  std::size_t heap_early = 0;
  std::size_t heap_late = 0;
  std::function<void()> round = [&] {
    ++rounds;
    if (rounds == kWarmUp) heap_early = heap_bytes();
    if (rounds == kRounds) heap_late = heap_bytes();
    const TimerId last = under_way;
    if (rounds < kRounds) {
      loop.queue_in_loop([&] { round(); });  // before the timer, which is then always under way
      std::thread([&] { under_way = loop.run_after(hours(1), [held] { ++*held; }); }).join();
    }
    loop.cancel(last);
    for (const TimerId id : gone)
      loop.cancel(id);
  };
  loop.queue_in_loop([&] { round(); });
  for (int turn = 1; turn <= kRounds; ++turn) {
    loop.step();
    ASSERT_EQ(rounds, turn);
    ASSERT_LE(held.use_count(), 3);
  }
  EXPECT_LT(heap_late, heap_early + kSlack);
  world.turn(2);
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_EQ(loop.timers().size(), 0U);
  const std::uint64_t tasks = loop.statistics().tasks_run;
  kernel.advance(hours(2));
  world.turn(4);
  EXPECT_EQ(*held, 0) << "a cancelled timer has fired";
  EXPECT_EQ(loop.statistics().tasks_run, tasks) << "a note of a cancel keeps the loop busy";
}

// T3
TEST_P(EventLoopTest, times_that_make_no_sense_are_clamped) {
  std::vector<std::string> fired;
  loop.run_after(Duration::zero(), [&] { fired.emplace_back("zero"); });
  loop.run_after(Duration(-5), [&] { fired.emplace_back("negative"); });
  loop.run_after(Duration::min(), [&] { fired.emplace_back("most negative"); });
  loop.run_at(TimePoint::min(), [&] { fired.emplace_back("long past"); });
  loop.run_after(Duration::max(), [&] { fired.emplace_back("never"); });
  loop.run_at(kNever, [&] { fired.emplace_back("never"); });
  loop.run_after(std::chrono::milliseconds(std::int64_t{INT_MAX} + 1),
                 [&] { fired.emplace_back("in 25 days"); });
  loop.run_every(Duration::max(), [&] { fired.emplace_back("never"); });
  world.turn(4);
  EXPECT_EQ(fired.size(), 4U);
  kernel.advance(hours(24 * 24));
  world.turn(4);
  EXPECT_EQ(fired.size(), 4U);
  kernel.advance(hours(24));
  world.turn(4);
  ASSERT_EQ(fired.size(), 5U);
  EXPECT_EQ(fired.back(), "in 25 days");
}

TEST_P(EventLoopTest, a_period_of_nothing_fires_once_a_turn_and_does_not_hang) {
  int runs = 0;
  loop.run_every(Duration::zero(), [&] { ++runs; });
  loop.run_every(Duration(-1), [&] { ++runs; });
  for (int i = 0; i < 10; ++i) {
    kernel.advance(Duration(10));
    loop.step();
  }
  EXPECT_GE(runs, 2 * 3);
  EXPECT_LE(runs, 2 * 10);
}

// T4
TEST_P(EventLoopTest, a_clock_that_jumps_an_hour_catches_up_within_bounds_and_serves_input) {
  constexpr int kTimers = 3000;
  int fired = 0;
  int periodic = 0;
  for (int i = 0; i < kTimers; ++i)
    loop.run_after(seconds(1), [&] { ++fired; });
  loop.run_every(milliseconds(1), [&] { ++periodic; });
  world.turn(4);
  const UniqueFd fd = readable_fd();
  int inputs = 0;
  ASSERT_TRUE(loop.watch(fd.get(), Interest::readable, [&](Readiness) { ++inputs; }).has_value());
  periodic = 0;
  loop.step();
  inputs = 0;
  kernel.advance(hours(1));
  loop.step();  // learns the time
  for (int turn = 1; turn <= 8; ++turn) {
    const int before = fired;
    loop.step();
    EXPECT_LE(fired - before, 1024);
    EXPECT_GE(inputs, turn);
  }
  EXPECT_EQ(fired, kTimers);
  EXPECT_LE(periodic, 10) << "3,600,000 periods were missed and are not made up";
  EXPECT_GE(periodic, 1);
}

TEST_P(EventLoopTest, a_late_periodic_timer_skips_what_it_missed) {
  std::vector<TimePoint> fired;
  loop.run_every(milliseconds(10), [&] { fired.push_back(loop.now()); });
  loop.step();
  kernel.advance(milliseconds(1000));
  world.turn(4);
  EXPECT_EQ(fired.size(), 1U);
  kernel.advance(milliseconds(10));
  world.turn(4);
  EXPECT_EQ(fired.size(), 2U);
  EXPECT_GE(fired[1] - fired[0], milliseconds(10));
}

// T5. A signal at every wait: the turn which follows computes its time anew.
TEST_P(EventLoopTest, interrupted_waits_neither_lose_nor_hasten_a_timer) {
  const auto rule =
      kernel.inject({.call = wait_call(GetParam()), .every = 1, .times = 200, .error = EINTR});
  bool fired = false;
  const TimePoint when = loop.read_clock() + milliseconds(20);
  loop.run_at(when, [&] {
    fired = true;
    EXPECT_GE(loop.read_clock(), when);
  });
  loop.run_at(when + milliseconds(1), [&] { loop.stop(); });
  EXPECT_TRUE(loop.run().has_value());
  EXPECT_TRUE(fired);
  EXPECT_GE(kernel.fired(rule), 1U);
}

// T7
TEST_P(EventLoopTest, a_timer_that_falls_due_during_a_wait_fires_behind_the_data_of_that_wait) {
  std::vector<std::string> order;
  const UniqueFd fd = readable_fd();
  loop.run_after(milliseconds(1), [&] { order.emplace_back("timer"); });
  loop.step();
  ASSERT_TRUE(loop.watch(fd.get(), Interest::readable,
                         [&](Readiness) {
                           if (order.empty()) order.emplace_back("data");
                         })
                  .has_value());
  kernel.before(wait_call(GetParam()), [&](int) { kernel.advance(milliseconds(5)); });
  world.turn(4);
  EXPECT_EQ(order, (std::vector<std::string>{"data", "timer"}));
}

// T9
TEST_P(EventLoopTest, input_without_end_does_not_starve_timers) {
  const UniqueFd fd = readable_fd();
  int inputs = 0;
  ASSERT_TRUE(loop.watch(fd.get(), Interest::readable, [&](Readiness) { ++inputs; }).has_value());
  bool fired = false;
  loop.run_after(milliseconds(1), [&] { fired = true; });
  loop.step();
  kernel.advance(milliseconds(5));
  world.turn(4);
  EXPECT_TRUE(fired);
  EXPECT_GE(inputs, 2);
}

TEST_P(EventLoopTest, a_timer_that_throws_is_logged_and_counted_and_a_periodic_one_goes_on) {
  const CapturedLog log;
  int runs = 0;
  loop.run_every(milliseconds(1), [&] {
    ++runs;
    throw std::runtime_error("tick fault");
  });
  int others = 0;
  loop.run_after(milliseconds(1), [&] { ++others; });
  loop.step();
  for (int i = 0; i < 3; ++i) {
    kernel.advance(milliseconds(2));
    world.turn(4);
  }
  EXPECT_EQ(others, 1);
  EXPECT_GE(runs, 3);
  EXPECT_EQ(loop.statistics().exceptions, static_cast<std::uint64_t>(runs));
  EXPECT_EQ(log.count("tick fault"), static_cast<std::size_t>(runs));
}

TEST_P(EventLoopTest, a_timer_may_set_timers_and_one_set_for_now_waits_for_the_next_turn) {
  int depth = 0;
  std::function<void()> again = [&] {
    ++depth;
    loop.run_after(Duration::zero(), [&] { again(); });
  };
  loop.queue_in_loop([&] { again(); });
  for (int turn = 1; turn <= 10; ++turn) {
    loop.step();
    EXPECT_LE(depth, turn + 1);
  }
  EXPECT_GE(depth, 4);
}

// -- Stopping and stepping -----------------------------------------------------------------------------

TEST_P(EventLoopTest, stop_before_run_ends_it_after_one_turn) {
  loop.stop();
  const std::uint64_t turns = loop.statistics().turns;
  EXPECT_TRUE(loop.run().has_value());
  EXPECT_EQ(loop.statistics().turns, turns + 1);
  EXPECT_FALSE(loop.running());
}

TEST_P(EventLoopTest, stop_inside_ends_run_with_the_current_turn_and_run_works_again) {
  for (int round = 0; round < 3; ++round) {
    std::vector<std::string> order;
    loop.queue_in_loop([&] {
      loop.stop();
      loop.stop();
      order.emplace_back("stopped");
    });
    loop.queue_in_loop([&] { order.emplace_back("same turn"); });
    EXPECT_TRUE(loop.run().has_value());
    EXPECT_EQ(order, (std::vector<std::string>{"stopped", "same turn"}));
  }
}

TEST_P(EventLoopTest, stop_from_a_timer_and_from_a_watch_ends_run) {
  loop.run_after(milliseconds(1), [&] { loop.stop(); });
  EXPECT_TRUE(loop.run().has_value());
  const UniqueFd fd = readable_fd();
  ASSERT_TRUE(
      loop.watch(fd.get(), Interest::readable, [&](Readiness) { loop.stop(); }).has_value());
  EXPECT_TRUE(loop.run().has_value());
}

TEST_P(EventLoopTest, a_step_without_a_wait_returns_at_once_and_one_with_a_wait_returns_in_time) {
  loop.step();
  loop.step(Duration(-1));
  loop.step(Duration(1));
  loop.step(milliseconds(1));
  EXPECT_EQ(loop.statistics().turns, 4U);
  EXPECT_EQ(loop.statistics().io.waits, 4U);
}

TEST_P(EventLoopTest,
       a_step_waits_no_longer_than_asked_when_a_timer_is_far_and_less_when_one_is_near) {
  loop.run_after(hours(1), [] {});
  loop.step();
  loop.step(milliseconds(1));  // would hang for an hour
  bool fired = false;
  loop.run_after(milliseconds(1), [&] { fired = true; });
  loop.step();
  loop.step(hours(1));  // the same
  EXPECT_TRUE(world.run_until([&] { return fired; }));
}

TEST_P(EventLoopTest, a_loop_cannot_be_turned_from_inside_itself) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        loop.queue_in_loop([&] { loop.step(); });
        loop.step();
      },
      "runs already|inside a turn");
}

TEST_P(EventLoopTest, several_loops_may_take_turns_on_one_thread) {
  EventLoop other({.backend = GetParam(), .kernel = &kernel});
  EXPECT_NE(other.id(), loop.id());
  std::vector<EventLoop*> seen;
  for (int i = 0; i < 3; ++i) {
    loop.queue_in_loop([&] {
      seen.push_back(EventLoop::current());
      other.run_in_loop([&] { seen.push_back(EventLoop::current()); });
    });
    loop.step();
    other.step();
  }
  EXPECT_EQ(seen, (std::vector<EventLoop*>{&loop, &other, &loop, &other, &loop, &other}));
}

// -- A loop that could not be made ----------------------------------------------------------------------

TEST_P(EventLoopTest, each_failure_while_a_loop_is_made_is_answered_and_leaks_nothing) {
  for (const Call call : making_calls(GetParam())) {
    const std::size_t open = World::open_descriptors();
    const auto rule = kernel.inject({.call = call, .error = EMFILE});
    {
      EventLoop failed({.backend = GetParam(), .kernel = &kernel});
      EXPECT_EQ(kernel.fired(rule), 1U);
      EXPECT_EQ(failed.error(), system_error(EMFILE));
      const Result<void> ran = failed.run();
      ASSERT_FALSE(ran.has_value());
      EXPECT_EQ(ran.error(), system_error(EMFILE));
      EXPECT_EQ(failed.id(), LoopId{});
      failed.queue_in_loop([] { FAIL(); });
      failed.run_in_loop([] { FAIL(); });
      failed.cancel(failed.run_after(Duration::zero(), [] { FAIL(); }));
      failed.stop();
    }
    kernel.inject({.call = call, .error = EMFILE});
    const Result<std::unique_ptr<EventLoop>> created =
        EventLoop::create({.backend = GetParam(), .kernel = &kernel});
    ASSERT_FALSE(created.has_value());
    EXPECT_EQ(created.error(), system_error(EMFILE));
    EXPECT_EQ(World::open_descriptors(), open);
    kernel.heal();
  }
}

// -- Watches ----------------------------------------------------------------------------------------------

TEST_P(EventLoopTest, a_watch_is_called_each_turn_as_long_as_the_condition_holds) {
  const UniqueFd fd = readable_fd();
  int calls = 0;
  const Result<WatchId> id = loop.watch(fd.get(), Interest::readable, [&](Readiness ready) {
    EXPECT_TRUE(ready.readable);
    EXPECT_FALSE(ready.failed);
    EXPECT_TRUE(loop.in_loop());
    ++calls;
  });
  ASSERT_TRUE(id.has_value());
  for (int i = 0; i < 3; ++i)
    loop.step();
  EXPECT_EQ(calls, 3);
  std::uint64_t count = 0;
  EXPECT_EQ(kernel.read(fd.get(), &count, sizeof count), 8);
  world.turn(3);
  EXPECT_EQ(calls, 3);
  loop.unwatch(*id);
  loop.unwatch(*id);  // unknown by now
}

TEST_P(EventLoopTest, a_watch_callback_that_unwatches_itself_lives_until_it_returns) {
  const UniqueFd fd = readable_fd();
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> seen = held;
  WatchId id;
  int calls = 0;
  const Result<WatchId> watch =
      loop.watch(fd.get(), Interest::readable, [&, held = std::move(held)](Readiness) {
        loop.unwatch(id);
        EXPECT_FALSE(seen.expired());
        ++*held;
        ++calls;
      });
  ASSERT_TRUE(watch.has_value());
  id = *watch;
  world.turn(3);
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(seen.expired());
  // The descriptor is free to be watched again.
  const Result<WatchId> again =
      loop.watch(fd.get(), Interest::readable, [&](Readiness) { ++calls; });
  ASSERT_TRUE(again.has_value());
  loop.step();
  EXPECT_EQ(calls, 2);
  loop.unwatch(*again);
}

TEST_P(EventLoopTest, a_watch_that_throws_is_logged_and_counted_and_stays) {
  const CapturedLog log;
  const UniqueFd fd = readable_fd();
  const Result<WatchId> id = loop.watch(fd.get(), Interest::readable,
                                        [](Readiness) { throw std::runtime_error("watch fault"); });
  ASSERT_TRUE(id.has_value());
  loop.step();
  loop.step();
  EXPECT_EQ(loop.statistics().exceptions, 2U);
  EXPECT_EQ(log.count("watch fault"), 2U);
  loop.unwatch(*id);
}

TEST_P(EventLoopTest, watching_what_cannot_be_watched_answers_why) {
  const UniqueFd fd = readable_fd();
  const Result<WatchId> first = loop.watch(fd.get(), Interest::readable, [](Readiness) {});
  ASSERT_TRUE(first.has_value());
  const Result<WatchId> twice = loop.watch(fd.get(), Interest::readable, [](Readiness) {});
  ASSERT_FALSE(twice.has_value());
  EXPECT_EQ(twice.error(), system_error(EEXIST));
  const UniqueFd file(kernel, kernel.open("/proc/self/exe", 0));
  const Result<WatchId> regular = loop.watch(file.get(), Interest::readable, [](Readiness) {});
  ASSERT_FALSE(regular.has_value());
  EXPECT_EQ(regular.error(), system_error(EPERM));
  const Result<WatchId> bad = loop.watch(-1, Interest::readable, [](Readiness) {});
  ASSERT_FALSE(bad.has_value());
  EXPECT_EQ(bad.error(), system_error(EBADF));
  EXPECT_FALSE(loop.change_watch(WatchId{}, Interest::readable).has_value());
  loop.unwatch(*first);
}

TEST_P(EventLoopTest, a_loop_that_goes_drops_its_watches_and_leaves_the_descriptor_open) {
  const UniqueFd fd = readable_fd();
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> seen = held;
  {
    EventLoop going({.backend = GetParam(), .kernel = &kernel});
    ASSERT_TRUE(
        going.watch(fd.get(), Interest::readable, [held = std::move(held)](Readiness) { ++*held; })
            .has_value());
    going.step();
  }
  EXPECT_TRUE(seen.expired());
  std::uint64_t count = 0;
  EXPECT_EQ(kernel.read(fd.get(), &count, sizeof count), 8);
}

// -- A loop made while another is being destroyed ----------------------------------------------------------

/// Keeps its loop turning while that is destroyed, and calls back at the start of this.
class LingeringService final : public LoopService {
 public:
  explicit LingeringService(EventLoop&) {}
  void flush() override {}
  void notify() override {
    if (turns_left > 0 && shutting_down) --turns_left;
  }
  void bury() override {}
  bool busy() const override { return false; }
  void shut_down() override {
    shutting_down = true;
    if (on_shut_down) on_shut_down();
  }
  bool idle() const override { return turns_left == 0; }

  std::function<void()> on_shut_down;
  int turns_left = 3;
  bool shutting_down = false;
};

TEST_P(EventLoopTest, a_loop_made_while_another_is_destroyed_keeps_its_own_mail) {
  std::unique_ptr<EventLoop> successor;
  EventLoop* ran_on = nullptr;
  LoopId old_id;
  {
    EventLoop going({.backend = GetParam(), .kernel = &kernel});
    old_id = going.id();
    going.service<LingeringService>().on_shut_down = [&] {
      // As another thread may do at this moment.
      successor =
          std::make_unique<EventLoop>(EventLoopOptions{.backend = GetParam(), .kernel = &kernel});
      successor->queue_in_loop([&] { ran_on = EventLoop::current(); });
      EXPECT_EQ(going.id(), old_id) << "its name is its own for ever";
      going.queue_in_loop([] { FAIL() << "a task for a loop that goes reached another one"; });
    };
  }
  EXPECT_EQ(ran_on, nullptr) << "the loop that went has run the mail of its successor";
  ASSERT_NE(successor, nullptr);
  EXPECT_NE(successor->id(), old_id);
  successor->step();
  EXPECT_EQ(ran_on, successor.get());
}

TEST_P(EventLoopTest, nothing_can_be_posted_to_a_loop_that_is_being_destroyed) {
  PostResult answer = PostResult::posted;
  {
    EventLoop going({.backend = GetParam(), .kernel = &kernel});
    going.service<LingeringService>().on_shut_down = [&answer, id = going.id()] {
      answer = Mailbox::post(id, [] { FAIL(); });
    };
  }
  EXPECT_EQ(answer, PostResult::closed);
}

TEST_P(EventLoopTest, a_stop_outlives_the_steps_before_the_next_run) {
  loop.stop();
  loop.step();
  loop.step();
  EXPECT_TRUE(loop.run().has_value()) << "run() has to end after one turn";
}

TEST_P(EventLoopTest, a_watch_may_be_ended_by_what_another_one_holds) {
  const UniqueFd first_fd = readable_fd();
  const UniqueFd second_fd = readable_fd();
  const WatchId second = loop.watch(second_fd.get(), Interest::none, [](Readiness) {}).value();
  const auto ends_second = [this, second](int*) { loop.unwatch(second); };
  std::unique_ptr<int, decltype(ends_second)> guard(new int, ends_second);
  int* const held = guard.get();
  const WatchId first =
      loop.watch(first_fd.get(), Interest::none, [guard = std::move(guard)](Readiness) {}).value();
  loop.unwatch(first);
  loop.step();
  loop.step();
  delete held;
  EXPECT_TRUE(loop.watch(second_fd.get(), Interest::readable, [](Readiness) {}).has_value());
}

TEST_P(EventLoopTest, what_a_watch_holds_at_the_end_of_its_loop_reaches_no_other_loop) {
  const UniqueFd fd = readable_fd();
  PostResult answer = PostResult::posted;
  auto going =
      std::make_unique<EventLoop>(EventLoopOptions{.backend = GetParam(), .kernel = &kernel});
  const LoopId id = going->id();
  const auto posts = [&](int* held) {
    answer = Mailbox::post(id, [] { FAIL(); });
    delete held;
  };
  std::unique_ptr<int, decltype(posts)> guard(new int, posts);
  ASSERT_TRUE(
      going->watch(fd.get(), Interest::none, [guard = std::move(guard)](Readiness) {}).has_value());
  going.reset();
  EXPECT_EQ(answer, PostResult::closed);
}

}  // namespace
}  // namespace penstock::test

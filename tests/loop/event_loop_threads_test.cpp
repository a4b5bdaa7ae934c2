// What other threads may do to an event loop: post, wake, stop, set and cancel timers, outlive it (XT1, XT2, XT4, XT7, T8).
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <latch>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "penstock/os/forwarding_kernel.h"
#include "support/heap.h"
#include "support/loop_thread.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using mailbox_hooks::Point;
using std::chrono::hours;
using std::chrono::milliseconds;

class LoopThreadsTest : public testing::TestWithParam<Backend> {};

PENSTOCK_ON_EVERY_BACKEND(LoopThreadsTest);

// -- XT1: no wake-up is lost ------------------------------------------------------------------------

/// Never sleeps: it notes whether the loop would have slept although there is mail and nothing to wake it. Two more points at which
/// other threads may step in, right before and right after the wait.
class SleeplessKernel final : public ForwardingKernel {
 public:
  using ForwardingKernel::ForwardingKernel;

  std::function<void()> at_wait;
  EventLoop* loop = nullptr;
  int lost_wake_ups = 0;
  int would_sleep = 0;

 protected:
  int raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) override {
    return watched(timeout != 0,
                   [&] { return ForwardingKernel::raw_epoll_wait(epoll_fd, events, capacity, 0); });
  }
  int raw_poll(std::span<pollfd> descriptors, const timespec* timeout) override {
    const bool waits = timeout == nullptr || timeout->tv_sec != 0 || timeout->tv_nsec != 0;
    const timespec at_once{};
    return watched(waits, [&] { return ForwardingKernel::raw_poll(descriptors, &at_once); });
  }

 private:
  template <class Look>
  int watched(bool waits, Look look) {
    if (at_wait) at_wait();
    const int result = look();
    if (result == 0 && waits && loop != nullptr) {
      ++would_sleep;
      if (loop->mailbox().has_mail()) ++lost_wake_ups;
    }
    if (at_wait) at_wait();
    return result;
  }
};

struct Intruder {
  EventLoop* loop = nullptr;
  int passed = 0;
  std::array<int, 3> chosen{-1, -1, -1};
  int posted = 0;
  int run = 0;
  bool inside = false;

  void at_point() {
    if (inside) return;
    const int point = passed++;
    for (const int its : chosen) {
      if (its != point) continue;
      inside = true;
      ++posted;
      EXPECT_EQ(Mailbox::post(loop->id(), [this] { ++run; }), PostResult::posted);
      inside = false;
    }
  }
};
Intruder intruder;

TEST_P(LoopThreadsTest, a_post_at_any_point_of_a_turn_is_run_or_ends_the_wait) {
  constexpr int kPoints = 14;  // of three turns
  SleeplessKernel kernel(linux_kernel());
  int most_points = 0;
  int slept = 0;
  for (int first = 0; first < kPoints; ++first) {
    for (int second = first; second < kPoints; ++second) {
      for (int third = second; third < kPoints; ++third) {
        EventLoop loop({.backend = GetParam(), .kernel = &kernel});
        kernel.loop = &loop;
        kernel.would_sleep = 0;
        intruder = {.loop = &loop, .chosen = {first, second, third}};
        kernel.at_wait = [] { intruder.at_point(); };
        {
          const HookScope hook([](Point) noexcept { intruder.at_point(); });
          for (int turn = 0; turn < 3; ++turn)
            loop.step(Duration::max());
        }
        kernel.at_wait = nullptr;
        slept += kernel.would_sleep;
        most_points = std::max(most_points, intruder.passed);
        ASSERT_EQ(kernel.lost_wake_ups, 0) << first << ' ' << second << ' ' << third;
        while (loop.mailbox().has_mail())
          loop.step();
        ASSERT_EQ(intruder.run, intruder.posted) << first << ' ' << second << ' ' << third;
        kernel.loop = nullptr;
      }
    }
  }
  EXPECT_GE(most_points, kPoints - 2) << "the points chosen are those that are passed";
  EXPECT_GT(slept, 0) << "the loop has never tried to sleep";
}

// Each producer waits for its task before it posts the next: the loop goes to sleep again and again, and a lost
// wake-up ends the test.
TEST_P(LoopThreadsTest, two_producers_in_lock_step_with_a_sleeping_loop_lose_no_wake_up) {
  constexpr int kRounds = 10'000;
  LoopThread thread({.backend = GetParam()});
  std::vector<std::thread> producers;
  std::atomic<int> stuck{0};
  for (int index = 0; index < 2; ++index) {
    producers.emplace_back([&] {
      std::atomic<int> answered{0};
      for (int round = 1; round <= kRounds; ++round) {
        thread.loop.queue_in_loop([&, round] { answered.store(round); });
        // Half of the time without yielding, so that posts meet the loop on its way to sleep.
        for (int spin = 0; spin < 200 && answered.load() != round; ++spin) {
        }
        if (!eventually([&] { return answered.load() == round; })) {
          ++stuck;
          // The task refers to this frame: it must run before the frame goes.
          thread.loop.stop();
          eventually([&] { return answered.load() == round || !thread.loop.running(); });
          return;
        }
      }
    });
  }
  for (std::thread& producer : producers)
    producer.join();
  EXPECT_EQ(stuck, 0);
  thread.stop();
  EXPECT_GT(thread.loop.statistics().wakeups_written, 0U) << "the loop has never been asleep";
}

// -- XT7 -------------------------------------------------------------------------------------------------

/// Tasks of each producer; PENSTOCK_TEST_TASKS=2500000 makes it the long run.
std::uint64_t tasks_per_producer() {
  const char* wanted = std::getenv("PENSTOCK_TEST_TASKS");
  return wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : 250'000;
}

TEST_P(LoopThreadsTest, the_tasks_of_four_producers_run_once_each_and_in_their_producers_order) {
  constexpr std::size_t kProducers = 4;
  const std::uint64_t tasks = tasks_per_producer();
  EventLoop loop({.backend = GetParam()});
  std::array<std::uint64_t, kProducers> next{};
  std::uint64_t disorders = 0;
  std::size_t finished = 0;
  std::vector<std::thread> producers;
  for (std::size_t index = 0; index < kProducers; ++index) {
    producers.emplace_back([&, index] {
      for (std::uint64_t number = 0; number < tasks; ++number) {
        loop.queue_in_loop([&, index, number] {
          if (next[index] != number) ++disorders;
          next[index] = number + 1;
        });
      }
      loop.queue_in_loop([&] {
        if (++finished == kProducers) loop.stop();
      });
    });
  }
  EXPECT_TRUE(loop.run().has_value());
  for (std::thread& producer : producers)
    producer.join();
  EXPECT_EQ(disorders, 0U);
  for (const std::uint64_t count : next)
    EXPECT_EQ(count, tasks);
  const LoopStatistics statistics = loop.statistics();
  EXPECT_EQ(statistics.tasks_run, kProducers * (tasks + 1));
  EXPECT_LE(statistics.wakeups_written, statistics.turns);
}

// -- XT2: a loop that goes ---------------------------------------------------------------------------------

std::unique_ptr<EventLoop> doomed_loop;

TEST_P(LoopThreadsTest, a_loop_that_goes_in_the_middle_of_a_post_answers_closed) {
  doomed_loop = std::make_unique<EventLoop>(EventLoopOptions{.backend = GetParam()});
  const LoopId id = doomed_loop->id();
  int runs = 0;
  Task task = [&] { ++runs; };
  {
    const HookScope hook([](Point point) noexcept {
      if (point == Point::push) doomed_loop.reset();
    });
    EXPECT_EQ(Mailbox::post(id, std::move(task)), PostResult::closed);
  }
  EXPECT_EQ(doomed_loop, nullptr);
  ASSERT_TRUE(task) << "nothing has been taken";
  EXPECT_EQ(runs, 0);
}

/// Counts itself in and out.
class Token {
 public:
  explicit Token(std::atomic<int>& alive) : alive_(&alive) { ++alive; }
  Token(Token&& other) noexcept : alive_(std::exchange(other.alive_, nullptr)) {}
  Token& operator=(Token&&) = delete;
  ~Token() {
    if (alive_ != nullptr) --*alive_;
  }

 private:
  std::atomic<int>* alive_;
};

TEST_P(LoopThreadsTest, posting_to_loops_that_come_and_go_is_answered_and_loses_no_task) {
  constexpr int kRounds = 100;
  std::atomic<int> alive{0};
  std::atomic<int> posted{0};
  std::atomic<int> ran{0};
  for (int round = 0; round < kRounds; ++round) {
    auto loop = std::make_unique<EventLoop>(EventLoopOptions{.backend = GetParam()});
    const LoopId id = loop->id();
    std::latch begun(2);
    std::vector<std::thread> producers;
    for (int index = 0; index < 2; ++index) {
      producers.emplace_back([&, id] {
        bool first = true;
        for (;;) {
          Task task = [token = Token(alive), &ran] { ++ran; };
          const PostResult result = Mailbox::post(id, std::move(task));
          if (std::exchange(first, false)) begun.count_down();
          if (result == PostResult::closed) return;
          ++posted;
        }
      });
    }
    begun.wait();
    loop->step(milliseconds(1));
    if (round % 2 == 0) loop->step(milliseconds(1));
    loop.reset();
    for (std::thread& producer : producers)
      producer.join();
    EXPECT_EQ(Mailbox::post(id, [] { FAIL(); }), PostResult::closed);
    EXPECT_EQ(alive.load(), 0) << "an accepted task has neither run nor been destroyed";
  }
  EXPECT_GT(ran, 0);
  EXPECT_LE(ran, posted);
}

// As above, but the names live on while other loops take the mailboxes over.
TEST_P(LoopThreadsTest, names_of_loops_that_are_gone_never_reach_their_successors) {
  constexpr int kRounds = 200;
  std::atomic<std::uint64_t> packed{0};
  std::atomic<bool> over{false};
  std::atomic<int> misdirected{0};
  std::thread producer([&] {
    while (!over) {
      const std::uint64_t bits = packed.load();
      const LoopId id{.slot = static_cast<std::uint32_t>(bits >> 32),
                      .generation = static_cast<std::uint32_t>(bits)};
      static_cast<void>(Mailbox::post(id, [&misdirected, id] {
        if (EventLoop::current()->id() != id) ++misdirected;
      }));
    }
  });
  for (int round = 0; round < kRounds; ++round) {
    EventLoop loop({.backend = GetParam()});
    packed = (std::uint64_t{loop.id().slot} << 32) | loop.id().generation;
    loop.step();
    loop.step();
  }
  over = true;
  producer.join();
  EXPECT_EQ(misdirected, 0);
}

// -- Stopping ------------------------------------------------------------------------------------------------

TEST_P(LoopThreadsTest, stop_from_another_thread_ends_a_sleeping_loop) {
  for (int round = 0; round < 50; ++round) {
    LoopThread thread({.backend = GetParam()});
    thread.stop();  // would never return
    EXPECT_FALSE(thread.loop.running());
  }
}

// XT4
TEST_P(LoopThreadsTest, stop_during_a_callback_does_not_wait_for_it_and_the_turn_is_finished) {
  LoopThread thread({.backend = GetParam()});
  std::latch inside(1);
  std::latch go_on(1);
  bool finished = false;
  bool second_ran = false;
  thread.loop.queue_in_loop([&] {
    inside.count_down();
    go_on.wait();
    finished = true;
  });
  inside.wait();
  thread.loop.queue_in_loop([&] { second_ran = true; });
  thread.loop.stop();  // returns although the callback is still running
  go_on.count_down();
  thread.stop();
  EXPECT_TRUE(finished);
  thread.loop.step();
  EXPECT_TRUE(second_ran) << "what was posted before the stop is kept for the next turn";
}

TEST_P(LoopThreadsTest, a_task_queued_before_stop_by_the_same_thread_runs_before_run_returns) {
  LoopThread thread({.backend = GetParam()});
  bool ran = false;
  std::latch waiting(1);
  thread.loop.queue_in_loop([&] { waiting.count_down(); });
  waiting.wait();
  eventually([&] { return !thread.loop.mailbox().has_mail(); });
  thread.loop.queue_in_loop([&] { ran = true; });
  thread.stop();
  thread.loop.step();
  EXPECT_TRUE(ran);
}

// -- Timers (T8) ------------------------------------------------------------------------------------------------

TEST_P(LoopThreadsTest, a_timer_set_by_another_thread_shortens_the_sleep_under_way) {
  LoopThread thread({.backend = GetParam()});
  thread.loop.run_after(hours(1), [] {});
  std::latch fired(1);
  const TimePoint when = thread.loop.read_clock() + milliseconds(2);
  thread.loop.run_at(when, [&] {
    EXPECT_TRUE(thread.loop.in_loop());
    EXPECT_GE(thread.loop.now(), when);
    fired.count_down();
  });
  fired.wait();  // an hour if the sleep is not computed anew
}

TEST_P(LoopThreadsTest, a_timer_cancelled_by_another_thread_before_it_is_due_never_fires) {
  FaultyKernel kernel(linux_kernel());
  LoopThread thread({.backend = GetParam(), .kernel = &kernel});
  std::atomic<bool> fired{false};
  const TimerId earliest = thread.loop.run_after(hours(1), [&] { fired = true; });
  std::latch behind(1);
  thread.loop.cancel(earliest);
  thread.loop.queue_in_loop([&] {
    kernel.advance(hours(2));
    behind.count_down();
  });
  behind.wait();
  std::latch other(1);
  thread.loop.run_after(Duration::zero(), [&] { other.count_down(); });
  other.wait();
  EXPECT_FALSE(fired);
}

TEST_P(LoopThreadsTest, setting_and_cancelling_timers_from_many_threads_fires_each_at_most_once) {
  constexpr int kThreads = 3;
  constexpr int kTimers = 500;
  std::atomic<int> fired{0};
  std::atomic<int> alive{0};
  {
    LoopThread thread({.backend = GetParam()});
    std::vector<std::thread> setters;
    std::atomic<int> kept{0};
    for (int index = 0; index < kThreads; ++index) {
      setters.emplace_back([&] {
        for (int i = 0; i < kTimers; ++i) {
          const TimerId id = thread.loop.run_after(std::chrono::microseconds(i % 50),
                                                   [token = Token(alive), &fired] { ++fired; });
          if (i % 2 == 0) {
            thread.loop.cancel(id);
          } else {
            ++kept;
          }
        }
      });
    }
    for (std::thread& setter : setters)
      setter.join();
    EXPECT_TRUE(eventually([&] { return alive.load() == 0; })) << alive.load() << " are left";
    EXPECT_GE(fired, kept);
    EXPECT_LE(fired, kThreads * kTimers);
  }
  EXPECT_EQ(alive, 0);
}

// Each timer is cancelled three times: twice after it has gone, while others are under way.
TEST_P(LoopThreadsTest, adding_and_cancelling_for_ever_leaves_nothing_behind) {
  constexpr int kWarmUp = 10;
  constexpr int kRounds = 200;
  constexpr int kTimers = 100;  // in each round
  constexpr std::size_t kSlack = std::size_t{128} * 1024;
  std::atomic<int> alive{0};
  std::atomic<int> fired{0};
  LoopThread thread({.backend = GetParam()});
  EventLoop& loop = thread.loop;
  std::size_t heap_early = 0;
  for (int round = 1; round <= kRounds; ++round) {
    for (int i = 0; i < kTimers; ++i) {
      const TimerId id = loop.run_after(hours(1), [token = Token(alive), &fired] { ++fired; });
      loop.cancel(id);
      loop.queue_in_loop([&loop, id] {
        loop.cancel(id);
        loop.cancel(id);
      });
    }
    std::latch arrived(1);
    loop.queue_in_loop([&] { arrived.count_down(); });
    arrived.wait();
    if (round == kWarmUp) heap_early = heap_bytes();
  }
  EXPECT_LT(heap_bytes(), heap_early + kSlack);
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(fired, 0);
  thread.stop();
  EXPECT_EQ(loop.timers().size(), 0U);
}

TEST_P(LoopThreadsTest, a_periodic_timer_is_ended_by_another_thread) {
  LoopThread thread({.backend = GetParam()});
  std::atomic<int> runs{0};
  const TimerId id = thread.loop.run_every(std::chrono::microseconds(100), [&] { ++runs; });
  EXPECT_TRUE(eventually([&] { return runs.load() >= 3; }));
  thread.loop.cancel(id);
  std::latch cancelled(1);
  thread.loop.queue_in_loop([&] { cancelled.count_down(); });
  cancelled.wait();
  const int at_end = runs;
  std::latch later(1);
  thread.loop.run_after(milliseconds(5), [&] { later.count_down(); });
  later.wait();
  EXPECT_EQ(runs, at_end);
}

}  // namespace
}  // namespace penstock::test

#include "penstock/loop/loop_group.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <latch>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "penstock/sim/faulty_kernel.h"
#include "support/captured_log.h"
#include "support/world.h"

namespace penstock::test {
namespace {

class LoopGroupTest : public testing::TestWithParam<Backend> {
 protected:
  LoopGroupOptions options(std::size_t loops) {
    LoopGroupOptions made;
    made.loops = loops;
    made.loop.backend = GetParam();
    made.loop.kernel = &kernel;
    return made;
  }

  FaultyKernel kernel{linux_kernel()};
};

PENSTOCK_ON_EVERY_BACKEND(LoopGroupTest);

TEST_P(LoopGroupTest, each_loop_runs_in_a_thread_of_its_own) {
  LoopGroup group(options(3));
  EXPECT_EQ(group.size(), 0U);
  ASSERT_TRUE(group.start().has_value());
  ASSERT_EQ(group.size(), 3U);
  std::mutex mutex;
  std::set<std::thread::id> threads{std::this_thread::get_id()};
  std::latch done(3);
  for (std::size_t index = 0; index < 3; ++index) {
    EventLoop& loop = group.loop(index);
    loop.queue_in_loop([&, expected = &loop] {
      EXPECT_EQ(EventLoop::current(), expected);
      {
        const std::scoped_lock lock(mutex);
        threads.insert(std::this_thread::get_id());
      }
      done.count_down();
    });
  }
  done.wait();
  EXPECT_EQ(threads.size(), 4U);
  group.stop();
  EXPECT_EQ(group.size(), 0U);
}

TEST_P(LoopGroupTest, no_loops_means_one) {
  LoopGroup group(options(0));
  ASSERT_TRUE(group.start().has_value());
  EXPECT_EQ(group.size(), 1U);
}

TEST_P(LoopGroupTest, stop_is_idempotent_and_start_may_follow) {
  LoopGroup group(options(2));
  group.stop();
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(group.start().has_value());
    const Result<void> twice = group.start();
    ASSERT_FALSE(twice.has_value());
    EXPECT_EQ(twice.error(), make_error_code(Errc::already_started));
    EXPECT_EQ(group.size(), 2U);
    std::latch done(1);
    group.loop(1).queue_in_loop([&] { done.count_down(); });
    done.wait();
    group.stop();
    group.stop();
  }
}

TEST_P(LoopGroupTest, the_hook_runs_in_each_thread_before_its_loop_turns) {
  std::array<std::atomic<EventLoop*>, 3> seen{};
  std::array<std::atomic<std::thread::id>, 3> thread_of{};
  LoopGroupOptions with_hook = options(3);
  with_hook.on_thread_start = [&](std::size_t index, EventLoop& loop) {
    EXPECT_FALSE(loop.running());
    seen.at(index) = &loop;
    thread_of.at(index) = std::this_thread::get_id();
  };
  LoopGroup group(std::move(with_hook));
  ASSERT_TRUE(group.start().has_value());
  for (std::size_t index = 0; index < 3; ++index) {
    std::latch done(1);
    group.loop(index).queue_in_loop([&] {
      EXPECT_EQ(seen.at(index), EventLoop::current());
      EXPECT_EQ(thread_of.at(index).load(), std::this_thread::get_id());
      done.count_down();
    });
    done.wait();
  }
}

TEST_P(LoopGroupTest, a_hook_that_throws_is_logged_and_the_loop_runs_all_the_same) {
  const CapturedLog log;
  LoopGroupOptions with_hook = options(2);
  with_hook.on_thread_start = [](std::size_t index, EventLoop&) {
    if (index == 1) throw std::runtime_error("hook fault");
  };
  LoopGroup group(std::move(with_hook));
  ASSERT_TRUE(group.start().has_value());
  std::latch done(2);
  for (std::size_t index = 0; index < 2; ++index) {
    group.loop(index).queue_in_loop([&] { done.count_down(); });
  }
  done.wait();
  group.stop();
  EXPECT_EQ(log.count("hook fault"), 1U);
}

TEST_P(LoopGroupTest, stop_while_a_hook_still_runs_waits_for_it) {
  std::latch inside(1);
  std::latch go_on(1);
  std::atomic<bool> finished{false};
  LoopGroupOptions with_hook = options(1);
  with_hook.on_thread_start = [&](std::size_t, EventLoop&) {
    inside.count_down();
    go_on.wait();
    finished = true;
  };
  LoopGroup group(std::move(with_hook));
  ASSERT_TRUE(group.start().has_value());
  inside.wait();
  std::thread stopper([&] { group.stop(); });
  go_on.count_down();
  stopper.join();
  EXPECT_TRUE(finished);
}

// Each of the three loops makes three descriptors' worth of calls; each of them fails once.
TEST_P(LoopGroupTest, without_descriptors_start_answers_why_and_nothing_runs_or_leaks) {
  const std::size_t open = World::open_descriptors();
  std::atomic<int> hooks{0};
  for (const Call call : making_calls(GetParam())) {
    for (std::uint64_t nth = 1; nth <= 3; ++nth) {
      LoopGroupOptions with_hook = options(3);
      with_hook.on_thread_start = [&](std::size_t, EventLoop&) { ++hooks; };
      LoopGroup group(std::move(with_hook));
      const auto rule = kernel.inject({.call = call, .first = nth, .error = EMFILE});
      const Result<void> started = group.start();
      ASSERT_EQ(kernel.fired(rule), 1U);
      ASSERT_FALSE(started.has_value());
      EXPECT_EQ(started.error(), system_error(EMFILE));
      EXPECT_EQ(group.size(), 0U);
      EXPECT_EQ(World::open_descriptors(), open);
      kernel.heal();
    }
  }
  EXPECT_EQ(hooks, 0);
}

TEST_P(LoopGroupTest, a_start_that_failed_can_be_repeated) {
  LoopGroup group(options(2));
  kernel.inject({.call = Call::eventfd, .first = 2, .error = EMFILE});
  ASSERT_FALSE(group.start().has_value());
  ASSERT_TRUE(group.start().has_value());
  EXPECT_EQ(group.size(), 2U);
}

TEST_P(LoopGroupTest, all_signals_are_blocked_in_its_threads_and_the_callers_mask_is_kept) {
  sigset_t before;
  ASSERT_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &before), 0);
  LoopGroup group(options(2));
  ASSERT_TRUE(group.start().has_value());
  sigset_t after;
  ASSERT_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &after), 0);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGUSR1, SIGCHLD}) {
    EXPECT_EQ(sigismember(&before, number), sigismember(&after, number)) << number;
  }
  std::latch done(2);
  for (std::size_t index = 0; index < 2; ++index) {
    group.loop(index).queue_in_loop([&] {
      sigset_t mask;
      EXPECT_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &mask), 0);
      for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGUSR1, SIGCHLD, SIGALRM}) {
        EXPECT_EQ(sigismember(&mask, number), 1) << number;
      }
      done.count_down();
    });
  }
  done.wait();
}

TEST_P(LoopGroupTest, its_loops_share_one_memory_budget) {
  LoopGroup group(options(2));
  ASSERT_TRUE(group.start().has_value());
  EXPECT_EQ(group.loop(0).memory().budget().get(), group.loop(1).memory().budget().get());
  EXPECT_GT(group.loop(0).memory().budget()->limit(), 0U);

  const auto budget = make_counted<MemoryBudget>(std::size_t{12345});
  LoopGroupOptions given = options(2);
  given.loop.memory_budget = budget;
  LoopGroup other(std::move(given));
  ASSERT_TRUE(other.start().has_value());
  EXPECT_EQ(other.loop(0).memory().budget().get(), budget.get());
  EXPECT_EQ(other.loop(1).memory().budget().get(), budget.get());
}

TEST_P(LoopGroupTest, after_stop_its_names_answer_closed_and_what_was_posted_is_gone) {
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> alive = held;
  LoopGroup group(options(2));
  ASSERT_TRUE(group.start().has_value());
  const LoopId id = group.loop(1).id();
  group.loop(1).run_after(std::chrono::hours(1), [held = std::move(held)] { ++*held; });
  group.stop();
  EXPECT_TRUE(alive.expired());
  EXPECT_EQ(Mailbox::post(id, [] { FAIL(); }), PostResult::closed);
}

TEST_P(LoopGroupTest, loops_that_post_to_each_other_until_the_end_stop_cleanly) {
  LoopGroup group(options(3));
  ASSERT_TRUE(group.start().has_value());
  std::vector<LoopId> ids;
  for (std::size_t index = 0; index < 3; ++index)
    ids.push_back(group.loop(index).id());
  std::atomic<int> hops{0};
  struct Hop {
    void operator()() const {
      ++*hops;
      const std::size_t next = (at + 1) % ids->size();
      static_cast<void>(Mailbox::post((*ids)[next], Hop{ids, hops, next}));
    }
    const std::vector<LoopId>* ids;
    std::atomic<int>* hops;
    std::size_t at;
  };
  for (std::size_t index = 0; index < 3; ++index) {
    static_cast<void>(Mailbox::post(ids[index], Hop{&ids, &hops, index}));
  }
  EXPECT_TRUE(eventually([&] { return hops.load() >= 300; }));
  group.stop();
  const int at_end = hops;
  EXPECT_EQ(hops, at_end);
}

}  // namespace
}  // namespace penstock::test

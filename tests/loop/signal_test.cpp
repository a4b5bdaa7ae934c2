// EventLoop::on_signal: signals as events, and the mask of the calling thread put back.
#include <gtest/gtest.h>
#include <signal.h>

#include <cerrno>
#include <cstddef>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/captured_log.h"
#include "support/world.h"

namespace penstock::test {
namespace {

bool is_blocked(int number) {
  sigset_t mask;
  sigemptyset(&mask);
  EXPECT_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &mask), 0);
  return sigismember(&mask, number) == 1;
}

void set_blocked(int how, int number) {
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, number);
  EXPECT_EQ(pthread_sigmask(how, &mask, nullptr), 0);
}

class SignalTest : public ConformanceTest {
 protected:
  void SetUp() override {
    for (const int number : {SIGUSR1, SIGUSR2})
      ASSERT_FALSE(is_blocked(number));
  }
  void TearDown() override {
    for (const int number : {SIGUSR1, SIGUSR2})
      set_blocked(SIG_UNBLOCK, number);
  }
  /// A callback that notes the signals it is told of.
  auto noting() {
    return [this](int number) {
      EXPECT_TRUE(loop.in_loop());
      seen.push_back(number);
    };
  }
  bool runs_until(std::size_t signals) {
    return world.run_until([&] { return seen.size() >= signals; });
  }

  EventLoop& loop = world.loop;
  std::vector<int> seen;
};

PENSTOCK_ON_EVERY_BACKEND(SignalTest);

TEST_P(SignalTest, a_signal_is_blocked_and_comes_as_an_event_as_often_as_it_is_raised) {
  ASSERT_TRUE(loop.on_signal(SIGUSR1, noting()).has_value());
  EXPECT_TRUE(is_blocked(SIGUSR1));
  EXPECT_FALSE(is_blocked(SIGUSR2));
  for (std::size_t round = 1; round <= 3; ++round) {
    raise(SIGUSR1);
    EXPECT_EQ(seen.size(), round - 1) << "not before the loop turns";
    ASSERT_TRUE(runs_until(round));
  }
  EXPECT_EQ(seen, (std::vector<int>{SIGUSR1, SIGUSR1, SIGUSR1}));
}

TEST_P(SignalTest, taking_the_last_callback_back_restores_the_mask) {
  ASSERT_TRUE(loop.on_signal(SIGUSR1, noting()).has_value());
  ASSERT_TRUE(loop.on_signal(SIGUSR1, nullptr).has_value());
  EXPECT_FALSE(is_blocked(SIGUSR1));
  ASSERT_TRUE(loop.on_signal(SIGUSR1, nullptr).has_value()) << "nothing to take back is no error";
  // And it can be had again.
  ASSERT_TRUE(loop.on_signal(SIGUSR1, noting()).has_value());
  EXPECT_TRUE(is_blocked(SIGUSR1));
  raise(SIGUSR1);
  EXPECT_TRUE(runs_until(1));
}

TEST_P(SignalTest, of_two_signals_one_can_be_taken_back_alone) {
  ASSERT_TRUE(loop.on_signal(SIGUSR1, noting()).has_value());
  ASSERT_TRUE(loop.on_signal(SIGUSR2, noting()).has_value());
  EXPECT_TRUE(is_blocked(SIGUSR1));
  EXPECT_TRUE(is_blocked(SIGUSR2));
  ASSERT_TRUE(loop.on_signal(SIGUSR1, nullptr).has_value());
  EXPECT_FALSE(is_blocked(SIGUSR1));
  EXPECT_TRUE(is_blocked(SIGUSR2));
  raise(SIGUSR2);
  ASSERT_TRUE(runs_until(1));
  EXPECT_EQ(seen, std::vector<int>{SIGUSR2});
  ASSERT_TRUE(loop.on_signal(SIGUSR2, nullptr).has_value());
  EXPECT_FALSE(is_blocked(SIGUSR2));
}

TEST_P(SignalTest, a_signal_that_was_blocked_before_stays_blocked_afterwards) {
  set_blocked(SIG_BLOCK, SIGUSR1);
  ASSERT_TRUE(loop.on_signal(SIGUSR1, noting()).has_value());
  ASSERT_TRUE(loop.on_signal(SIGUSR2, noting()).has_value());
  ASSERT_TRUE(loop.on_signal(SIGUSR1, nullptr).has_value());
  EXPECT_TRUE(is_blocked(SIGUSR1));
  ASSERT_TRUE(loop.on_signal(SIGUSR2, nullptr).has_value());
  EXPECT_TRUE(is_blocked(SIGUSR1));
  EXPECT_FALSE(is_blocked(SIGUSR2));
}

TEST_P(SignalTest, a_loop_that_goes_restores_the_mask_and_leaves_no_descriptor) {
  const std::size_t open = World::open_descriptors();
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> alive = held;
  {
    EventLoop going({.backend = GetParam(), .kernel = &world.kernel});
    ASSERT_TRUE(going.on_signal(SIGUSR1, [held = std::move(held)](int) { ++*held; }).has_value());
    going.step();
    EXPECT_TRUE(is_blocked(SIGUSR1));
  }
  EXPECT_FALSE(is_blocked(SIGUSR1));
  EXPECT_TRUE(alive.expired());
  EXPECT_EQ(World::open_descriptors(), open);
}

// RE6: the old target lives until it returns.
TEST_P(SignalTest, a_callback_may_replace_itself) {
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> alive = held;
  std::vector<std::string> order;
  ASSERT_TRUE(
      loop.on_signal(
              SIGUSR1,
              [&, held = std::move(held)](int) {
                ASSERT_TRUE(
                    loop.on_signal(SIGUSR1, [&](int) { order.emplace_back("new"); }).has_value());
                EXPECT_FALSE(alive.expired());
                ++*held;
                order.emplace_back("old");
              })
          .has_value());
  raise(SIGUSR1);
  ASSERT_TRUE(world.run_until([&] { return order.size() == 1; }));
  EXPECT_TRUE(alive.expired());
  raise(SIGUSR1);
  ASSERT_TRUE(world.run_until([&] { return order.size() == 2; }));
  EXPECT_EQ(order, (std::vector<std::string>{"old", "new"}));
  EXPECT_TRUE(is_blocked(SIGUSR1));
}

TEST_P(SignalTest, a_callback_may_take_itself_back) {
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> alive = held;
  bool called = false;
  ASSERT_TRUE(loop.on_signal(SIGUSR1,
                             [&, held = std::move(held)](int) {
                               ASSERT_TRUE(loop.on_signal(SIGUSR1, nullptr).has_value());
                               EXPECT_FALSE(alive.expired());
                               ++*held;
                               called = true;
                             })
                  .has_value());
  raise(SIGUSR1);
  ASSERT_TRUE(world.run_until([&] { return called; }));
  world.turn();
  EXPECT_TRUE(alive.expired());
  EXPECT_FALSE(is_blocked(SIGUSR1));
}

TEST_P(SignalTest, a_callback_may_take_itself_back_and_then_set_itself_again_and_again) {
  ASSERT_TRUE(loop.on_signal(SIGUSR1,
                             [&](int) {
                               for (int i = 0; i < 3; ++i) {
                                 ASSERT_TRUE(loop.on_signal(SIGUSR1, nullptr).has_value());
                                 ASSERT_TRUE(loop.on_signal(SIGUSR1, noting()).has_value());
                               }
                               seen.push_back(0);
                             })
                  .has_value());
  raise(SIGUSR1);
  ASSERT_TRUE(runs_until(1));
  raise(SIGUSR1);
  ASSERT_TRUE(runs_until(2));
  EXPECT_EQ(seen, (std::vector<int>{0, SIGUSR1}));
}

TEST_P(SignalTest, a_callback_may_take_back_another_that_is_pending) {
  std::function<void(int)> take_other_back = [&](int number) {
    seen.push_back(number);
    const int other = number == SIGUSR1 ? SIGUSR2 : SIGUSR1;
    // Ignored while it is unblocked and pending, or it would end the process.
    signal(other, SIG_IGN);
    ASSERT_TRUE(loop.on_signal(other, nullptr).has_value());
  };
  ASSERT_TRUE(loop.on_signal(SIGUSR1, take_other_back).has_value());
  ASSERT_TRUE(loop.on_signal(SIGUSR2, take_other_back).has_value());
  raise(SIGUSR1);
  raise(SIGUSR2);
  ASSERT_TRUE(runs_until(1));
  world.turn(3);
  EXPECT_EQ(seen.size(), 1U);
  signal(SIGUSR1, SIG_DFL);
  signal(SIGUSR2, SIG_DFL);
}

TEST_P(SignalTest, a_callback_that_throws_is_logged_and_counted_and_stays) {
  const CapturedLog log;
  ASSERT_TRUE(loop.on_signal(SIGUSR1,
                             [&](int number) {
                               seen.push_back(number);
                               throw std::runtime_error("signal fault");
                             })
                  .has_value());
  for (std::size_t round = 1; round <= 2; ++round) {
    raise(SIGUSR1);
    ASSERT_TRUE(runs_until(round));
  }
  EXPECT_EQ(loop.statistics().exceptions, 2U);
  EXPECT_EQ(log.count("signal fault"), 2U);
}

TEST_P(SignalTest, a_callback_may_stop_the_loop) {
  ASSERT_TRUE(loop.on_signal(SIGUSR1, [&](int) { loop.stop(); }).has_value());
  raise(SIGUSR1);
  EXPECT_TRUE(loop.run().has_value());
}

TEST_P(SignalTest, a_number_that_is_no_signal_is_refused_and_nothing_changes) {
  for (const int number : {0, -1, 1000}) {
    const Result<void> refused = loop.on_signal(number, noting());
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error(), system_error(EINVAL));
  }
  ASSERT_TRUE(loop.on_signal(SIGUSR1, noting()).has_value());
  EXPECT_FALSE(loop.on_signal(1000, noting()).has_value());
  raise(SIGUSR1);
  EXPECT_TRUE(runs_until(1));
}

TEST_P(SignalTest, a_failure_leaves_the_mask_and_what_was_set_before_as_it_was) {
  const std::size_t open = World::open_descriptors();
  const Call watching = registers_with_the_kernel(GetParam()) ? Call::epoll_ctl : Call::file_status;
  for (const Call call : {Call::signalfd, watching}) {
    const auto rule = world.kernel.inject({.call = call, .error = ENOMEM});
    const Result<void> failed = loop.on_signal(SIGUSR1, noting());
    EXPECT_EQ(world.kernel.fired(rule), 1U);
    ASSERT_FALSE(failed.has_value());
    EXPECT_EQ(failed.error(), system_error(ENOMEM));
    EXPECT_FALSE(is_blocked(SIGUSR1));
    EXPECT_EQ(World::open_descriptors(), open);
  }
  ASSERT_TRUE(loop.on_signal(SIGUSR1, noting()).has_value());
  world.kernel.inject({.call = Call::signalfd, .error = ENOMEM});
  EXPECT_FALSE(loop.on_signal(SIGUSR2, noting()).has_value());
  EXPECT_FALSE(is_blocked(SIGUSR2));
  EXPECT_TRUE(is_blocked(SIGUSR1));
  raise(SIGUSR1);
  EXPECT_TRUE(runs_until(1));
}

}  // namespace
}  // namespace penstock::test

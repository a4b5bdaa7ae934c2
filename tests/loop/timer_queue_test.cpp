#include "penstock/loop/timer_queue.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "rapidcheck.h"
#include "rapidcheck/gtest.h"

namespace penstock {
namespace {

constexpr std::size_t kNoLimit = std::numeric_limits<std::size_t>::max();

constexpr TimePoint at(std::int64_t nanoseconds) { return TimePoint(Duration(nanoseconds)); }

/// A timer that runs a function.
struct TestTimer {
  explicit TestTimer(std::function<void()> function) : on_fired(std::move(function)) {}

  void fire() {
    // The function may destroy the timer.
    const std::function<void()> function = on_fired;
    function();
  }

  std::function<void()> on_fired;
  Timer timer = Timer::calling<&TestTimer::fire>(*this);
};

TEST(TimerQueue, without_timers_has_no_deadline_and_fires_nothing) {
  TimerQueue timers;
  EXPECT_EQ(timers.next_deadline(), kNever);
  EXPECT_EQ(timers.fire_due(kNever, kNoLimit), 0U);
}

TEST(TimerQueue, fires_a_timer_at_its_deadline_and_not_before) {
  TimerQueue timers;
  int fired = 0;
  TestTimer one([&] { ++fired; });
  timers.schedule(one.timer, at(100));
  EXPECT_TRUE(one.timer.scheduled());
  EXPECT_EQ(one.timer.deadline(), at(100));
  EXPECT_EQ(timers.next_deadline(), at(100));
  EXPECT_EQ(timers.fire_due(at(99), kNoLimit), 0U);
  EXPECT_EQ(timers.fire_due(at(100), kNoLimit), 1U);
  EXPECT_EQ(fired, 1);
  EXPECT_FALSE(one.timer.scheduled());
  EXPECT_EQ(one.timer.deadline(), kNever);
  EXPECT_EQ(timers.fire_due(at(200), kNoLimit), 0U);
}

TEST(TimerQueue, a_thousand_equal_deadlines_fire_in_the_order_of_scheduling) {
  TimerQueue timers;
  std::vector<int> fired;
  std::vector<std::unique_ptr<TestTimer>> all;
  for (int i = 0; i < 1000; ++i) {
    all.push_back(std::make_unique<TestTimer>([&fired, i] { fired.push_back(i); }));
    timers.schedule(all.back()->timer, at(5));
  }
  EXPECT_EQ(timers.fire_due(at(5), kNoLimit), 1000U);
  ASSERT_EQ(fired.size(), 1000U);
  EXPECT_TRUE(std::is_sorted(fired.begin(), fired.end()));
}

TEST(TimerQueue, scheduling_again_replaces_the_deadline_and_goes_behind_equals) {
  TimerQueue timers;
  std::vector<char> fired;
  TestTimer a([&] { fired.push_back('a'); });
  TestTimer b([&] { fired.push_back('b'); });
  TestTimer c([&] { fired.push_back('c'); });
  timers.schedule(a.timer, at(10));
  timers.schedule(b.timer, at(10));
  timers.schedule(c.timer, at(30));
  timers.schedule(a.timer, at(10));
  timers.schedule(c.timer, at(1));
  EXPECT_EQ(timers.size(), 3U);
  EXPECT_EQ(timers.next_deadline(), at(1));
  EXPECT_EQ(timers.fire_due(at(10), kNoLimit), 3U);
  EXPECT_EQ(fired, (std::vector<char>{'c', 'b', 'a'}));
}

TEST(TimerQueue, fires_no_more_than_the_limit_and_the_rest_first_next_time) {
  TimerQueue timers;
  std::vector<int> fired;
  std::vector<std::unique_ptr<TestTimer>> all;
  for (int i = 0; i < 5; ++i) {
    all.push_back(std::make_unique<TestTimer>([&fired, i] { fired.push_back(i); }));
    timers.schedule(all.back()->timer, at(i));
  }
  EXPECT_EQ(timers.fire_due(at(10), 0), 0U);
  EXPECT_EQ(timers.fire_due(at(10), 2), 2U);
  timers.schedule(all[0]->timer, at(10));
  EXPECT_EQ(timers.fire_due(at(10), kNoLimit), 4U);
  EXPECT_EQ(fired, (std::vector<int>{0, 1, 2, 3, 4, 0}));
}

TEST(TimerQueue, a_timer_that_schedules_itself_without_delay_fires_once_a_call) {
  TimerQueue timers;
  int fired = 0;
  TestTimer own([] {});
  own.on_fired = [&] {
    ++fired;
    timers.schedule(own.timer, at(100));
  };
  timers.schedule(own.timer, at(100));
  EXPECT_EQ(timers.fire_due(at(100), kNoLimit), 1U);
  EXPECT_EQ(timers.fire_due(at(100), kNoLimit), 1U);
  EXPECT_EQ(fired, 2);
}

TEST(TimerQueue, a_timer_set_into_the_past_by_a_callback_waits_and_holds_nobody_up) {
  TimerQueue timers;
  std::vector<char> fired;
  TestTimer late([&] { fired.push_back('l'); });
  TestTimer second([&] { fired.push_back('2'); });
  TestTimer first([&] {
    fired.push_back('1');
    timers.schedule(late.timer, at(5));
  });
  timers.schedule(first.timer, at(10));
  timers.schedule(second.timer, at(20));
  EXPECT_EQ(timers.fire_due(at(30), kNoLimit), 2U);
  EXPECT_EQ(late.timer.deadline(), at(30));
  EXPECT_EQ(timers.fire_due(at(30), kNoLimit), 1U);
  EXPECT_EQ(fired, (std::vector<char>{'1', '2', 'l'}));
}

TEST(TimerQueue, a_cancelled_timer_does_not_fire) {
  TimerQueue timers;
  TestTimer one([] { FAIL(); });
  timers.schedule(one.timer, at(1));
  one.timer.cancel();
  EXPECT_FALSE(one.timer.scheduled());
  one.timer.cancel();
  timers.cancel(one.timer);
  EXPECT_EQ(timers.next_deadline(), kNever);
  EXPECT_EQ(timers.fire_due(kNever, kNoLimit), 0U);
}

TEST(TimerQueue, a_callback_may_cancel_its_own_timer) {
  TimerQueue timers;
  TestTimer own([] {});
  own.on_fired = [&] {
    EXPECT_FALSE(own.timer.scheduled());
    own.timer.cancel();
    timers.schedule(own.timer, at(50));
    own.timer.cancel();
  };
  timers.schedule(own.timer, at(1));
  EXPECT_EQ(timers.fire_due(at(1), kNoLimit), 1U);
  EXPECT_EQ(timers.size(), 0U);
}

TEST(TimerQueue, a_sibling_cancelled_in_the_same_batch_does_not_fire) {
  TimerQueue timers;
  TestTimer sibling([] { FAIL(); });
  TestTimer first([&] { sibling.timer.cancel(); });
  timers.schedule(first.timer, at(1));
  timers.schedule(sibling.timer, at(1));
  EXPECT_EQ(timers.fire_due(at(1), kNoLimit), 1U);
}

TEST(TimerQueue, a_sibling_postponed_in_the_same_batch_does_not_fire_in_it) {
  TimerQueue timers;
  int fired = 0;
  TestTimer sibling([&] { ++fired; });
  TestTimer first([&] { timers.schedule(sibling.timer, at(1)); });
  timers.schedule(first.timer, at(1));
  timers.schedule(sibling.timer, at(1));
  EXPECT_EQ(timers.fire_due(at(1), kNoLimit), 1U);
  EXPECT_EQ(fired, 0);
  EXPECT_EQ(timers.fire_due(at(1), kNoLimit), 1U);
  EXPECT_EQ(fired, 1);
}

TEST(TimerQueue, a_callback_may_destroy_its_own_timer_and_a_due_sibling) {
  TimerQueue timers;
  int fired = 0;
  auto own = std::make_unique<TestTimer>([] {});
  auto sibling = std::make_unique<TestTimer>([] { FAIL(); });
  TestTimer last([&] { ++fired; });
  own->on_fired = [&] {
    own.reset();
    sibling.reset();
  };
  timers.schedule(own->timer, at(1));
  timers.schedule(sibling->timer, at(1));
  timers.schedule(last.timer, at(1));
  EXPECT_EQ(timers.fire_due(at(1), kNoLimit), 2U);
  EXPECT_EQ(fired, 1);
}

TEST(TimerQueue, a_callback_that_throws_leaves_the_other_timers_waiting) {
  TimerQueue timers;
  int fired = 0;
  TestTimer thrower([] { throw std::runtime_error("from a callback"); });
  TestTimer second([&] { ++fired; });
  timers.schedule(thrower.timer, at(1));
  timers.schedule(second.timer, at(1));
  EXPECT_THROW(timers.fire_due(at(1), kNoLimit), std::runtime_error);
  EXPECT_FALSE(thrower.timer.scheduled());
  EXPECT_TRUE(second.timer.scheduled());
  EXPECT_EQ(timers.fire_due(at(1), kNoLimit), 1U);
  EXPECT_EQ(fired, 1);
}

TEST(TimerQueue, a_timer_outlives_its_queue) {
  TestTimer one([] { FAIL(); });
  {
    TimerQueue timers;
    timers.schedule(one.timer, at(1));
  }
  EXPECT_FALSE(one.timer.scheduled());
  one.timer.cancel();
  TimerQueue others;
  others.schedule(one.timer, at(1));
  EXPECT_TRUE(one.timer.scheduled());
}

TEST(TimerQueue, the_farthest_deadlines_are_kept_apart) {
  TimerQueue timers;
  std::vector<char> fired;
  TestTimer never([&] { fired.push_back('n'); });
  TestTimer past([&] { fired.push_back('p'); });
  timers.schedule(never.timer, add_clamped(at(1), Duration::max()));
  timers.schedule(past.timer, TimePoint::min());
  EXPECT_EQ(timers.next_deadline(), TimePoint::min());
  EXPECT_EQ(timers.fire_due(at(0), kNoLimit), 1U);
  EXPECT_EQ(timers.next_deadline(), kNever);
  EXPECT_EQ(timers.fire_due(kNever - Duration(1), kNoLimit), 0U);
  EXPECT_EQ(fired, std::vector<char>{'p'});
}

TEST(TimerQueueDeathTest, a_timer_waits_in_one_queue_at_a_time) {
  TimerQueue timers;
  TimerQueue others;
  TestTimer one([] {});
  timers.schedule(one.timer, at(1));
  EXPECT_DEATH(others.schedule(one.timer, at(1)), "another queue");
}

TEST(TimerQueueDeathTest, a_callback_must_not_fire_timers) {
  TimerQueue timers;
  TestTimer second([] {});
  TestTimer first([&] { timers.fire_due(at(2), kNoLimit); });
  timers.schedule(first.timer, at(1));
  timers.schedule(second.timer, at(2));
  EXPECT_DEATH(timers.fire_due(at(2), kNoLimit), "fires timers");
}

/// Forty timers in the queue and, beside it, in a multimap; what happens to one happens to both.
class Model {
 public:
  struct Step {
    std::uint8_t action;
    std::uint8_t timer;
    std::uint8_t time;
  };

  Model() {
    for (std::size_t i = 0; i < kTimers; ++i)
      revive(i);
  }

  /// `during` are done inside the callbacks, one after each.
  void run(const std::vector<Step>& steps, const std::vector<Step>& during) {
    during_ = during;
    for (const Step& step : steps) {
      if (step.action % 4 == 0) {
        fire(at(step.time), step.timer % 3 == 0 ? std::size_t{step.timer} % 4 : kNoLimit);
      } else {
        change(step);
      }
      check();
    }
  }

 private:
  static constexpr std::size_t kTimers = 40;
  using Key = std::pair<TimePoint, std::uint64_t>;

  void revive(std::size_t i) {
    timers_[i] = std::make_unique<TestTimer>([this, i] { fired(i); });
  }

  void forget(std::size_t i) {
    std::erase_if(expected_, [i](const auto& entry) { return entry.second == i; });
  }

  void change(const Step& step) {
    const std::size_t i = step.timer % kTimers;
    switch (step.action % 8) {
      case 1:
        queue_.cancel(timers_[i]->timer);
        forget(i);
        break;
      case 2:
        timers_[i].reset();
        forget(i);
        revive(i);
        break;
      default: {
        forget(i);
        const TimePoint deadline = firing_ ? std::max(at(step.time), now_) : at(step.time);
        queue_.schedule(timers_[i]->timer, at(step.time));
        expected_.emplace(Key(deadline, sequence_++), i);
      }
    }
  }

  /// The next timer that must fire in the current call.
  std::multimap<Key, std::size_t>::iterator next() {
    return std::find_if(expected_.begin(), expected_.end(), [this](const auto& entry) {
      return entry.first.first <= now_ && entry.first.second < first_too_young_;
    });
  }

  void fire(TimePoint now, std::size_t limit) {
    now_ = now;
    firing_ = true;
    first_too_young_ = sequence_;
    calls_ = 0;
    const std::size_t count = queue_.fire_due(now, limit);
    firing_ = false;
    RC_ASSERT(count == calls_);
    RC_ASSERT(count <= limit);
    if (count < limit) RC_ASSERT(next() == expected_.end());
  }

  void fired(std::size_t i) {
    ++calls_;
    const auto entry = next();
    RC_ASSERT(entry != expected_.end());
    RC_ASSERT(entry->second == i);
    expected_.erase(entry);
    RC_ASSERT(!timers_[i]->timer.scheduled());
    if (during_.empty()) return;
    const Step step = during_.back();
    during_.pop_back();
    change(step);
  }

  void check() {
    RC_ASSERT(queue_.size() == expected_.size());
    RC_ASSERT(queue_.next_deadline() ==
              (expected_.empty() ? kNever : expected_.begin()->first.first));
    std::size_t scheduled = 0;
    for (const auto& timer : timers_)
      scheduled += timer->timer.scheduled() ? 1U : 0U;
    RC_ASSERT(scheduled == expected_.size());
    for (const auto& [key, i] : expected_)
      RC_ASSERT(timers_[i]->timer.deadline() == key.first);
  }

  TimerQueue queue_;
  std::array<std::unique_ptr<TestTimer>, kTimers> timers_;
  std::multimap<Key, std::size_t> expected_;
  std::uint64_t sequence_ = 0;
  std::vector<Step> during_;
  TimePoint now_ = at(0);
  std::uint64_t first_too_young_ = 0;
  std::size_t calls_ = 0;
  bool firing_ = false;
};

rc::Gen<std::vector<Model::Step>> steps() {
  return rc::gen::container<std::vector<Model::Step>>(rc::gen::construct<Model::Step>(
      rc::gen::arbitrary<std::uint8_t>(), rc::gen::arbitrary<std::uint8_t>(),
      rc::gen::arbitrary<std::uint8_t>()));
}

RC_GTEST_PROP(TimerQueue, behaves_like_a_sorted_map_whatever_callbacks_do, ()) {
  // Long runs from the start, so that the heap is several levels deep.
  const auto many = *rc::gen::resize(1000, steps());
  Model().run(many, *steps());
}

TEST(TimerQueue, a_hundred_thousand_timers_a_third_of_them_cancelled_come_out_sorted) {
  struct Recorder {
    std::vector<std::uint64_t>& fired;
    std::uint64_t key;
    void fire() { fired.push_back(key); }
    Timer timer = Timer::calling<&Recorder::fire>(*this);
  };
  TimerQueue timers;
  std::vector<std::uint64_t> fired;
  std::vector<std::unique_ptr<Recorder>> all;
  std::uint64_t random = 1;
  for (std::uint64_t i = 0; i < 100'000; ++i) {
    random = random * 6364136223846793005U + 1442695040888963407U;
    const std::uint64_t time = random >> 50U;
    all.push_back(std::make_unique<Recorder>(fired, time << 32U | i));
    timers.schedule(all.back()->timer, at(static_cast<std::int64_t>(time)));
  }
  // Cancelling fills the gap with an entry from elsewhere in the heap.
  for (std::size_t i = 0; i < all.size(); i += 3)
    all[i]->timer.cancel();
  EXPECT_EQ(timers.size(), 66'666U);
  EXPECT_EQ(timers.fire_due(kNever, kNoLimit), 66'666U);
  EXPECT_TRUE(std::is_sorted(fired.begin(), fired.end()));
}

}  // namespace
}  // namespace penstock

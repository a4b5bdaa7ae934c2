#include "penstock/base/counted.h"

#include <gtest/gtest.h>

#include <thread>
#include <type_traits>

namespace penstock {
namespace {

/// Counts its own kind.
class Thing final : public Counted<Thing> {
 public:
  Thing(int& alive, int given) : value(given), alive_(alive) { ++alive_; }
  ~Thing() { --alive_; }

  const int value;

 private:
  int& alive_;
};

static_assert(!std::is_copy_constructible_v<Thing>);
static_assert(std::is_nothrow_move_constructible_v<CountedPtr<Thing>>);

TEST(CountedPtr, the_object_lives_as_long_as_its_last_share) {
  int alive = 0;
  {
    CountedPtr<Thing> first = make_counted<Thing>(alive, 7);
    EXPECT_EQ(alive, 1);
    {
      const CountedPtr<Thing> second = first;
      EXPECT_EQ(second.get(), first.get());
      first = CountedPtr<Thing>();
      EXPECT_FALSE(first);
      EXPECT_EQ(alive, 1);
      EXPECT_EQ(second->value, 7);
      EXPECT_EQ((*second).value, 7);
    }
    EXPECT_EQ(alive, 0);
  }
  EXPECT_EQ(alive, 0);
}

TEST(CountedPtr, moving_leaves_an_empty_one_behind) {
  int alive = 0;
  CountedPtr<Thing> from = make_counted<Thing>(alive, 7);
  CountedPtr<Thing> to = std::move(from);
  EXPECT_FALSE(from);  // NOLINT(bugprone-use-after-move): that is the promise
  EXPECT_TRUE(to);
  EXPECT_EQ(alive, 1);
}

TEST(CountedPtr, assigning_drops_the_former_object) {
  int first_alive = 0;
  int second_alive = 0;
  CountedPtr<Thing> pointer = make_counted<Thing>(first_alive, 1);
  pointer = make_counted<Thing>(second_alive, 2);
  EXPECT_EQ(first_alive, 0);
  EXPECT_EQ(second_alive, 1);
}

TEST(CountedPtr, assigning_it_to_itself_keeps_the_object) {
  int alive = 0;
  CountedPtr<Thing> pointer = make_counted<Thing>(alive, 7);
  const CountedPtr<Thing>& same = pointer;
  pointer = same;
  EXPECT_EQ(alive, 1);
  EXPECT_EQ(pointer->value, 7);
}

TEST(CountedPtr, an_object_can_make_more_shares_in_itself) {
  int alive = 0;
  CountedPtr<Thing> second;
  {
    const CountedPtr<Thing> first = make_counted<Thing>(alive, 7);
    second = CountedPtr<Thing>(first.get());
  }
  EXPECT_EQ(alive, 1);
  EXPECT_EQ(second->value, 7);
}

TEST(CountedPtr, an_empty_one_can_be_copied_and_dropped) {
  const CountedPtr<Thing> empty(nullptr);
  const CountedPtr<Thing> copy = empty;
  EXPECT_FALSE(copy);
  EXPECT_EQ(copy.get(), nullptr);
}

TEST(CountedPtr, shares_may_come_and_go_on_several_threads) {
  int alive = 0;
  {
    CountedPtr<Thing> shared = make_counted<Thing>(alive, 7);
    const auto copy_often = [](CountedPtr<Thing> mine) {
      for (int i = 0; i < 10000; ++i) {
        const CountedPtr<Thing> copy = mine;
        if (copy->value != 7) FAIL();
      }
    };
    std::thread first(copy_often, shared);
    std::thread second(copy_often, shared);
    shared = CountedPtr<Thing>();
    first.join();
    second.join();
  }
  EXPECT_EQ(alive, 0);
}

}  // namespace
}  // namespace penstock

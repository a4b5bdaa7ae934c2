#include "app/load_pace.h"

#include <gtest/gtest.h>

#include <limits>

namespace penstock::app {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr TimePoint kStart = TimePoint{} + seconds(1000);

TEST(LoadPace, lets_everything_through_without_a_rate) {
  LoadPace pace(0);
  EXPECT_FALSE(pace.limited());
  EXPECT_TRUE(pace.spend(std::numeric_limits<std::size_t>::max(), kStart));
  EXPECT_TRUE(pace.may_read(kStart));
}

TEST(LoadPace, waits_as_long_as_what_was_read_should_have_taken) {
  LoadPace pace(1000);
  EXPECT_FALSE(pace.spend(500, kStart));
  EXPECT_FALSE(pace.may_read(kStart + milliseconds(499)));
  EXPECT_TRUE(pace.may_read(kStart + milliseconds(500)));
}

TEST(LoadPace, adds_up_what_is_read_before_the_wait_is_over) {
  LoadPace pace(1000);
  pace.spend(500, kStart);
  pace.spend(250, kStart + milliseconds(100));
  EXPECT_FALSE(pace.may_read(kStart + milliseconds(749)));
  EXPECT_TRUE(pace.may_read(kStart + milliseconds(750)));
}

TEST(LoadPace, silence_earns_no_credit) {
  LoadPace pace(1000);
  pace.spend(1, kStart);
  EXPECT_FALSE(pace.spend(1000, kStart + seconds(60)));
  EXPECT_TRUE(pace.may_read(kStart + seconds(61)));
}

TEST(LoadPace, the_slowest_rate_is_no_overflow) {
  LoadPace pace(1);
  EXPECT_FALSE(pace.spend(std::numeric_limits<std::size_t>::max(), kStart));
  EXPECT_FALSE(pace.may_read(kStart + std::chrono::hours(1)));
}

}  // namespace
}  // namespace penstock::app

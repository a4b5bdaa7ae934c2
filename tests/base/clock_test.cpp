#include "penstock/base/clock.h"

#include <gtest/gtest.h>

namespace penstock {
namespace {

using std::chrono::hours;
using std::chrono::nanoseconds;

constexpr TimePoint kStart = TimePoint(hours(1));

TEST(AddClamped, adds) {
  EXPECT_EQ(add_clamped(kStart, hours(2)), TimePoint(hours(3)));
  EXPECT_EQ(add_clamped(kStart, nanoseconds(1)), kStart + nanoseconds(1));
}

TEST(AddClamped, counts_a_negative_delay_as_none) {
  EXPECT_EQ(add_clamped(kStart, Duration::zero()), kStart);
  EXPECT_EQ(add_clamped(kStart, nanoseconds(-1)), kStart);
  EXPECT_EQ(add_clamped(kStart, Duration::min()), kStart);
}

TEST(AddClamped, counts_what_would_overflow_as_never) {
  EXPECT_EQ(add_clamped(kStart, Duration::max()), kNever);
  EXPECT_EQ(add_clamped(kNever, nanoseconds(1)), kNever);
  EXPECT_EQ(add_clamped(kNever - nanoseconds(1), nanoseconds(2)), kNever);
}

TEST(AddClamped, reaches_never_without_clamping) {
  EXPECT_EQ(add_clamped(kNever - nanoseconds(1), nanoseconds(1)), kNever);
  EXPECT_EQ(add_clamped(kStart, kNever - kStart), kNever);
  EXPECT_EQ(add_clamped(TimePoint{}, Duration::max()), kNever);
}

}  // namespace
}  // namespace penstock

#include "penstock/base/bounded_log.h"

#include <gtest/gtest.h>

#include <string>

#include "support/captured_log.h"

namespace penstock {
namespace {

using std::chrono::milliseconds;
using test::CapturedLog;

class BoundedLogTest : public testing::Test {
 protected:
  void say(TimePoint now) {
    kind.log(LogLevel::error, now, [this] {
      ++composed;
      return std::string("it went wrong");
    });
  }

  BoundedLog kind;
  CapturedLog log;
  int composed = 0;
};

TEST_F(BoundedLogTest, ten_lines_pass_and_the_others_are_not_even_composed) {
  for (int i = 0; i < 50; ++i)
    say(TimePoint(milliseconds(i)));
  EXPECT_EQ(log.lines().size(), 10u);
  EXPECT_EQ(composed, 10);
  EXPECT_EQ(kind.suppressed(), 40u);
}

TEST_F(BoundedLogTest, no_second_has_more_than_ten_wherever_it_begins) {
  // Ten at its end and ten at the beginning of the next would be twenty in a moment.
  for (int i = 0; i < 10; ++i)
    say(TimePoint(milliseconds(900 + i)));
  say(TimePoint(milliseconds(1000)));
  say(TimePoint(milliseconds(1899)));
  EXPECT_EQ(log.lines().size(), 10u);
  say(TimePoint(milliseconds(1900)));
  say(TimePoint(milliseconds(1900)));
  EXPECT_EQ(log.lines().size(), 11u);
  say(TimePoint(milliseconds(1901)));
  EXPECT_EQ(log.lines().size(), 12u);
}

TEST_F(BoundedLogTest, the_next_line_tells_how_many_are_missing) {
  for (int i = 0; i < 13; ++i)
    say(TimePoint());
  say(TimePoint(milliseconds(1000)));
  say(TimePoint(milliseconds(1000)));
  EXPECT_EQ(log.lines()[10], "it went wrong (3 more like it were not logged)");
  EXPECT_EQ(log.lines()[11], "it went wrong");
  EXPECT_EQ(kind.suppressed(), 0u);
}

TEST_F(BoundedLogTest, a_level_that_is_off_uses_nothing_up) {
  for (int i = 0; i < 20; ++i)
    kind.log(LogLevel::debug, TimePoint(), [] { return std::string("quiet"); });
  say(TimePoint());
  EXPECT_EQ(log.lines().size(), 1u);
  EXPECT_EQ(kind.suppressed(), 0u);
}

}  // namespace
}  // namespace penstock

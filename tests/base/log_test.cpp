#include "penstock/base/log.h"

#include <gtest/gtest.h>

#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace penstock {
namespace {

using Lines = std::vector<std::pair<LogLevel, std::string>>;

std::mutex lines_mutex;
Lines lines;

void collect(LogLevel level, std::string_view line) noexcept {
  const std::scoped_lock lock(lines_mutex);
  lines.emplace_back(level, line);
}

class LogTest : public testing::Test {
 protected:
  LogTest() {
    lines.clear();
    set_log_sink(&collect);
  }
  ~LogTest() override {
    set_log_sink(nullptr);
    set_log_level(LogLevel::warning);
  }
};

TEST_F(LogTest, lines_from_the_default_level_on_reach_the_sink) {
  log(LogLevel::info, "dropped");
  log(LogLevel::warning, "kept");
  log(LogLevel::error, "kept too");

  EXPECT_EQ(lines, (Lines{{LogLevel::warning, "kept"}, {LogLevel::error, "kept too"}}));
}

TEST_F(LogTest, the_level_can_be_changed) {
  set_log_level(LogLevel::trace);
  EXPECT_TRUE(log_enabled(LogLevel::trace));
  log(LogLevel::trace, "kept");

  set_log_level(LogLevel::error);
  EXPECT_FALSE(log_enabled(LogLevel::warning));
  EXPECT_TRUE(log_enabled(LogLevel::error));
  log(LogLevel::warning, "dropped");

  EXPECT_EQ(lines, (Lines{{LogLevel::trace, "kept"}}));
}

TEST_F(LogTest, off_silences_everything) {
  set_log_level(LogLevel::off);
  log(LogLevel::error, "dropped");
  EXPECT_FALSE(log_enabled(LogLevel::off)) << "off is no level a line can have";
  log(LogLevel::off, "dropped");

  EXPECT_EQ(lines, Lines{});
}

TEST_F(LogTest, the_default_sink_writes_one_line_to_standard_error) {
  set_log_sink(nullptr);
  testing::internal::CaptureStderr();
  log(LogLevel::error, std::string_view("only this, not that").substr(0, 9));

  EXPECT_EQ(testing::internal::GetCapturedStderr(), "penstock: error: only this\n");
}

TEST_F(LogTest, every_level_has_a_name) {
  EXPECT_EQ(to_string(LogLevel::trace), "trace");
  EXPECT_EQ(to_string(LogLevel::debug), "debug");
  EXPECT_EQ(to_string(LogLevel::info), "info");
  EXPECT_EQ(to_string(LogLevel::warning), "warning");
  EXPECT_EQ(to_string(LogLevel::error), "error");
  EXPECT_EQ(to_string(LogLevel::off), "off");
}

TEST_F(LogTest, several_threads_may_log) {
  constexpr std::size_t kEach = 100;
  const auto log_some = [] {
    for (std::size_t i = 0; i < kEach; ++i)
      log(LogLevel::error, "line");
  };
  std::thread other(log_some);
  log_some();
  other.join();

  EXPECT_EQ(lines.size(), 2 * kEach);
}

TEST_F(LogTest, control_characters_are_escaped_and_everything_else_is_left) {
  log(LogLevel::error, std::string_view("a\0b\n\x1b[31m\x7f\xc2\x85", 12));
  log(LogLevel::error, "gr\xc3\xbc\xc3\x9f \xc2\xa0 back\\slash \xc2");

  EXPECT_EQ(lines[0].second, R"(a\x00b\x0a\x1b[31m\x7f\xc2\x85)");
  EXPECT_EQ(lines[1].second, "gr\xc3\xbc\xc3\x9f \xc2\xa0 back\\slash \xc2");
}

}  // namespace
}  // namespace penstock

#include "penstock/base/result.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <set>
#include <string>

namespace penstock {
namespace {

constexpr Errc kAll[] = {
    Errc::unknown_backend, Errc::bad_address, Errc::needs_resolver, Errc::too_many_connections,
    Errc::already_started, Errc::stopped,     Errc::self_connected, Errc::out_of_loops,
};

TEST(Result, our_errors_have_a_category_and_a_message_each) {
  std::set<std::string> messages;
  for (const Errc error : kAll) {
    const std::error_code code = error;
    EXPECT_TRUE(code) << "no error may be zero";
    EXPECT_STREQ(code.category().name(), "penstock");
    messages.insert(code.message());
  }
  EXPECT_EQ(messages.size(), std::size(kAll));
}

TEST(Result, a_number_that_is_no_error_of_ours_is_printed) {
  EXPECT_EQ(penstock_category().message(4711), "unknown error 4711");
}

TEST(Result, errno_travels_as_the_system_category_from_either_sign) {
  EXPECT_EQ(system_error(ENOENT), std::errc::no_such_file_or_directory);
  EXPECT_EQ(system_error(-ENOENT), std::errc::no_such_file_or_directory);
  EXPECT_EQ(system_error(-ENOENT).category(), std::system_category());
}

TEST(Result, a_failure_becomes_a_result_of_any_type) {
  const Result<int> number = failure(-EPIPE);
  const Result<std::string> text = failure(Errc::stopped);
  const Result<void> nothing = failure(EPIPE);

  EXPECT_EQ(number.error(), system_error(EPIPE));
  EXPECT_EQ(text.error(), Errc::stopped);
  EXPECT_EQ(nothing.error(), number.error());
}

TEST(Result, our_errors_are_not_errno_values) {
  EXPECT_NE(make_error_code(Errc::unknown_backend), system_error(EPERM));
}

}  // namespace
}  // namespace penstock

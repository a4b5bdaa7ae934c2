#include "app/load_statistics.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "penstock/base/result.h"

namespace penstock::app {
namespace {

TEST(LoadStatistics, failed_attempts_alone_are_no_failure_once_there_was_a_connection) {
  LoadStatistics statistics;
  EXPECT_FALSE(statistics.succeeded()) << "no connection was made";
  statistics.total.connections = 1;
  statistics.errors.count_connect_failure(system_error(ECONNREFUSED));
  EXPECT_TRUE(statistics.succeeded());
  statistics.errors.resets = 1;
  EXPECT_FALSE(statistics.succeeded());
}

TEST(LoadStatistics, examples_are_bounded_and_counts_are_not) {
  LoadErrors errors;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    errors.count(WrongByte{.connection = i});
    errors.count(Truncation{.connection = i});
  }
  EXPECT_EQ(errors.wrong, 1000U);
  EXPECT_EQ(errors.truncated, 1000U);
  EXPECT_EQ(errors.first_wrong.size(), LoadErrors::kExamplesMax);
  EXPECT_EQ(errors.first_truncated.size(), LoadErrors::kExamplesMax);
}

}  // namespace
}  // namespace penstock::app

#include "app/load_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "penstock/base/result.h"

namespace penstock::app {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

const LoadOptions kOptions{.to = "127.0.0.1:7000"};
const LoadOutcome kOutcome{.backend = "epoll"};

LoadStatistics some() {
  LoadStatistics statistics;
  statistics.total = {.messages = 2001, .bytes = std::uint64_t{4} << 20, .connections = 100};
  statistics.in_time = {.messages = 2000, .bytes = std::uint64_t{3} << 20, .connections = 100};
  statistics.elapsed = seconds(2);
  for (int i = 0; i < 1000; ++i)
    statistics.latency.record(milliseconds(1));
  return statistics;
}

TEST(LoadReport, rates_are_of_what_happened_in_time) {
  const std::string text = text_report(kOptions, some(), kOutcome);
  EXPECT_THAT(text, HasSubstr("1,000/s, 2,000 in time, 2,001 in all"));
  EXPECT_THAT(text, HasSubstr("1.5 MiB/s each way"));
  EXPECT_THAT(text, HasSubstr("100 made\n"));
  EXPECT_THAT(text, HasSubstr("p50 1.00 ms, p90 1.00 ms, p99 1.00 ms, p99.9 1.00 ms, max 1.00 ms"));
  EXPECT_THAT(text, HasSubstr("errors       none"));
  EXPECT_THAT(text, Not(HasSubstr("interrupted")));
}

TEST(LoadReport, churn_tells_connections_a_second) {
  LoadOptions options = kOptions;
  options.churn = true;
  EXPECT_THAT(text_report(options, some(), kOutcome), HasSubstr("100 made, 50.0/s"));
}

TEST(LoadReport, nothing_at_all_divides_by_no_zero) {
  const std::string text = text_report(kOptions, {}, {.backend = "epoll", .interrupted = true});
  EXPECT_THAT(text, HasSubstr("0.0/s, 0 in time"));
  EXPECT_THAT(text, HasSubstr("(interrupted)"));
  EXPECT_THAT(json_report(kOptions, {}, kOutcome), HasSubstr("\"messages_per_second\":0.000"));
}

TEST(LoadReport, every_kind_of_error_has_its_line) {
  LoadStatistics statistics = some();
  LoadErrors& errors = statistics.errors;
  errors.count_connect_failure(system_error(ECONNREFUSED));
  errors.count_connect_failure(system_error(ECONNREFUSED));
  errors.count_connect_failure(system_error(EADDRNOTAVAIL));
  errors.resets = 1;
  errors.timeouts = 2;
  errors.missing = 3;
  errors.missing_bytes = 4096;
  errors.other = 4;
  errors.count(Truncation{.connection = 5, .received = 6, .expected = 7});
  errors.count(
      WrongByte{.connection = 8, .offset = 9, .expected = std::byte{0x10}, .got = std::byte{0xAB}});
  const std::string text = text_report(kOptions, statistics, kOutcome);
  for (const char* line :
       {"2 x could not connect: Connection refused",
        "1 x could not connect: Cannot assign requested address", "1 x reset by the other side",
        "2 x timed out", "1 x truncated", "connection 5: 6 of 7 bytes came back",
        "3 x missing: 4,096 bytes", "1 x wrong byte",
        "connection 8: offset 9: expected 0x10, got 0xab", "4 x ended by a limit"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_EQ(errors.connect_failures(), 3U);

  const std::string json = json_report(kOptions, statistics, kOutcome);
  for (const char* field :
       {R"("Connection refused":2)", R"("connect_failures":3)", R"("resets":1)", R"("timeouts":2)",
        R"("truncated":1)", R"("missing":3)", R"("missing_bytes":4096)", R"("wrong_bytes":1)",
        R"("other":4)", R"({"connection":5,"received":6,"expected":7})",
        R"({"connection":8,"offset":9,"expected":16,"got":171})", R"("succeeded":false)"}) {
    EXPECT_THAT(json, HasSubstr(field));
  }
}

TEST(LoadReport, a_byte_nobody_sent_is_told_as_such) {
  const WrongByte byte{
      .connection = 1, .offset = 64, .expected = std::nullopt, .got = std::byte{7}};
  EXPECT_EQ(describe(byte),
            "connection 1: byte 0x07 came back at offset 64, where nothing was sent");
  LoadStatistics statistics;
  statistics.errors.count(byte);
  EXPECT_THAT(json_report(kOptions, statistics, kOutcome), HasSubstr(R"("expected":null,"got":7)"));
}

TEST(LoadReport, json_quotes_what_an_address_may_contain) {
  LoadOptions options = kOptions;
  options.to = "unix:/tmp/\"a\\b\n";
  EXPECT_THAT(json_report(options, {}, kOutcome), HasSubstr(R"("to":"unix:/tmp/\"a\\b\u000a")"));
}

TEST(LoadReport, progress_is_what_happened_since_the_last_look) {
  const std::string line =
      progress_line({.messages = 1, .bytes = std::uint64_t{2} << 20, .connections = 100}, some(),
                    seconds(2), seconds(7));
  EXPECT_THAT(line, HasSubstr("7 s  1,000/s  1.0 MiB/s  100 connections made  0 lost"));
}

TEST(LoadReport, no_connection_says_what_to_do) {
  const auto why = [](std::error_code error) {
    return describe_no_connection("127.0.0.1:7000", error, seconds(5));
  };
  EXPECT_THAT(why(system_error(ECONNREFUSED)), HasSubstr("penstock echo --listen 127.0.0.1:7000"));
  EXPECT_EQ(why(make_error_code(Errc::self_connected)), why(system_error(ECONNREFUSED)));
  EXPECT_THAT(why(system_error(ETIMEDOUT)), HasSubstr("within 5.00 s"));
  EXPECT_THAT(why(system_error(EADDRNOTAVAIL)), HasSubstr("TIME_WAIT"));
  EXPECT_THAT(why(system_error(ENETUNREACH)), HasSubstr("Network is unreachable"));
}

TEST(LoadReport, durations_and_counts_are_for_people) {
  EXPECT_EQ(format_duration(nanoseconds(12'340)), "12.3 us");
  EXPECT_EQ(format_duration(microseconds(4'560)), "4.56 ms");
  EXPECT_EQ(format_duration(milliseconds(7'890)), "7.89 s");
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1'000), "1,000");
  EXPECT_EQ(format_count(1'234'567), "1,234,567");
}

}  // namespace
}  // namespace penstock::app

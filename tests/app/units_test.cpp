#include "app/units.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

namespace penstock::app {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

TEST(ParseBytes, reads_plain_numbers) {
  EXPECT_EQ(parse_bytes("0"), 0U);
  EXPECT_EQ(parse_bytes("65536"), 65536U);
  EXPECT_EQ(parse_bytes("312B"), 312U);
}

TEST(ParseBytes, knows_binary_units_by_letter_and_by_name) {
  EXPECT_EQ(parse_bytes("64K"), 65536U);
  EXPECT_EQ(parse_bytes("64KiB"), 65536U);
  EXPECT_EQ(parse_bytes("10M"), 10485760U);
  EXPECT_EQ(parse_bytes("10MiB"), 10485760U);
  EXPECT_EQ(parse_bytes("1G"), 1073741824U);
  EXPECT_EQ(parse_bytes("1GiB"), 1073741824U);
}

TEST(ParseBytes, knows_decimal_units) {
  EXPECT_EQ(parse_bytes("64KB"), 64000U);
  EXPECT_EQ(parse_bytes("10MB"), 10000000U);
  EXPECT_EQ(parse_bytes("1GB"), 1000000000U);
}

TEST(ParseBytes, reaches_the_largest_size_and_refuses_what_passes_it) {
  EXPECT_EQ(parse_bytes("18446744073709551615"), std::numeric_limits<std::size_t>::max());
  EXPECT_EQ(parse_bytes("18446744073709551616"), std::nullopt);
  EXPECT_EQ(parse_bytes("17179869183GiB"), std::size_t{17179869183} << 30U);
  EXPECT_EQ(parse_bytes("17179869184GiB"), std::nullopt);
}

TEST(ParseBytes, refuses_everything_else) {
  for (const char* text : {"", " ", "lots", "-1", "+1", "1.5MiB", "64XiB", "64kib", "64 KiB", " 64",
                           "64KiB64", "KiB", "0x10", "1e3"}) {
    EXPECT_EQ(parse_bytes(text), std::nullopt) << text;
  }
}

TEST(ParseDuration, reads_each_unit) {
  EXPECT_EQ(parse_duration("500ms"), Duration(milliseconds(500)));
  EXPECT_EQ(parse_duration("30s"), Duration(seconds(30)));
  EXPECT_EQ(parse_duration("2m"), Duration(minutes(2)));
  EXPECT_EQ(parse_duration("1h"), Duration(hours(1)));
}

TEST(ParseDuration, takes_a_zero_without_a_unit_and_no_other_number) {
  EXPECT_EQ(parse_duration("0"), Duration::zero());
  EXPECT_EQ(parse_duration("0s"), Duration::zero());
  EXPECT_EQ(parse_duration("30"), std::nullopt);
}

TEST(ParseDuration, refuses_what_a_duration_cannot_hold) {
  EXPECT_EQ(parse_duration("2562047h"), Duration(hours(2562047)));
  EXPECT_EQ(parse_duration("2562048h"), std::nullopt);
  EXPECT_EQ(parse_duration("99999999999999999999s"), std::nullopt);
}

TEST(ParseDuration, refuses_everything_else) {
  for (const char* text : {"", "never", "-1s", "1.5s", "5parsecs", "1 s", "s", "1S", "1s1"}) {
    EXPECT_EQ(parse_duration(text), std::nullopt) << text;
  }
}

TEST(FormatBytes, gives_small_sizes_in_bytes_and_others_to_a_tenth) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.0 KiB");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(std::uint64_t{10} << 20U), "10.0 MiB");
  EXPECT_EQ(format_bytes(std::uint64_t{3} << 30U), "3.0 GiB");
  EXPECT_EQ(format_bytes(std::uint64_t{5} << 40U), "5.0 TiB");
}

TEST(FormatBytes, goes_on_in_the_largest_unit) {
  EXPECT_EQ(format_bytes(std::uint64_t{1} << 50U), "1024.0 TiB");
}

}  // namespace
}  // namespace penstock::app

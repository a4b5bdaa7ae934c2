#include "app/load_pattern.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace penstock::app {
namespace {

std::vector<std::byte> copy(std::span<const std::byte> bytes) {
  return {bytes.begin(), bytes.end()};
}

// Longer than a run, put together from several.
std::vector<std::byte> stretch(const LoadPattern& pattern, std::uint64_t position,
                               std::size_t size) {
  std::vector<std::byte> all(size);
  for (std::size_t i = 0; i < size; ++i)
    all[i] = pattern.at(position + i);
  return all;
}

TEST(LoadPattern, repeats_after_a_prime_period_and_not_before) {
  const LoadPattern pattern;
  const auto first = copy(pattern.run(0, 1000));
  EXPECT_TRUE(std::ranges::equal(first, pattern.run(LoadPattern::kPeriod, 1000)));
  for (std::size_t shift = 1; shift < LoadPattern::kPeriod; ++shift)
    ASSERT_FALSE(std::ranges::equal(std::span(first).first(16), pattern.run(shift, 16))) << shift;
  for (std::size_t divisor = 2; divisor * divisor <= LoadPattern::kPeriod; ++divisor)
    ASSERT_NE(LoadPattern::kPeriod % divisor, 0U) << divisor;
}

TEST(LoadPattern, gives_the_longest_run_wherever_it_begins) {
  const LoadPattern pattern;
  for (const std::uint64_t position :
       {std::uint64_t{0}, std::uint64_t{LoadPattern::kPeriod - 1}, std::uint64_t{1} << 60}) {
    const auto run = pattern.run(position, LoadPattern::kRunMax);
    ASSERT_EQ(run.size(), LoadPattern::kRunMax);
    EXPECT_EQ(run.back(), pattern.at(position + LoadPattern::kRunMax - 1));
  }
}

TEST(LoadPattern, accepts_its_own_bytes_of_any_length) {
  const LoadPattern pattern;
  const auto bytes = stretch(pattern, 12'345, 3 * LoadPattern::kRunMax + 7);
  EXPECT_EQ(pattern.first_wrong(12'345, bytes), std::nullopt);
  EXPECT_EQ(pattern.first_wrong(0, {}), std::nullopt);
}

TEST(LoadPattern, finds_the_first_changed_byte) {
  const LoadPattern pattern;
  for (const std::size_t place : {std::size_t{0}, LoadPattern::kRunMax - 1, LoadPattern::kRunMax,
                                  2 * LoadPattern::kRunMax + 6}) {
    auto bytes = stretch(pattern, 99, 2 * LoadPattern::kRunMax + 7);
    bytes[place] ^= std::byte{1};
    bytes.back() ^= std::byte{2};
    EXPECT_EQ(pattern.first_wrong(99, bytes), place);
  }
}

TEST(LoadPattern, finds_lost_repeated_and_swapped_pieces) {
  const LoadPattern pattern;
  const auto right = stretch(pattern, 0, 4096);
  auto lost = right;
  lost.erase(lost.begin() + 1024, lost.begin() + 1024 + 64);
  auto repeated = right;
  std::copy_n(right.begin(), 1024, repeated.begin() + 1024);
  auto swapped = right;
  std::swap_ranges(swapped.begin() + 1024, swapped.begin() + 2048, swapped.begin() + 2048);
  for (const auto& wrong : {lost, repeated, swapped}) {
    const auto place = pattern.first_wrong(0, wrong);
    ASSERT_TRUE(place);
    EXPECT_GE(*place, 1024U);
    EXPECT_LT(*place, 1024U + 16) << "random neighbours differ soon";
  }
}

}  // namespace
}  // namespace penstock::app

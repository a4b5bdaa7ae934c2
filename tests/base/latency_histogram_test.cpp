#include "penstock/base/latency_histogram.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace penstock {
namespace {

using std::chrono::hours;
using std::chrono::nanoseconds;

using Numbers = std::vector<std::int64_t>;

constexpr std::int64_t kLongest = (std::int64_t{1} << 40) - 1;  // 18 minutes

LatencyHistogram histogram_of(const Numbers& numbers) {
  LatencyHistogram histogram;
  for (const std::int64_t number : numbers)
    histogram.record(nanoseconds(number));
  return histogram;
}

/// The value of that rank, counted from 1, when `percent` of all are not above it: integers alone.
std::int64_t exact(const Numbers& sorted, std::size_t percent) {
  const std::size_t rank = std::max<std::size_t>((percent * sorted.size() + 99) / 100, 1);
  return sorted[rank - 1];
}

/// Numbers of every magnitude the histogram tells apart.
rc::Gen<Numbers> numbers() {
  return rc::gen::container<Numbers>(
      rc::gen::map(rc::gen::pair(rc::gen::inRange(0, 40), rc::gen::arbitrary<std::uint64_t>()),
                   [](const std::pair<int, std::uint64_t>& pair) {
                     const std::uint64_t top = std::uint64_t{1} << pair.first;
                     return static_cast<std::int64_t>(top | (pair.second & (top - 1)));
                   }));
}

TEST(LatencyHistogram, is_zero_while_it_is_empty) {
  const LatencyHistogram histogram;
  EXPECT_EQ(histogram.count(), 0u);
  EXPECT_EQ(histogram.max(), Duration::zero());
  EXPECT_EQ(histogram.mean(), Duration::zero());
  for (const double fraction : {0.0, 0.5, 1.0})
    EXPECT_EQ(histogram.percentile(fraction), Duration::zero());
}

TEST(LatencyHistogram, tells_one_duration_exactly_whatever_the_percentile) {
  for (const std::int64_t number :
       {std::int64_t{0}, std::int64_t{1}, std::int64_t{31}, std::int64_t{32}, std::int64_t{63},
        std::int64_t{64}, std::int64_t{1'000'003}, kLongest - 1, kLongest}) {
    const LatencyHistogram histogram = histogram_of({number});
    EXPECT_EQ(histogram.count(), 1u);
    EXPECT_EQ(histogram.max(), nanoseconds(number));
    EXPECT_EQ(histogram.mean(), nanoseconds(number));
    for (const double fraction : {0.0, 0.001, 0.5, 0.999, 1.0})
      EXPECT_EQ(histogram.percentile(fraction), nanoseconds(number)) << fraction;
  }
}

TEST(LatencyHistogram, counts_negative_durations_as_zero) {
  const LatencyHistogram histogram =
      histogram_of({-1, -1'000'000, std::numeric_limits<std::int64_t>::min()});
  EXPECT_EQ(histogram.count(), 3u);
  EXPECT_EQ(histogram.max(), Duration::zero());
  EXPECT_EQ(histogram.mean(), Duration::zero());
  EXPECT_EQ(histogram.percentile(1), Duration::zero());
}

TEST(LatencyHistogram, counts_what_is_too_long_as_the_longest) {
  const LatencyHistogram histogram = histogram_of(
      {kLongest + 1, nanoseconds(hours(1)).count(), std::numeric_limits<std::int64_t>::max()});
  EXPECT_EQ(histogram.count(), 3u);
  EXPECT_EQ(histogram.max(), nanoseconds(kLongest));
  EXPECT_EQ(histogram.mean(), nanoseconds(kLongest));
  EXPECT_EQ(histogram.percentile(0), nanoseconds(kLongest));
  EXPECT_EQ(histogram.percentile(1), nanoseconds(kLongest));
}

TEST(LatencyHistogram, takes_fractions_outside_of_0_to_1_for_the_nearer_of_the_two) {
  const LatencyHistogram histogram = histogram_of({1, 2, 3});
  EXPECT_EQ(histogram.percentile(-5), nanoseconds(1));
  EXPECT_EQ(histogram.percentile(5), nanoseconds(3));
}

// Below 64 every number has a bucket of its own, so the rank itself is seen.
TEST(LatencyHistogram, chooses_the_rank_that_the_fraction_names) {
  for (std::size_t count = 1; count <= 60; ++count) {
    Numbers numbers(count);
    std::iota(numbers.begin(), numbers.end(), 1);
    const LatencyHistogram histogram = histogram_of(numbers);
    for (std::size_t percent = 0; percent <= 100; ++percent) {
      EXPECT_EQ(histogram.percentile(static_cast<double>(percent) / 100),
                nanoseconds(exact(numbers, percent)))
          << percent << " % of " << count;
    }
  }
}

TEST(LatencyHistogram, has_its_smallest_at_0_and_its_longest_at_1) {
  const LatencyHistogram histogram = histogram_of({7, 1'000'000, 12, kLongest - 5});
  EXPECT_EQ(histogram.percentile(0), nanoseconds(7));
  EXPECT_EQ(histogram.percentile(1), nanoseconds(kLongest - 5));
}

// Each edge of each power of two, and its neighbours.
TEST(LatencyHistogram, is_exact_to_a_32nd_at_every_edge_of_its_buckets) {
  for (int bit = 5; bit < 40; ++bit) {
    for (std::int64_t step = 32; step < 64; ++step) {
      const std::int64_t edge = bit == 5 ? step : step << (bit - 5);
      for (const std::int64_t number : {edge - 1, edge, edge + 1}) {
        if (number > kLongest) continue;
        // With something longer beside it, so that max() does not cut the answer off.
        const LatencyHistogram histogram = histogram_of({number, kLongest});
        const std::int64_t told = histogram.percentile(0).count();
        ASSERT_GE(told, number);
        ASSERT_LE(told - number, number / 32) << number;
      }
    }
  }
}

TEST(LatencyHistogram, a_fraction_that_is_no_number_is_taken_for_the_least) {
  LatencyHistogram histogram;
  histogram.record(Duration(3));
  histogram.record(Duration(9));
  EXPECT_EQ(histogram.percentile(std::numeric_limits<double>::quiet_NaN()), Duration(3));
}

TEST(LatencyHistogram, percentiles_are_the_exact_ones_rounded_up_by_less_than_a_32nd) {
  EXPECT_TRUE(rc::check([] {
    Numbers sorted = *numbers();
    RC_PRE(!sorted.empty());
    const LatencyHistogram histogram = histogram_of(sorted);
    std::ranges::sort(sorted);
    RC_ASSERT(histogram.count() == sorted.size());
    RC_ASSERT(histogram.max().count() == sorted.back());
    std::uint64_t sum = 0;
    for (const std::int64_t number : sorted)
      sum += static_cast<std::uint64_t>(number);
    RC_ASSERT(static_cast<std::uint64_t>(histogram.mean().count()) == sum / sorted.size());
    std::int64_t before = 0;
    for (std::size_t percent = 0; percent <= 100; ++percent) {
      const std::int64_t told = histogram.percentile(static_cast<double>(percent) / 100).count();
      const std::int64_t wanted = exact(sorted, percent);
      RC_ASSERT(told >= wanted);
      RC_ASSERT(told - wanted <= wanted / 32);
      RC_ASSERT(told <= sorted.back());
      RC_ASSERT(told >= before);
      before = told;
    }
  }));
}

TEST(LatencyHistogram, merging_is_counting_both) {
  EXPECT_TRUE(rc::check([] {
    const Numbers left = *numbers();
    const Numbers right = *numbers();
    LatencyHistogram merged = histogram_of(left);
    merged.merge(histogram_of(right));
    Numbers both = left;
    both.insert(both.end(), right.begin(), right.end());
    const LatencyHistogram whole = histogram_of(both);
    RC_ASSERT(merged.count() == whole.count());
    RC_ASSERT(merged.max() == whole.max());
    RC_ASSERT(merged.mean() == whole.mean());
    for (const double fraction : {0.0, 0.1, 0.5, 0.9, 0.99, 1.0})
      RC_ASSERT(merged.percentile(fraction) == whole.percentile(fraction));
  }));
}

TEST(LatencyHistogram, merging_an_empty_one_changes_nothing_and_merging_into_one_copies) {
  const LatencyHistogram some = histogram_of({5, 500, 50'000});
  LatencyHistogram same = some;
  same.merge({});
  LatencyHistogram copy;
  copy.merge(some);
  for (const LatencyHistogram* each : {&same, &copy}) {
    EXPECT_EQ(each->count(), 3u);
    EXPECT_EQ(each->max(), some.max());
    EXPECT_EQ(each->mean(), some.mean());
    EXPECT_EQ(each->percentile(0.5), some.percentile(0.5));
  }
}

TEST(LatencyHistogram, merging_with_itself_doubles_the_count_alone) {
  LatencyHistogram histogram = histogram_of({10, 20, 30});
  histogram.merge(histogram);
  EXPECT_EQ(histogram.count(), 6u);
  EXPECT_EQ(histogram.mean(), nanoseconds(20));
  EXPECT_EQ(histogram.percentile(0.5), nanoseconds(20));
}

TEST(LatencyHistogram, takes_the_memory_it_says) {
  EXPECT_LE(sizeof(LatencyHistogram), std::size_t{9} * 1024 + 64);
}

}  // namespace
}  // namespace penstock

#include "penstock/base/token_bucket.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace penstock {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

/// Takes what there is at that time.
std::size_t take_all(TokenBucket& bucket, TimePoint now) {
  std::size_t taken = 0;
  for (; bucket.next_at() <= now && taken < 1'000'000; ++taken)
    bucket.take(now);
  return taken;
}

TEST(TokenBucketTest, it_is_full_at_first_and_fills_at_its_rate) {
  TokenBucket bucket(4, 3);
  const TimePoint begin(seconds(7));
  EXPECT_EQ(take_all(bucket, begin), 3u);
  EXPECT_EQ(bucket.next_at(), begin + milliseconds(250));
  EXPECT_EQ(take_all(bucket, begin + milliseconds(249)), 0u);
  EXPECT_EQ(take_all(bucket, begin + milliseconds(250)), 1u);
  EXPECT_EQ(take_all(bucket, begin + milliseconds(750)), 2u);
  EXPECT_EQ(take_all(bucket, begin + seconds(100)), 3u) << "never more than its depth";
}

TEST(TokenBucketTest, it_is_full_at_the_beginning_of_time_too) {
  TokenBucket bucket(1, 1);
  EXPECT_EQ(take_all(bucket, TimePoint()), 1u);
}

TEST(TokenBucketTest, what_was_taken_without_a_token_is_paid_for_later) {
  TokenBucket bucket(10, 1);
  const TimePoint begin(seconds(1));
  for (int i = 0; i < 5; ++i)
    bucket.take(begin);
  EXPECT_EQ(bucket.next_at(), begin + milliseconds(500));
}

TEST(TokenBucketTest, rates_that_do_not_divide_a_second_are_never_exceeded) {
  for (const std::size_t rate : {3U, 7U, 999U, 123'457U}) {
    TokenBucket bucket(rate, 1);
    std::size_t taken = 0;
    TimePoint now(seconds(1));
    const TimePoint end = now + seconds(1);
    for (; now < end; now = bucket.next_at()) {
      bucket.take(now);
      ++taken;
    }
    EXPECT_LE(taken, rate);
    EXPECT_GE(taken, rate - rate / 1000);
  }
}

TEST(TokenBucketTest, absurd_values_are_bounded) {
  TokenBucket fast(SIZE_MAX, SIZE_MAX);
  const TimePoint begin(seconds(1));
  fast.take(begin);
  EXPECT_LE(fast.next_at(), begin);
  TokenBucket deep(1, SIZE_MAX);
  EXPECT_EQ(take_all(deep, begin), 3601u) << "an hour's worth";
}

}  // namespace
}  // namespace penstock

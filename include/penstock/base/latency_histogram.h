// Durations, counted by size: cheap enough to be always on, exact to 3 %. Values; not thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "penstock/base/clock.h"

namespace penstock {

/// Counts durations of 0 ns to 18 minutes in buckets that are 1/32 of a power of two wide; longer
/// ones count as the longest, negative ones as 0. 9 KiB.
class LatencyHistogram {
 public:
  /// Counts one.
  void record(Duration duration) noexcept {
    const std::uint64_t nanoseconds =
        std::min(static_cast<std::uint64_t>(std::max(duration.count(), Duration::rep{0})), kMax);
    ++buckets_[bucket_of(nanoseconds)];
    ++count_;
    sum_ += nanoseconds;
    max_ = std::max(max_, nanoseconds);
  }

  /// Adds what another one has counted.
  void merge(const LatencyHistogram& other) noexcept {
    for (std::size_t i = 0; i < buckets_.size(); ++i)
      buckets_[i] += other.buckets_[i];
    count_ += other.count_;
    sum_ += other.sum_;
    max_ = std::max(max_, other.max_);
  }

  /// How many have been counted.
  std::uint64_t count() const noexcept { return count_; }
  /// The longest; exact.
  Duration max() const noexcept { return Duration(static_cast<Duration::rep>(max_)); }
  /// Zero when nothing has been counted.
  Duration mean() const noexcept {
    return Duration(static_cast<Duration::rep>(count_ == 0 ? 0 : sum_ / count_));
  }

  /// The duration that `fraction` (0 to 1) of all counted ones do not exceed, rounded up to the end
  /// of its bucket but never above max(). Zero when nothing has been counted. Below 0, and no number,
  /// count as 0.
  Duration percentile(double fraction) const noexcept {
    if (!(fraction > 0.0)) fraction = 0.0;
    // The fraction just below: 0.07 of 100 is 7, and 7.000000000000001 by multiplication.
    const double below = std::nextafter(std::min(fraction, 1.0), 0.0);
    const double rank = std::ceil(below * static_cast<double>(count_));
    std::uint64_t left = std::max<std::uint64_t>(static_cast<std::uint64_t>(rank), 1);
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      if (buckets_[i] >= left) {
        return Duration(static_cast<Duration::rep>(std::min(end_of(i), max_)));
      }
      left -= buckets_[i];
    }
    return max();
  }

 private:
  static constexpr unsigned kStepBits = 5;  // 32 buckets for each power of two
  static constexpr std::uint64_t kSteps = std::uint64_t{1} << kStepBits;
  static constexpr unsigned kBits = 40;
  static constexpr std::uint64_t kMax = (std::uint64_t{1} << kBits) - 1;
  static constexpr std::size_t kBuckets = (kBits - kStepBits + 1) * kSteps;

  // The numbers below 32 have a bucket each; above, the five bits behind the leading one choose.
  static std::size_t bucket_of(std::uint64_t number) noexcept {
    if (number < kSteps) return static_cast<std::size_t>(number);
    const unsigned shift = static_cast<unsigned>(std::bit_width(number)) - kStepBits - 1;
    return static_cast<std::size_t>(shift * kSteps + (number >> shift));
  }
  // The largest number of a bucket.
  static std::uint64_t end_of(std::size_t bucket) noexcept {
    if (bucket < kSteps) return bucket;
    const std::uint64_t shift = bucket / kSteps - 1;
    return ((bucket % kSteps + kSteps + 1) << shift) - 1;
  }

  std::array<std::uint64_t, kBuckets> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t sum_ = 0;
  std::uint64_t max_ = 0;
};

}  // namespace penstock

// The types of monotonic time. Reading the clock is a system call and lives at the kernel seam
// (Kernel::now).
#pragma once

#include <chrono>

namespace penstock {

/// A length of time, in nanoseconds.
using Duration = std::chrono::nanoseconds;

/// Tag of monotonic time (CLOCK_MONOTONIC). It has no now(): ask Kernel::now or EventLoop::now.
struct MonotonicClock {
  ///@{
  /// What the standard asks of a clock, but for now().
  using duration = Duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<MonotonicClock, duration>;
  static constexpr bool is_steady = true;
  ///@}
};

/// A point in monotonic time.
using TimePoint = MonotonicClock::time_point;

/// Further away than any deadline: "never".
inline constexpr TimePoint kNever = TimePoint::max();

/// start + delay without overflow: a negative delay counts as zero, a huge one as kNever.
constexpr TimePoint add_clamped(TimePoint start, Duration delay) noexcept {
  if (delay <= Duration::zero()) return start;
  if (delay > kNever - start) return kNever;
  return start + delay;
}

}  // namespace penstock

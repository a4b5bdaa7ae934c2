// How fast a slow reader may read: so many bytes a second on average, whatever comes at once.
// A value; it asks no clock.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "penstock/base/clock.h"

namespace penstock::app {

class LoadPace {
 public:
  /// `rate` in bytes a second; 0: no limit.
  explicit LoadPace(std::size_t rate) noexcept : rate_(rate) {}

  bool limited() const noexcept { return rate_ > 0; }
  /// `bytes` have been read. Answers whether reading may go on; else ask may_read() later.
  bool spend(std::size_t bytes, TimePoint now) noexcept {
    if (!limited()) return true;
    const double seconds = static_cast<double>(bytes) / static_cast<double>(rate_);
    const auto cost = std::chrono::duration<double>(std::min(seconds, kLongest));
    paid_until_ =
        add_clamped(std::max(paid_until_, now), std::chrono::duration_cast<Duration>(cost));
    return may_read(now);
  }
  bool may_read(TimePoint now) const noexcept { return paid_until_ <= now; }

 private:
  static constexpr double kLongest = 1e9;  // seconds

  std::size_t rate_;
  TimePoint paid_until_{};
};

}  // namespace penstock::app

// A rate with a burst, as a value: so many a second in the long run, so many at once after quiet.
// It does not read the clock and waits for nothing; its owner does. Single-threaded.
//
// A token is due each `interval`. Kept is the time at which the bucket would be full, so there is
// nothing to refill and no rounding adds up.
#pragma once

#include <algorithm>
#include <cstddef>

#include "penstock/base/assert.h"
#include "penstock/base/clock.h"

namespace penstock {

/// In any time t at most t · per_second + burst tokens.
class TokenBucket {
 public:
  /// A full bucket. `per_second` is 1 to 10^9 (more counts as that), `burst` 1 or more.
  TokenBucket(std::size_t per_second, std::size_t burst) noexcept
      : interval_(interval_of(per_second)), depth_(depth_of(interval_, burst)) {
    PENSTOCK_ASSERT(per_second > 0 && burst > 0, "a bucket without tokens never lets anything by");
  }

  /// Takes one token, whether there is one or not: what has happened already is charged, and the
  /// next one is due later for it.
  void take(TimePoint now) noexcept { full_at_ = add_clamped(std::max(full_at_, now), interval_); }

  /// When there is a token; not after `now` if there is one already.
  TimePoint next_at() const noexcept { return full_at_ - depth_; }

 private:
  // Rounded up: never faster than asked for.
  static Duration interval_of(std::size_t per_second) noexcept {
    const auto second = static_cast<std::size_t>(Duration(std::chrono::seconds(1)).count());
    const std::size_t rate = std::clamp<std::size_t>(per_second, 1, second);
    return Duration((second + rate - 1) / rate);
  }
  // How long a full bucket may be ahead; an hour's worth is enough for anybody.
  static Duration depth_of(Duration interval, std::size_t burst) noexcept {
    constexpr Duration kMost = std::chrono::hours(1);
    const auto spare = burst - 1;
    if (spare > static_cast<std::size_t>(kMost / interval)) return kMost;
    return interval * static_cast<Duration::rep>(spare);
  }

  Duration interval_;
  Duration depth_;
  TimePoint full_at_ = TimePoint{} - std::chrono::hours(1);
};

}  // namespace penstock

// Log lines of one kind that others can cause (a peer, a callback), held to ten in any second: a
// flood of errors must not become a flood of lines. What is dropped is counted, and the next line
// tells. Owner: whatever logs that kind. Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>

#include "penstock/base/clock.h"
#include "penstock/base/log.h"

namespace penstock {

/// The lines of one kind. It does not read the clock, and starts no timer: how many lines were
/// dropped is said by the next one that is not, and by suppressed().
class BoundedLog {
 public:
  /// Lines in any second.
  static constexpr std::size_t kLinesPerSecond = 10;

  /// Logs what compose() answers (a std::string), unless ten lines came in the second before `now`.
  /// compose() runs only if the line will be logged, and without a lock; see log_composed().
  template <class Compose>
  void log(LogLevel level, TimePoint now, Compose compose) noexcept {
    if (!log_enabled(level)) return;
    std::uint64_t missing = 0;
    if (!admit(now, missing)) return;
    log_composed(level, [&] {
      std::string line = compose();
      if (missing > 0) line += " (" + std::to_string(missing) + " more like it were not logged)";
      return line;
    });
  }

  /// Lines dropped since the last one that was logged.
  std::uint64_t suppressed() const noexcept {
    const std::scoped_lock lock(mutex_);
    return suppressed_;
  }

 private:
  // Whether a line may be logged now, and how many before it were not.
  bool admit(TimePoint now, std::uint64_t& missing) noexcept {
    const std::scoped_lock lock(mutex_);
    TimePoint& oldest = free_at_[next_];
    if (now < oldest) {
      ++suppressed_;
      return false;
    }
    oldest = add_clamped(now, std::chrono::seconds(1));
    next_ = (next_ + 1) % kLinesPerSecond;
    missing = std::exchange(suppressed_, 0);
    return true;
  }

  mutable std::mutex mutex_;
  // A second after each of the last ten lines; the first to pass is at next_.
  std::array<TimePoint, kLinesPerSecond> free_at_ = [] {
    std::array<TimePoint, kLinesPerSecond> times{};
    times.fill(TimePoint::min());
    return times;
  }();
  std::size_t next_ = 0;
  std::uint64_t suppressed_ = 0;
};

}  // namespace penstock

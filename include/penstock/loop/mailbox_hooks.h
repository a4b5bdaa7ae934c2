// Where other threads meet a loop: each push, each pop and each use of the wake flag passes through
// at(). In production the hook is not set and costs one load. A simulation that runs many loops on
// one thread sets it to decide, at these points, who goes on.
#pragma once

#include <atomic>
#include <cstdint>

namespace penstock::mailbox_hooks {

/// The points, each passed right before the step it names.
enum class Point : std::uint8_t { push, pop, set_sleeping, clear_sleeping, wake };

/// Runs on the thread that has come to the point.
using Hook = void (*)(Point point) noexcept;

/// The hook, or nullptr. Set it while no loop runs.
inline std::atomic<Hook> hook{nullptr};

/// Passes a point: runs the hook, if one is set.
inline void at(Point point) noexcept {
  if (const Hook set = hook.load(std::memory_order_relaxed); set != nullptr) [[unlikely]] {
    set(point);
  }
}

}  // namespace penstock::mailbox_hooks

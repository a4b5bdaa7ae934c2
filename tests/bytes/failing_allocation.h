// Makes one chosen allocation of the current thread fail, in the test executable that links it.
#pragma once

#include <cstddef>

namespace penstock::test {

/// While it lives, allocation number `which` (0: the next) of this thread throws std::bad_alloc.
/// One at a time per thread. A test must check happened().
class FailingAllocation {
 public:
  explicit FailingAllocation(std::size_t which = 0) noexcept;
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;
  ~FailingAllocation();

  /// Whether the allocation was reached and failed.
  bool happened() const noexcept;
};

/// Allocations made by this thread so far.
std::size_t allocations() noexcept;

}  // namespace penstock::test

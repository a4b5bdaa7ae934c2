// A clock that goes only as the test says.
#pragma once

#include "penstock/os/forwarding_kernel.h"
#include "penstock/os/kernel.h"

namespace penstock::test {

/// The real kernel, but its clock stands still: a FaultyKernel before it moves it by advance().
class StillClock final : public ForwardingKernel {
 public:
  StillClock() : ForwardingKernel(linux_kernel()) {}

  /// One for all: it has no state.
  static StillClock& shared() {
    static StillClock clock;
    return clock;
  }

 private:
  TimePoint raw_now() override { return begin_; }

  const TimePoint begin_ = linux_kernel().now();
};

}  // namespace penstock::test

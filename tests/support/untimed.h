// How loops under test divide their time.
#pragma once

#include "penstock/io/io_backend.h"

namespace penstock::test {

/// By bytes alone: what a test counts (calls, turns, pieces of input) must not depend on how fast the
/// machine is. Tests of the budget of time have a clock that stands still in place of this.
inline constexpr IoOptions kUntimed{.turn_time = Duration::zero()};

}  // namespace penstock::test

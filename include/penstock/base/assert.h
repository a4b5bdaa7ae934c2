// Assertions for programmer errors: always on, in every build. A failed one prints where and what,
// then aborts.
#pragma once

namespace penstock {

/// Prints `file:line: message (expression)` to standard error and aborts. Never returns.
[[noreturn]] void assertion_failed(const char* file, int line, const char* expression,
                                   const char* message) noexcept;

}  // namespace penstock

/// States what the caller promised. Costs one predictable branch; use it for contracts, not for
/// operating errors.
#define PENSTOCK_ASSERT(condition, message) \
  ((condition) ? static_cast<void>(0)       \
               : ::penstock::assertion_failed(__FILE__, __LINE__, #condition, message))

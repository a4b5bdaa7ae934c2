// How much of the heap is in use: for tests of what must not pile up where no counter shows it.
#pragma once

#include <malloc.h>

#include <cstddef>

// A sanitizer's own heap; absent without one. The name is the sanitizer's.
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
extern "C" [[gnu::weak]] std::size_t __sanitizer_get_current_allocated_bytes();
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)

namespace penstock::test {

/// Bytes allocated by this process and not freed. Compare two answers, with room for what other
/// threads, and caches of the C library, may hold meanwhile.
inline std::size_t heap_bytes() {
  if (&__sanitizer_get_current_allocated_bytes != nullptr) {
    return __sanitizer_get_current_allocated_bytes();
  }
  return ::mallinfo2().uordblks;
}

}  // namespace penstock::test

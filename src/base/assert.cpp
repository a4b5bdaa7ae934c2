#include "penstock/base/assert.h"

#include <cstdio>
#include <cstdlib>

namespace penstock {

void assertion_failed(const char* file, int line, const char* expression,
                      const char* message) noexcept {
  std::fprintf(stderr, "penstock: %s:%d: %s (%s)\n", file, line, message, expression);
  std::abort();
}

}  // namespace penstock

// Sizes and times as people write them on a command line.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "penstock/base/clock.h"

namespace penstock::app {

/// "65536", "64KiB", "10MiB", "1GiB"; also K, M, G (binary) and KB, MB, GB (decimal). Nothing for
/// anything else.
std::optional<std::size_t> parse_bytes(std::string_view text);

/// "30s", "500ms", "2m", "1h", "0". Nothing for anything else; a number without a unit other than 0
/// is refused.
std::optional<Duration> parse_duration(std::string_view text);

/// As parse_bytes() reads it, in the largest unit that is exact: "256KiB", "1000".
std::string option_text(std::uint64_t bytes);

/// For people: "1.5 MiB", "312 B".
std::string format_bytes(std::uint64_t bytes);

}  // namespace penstock::app

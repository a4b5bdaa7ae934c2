#include "app/units.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <limits>
#include <utility>

namespace penstock::app {
namespace {

struct Quantity {
  std::uint64_t value;
  std::string_view unit;
};

// A whole number and what follows it.
std::optional<Quantity> split(std::string_view text) {
  std::uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{}) return std::nullopt;
  return Quantity{value, std::string_view(rest, static_cast<std::size_t>(end - rest))};
}

std::optional<std::uint64_t> multiply(std::uint64_t value, std::uint64_t factor,
                                      std::uint64_t most) {
  if (value > most / factor) return std::nullopt;
  return value * factor;
}

}  // namespace

std::optional<std::size_t> parse_bytes(std::string_view text) {
  const auto quantity = split(text);
  if (!quantity) return std::nullopt;
  constexpr std::pair<std::string_view, std::uint64_t> kUnits[] = {
      {"", 1},
      {"B", 1},
      {"K", 1ULL << 10},
      {"KiB", 1ULL << 10},
      {"KB", 1'000},
      {"M", 1ULL << 20},
      {"MiB", 1ULL << 20},
      {"MB", 1'000'000},
      {"G", 1ULL << 30},
      {"GiB", 1ULL << 30},
      {"GB", 1'000'000'000},
  };
  for (const auto& [unit, factor] : kUnits) {
    if (quantity->unit == unit) {
      return multiply(quantity->value, factor, std::numeric_limits<std::size_t>::max());
    }
  }
  return std::nullopt;
}

std::optional<Duration> parse_duration(std::string_view text) {
  const auto quantity = split(text);
  if (!quantity) return std::nullopt;
  if (quantity->unit.empty() && quantity->value == 0) return Duration::zero();
  constexpr std::pair<std::string_view, std::uint64_t> kUnits[] = {
      {"ms", 1'000'000},
      {"s", 1'000'000'000},
      {"m", 60'000'000'000},
      {"h", 3'600'000'000'000},
  };
  for (const auto& [unit, factor] : kUnits) {
    if (quantity->unit != unit) continue;
    const auto nanoseconds =
        multiply(quantity->value, factor, static_cast<std::uint64_t>(Duration::max().count()));
    if (!nanoseconds) return std::nullopt;
    return Duration(static_cast<Duration::rep>(*nanoseconds));
  }
  return std::nullopt;
}

std::string option_text(std::uint64_t bytes) {
  constexpr std::string_view kUnits[] = {"", "KiB", "MiB", "GiB"};
  std::size_t unit = 0;
  while (bytes != 0 && bytes % 1024 == 0 && unit + 1 < std::size(kUnits)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{}{}", bytes, kUnits[unit]);
}

std::string format_bytes(std::uint64_t bytes) {
  constexpr std::string_view kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace penstock::app

#include "app/load_pattern.h"

#include <algorithm>
#include <cstring>

#include "penstock/base/assert.h"

namespace penstock::app {
namespace {

// SplitMix64's output function (Steele, Lea, Flood 2014): neighbours have nothing in common.
std::byte byte_of(std::uint64_t index) noexcept {
  std::uint64_t mixed = (index + 1) * 0x9E3779B97F4A7C15U;
  mixed = (mixed ^ (mixed >> 30U)) * 0xBF58476D1CE4E5B9U;
  mixed = (mixed ^ (mixed >> 27U)) * 0x94D049BB133111EBU;
  return static_cast<std::byte>(mixed >> 56U);
}

}  // namespace

LoadPattern::LoadPattern() : bytes_(kPeriod + kRunMax) {
  for (std::size_t i = 0; i < bytes_.size(); ++i)
    bytes_[i] = byte_of(i % kPeriod);
}

std::span<const std::byte> LoadPattern::run(std::uint64_t position,
                                            std::size_t size) const noexcept {
  PENSTOCK_ASSERT(size <= kRunMax, "longer than a run may be");
  return std::span(bytes_).subspan(static_cast<std::size_t>(position % kPeriod), size);
}

std::optional<std::size_t> LoadPattern::first_wrong(
    std::uint64_t position, std::span<const std::byte> bytes) const noexcept {
  std::size_t checked = 0;
  while (checked < bytes.size()) {
    const auto got = bytes.subspan(checked, std::min(kRunMax, bytes.size() - checked));
    const auto expected = run(position + checked, got.size());
    if (std::memcmp(got.data(), expected.data(), got.size()) != 0) {
      const auto [at, ignored] = std::mismatch(got.begin(), got.end(), expected.begin());
      return checked + static_cast<std::size_t>(at - got.begin());
    }
    checked += got.size();
  }
  return std::nullopt;
}

}  // namespace penstock::app

// What a load generator sends: bytes that follow from their position, with a prime period, so that
// a byte lost, repeated or swapped shows as a wrong one. Immutable; shared by all connections.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace penstock::app {

class LoadPattern {
 public:
  /// Prime, so that no buffer's size divides it: a buffer in the wrong place differs.
  static constexpr std::size_t kPeriod = 65'521;
  /// The longest run that is contiguous wherever it begins.
  static constexpr std::size_t kRunMax = std::size_t{64} * 1024;

  /// Throws std::bad_alloc.
  LoadPattern();

  /// The `size` <= kRunMax bytes from `position` on, without a copy.
  std::span<const std::byte> run(std::uint64_t position, std::size_t size) const noexcept;
  std::byte at(std::uint64_t position) const noexcept { return run(position, 1)[0]; }
  /// Where in `bytes`, which should be those from `position` on, the first wrong one is.
  std::optional<std::size_t> first_wrong(std::uint64_t position,
                                         std::span<const std::byte> bytes) const noexcept;

 private:
  std::vector<std::byte> bytes_;  // one period, and as much of the next as a run may need
};

}  // namespace penstock::app

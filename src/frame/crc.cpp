#include "penstock/frame/crc.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace penstock {

std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before) noexcept {
  return ::crc32_gzip_refl(before, reinterpret_cast<const unsigned char*>(bytes.data()),
                           bytes.size());
}

std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before) noexcept {
  // The library counts in int, and leaves it to the caller to invert before and after.
  constexpr std::size_t kPieceMax = std::size_t{1} << 30;
  std::uint32_t state = ~before;
  while (!bytes.empty()) {
    const std::span<const std::byte> piece = bytes.first(std::min(bytes.size(), kPieceMax));
    // Its parameter is not const, and it writes nothing.
    auto* const begin =
        const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(piece.data()));
    state = ::crc32_iscsi(begin, static_cast<int>(piece.size()), state);
    bytes = bytes.subspan(piece.size());
  }
  return ~state;
}

}  // namespace penstock

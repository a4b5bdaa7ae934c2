// What a trace sends, and how both ends account for it: bytes that follow from their offset, and a hash of them in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace penstock::app {

/// The byte at `offset` of every payload.
constexpr std::byte payload_byte(std::uint64_t offset) noexcept {
  return static_cast<std::byte>((offset * 0x9E3779B97F4A7C15U) >> 56U);
}

/// The first `size` bytes of the pattern. Throws std::bad_alloc.
inline std::string make_payload(std::size_t size) {
  std::string payload(size, '\0');
  for (std::size_t i = 0; i < size; ++i)
    payload[i] = static_cast<char>(payload_byte(i));
  return payload;
}

/// FNV-1a, 64 bits.
class Fnv1a {
 public:
  constexpr void add(std::span<const std::byte> bytes) noexcept {
    for (const std::byte byte : bytes)
      value_ = (value_ ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001B3U;
  }
  constexpr std::uint64_t value() const noexcept { return value_; }

 private:
  std::uint64_t value_ = 0xCBF29CE484222325U;
};

}  // namespace penstock::app

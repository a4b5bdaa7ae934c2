// A hash of two numbers that nobody can predict without the key: for tables whose keys strangers
// choose. SipHash-2-4 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012). A value;
// no state, any thread.
#pragma once

#include <array>
#include <cstdint>

namespace penstock {

/// 128 secret bits, from Kernel::entropy.
using HashKey = std::array<std::uint64_t, 2>;

/// SipHash-2-4 of the two words, each as 8 bytes, least significant first.
std::uint64_t keyed_hash(const HashKey& key, std::uint64_t first, std::uint64_t second) noexcept;

}  // namespace penstock

// The two checksums that protocols on TCP carry, computed by ISA-L with whatever instructions the
// processor has. Thread-safe: functions of their arguments. They find damage, not forgery.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace penstock {

/// The CRC-32 of zlib, gzip, PNG and Ethernet (polynomial 0x04C11DB7, reflected). For bytes that
/// come in pieces, `before` is the answer for those in front; crc32 of "123456789" is 0xCBF43926.
std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

/// The CRC-32C of iSCSI, SCTP and ext4 (Castagnoli's polynomial 0x1EDC6F41, reflected), likewise;
/// crc32c of "123456789" is 0xE3069283.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t before = 0) noexcept;

}  // namespace penstock

// The packet of many a game server: a header of eight bytes in network byte order, then the body.
//
//     | u16 length of the whole packet | u16 message code | u32 CRC-32 of the body | body |
//
// One setting of LengthFieldCodec, with the code taken out of the header. For handlers by code, see
// frame/router.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>

#include "penstock/frame/codec.h"
#include "penstock/frame/length_field_codec.h"

namespace penstock {

/// A packet.
struct Packet {
  std::uint16_t code = 0;             ///< What kind of message it is.
  std::span<const std::byte> body{};  ///< Its content; may be empty.

  /// The same code, and bodies of the same bytes.
  friend bool operator==(const Packet& left, const Packet& right) noexcept {
    return left.code == right.code && std::ranges::equal(left.body, right.body);
  }
};

/// How a PacketCodec is to be.
struct PacketOptions {
  /// The longest packet, header included, in bytes: 8 to 65,535, which is what its length can tell.
  std::size_t packet_max = 65535;
};

/// Packets of length, code and checksum.
///
/// Refused: bad_length for a length below 8, too_long, bad_checksum. For sending: too_long.
class PacketCodec {
 public:
  /// Code and body.
  using Frame = Packet;

  /// Bytes before the body.
  static constexpr std::size_t kHeaderSize = 8;

  /// Asserts what PacketOptions says.
  explicit PacketCodec(PacketOptions options = {}) noexcept;

  /// See FrameCodec.
  Decoded<Frame> decode(std::span<const std::byte> input, std::size_t& progress) const noexcept;
  /// See FrameCodec.
  std::size_t frame_max() const noexcept { return codec_.frame_max(); }
  /// See FrameCodec.
  std::expected<EncodedFrame, FrameError> encode(const Frame& packet) const noexcept;

 private:
  LengthFieldCodec codec_;
};

static_assert(FrameCodec<PacketCodec>);

}  // namespace penstock

#include "penstock/frame/packet_codec.h"

#include <array>

namespace penstock {
namespace {

constexpr std::size_t kPacketMaxMax = 65535;
constexpr std::size_t kCodeAt = 2;
// Of code and checksum, the header bytes behind the length.
constexpr std::size_t kBehind = PacketCodec::kHeaderSize - kCodeAt;

LengthFieldOptions layout(PacketOptions options) noexcept {
  PENSTOCK_ASSERT(
      options.packet_max >= PacketCodec::kHeaderSize && options.packet_max <= kPacketMaxMax,
      "a packet has 8 to 65,535 bytes");
  return {.field = LengthField::u16,
          .behind = kBehind,
          .counts = LengthCounts::whole,
          .checksum = Checksum::crc32,
          .checksum_place = ChecksumPlace::header,
          .checksum_at = 2,
          .frame_max = options.packet_max};
}

}  // namespace

PacketCodec::PacketCodec(PacketOptions options) noexcept : codec_(layout(options)) {}

Decoded<Packet> PacketCodec::decode(std::span<const std::byte> input,
                                    std::size_t& progress) const noexcept {
  const Decoded<LengthFieldFrame> found = codec_.decode(input, progress);
  if (found.status == DecodeStatus::incomplete) return Decoded<Frame>::incomplete();
  if (found.status == DecodeStatus::refused) return Decoded<Frame>::refused(found.error);
  const auto high = std::to_integer<unsigned>(found.frame.header[kCodeAt]);
  const auto low = std::to_integer<unsigned>(found.frame.header[kCodeAt + 1]);
  return Decoded<Frame>::complete(
      {.code = static_cast<std::uint16_t>(high << 8 | low), .body = found.frame.body}, found.size);
}

std::expected<EncodedFrame, FrameError> PacketCodec::encode(const Frame& packet) const noexcept {
  std::array<std::byte, kBehind> behind{};
  behind[0] = static_cast<std::byte>(packet.code >> 8);
  behind[1] = static_cast<std::byte>(packet.code & 0xFF);
  return codec_.encode({.header = behind, .body = packet.body});
}

}  // namespace penstock

// Frames that say how long they are: a header with a length field in it, then the body. One engine
// for many protocols: options tell where the field is, how it is written and what it counts, and
// whether there are bytes that every frame begins with, or a checksum.
//
//     | magic, other bytes | length field | other bytes | body          | checksum, if a trailer |
//     |<---- before ------>|              |<- behind -->|
//     |<------------------ header --------------------->|
//
// It refuses a length by comparing it with what the options allow before any sum is made of it: no
// value that a peer can send overflows anything. Memory grows with what has come, not with what has
// been announced.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string_view>

#include "penstock/frame/codec.h"

namespace penstock {

/// How a length is written.
enum class LengthField : std::uint8_t {
  varint = 0,  ///< Seven bits a byte, the lowest first, as in Protocol Buffers: 1 to 10 bytes.
  u8 = 1,      ///< One byte.
  u16 = 2,     ///< Two bytes.
  u24 = 3,     ///< Three bytes.
  u32 = 4,     ///< Four bytes.
  u64 = 8,     ///< Eight bytes.
};

/// What a length counts.
enum class LengthCounts : std::uint8_t {
  rest,   ///< All bytes behind the length field, trailer included.
  body,   ///< The body only.
  whole,  ///< The whole frame, from its first byte to its last.
};

/// Which checksum a frame carries, in four bytes.
enum class Checksum : std::uint8_t {
  none,    ///< No checksum, and no bytes for it.
  crc32,   ///< penstock::crc32().
  crc32c,  ///< penstock::crc32c().
};

/// Where the checksum stands, and of what it is.
enum class ChecksumPlace : std::uint8_t {
  header,         ///< Among the bytes behind the length field; of the body.
  trailer,        ///< Behind the body; of the body.
  whole_trailer,  ///< Behind the body; of all that stands before it, header included.
};

/// How a LengthFieldCodec is to be. What makes no sense together is an assertion at construction.
struct LengthFieldOptions {
  LengthField field = LengthField::u32;  ///< How the length is written.
  /// Byte order of length and checksum; a varint has only one. Network order is big.
  std::endian byte_order = std::endian::big;
  /// What every frame begins with; at most `before` bytes, copied by the codec. May be empty.
  std::string_view magic{};
  std::size_t before = 0;  ///< Bytes before the length field, magic included; at most 32.
  std::size_t behind = 0;  ///< Header bytes behind the length field, checksum included; at most 16.
  LengthCounts counts = LengthCounts::rest;  ///< What the length counts.
  /// Added to the length as received, to get what it counts; within +-2^31.
  std::int64_t adjustment = 0;
  Checksum checksum = Checksum::none;                     ///< Which checksum.
  ChecksumPlace checksum_place = ChecksumPlace::trailer;  ///< Where it stands.
  std::size_t checksum_at = 0;  ///< In the header: its offset from the end of the length field.
  /// The longest frame, whole, in bytes: at least a header (with a varint of 10 bytes), at most 2^40.
  std::size_t frame_max = kDefaultFrameMax;
};

/// A frame of a LengthFieldCodec.
struct LengthFieldFrame {
  /// As received: the whole header, length field included. For sending: empty (what is neither magic,
  /// length nor checksum is then 0), or the bytes before and behind the length field, with or without
  /// one between them; the codec writes magic, length and checksum itself.
  std::span<const std::byte> header{};
  /// The body: neither header nor trailer. May be empty.
  std::span<const std::byte> body{};

  /// Header and body as one run, of a frame as received.
  std::span<const std::byte> header_and_body() const noexcept {
    return {header.data(), header.size() + body.size()};
  }

  /// Headers and bodies of the same bytes.
  friend bool operator==(const LengthFieldFrame& left, const LengthFieldFrame& right) noexcept {
    return std::ranges::equal(left.header, right.header) &&
           std::ranges::equal(left.body, right.body);
  }
};

/// Frames with a length field. A length that leaves nothing for the body makes a frame with an
/// empty body; one that leaves less than nothing is refused.
///
/// Refused: bad_magic at the first byte that differs; bad_varint, bad_length and too_long as soon as
/// the length field is there; bad_checksum once the frame is. For sending: too_long, and wrong_size
/// for a header that is too short, or a body that is smaller than any length can tell.
class LengthFieldCodec {
 public:
  /// Header and body.
  using Frame = LengthFieldFrame;

  /// Asserts what LengthFieldOptions says.
  explicit LengthFieldCodec(const LengthFieldOptions& options = {}) noexcept;

  /// See FrameCodec.
  Decoded<Frame> decode(std::span<const std::byte> input, std::size_t& progress) const noexcept;
  /// See FrameCodec: no more than the length field can tell.
  std::size_t frame_max() const noexcept { return frame_max_; }
  /// See FrameCodec. Looks at the body only for a checksum.
  std::expected<EncodedFrame, FrameError> encode(const Frame& frame) const noexcept;

 private:
  static constexpr std::size_t kBeforeMax = 32;
  static constexpr std::size_t kBehindMax = 16;
  static constexpr std::size_t kChecksumSize = 4;

  // A length as it stands in the input.
  struct Length {
    std::uint64_t value = 0;
    std::size_t width = 0;
  };

  std::size_t trailer() const noexcept {
    return checksum_ != Checksum::none && checksum_place_ != ChecksumPlace::header ? kChecksumSize
                                                                                   : 0;
  }
  std::string_view magic() const noexcept { return {magic_.data(), magic_size_}; }
  std::size_t width_max() const noexcept;
  std::size_t around(std::size_t width) const noexcept;
  std::int64_t bias(std::size_t width) const noexcept;
  std::expected<std::size_t, FrameError> body_size(Length length) const noexcept;
  std::expected<std::optional<Length>, FrameError> read_length(
      std::span<const std::byte> input) const noexcept;
  std::expected<Length, FrameError> length_for(std::size_t body) const noexcept;
  std::uint32_t checksum_of(std::span<const std::byte> header,
                            std::span<const std::byte> body) const noexcept;
  bool checksum_matches(const Frame& frame, std::size_t width) const noexcept;

  std::array<char, kBeforeMax> magic_{};
  std::size_t magic_size_;
  LengthField field_;
  std::endian byte_order_;
  LengthCounts counts_;
  Checksum checksum_;
  ChecksumPlace checksum_place_;
  std::size_t before_;
  std::size_t behind_;
  std::size_t checksum_at_;
  std::int64_t adjustment_;
  std::size_t frame_max_;
};

static_assert(FrameCodec<LengthFieldCodec>);

}  // namespace penstock

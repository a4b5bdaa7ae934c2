#include "penstock/frame/length_field_codec.h"

#include <algorithm>
#include <limits>

#include "penstock/frame/crc.h"

namespace penstock {
namespace {

constexpr std::size_t kVarintMax = 10;  // bytes of 64 bits, seven in each
constexpr std::size_t kFrameMaxMax = std::size_t{1} << 40;
constexpr std::int64_t kAdjustmentMax = std::int64_t{1} << 31;

std::uint64_t read_number(std::span<const std::byte> bytes, std::endian order) noexcept {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const std::size_t at = order == std::endian::big ? i : bytes.size() - 1 - i;
    value = value << 8 | std::to_integer<std::uint64_t>(bytes[at]);
  }
  return value;
}

void write_number(std::span<std::byte> bytes, std::uint64_t value, std::endian order) noexcept {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const std::size_t at = order == std::endian::little ? i : bytes.size() - 1 - i;
    bytes[at] = static_cast<std::byte>(value & 0xFF);
    value >>= 8;
  }
}

std::size_t varint_width(std::uint64_t value) noexcept {
  return std::max<std::size_t>(1, (static_cast<std::size_t>(std::bit_width(value)) + 6) / 7);
}

void write_varint(std::span<std::byte> bytes, std::uint64_t value) noexcept {
  for (std::byte& byte : bytes) {
    byte = static_cast<std::byte>((value & 0x7F) | 0x80);
    value >>= 7;
  }
  bytes.back() &= std::byte{0x7F};
}

}  // namespace

LengthFieldCodec::LengthFieldCodec(const LengthFieldOptions& options) noexcept
    : magic_size_(options.magic.size()),
      field_(options.field),
      byte_order_(options.byte_order),
      counts_(options.counts),
      checksum_(options.checksum),
      checksum_place_(options.checksum_place),
      before_(options.before),
      behind_(options.behind),
      checksum_at_(options.checksum_at),
      adjustment_(options.adjustment),
      frame_max_(options.frame_max) {
  PENSTOCK_ASSERT(before_ <= kBeforeMax, "at most 32 bytes stand before the length field");
  PENSTOCK_ASSERT(behind_ <= kBehindMax,
                  "at most 16 bytes of header stand behind the length field");
  PENSTOCK_ASSERT(magic_size_ <= before_,
                  "the magic bytes are among those before the length field");
  PENSTOCK_ASSERT(adjustment_ >= -kAdjustmentMax && adjustment_ <= kAdjustmentMax,
                  "an adjustment is within +-2^31");
  PENSTOCK_ASSERT(checksum_ == Checksum::none || checksum_place_ != ChecksumPlace::header ||
                      (behind_ >= kChecksumSize && checksum_at_ <= behind_ - kChecksumSize),
                  "a checksum in the header takes four of the bytes behind the length field");
  PENSTOCK_ASSERT(
      checksum_ == Checksum::none || checksum_place_ == ChecksumPlace::header || checksum_at_ == 0,
      "checksum_at is for a checksum in the header");
  PENSTOCK_ASSERT(frame_max_ <= kFrameMaxMax, "frame_max is at most 2^40");
  std::ranges::copy(options.magic, magic_.begin());

  const std::size_t width = width_max();
  PENSTOCK_ASSERT(frame_max_ >= around(width), "frame_max has no room for the header");
  if (width < sizeof(std::uint64_t) && field_ != LengthField::varint) {
    // No frame is longer than the largest length tells.
    const std::int64_t largest = (std::int64_t{1} << (8 * width)) - 1;
    PENSTOCK_ASSERT(largest + bias(width) >= 0, "no length that fits the field leaves a body");
    const auto body = static_cast<std::size_t>(largest + bias(width));
    frame_max_ = std::min(frame_max_, body + around(width));
  }
  PENSTOCK_ASSERT(static_cast<std::int64_t>(frame_max_ - around(width)) >= bias(width),
                  "every length leaves a body that is too long for frame_max");
}

std::size_t LengthFieldCodec::width_max() const noexcept {
  return field_ == LengthField::varint ? kVarintMax : static_cast<std::size_t>(field_);
}

// Bytes of a frame that are not its body.
std::size_t LengthFieldCodec::around(std::size_t width) const noexcept {
  return before_ + width + behind_ + trailer();
}

// What is added to a length to get the size of the body. Small: the options are bounded.
std::int64_t LengthFieldCodec::bias(std::size_t width) const noexcept {
  std::size_t counted_besides = 0;
  if (counts_ == LengthCounts::rest) counted_besides = behind_ + trailer();
  if (counts_ == LengthCounts::whole) counted_besides = around(width);
  return adjustment_ - static_cast<std::int64_t>(counted_besides);
}

// The length may be any value of 64 bits: it is compared first, and calculated with when it has
// been found small.
std::expected<std::size_t, FrameError> LengthFieldCodec::body_size(Length length) const noexcept {
  if (frame_max_ < around(length.width)) return std::unexpected(FrameError::too_long);
  const auto body_max = static_cast<std::int64_t>(frame_max_ - around(length.width));
  const std::int64_t added = bias(length.width);
  if (added > body_max) return std::unexpected(FrameError::too_long);
  if (length.value > static_cast<std::uint64_t>(body_max - added)) {
    return std::unexpected(FrameError::too_long);
  }
  const std::int64_t body = static_cast<std::int64_t>(length.value) + added;
  if (body < 0) return std::unexpected(FrameError::bad_length);
  return static_cast<std::size_t>(body);
}

// The length field, or nothing when it is not there whole.
std::expected<std::optional<LengthFieldCodec::Length>, FrameError> LengthFieldCodec::read_length(
    std::span<const std::byte> input) const noexcept {
  if (input.size() <= before_) return std::nullopt;
  input = input.subspan(before_);
  if (field_ != LengthField::varint) {
    const auto width = static_cast<std::size_t>(field_);
    if (input.size() < width) return std::nullopt;
    return Length{read_number(input.first(width), byte_order_), width};
  }
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < std::min(input.size(), kVarintMax); ++i) {
    const auto byte = std::to_integer<std::uint64_t>(input[i]);
    if (i == kVarintMax - 1 && byte > 1) return std::unexpected(FrameError::bad_varint);
    value |= (byte & 0x7F) << (7 * i);
    if (byte >= 0x80) continue;
    // A last byte of 0 adds nothing: it could have been left out.
    if (i > 0 && byte == 0) return std::unexpected(FrameError::bad_varint);
    return Length{value, i + 1};
  }
  return std::nullopt;
}

// What `progress` keeps is the size of the whole frame, once it is known: until it is there, no
// byte is looked at again.
Decoded<LengthFieldFrame> LengthFieldCodec::decode(std::span<const std::byte> input,
                                                   std::size_t& progress) const noexcept {
  if (input.size() < progress) return Decoded<Frame>::incomplete();
  const std::span<const std::byte> begin = input.first(std::min(magic_size_, input.size()));
  if (!std::ranges::equal(begin, std::as_bytes(std::span(magic())).first(begin.size()))) {
    return Decoded<Frame>::refused(FrameError::bad_magic);
  }
  const auto length = read_length(input);
  if (!length) return Decoded<Frame>::refused(length.error());
  if (!*length) return Decoded<Frame>::incomplete();
  const std::size_t width = (*length)->width;
  const std::expected<std::size_t, FrameError> body = body_size(**length);
  if (!body) return Decoded<Frame>::refused(body.error());
  const std::size_t whole = around(width) + *body;
  if (input.size() < whole) {
    progress = whole;
    return Decoded<Frame>::incomplete();
  }
  const std::size_t header = before_ + width + behind_;
  const Frame frame{.header = input.first(header), .body = input.subspan(header, *body)};
  if (!checksum_matches(frame, width)) return Decoded<Frame>::refused(FrameError::bad_checksum);
  return Decoded<Frame>::complete(frame, whole);
}

std::uint32_t LengthFieldCodec::checksum_of(std::span<const std::byte> header,
                                            std::span<const std::byte> body) const noexcept {
  const auto sum = checksum_ == Checksum::crc32 ? crc32 : crc32c;
  return sum(body, checksum_place_ == ChecksumPlace::whole_trailer ? sum(header, 0) : 0);
}

bool LengthFieldCodec::checksum_matches(const Frame& frame, std::size_t width) const noexcept {
  if (checksum_ == Checksum::none) return true;
  const std::byte* const carried = checksum_place_ == ChecksumPlace::header
                                       ? frame.header.data() + before_ + width + checksum_at_
                                       : frame.body.data() + frame.body.size();
  return read_number({carried, kChecksumSize}, byte_order_) ==
         checksum_of(frame.header, frame.body);
}

// The length that says how large this body is, or why none does.
std::expected<LengthFieldCodec::Length, FrameError> LengthFieldCodec::length_for(
    std::size_t body) const noexcept {
  const bool is_varint = field_ == LengthField::varint;
  const std::size_t narrowest = is_varint ? 1 : width_max();
  if (body > frame_max_) return std::unexpected(FrameError::too_long);
  if (static_cast<std::int64_t>(body) < bias(narrowest)) {
    return std::unexpected(FrameError::wrong_size);
  }
  // The width of a varint may be counted by the length itself, so the one that fits is looked for.
  for (std::size_t width = narrowest; width <= width_max(); ++width) {
    const auto value = static_cast<std::uint64_t>(static_cast<std::int64_t>(body) - bias(width));
    if (is_varint && varint_width(value) != width) continue;
    if (frame_max_ - body < around(width)) break;
    return Length{value, width};
  }
  return std::unexpected(FrameError::too_long);
}

std::expected<EncodedFrame, FrameError> LengthFieldCodec::encode(
    const Frame& frame) const noexcept {
  const std::expected<Length, FrameError> length = length_for(frame.body.size());
  if (!length) return std::unexpected(length.error());
  if (!frame.header.empty() && frame.header.size() < before_ + behind_) {
    return std::unexpected(FrameError::wrong_size);
  }

  std::array<std::byte, kBeforeMax + kVarintMax + kBehindMax> space{};
  const std::span<std::byte> header = std::span(space).first(before_ + length->width + behind_);
  if (!frame.header.empty()) {
    std::ranges::copy(frame.header.first(before_), header.begin());
    std::ranges::copy(frame.header.last(behind_), header.last(behind_).begin());
  }
  std::ranges::copy(std::as_bytes(std::span(magic())), header.begin());
  const std::span<std::byte> field = header.subspan(before_, length->width);
  if (field_ == LengthField::varint) {
    write_varint(field, length->value);
  } else {
    write_number(field, length->value, byte_order_);
  }

  EncodedFrame encoded(frame.body);
  if (checksum_ != Checksum::none) {
    std::array<std::byte, kChecksumSize> carried{};
    write_number(carried, checksum_of(header, frame.body), byte_order_);
    if (checksum_place_ == ChecksumPlace::header) {
      std::ranges::copy(carried,
                        header.last(behind_).begin() + static_cast<std::ptrdiff_t>(checksum_at_));
    } else {
      encoded.add_tail(carried);
    }
  }
  encoded.add_head(header);
  return encoded;
}

}  // namespace penstock

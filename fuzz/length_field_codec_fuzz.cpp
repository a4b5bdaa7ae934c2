// Frames with a length field: all options, and streams of any bytes or written by the codec itself.

#include <array>

#include "frame_oracle.h"
#include "penstock/frame/length_field_codec.h"

namespace {

using namespace penstock;

LengthFieldOptions choose_options(fuzz::Choices& choices) {
  constexpr std::array kFields = {LengthField::varint, LengthField::u8,  LengthField::u16,
                                  LengthField::u32,    LengthField::u64, LengthField::u24};
  constexpr std::array kCounts = {LengthCounts::rest, LengthCounts::body, LengthCounts::whole};
  constexpr std::array kChecksums = {Checksum::none, Checksum::crc32, Checksum::crc32c};
  constexpr std::array kPlaces = {ChecksumPlace::header, ChecksumPlace::trailer,
                                  ChecksumPlace::whole_trailer};
  LengthFieldOptions options;
  options.field = kFields[choices.below(kFields.size())];
  options.byte_order = choices.below(2) == 0 ? std::endian::big : std::endian::little;
  options.counts = kCounts[choices.below(kCounts.size())];
  options.before = choices.below(33);
  options.behind = choices.below(17);
  options.adjustment = static_cast<std::int64_t>(choices.below(41)) - 20;
  options.checksum = kChecksums[choices.below(kChecksums.size())];
  options.checksum_place = kPlaces[choices.below(kPlaces.size())];
  if (options.checksum != Checksum::none && options.checksum_place == ChecksumPlace::header) {
    options.behind = std::max<std::size_t>(options.behind, 4);
    options.checksum_at = choices.below(options.behind - 3);
  }
  options.frame_max = std::size_t{128} + 16 * choices.byte();
  options.magic = choices.take(choices.below(options.before + 1));
  return options;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Choices choices(data, size);
  const LengthFieldCodec codec(choose_options(choices));
  const std::string_view sizes = fuzz::piece_sizes(choices);
  if (choices.below(2) == 0) {
    fuzz::check_stream(codec, choices.rest(), sizes);
    return 0;
  }
  const std::string stream = fuzz::written_stream(choices, [&codec](fuzz::Choices& from) {
    const std::string_view body = from.take(from.byte());
    const auto encoded = codec.encode({.body = test::bytes_of(body)});
    return encoded ? encoded->to_string() : std::string(body);
  });
  fuzz::check_stream(codec, stream, sizes);
  return 0;
}

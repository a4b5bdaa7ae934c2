// Packets: streams of any bytes, or written by the codec itself with one byte changed.

#include "frame_oracle.h"
#include "penstock/frame/packet_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock;
  fuzz::Choices choices(data, size);
  const PacketCodec codec({.packet_max = std::size_t{8} + choices.byte()});
  const std::string_view sizes = fuzz::piece_sizes(choices);
  if (choices.below(2) == 0) {
    fuzz::check_stream(codec, choices.rest(), sizes);
    return 0;
  }
  const std::string stream = fuzz::written_stream(choices, [&codec](fuzz::Choices& from) {
    const std::uint16_t code = from.byte();
    const std::string_view body = from.take(from.byte());
    const auto encoded = codec.encode({.code = code, .body = test::bytes_of(body)});
    return encoded ? encoded->to_string() : std::string(body);
  });
  fuzz::check_stream(codec, stream, sizes);
  return 0;
}

// Frames that end with any delimiter of up to eight bytes.

#include "frame_oracle.h"
#include "penstock/frame/delimiter_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock;
  fuzz::Choices choices(data, size);
  const std::size_t content_max = choices.byte();
  const std::string_view delimiter = choices.take(1 + choices.below(8));
  if (delimiter.empty()) return 0;
  const DelimiterCodec codec({.delimiter = delimiter, .content_max = content_max});
  const std::string_view sizes = fuzz::piece_sizes(choices);
  const std::string_view stream = choices.rest();
  fuzz::check_stream(codec, stream, sizes);

  // What it sends is exactly what would come back.
  const std::string_view content = stream.substr(0, content_max);
  const std::string wire = std::string(content) + std::string(delimiter);
  fuzz::expect(codec.encode(content).has_value() == (wire.find(delimiter) == content.size()),
               "what it sends is not what comes back");
  return 0;
}

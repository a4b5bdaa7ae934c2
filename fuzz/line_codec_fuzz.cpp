// Lines, of any longest length up to 255.

#include "frame_oracle.h"
#include "penstock/frame/delimiter_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  penstock::fuzz::Choices choices(data, size);
  // With this end any line can be written, one that ends with a "\r" too.
  const penstock::LineCodec codec({.line_max = choices.byte(), .end = penstock::LineEnd::crlf});
  const std::string_view sizes = penstock::fuzz::piece_sizes(choices);
  penstock::fuzz::check_stream(codec, choices.rest(), sizes);
  return 0;
}

// Frames of any one size up to 256.

#include "frame_oracle.h"
#include "penstock/frame/fixed_size_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  penstock::fuzz::Choices choices(data, size);
  const penstock::FixedSizeCodec codec(std::size_t{1} + choices.byte());
  const std::string_view sizes = penstock::fuzz::piece_sizes(choices);
  penstock::fuzz::check_stream(codec, choices.rest(), sizes);
  return 0;
}

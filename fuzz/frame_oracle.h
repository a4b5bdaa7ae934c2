// What holds for every codec and every input, checked for the input of one fuzzer run: cut into
// pieces in any way, a stream gives the frames and the error that it gives in one piece; frames lie
// within their input; memory follows what has come; what a codec has read it can write. See
// tests/support/frame_feed.h for the single rules.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "penstock/frame/codec.h"
#include "support/frame_feed.h"

namespace penstock::fuzz {

/// Takes choices from the front of a fuzzer's input; 0 when there is nothing left.
class Choices {
 public:
  Choices(const std::uint8_t* data, std::size_t size) : left_(data, size) {}

  std::uint8_t byte() {
    if (left_.empty()) return 0;
    const std::uint8_t first = left_.front();
    left_ = left_.subspan(1);
    return first;
  }
  /// A number below `bound`, which is 1 to 256.
  std::size_t below(std::size_t bound) { return byte() % bound; }
  /// The next `size` bytes, or what there is.
  std::string_view take(std::size_t size) {
    const auto taken = left_.first(std::min(size, left_.size()));
    left_ = left_.subspan(taken.size());
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }
  std::string_view rest() { return take(left_.size()); }
  bool empty() const { return left_.empty(); }

 private:
  std::span<const std::uint8_t> left_;
};

/// Ends the run as a finding.
[[noreturn]] inline void found(const std::string& what) {
  std::fprintf(stderr, "finding: %s\n", what.c_str());
  std::abort();
}
inline void expect(bool condition, const char* what) {
  if (!condition) found(what);
}
inline void expect_none(const test::Violation& violation) {
  if (!violation.empty()) found(violation);
}

/// Sizes of pieces, again and again; every other run cuts in single bytes.
inline std::string_view piece_sizes(Choices& choices) { return choices.take(choices.below(17)); }

/// The stream, cut into pieces of these sizes.
template <FrameCodec Codec>
test::FrameLog feed_in_pieces(const Codec& codec, std::string_view stream, std::string_view sizes) {
  test::FrameFeed<Codec> feed(codec);
  for (std::size_t fed = 0, next = 0; fed < stream.size(); ++next) {
    const std::size_t wanted =
        sizes.empty() ? 1 : std::size_t{1} + static_cast<std::uint8_t>(sizes[next % sizes.size()]);
    const std::size_t piece = std::min(wanted, stream.size() - fed);
    feed.feed(test::bytes_of(stream.substr(fed, piece)));
    fed += piece;
  }
  expect_none(feed.violation());
  return feed.log();
}

/// All of the above for one stream.
template <FrameCodec Codec>
void check_stream(const Codec& codec, std::string_view stream, std::string_view sizes) {
  test::FrameFeed<Codec> whole(codec);
  whole.feed(test::bytes_of(stream));
  expect_none(whole.violation());
  expect(whole.log() == feed_in_pieces(codec, stream, sizes), "cut into pieces it is not the same");

  std::span<const std::byte> left = test::bytes_of(stream);
  for (std::size_t i = 0; i < whole.log().frames.size(); ++i) {
    std::size_t progress = 0;
    const auto next = codec.decode(left, progress);
    expect(next.status == DecodeStatus::complete, "a frame that was there is not");
    expect_none(test::round_trip(codec, next.frame));
    left = left.subspan(next.size);
  }
}

/// A stream of what the codec itself writes for bodies of the input, with one byte changed or none:
/// no fuzzer guesses a checksum. `encode(choices)` answers the next frame.
template <class Encode>
std::string written_stream(Choices& choices, Encode encode) {
  const std::size_t change = choices.byte() * std::size_t{256} + choices.byte();
  const std::uint8_t how = choices.byte();
  std::string stream;
  while (!choices.empty())
    stream += encode(choices);
  if (!stream.empty()) {
    char& byte = stream[change % stream.size()];
    byte = static_cast<char>(byte ^ how);
  }
  return stream;
}

}  // namespace penstock::fuzz

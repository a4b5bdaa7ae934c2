// Frames that end with a delimiter, as text protocols write them: lines, or whatever ends with a
// few agreed bytes. The frame is what stands before the delimiter. It refuses what is too long, and
// never drops a part of it to go on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string_view>

#include "penstock/frame/codec.h"

namespace penstock {

/// What LineCodec writes behind a line.
enum class LineEnd : std::uint8_t {
  lf,    ///< "\n"
  crlf,  ///< "\r\n"
};

/// How a LineCodec is to be.
struct LineOptions {
  std::size_t line_max = kDefaultFrameMax;  ///< The longest line, its end not counted, in bytes.
  LineEnd end = LineEnd::lf;                ///< What is written; read are both.
};

/// Lines that end with "\n" or "\r\n", whichever comes; neither is part of the frame. A "\r" that
/// no "\n" follows is data, as is any other byte. Empty lines are frames. Each byte is searched
/// once, however the lines are cut.
///
/// Refused: too_long. For sending: too_long, and has_delimiter for a line with "\n" in it, or with a
/// "\r" at its end that a reader would take for a part of the line end.
class LineCodec {
 public:
  /// The line, without its end.
  using Frame = std::string_view;

  /// line_max is at most half of the address space.
  explicit LineCodec(LineOptions options = {}) noexcept;

  /// See FrameCodec.
  Decoded<Frame> decode(std::span<const std::byte> input, std::size_t& progress) const noexcept;
  /// See FrameCodec: line_max and "\r\n".
  std::size_t frame_max() const noexcept { return line_max_ + 2; }
  /// See FrameCodec. Looks at each byte of the line.
  std::expected<EncodedFrame, FrameError> encode(Frame line) const noexcept;

 private:
  std::size_t line_max_;
  LineEnd end_;
};

/// How a DelimiterCodec is to be.
struct DelimiterOptions {
  std::string_view delimiter;  ///< What ends a frame: 1 to 32 bytes, copied by the codec.
  std::size_t content_max = kDefaultFrameMax;  ///< The longest frame, its delimiter not counted.
};

/// Frames that end with a delimiter of any bytes, which is not part of the frame. Nothing escapes
/// it: the first occurrence ends the frame. Two in a row make an empty frame. Each byte is searched
/// once, but for as many as the delimiter has.
///
/// Refused: too_long. For sending: too_long, and has_delimiter for content in which, or by whose
/// end, the delimiter would be found too early.
class DelimiterCodec {
 public:
  /// What stands before the delimiter.
  using Frame = std::string_view;

  /// Asserts what DelimiterOptions says.
  explicit DelimiterCodec(const DelimiterOptions& options) noexcept;

  /// See FrameCodec.
  Decoded<Frame> decode(std::span<const std::byte> input, std::size_t& progress) const noexcept;
  /// See FrameCodec: content_max and the delimiter.
  std::size_t frame_max() const noexcept { return content_max_ + delimiter_size_; }
  /// See FrameCodec. Looks at each byte of the content.
  std::expected<EncodedFrame, FrameError> encode(Frame content) const noexcept;

 private:
  static constexpr std::size_t kDelimiterMax = EncodedFrame::kTailMax;

  std::string_view delimiter() const noexcept { return {delimiter_.data(), delimiter_size_}; }

  std::array<char, kDelimiterMax> delimiter_{};
  std::size_t delimiter_size_;
  std::size_t content_max_;
};

static_assert(FrameCodec<LineCodec> && FrameCodec<DelimiterCodec>);

}  // namespace penstock

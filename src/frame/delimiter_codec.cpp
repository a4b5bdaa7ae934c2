#include "penstock/frame/delimiter_codec.h"

#include <algorithm>
#include <limits>

namespace penstock {
namespace {

constexpr std::size_t kContentMax = std::numeric_limits<std::size_t>::max() / 2;

std::string_view text_of(std::span<const std::byte> bytes) noexcept {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A frame ends with the first delimiter that lies within the first frame_max bytes; more of the
// input need not be looked at. Answers where it begins, or npos with `progress` behind what was
// searched.
std::size_t find_end(std::string_view text, std::string_view delimiter,
                     std::size_t& progress) noexcept {
  const std::size_t end = text.find(delimiter, progress);
  // The last bytes may be the beginning of a delimiter.
  if (end == std::string_view::npos) {
    progress = text.size() - std::min(text.size(), delimiter.size() - 1);
  }
  return end;
}

}  // namespace

LineCodec::LineCodec(LineOptions options) noexcept
    : line_max_(options.line_max), end_(options.end) {
  PENSTOCK_ASSERT(line_max_ <= kContentMax, "line_max is at most half of the address space");
}

Decoded<std::string_view> LineCodec::decode(std::span<const std::byte> input,
                                            std::size_t& progress) const noexcept {
  const std::string_view text = text_of(input).substr(0, frame_max());
  const std::size_t end = find_end(text, "\n", progress);
  if (end == std::string_view::npos) {
    if (text.size() == frame_max()) return Decoded<Frame>::refused(FrameError::too_long);
    return Decoded<Frame>::incomplete();
  }
  std::string_view line = text.substr(0, end);
  if (line.ends_with('\r')) line.remove_suffix(1);
  if (line.size() > line_max_) return Decoded<Frame>::refused(FrameError::too_long);
  return Decoded<Frame>::complete(line, end + 1);
}

std::expected<EncodedFrame, FrameError> LineCodec::encode(Frame line) const noexcept {
  if (line.size() > line_max_) return std::unexpected(FrameError::too_long);
  const bool end_would_grow = end_ == LineEnd::lf && line.ends_with('\r');
  if (end_would_grow || line.contains('\n')) return std::unexpected(FrameError::has_delimiter);
  EncodedFrame frame{std::as_bytes(std::span(line))};
  const std::string_view end = end_ == LineEnd::lf ? "\n" : "\r\n";
  frame.add_tail(std::as_bytes(std::span(end)));
  return frame;
}

DelimiterCodec::DelimiterCodec(const DelimiterOptions& options) noexcept
    : delimiter_size_(options.delimiter.size()), content_max_(options.content_max) {
  PENSTOCK_ASSERT(delimiter_size_ >= 1 && delimiter_size_ <= kDelimiterMax,
                  "a delimiter has 1 to 32 bytes");
  PENSTOCK_ASSERT(content_max_ <= kContentMax, "content_max is at most half of the address space");
  std::ranges::copy(options.delimiter, delimiter_.begin());
}

Decoded<std::string_view> DelimiterCodec::decode(std::span<const std::byte> input,
                                                 std::size_t& progress) const noexcept {
  const std::string_view text = text_of(input).substr(0, frame_max());
  const std::size_t end = find_end(text, delimiter(), progress);
  if (end != std::string_view::npos) {
    return Decoded<Frame>::complete(text.substr(0, end), end + delimiter_size_);
  }
  if (text.size() == frame_max()) return Decoded<Frame>::refused(FrameError::too_long);
  return Decoded<Frame>::incomplete();
}

std::expected<EncodedFrame, FrameError> DelimiterCodec::encode(Frame content) const noexcept {
  if (content.size() > content_max_) return std::unexpected(FrameError::too_long);
  bool found_early = content.contains(delimiter());
  // One that begins in the content and ends in the delimiter.
  for (std::size_t inside = 1; inside < delimiter_size_; ++inside) {
    const std::size_t behind = delimiter_size_ - inside;
    found_early = found_early || (content.ends_with(delimiter().substr(0, inside)) &&
                                  delimiter().starts_with(delimiter().substr(inside, behind)));
  }
  if (found_early) return std::unexpected(FrameError::has_delimiter);
  EncodedFrame frame{std::as_bytes(std::span(content))};
  frame.add_tail(std::as_bytes(std::span(delimiter())));
  return frame;
}

}  // namespace penstock

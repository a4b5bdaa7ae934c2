#include "penstock/frame/codec.h"

namespace penstock {
namespace {

class FrameCategory final : public std::error_category {
 public:
  const char* name() const noexcept override { return "penstock.frame"; }
  std::string message(int value) const override {
    switch (static_cast<FrameError>(value)) {
      case FrameError::bad_magic:
        return "a frame does not begin as frames of this protocol do";
      case FrameError::bad_length:
        return "the length of a frame is smaller than what it has to count";
      case FrameError::too_long:
        return "a frame is longer than the codec's limit";
      case FrameError::bad_varint:
        return "the length of a frame has more than 64 bits, or is not written in the shortest way";
      case FrameError::bad_checksum:
        return "the checksum of a frame is wrong";
      case FrameError::unknown_code:
        return "no handler for this message code";
      case FrameError::bad_content:
        return "the body of a message is not of the type that its code announces";
      case FrameError::has_delimiter:
        return "the frame contains what would end it";
      case FrameError::wrong_size:
        return "the frame, or its header, has not the size that it must have";
    }
    return "unknown error " + std::to_string(value);
  }
};

void append(std::string& text, std::span<const std::byte> bytes) {
  text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace

const std::error_category& frame_category() noexcept {
  static const FrameCategory category;
  return category;
}

std::string_view to_string(FrameError error) noexcept {
  switch (error) {
    case FrameError::bad_magic:
      return "bad_magic";
    case FrameError::bad_length:
      return "bad_length";
    case FrameError::too_long:
      return "too_long";
    case FrameError::bad_varint:
      return "bad_varint";
    case FrameError::bad_checksum:
      return "bad_checksum";
    case FrameError::unknown_code:
      return "unknown_code";
    case FrameError::bad_content:
      return "bad_content";
    case FrameError::has_delimiter:
      return "has_delimiter";
    case FrameError::wrong_size:
      return "wrong_size";
  }
  return "?";
}

std::string EncodedFrame::to_string() const {
  std::string text;
  text.reserve(size());
  append(text, head());
  append(text, body());
  append(text, tail());
  return text;
}

}  // namespace penstock

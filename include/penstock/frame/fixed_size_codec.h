// Frames that all have the same size, and nothing around them: samples, records, blocks.
#pragma once

#include <cstddef>
#include <expected>
#include <span>

#include "penstock/base/assert.h"
#include "penstock/frame/codec.h"

namespace penstock {

/// Cuts the input into frames of one size. It refuses nothing that comes; for sending, a frame of
/// another size: wrong_size.
class FixedSizeCodec {
 public:
  /// The bytes of the frame.
  using Frame = std::span<const std::byte>;

  /// Frames of `size` bytes, at least 1.
  explicit FixedSizeCodec(std::size_t size) noexcept : size_(size) {
    PENSTOCK_ASSERT(size > 0, "a frame has at least one byte");
  }

  /// See FrameCodec.
  Decoded<Frame> decode(std::span<const std::byte> input, std::size_t&) const noexcept {
    if (input.size() < size_) return Decoded<Frame>::incomplete();
    return Decoded<Frame>::complete(input.first(size_), size_);
  }
  /// See FrameCodec.
  std::size_t frame_max() const noexcept { return size_; }
  /// See FrameCodec.
  std::expected<EncodedFrame, FrameError> encode(Frame frame) const noexcept {
    if (frame.size() != size_) return std::unexpected(FrameError::wrong_size);
    return EncodedFrame(frame);
  }

 private:
  std::size_t size_;
};

static_assert(FrameCodec<FixedSizeCodec>);

}  // namespace penstock

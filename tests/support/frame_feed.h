// Feeds a codec as a connection would: in pieces, through an input buffer, each piece in memory of
// exactly its size. Writes down what came out, and what must never happen. For tests and fuzzers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "penstock/bytes/input_buffer.h"
#include "penstock/frame/codec.h"
#include "penstock/frame/length_field_codec.h"
#include "penstock/frame/packet_codec.h"

namespace penstock::test {

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}
inline std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// -- A frame as text, and where its views lie --

inline std::string describe(std::string_view frame) { return std::string(frame); }
inline std::string describe(std::span<const std::byte> frame) { return text_of(frame); }
inline std::string describe(const LengthFieldFrame& frame) {
  return text_of(frame.header) + "|" + text_of(frame.body);
}
inline std::string describe(const Packet& packet) {
  return std::to_string(packet.code) + "|" + text_of(packet.body);
}

inline std::span<const std::byte> extent(std::string_view frame) { return bytes_of(frame); }
inline std::span<const std::byte> extent(std::span<const std::byte> frame) { return frame; }
inline std::span<const std::byte> extent(const LengthFieldFrame& frame) {
  return frame.header_and_body();
}
inline std::span<const std::byte> extent(const Packet& packet) { return packet.body; }

/// What came out of a stream of bytes.
struct FrameLog {
  struct Entry {
    std::size_t offset;  ///< Of its first byte, in the stream.
    std::size_t size;    ///< On the wire.
    std::string frame;
    friend bool operator==(const Entry&, const Entry&) = default;
  };
  std::vector<Entry> frames;
  std::optional<FrameError> error;  ///< What the frame behind the last one was refused with.
  friend bool operator==(const FrameLog&, const FrameLog&) = default;

  /// Whether `whole` begins with what is here; an error is the end of both.
  bool is_beginning_of(const FrameLog& whole) const {
    if (error) return *this == whole;
    return frames.size() <= whole.frames.size() &&
           std::equal(frames.begin(), frames.end(), whole.frames.begin());
  }

  /// Where decoding stands: behind the last whole frame.
  std::size_t offset() const {
    return frames.empty() ? 0 : frames.back().offset + frames.back().size;
  }
};

/// A rule that was broken, or empty.
using Violation = std::string;

template <FrameCodec Codec>
class FrameFeed {
 public:
  explicit FrameFeed(const Codec& codec) : codec_(codec) {}

  /// Gives it the next piece of the stream. After an error it takes nothing.
  void feed(std::span<const std::byte> piece) {
    if (log_.error) return;
    received_ += piece.size();
    // Memory of its own, so that a look beyond the end is found; none at all is a null pointer.
    const auto copy = piece.empty() ? nullptr : std::make_unique<std::byte[]>(piece.size());
    std::copy(piece.begin(), piece.end(), copy.get());
    in_.lend({copy.get(), piece.size()});
    decode();
    check_memory();
    in_.keep_rest();
    check_memory();
  }

  const FrameLog& log() const { return log_; }
  const Violation& violation() const { return violation_; }
  /// What it has not consumed yet.
  const InputBuffer& unread() const { return in_; }
  /// The most memory that the buffer has owned.
  std::size_t charge_max() const { return charge_max_; }

 private:
  void decode() {
    while (true) {
      const std::size_t before = in_.size();
      const std::span<const std::byte> unread = in_.peek();
      const Decoded<typename Codec::Frame> next = take_frame(in_, codec_);
      if (next.status == DecodeStatus::incomplete) {
        if (before >= codec_.frame_max()) violation_ = "the longest frame is there, and incomplete";
        return;
      }
      if (next.status == DecodeStatus::refused) {
        if (in_.size() != before) violation_ = "a refused frame was consumed";
        log_.error = next.error;
        return;
      }
      if (next.size == 0 || next.size > before) violation_ = "an impossible size";
      if (next.size > codec_.frame_max()) violation_ = "longer than the longest";
      if (in_.size() != before - next.size) violation_ = "consumed is not the size of the frame";
      const std::span<const std::byte> seen = extent(next.frame);
      if (!seen.empty() &&
          (seen.data() < unread.data() || seen.data() + seen.size() > unread.data() + next.size)) {
        violation_ = "a view that is not of the frame";
        return;
      }
      log_.frames.push_back({received_ - before, next.size, describe(next.frame)});
    }
  }

  void check_memory() {
    charge_max_ = std::max(charge_max_, in_.charge());
    if (in_.charge() > 2 * received_ + 4096) violation_ = "more memory than twice what came";
  }

  Codec codec_;
  InputBuffer in_;
  FrameLog log_;
  Violation violation_;
  std::size_t received_ = 0;
  std::size_t charge_max_ = 0;
};

/// The whole stream in one piece.
template <FrameCodec Codec>
FrameLog feed_whole(const Codec& codec, std::span<const std::byte> stream) {
  FrameFeed<Codec> feed(codec);
  feed.feed(stream);
  return feed.log();
}

/// Whether what `encode` makes of a frame comes back from `decode`; frames are equal when
/// `describe` says the same of them.
template <FrameCodec Codec>
Violation round_trip(const Codec& codec, const typename Codec::Frame& frame) {
  const std::expected<EncodedFrame, FrameError> encoded = codec.encode(frame);
  if (!encoded)
    return "a frame that came cannot be sent: " + std::string(to_string(encoded.error()));
  const std::string wire = encoded->to_string();
  std::size_t progress = 0;
  const auto decoded = codec.decode(bytes_of(wire), progress);
  if (decoded.status != DecodeStatus::complete) return "an encoded frame does not come back";
  if (decoded.size != wire.size()) return "an encoded frame comes back shorter";
  if (describe(decoded.frame) != describe(frame)) return "an encoded frame comes back changed";
  return {};
}

}  // namespace penstock::test

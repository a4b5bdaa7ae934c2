// What a codec is: it finds the next frame in a run of received bytes, and writes one for sending.
// A codec is a small value that never changes, shared by all connections and loops. It keeps
// nothing between two looks but one number, which the input buffer holds for it, copies nothing on
// the way in, and allocates nothing.
//
// Rules
//   1. decode() is a function of the bytes. Where they were cut when they arrived, and what it left
//      in `progress`, change its cost and never its answer.
//   2. A frame is refused as soon as the bytes that condemn it are there: a length that is too large
//      when the length has been read, not when memory for it would be needed.
//   3. A refusal is the end: there is no search for the next frame that looks right.
//   4. A frame is at least one byte on the wire, so that decoding always moves on.
//   5. Whatever encode() accepts, decode() gives back.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

#include "penstock/base/assert.h"
#include "penstock/base/result.h"
#include "penstock/bytes/input_buffer.h"
#include "penstock/bytes/output_queue.h"
#include "penstock/bytes/shared_bytes.h"

namespace penstock {

/// What is wrong with a frame. The peer's are the error of a CloseReport whose reason is
/// `protocol`; a frame that is cut off by the end of the connection is none of them: its reason is
/// `truncated`.
enum class FrameError {
  bad_magic = 1,  ///< It does not begin with the bytes that every frame begins with.
  bad_length,     ///< Its length is smaller than what the length has to count.
  too_long,       ///< It is longer than the codec's limit.
  bad_varint,     ///< Its length is a varint of more than 64 bits, or not the shortest one.
  bad_checksum,   ///< Its checksum is that of other bytes.
  unknown_code,   ///< No handler has been registered for its message code.
  bad_content,    ///< Its bytes are no message of the type that its code announces.
  has_delimiter,  ///< Sending only: it contains what would end it.
  wrong_size,  ///< Sending only: it has not the size that all frames have, or a header of another size.
};

/// The category of FrameError.
const std::error_category& frame_category() noexcept;

/// Makes FrameError an error code; found by std::error_code itself.
inline std::error_code make_error_code(FrameError error) noexcept {
  return {static_cast<int>(error), frame_category()};
}

/// The name as it is written above, for instance "bad_magic".
std::string_view to_string(FrameError error) noexcept;

/// The longest frame of a codec that was told nothing else: 1 MiB.
inline constexpr std::size_t kDefaultFrameMax = std::size_t{1} << 20;

/// What a codec found at the beginning of the input.
enum class DecodeStatus : std::uint8_t {
  incomplete,  ///< The beginning of a frame: more bytes are needed.
  complete,    ///< A whole frame.
  refused,     ///< Nothing that could become a frame.
};

/// The answer of a codec.
template <class Frame>
struct Decoded {
  DecodeStatus status = DecodeStatus::incomplete;  ///< Which of the other members mean something.
  Frame frame{};                                   ///< complete: a view of the input.
  std::size_t size = 0;  ///< complete: the bytes of the frame on the wire, at least 1.
  FrameError error{};    ///< refused: why.

  /// More bytes are needed.
  static Decoded incomplete() noexcept { return {}; }
  /// A frame of `size` bytes.
  static Decoded complete(Frame frame, std::size_t size) noexcept {
    return {.status = DecodeStatus::complete, .frame = frame, .size = size};
  }
  /// Not a frame.
  static Decoded refused(FrameError error) noexcept {
    return {.status = DecodeStatus::refused, .error = error};
  }
};

/// A frame ready to be sent: what the codec puts before and behind the body, in the object itself,
/// and the body, which is lent by whoever called encode().
class EncodedFrame {
 public:
  /// The most that a codec may put before, and behind, a body.
  static constexpr std::size_t kHeadMax = 64;
  static constexpr std::size_t kTailMax = 32;  ///< See kHeadMax.

  /// A frame of this body, with nothing around it yet.
  explicit EncodedFrame(std::span<const std::byte> body) noexcept : body_(body) {}

  /// Adds bytes in front of the body, behind those added before; at most kHeadMax in all.
  void add_head(std::span<const std::byte> bytes) noexcept { head_.add(bytes); }
  /// Adds bytes behind the body; at most kTailMax in all.
  void add_tail(std::span<const std::byte> bytes) noexcept { tail_.add(bytes); }

  /// What goes before the body; valid as long as this object.
  std::span<const std::byte> head() const noexcept { return head_.bytes(); }
  /// The body, as it was lent.
  std::span<const std::byte> body() const noexcept { return body_; }
  /// What goes behind the body; valid as long as this object.
  std::span<const std::byte> tail() const noexcept { return tail_.bytes(); }
  /// All of it, for TcpConnection::send() and try_send(); valid as long as this object and the body.
  MessageParts parts() const noexcept { return {.head = head(), .body = body(), .tail = tail()}; }
  /// Bytes on the wire.
  std::size_t size() const noexcept { return head().size() + body().size() + tail().size(); }

  /// The whole frame in one piece. Throws std::bad_alloc.
  std::string to_string() const;

 private:
  template <std::size_t kMax>
  class Bytes {
   public:
    void add(std::span<const std::byte> added) noexcept {
      PENSTOCK_ASSERT(added.size() <= kMax - size_, "more before or behind a body than may be");
      for (const std::byte byte : added)
        bytes_[size_++] = byte;
    }
    std::span<const std::byte> bytes() const noexcept { return std::span(bytes_).first(size_); }

   private:
    std::array<std::byte, kMax> bytes_;
    std::size_t size_ = 0;
  };

  Bytes<kHeadMax> head_;
  std::span<const std::byte> body_;
  Bytes<kTailMax> tail_;
};

/// What frames(), send_frame() and their kin need of a codec:
///
///  - `C::Frame`, a small value; views in it are of the input.
///  - `decode(input, progress)`: what is at the beginning of `input`. `progress` is 0 at the first
///    look; at the next looks at the same bytes, with more behind them, it is what the one before
///    left there when it answered `incomplete`.
///  - `frame_max()`: the bytes of the longest frame on the wire.
///  - `encode(frame)`: the frame for sending, or why it cannot be sent.
template <class C>
concept FrameCodec = requires(const C codec, const typename C::Frame frame,
                              std::span<const std::byte> input, std::size_t progress) {
  { codec.decode(input, progress) } -> std::same_as<Decoded<typename C::Frame>>;
  { codec.frame_max() } -> std::same_as<std::size_t>;
  { codec.encode(frame) } -> std::same_as<std::expected<EncodedFrame, FrameError>>;
};

/// Takes the next frame out of the input, if it is there whole: for those who do more with their
/// input than frames() does. Consumes the frame and nothing else; its views are valid as those of
/// the buffer are, until the callback returns.
template <FrameCodec Codec>
[[nodiscard]] Decoded<typename Codec::Frame> take_frame(InputBuffer& in, const Codec& codec) {
  std::size_t progress = in.progress();
  const auto decoded = codec.decode(in.peek(), progress);
  if (decoded.status == DecodeStatus::incomplete) in.set_progress(progress);
  if (decoded.status == DecodeStatus::complete) in.consume(decoded.size);
  return decoded;
}

/// Encodes a frame once, for many connections: send() and try_send() take it without copying it.
/// Error: why it cannot be sent. Throws std::bad_alloc.
template <FrameCodec Codec>
[[nodiscard]] Result<SharedBytes> shared_frame(const Codec& codec,
                                               const typename Codec::Frame& frame) {
  const std::expected<EncodedFrame, FrameError> encoded = codec.encode(frame);
  if (!encoded) return std::unexpected(make_error_code(encoded.error()));
  return SharedBytes(encoded->to_string());
}

}  // namespace penstock

template <>
struct std::is_error_code_enum<penstock::FrameError> : std::true_type {};

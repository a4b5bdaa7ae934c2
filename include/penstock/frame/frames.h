// Frames for a connection: frames() makes on_message of a codec and a function that takes one frame
// at a time; send_frame() sends one. Loop's thread, as everything that takes a TcpConnection.
#pragma once

#include <cstddef>
#include <expected>
#include <system_error>
#include <type_traits>
#include <utility>

#include "penstock/base/result.h"
#include "penstock/bytes/input_buffer.h"
#include "penstock/frame/codec.h"
#include "penstock/tcp/connection.h"

namespace penstock {

/// What frames() makes: an on_message that gives its handler one frame after the other.
template <FrameCodec Codec, class Handler>
class FrameReader {
 public:
  /// Use frames(), which is the way to make one.
  FrameReader(Codec codec, Handler handler)
      : codec_(std::move(codec)), handler_(std::move(handler)) {}

  /// on_message: hands out all whole frames, as long as the connection wants input.
  void operator()(TcpConnection& peer, InputBuffer& in) const {
    // Each round but the last consumes at least a byte.
    do {
      const Decoded<typename Codec::Frame> next = take_frame(in, codec_);
      if (next.status == DecodeStatus::incomplete) return;
      if (next.status == DecodeStatus::refused) {
        peer.close_with_protocol_error(next.error);
        return;
      }
      handler_(peer, next.frame);
    } while (peer.wants_input());
  }

  /// The longest frame; a server or client raises ConnectionLimits::input_max to it.
  std::size_t message_max() const noexcept { return codec_.frame_max(); }

 private:
  Codec codec_;
  Handler handler_;
};

/// An on_message that decodes frames and calls `handler(TcpConnection&, Frame)` with each, in order:
/// `server.on_message(frames(LineCodec(), handler))`. Where callbacks are set by hand, set
/// ConnectionCallbacks::message_max to its message_max() too.
///
/// The frame's views are valid until on_message returns: until the next frames of the same piece of
/// input have been handled too. The handler must not be `mutable`; it may do what any callback may:
/// send, pause, close, throw, replace the behaviour, destroy the server. After that there is no
/// further frame until the connection wants input again; none is lost, but for an end.
///
/// What the codec refuses ends the connection: close() with reason `protocol`, and the FrameError as
/// the error. A peer that finishes inside of a frame is reported as `truncated`.
template <FrameCodec Codec, class Handler>
[[nodiscard]] FrameReader<Codec, Handler> frames(Codec codec, Handler handler) {
  static_assert(std::is_invocable_v<const Handler&, TcpConnection&, typename Codec::Frame>,
                "the handler takes (TcpConnection&, Frame of the codec) and must not be mutable: "
                "state of a connection belongs in emplace_context()");
  return {std::move(codec), std::move(handler)};
}

/// Sends a frame, all of it or nothing, as send() does: a large body goes at once and is copied only
/// as far as the kernel does not take it. Error: why the codec cannot write it; nothing is sent.
template <FrameCodec Codec>
[[nodiscard]] Result<void> send_frame(TcpConnection& peer, const Codec& codec,
                                      const typename Codec::Frame& frame) {
  const std::expected<EncodedFrame, FrameError> encoded = codec.encode(frame);
  if (!encoded) return std::unexpected(make_error_code(encoded.error()));
  peer.send(encoded->parts());
  return {};
}

/// The same as try_send() does: a refusal of the connection is the answer, one of the codec the
/// error.
template <FrameCodec Codec>
[[nodiscard]] Result<SendOutcome> try_send_frame(TcpConnection& peer, const Codec& codec,
                                                 const typename Codec::Frame& frame) {
  const std::expected<EncodedFrame, FrameError> encoded = codec.encode(frame);
  if (!encoded) return std::unexpected(make_error_code(encoded.error()));
  return peer.try_send(encoded->parts());
}

}  // namespace penstock

// Heartbeats of a protocol of frames: a ping once the peer has been silent, a pong for each of the
// peer's own, and neither in the way of the program's handler. A value that never changes, copied
// into callbacks and shared by all loops. When to ping and when to give up is not said here but by
// ConnectionLimits (heartbeat_interval, heartbeats_missed_max), and any input is a sign of life.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <ranges>
#include <type_traits>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/bytes/message_queue.h"
#include "penstock/bytes/shared_bytes.h"
#include "penstock/frame/codec.h"
#include "penstock/tcp/connection.h"

namespace penstock {

/// Which frames are the heartbeats of a protocol.
template <class Frame>
struct HeartbeatFrames {
  Frame ping{};  ///< Sent after silence, by either side.
  Frame pong{};  ///< What answers it; another frame than `ping`.
};

/// Sends pings, answers those of the peer, and takes both kinds out of the frames that a handler
/// gets:
///
///     const FrameHeartbeat heartbeat(packets, {.ping = {.code = 1}, .pong = {.code = 2}});
///     server.on_heartbeat(heartbeat.pings());
///     server.on_message(frames(packets, heartbeat.around(router.handler())));
///
/// A frame is a heartbeat if it is equal to one: where each ping carries a body of its own, for
/// instance the time, write a handler for it instead. Pings and pongs are encoded once and leave in
/// the control lane, before all that waits. A peer that sends pings and does not read the pongs is
/// stopped by its high-water mark, as with other replies.
template <FrameCodec Codec>
  requires std::equality_comparable<typename Codec::Frame> ||
           std::ranges::input_range<typename Codec::Frame>
class FrameHeartbeat {
 public:
  /// The frames of the codec.
  using Frame = typename Codec::Frame;

  /// Copies the frames. Asserts that the codec can write them, and that they differ: a pong that is
  /// a ping would be answered for ever. Throws std::bad_alloc.
  FrameHeartbeat(const Codec& codec, const HeartbeatFrames<Frame>& frames)
      : ping_(codec, frames.ping), pong_(codec, frames.pong) {
    PENSTOCK_ASSERT(!same(ping_.frame, pong_.frame), "a ping and its pong have to differ");
  }

  /// An on_heartbeat: sends the ping.
  auto pings() const {
    return [ping = ping_](TcpConnection& peer) { send(peer, ping); };
  }

  /// A handler for frames(): answers pings, drops pongs, and gives `handler(TcpConnection&, Frame)`
  /// all other frames.
  template <class Handler>
  auto around(Handler handler) const {
    static_assert(std::is_invocable_v<const Handler&, TcpConnection&, Frame>,
                  "the handler takes (TcpConnection&, Frame of the codec) and must not be mutable: "
                  "state of a connection belongs in emplace_context()");
    return
        [heartbeat = *this, handler = std::move(handler)](TcpConnection& peer, const Frame& frame) {
          if (same(frame, heartbeat.ping_.frame)) {
            send(peer, heartbeat.pong_);
          } else if (!same(frame, heartbeat.pong_.frame)) {
            handler(peer, frame);
          }
        };
  }

 private:
  // A frame as it is sent, and as the codec reads it: a view of these very bytes, which stay where
  // they are when this is copied.
  struct Encoded {
    Encoded(const Codec& codec, const Frame& which) {
      const Result<SharedBytes> shared = shared_frame(codec, which);
      PENSTOCK_ASSERT(shared.has_value(), "the codec cannot write this heartbeat");
      wire = *shared;
      std::size_t progress = 0;
      frame = codec.decode(wire.bytes(), progress).frame;
    }
    SharedBytes wire;
    Frame frame{};
  };

  static bool same(const Frame& left, const Frame& right) {
    if constexpr (std::equality_comparable<Frame>) {
      return left == right;
    } else {
      return std::ranges::equal(left, right);
    }
  }

  // What is refused is counted, and ends the connection if its policy says so.
  static void send(TcpConnection& peer, const Encoded& heartbeat) {
    static_cast<void>(peer.send_message(heartbeat.wire, {.lane = Lane::control}));
  }

  Encoded ping_;
  Encoded pong_;
};

}  // namespace penstock

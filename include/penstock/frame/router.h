// Handlers by message code, for packets. Owner: the program; it outlives the connections that use
// it. Filled on one thread before the first of them, and immutable from then on: many loops call it
// at a time without a lock. It counts what it sees, each loop in memory of its own.
#pragma once

#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "penstock/base/assert.h"
#include "penstock/base/result.h"
#include "penstock/frame/codec.h"
#include "penstock/frame/packet_codec.h"
#include "penstock/tcp/connection.h"

namespace penstock {

/// How a Message is read from a body, for MessageRouter::on(): `Message::decode(body)` unless you
/// specialise it. It answers the message, or the error with which the connection is to end:
/// FrameError::bad_content when there is no better one. Views in the message are of the body.
template <class Message>
struct MessageDecoder {
  /// The message in this body, all of it.
  static Result<Message> decode(std::span<const std::byte> body)
    requires requires {
      { Message::decode(body) } -> std::same_as<Result<Message>>;
    }
  {
    return Message::decode(body);
  }
};

/// Calls the handler registered for the code of a packet:
///
///     MessageRouter router;
///     router.on<Login>(1, [](TcpConnection& peer, const Login& login) { ... });
///     server.on_message(frames(PacketCodec(), router.handler()));
///
/// A code without a handler ends the connection with reason `protocol`, error unknown_code, unless
/// on_unknown() says otherwise. Handlers may do what those of frames() may.
class MessageRouter {
 public:
  MessageRouter();
  MessageRouter(const MessageRouter&) = delete;
  MessageRouter& operator=(const MessageRouter&) = delete;
  ~MessageRouter();

  // -- Before the first connection, on one thread --

  /// Registers `handler(TcpConnection&, std::span<const std::byte> body)` for a code that has none
  /// yet.
  template <class Handler>
  void on(std::uint16_t code, Handler handler) {
    static_assert(
        std::is_invocable_v<const Handler&, TcpConnection&, std::span<const std::byte>>,
        "the handler takes (TcpConnection&, std::span<const std::byte>) and must not be mutable: "
        "state of a connection belongs in emplace_context()");
    add(code,
        [handler = std::move(handler)](TcpConnection& peer,
                                       std::span<const std::byte> body) -> std::error_code {
          handler(peer, body);
          return {};
        });
  }

  /// Registers `handler(TcpConnection&, const Message&)` for a code that has none yet. A body that
  /// MessageDecoder<Message> refuses ends the connection with reason `protocol` and its error.
  template <class Message, class Handler>
  void on(std::uint16_t code, Handler handler) {
    static_assert(std::is_invocable_v<const Handler&, TcpConnection&, const Message&>,
                  "the handler takes (TcpConnection&, const Message&) and must not be mutable: "
                  "state of a connection belongs in emplace_context()");
    add(code,
        [handler = std::move(handler)](TcpConnection& peer,
                                       std::span<const std::byte> body) -> std::error_code {
          const Result<Message> message = MessageDecoder<Message>::decode(body);
          if (!message) return message.error();
          handler(peer, *message);
          return {};
        });
  }

  /// What `handler(TcpConnection&, const Packet&)` does with packets of other codes, in place of
  /// ending the connection.
  template <class Handler>
  void on_unknown(Handler handler) {
    static_assert(std::is_invocable_v<const Handler&, TcpConnection&, const Packet&>,
                  "the handler takes (TcpConnection&, const Packet&) and must not be mutable: "
                  "state of a connection belongs in emplace_context()");
    assert_not_in_use();
    on_unknown_ = std::move(handler);
  }

  /// What frames() calls with each packet. Refers to the router; nothing can be registered any more.
  auto handler() {
    in_use_ = true;
    return [this](TcpConnection& peer, const Packet& packet) { route(peer, packet); };
  }

  // -- Thread-safe; each sum may miss what loops are counting meanwhile --

  /// Packets of this code so far, refused ones included; 0 for a code without a handler.
  std::uint64_t received(std::uint16_t code) const noexcept;
  /// Packets of this code whose body was refused; 0 for a code without a handler.
  std::uint64_t refused(std::uint16_t code) const noexcept;
  /// Packets of codes without a handler.
  std::uint64_t unknown() const noexcept;

 private:
  // Answers why it refuses the body, or nothing.
  using Route =
      std::move_only_function<std::error_code(TcpConnection&, std::span<const std::byte>) const>;
  // Written by one loop, read by any thread: loads and stores, no read-modify-write. In a cache line
  // of its own, so that no other loop's writes hold it up.
  struct alignas(64) Count {
    std::atomic<std::uint64_t> received{0};
    std::atomic<std::uint64_t> refused{0};
  };
  // Those of one loop, by route.
  using Shard = std::vector<Count>;
  static constexpr std::size_t kCodes = 65536;

  void add(std::uint16_t code, Route route);
  void assert_not_in_use() const {
    PENSTOCK_ASSERT(!in_use_, "handlers are registered before handler() is called");
  }
  void route(TcpConnection& peer, const Packet& packet) const;
  Shard& shard_of(const EventLoop& loop) const;
  template <class Member>
  std::uint64_t sum(std::uint16_t route, Member member) const noexcept;

  // routes_[0] is that of all codes without a handler; nothing calls it.
  std::vector<Route> routes_;
  std::vector<std::uint16_t> route_by_code_;  // 128 KiB, of which only the pages in use are touched
  std::move_only_function<void(TcpConnection&, const Packet&) const> on_unknown_;
  bool in_use_ = false;
  // By the loop's slot; made by the loop with its first packet, freed with the router.
  mutable std::array<std::atomic<Shard*>, Mailbox::kLoopsMax> shards_{};
};

}  // namespace penstock

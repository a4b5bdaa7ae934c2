// A name for a connection that may be kept for ever and used from any thread. It owns nothing and
// never dangles: when the connection, its slot's next tenant or the whole loop is gone, what is
// sent through it is dropped and counted.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "penstock/base/slot_table.h"
#include "penstock/bytes/message_queue.h"
#include "penstock/bytes/shared_bytes.h"
#include "penstock/loop/mailbox.h"

namespace penstock {

class TcpConnection;
struct BroadcastResult;

/// Thread-safe in all its methods; a value of 16 bytes. `posted` means that the operation is under
/// way, not that the connection is still there: what comes too late is dropped and counted
/// (ConnectionStatistics::stale_drops).
///
/// Operations through handles reach a connection in the order in which one thread makes them. They
/// are always posted, on the connection's own loop too: what is then done directly on the
/// TcpConnection overtakes them. Inside a callback use the reference.
class ConnectionHandle {
 public:
  /// Names no connection; every operation answers closed.
  ConnectionHandle() = default;

  /// Sends as TcpConnection::send does. Answers full when the loop's bound on posted bytes is
  /// reached (EventLoopOptions::posted_bytes_max): `payload` is then left as it was. SharedBytes are
  /// charged to the loops' memory budget, once however often they are sent.
  PostResult send(std::string&& payload) const;
  PostResult send(std::vector<std::byte>&& payload) const;
  PostResult send(SharedBytes payload) const;
  /// Copies the bytes.
  PostResult send(std::string_view payload) const;
  PostResult send(std::span<const std::byte> payload) const;
  PostResult send(const char* text) const { return send(std::string_view(text)); }
  /// Sends as TcpConnection::send_message does; what it answers there is only counted here. For many
  /// connections at once see ConnectionGroup.
  PostResult send_message(SharedBytes message, const MessageOptions& options = {}) const;

  ///@{
  /// As the method of TcpConnection of that name. Never refused as full.
  PostResult finish() const;
  PostResult close() const;
  PostResult abort() const;
  ///@}
  /// Runs `visit` on the connection's loop; not at all when the connection is gone by then. Charged
  /// with 128 bytes, so it may be refused as full: then `visit` is destroyed unrun.
  PostResult post(std::move_only_function<void(TcpConnection&)> visit) const;

  /// Whether it was made from a connection; that one may be gone since.
  explicit operator bool() const noexcept { return loop_.generation != 0; }
  /// An order for use as a key; it means nothing else.
  friend auto operator<=>(const ConnectionHandle&, const ConnectionHandle&) = default;

 private:
  friend class TcpConnection;
  friend BroadcastResult broadcast(std::span<const ConnectionHandle> connections,
                                   SharedBytes message, const MessageOptions& options);
  friend struct std::hash<ConnectionHandle>;
  ConnectionHandle(LoopId loop, SlotId connection) noexcept
      : loop_(loop), connection_(connection) {}

  template <class Payload, class Send>
  PostResult post_payload(Payload& payload, Send send) const;
  PostResult post_charged(std::move_only_function<void(TcpConnection&)> visit,
                          std::size_t charge) const;

  LoopId loop_;
  SlotId connection_;
};

static_assert(sizeof(ConnectionHandle) == 16);

}  // namespace penstock

/// Lets a handle be the key of an unordered container.
template <>
struct std::hash<penstock::ConnectionHandle> {
  /// Depends on which connection it names, and on nothing else.
  std::size_t operator()(const penstock::ConnectionHandle& handle) const noexcept {
    const auto pair = [](std::uint32_t high, std::uint32_t low) {
      return (std::uint64_t{high} << 32) | low;
    };
    constexpr std::uint64_t kSpread = 0x9E37'79B9'7F4A'7C15;  // 2^64 divided by the golden ratio
    const std::uint64_t loop = pair(handle.loop_.generation, handle.loop_.slot);
    return static_cast<std::size_t>(pair(handle.connection_.generation, handle.connection_.slot) ^
                                    (loop * kSpread));
  }
};

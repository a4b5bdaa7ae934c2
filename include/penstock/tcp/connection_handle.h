// A name for a connection that may be kept for ever and used from any thread. It owns nothing and
// never dangles: when the connection, its slot's next tenant or the whole loop is gone, what is
// sent through it is dropped and counted.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "penstock/base/slot_table.h"
#include "penstock/bytes/shared_bytes.h"
#include "penstock/loop/mailbox.h"

namespace penstock {

class TcpConnection;

/// Thread-safe in all its methods; a value of 16 bytes. Operations through handles reach a
/// connection in the order in which one thread makes them. `posted` means that it is under way, not
/// that the connection is still there.
class ConnectionHandle {
 public:
  /// Names no connection; every operation answers closed.
  ConnectionHandle() = default;

  /// Sends as TcpConnection::send does. Answers full when the loop's bound on posted bytes is
  /// reached: `payload` is then left as it was.
  PostResult send(std::string&& payload) const;
  PostResult send(std::vector<std::byte>&& payload) const;
  PostResult send(SharedBytes payload) const;
  /// Copies the bytes.
  PostResult send(std::string_view payload) const;
  PostResult send(std::span<const std::byte> payload) const;
  PostResult send(const char* text) const { return send(std::string_view(text)); }

  /// These three are never refused as full.
  PostResult finish() const;
  PostResult close() const;
  PostResult abort() const;
  /// Runs `visit` on the connection's loop; not at all when the connection is gone by then.
  PostResult post(std::move_only_function<void(TcpConnection&)> visit) const;

  friend bool operator==(const ConnectionHandle&, const ConnectionHandle&) = default;

 private:
  friend class TcpConnection;
  ConnectionHandle(LoopId loop, SlotId connection) noexcept
      : loop_(loop), connection_(connection) {}

  template <class Payload>
  PostResult post_payload(Payload& payload) const;
  PostResult post_charged(std::move_only_function<void(TcpConnection&)> visit,
                          std::size_t charge) const;

  LoopId loop_;
  SlotId connection_;
};

static_assert(sizeof(ConnectionHandle) == 16);

}  // namespace penstock

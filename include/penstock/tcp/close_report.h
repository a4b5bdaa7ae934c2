// Why and how a connection ended: what on_close is told.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <system_error>

#include "penstock/base/clock.h"

namespace penstock {

/// Why a connection ended.
enum class CloseReason : std::uint8_t {
  eof,    ///< Both sides finished in order.
  reset,  ///< The peer, or the network, broke it.
  truncated,  ///< The peer finished in the middle of a message: input was left that the handler had not consumed.
  timeout,   ///< A limit of time was reached; TimeoutKind says which.
  overflow,  ///< A limit of memory was reached: output over the hard cap, or input without progress.
  protocol,  ///< The peer broke the rules of the protocol; close_with_protocol_error() said so.
  local,  ///< This side ended it: close(), abort(), its server or loop went, or a callback threw.
  detached,  ///< detach() took its descriptor out; the connection itself goes on.
};
/// How many reasons there are.
inline constexpr std::size_t kCloseReasons = static_cast<std::size_t>(CloseReason::detached) + 1;

/// Which limit of time ended a connection.
enum class TimeoutKind : std::uint8_t {
  none,            ///< None: it ended for another reason.
  idle,            ///< No byte in either direction.
  write_stall,     ///< Output was pending and the peer took none of it.
  half_close,      ///< One side had finished and nothing moved any more.
  unacknowledged,  ///< The kernel gave up on the peer (keep-alive, TCP_USER_TIMEOUT).
  first_message,   ///< No first message came.
  slow_message,    ///< A message had begun and took too long, or came too slowly.
  heartbeat,       ///< Nothing came in answer to heartbeats.
};
/// How many kinds there are.
inline constexpr std::size_t kTimeoutKinds = static_cast<std::size_t>(TimeoutKind::heartbeat) + 1;

/// How connections ended: how many for each reason, and of the time-outs how many of each kind.
struct EndCounts {
  std::array<std::uint64_t, kCloseReasons> reasons{};   ///< By CloseReason.
  std::array<std::uint64_t, kTimeoutKinds> timeouts{};  ///< By TimeoutKind.

  /// Adds one that has ended.
  void count(CloseReason reason, TimeoutKind timeout) noexcept {
    ++reasons[static_cast<std::size_t>(reason)];
    ++timeouts[static_cast<std::size_t>(timeout)];
  }

  /// How many ended so.
  std::uint64_t operator[](CloseReason reason) const noexcept {
    return reasons[static_cast<std::size_t>(reason)];
  }
  /// How many time-outs were of this kind.
  std::uint64_t operator[](TimeoutKind kind) const noexcept {
    return timeouts[static_cast<std::size_t>(kind)];
  }
};

/// The name as it is written above, for instance "eof" or "write_stall".
std::string_view to_string(CloseReason reason) noexcept;
std::string_view to_string(TimeoutKind kind) noexcept;

/// The account of a connection, given to on_close.
struct CloseReport {
  CloseReason reason = CloseReason::local;  ///< Why it ended.
  TimeoutKind timeout = TimeoutKind::none;  ///< Which limit, when the reason is timeout.
  /// What the kernel said; Errc::callback_threw; for overflow which limit it was: Errc::output_limit,
  /// input_limit or memory_limit, or ENOMEM; for protocol what close_with_protocol_error() was told.
  /// Else none.
  std::error_code error{};
  std::uint64_t bytes_received = 0;   ///< Taken from the kernel.
  std::uint64_t bytes_sent = 0;       ///< Taken by the kernel.
  std::uint64_t bytes_discarded = 0;  ///< Accepted for sending, and dropped.
  std::uint64_t input_discarded = 0;  ///< Received, and never consumed by the message callback.
  /// Messages that the SlowConsumer policy has dropped or refused. Not in bytes_discarded.
  std::uint64_t messages_dropped = 0;
  Duration duration{};  ///< From its start to its end.
};

}  // namespace penstock

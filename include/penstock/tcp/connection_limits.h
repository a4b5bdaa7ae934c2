// How much memory and time one connection may take: secure by default.
#pragma once

#include <cstddef>
#include <optional>

#include "penstock/base/clock.h"
#include "penstock/bytes/message_queue.h"

namespace penstock {

/// Limits of one connection. Sizes are in bytes. Zero means no limit for times and rates, and
/// for output_max, input_max and drain_max.
struct ConnectionLimits {
  /// At or below it, reading goes on and on_low_water runs.
  std::size_t low_water = std::size_t{64} * 1024;
  /// Above it, the connection is not read and on_high_water runs.
  std::size_t high_water = std::size_t{256} * 1024;
  /// Hard cap of memory held by output, counted in blocks of 4 KiB or by the capacity of what was
  /// moved in: what would pass it is refused, so one larger payload is never accepted.
  std::size_t output_max = std::size_t{16} * 1024 * 1024;
  /// What becomes of messages (TcpConnection::send_message) once backlog_max of them waits.
  SlowConsumer slow_consumer = SlowConsumer::disconnect;
  /// Memory that waiting messages may hold before slow_consumer applies: their capacity and about
  /// 100 bytes each.
  std::size_t backlog_max = std::size_t{1024} * 1024;
  /// Input the message callback may leave unconsumed before the connection ends with `overflow`.
  std::size_t input_max = std::size_t{64} * 1024;
  /// No byte in either direction, nothing to send, no hold, reading not paused by the user.
  Duration idle_timeout = std::chrono::seconds(120);
  /// Nothing has been consumed of its input since it began: it has not sent a first message. Unset:
  /// 10 s for a connection that a server has accepted whose on_message reads frames (message_max),
  /// else no limit.
  std::optional<Duration> first_message_timeout{};
  /// A message has begun and is not complete: on_message has left input unconsumed, and less than
  /// 1 KiB of the rest waits to be read. Unset: 30 s, where first_message_timeout has a limit when
  /// unset.
  std::optional<Duration> message_timeout{};
  /// Bytes per second at which a message that has begun must arrive on average, from
  /// message_rate_grace on. Unset: 240, likewise.
  std::optional<std::size_t> message_rate_min{};
  /// How long a message may be slower than that.
  Duration message_rate_grace = std::chrono::seconds(5);
  /// After this long without input on_heartbeat runs, to send a ping; again after as long, while no
  /// input comes. Not while reading is paused. Zero: never.
  Duration heartbeat_interval = Duration::zero();
  /// That many heartbeats without input since, and the next one due: the connection ends with a
  /// reset. At least 1.
  unsigned heartbeats_missed_max = 3;
  /// Output is pending and neither taken by the kernel nor acknowledged by the peer.
  Duration write_stall_timeout = std::chrono::seconds(30);
  /// One side has finished, nothing is pending, nothing moves.
  Duration half_close_timeout = std::chrono::seconds(30);
  /// After close(), the peer's remaining input is read and dropped, so that it loses nothing of our
  /// output: as long as this long passes without input, in all at most drain_timeout and drain_max
  /// bytes.
  Duration drain_idle_timeout = std::chrono::seconds(5);
  /// After close(): the longest that the peer's input is read and dropped.
  Duration drain_timeout = std::chrono::seconds(30);
  /// After close(): the most of it that is read and dropped; 0 means no limit.
  std::size_t drain_max = std::size_t{1024} * 1024;
  /// A connection that broke while reading was paused: its remaining input is delivered on resume,
  /// or after this.
  Duration broken_pause_timeout = std::chrono::seconds(30);
};

}  // namespace penstock

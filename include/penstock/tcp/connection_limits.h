// How much memory and time one connection may take: secure by default.
#pragma once

#include <cstddef>

#include "penstock/base/clock.h"

namespace penstock {

/// Limits of one connection. Sizes are in bytes. Zero means no limit for times and
/// for output_max, input_max and drain_max.
struct ConnectionLimits {
  /// At or below it, reading goes on and on_low_water runs.
  std::size_t low_water = std::size_t{64} * 1024;
  /// Above it, the connection is not read and on_high_water runs.
  std::size_t high_water = std::size_t{256} * 1024;
  /// Hard cap of memory held by output, counted in blocks of 4 KiB or by the capacity of what was
  /// moved in: what would pass it is refused, so one larger payload is never accepted.
  std::size_t output_max = std::size_t{16} * 1024 * 1024;
  /// Input the message callback may leave unconsumed before the connection ends with `overflow`.
  std::size_t input_max = std::size_t{64} * 1024;
  /// No byte in either direction, nothing to send, no hold, reading not paused by the user.
  Duration idle_timeout = std::chrono::seconds(120);
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

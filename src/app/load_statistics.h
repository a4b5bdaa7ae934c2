// What a load run has seen: messages, latencies, connections, errors. Owned by the run; its loop's
// thread. It prints nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "penstock/base/clock.h"
#include "penstock/base/latency_histogram.h"

namespace penstock::app {

/// The first byte of a connection that was not the one it should have been.
struct WrongByte {
  std::uint64_t connection = 0;       ///< The first connection made is 1.
  std::uint64_t offset = 0;           ///< In what that connection received.
  std::optional<std::byte> expected;  ///< Nothing: more came back than had been sent.
  std::byte got{};
};

/// A stream that ended before all was back.
struct Truncation {
  std::uint64_t connection = 0;
  std::uint64_t received = 0;
  std::uint64_t expected = 0;  ///< What was sent, or (half-close) should have been.
};

struct LoadErrors {
  /// How many of each a report names.
  static constexpr std::size_t kExamplesMax = 10;

  /// Attempts to connect that failed, by error.
  std::vector<std::pair<std::error_code, std::uint64_t>> connect{};
  std::uint64_t resets = 0;     ///< Connections the other side broke.
  std::uint64_t timeouts = 0;   ///< Connections on which nothing moved any more.
  std::uint64_t truncated = 0;  ///< Connections that ended in order while bytes were owed.
  std::uint64_t missing = 0;    ///< Connections whose bytes had not come when the wait was over.
  std::uint64_t missing_bytes = 0;
  std::uint64_t wrong = 0;  ///< Connections with a wrong byte.
  std::uint64_t other = 0;  ///< Connections ended by this side's own limits.
  std::vector<WrongByte> first_wrong{};
  std::vector<Truncation> first_truncated{};

  void count_connect_failure(std::error_code error);
  void count(const WrongByte& byte);
  void count(const Truncation& truncation);
  std::uint64_t connect_failures() const noexcept;
  /// Anything but failed attempts to connect: something was lost that had been sent.
  bool any_loss() const noexcept {
    return resets + timeouts + truncated + missing + wrong + other > 0;
  }
};

/// What grows while it runs.
struct LoadCounts {
  std::uint64_t messages = 0;     ///< Back, and right to the last byte.
  std::uint64_t bytes = 0;        ///< Back, and right.
  std::uint64_t connections = 0;  ///< Made.
};

struct LoadStatistics {
  LoadCounts total{};    ///< To the very end.
  LoadCounts in_time{};  ///< While messages were sent; what the rates are made of.
  Duration elapsed{};    ///< From the first connection until sending stopped.
  LatencyHistogram latency{};
  LoadErrors errors{};

  /// Whether a run that has seen this is a success: see `penstock load --help`.
  bool succeeded() const noexcept { return total.connections > 0 && !errors.any_loss(); }
};

}  // namespace penstock::app

// What `penstock load` is asked to do, and what of it cannot be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "penstock/base/clock.h"
#include "penstock/io/io_backend.h"

namespace penstock::app {

/// What each connection does.
enum class LoadMode : std::uint8_t {
  steady,      ///< Keeps its messages under way until the end.
  churn,       ///< One message, then a new connection.
  half_close,  ///< One large message, FIN, all of it back, EOF; then a new connection.
};

struct LoadOptions {
  static constexpr std::size_t kHalfCloseSize = std::size_t{8} * 1024 * 1024;

  std::string to{};
  std::size_t connections = 100;
  std::size_t size = 64;  ///< Bytes of a message.
  std::size_t depth = 1;  ///< Messages under way on a connection.
  double seconds = 10;
  bool churn = false;
  bool half_close = false;
  bool orderly = false;         ///< churn: ends by FIN, not by a reset.
  std::size_t rounds = 0;       ///< churn, half_close: messages of each connection; 0: no end.
  std::size_t slow_reader = 0;  ///< Bytes a second each connection reads; 0: no limit.
  bool slow_reader_given = false;
  Duration timeout = std::chrono::seconds(30);
  Duration drain = std::chrono::seconds(5);  ///< How long what is owed may keep silent at the end.
  Backend backend = Backend::automatic;
  bool json = false;

  LoadMode mode() const noexcept {
    if (churn) return LoadMode::churn;
    return half_close ? LoadMode::half_close : LoadMode::steady;
  }
  /// Messages one connection carries; 0: no end.
  std::uint64_t messages_per_connection() const noexcept {
    return mode() == LoadMode::steady ? 0 : 1;
  }
};

/// What there is to do it with.
struct LoadMeans {
  std::size_t descriptors = 0;  ///< That may still be opened.
  std::size_t memory = 0;       ///< Bytes this process may use.
};

/// Why it cannot be done, as one line that says what to do instead; empty if it can.
std::string find_contradiction(const LoadOptions& options, const LoadMeans& means);

}  // namespace penstock::app

#include "app/load_options.h"

#include <fmt/format.h>

#include "app/units.h"
#include "penstock/os/socket_address.h"

namespace penstock::app {
namespace {

constexpr std::size_t kSizeMax = std::size_t{1} << 40;  // keeps depth x size within 64 bits
constexpr std::size_t kDepthMax = std::size_t{1} << 16;
constexpr double kSecondsMax = 365.0 * 24 * 3600;
constexpr Duration kDrainMax = std::chrono::hours(1);
constexpr std::size_t kOwnDescriptors = 8;  // the loop's, and room for a log or two

std::string check_address(const std::string& to) {
  const Result<SocketAddress> address = SocketAddress::parse(to);
  if (!address) return fmt::format("--to '{}': {}", to, address.error().message());
  if (address->is_ip() && address->port() == 0) {
    return fmt::format("--to {}: port 0 is no place to connect to; give the server's port", to);
  }
  return {};
}

std::string check_numbers(const LoadOptions& options) {
  if (options.connections == 0) return "--connections 0: use at least 1";
  if (options.size == 0) return "--size 0: an empty message has no echo; use at least 1 byte";
  if (options.size > kSizeMax) {
    return fmt::format("--size {}: at most {}", options.size, option_text(kSizeMax));
  }
  if (options.depth == 0) return "--depth 0: nothing would be sent; use at least 1";
  if (options.depth > kDepthMax) {
    return fmt::format("--depth {}: at most {}", options.depth, kDepthMax);
  }
  if (!(options.seconds > 0 && options.seconds <= kSecondsMax)) {
    return fmt::format("--seconds {}: use a number above 0, at most {:.0f}", options.seconds,
                       kSecondsMax);
  }
  if (options.drain > kDrainMax) return "--drain: at most 1h";
  if (options.slow_reader_given && options.slow_reader == 0) {
    return "--slow-reader 0: nothing would be read; use at least 1 byte a second";
  }
  return {};
}

std::string check_combinations(const LoadOptions& options) {
  if (options.churn && options.half_close) {
    return "--churn and --half-close exclude each other; choose one";
  }
  const LoadMode mode = options.mode();
  if (mode != LoadMode::steady && options.depth != 1) {
    return fmt::format("--depth {}: with --{} a connection carries one message; use --depth 1",
                       options.depth, mode == LoadMode::churn ? "churn" : "half-close");
  }
  if (options.orderly && !options.churn) return "--orderly says how --churn ends; use both";
  if (options.rounds != 0 && mode == LoadMode::steady) {
    return "--rounds counts connections; use it with --churn or --half-close";
  }
  return {};
}

std::string check_means(const LoadOptions& options, const LoadMeans& means) {
  const std::size_t most =
      means.descriptors > kOwnDescriptors ? means.descriptors - kOwnDescriptors : 0;
  if (options.connections > most) {
    return fmt::format(
        "--connections {}: the descriptor limit leaves room for {}; raise it (ulimit -n)",
        options.connections, most);
  }
  // Each message under way has a time. Both factors are bounded by now.
  const std::size_t times = options.connections * options.depth;
  if (times > means.memory / 4 / sizeof(TimePoint)) {
    return fmt::format("--depth {} on {} connections: at most {} messages under way here",
                       options.depth, options.connections, means.memory / 4 / sizeof(TimePoint));
  }
  return {};
}

}  // namespace

std::string find_contradiction(const LoadOptions& options, const LoadMeans& means) {
  std::string found = check_address(options.to);
  if (found.empty()) found = check_numbers(options);
  if (found.empty()) found = check_combinations(options);
  if (found.empty()) found = check_means(options, means);
  return found;
}

}  // namespace penstock::app

// The other end of a trace: reads at a given rate, checks each byte against the payload's pattern, and hashes them.
// Owned by the trace, on a loop that outlives it; the loop's thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <system_error>
#include <vector>

#include "app/trace_payload.h"
#include "penstock/base/clock.h"
#include "penstock/base/result.h"
#include "penstock/loop/event_loop.h"
#include "penstock/os/socket_address.h"
#include "penstock/os/unique_fd.h"

namespace penstock::app {

struct SlowReaderOptions {
  std::size_t receive_buffer =
      std::size_t{128} * 1024;  ///< SO_RCVBUF; the kernel doubles and bounds it (socket(7)).
  std::size_t rate = 0;         ///< Bytes per second; 0: whatever has arrived.
};

class SlowReader {
 public:
  /// `on_end` runs once, on the loop, when the stream has ended and the socket is closed.
  SlowReader(EventLoop& loop, SlowReaderOptions options, std::move_only_function<void()> on_end);
  SlowReader(const SlowReader&) = delete;
  SlowReader& operator=(const SlowReader&) = delete;
  ~SlowReader() { close(); }

  /// Starts to connect and read. Errors: what the kernel says.
  Result<void> connect(const SocketAddress& server);

  /// Its own end of the connection.
  const SocketAddress& address() const noexcept { return address_; }
  /// The receive buffer that the kernel has granted, in bytes.
  int receive_buffer() const noexcept { return receive_buffer_; }
  /// Why it ended, if not by EOF.
  std::error_code error() const noexcept { return error_; }
  std::uint64_t received() const noexcept { return received_; }
  std::uint64_t hash() const noexcept { return hash_.value(); }
  /// Where the first byte came that was not the pattern's.
  std::optional<std::uint64_t> first_wrong_offset() const noexcept { return first_wrong_; }

 private:
  Result<void> open(const SocketAddress& server);
  Result<void> start_reading();
  void read_what_is_due();
  void read(std::size_t most);
  void check(std::span<const std::byte> bytes) noexcept;
  void end(int error);
  void close() noexcept;

  EventLoop& loop_;
  Kernel& kernel_;
  const SlowReaderOptions options_;
  std::move_only_function<void()> on_end_;
  UniqueFd fd_;
  std::optional<WatchId> watch_;
  TimerId timer_;
  TimePoint start_;
  SocketAddress address_;
  std::vector<std::byte> buffer_;
  int receive_buffer_ = 0;
  std::error_code error_;
  std::uint64_t received_ = 0;
  Fnv1a hash_;
  std::optional<std::uint64_t> first_wrong_;
};

}  // namespace penstock::app

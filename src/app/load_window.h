// The messages a connection has under way: how much may be sent, how much is owed, and how long
// each message took. Owner: one connection. It counts bytes and sees none; it allocates only when it
// is made.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "penstock/base/assert.h"
#include "penstock/base/clock.h"

namespace penstock::app {

class LoadWindow {
 public:
  /// Messages of `size` > 0 bytes, at most `depth` > 0 of them under way, at most `messages_max`
  /// in all (0: no end). Throws std::bad_alloc.
  LoadWindow(std::uint64_t size, std::size_t depth, std::uint64_t messages_max)
      : size_(size),
        end_(messages_max == 0 ? std::numeric_limits<std::uint64_t>::max() : messages_max * size),
        sent_at_(depth) {
    reset();
  }

  /// For a new connection.
  void reset() noexcept {
    sent_ = received_ = 0;
    next_stamp_ = newest_ = oldest_ = 0;
    allowed_ = std::min(size_ * sent_at_.size(), end_);
    message_end_ = size_;
  }

  std::uint64_t sent() const noexcept { return sent_; }
  std::uint64_t received() const noexcept { return received_; }
  /// Bytes sent that have not come back.
  std::uint64_t owed() const noexcept { return sent_ - received_; }
  /// Bytes that may be sent now.
  std::uint64_t sendable() const noexcept { return allowed_ - sent_; }
  /// Whether all messages there will be have been sent, or have come back.
  bool all_sent() const noexcept { return sent_ == end_; }
  bool all_back() const noexcept { return received_ == end_; }

  /// `bytes` <= sendable() have been sent. A message begins with its first byte.
  void note_sent(std::uint64_t bytes, TimePoint now) noexcept {
    PENSTOCK_ASSERT(bytes <= sendable(), "more than the window takes");
    sent_ += bytes;
    for (; next_stamp_ < sent_; next_stamp_ += size_) {
      sent_at_[newest_] = now;
      newest_ = next(newest_);
    }
  }

  /// `bytes` <= owed() have come back. Calls record(Duration) for each message that is complete.
  template <class Record>
  void note_received(std::uint64_t bytes, TimePoint now, Record record) {
    PENSTOCK_ASSERT(bytes <= owed(), "more than has been sent");
    received_ += bytes;
    for (; message_end_ <= received_; message_end_ += size_) {
      record(now - sent_at_[oldest_]);
      oldest_ = next(oldest_);
      if (allowed_ < end_) allowed_ += size_;
    }
  }

 private:
  std::size_t next(std::size_t place) const noexcept {
    return place + 1 == sent_at_.size() ? 0 : place + 1;
  }

  std::uint64_t size_;
  std::uint64_t end_;  // of the last message
  std::uint64_t sent_ = 0;
  std::uint64_t received_ = 0;
  std::uint64_t allowed_ = 0;       // how far may be sent
  std::uint64_t next_stamp_ = 0;    // where the next message begins that has no time yet
  std::uint64_t message_end_ = 0;   // of the oldest message under way
  std::vector<TimePoint> sent_at_;  // a ring
  std::size_t newest_ = 0;
  std::size_t oldest_ = 0;
};

}  // namespace penstock::app

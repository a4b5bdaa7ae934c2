// What a readiness back-end needs of the kernel's ways to wait: four verbs over descriptors. Owner:
// one ReadinessBackend; loop's thread. Events are spoken in the bits of epoll, which poll(2)
// shares.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <span>

#include "penstock/base/slot_table.h"

namespace penstock {

/// Names what an event is for, packed in the 64 bits that epoll carries, so that a stale event is
/// recognised.
struct Token {
  enum class Kind : std::uint8_t { wake, stream, listener, watch };

  static constexpr std::uint32_t kGenerationMask = 0xFF'FFFF;

  Kind kind = Kind::wake;
  std::uint32_t generation = 0;  // the low 24 bits of the slot's generation
  std::uint32_t slot = 0;

  static Token of(Kind kind, SlotId id) noexcept {
    return {kind, id.generation & kGenerationMask, id.slot};
  }
  static Token unpacked(std::uint64_t bits) noexcept {
    return {static_cast<Kind>(bits >> 56), static_cast<std::uint32_t>(bits >> 32) & kGenerationMask,
            static_cast<std::uint32_t>(bits)};
  }
  std::uint64_t packed() const noexcept {
    return (std::uint64_t{static_cast<std::uint8_t>(kind)} << 56) |
           (std::uint64_t{generation} << 32) | slot;
  }
  bool names(SlotId id) const noexcept {
    return slot == id.slot && generation == (id.generation & kGenerationMask);
  }
};

/// A way to wait. A descriptor is known at most once (EEXIST). `events` are EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLPRI and, where the selector
/// knows it, EPOLLET.
class Selector {
 public:
  Selector() = default;
  Selector(const Selector&) = delete;
  Selector& operator=(const Selector&) = delete;
  virtual ~Selector() = default;

  // The first three answer 0 or -errno.
  virtual int add(int fd, std::uint32_t events, Token token) = 0;
  /// Re-arms an edge, even when nothing changes.
  virtual int change(int fd, std::uint32_t events, Token token) = 0;
  virtual int remove(int fd) = 0;
  /// Waits at most `timeout` milliseconds (-1: without end). The events are valid until the next
  /// call.
  virtual std::span<const epoll_event> wait(int timeout) = 0;
  /// How many descriptors the last wait() cost time for.
  virtual std::size_t examined() const = 0;
  /// Whether the last wait() answered as many events as it could, so that there may be more.
  virtual bool more_waiting() const = 0;
};

}  // namespace penstock

#include "penstock/frame/router.h"

#include <limits>

namespace penstock {
namespace {

// Its loop is the only one that writes it.
void increment(std::atomic<std::uint64_t>& count) noexcept {
  count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

}  // namespace

MessageRouter::MessageRouter() : route_by_code_(kCodes, 0) { routes_.emplace_back(); }

MessageRouter::~MessageRouter() {
  for (std::atomic<Shard*>& shard : shards_)
    delete shard.load(std::memory_order_relaxed);
}

void MessageRouter::add(std::uint16_t code, Route route) {
  assert_not_in_use();
  PENSTOCK_ASSERT(route_by_code_[code] == 0, "this code has a handler already");
  PENSTOCK_ASSERT(routes_.size() <= std::numeric_limits<std::uint16_t>::max(),
                  "at most 65,535 codes can have handlers");
  routes_.push_back(std::move(route));
  route_by_code_[code] = static_cast<std::uint16_t>(routes_.size() - 1);
}

void MessageRouter::route(TcpConnection& peer, const Packet& packet) const {
  const std::uint16_t index = route_by_code_[packet.code];
  Count& count = shard_of(peer.loop())[index];
  increment(count.received);
  if (index == 0) {
    if (on_unknown_) {
      on_unknown_(peer, packet);
    } else {
      peer.close_with_protocol_error(FrameError::unknown_code);
    }
    return;
  }
  if (const std::error_code refusal = routes_[index](peer, packet.body)) {
    increment(count.refused);
    peer.close_with_protocol_error(refusal);
  }
}

// A slot is used by one loop at a time, and its next loop is made after the one before is gone.
MessageRouter::Shard& MessageRouter::shard_of(const EventLoop& loop) const {
  std::atomic<Shard*>& place = shards_[loop.id().slot];
  Shard* shard = place.load(std::memory_order_relaxed);
  if (shard == nullptr) {
    shard = new Shard(routes_.size());
    place.store(shard, std::memory_order_release);
  }
  return *shard;
}

template <class Member>
std::uint64_t MessageRouter::sum(std::uint16_t route, Member member) const noexcept {
  std::uint64_t total = 0;
  for (const std::atomic<Shard*>& place : shards_) {
    const Shard* const shard = place.load(std::memory_order_acquire);
    if (shard != nullptr) total += ((*shard)[route].*member).load(std::memory_order_relaxed);
  }
  return total;
}

std::uint64_t MessageRouter::received(std::uint16_t code) const noexcept {
  const std::uint16_t route = route_by_code_[code];
  return route == 0 ? 0 : sum(route, &Count::received);
}

std::uint64_t MessageRouter::refused(std::uint16_t code) const noexcept {
  const std::uint16_t route = route_by_code_[code];
  return route == 0 ? 0 : sum(route, &Count::refused);
}

std::uint64_t MessageRouter::unknown() const noexcept { return sum(0, &Count::received); }

}  // namespace penstock

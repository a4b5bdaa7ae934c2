#include "penstock/bytes/output_queue.h"

#include <new>
#include <type_traits>
#include <utility>

namespace penstock {

namespace {

std::span<const std::byte> bytes_of(const std::string& payload) noexcept {
  return std::as_bytes(std::span(payload.data(), payload.size()));
}
std::span<const std::byte> bytes_of(const std::vector<std::byte>& payload) noexcept {
  return payload;
}

std::size_t capacity_of(const std::string& payload) noexcept { return payload.capacity(); }
std::size_t capacity_of(const std::vector<std::byte>& payload) noexcept {
  return payload.capacity();
}

/// A node with `size` bytes behind its header. Throws std::bad_alloc.
Block* make_exact_node(std::size_t size) {
  Block* block = ::new (::operator new(sizeof(Block) + size)) Block;
  block->begin = block->end = block->payload();
  block->room = size;
  block->charge = sizeof(Block) + size;
  block->destroy = [](Block* node, BlockPool&) noexcept { ::operator delete(node); };
  return block;
}

}  // namespace

/// A node that owns what was moved into it.
template <class Payload>
struct OutputQueue::HoldingNode final : Block {
  // A constructor runs after the allocation, so one that fails leaves the argument unmoved.
  explicit HoldingNode(Payload&& moved) noexcept : payload_(std::move(moved)) {
    static_assert(std::is_nothrow_move_constructible_v<Payload>);
    const std::span<const std::byte> bytes = bytes_of(payload_);
    begin = bytes.data();
    end = begin + bytes.size();
    charge = charge_of(payload_);
    destroy = [](Block* node, BlockPool&) noexcept { delete static_cast<HoldingNode*>(node); };
  }

 private:
  Payload payload_;
};

/// Moves from `payload`, but not before the node exists.
template <class Payload>
void OutputQueue::append_holding(Payload& payload) {
  if (payload.empty()) return;
  Block* node = new HoldingNode<Payload>(std::move(payload));
  link(node);
  bytes_ += node->size();
}

void OutputQueue::append(std::string&& payload) { append_holding(payload); }

void OutputQueue::append(std::vector<std::byte>&& payload) { append_holding(payload); }

void OutputQueue::append(BlockPool& pool, SharedBytes&& payload) {
  if (payload.empty()) return;
  MessageNode* message = pool.acquire_message();
  message->hold(std::move(payload), Sharing::together);
  append(message);
}

std::size_t OutputQueue::charge_of(const std::string& payload) noexcept {
  return payload.empty() ? 0 : sizeof(HoldingNode<std::string>) + capacity_of(payload);
}

std::size_t OutputQueue::charge_of(const std::vector<std::byte>& payload) noexcept {
  return payload.empty() ? 0 : sizeof(HoldingNode<std::vector<std::byte>>) + capacity_of(payload);
}

std::size_t OutputQueue::charge_of(const SharedBytes& payload) noexcept {
  return payload.empty() ? 0 : sizeof(MessageNode) + payload.charge();
}

std::size_t OutputQueue::owned_charge_of(const SharedBytes& payload) noexcept {
  return charge_of(payload) - payload.charge();
}

void OutputQueue::append_copy_elsewhere(BlockPool& pool, std::span<const std::byte> payload) {
  if (payload.size() > BlockPool::kPayloadSize) {
    link(make_exact_node(payload.size()));
    write(payload.data(), payload.size());
    return;
  }
  Block* block = pool.acquire();  // All that can fail comes first.
  const std::size_t fitting = room();
  if (fitting > 0) write(payload.data(), fitting);
  link(block);
  write(payload.data() + fitting, payload.size() - fitting);
}

void OutputQueue::append_parts(BlockPool& pool, const MessageParts& pieces) {
  const std::size_t size = pieces.size();
  Block* next = nullptr;  // All that can fail comes first.
  if (size > BlockPool::kPayloadSize) {
    // A size that overflows cannot be allocated either.
    if (size > std::numeric_limits<std::size_t>::max() - sizeof(Block)) throw std::bad_alloc();
    link(make_exact_node(size));
  } else if (size > room()) {
    next = pool.acquire();
  }
  write_through(next, pieces);
}

// Into the room of the last node, and what does not fit there into `next`.
void OutputQueue::write_through(Block* next, const MessageParts& pieces) noexcept {
  for (std::span<const std::byte> piece : {pieces.head, pieces.body, pieces.tail}) {
    const std::size_t fitting = piece.size() < room() ? piece.size() : room();
    if (fitting > 0) write(piece.data(), fitting);
    piece = piece.subspan(fitting);
    if (piece.empty()) continue;
    link(next);
    write(piece.data(), piece.size());
  }
}

}  // namespace penstock

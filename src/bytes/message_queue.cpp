#include "penstock/bytes/message_queue.h"

#include <utility>

namespace penstock {

void MessageQueue::push(MessageNode* message, Lane lane) noexcept {
  (lane == Lane::control ? control_ : normal_).push_back(*message);
  count_in(*message);
}

void MessageQueue::push_droppable(MessageNode* message, std::optional<std::uint64_t> key) {
  if (key) {
    by_key_[*key] = message;  // the last one of that key is the one to replace
    message->has_key = true;
    message->key = *key;
  }
  message->droppable = true;
  if (oldest_droppable_ == nullptr) oldest_droppable_ = message;
  push(message, Lane::normal);
}

std::size_t MessageQueue::charge_of(std::uint64_t key) const noexcept {
  const auto found = by_key_.find(key);
  return found == by_key_.end() ? 0 : found->second->charge;
}

bool MessageQueue::replace(std::uint64_t key, SharedBytes& payload) noexcept {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return false;
  MessageNode& node = *found->second;
  ++dropped_;
  bytes_dropped_ += node.size();
  count_out(node);
  node.hold(std::move(payload), Sharing::together);
  count_in(node);
  return true;
}

bool MessageQueue::drop_oldest(BlockPool& pool) noexcept {
  MessageNode* node = oldest_droppable_;
  if (node == nullptr) return false;
  forget(*node);
  ++dropped_;
  bytes_dropped_ += node->size();
  pool.release_message(node);
  return true;
}

MessageNode* MessageQueue::pop() noexcept {
  MessageNode* node = control_.empty() ? normal_.front() : control_.front();
  if (node != nullptr) forget(*node);
  return node;
}

void MessageQueue::clear(BlockPool& pool) noexcept {
  while (MessageNode* node = pop())
    pool.release_message(node);
}

// Out of every index. Those behind it that may not be dropped are passed over once and for all.
void MessageQueue::forget(MessageNode& node) noexcept {
  if (&node == oldest_droppable_) {
    do {
      oldest_droppable_ = normal_.next(*oldest_droppable_);
    } while (oldest_droppable_ != nullptr && !oldest_droppable_->droppable);
  }
  if (node.has_key) {
    const auto found = by_key_.find(node.key);
    if (found != by_key_.end() && found->second == &node) by_key_.erase(found);
  }
  static_cast<ListLink<MessageTag>&>(node).unlink();
  count_out(node);
}

void MessageQueue::count_in(const MessageNode& node) noexcept {
  bytes_ += node.size();
  charge_ += node.charge;
  shared_charge_ += node.shared_charge;
  if (node.droppable) droppable_charge_ += node.charge;
}

void MessageQueue::count_out(const MessageNode& node) noexcept {
  bytes_ -= node.size();
  charge_ -= node.charge;
  shared_charge_ -= node.shared_charge;
  if (node.droppable) droppable_charge_ -= node.charge;
}

}  // namespace penstock

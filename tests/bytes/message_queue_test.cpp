#include "penstock/bytes/message_queue.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "failing_allocation.h"
#include "gtest/gtest.h"
#include "rapidcheck.h"
#include "rapidcheck/gtest.h"

namespace penstock::test {
namespace {

std::string text_of(const SharedBytes& shared) {
  return {reinterpret_cast<const char*>(shared.bytes().data()), shared.size()};
}

struct PooledMessages {
  BlockPool pool;
  MessageQueue queue;

  ~PooledMessages() { queue.clear(pool); }

  MessageNode* node(const std::string& text) {
    MessageNode* message = pool.acquire_message();
    message->hold(SharedBytes::copy_of(text), Sharing::together);
    return message;
  }
  void push(const std::string& text, Lane lane = Lane::normal) { queue.push(node(text), lane); }
  void push_droppable(const std::string& text, std::optional<std::uint64_t> key = {}) {
    queue.push_droppable(node(text), key);
  }
  bool replace(std::uint64_t key, const std::string& text) {
    SharedBytes bytes = SharedBytes::copy_of(text);
    return queue.replace(key, bytes);
  }
  /// The next message; nothing when none is left.
  std::optional<std::string> pop() {
    MessageNode* message = queue.pop();
    if (message == nullptr) return std::nullopt;
    std::string text = text_of(message->payload);
    pool.release_message(message);
    return text;
  }
  std::vector<std::string> pop_all() {
    std::vector<std::string> all;
    while (std::optional<std::string> text = pop())
      all.push_back(*text);
    return all;
  }
};

using Texts = std::vector<std::string>;

TEST(MessageQueue, messages_leave_in_order_the_control_lane_first) {
  PooledMessages messages;
  messages.push_droppable("a");
  messages.push("b");
  messages.push("ping", Lane::control);
  messages.push_droppable("c");
  messages.push("pong", Lane::control);
  EXPECT_EQ(messages.pop_all(), (Texts{"ping", "pong", "a", "b", "c"}));
  EXPECT_TRUE(messages.queue.empty());
  EXPECT_EQ(messages.queue.charge(), 0U);
}

TEST(MessageQueue, only_droppable_ones_are_dropped_the_oldest_first) {
  PooledMessages messages;
  messages.push("kept 1");
  messages.push_droppable("a");
  messages.push("kept 2");
  messages.push("control", Lane::control);
  messages.push_droppable("bb");
  EXPECT_TRUE(messages.queue.drop_oldest(messages.pool));
  EXPECT_TRUE(messages.queue.drop_oldest(messages.pool));
  EXPECT_FALSE(messages.queue.drop_oldest(messages.pool));
  EXPECT_EQ(messages.queue.dropped(), 2U);
  EXPECT_EQ(messages.queue.bytes_dropped(), 3U);
  EXPECT_EQ(messages.pop_all(), (Texts{"control", "kept 1", "kept 2"}));
}

TEST(MessageQueue, a_message_takes_the_place_of_the_one_with_its_key) {
  PooledMessages messages;
  messages.push_droppable("price 1", 7);
  messages.push_droppable("news");
  messages.push_droppable("weather", 8);
  EXPECT_FALSE(messages.replace(9, "nothing waits with that key"));
  EXPECT_TRUE(messages.replace(7, "price 20"));
  EXPECT_EQ(messages.queue.bytes(), 8U + 4U + 7U);
  EXPECT_EQ(messages.queue.dropped(), 1U);
  EXPECT_EQ(messages.queue.bytes_dropped(), 7U);
  EXPECT_EQ(messages.pop(), "price 20");
  EXPECT_FALSE(messages.replace(7, "it has left"));
  EXPECT_TRUE(messages.queue.drop_oldest(messages.pool));
  EXPECT_TRUE(messages.queue.drop_oldest(messages.pool));
  EXPECT_FALSE(messages.replace(8, "it was dropped"));
}

TEST(MessageQueue, of_two_with_one_key_the_later_is_replaced) {
  PooledMessages messages;
  messages.push_droppable("first", 1);
  messages.push_droppable("second", 1);
  EXPECT_TRUE(messages.replace(1, "third"));
  EXPECT_EQ(messages.pop(), "first");
  EXPECT_TRUE(messages.replace(1, "fourth")) << "its key still names the one that waits";
  EXPECT_EQ(messages.pop_all(), (Texts{"fourth"}));
}

TEST(MessageQueue, shared_payloads_are_charged_apart) {
  PooledMessages messages;
  const SharedBytes shared{std::string(1000, 'x')};
  MessageNode* together = messages.pool.acquire_message();
  together->hold(SharedBytes(shared), Sharing::together);
  messages.queue.push(together, Lane::normal);
  EXPECT_EQ(messages.queue.charge(), sizeof(MessageNode) + shared.charge());
  EXPECT_EQ(messages.queue.owned_charge(), sizeof(MessageNode));
  MessageNode* alone = messages.pool.acquire_message();
  alone->hold(SharedBytes(std::string(1000, 'y')), Sharing::alone);
  messages.queue.push(alone, Lane::normal);
  EXPECT_EQ(messages.queue.owned_charge(), 2 * sizeof(MessageNode) + shared.charge());
}

TEST(MessageQueue, a_key_that_finds_no_memory_appends_nothing) {
  PooledMessages messages;
  messages.push_droppable("before", 1);
  MessageNode* message = messages.node("after");
  {
    const FailingAllocation failing;
    EXPECT_THROW(messages.queue.push_droppable(message, 2), std::bad_alloc);
    EXPECT_TRUE(failing.happened());
  }
  messages.pool.release_message(message);
  EXPECT_EQ(messages.pop_all(), (Texts{"before"}));
}

/// The queue as a list of what waits.
struct Model {
  struct Message {
    std::string text;
    std::optional<std::uint64_t> key;
    bool droppable;
  };
  std::deque<Message> control;
  std::deque<Message> normal;
  std::uint64_t dropped = 0;

  bool replace(std::uint64_t key, const std::string& text) {
    const auto found = std::find_if(normal.rbegin(), normal.rend(),
                                    [&](const Message& each) { return each.key == key; });
    if (found == normal.rend()) return false;
    found->text = text;
    ++dropped;
    return true;
  }
  bool drop_oldest() {
    const auto found = std::ranges::find(normal, true, &Message::droppable);
    if (found == normal.end()) return false;
    normal.erase(found);
    ++dropped;
    return true;
  }
  std::optional<std::string> pop() {
    std::deque<Message>& lane = control.empty() ? normal : control;
    if (lane.empty()) return std::nullopt;
    std::string text = lane.front().text;
    lane.pop_front();
    return text;
  }
  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const std::deque<Message>* lane : {&control, &normal}) {
      for (const Message& each : *lane)
        sum += each.text.size();
    }
    return sum;
  }
};

RC_GTEST_PROP(MessageQueue, does_what_a_list_does, ()) {
  PooledMessages messages;
  Model model;
  const int steps = *rc::gen::inRange(1, 200);
  for (int step = 0; step < steps; ++step) {
    const std::string text = std::to_string(step);
    const auto key = static_cast<std::uint64_t>(*rc::gen::inRange(0, 4));
    switch (*rc::gen::inRange(0, 6)) {
      case 0:
        messages.push(text);
        model.normal.push_back({text, {}, false});
        break;
      case 1:
        messages.push(text, Lane::control);
        model.control.push_back({text, {}, false});
        break;
      case 2:
        messages.push_droppable(text);
        model.normal.push_back({text, {}, true});
        break;
      case 3: {
        const bool replaced = messages.replace(key, text);
        RC_ASSERT(replaced == model.replace(key, text));
        if (replaced) break;
        messages.push_droppable(text, key);
        model.normal.push_back({text, key, true});
        break;
      }
      case 4:
        RC_ASSERT(messages.queue.drop_oldest(messages.pool) == model.drop_oldest());
        break;
      default:
        RC_ASSERT(messages.pop() == model.pop());
        break;
    }
    RC_ASSERT(messages.queue.bytes() == model.bytes());
    RC_ASSERT(messages.queue.dropped() == model.dropped);
    RC_ASSERT(messages.queue.empty() == (model.control.empty() && model.normal.empty()));
  }
  while (const std::optional<std::string> text = model.pop())
    RC_ASSERT(messages.pop() == text);
  RC_ASSERT(messages.queue.empty());
}

}  // namespace
}  // namespace penstock::test

// Handles: sending, ending and posting from any thread, to connections that may be gone (R17, R24, R25, XT3).
#include "penstock/tcp/connection_handle.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <latch>
#include <memory>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "support/loop_thread.h"
#include "support/world.h"

namespace penstock::test {
namespace {

class HandleTest : public ConformanceTest {
 protected:
  std::uint64_t stale_drops() { return ConnectionTable::of(world.loop).statistics().stale_drops; }
  /// What the client gets until the end, the loop turning meanwhile.
  Received received_to_end(const UniqueFd& client) {
    Received all{.result = -EAGAIN, .text = {}};
    EXPECT_TRUE(world.run_until([&] {
      const Received some = receive(linux_kernel(), client.get());
      all.text += some.text;
      all.result = some.result;
      return some.result <= 0 && some.result != -EAGAIN;
    }));
    return all;
  }
  /// Adopts one end of a pair into `loop`, which does not run or is the caller's; `client` gets the other.
  static ConnectionHandle adopt(EventLoop& loop, UniqueFd& client,
                                ConnectionCallbacks callbacks = {}) {
    SocketPair pair = tcp_pair(linux_kernel());
    client = std::move(pair.client);
    return ConnectionTable::of(loop)
        .adopt(std::move(pair.server), SocketAddress(), make_behaviour(std::move(callbacks)),
               nullptr)
        .value();
  }
};

PENSTOCK_ON_EVERY_BACKEND(HandleTest);

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

TEST_P(HandleTest, payloads_of_every_kind_leave_in_the_order_sent) {
  World::Link link = world.connect();
  const std::vector<std::byte> five = bytes_of("5");
  EXPECT_EQ(link.handle.send(std::string("1")), PostResult::posted);
  EXPECT_EQ(link.handle.send(bytes_of("2")), PostResult::posted);
  EXPECT_EQ(link.handle.send(std::string_view("3")), PostResult::posted);
  EXPECT_EQ(link.handle.send("4"), PostResult::posted);
  EXPECT_EQ(link.handle.send(std::span<const std::byte>(five)), PostResult::posted);
  EXPECT_EQ(link.handle.send(std::string(100'000, '6')), PostResult::posted);
  EXPECT_EQ(link.handle.send("7"), PostResult::posted);
  EXPECT_EQ(link.handle.finish(), PostResult::posted);
  const Received all = received_to_end(link.client);
  EXPECT_EQ(all.text, "12345" + std::string(100'000, '6') + "7");
  EXPECT_EQ(all.result, 0) << "FIN behind the last byte";
}

TEST_P(HandleTest, close_delivers_what_was_sent_before_and_abort_resets) {
  World::Link closing = world.connect();
  static_cast<void>(closing.handle.send("all of it"));
  static_cast<void>(closing.handle.close());
  const Received all = received_to_end(closing.client);
  EXPECT_EQ(all.text, "all of it");
  EXPECT_EQ(all.result, 0);

  World::Link aborting = world.connect();
  static_cast<void>(aborting.handle.abort());
  EXPECT_EQ(received_to_end(aborting.client).result, -ECONNRESET);
  ASSERT_TRUE(world.run_until([&] { return aborting.record->closes == 1; }));
  EXPECT_EQ(aborting.record->report->reason, CloseReason::local);
}

TEST_P(HandleTest, a_visit_runs_on_the_loop_with_the_connection_and_in_order) {
  World::Link link = world.connect();
  std::vector<int> order;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(link.handle.post([&, i](TcpConnection& connection) {
      EXPECT_TRUE(world.loop.in_loop());
      EXPECT_EQ(&connection, link.connection);
      EXPECT_EQ(connection.handle(), link.handle);
      order.push_back(i);
    }),
              PostResult::posted);
  }
  EXPECT_TRUE(order.empty());
  world.turn();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
}

TEST_P(HandleTest, a_visit_that_throws_is_counted_and_the_loop_goes_on) {
  World::Link link = world.connect();
  static_cast<void>(link.handle.post([](TcpConnection&) { throw std::runtime_error("visit"); }));
  static_cast<void>(link.handle.send("after"));
  ASSERT_TRUE(world.run_until([&] { return world.loop.statistics().exceptions == 1; }));
  wait_for(linux_kernel(), link.client.get(), POLLIN);
  EXPECT_EQ(receive(linux_kernel(), link.client.get()).text, "after");
}

TEST_P(HandleTest, a_handle_of_no_connection_answers_closed_and_takes_nothing) {
  const ConnectionHandle none;
  std::string payload = "a payload that is too long for the string itself to hold";
  const void* memory = payload.data();
  EXPECT_EQ(none.send(std::move(payload)), PostResult::closed);
  EXPECT_EQ(payload, "a payload that is too long for the string itself to hold");
  EXPECT_EQ(payload.data(), memory);
  EXPECT_EQ(none.finish(), PostResult::closed);
  EXPECT_EQ(none.close(), PostResult::closed);
  EXPECT_EQ(none.abort(), PostResult::closed);
  EXPECT_EQ(none.post([](TcpConnection&) { FAIL(); }), PostResult::closed);
}

TEST_P(HandleTest, over_the_bound_of_posted_bytes_a_send_is_full_and_leaves_the_payload) {
  EventLoop loop({.backend = GetParam(), .posted_bytes_max = 10'000});
  UniqueFd client;
  const ConnectionHandle handle = adopt(loop, client);
  std::string text(8'000, 't');
  EXPECT_EQ(handle.send(std::move(text)), PostResult::posted);
  std::string again(8'000, 'a');
  const void* memory = again.data();
  EXPECT_EQ(handle.send(std::move(again)), PostResult::full);
  EXPECT_EQ(again, std::string(8'000, 'a'));
  EXPECT_EQ(again.data(), memory) << "unmoved, not copied";
  std::vector<std::byte> bytes(8'000, std::byte{7});
  const std::vector<std::byte> expected = bytes;
  EXPECT_EQ(handle.send(std::move(bytes)), PostResult::full);
  EXPECT_EQ(bytes, expected);
  // Larger than the bound: never.
  EXPECT_EQ(handle.send(std::string(20'000, 'x')), PostResult::full);
  loop.step();
  EXPECT_EQ(handle.send(std::move(again)), PostResult::posted) << "what ran has made room";
  static_cast<void>(handle.abort());
  loop.step();
}

// R25: the slot has a new tenant.
TEST_P(HandleTest, what_is_sent_to_a_connection_that_has_gone_never_reaches_its_successor) {
  World::Link old = world.connect();
  const std::uint32_t slot = old.connection->id().slot;
  const ConnectionHandle stale = old.handle;
  static_cast<void>(stale.abort());
  ASSERT_TRUE(world.run_until([&] { return old.record->closes == 1; }));
  world.turn();
  EXPECT_EQ(stale_drops(), 0U);
  World::Link fresh = world.connect();
  ASSERT_EQ(fresh.connection->id().slot, slot) << "the test is about reuse";
  EXPECT_NE(fresh.handle, stale);
  static_cast<void>(stale.send("foreign"));
  static_cast<void>(stale.send(std::string(100'000, 'f')));
  static_cast<void>(stale.finish());
  static_cast<void>(stale.close());
  static_cast<void>(stale.abort());
  static_cast<void>(stale.post([](TcpConnection&) { FAIL(); }));
  static_cast<void>(fresh.handle.send("own"));
  static_cast<void>(fresh.handle.finish());
  const Received all = received_to_end(fresh.client);
  EXPECT_EQ(all.text, "own");
  EXPECT_EQ(all.result, 0);
  EXPECT_EQ(stale_drops(), 6U);
}

TEST_P(HandleTest, what_waits_behind_an_abort_in_the_same_batch_is_dropped_and_counted) {
  World::Link link = world.connect();
  static_cast<void>(link.handle.send("before"));
  static_cast<void>(link.handle.abort());
  static_cast<void>(link.handle.send("behind"));
  static_cast<void>(link.handle.post([](TcpConnection&) { FAIL(); }));
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(stale_drops(), 2U);
  EXPECT_EQ(link.record->count("close"), 1U);
}

// R25, R27: accepted by the handle, refused by the connection: it must be counted somewhere.
TEST_P(HandleTest, what_waits_behind_a_close_is_dropped_and_counted_or_reported) {
  World::Link link = world.connect();
  static_cast<void>(link.handle.close());
  static_cast<void>(link.handle.send("too late"));
  const Received all = received_to_end(link.client);
  EXPECT_EQ(all.text, "");
  link.client.reset();
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(stale_drops() + link.record->report->bytes_discarded / 8, 1U)
      << "accepted, discarded, and nobody is told";
}

TEST_P(HandleTest, dropped_payloads_are_freed) {
  World::Link link = world.connect();
  static_cast<void>(link.handle.abort());
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> alive = held;
  static_cast<void>(link.handle.post([held = std::move(held)](TcpConnection&) { ++*held; }));
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_TRUE(alive.expired());
}

// RE10
TEST_P(HandleTest, a_handle_whose_loop_is_gone_answers_closed_also_when_another_loop_follows) {
  ConnectionHandle handle;
  UniqueFd client;
  {
    EventLoop loop({.backend = GetParam()});
    handle = adopt(loop, client);
    loop.step();
  }
  EXPECT_EQ(handle.send("nobody"), PostResult::closed);
  EventLoop successor({.backend = GetParam()});
  UniqueFd other_client;
  const ConnectionHandle other = adopt(successor, other_client);
  EXPECT_NE(other, handle);
  std::string payload(10'000, 'p');
  EXPECT_EQ(handle.send(std::move(payload)), PostResult::closed);
  EXPECT_EQ(payload.size(), 10'000U);
  EXPECT_EQ(handle.abort(), PostResult::closed);
  successor.step();
  EXPECT_EQ(receive(linux_kernel(), other_client.get()).result, -EAGAIN);
  EXPECT_EQ(ConnectionTable::of(successor).statistics().stale_drops, 0U);
}

TEST_P(HandleTest, each_threads_messages_arrive_whole_and_in_its_order) {
  constexpr int kThreads = 3;
  constexpr int kMessages = 2000;
  LoopThread thread({.backend = GetParam()});
  UniqueFd client;
  ConnectionHandle handle;
  std::latch adopted(1);
  thread.loop.queue_in_loop([&] {
    handle = adopt(thread.loop, client);
    adopted.count_down();
  });
  adopted.wait();
  std::vector<std::thread> senders;
  std::atomic<int> running{kThreads};
  for (int index = 0; index < kThreads; ++index) {
    senders.emplace_back([&, index] {
      for (int number = 0; number < kMessages; ++number) {
        EXPECT_EQ(handle.send(std::to_string(index) + ' ' + std::to_string(number) + '\n'),
                  PostResult::posted);
      }
      if (--running == 0) static_cast<void>(handle.close());
    });
  }
  const Received all = receive_to_end(linux_kernel(), client.get());
  for (std::thread& sender : senders)
    sender.join();
  EXPECT_EQ(all.result, 0);
  std::array<int, kThreads> next{};
  std::istringstream lines(all.text);
  std::size_t index = 0;
  int number = 0;
  while (lines >> index >> number) {
    ASSERT_LT(index, next.size());
    ASSERT_EQ(number, next.at(index)++);
  }
  for (const int count : next)
    EXPECT_EQ(count, kMessages);
}

// XT3: each message is there as a whole or not at all.
TEST_P(HandleTest, a_send_while_the_connection_closes_is_whole_or_nothing) {
  for (int round = 0; round < 30; ++round) {
    LoopThread thread({.backend = GetParam()});
    UniqueFd client;
    ConnectionHandle handle;
    std::latch adopted(1);
    thread.loop.queue_in_loop([&] {
      handle = adopt(thread.loop, client);
      adopted.count_down();
    });
    adopted.wait();
    const std::string message(5'000, 'm');
    std::thread sender([&] {
      for (int i = 0; i < 20; ++i)
        EXPECT_EQ(handle.send(message), PostResult::posted);
    });
    std::thread closer([&] { static_cast<void>(handle.close()); });
    const Received all = receive_to_end(linux_kernel(), client.get());
    EXPECT_EQ(all.result, 0);
    EXPECT_EQ(all.text.size() % message.size(), 0U);
    sender.join();
    closer.join();
  }
}

// R24: whatever is posted is bounded, shared payloads by the memory budget of the loops.
TEST(HandleBudgetTest, shared_payloads_under_way_are_bounded_by_the_memory_budget) {
  constexpr std::size_t kMiB = std::size_t{1024} * 1024;
  const auto budget = make_counted<MemoryBudget>(4 * kMiB);
  EventLoop loop({.memory_budget = budget});
  SocketPair pair = tcp_pair(linux_kernel());
  const ConnectionHandle handle =
      ConnectionTable::of(loop)
          .adopt(std::move(pair.server), SocketAddress(), make_behaviour({}), nullptr)
          .value();
  int posted = 0;
  while (posted < 100 && handle.send(SharedBytes(std::string(kMiB, 'x'))) == PostResult::posted) {
    ++posted;
  }
  EXPECT_GE(posted, 2);
  EXPECT_LE(posted, 4);
  // One payload, sent often, counts once.
  const auto roomy = make_counted<MemoryBudget>(4 * kMiB);
  EventLoop other({.memory_budget = roomy});
  SocketPair second = tcp_pair(linux_kernel());
  const ConnectionHandle elsewhere =
      ConnectionTable::of(other)
          .adopt(std::move(second.server), SocketAddress(), make_behaviour({}), nullptr)
          .value();
  const SharedBytes shared(std::string(kMiB, 'y'));
  for (int i = 0; i < 50; ++i)
    EXPECT_EQ(elsewhere.send(shared), PostResult::posted);
}

}  // namespace
}  // namespace penstock::test

// Groups across loops that run in threads of their own, and what a broadcast allocates (R24, R25, R27).
#include "penstock/tcp/connection_group.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <latch>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bytes/failing_allocation.h"
#include "penstock/tcp/adopt.h"
#include "support/loop_thread.h"
#include "support/world.h"

namespace penstock::test {
namespace {

/// One message: who sent it, and which of his it is.
struct Stamp {
  std::uint32_t producer;
  std::uint32_t number;
};
constexpr std::size_t kStampSize = 512;

SharedBytes stamped(Stamp stamp) {
  std::string bytes(kStampSize, static_cast<char>('a' + stamp.number % 26));
  std::memcpy(bytes.data(), &stamp, sizeof stamp);
  return SharedBytes(std::move(bytes));
}

class ConnectionGroupTest : public testing::TestWithParam<Backend> {};

PENSTOCK_ON_EVERY_BACKEND(ConnectionGroupTest);

// No copy is shown at the seam (Messages.OfOneTurnLeaveInOneGatheredCallAndUncopied).
TEST_P(ConnectionGroupTest, a_broadcast_allocates_at_most_once_per_message_and_loop) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "the deferring back-end allocates for itself");
  EventLoop loop({.backend = GetParam()});
  ConnectionGroup group;
  std::vector<UniqueFd> clients;
  constexpr std::size_t kMembers = 200;
  const BehaviourPtr behaviour = make_behaviour({});
  for (std::size_t i = 0; i < kMembers; ++i) {
    SocketPair pair = tcp_pair(linux_kernel());
    const auto handle = adopt_connection(loop, std::move(pair.server), behaviour);
    ASSERT_TRUE(handle.has_value());
    ASSERT_EQ(handle->post([&](TcpConnection& peer) { group.add(peer); }), PostResult::posted);
    clients.push_back(std::move(pair.client));
  }
  while (group.size() < kMembers)
    loop.step();
  std::string received(4096, '\0');
  std::size_t allocated = 0;
  constexpr std::uint32_t kMessages = 20;
  for (std::uint32_t i = 0; i < kMessages; ++i) {
    SharedBytes message = stamped({0, i});
    const std::size_t before = allocations();
    static_cast<void>(group.send(std::move(message)));
    loop.step();
    // The first ones fill the pool of nodes, and the vectors that the mailbox swaps.
    if (i >= 4) allocated += allocations() - before;
    for (const UniqueFd& client : clients) {
      wait_for(linux_kernel(), client.get(), POLLIN);
      ASSERT_EQ(linux_kernel().recv(client.get(), received.data(), received.size(), 0),
                static_cast<ssize_t>(kStampSize));
    }
  }
  EXPECT_LE(allocated, kMessages - 4) << "more than one per message";
}

// Those that do not read cost an allocation for each message that begins to wait, and none once what
// may wait is there: from then on a message takes the place of one that is dropped.
TEST_P(ConnectionGroupTest,
       members_that_do_not_read_cost_no_allocation_once_their_backlog_is_full) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "the deferring back-end allocates for itself");
  EventLoop loop({.backend = GetParam()});
  ConnectionGroup group;
  constexpr std::size_t kMembers = 40;
  constexpr std::size_t kStalled = 4;
  constexpr std::size_t kSize = 1024;
  ConnectionLimits limits;
  limits.slow_consumer = SlowConsumer::drop_oldest;
  limits.backlog_max = std::size_t{16} * 1024;
  const BehaviourPtr behaviour = make_behaviour({}, limits);
  std::vector<UniqueFd> clients;
  std::vector<TcpConnection*> members;
  for (std::size_t i = 0; i < kMembers; ++i) {
    SocketPair pair = tcp_pair(linux_kernel());
    const auto handle = adopt_connection(loop, std::move(pair.server), behaviour);
    ASSERT_TRUE(handle.has_value());
    ASSERT_EQ(handle->post([&](TcpConnection& peer) {
      group.add(peer);
      members.push_back(&peer);
    }),
              PostResult::posted);
    clients.push_back(std::move(pair.client));
  }
  while (group.size() < kMembers)
    loop.step();
  std::string received(kSize, '\0');
  // Answers the allocations of sending one message; the first kStalled members do not read it.
  const auto publish = [&] {
    SharedBytes message{std::string(kSize, 'm')};
    const std::size_t before = allocations();
    static_cast<void>(group.send(std::move(message)));
    loop.step();
    const std::size_t made = allocations() - before;
    for (std::size_t i = kStalled; i < kMembers; ++i) {
      std::size_t size = 0;
      while (size < kSize) {
        wait_for(linux_kernel(), clients[i].get(), POLLIN);
        const ssize_t count =
            linux_kernel().recv(clients[i].get(), received.data(), kSize - size, 0);
        if (count <= 0) {
          ADD_FAILURE() << "a member that reads has lost its connection: " << count;
          return made;
        }
        size += static_cast<std::size_t>(count);
      }
    }
    return made;
  };
  const auto all_drop = [&] {
    return std::all_of(members.begin(), members.begin() + kStalled,
                       [](TcpConnection* member) { return member->messages_dropped() > 4; });
  };
  for (int i = 0; i < 20'000 && !all_drop(); ++i)
    publish();
  ASSERT_TRUE(all_drop()) << "the kernel takes all";
  constexpr std::size_t kMessages = 32;
  std::size_t allocated = 0;
  for (std::size_t i = 0; i < kMessages; ++i)
    allocated += publish();
  EXPECT_LE(allocated, kMessages) << "more than one per message";
}

// R24, R27: several publishers, members that come and go, and a stop in the middle. Each member sees
// the messages of each publisher in order, without a gap from its first on, and whole.
TEST_P(ConnectionGroupTest, members_on_many_loops_see_each_publishers_messages_in_order) {
  constexpr std::size_t kLoops = 3;
  constexpr std::size_t kStaying = 12;
  constexpr std::uint32_t kMessages = 300;
  constexpr std::uint32_t kPublishers = 2;
  TcpServer server({.loops = kLoops, .backend = GetParam()});
  ConnectionGroup group;
  std::atomic<std::size_t> joined{0};
  server.on_message([&](TcpConnection& peer, InputBuffer& in) {
    in.take();
    group.add(peer);
    ++joined;
  });
  std::latch listening(1);
  server.on_listening([&] { listening.count_down(); });
  std::thread serving([&] { EXPECT_EQ(server.run(), 0); });
  listening.wait();

  const auto join = [&] {
    UniqueFd client = start_connect(linux_kernel(), server.address());
    wait_for(linux_kernel(), client.get(), POLLOUT);
    EXPECT_EQ(send_text(linux_kernel(), client.get(), "join"), 4);
    return client;
  };
  std::vector<UniqueFd> staying;
  for (std::size_t i = 0; i < kStaying; ++i)
    staying.push_back(join());
  ASSERT_TRUE(eventually([&] { return joined.load() == kStaying; }));

  std::vector<std::thread> publishers;
  for (std::uint32_t producer = 0; producer < kPublishers; ++producer) {
    publishers.emplace_back([&, producer] {
      for (std::uint32_t number = 0; number < kMessages; ++number) {
        // Its bound of posted bytes is far away.
        EXPECT_EQ(group.send(stamped({producer, number})).loops_full, 0U);
      }
    });
  }
  for (int i = 0; i < 30; ++i)
    join().reset();  // and gone again, perhaps in the middle of a broadcast
  for (std::thread& publisher : publishers)
    publisher.join();

  for (const UniqueFd& client : staying) {
    std::array<std::uint32_t, kPublishers> next{};
    std::string text;
    while (text.size() < std::size_t{kPublishers} * kMessages * kStampSize) {
      wait_for(linux_kernel(), client.get(), POLLIN);
      const Received some = receive(linux_kernel(), client.get());
      ASSERT_GT(some.result, 0);
      text += some.text;
    }
    for (std::size_t at = 0; at < text.size(); at += kStampSize) {
      Stamp stamp{};
      std::memcpy(&stamp, text.data() + at, sizeof stamp);
      ASSERT_LT(stamp.producer, kPublishers);
      ASSERT_EQ(stamp.number, next[stamp.producer]++);
      ASSERT_EQ(text[at + kStampSize - 1], static_cast<char>('a' + stamp.number % 26));
    }
  }
  staying.clear();
  EXPECT_TRUE(eventually([&] { return group.size() == 0; })) << "who ended is still a member";
  server.stop();
  serving.join();
}

TEST_P(ConnectionGroupTest, a_group_outlives_its_loops_and_then_has_nobody) {
  ConnectionGroup group;
  UniqueFd client;
  {
    LoopThread thread({.backend = GetParam()});
    SocketPair pair = tcp_pair(linux_kernel());
    client = std::move(pair.client);
    std::latch added(1);
    thread.loop.queue_in_loop([&] {
      const auto handle = adopt_connection(thread.loop, std::move(pair.server), make_behaviour({}));
      ASSERT_TRUE(handle.has_value());
      EXPECT_EQ(handle->post([&](TcpConnection& peer) {
        group.add(peer);
        added.count_down();
      }),
                PostResult::posted);
    });
    added.wait();
    EXPECT_EQ(group.send(stamped({0, 0})).loops_posted, 1U);
  }
  EXPECT_EQ(group.size(), 0U);
  const BroadcastResult result = group.send(stamped({0, 1}));
  EXPECT_EQ(result.loops_posted, 0U);
  EXPECT_EQ(result.loops_full, 0U);
}

TEST_P(ConnectionGroupTest, a_group_may_be_destroyed_while_its_loops_run) {
  LoopThread thread({.backend = GetParam()});
  for (int round = 0; round < 20; ++round) {
    auto group = std::make_unique<ConnectionGroup>();
    SocketPair pair = tcp_pair(linux_kernel());
    std::latch added(1);
    std::atomic<bool> closed{false};
    ConnectionCallbacks callbacks;
    callbacks.on_connect = [&](TcpConnection& peer) {
      group->add(peer);
      added.count_down();
    };
    callbacks.on_close = [&](TcpConnection&, const CloseReport&) { closed = true; };
    thread.loop.queue_in_loop([&] {
      EXPECT_TRUE(adopt_connection(thread.loop, std::move(pair.server),
                                   make_behaviour(std::move(callbacks))));
    });
    added.wait();
    static_cast<void>(group->send(stamped({0, 0})));
    if (round % 2 == 0) {
      group.reset();
      pair.client.reset();
    } else {
      pair.client.reset();
      group.reset();
    }
    EXPECT_TRUE(eventually([&] { return closed.load(); }));
  }
}

TEST_P(ConnectionGroupTest, a_broadcast_finds_connections_on_every_loop) {
  std::array<std::unique_ptr<LoopThread>, 3> threads;
  std::vector<UniqueFd> clients;
  std::vector<ConnectionHandle> handles;
  std::mutex mutex;
  for (auto& thread : threads) {
    thread = std::make_unique<LoopThread>(EventLoopOptions{.backend = GetParam()});
    for (int i = 0; i < 3; ++i) {
      SocketPair pair = tcp_pair(linux_kernel());
      clients.push_back(std::move(pair.client));
      std::latch adopted(1);
      thread->loop.queue_in_loop([&] {
        const auto handle =
            adopt_connection(thread->loop, std::move(pair.server), make_behaviour({}));
        ASSERT_TRUE(handle.has_value());
        const std::lock_guard lock(mutex);
        handles.push_back(*handle);
        adopted.count_down();
      });
      adopted.wait();
    }
  }
  EXPECT_EQ(broadcast(handles, stamped({0, 0})).loops_posted, 3U);
  for (const UniqueFd& client : clients) {
    wait_for(linux_kernel(), client.get(), POLLIN);
    EXPECT_EQ(receive(linux_kernel(), client.get()).result, static_cast<ssize_t>(kStampSize));
  }
}

}  // namespace
}  // namespace penstock::test

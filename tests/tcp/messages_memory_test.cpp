// Messages that waited, on their way out without memory. On a loop without a FaultyKernel, which would
// allocate too.
#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "bytes/failing_allocation.h"
#include "penstock/tcp/adopt.h"
#include "penstock/tcp/connection_table.h"
#include "support/world.h"

namespace penstock::test {
namespace {

class MessagesMemoryTest : public testing::TestWithParam<Backend> {};

PENSTOCK_ON_EVERY_BACKEND(MessagesMemoryTest);

// B9: a copy that cannot be made is not needed.
TEST_P(MessagesMemoryTest, small_messages_that_waited_arrive_whichever_allocation_fails) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "the deferring back-end allocates for itself");
  constexpr int kMessages = 400;
  std::size_t failed = 0;
  for (std::size_t which = 0; which < 8; ++which) {
    SCOPED_TRACE(which);
    EventLoop loop({.backend = GetParam()});
    SocketPair pair = tcp_pair(linux_kernel());
    const int small = 16 * 1024;
    linux_kernel().setsockopt(pair.server.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    linux_kernel().setsockopt(pair.client.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    ConnectionLimits limits;
    limits.slow_consumer = SlowConsumer::drop_oldest;
    const auto handle = adopt_connection(loop, std::move(pair.server), make_behaviour({}, limits));
    ASSERT_TRUE(handle.has_value());
    std::string expected(std::size_t{2} << 20U, 'f');
    ASSERT_EQ(handle->post([&](TcpConnection& peer) {
      peer.send(expected);
      for (int i = 0; i < kMessages; ++i) {
        const std::string text = "<" + std::to_string(i) + ">";
        EXPECT_EQ(peer.send_message(SharedBytes(std::string(text))),
                  SendOutcome::accepted_above_high_water);
        expected += text;
      }
      peer.finish();
    }),
              PostResult::posted);
    loop.step();
    std::string received;
    while (received.size() < expected.size()) {
      const Received some = receive(linux_kernel(), pair.client.get());
      received += some.text;
      if (some.result > 0) continue;
      ASSERT_EQ(some.result, -EAGAIN);
      const FailingAllocation failing(which);
      loop.step(std::chrono::milliseconds(10));
      if (failing.happened()) ++failed;
    }
    EXPECT_TRUE(received == expected);
    pair.client.reset();
    while (ConnectionTable::of(loop).size() > 0)
      loop.step(std::chrono::milliseconds(10));
    EXPECT_EQ(loop.memory().used(), 0U);
  }
  EXPECT_GT(failed, 0U);
}

}  // namespace
}  // namespace penstock::test

// What the deferring back-end is for: it notices a connection that would do on readiness and corrupt data on completion.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/io_world.h"
#include "support/deferring_backend.h"

namespace penstock::test {
namespace {

class DeferringTest : public testing::Test {
 protected:
  DeferringTest() {
    SocketPair pair = tcp_pair(linux_kernel());
    peer = std::move(pair.client);
    handler.stream = backend->attach(std::move(pair.server), StreamKind::tcp, handler).value();
  }
  ~DeferringTest() override {
    handler.stream->close();
    poll_until([&] { return handler.stream == nullptr; });
  }
  void poll_until(const std::function<bool()>& condition) {
    EXPECT_TRUE(eventually([&] {
      if (!condition()) backend->poll(TimePoint::min(), linux_kernel().now());
      return condition();
    }));
  }
  SendResult send(std::span<char> bytes) {
    const iovec front{.iov_base = bytes.data(), .iov_len = bytes.size()};
    return handler.stream->send({&front, 1});
  }

  std::unique_ptr<IoBackend> backend = make_deferring_backend(linux_kernel()).value();
  NotingHandler handler;
  UniqueFd peer;
};

TEST_F(DeferringTest, a_send_takes_nothing_at_once_and_all_of_it_later) {
  std::string text = "later";
  const SendResult result = send(text);
  EXPECT_EQ(result.taken, 0U);
  EXPECT_TRUE(result.pending);
  poll_until([&] { return handler.sent_bytes == 5; });
  wait_for(linux_kernel(), peer.get(), POLLIN);
  EXPECT_EQ(receive(linux_kernel(), peer.get()).text, "later");
}

// The bug of the prototype: bytes are appended to a vector of which a send has been lent.
TEST_F(DeferringTest, memory_that_changes_while_it_is_lent_is_noticed) {
  std::string text = "stays put";
  send(text);
  text[0] = 'S';
  EXPECT_NONFATAL_FAILURE(poll_until([&] { return handler.sent_bytes == 9; }),
                          "memory lent to a send has changed");
}

TEST_F(DeferringTest, memory_lent_until_a_close_is_looked_at_until_on_closed) {
  std::string text(std::size_t{1} << 20, 'x');
  send(text);
  handler.stream->close();
  text[7] = 'y';
  EXPECT_NONFATAL_FAILURE(poll_until([&] { return handler.stream == nullptr; }),
                          "memory lent to a send has changed");
  handler.stream =
      backend->attach(tcp_pair(linux_kernel()).server, StreamKind::tcp, handler).value();
}

TEST_F(DeferringTest, what_was_taken_before_stop_receive_is_delivered_after_it) {
  send_text(linux_kernel(), peer.get(), "taken");
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLIN);
  backend->poll(TimePoint::min(), linux_kernel().now());  // taken, not delivered
  EXPECT_EQ(handler.received, "");
  handler.stream->stop_receive();
  backend->poll(TimePoint::min(), linux_kernel().now());
  EXPECT_EQ(handler.received, "taken");
}

TEST_F(DeferringTest, a_second_send_while_one_is_pending_ends_the_test) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  std::string text = "one";
  send(text);
  EXPECT_DEATH(send(text), "rule 3");
  poll_until([&] { return handler.sent_bytes == 3; });
}

TEST_F(DeferringTest, closing_is_told_some_polls_later) {
  handler.stream->close();
  backend->poll(TimePoint::min(), linux_kernel().now());
  EXPECT_FALSE(handler.has("closed"));
  poll_until([&] { return handler.stream == nullptr; });
  handler.stream =
      backend->attach(tcp_pair(linux_kernel()).server, StreamKind::tcp, handler).value();
}

}  // namespace
}  // namespace penstock::test

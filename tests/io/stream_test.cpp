// The stream seam (rules 1 to 8 of io_backend.h) over every back-end.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "io/io_world.h"

namespace penstock::test {
namespace {

using std::chrono::milliseconds;
using Events = std::vector<std::string>;

class StreamTest : public IoTest {};

PENSTOCK_ON_EVERY_READINESS_BACKEND(StreamTest);

// -- Receiving ------------------------------------------------------------------------------------------

TEST_P(StreamTest, an_attached_stream_receives_from_the_start_and_is_never_called_connected) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "hello"), 5);
  EXPECT_TRUE(handler.events.empty()) << "handlers run inside poll only (rule 1)";
  ASSERT_TRUE(poll_until([&] { return handler.received == "hello"; }));
  EXPECT_EQ(handler.events, Events{"received"});
}

TEST_P(StreamTest, what_had_arrived_before_the_attach_is_received) {
  SocketPair pair = tcp_pair(kernel);
  ASSERT_EQ(send_text(linux_kernel(), pair.client.get(), "early"), 5);
  wait_for(linux_kernel(), pair.server.get(), POLLIN);
  NotingHandler& handler = make_handler();
  handler.stream = backend->attach(std::move(pair.server), StreamKind::tcp, handler).value();
  ASSERT_TRUE(poll_until([&] { return handler.received == "early"; }));
}

TEST_P(StreamTest, an_idle_stream_costs_no_wake_ups) {
  UniqueFd peer;
  attach(peer);
  poll(3);
  const std::uint64_t wakeups = kernel.wakeups();
  poll(10);
  EXPECT_EQ(kernel.wakeups(), wakeups);
}

TEST_P(StreamTest, a_stopped_stream_receives_nothing_and_gets_all_of_it_when_started) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  handler.stream->stop_receive();
  handler.stream->stop_receive();
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "one "), 4);
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLIN);
  poll(5);
  EXPECT_TRUE(handler.events.empty());
  const std::uint64_t wakeups = kernel.wakeups();
  poll(5);
  EXPECT_EQ(kernel.wakeups(), wakeups) << "a paused stream spins";
  handler.stream->start_receive();
  handler.stream->start_receive();
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "two"), 3);
  ASSERT_TRUE(poll_until([&] { return handler.received == "one two"; }));
}

// An edge that came while nobody wanted it is not announced again.
TEST_P(StreamTest, what_came_while_stopped_is_received_without_anything_new_arriving) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  poll(2);
  handler.stream->stop_receive();
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "waiting"), 7);
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLIN);
  poll(3);
  handler.stream->start_receive();
  poll(2);
  EXPECT_EQ(handler.received, "waiting");
}

TEST_P(StreamTest, stopping_inside_on_received_stops_after_these_bytes_and_loses_none) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  const std::string large(300'000, 'x');
  handler.on_data = [&] { handler.stream->stop_receive(); };
  std::size_t sent = 0;
  while (sent < large.size()) {
    const ssize_t count = send_text(linux_kernel(), peer.get(), large.substr(sent));
    if (count > 0) sent += static_cast<std::size_t>(count);
    poll();
    const std::size_t seen = handler.received.size();
    poll(3);
    EXPECT_EQ(handler.received.size(), seen) << "received while stopped";
    handler.stream->start_receive();
  }
  ASSERT_TRUE(poll_until([&] {
    if (handler.stream != nullptr) handler.stream->start_receive();
    return handler.received.size() == large.size();
  }));
  EXPECT_EQ(handler.received, large);
}

// Fairness: what one stream gets per poll is bounded, whatever the peer has sent.
TEST_P(StreamTest,
       one_poll_serves_a_bounded_part_of_a_large_input_and_the_loop_continues_by_itself) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  handler.stream->stop_receive();
  const std::size_t sent = send_until_full(linux_kernel(), peer.get());
  ASSERT_GT(sent, std::size_t{512} * 1024);
  handler.stream->start_receive();
  std::size_t seen = 0;
  int rounds = 0;
  ASSERT_TRUE(poll_until([&] {
    EXPECT_LE(handler.received.size() - seen, std::size_t{4} * 64 * 1024);
    seen = handler.received.size();
    ++rounds;
    return seen == sent;
  }));
  EXPECT_GT(rounds, 2);
}

// K30, K5: end and data in one event.
TEST_P(StreamTest, all_data_comes_before_the_peers_end_and_the_end_once) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  handler.stream->stop_receive();
  const std::size_t sent = send_until_full(linux_kernel(), peer.get());
  ASSERT_EQ(linux_kernel().shutdown(peer.get(), SHUT_WR), 0);
  handler.stream->start_receive();
  ASSERT_TRUE(poll_until([&] { return handler.has("peer_finished"); }));
  poll(5);
  EXPECT_EQ(handler.received.size(), sent);
  EXPECT_EQ(handler.events, (Events{"received", "peer_finished"}));
  const std::uint64_t wakeups = kernel.wakeups();
  poll(5);
  EXPECT_EQ(kernel.wakeups(), wakeups) << "the peer's end spins";
}

// K2, K3: SO_ERROR must not be read, or the reset would look like a clean end.
TEST_P(StreamTest, a_reset_behind_data_gives_the_data_then_the_failure_then_the_end) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "last words"), 10);
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLIN);
  reset_on_close(linux_kernel(), peer.get());
  peer.reset();
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLHUP);
  ASSERT_TRUE(poll_until([&] { return handler.has("peer_finished"); }));
  EXPECT_EQ(handler.received, "last words");
  EXPECT_EQ(handler.count("failed"), 1U);
  EXPECT_EQ(handler.error, ECONNRESET);
  EXPECT_EQ(handler.events.back(), "peer_finished");
  EXPECT_EQ(kernel.calls(Call::getsockopt), 0U);
}

TEST_P(StreamTest, a_reset_while_stopped_does_not_spin_and_its_data_is_received_on_start) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  handler.stream->stop_receive();
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "kept"), 4);
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLIN);
  reset_on_close(linux_kernel(), peer.get());
  peer.reset();
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLHUP);
  poll(3);
  const std::uint64_t wakeups = kernel.wakeups();
  poll(10);
  EXPECT_EQ(kernel.wakeups(), wakeups);  // K7
  EXPECT_EQ(handler.received, "");
  handler.stream->start_receive();
  ASSERT_TRUE(poll_until([&] { return handler.has("peer_finished"); }));
  EXPECT_EQ(handler.received, "kept");
  EXPECT_EQ(handler.count("failed"), 1U);
  EXPECT_EQ(handler.count("peer_finished"), 1U);
}

TEST_P(StreamTest, a_peer_that_ends_while_stopped_does_not_spin_and_is_told_on_start) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  handler.stream->stop_receive();
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "kept"), 4);
  ASSERT_EQ(linux_kernel().shutdown(peer.get(), SHUT_WR), 0);
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLRDHUP);
  poll(3);
  const std::uint64_t wakeups = kernel.wakeups();
  poll(10);
  EXPECT_EQ(kernel.wakeups(), wakeups);
  EXPECT_TRUE(handler.events.empty());
  handler.stream->start_receive();
  ASSERT_TRUE(poll_until([&] { return handler.has("peer_finished"); }));
  EXPECT_EQ(handler.events, (Events{"received", "peer_finished"}));
}

// K6: HUP with both directions ended cannot be masked.
TEST_P(StreamTest, both_ends_finished_while_stopped_does_not_spin) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  handler.stream->stop_receive();
  handler.stream->finish();
  ASSERT_EQ(linux_kernel().shutdown(peer.get(), SHUT_WR), 0);
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLHUP);
  poll(3);
  const std::uint64_t wakeups = kernel.wakeups();
  poll(10);
  EXPECT_EQ(kernel.wakeups(), wakeups);
  handler.stream->start_receive();
  ASSERT_TRUE(poll_until([&] { return handler.has("peer_finished"); }));
  EXPECT_FALSE(handler.has("failed"));
}

TEST_P(StreamTest, urgent_data_strands_nothing_behind_it) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  poll();
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "before"), 6);
  ASSERT_EQ(linux_kernel().send(peer.get(), "!", 1, MSG_OOB), 1);
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "behind"), 6);
  ASSERT_TRUE(poll_until([&] { return handler.received == "beforebehind"; }));
}

// -- Sending --------------------------------------------------------------------------------------------

TEST_P(StreamTest, a_send_that_fits_is_taken_at_once_and_nothing_is_pending) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  const std::array<iovec, 3> front{piece("one "), piece("two "), piece("three")};
  const SendResult result = handler.stream->send(front);
  EXPECT_EQ(result.taken, 13U);
  EXPECT_FALSE(result.pending);
  EXPECT_EQ(result.error, 0);
  wait_for(linux_kernel(), peer.get(), POLLIN);
  EXPECT_EQ(receive(linux_kernel(), peer.get()).text, "one two three");
  poll(3);
  EXPECT_TRUE(handler.events.empty()) << "on_sent only follows pending";
}

TEST_P(StreamTest, sending_nothing_takes_nothing_and_is_not_pending) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  const SendResult result = handler.stream->send({});
  EXPECT_EQ(result.taken, 0U);
  EXPECT_FALSE(result.pending);
  EXPECT_EQ(result.error, 0);
}

TEST_P(StreamTest, a_full_kernel_answers_pending_and_room_is_told_with_zero_bytes) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  const std::string large(std::size_t{16} * 1024 * 1024, 'x');
  const SendResult first = send(handler, large);
  EXPECT_GT(first.taken, 0U);
  EXPECT_LT(first.taken, large.size());
  ASSERT_TRUE(first.pending);
  poll(3);
  EXPECT_FALSE(handler.has("sent"));
  const std::uint64_t wakeups = kernel.wakeups();
  poll(5);
  EXPECT_EQ(kernel.wakeups(), wakeups) << "waiting for room spins";
  std::size_t drained = 0;
  ASSERT_TRUE(poll_until([&] {
    drained += receive(linux_kernel(), peer.get()).text.size();
    return handler.has("sent");
  }));
  EXPECT_EQ(handler.sent_bytes, 0U) << "a readiness event is a completion of zero bytes";
  EXPECT_EQ(handler.count("sent"), 1U);
}

TEST_P(StreamTest, write_interest_goes_when_there_is_nothing_left_to_send) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  const std::string large(std::size_t{8} * 1024 * 1024, 'y');
  std::size_t sent = 0;
  bool pending = false;
  const auto go_on = [&] {
    while (sent < large.size() && !pending) {
      const SendResult result = send(handler, std::string_view(large).substr(sent));
      sent += result.taken;
      pending = result.pending;
    }
  };
  handler.sent = [&] {
    pending = false;
    go_on();
  };
  go_on();
  ASSERT_TRUE(pending);
  std::size_t drained = 0;
  ASSERT_TRUE(poll_until([&] {
    drained += receive(linux_kernel(), peer.get()).text.size();
    return drained == large.size();
  }));
  EXPECT_FALSE(pending);
  poll(3);
  const std::uint64_t wakeups = kernel.wakeups();
  poll(10);
  EXPECT_EQ(kernel.wakeups(), wakeups) << "write interest has been left on";  // W13
}

TEST_P(StreamTest, offer_takes_what_fits_and_never_answers_pending) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  const SendResult small = offer(handler, "small");
  EXPECT_EQ(small.taken, 5U);
  EXPECT_FALSE(small.pending);
  const std::string large(std::size_t{16} * 1024 * 1024, 'x');
  const SendResult offered = offer(handler, large);
  EXPECT_GT(offered.taken, 0U);
  EXPECT_LT(offered.taken, large.size());
  EXPECT_FALSE(offered.pending);
  // What is left is followed up with send(), which waits for room.
  const std::string rest = "the rest";
  const SendResult followed = send(handler, rest);
  EXPECT_EQ(followed.taken, 0U);
  EXPECT_TRUE(followed.pending);
  ASSERT_TRUE(poll_until([&] {
    receive(linux_kernel(), peer.get());
    return handler.has("sent");
  }));
}

TEST_P(StreamTest, a_send_to_a_dead_peer_answers_the_error_and_on_failed_follows_from_poll) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "unread until now"), 16);
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLIN);
  const auto rule = kernel.inject({.call = Call::send, .error = EPIPE});
  const SendResult result = send(handler, "into the void");
  EXPECT_EQ(kernel.fired(rule), 1U);
  EXPECT_EQ(result.error, EPIPE);
  EXPECT_EQ(result.taken, 0U);
  EXPECT_FALSE(handler.has("failed")) << "handlers run inside poll only (rule 1)";
  EXPECT_NE(send(handler, "again").error, 0);
  ASSERT_TRUE(poll_until([&] { return handler.has("failed"); }));
  poll(3);
  EXPECT_EQ(handler.count("failed"), 1U);
  EXPECT_EQ(handler.error, EPIPE);
  EXPECT_EQ(handler.received, "unread until now");
}

// Rule 6: the send's own error comes first, and is what counts.
TEST_P(StreamTest, an_error_event_behind_a_failed_send_is_told_with_the_error_of_the_send) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  handler.stream->stop_receive();
  reset_on_close(linux_kernel(), peer.get());
  peer.reset();
  ASSERT_NE(wait_for(linux_kernel(), handler.stream->descriptor(), POLLHUP) & POLLERR, 0);
  const auto rule = kernel.inject({.call = Call::send, .error = ETIMEDOUT});
  EXPECT_EQ(send(handler, "into the void").error, ETIMEDOUT);
  EXPECT_EQ(kernel.fired(rule), 1U);
  const std::uint64_t events = kernel.events();
  poll();
  EXPECT_EQ(kernel.events(), events + 1) << "the error event has to come in the same poll";
  EXPECT_EQ(handler.events, (Events{"failed"}));
  EXPECT_EQ(handler.error, ETIMEDOUT);
  handler.stream->start_receive();
  ASSERT_TRUE(poll_until([&] { return handler.has("peer_finished"); }));
  EXPECT_EQ(handler.count("failed"), 1U);
}

TEST_P(StreamTest, finish_sends_the_end_behind_the_bytes_and_input_still_comes) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  ASSERT_EQ(send(handler, "all").taken, 3U);
  handler.stream->finish();
  handler.stream->finish();
  const Received all = receive_to_end(linux_kernel(), peer.get());
  EXPECT_EQ(all.text, "all");
  EXPECT_EQ(all.result, 0);
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "reply"), 5);
  ASSERT_TRUE(poll_until([&] { return handler.received == "reply"; }));
}

// -- A shortage of kernel memory (rule 7) --------------------------------------------------------------------

TEST_P(StreamTest, a_send_without_kernel_memory_is_tried_again_after_10_ms_doubling_to_a_second) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  poll(2);
  constexpr int kFailures = 9;
  const auto rule =
      kernel.inject({.call = Call::send, .every = 1, .times = kFailures, .error = ENOBUFS});
  bool pending = send(handler, "at last").pending;
  ASSERT_TRUE(pending);
  handler.sent = [&] {
    const SendResult result = send(handler, "at last");
    pending = result.pending;
    EXPECT_EQ(result.error, 0);
  };
  milliseconds delay(10);
  for (int failure = 1; failure <= kFailures; ++failure) {
    ASSERT_TRUE(pending);
    EXPECT_EQ(kernel.fired(rule), static_cast<std::uint64_t>(failure));
    // Far from due: nothing but the clock's own progress lies in between.
    kernel.advance(delay / 4);
    poll(2);
    EXPECT_EQ(kernel.fired(rule), static_cast<std::uint64_t>(failure)) << "tried too early";
    kernel.advance(delay);
    poll(2);
    delay = std::min(delay * 2, milliseconds(1000));
  }
  EXPECT_FALSE(pending);
  wait_for(linux_kernel(), peer.get(), POLLIN);
  EXPECT_EQ(receive(linux_kernel(), peer.get()).text, "at last");
  EXPECT_FALSE(handler.has("failed"));
  // Success starts the delays anew.
  kernel.heal();
  const auto again = kernel.inject({.call = Call::send, .error = ENOMEM});
  handler.sent = nullptr;
  EXPECT_TRUE(send(handler, "once more").pending);
  EXPECT_EQ(kernel.fired(again), 1U);
  const std::size_t told = handler.count("sent");
  kernel.advance(milliseconds(11));
  poll(2);
  EXPECT_EQ(handler.count("sent"), told + 1);
}

TEST_P(StreamTest, a_poll_waits_for_the_retry_and_not_for_its_deadline) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  poll(2);
  const auto rule = kernel.inject({.call = Call::send, .error = ENOBUFS});
  ASSERT_TRUE(send(handler, "x").pending);
  ASSERT_EQ(kernel.fired(rule), 1U);
  while (!handler.has("sent"))
    backend->poll(kNever, kernel.now());
  EXPECT_LE(kernel.wakeups(), 2U) << "no spinning on the room that is there";
}

TEST_P(StreamTest, a_recv_without_kernel_memory_is_tried_again_and_loses_nothing) {
  for (const int shortage : {ENOBUFS, ENOMEM}) {
    UniqueFd peer;
    NotingHandler& handler = attach(peer);
    poll(2);
    const auto rule =
        kernel.inject({.call = Call::recv, .fd = handler.stream->descriptor(), .error = shortage});
    ASSERT_EQ(send_text(linux_kernel(), peer.get(), "patient"), 7);
    ASSERT_TRUE(poll_until([&] { return kernel.fired(rule) == 1; }));
    EXPECT_EQ(handler.received, "");
    const std::uint64_t recvs = kernel.calls(Call::recv);
    poll(5);
    // Within the 10 ms at most the clock could make a retry due.
    EXPECT_LE(kernel.calls(Call::recv), recvs + 1);
    kernel.advance(milliseconds(15));
    ASSERT_TRUE(poll_until([&] { return handler.received == "patient"; }));
    EXPECT_FALSE(handler.has("failed"));
    kernel.heal();
  }
}

TEST_P(StreamTest, a_stream_closed_while_it_waits_for_memory_is_not_tried_again) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  kernel.inject({.call = Call::send, .error = ENOBUFS});
  ASSERT_TRUE(send(handler, "x").pending);
  handler.stream->close();
  kernel.advance(milliseconds(50));
  poll(3);
  EXPECT_EQ(handler.events, Events{"closed"});
}

// -- Closing (rules 5 and 8) -------------------------------------------------------------------------------------

TEST_P(StreamTest, close_is_reported_once_at_the_end_of_the_poll_and_nothing_follows) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  UniqueFd other_peer;
  NotingHandler& other = attach(other_peer);
  handler.on_data = [&] {
    handler.stream->close();
    handler.stream->close();
    handler.stream->abort();
    EXPECT_EQ(handler.stream->descriptor(), -1);
    EXPECT_FALSE(handler.has("closed")) << "not inside close()";
  };
  bool other_served_first = false;
  handler.closed = [&] { other_served_first = other.received == "b"; };
  ASSERT_EQ(send_text(linux_kernel(), peer.get(), "a"), 1);
  ASSERT_EQ(send_text(linux_kernel(), other_peer.get(), "b"), 1);
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLIN);
  wait_for(linux_kernel(), other.stream->descriptor(), POLLIN);
  poll();
  EXPECT_EQ(handler.events, (Events{"received", "closed"}));
  EXPECT_TRUE(other_served_first) << "on_closed comes at the end of the poll";
  poll(5);
  EXPECT_EQ(handler.events.size(), 2U);
  EXPECT_EQ(receive_to_end(linux_kernel(), peer.get()).result, 0);
}

TEST_P(StreamTest, a_close_between_polls_is_reported_by_the_next_one_without_a_wait) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  handler.stream->close();
  EXPECT_TRUE(handler.events.empty());
  backend->poll(kNever, kernel.now());  // would wait for ever
  EXPECT_EQ(handler.events, Events{"closed"});
}

TEST_P(StreamTest, what_the_kernel_has_taken_is_delivered_behind_a_close) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  const std::string text(100'000, 'z');
  ASSERT_EQ(send(handler, text).taken, text.size());
  handler.stream->close();
  poll();
  const Received all = receive_to_end(linux_kernel(), peer.get());
  EXPECT_EQ(all.text, text);
  EXPECT_EQ(all.result, 0);
}

TEST_P(StreamTest, abort_resets_the_peer) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  handler.stream->abort();
  handler.stream->abort();
  EXPECT_EQ(handler.stream->descriptor(), -1);
  poll();
  EXPECT_EQ(handler.events, Events{"closed"});
  EXPECT_EQ(receive_to_end(linux_kernel(), peer.get()).result, -ECONNRESET);
}

TEST_P(StreamTest, a_closed_stream_answers_every_verb_and_does_nothing) {
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  Stream& stream = *handler.stream;
  stream.close();
  const std::uint64_t calls = kernel.calls();
  stream.start_receive();
  stream.stop_receive();
  stream.finish();
  const iovec front = piece("x");
  EXPECT_NE(stream.send({&front, 1}).error, 0);
  EXPECT_NE(stream.offer({&front, 1}).error, 0);
  EXPECT_EQ(kernel.calls(), calls);
  poll();
  EXPECT_EQ(handler.events, Events{"closed"});
}

TEST_P(StreamTest, the_descriptor_leaves_the_selector_before_it_is_closed) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "poll registers nothing with the kernel");
  UniqueFd peer;
  NotingHandler& handler = attach(peer);
  const int fd = handler.stream->descriptor();
  std::vector<std::string> order;
  kernel.before(Call::epoll_ctl, [&](int on) {
    if (on == fd) order.emplace_back("epoll_ctl");
  });
  kernel.before(Call::close, [&](int on) {
    if (on == fd) order.emplace_back("close");
  });
  handler.stream->close();
  EXPECT_EQ(order, (std::vector<std::string>{"epoll_ctl", "close"}));  // R9, K12
  kernel.before(Call::epoll_ctl, {});
  kernel.before(Call::close, {});
}

// RE2: A's handler closes B, and B's event is in the same batch.
TEST_P(StreamTest, an_event_of_a_stream_closed_earlier_in_the_batch_is_skipped_and_counted) {
  UniqueFd first_peer;
  UniqueFd second_peer;
  NotingHandler& first = attach(first_peer);
  NotingHandler& second = attach(second_peer);
  // Whichever is served first closes the other one.
  first.on_data = [&] {
    if (second.stream != nullptr) second.stream->close();
  };
  second.on_data = [&] {
    if (first.stream != nullptr) first.stream->close();
  };
  ASSERT_EQ(send_text(linux_kernel(), first_peer.get(), "a"), 1);
  ASSERT_EQ(send_text(linux_kernel(), second_peer.get(), "b"), 1);
  wait_for(linux_kernel(), first.stream->descriptor(), POLLIN);
  wait_for(linux_kernel(), second.stream->descriptor(), POLLIN);
  poll();
  EXPECT_EQ(backend->statistics().stale_events, 1U);
  EXPECT_EQ(first.events.size() + second.events.size(), 2U);
  EXPECT_EQ(first.count("closed") + second.count("closed"), 1U);
  EXPECT_EQ(first.received.size() + second.received.size(), 1U);
}

// RE3, K11: the number of the closed descriptor, and its slot, are in use again before the stale event is served.
TEST_P(StreamTest, a_successor_with_the_same_descriptor_number_gets_no_foreign_event) {
  UniqueFd first_peer;
  UniqueFd second_peer;
  NotingHandler& first = attach(first_peer);
  NotingHandler& second = attach(second_peer);
  UniqueFd successor_peer;
  NotingHandler* successor = nullptr;
  int victim_fd = -1;
  const auto replace = [&](NotingHandler& victim) {
    if (successor != nullptr) return;
    victim_fd = victim.stream->descriptor();
    SocketPair pair = tcp_pair(kernel);  // before the number is free
    victim.stream->close();
    ASSERT_EQ(::dup2(pair.server.get(), victim_fd), victim_fd);
    successor_peer = UniqueFd(linux_kernel(), pair.client.release());
    pair.server.reset();
    successor = &make_handler();
    successor->stream =
        backend->attach(UniqueFd(kernel, victim_fd), StreamKind::tcp, *successor).value();
    EXPECT_EQ(successor->stream->descriptor(), victim_fd);
  };
  first.on_data = [&] { replace(second); };
  second.on_data = [&] { replace(first); };
  ASSERT_EQ(send_text(linux_kernel(), first_peer.get(), "a"), 1);
  ASSERT_EQ(send_text(linux_kernel(), second_peer.get(), "b"), 1);
  wait_for(linux_kernel(), first.stream->descriptor(), POLLIN);
  wait_for(linux_kernel(), second.stream->descriptor(), POLLIN);
  poll();
  ASSERT_NE(successor, nullptr);
  EXPECT_TRUE(successor->events.empty()) << "a foreign event: " << successor->events.front();
  EXPECT_EQ(backend->statistics().stale_events, 1U);
  ASSERT_EQ(send_text(linux_kernel(), successor_peer.get(), "mine"), 4);
  ASSERT_TRUE(poll_until([&] { return successor->received == "mine"; }));
}

TEST_P(StreamTest, on_closed_may_close_others_and_attach_new_ones) {
  UniqueFd first_peer;
  UniqueFd second_peer;
  UniqueFd third_peer;
  NotingHandler& first = attach(first_peer);
  NotingHandler& second = attach(second_peer);
  NotingHandler* third = nullptr;
  first.closed = [&] {
    second.stream->close();
    third = &attach(third_peer);
  };
  first.stream->close();
  poll();
  EXPECT_EQ(first.events, Events{"closed"});
  backend->poll(kNever, kernel.now());
  EXPECT_EQ(second.events, Events{"closed"});
  ASSERT_EQ(send_text(linux_kernel(), third_peer.get(), "new"), 3);
  ASSERT_TRUE(poll_until([&] { return third->received == "new"; }));
}

TEST_P(StreamTest, an_attach_the_kernel_refuses_closes_the_descriptor) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "poll registers nothing with the kernel");
  SocketPair pair = tcp_pair(kernel);
  const std::size_t open = linux_kernel().open_descriptors();
  const auto rule = kernel.inject({.call = Call::epoll_ctl, .error = ENOSPC});
  NotingHandler& handler = make_handler();
  const Result<Stream*> stream = backend->attach(std::move(pair.server), StreamKind::tcp, handler);
  EXPECT_EQ(kernel.fired(rule), 1U);
  ASSERT_FALSE(stream.has_value());
  EXPECT_EQ(stream.error(), system_error(ENOSPC));
  EXPECT_EQ(linux_kernel().open_descriptors(), open - 1);
  poll(2);
  EXPECT_TRUE(handler.events.empty());
}

// -- Connecting ------------------------------------------------------------------------------------------------

TEST_P(StreamTest, a_connection_attempt_that_succeeds_is_told_once_and_then_carries_bytes) {
  const test::Listener listener = listen_tcp(kernel);
  NotingHandler& handler = connect(listener.address);
  EXPECT_TRUE(handler.events.empty());
  ASSERT_TRUE(poll_until([&] { return handler.has("connected"); }));
  poll(3);
  EXPECT_EQ(handler.events, Events{"connected"});
  EXPECT_EQ(kernel.calls(Call::getsockopt), 1U) << "SO_ERROR is read once (K4)";
  const UniqueFd accepted = accept_one(kernel, listener);
  ASSERT_EQ(send(handler, "there").taken, 5U);
  wait_for(linux_kernel(), accepted.get(), POLLIN);
  EXPECT_EQ(receive(linux_kernel(), accepted.get()).text, "there");
  ASSERT_EQ(send_text(linux_kernel(), accepted.get(), "and back"), 8);
  ASSERT_TRUE(poll_until([&] { return handler.received == "and back"; }));
  const std::uint64_t wakeups = kernel.wakeups();
  poll(5);
  EXPECT_EQ(kernel.wakeups(), wakeups) << "write interest has been left on";
}

// N11
TEST_P(StreamTest, data_and_end_that_come_with_the_connection_are_not_lost) {
  const test::Listener listener = listen_tcp(kernel);
  NotingHandler& handler = connect(listener.address);
  UniqueFd accepted = accept_one(kernel, listener);
  ASSERT_EQ(send_text(linux_kernel(), accepted.get(), "hello and goodbye"), 17);
  accepted.reset();
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLRDHUP);
  ASSERT_TRUE(poll_until([&] { return handler.has("peer_finished"); }));
  EXPECT_EQ(handler.events, (Events{"connected", "received", "peer_finished"}));
  EXPECT_EQ(handler.received, "hello and goodbye");
}

// N1, N2
TEST_P(StreamTest, a_refused_connection_attempt_fails_once_with_the_reason) {
  SocketAddress gone;
  {
    const test::Listener listener = listen_tcp(kernel);
    gone = listener.address;
  }
  NotingHandler& handler = connect(gone);
  ASSERT_TRUE(poll_until([&] { return handler.has("failed"); }));
  EXPECT_EQ(handler.error, ECONNREFUSED);
  const std::uint64_t wakeups = kernel.wakeups();
  poll(5);
  EXPECT_EQ(kernel.wakeups(), wakeups) << "a failed attempt spins";
  EXPECT_EQ(handler.events, Events{"failed"});
  EXPECT_EQ(kernel.calls(Call::getsockopt), 1U);
  handler.stream->close();
  poll();
  EXPECT_EQ(handler.events, (Events{"failed", "closed"}));
}

// N6
TEST_P(StreamTest,
       an_attempt_the_kernel_refuses_at_once_runs_no_handler_and_leaves_the_descriptor) {
  const test::Listener listener = listen_tcp(kernel);
  const std::size_t open = linux_kernel().open_descriptors();
  for (const int error : {EADDRNOTAVAIL, ENETUNREACH, EACCES}) {
    NotingHandler& handler = make_handler();
    const auto rule = kernel.inject({.call = Call::connect, .error = error});
    UniqueFd socket = tcp_socket(kernel);
    const Result<Stream*> stream = backend->connect(socket, listener.address, handler);
    EXPECT_EQ(kernel.fired(rule), 1U);
    ASSERT_FALSE(stream.has_value());
    EXPECT_EQ(stream.error(), system_error(error));
    poll(2);
    EXPECT_TRUE(handler.events.empty());
    EXPECT_TRUE(socket) << "for another try";
    EXPECT_EQ(linux_kernel().open_descriptors(), open + 1);
  }
}

// An interrupted connect goes on in the kernel (connect(2)).
TEST_P(StreamTest, an_interrupted_connection_attempt_succeeds_all_the_same) {
  const test::Listener listener = listen_tcp(kernel);
  const auto rule = kernel.inject({.call = Call::connect, .error = EINTR});
  NotingHandler& handler = connect(listener.address);
  EXPECT_EQ(kernel.fired(rule), 1U);
  ASSERT_TRUE(poll_until([&] { return handler.has("connected"); }));
}

// C11
TEST_P(StreamTest, closing_while_connecting_tells_only_that_it_is_closed) {
  const test::Listener listener = listen_tcp(kernel);
  NotingHandler& handler = connect(listener.address);
  handler.stream->close();
  poll(3);
  EXPECT_EQ(handler.events, Events{"closed"});
}

TEST_P(StreamTest, closing_inside_on_connected_and_inside_on_failed_is_fine) {
  SocketAddress address;
  {
    const test::Listener listener = listen_tcp(kernel);
    address = listener.address;
    NotingHandler& handler = connect(address);
    handler.connected = [&] { handler.stream->close(); };
    ASSERT_TRUE(poll_until([&] { return handler.has("closed"); }));
    EXPECT_EQ(handler.events, (Events{"connected", "closed"}));
  }
  NotingHandler& handler = connect(address);
  handler.failed = [&] { handler.stream->abort(); };
  ASSERT_TRUE(poll_until([&] { return handler.has("closed"); }));
  EXPECT_EQ(handler.events, (Events{"failed", "closed"}));
}

// K15, N3: the seam tells a self-connect as what it is for the kernel, a connection; its owner compares the two addresses.
TEST_P(StreamTest, a_self_connect_is_told_once_and_can_be_recognised) {
  UniqueFd fd = tcp_socket(kernel);
  const SocketAddress any = SocketAddress::parse("127.0.0.1:0").value();
  ASSERT_EQ(kernel.bind(fd.get(), any.data(), any.size()), 0);
  const SocketAddress own = local_address(kernel, fd.get());
  NotingHandler& handler = make_handler();
  handler.stream = backend->connect(fd, own, handler).value();
  ASSERT_TRUE(poll_until([&] { return handler.has("connected"); }));
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  ASSERT_EQ(kernel.getpeername(handler.stream->descriptor(), address, &size), 0);
  EXPECT_EQ(SocketAddress(address, size), local_address(kernel, handler.stream->descriptor()));
  ASSERT_EQ(send(handler, "echo").taken, 4U);
  ASSERT_TRUE(poll_until([&] { return handler.received == "echo"; }));
  EXPECT_EQ(handler.count("connected"), 1U);
}

TEST_P(StreamTest, stopping_before_the_connection_is_up_holds_its_input_back) {
  const test::Listener listener = listen_tcp(kernel);
  NotingHandler& handler = connect(listener.address);
  handler.stream->stop_receive();
  const UniqueFd accepted = accept_one(kernel, listener);
  ASSERT_EQ(send_text(linux_kernel(), accepted.get(), "early"), 5);
  wait_for(linux_kernel(), handler.stream->descriptor(), POLLIN);
  ASSERT_TRUE(poll_until([&] { return handler.has("connected"); }));
  poll(3);
  EXPECT_EQ(handler.received, "");
  handler.stream->start_receive();
  ASSERT_TRUE(poll_until([&] { return handler.received == "early"; }));
}

// -- Busy streams ---------------------------------------------------------------------------------

TEST_P(StreamTest, without_a_budget_of_the_turn_all_streams_are_served_in_each_poll) {
  backend =
      make_backend(GetParam(), kernel, {.turn_bytes = 0, .turn_time = Duration::zero()}).value();
  constexpr std::size_t kStreams = 6;
  constexpr std::size_t kReadBudget = std::size_t{64} * 1024;
  std::vector<UniqueFd> peers(kStreams);
  std::vector<NotingHandler*> handlers;
  for (UniqueFd& peer : peers) {
    handlers.push_back(&attach(peer));
    send_until_full(linux_kernel(), peer.get());
    wait_for(linux_kernel(), handlers.back()->stream->descriptor(), POLLIN);
  }
  for (std::size_t round = 1; round <= 3; ++round) {
    std::vector<std::size_t> before;
    for (const NotingHandler* handler : handlers)
      before.push_back(handler->received.size());
    poll();
    for (std::size_t i = 0; i < kStreams; ++i)
      EXPECT_GT(handlers[i]->received.size() - before[i], kReadBudget / 2) << "round " << round;
  }
}

TEST_P(StreamTest, without_a_time_of_the_turn_nobody_is_busy_for_what_it_takes) {
  for (const Duration turn_time : {Duration::zero(), Duration(-1)}) {
    backend = make_backend(GetParam(), kernel, {.turn_time = turn_time}).value();
    UniqueFd peers[4];
    std::vector<NotingHandler*> handlers;
    for (UniqueFd& peer : peers) {
      handlers.push_back(&attach(peer));
      handlers.back()->on_data = [&] { kernel.advance(std::chrono::seconds(1)); };
    }
    for (std::size_t round = 1; round <= 4; ++round) {
      for (std::size_t i = 0; i < handlers.size(); ++i) {
        send_text(linux_kernel(), peers[i].get(), "x");
        wait_for(linux_kernel(), handlers[i]->stream->descriptor(), POLLIN);
      }
      poll();
      for (const NotingHandler* handler : handlers)
        EXPECT_EQ(handler->received.size(), round);
    }
    for (const NotingHandler* handler : handlers)
      handler->stream->close();
    EXPECT_TRUE(poll_until([&] {
      return std::ranges::all_of(handlers, [](const NotingHandler* each) { return !each->stream; });
    }));
  }
}

TEST_P(StreamTest, room_for_a_busy_stream_is_reported_also_when_its_event_had_to_wait) {
  UniqueFd peers[2];
  NotingHandler& flood = attach(peers[0]);
  NotingHandler& writer = attach(peers[1]);
  const std::string bytes(std::size_t{16} << 20, 'w');
  std::size_t sent = 0;
  writer.sent = [&] { sent += send(writer, std::string_view(bytes).substr(sent)).taken; };
  sent = send(writer, bytes).taken;
  ASSERT_LT(sent, bytes.size());
  // Both move much: one by what it receives, one by what it sends.
  std::string drained(std::size_t{1} << 20, ' ');
  std::size_t arrived = 0;
  ASSERT_TRUE(poll_until([&] {
    send_until_full(linux_kernel(), peers[0].get());
    const ssize_t taken =
        linux_kernel().recv(peers[1].get(), drained.data(), drained.size(), MSG_DONTWAIT);
    if (taken > 0) arrived += static_cast<std::size_t>(taken);
    return arrived == bytes.size();
  }));
  writer.sent = nullptr;
  EXPECT_EQ(sent, bytes.size());
  EXPECT_GT(flood.received.size(), 0U);
}

TEST_P(StreamTest, a_stream_that_is_closed_while_its_turn_is_due_is_not_served) {
  UniqueFd peers[4];
  NotingHandler* handlers[4];
  for (std::size_t i = 0; i < 4; ++i) {
    handlers[i] = &attach(peers[i]);
    send_until_full(linux_kernel(), peers[i].get());
    wait_for(linux_kernel(), handlers[i]->stream->descriptor(), POLLIN);
  }
  poll();  // now it is known that they are busy
  std::size_t received[4];
  for (std::size_t i = 0; i < 4; ++i) {
    received[i] = handlers[i]->received.size();
    // The first to be served closes the others.
    handlers[i]->on_data = [&handlers, i] {
      for (std::size_t other = 0; other < 4; ++other) {
        if (other != i && handlers[other]->stream != nullptr) handlers[other]->stream->close();
      }
    };
  }
  poll(4);
  std::size_t served = 0;
  for (std::size_t i = 0; i < 4; ++i)
    if (handlers[i]->received.size() > received[i]) ++served;
  EXPECT_EQ(served, 1U);
  for (NotingHandler* handler : handlers)
    handler->on_data = nullptr;
}

}  // namespace
}  // namespace penstock::test

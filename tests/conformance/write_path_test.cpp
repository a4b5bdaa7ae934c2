// The write path (scenarios W1 to W15, and the send rows of the fault matrix), on every back-end.

#include <sys/time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <string>
#include <string_view>
#include <vector>

#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;
constexpr std::size_t kNowhere = std::string_view::npos;

std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

class WritePath : public ConformanceTest {
 protected:
  /// Kernel memory of queues; 0 when every queue is empty.
  std::size_t charged() { return world.loop.memory().used(); }
  bool armed_for_output(int fd) { return (armed_events(world, fd).value_or(0) & EPOLLOUT) != 0; }
  /// Lets the peer read until it has `expected`, and shows that it is exactly that.
  void expect_received(const World::Link& link, const std::string& expected) {
    const std::string text = collect(world, link, expected.size());
    ASSERT_EQ(text.size(), expected.size());
    EXPECT_EQ(first_difference(text, expected), kNowhere);
  }
  bool ended(const World::Link& link) {
    return world.run_until([&] { return link.record->closes == 1; });
  }
};

TEST_P(WritePath, SmallSendsOfOneHandlerLeaveAsOneCall) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [](TcpConnection& peer, InputBuffer& in) {
    in.take();
    for (int i = 0; i < 16; ++i)
      peer.send("reply ");
  };
  World::Link link = world.connect(record, std::move(callbacks));
  const std::uint64_t sends = send_calls(world);
  send_text(linux_kernel(), link.client.get(), "request");
  ASSERT_TRUE(world.run_until([&] { return record->count("write_complete") == 1; }));
  EXPECT_EQ(send_calls(world), sends + 1);
  wait_for(linux_kernel(), link.client.get(), POLLIN);
  EXPECT_EQ(receive(linux_kernel(), link.client.get()).text.size(), 16 * 6u);
}

TEST_P(WritePath, SmallSendsOfOneTaskLeaveAsOneCallBeforeTheLoopWaits) {
  World::Link link = world.connect();
  const std::uint64_t sends = send_calls(world);
  world.loop.queue_in_loop([&] {
    for (int i = 0; i < 16; ++i)
      link.connection->send("notice ");
    EXPECT_EQ(send_calls(world), sends) << "a small send called the kernel";
  });
  world.turn();
  EXPECT_EQ(send_calls(world), sends + 1);
  expect_received(link,
                  "notice notice notice notice notice notice notice notice notice notice "
                  "notice notice notice notice notice notice ");
}

// W1
TEST_P(WritePath, ASendCutToAnyLengthKeepsOrderAndCompletesOnce) {
  const std::string payload = pattern(64);
  for (std::size_t length = 1; length < payload.size(); ++length) {
    SCOPED_TRACE(length);
    World::Link link = world.connect();
    const auto rule = world.kernel.inject({.call = Call::send,
                                           .fd = link.connection->descriptor(),
                                           .every = 1,
                                           .shorten_to = length});
    link.connection->send(payload);
    expect_received(link, payload);
    world.turn(3);
    EXPECT_GE(world.kernel.fired(rule), 1u);
    EXPECT_EQ(link.record->count("write_complete"), 1u);
    EXPECT_EQ(link.connection->bytes_sent(), payload.size());
    world.kernel.heal();
    link.connection->abort();
    ASSERT_TRUE(ended(link));
  }
  EXPECT_EQ(charged(), 0u);
}

// W2, W13
TEST_P(WritePath, WriteInterestIsArmedExactlyWhileOutputIsPending) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "write interest is a matter of readiness back-ends");
  const bool told_at_poll = GetParam() == Backend::poll;  // what is armed shows in the next poll
  World::Link link = world.connect();
  shrink_buffers(link);
  const int fd = link.connection->descriptor();
  world.turn();
  const std::uint32_t at_start = armed_events(world, fd).value_or(0);
  EXPECT_EQ(at_start & (EPOLLIN | EPOLLRDHUP), EPOLLIN | EPOLLRDHUP);
  EXPECT_EQ(at_start & EPOLLOUT, 0u);

  const std::string payload = pattern(kMiB);
  link.connection->send(payload);
  ASSERT_GT(link.connection->queued_bytes(), 0u);
  if (told_at_poll) world.turn();
  EXPECT_TRUE(armed_for_output(fd));
  std::string received;
  bool was_pending = true;
  ASSERT_TRUE(world.run_until([&] {
    const bool pending = link.connection->queued_bytes() > 0;
    EXPECT_EQ(armed_for_output(fd), told_at_poll ? was_pending : pending);
    EXPECT_TRUE(was_pending || !pending) << "pending again";
    was_pending = pending;
    received += receive_available(link);
    return received.size() == payload.size() && !pending;
  }));
  EXPECT_EQ(first_difference(received, payload), kNowhere);
  world.turn();
  EXPECT_EQ(armed_events(world, fd).value_or(0), at_start);
}

// W2
TEST_P(WritePath, AnEagainOnTheFirstByteArmsWriteInterestAndKeepsEverything) {
  World::Link link = world.connect();
  const int fd = link.connection->descriptor();
  const auto rule = world.kernel.inject({.call = Call::send, .fd = fd, .error = EAGAIN});
  bool armed_while_waiting = false;
  world.kernel.before(wait_call(GetParam()), [&](int) {
    armed_while_waiting |= link.connection->queued_bytes() == 5 && armed_for_output(fd);
  });
  link.connection->send("hello");
  expect_received(link, "hello");
  EXPECT_EQ(world.kernel.fired(rule), 1u);
  EXPECT_TRUE(armed_while_waiting);
  world.turn();
  EXPECT_FALSE(armed_for_output(fd));
}

// W13
TEST_P(WritePath, AWritableSocketWithNothingToSendCausesNoWakeups) {
  World::Link quiet = world.connect();
  World::Link drained = world.connect();
  shrink_buffers(drained);
  const std::string payload = pattern(kMiB);
  drained.connection->send(payload);
  expect_received(drained, payload);
  world.settle();
  const std::uint64_t wakeups = world.kernel.wakeups();
  world.turn(200);
  EXPECT_EQ(world.kernel.wakeups(), wakeups);
}

TEST_P(WritePath, AfterAShortSendTheKernelIsNotAskedAgainInTheSameTurn) {
  World::Link link = world.connect();
  const std::string payload = pattern(100 * kKiB);
  const auto rule = world.kernel.inject(
      {.call = Call::send, .fd = link.connection->descriptor(), .every = 1, .shorten_to = 1000});
  std::uint64_t before = send_calls(world);
  link.connection->send(payload);
  if (acts_at_once(GetParam())) {
    EXPECT_EQ(send_calls(world), before + 1);
  }
  ASSERT_TRUE(world.run_until([&] {
    EXPECT_LE(send_calls(world), before + 1);
    before = send_calls(world);
    return link.connection->queued_bytes() == 0;
  }));
  EXPECT_EQ(world.kernel.fired(rule), 102u);
  expect_received(link, payload);
}

// W3
TEST_P(WritePath, TenThousandQueuedWritesThenCloseAllArriveInOrder) {
  ConnectionLimits limits;
  limits.output_max = 64 * kMiB;
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  std::string expected;
  for (int i = 0; i < 10'000; ++i) {
    const std::string message = "message " + std::to_string(i) + '\n';
    expected += message;
    link.connection->send(message);
  }
  link.connection->close();
  EXPECT_GT(link.connection->queued_bytes(), 0u);
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(all.result, 0);
  EXPECT_EQ(first_difference(all.text, expected), kNowhere);
  link.client.reset();
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(link.record->report->bytes_sent, expected.size());
  EXPECT_EQ(link.record->report->bytes_discarded, 0u);
  EXPECT_LE(link.record->count("write_complete"), 1u);
}

// W3
TEST_P(WritePath, QueuedWritesThatCannotLeaveAreReportedAsDiscarded) {
  World::Link link = world.connect();
  shrink_buffers(link);
  std::size_t accepted = 0;
  for (int i = 0; i < 10'000; ++i) {
    const std::string message = "message number " + std::to_string(i) + '\n';
    link.connection->send(message);
    accepted += message.size();
  }
  world.turn(2);
  const std::size_t queued = link.connection->queued_bytes();
  ASSERT_GT(queued, 0u);
  link.connection->abort();
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(link.record->report->bytes_discarded, queued);
  EXPECT_EQ(link.record->report->bytes_sent + link.record->report->bytes_discarded, accepted);
  EXPECT_EQ(link.record->count("write_complete"), 0u);
  EXPECT_EQ(charged(), 0u);
}

// W4
TEST_P(WritePath, MorePiecesThanOneSendmsgTakesLeaveInOrder) {
  World::Link link = world.connect();
  shrink_buffers(link);
  std::size_t most_pieces = 0;
  world.tap.on_send = [&](int, std::span<const iovec> pieces) {
    most_pieces = std::max(most_pieces, pieces.size());
  };
  const std::string everything = pattern(1100 * 4100);
  for (std::size_t i = 0; i < 1100; ++i)
    link.connection->send(everything.substr(i * 4100, 4100));
  expect_received(link, everything);
  EXPECT_GT(most_pieces, 1u);
  EXPECT_LE(most_pieces, 1024u);
}

// W5
TEST_P(WritePath, AShortSendMayEndInsideOrExactlyAtTheEdgeOfAPiece) {
  const std::string head = "the header";
  const std::string body = pattern(4100);
  const std::string tail = "the trailer";
  const std::string expected = head + body + tail;
  for (const std::size_t length : {9u, 10u, 11u, 2000u, 4100u, 4109u, 4110u, 4111u, 4120u}) {
    SCOPED_TRACE(length);
    World::Link link = world.connect();
    const int fd = link.connection->descriptor();
    const auto blocked = world.kernel.inject({.call = Call::sendmsg, .fd = fd, .error = EAGAIN});
    const auto cut =
        world.kernel.inject({.call = Call::sendmsg, .fd = fd, .every = 1, .shorten_to = length});
    world.loop.queue_in_loop([&] {
      link.connection->send(head);
      link.connection->send(std::string(body));
      link.connection->send(tail);
    });
    expect_received(link, expected);
    EXPECT_EQ(world.kernel.fired(blocked), 1u);
    // A completion back-end is lent head and body before the tail is there.
    if (acts_at_once(GetParam()) || length < head.size() + body.size()) {
      EXPECT_GE(world.kernel.fired(cut), 1u);
    }
    EXPECT_EQ(link.connection->queued_bytes(), 0u);
    world.kernel.heal();
    link.connection->abort();
    ASSERT_TRUE(ended(link));
  }
  EXPECT_EQ(charged(), 0u);
}

// W5
TEST_P(WritePath, PayloadsOfEveryKindAndSizeLeaveInTheOrderOfTheirSends) {
  World::Link link = world.connect();
  shrink_buffers(link);
  const int fd = link.connection->descriptor();
  const auto cut =
      world.kernel.inject({.call = Call::sendmsg, .fd = fd, .every = 2, .shorten_to = 3001});
  const auto cut_single =
      world.kernel.inject({.call = Call::send, .fd = fd, .every = 3, .shorten_to = 17});
  const std::string everything = pattern(2 * kMiB);
  constexpr std::array<std::size_t, 9> kSizes{1, 70, 4095, 4096, 4097, 13, 20'000, 2, 70'000};
  std::string received;
  std::size_t at = 0;
  for (std::size_t i = 0; at < everything.size(); ++i) {
    const std::string part = everything.substr(at, kSizes[i % kSizes.size()]);
    at += part.size();
    switch (i % 4) {
      case 0:
        link.connection->send(part);
        break;
      case 1:
        link.connection->send(std::string(part));
        break;
      case 2:
        link.connection->send(bytes_of(part));
        break;
      default:
        link.connection->send(SharedBytes(std::string(part)));
        break;
    }
    if (i % 5 == 0) {
      world.turn();
      received += receive_available(link);
    }
  }
  received += collect(world, link, everything.size() - received.size());
  EXPECT_EQ(first_difference(received, everything), kNowhere);
  EXPECT_GT(world.kernel.fired(cut), 0u);
  if (acts_at_once(GetParam())) {  // else what waits is gathered, and few sends have one piece
    EXPECT_GT(world.kernel.fired(cut_single), 0u);
  }
}

// W6
TEST_P(WritePath, AnEmptyPayloadDoesNothing) {
  World::Link link = world.connect();
  world.settle();
  const std::uint64_t sends = send_calls(world);
  const std::uint64_t wakeups = world.kernel.wakeups();
  link.connection->send("");
  link.connection->send(std::string());
  link.connection->send(std::vector<std::byte>());
  link.connection->send(SharedBytes());
  EXPECT_EQ(link.connection->try_send(std::span<const std::byte>()), SendOutcome::accepted);
  world.turn(5);
  EXPECT_EQ(send_calls(world), sends);
  EXPECT_EQ(world.kernel.wakeups(), wakeups);
  EXPECT_EQ(link.record->count("write_complete"), 0u);
  EXPECT_EQ(receive(linux_kernel(), link.client.get()).result, -EAGAIN) << "a FIN has left";
  EXPECT_TRUE(link.connection->is_open());
}

// W6
TEST_P(WritePath, EmptyPayloadsBetweenOthersLeaveNoTrace) {
  World::Link link = world.connect();
  shrink_buffers(link);
  const std::string large = pattern(300 * kKiB);
  const auto send_empty = [&] {
    link.connection->send("");
    link.connection->send(std::string());
    link.connection->send(SharedBytes());
  };
  send_empty();
  link.connection->send("a");
  send_empty();
  link.connection->send(large);
  send_empty();  // while output is pending
  link.connection->send("b");
  send_empty();
  expect_received(link, "a" + large + "b");
  world.turn(3);
  EXPECT_EQ(link.record->count("write_complete"), 1u);
  EXPECT_TRUE(link.connection->is_open());
}

/// An echo connection.
ConnectionCallbacks echoing(const std::shared_ptr<Record>& record) {
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [record](TcpConnection& peer, InputBuffer& in) {
    record->events.emplace_back("message");
    peer.send(in.take());
  };
  return callbacks;
}

/// The client sends the text to an echo connection and reads it back at the same time.
void expect_echo(World& world, const World::Link& link, const std::string& text) {
  std::string_view unsent = text;
  std::string received;
  EXPECT_TRUE(world.run_until([&] {
    const ssize_t sent =
        unsent.empty() ? 0
                       : send_text(linux_kernel(), link.client.get(), unsent.substr(0, 256 * kKiB));
    if (sent > 0) unsent.remove_prefix(static_cast<std::size_t>(sent));
    received += receive_available(link);
    return received.size() >= text.size();
  }));
  EXPECT_EQ(first_difference(received, text), kNowhere);
}

// W7
TEST_P(WritePath, InterruptedCallsAreRetried) {
  auto record = std::make_shared<Record>();
  World::Link link = world.connect(record, echoing(record));
  std::vector<FaultyKernel::Rule> rules;
  for (const Call call : {Call::recv, Call::send, Call::sendmsg, wait_call(GetParam())}) {
    rules.push_back(world.kernel.inject({.call = call, .every = 2, .error = EINTR}));
  }
  const TimePoint due = world.kernel.now() + std::chrono::milliseconds(20);
  TimePoint fired_at = kNever;
  world.loop.run_at(due, [&] { fired_at = world.kernel.now(); });
  expect_echo(world, link, pattern(2 * kMiB));
  // One more piece that leaves by sendmsg.
  world.loop.queue_in_loop([&] {
    link.connection->send("head");
    link.connection->send(pattern(5000));
    link.connection->send("head");
    link.connection->send(pattern(5000));
  });
  expect_received(link, "head" + pattern(5000) + "head" + pattern(5000));
  ASSERT_TRUE(world.run_until([&] { return fired_at != kNever; }));
  EXPECT_GE(fired_at, due);
  for (const auto rule : rules)
    EXPECT_GE(world.kernel.fired(rule), 1u);
}

std::atomic<int> alarms{0};

// W7
TEST_P(WritePath, SignalsAtOneKilohertzDisturbNothing) {
  struct sigaction counting{};
  struct sigaction previous{};
  counting.sa_handler = [](int) { ++alarms; };  // no SA_RESTART
  ASSERT_EQ(sigaction(SIGALRM, &counting, &previous), 0);
  itimerval each_millisecond{.it_interval = {.tv_sec = 0, .tv_usec = 1000},
                             .it_value = {.tv_sec = 0, .tv_usec = 1000}};
  alarms = 0;
  setitimer(ITIMER_REAL, &each_millisecond, nullptr);
  auto record = std::make_shared<Record>();
  World::Link link = world.connect(record, echoing(record));
  expect_echo(world, link, pattern(4 * kMiB));
  EXPECT_TRUE(world.run_until([&] { return alarms > 20; }));
  const itimerval never{};
  setitimer(ITIMER_REAL, &never, nullptr);
  sigaction(SIGALRM, &previous, nullptr);
  EXPECT_TRUE(link.connection->is_open());
  EXPECT_EQ(record->closes, 0);
}

// W8, fault matrix: sendmsg ENOBUFS, ENOMEM
TEST_P(WritePath, AShortageOfKernelMemoryIsWaitedOutWithoutSpinning) {
  for (const int error : {ENOBUFS, ENOMEM}) {
    for (const Call call : {Call::send, Call::sendmsg}) {
      SCOPED_TRACE(testing::Message() << "errno " << error << ", call " << static_cast<int>(call));
      World::Link link = world.connect();
      const auto rule = world.kernel.inject(
          {.call = call, .fd = link.connection->descriptor(), .every = 1, .error = error});
      const TimePoint begin = world.kernel.now();
      std::string expected;
      if (call == Call::sendmsg) expected = "head";
      world.loop.queue_in_loop([&link, head = expected] {
        link.connection->send(head);
        link.connection->send(pattern(5000));
      });
      expected += pattern(5000);
      world.turn(2);
      ASSERT_EQ(world.kernel.fired(rule), 1u);
      for (int i = 0; i < 100; ++i)
        pass(world, std::chrono::milliseconds(5));
      const auto elapsed = world.kernel.now() - begin;
      // 10 ms, doubling to 1 s.
      std::uint64_t attempts_max = 1;
      Duration delay = std::chrono::milliseconds(10);
      for (Duration at = delay; at <= elapsed; at += delay) {
        ++attempts_max;
        delay = std::min<Duration>(delay * 2, std::chrono::seconds(1));
      }
      EXPECT_GE(world.kernel.fired(rule), 3u);
      EXPECT_LE(world.kernel.fired(rule), attempts_max);
      world.kernel.heal();
      world.kernel.advance(std::chrono::seconds(1));
      expect_received(link, expected);
      EXPECT_EQ(link.connection->queued_bytes(), 0u);
      link.connection->abort();
      ASSERT_TRUE(ended(link));
    }
  }
}

// W8, fault matrix: the write-stall limit applies
TEST_P(WritePath, ALastingShortageOfKernelMemoryEndsByTheWriteStallLimit) {
  ConnectionLimits limits;
  limits.write_stall_timeout = std::chrono::seconds(100);
  World::Link link = world.connect(limits);
  const auto rule = world.kernel.inject(
      {.call = Call::send, .fd = link.connection->descriptor(), .every = 1, .error = ENOBUFS});
  link.connection->send("never to leave");
  world.turn(2);
  for (int i = 0; i < 155 && link.record->closes == 0; ++i)
    pass(world, std::chrono::seconds(1));
  ASSERT_EQ(link.record->closes, 1);
  EXPECT_EQ(link.record->report->reason, CloseReason::timeout);
  EXPECT_EQ(link.record->report->timeout, TimeoutKind::write_stall);
  EXPECT_EQ(link.record->report->bytes_discarded, 14u);
  EXPECT_GT(world.kernel.fired(rule), 10u);
  EXPECT_EQ(charged(), 0u);
}

// W8, W12: a shortage at the peer's end of things does not disturb other connections
TEST_P(WritePath, AConnectionWithoutKernelMemoryHoldsUpNoOther) {
  auto record = std::make_shared<Record>();
  World::Link other = world.connect(record, echoing(record));
  World::Link starved = world.connect();
  const auto rule = world.kernel.inject(
      {.call = Call::send, .fd = starved.connection->descriptor(), .every = 1, .error = ENOBUFS});
  starved.connection->send("waits");
  expect_echo(world, other, pattern(kMiB));
  EXPECT_GE(world.kernel.fired(rule), 1u);
  EXPECT_EQ(starved.record->closes, 0);
}

// W9
TEST_P(WritePath, AResetWithOutputQueuedDeliversTheInputFirstAndEndsOnce) {
  World::Link link = world.connect();
  shrink_buffers(link);
  ConnectionLimits limits;
  const std::size_t accepted = kMiB;
  ASSERT_GT(accepted, limits.high_water);
  link.connection->send(pattern(accepted));
  world.settle();
  EXPECT_FALSE(link.connection->is_reading());
  deliver(link, "last words");
  send_reset(link);
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(link.record->received, "last words");
  EXPECT_EQ(link.record->report->reason, CloseReason::reset);
  EXPECT_EQ(link.record->report->bytes_sent + link.record->report->bytes_discarded, accepted);
  EXPECT_EQ(link.record->count("write_complete"), 0u);
  world.turn(10);
  EXPECT_EQ(link.record->closes, 1);
  EXPECT_EQ(link.record->events.back(), "close");
  EXPECT_EQ(charged(), 0u);
}

// W10
TEST_P(WritePath, WritesToDeadPeersDoNotRaiseSigpipe) {
  struct sigaction by_default{};
  struct sigaction previous{};
  by_default.sa_handler = SIG_DFL;
  ASSERT_EQ(sigaction(SIGPIPE, &by_default, &previous), 0);
  int broken_pipes = 0;
  int ends = 0;
  for (int round = 0; round < 500; ++round) {
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_peer_finished = [](TcpConnection&) {};
    World::Link link = world.connect(record, std::move(callbacks));
    link.client.reset();
    // The first send makes the peer answer with a reset, the next one meets it (K23).
    link.connection->send("first");
    if (round % 2 == 0) link.connection->send(pattern(5000));
    world.loop.queue_in_loop([&] {
      if (record->closes == 0 && link.connection->is_open()) link.connection->send("second");
    });
    ASSERT_TRUE(world.run_until([&] {
      if (record->closes == 0 && link.connection->is_open()) link.connection->send("another");
      return record->closes == 1;
    }));
    const int error = record->report->error.value();
    if (error == EPIPE) ++broken_pipes;
    ends += record->closes;
  }
  sigaction(SIGPIPE, &previous, nullptr);
  EXPECT_EQ(ends, 500);
  if (acts_at_once(GetParam())) {  // else the reset is seen before the send is made
    EXPECT_GT(broken_pipes, 0) << "no send has met a dead peer";
  }
}

// W11
TEST_P(WritePath, SendingFromWriteCompleteForEverNeedsNoStackAndLetsOthersProgress) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{5000}}) {
    SCOPED_TRACE(size);
    auto record = std::make_shared<Record>();
    auto other_record = std::make_shared<Record>();
    int depth = 0;
    int depth_max = 0;
    std::size_t completions = 0;
    const std::string payload = pattern(size);
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_write_complete = [&](TcpConnection& peer) {
      depth_max = std::max(depth_max, ++depth);
      ++completions;
      peer.send(payload);
      --depth;
    };
    World::Link link = world.connect(record, std::move(callbacks));
    World::Link other = world.connect(other_record, echoing(other_record));
    link.connection->send(payload);
    std::size_t received = 0;
    std::size_t echoes = 0;
    deliver(other, "x");
    ASSERT_TRUE(world.run_until([&] {
      received += receive_available(link).size();
      if (!receive_available(other).empty()) {
        ++echoes;
        send_text(linux_kernel(), other.client.get(), "x");
      }
      return completions >= 2000 && echoes >= 100;
    }));
    EXPECT_EQ(depth_max, 1);
    EXPECT_GE(received, (completions - 1) / 2 * size);
    link.connection->abort();
    other.connection->abort();
    ASSERT_TRUE(ended(link));
    ASSERT_TRUE(ended(other));
  }
}

// W12, fault matrix: sendmsg EAGAIN
TEST_P(WritePath, AnEagainAtAnySendOfAConversationOnlyDelaysIt) {
  const std::string large = pattern(20'000);
  const std::string expected =
      "small " + large + "between " + large + large + "tail " + "completed " + large;
  for (const Call call : {Call::send, Call::sendmsg}) {
    bool reached = true;
    for (std::uint64_t nth = 1; reached; ++nth) {
      SCOPED_TRACE(testing::Message() << "call " << static_cast<int>(call) << " no. " << nth);
      ASSERT_LT(nth, 100u);
      auto record = std::make_shared<Record>();
      ConnectionCallbacks callbacks = World::recording(record);
      callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
        in.take();
        peer.send("small ");
        peer.send(large);
        peer.send("between ");
        peer.send(std::string(large));
        peer.send(SharedBytes(std::string(large)));
        peer.send("tail ");
      };
      callbacks.on_write_complete = [&, first = std::make_shared<bool>(true)](TcpConnection& peer) {
        // The message may drain in several steps; the reply to its end comes once.
        if (peer.bytes_sent() < expected.size() - 10 - large.size() || !*first) return;
        *first = false;
        peer.send("completed ");
        peer.send(std::string(large));
      };
      World::Link link = world.connect(record, std::move(callbacks));
      const auto rule = world.kernel.inject(
          {.call = call, .fd = link.connection->descriptor(), .first = nth, .error = EAGAIN});
      deliver(link, "go");
      expect_received(link, expected);
      reached = world.kernel.fired(rule) == 1;
      EXPECT_TRUE(reached || nth > 1 || !acts_at_once(GetParam())) << "no such call at all";
      EXPECT_TRUE(link.connection->is_open());
      EXPECT_EQ(link.connection->queued_bytes(), 0u);
      world.kernel.heal();
      link.connection->abort();
      ASSERT_TRUE(ended(link));
    }
  }
}

// W14
TEST_P(WritePath, AGibibyteInOneSendIsNotAcceptedAndTakesNoMemory) {
  ConnectionLimits limits;
  limits.high_water = 64 * kKiB;
  limits.low_water = 16 * kKiB;
  World::Link link = world.connect(limits);
  // Never touched: refusing it must not read it.
  const std::size_t size = 1024 * kMiB;
  const auto memory = std::unique_ptr<std::byte[]>(new std::byte[size]);
  const std::uint64_t sends = send_calls(world);
  EXPECT_EQ(link.connection->try_send(std::span<const std::byte>(memory.get(), size)),
            SendOutcome::full);
  EXPECT_EQ(send_calls(world), sends);
  EXPECT_EQ(charged(), 0u);
  EXPECT_EQ(link.connection->try_send("still open"), SendOutcome::accepted);
  expect_received(link, "still open");

  link.connection->send(std::span<const std::byte>(memory.get(), size));
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(link.record->report->reason, CloseReason::overflow);
  EXPECT_EQ(charged(), 0u);
}

// W15
TEST_P(WritePath, SizesBeyondFourGibibytesAreNotTruncated) {
#ifdef __SANITIZE_THREAD__
  // One thread, so nothing to race; and each send would mark all of what it offers, 4 GiB, in
  // ThreadSanitizer's shadow memory, three times that size.
  GTEST_SKIP() << "too large for ThreadSanitizer's shadow; every other build runs it";
#endif
  World wide(GetParam(), make_counted<MemoryBudget>(std::size_t{16} << 30));
  ConnectionLimits limits;
  limits.output_max = 0;
  World::Link link = wide.connect(limits);
  const std::size_t size = (std::size_t{1} << 32) + 12'345;
  std::string payload;
  // Mostly pages that are never written, so this takes address space rather than memory.
  payload.resize_and_overwrite(size, [](char* text, std::size_t length) {
    for (const std::size_t at : {std::size_t{0}, std::size_t{1} << 31, length - 7}) {
      std::string_view("marker!").copy(text + at, 7);
    }
    return length;
  });
  link.connection->send(std::move(payload));
  EXPECT_EQ(link.connection->queued_bytes() + link.connection->bytes_sent(), size);
  EXPECT_GT(link.connection->queued_bytes(), std::size_t{1} << 31);
  link.connection->finish();

  std::vector<char> block(4 * kMiB);
  std::size_t received = 0;
  std::string middle;
  ASSERT_TRUE(wide.run_until([&] {
    while (true) {
      // Read where the markers are, dropped in the kernel elsewhere (MSG_TRUNC, tcp(7)).
      std::size_t wanted = block.size();
      int flags = MSG_TRUNC;
      for (const std::size_t marker : {std::size_t{0}, std::size_t{1} << 31, size - 7}) {
        if (received < marker) wanted = std::min(wanted, marker - received);
        if (received >= marker && received < marker + 7) {
          wanted = std::min(wanted, marker + 7 - received);
          flags = 0;
        }
      }
      const ssize_t count = linux_kernel().recv(link.client.get(), block.data(), wanted, flags);
      if (count <= 0) return count == 0;
      if (flags == 0) middle.append(block.data(), static_cast<std::size_t>(count));
      received += static_cast<std::size_t>(count);
    }
  }));
  EXPECT_EQ(received, size);
  EXPECT_EQ(middle, "marker!marker!marker!");
  link.client.reset();
  ASSERT_TRUE(wide.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->bytes_sent, size);
}

// -- Large payloads: at once, gathered, uncopied --

/// The pieces of one send call.
using Pieces = std::vector<iovec>;

std::size_t size_of(const Pieces& pieces) {
  std::size_t size = 0;
  for (const iovec& piece : pieces)
    size += piece.iov_len;
  return size;
}

TEST_P(WritePath, ALargePayloadLeavesAtOnceBehindThePendingSmallOnesAndUncopied) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "a completion back-end takes nothing at once");
  std::string text = pattern(100'000);
  std::vector<std::byte> bytes = bytes_of(text);
  const SharedBytes shared{std::string(text)};
  const std::string borrowed = text;
  const void* const memory[] = {borrowed.data(), text.data(), bytes.data(), shared.bytes().data()};
  for (int kind = 0; kind < 4; ++kind) {
    SCOPED_TRACE(kind);
    World::Link link = world.connect();
    std::vector<Pieces> calls;
    world.tap.on_send = [&](int, std::span<const iovec> pieces) {
      calls.emplace_back(pieces.begin(), pieces.end());
    };
    world.loop.queue_in_loop([&] {
      link.connection->send("head");
      link.connection->send("er");
      EXPECT_EQ(calls.size(), 0u);
      switch (kind) {
        case 0:
          link.connection->send(borrowed);
          break;
        case 1:
          link.connection->send(std::move(text));
          break;
        case 2:
          link.connection->send(std::move(bytes));
          break;
        default:
          link.connection->send(shared);
          break;
      }
      ASSERT_EQ(calls.size(), 1u) << "it did not leave at once, or not in one call";
      ASSERT_EQ(calls[0].size(), 2u);
      EXPECT_EQ(calls[0][0].iov_len, 6u);
      EXPECT_EQ(calls[0][1].iov_base, memory[kind]) << "copied";
      EXPECT_EQ(size_of(calls[0]), 100'006u);
    });
    expect_received(link, "header" + borrowed);
    world.tap.on_send = nullptr;
  }
}

TEST_P(WritePath, ALargePayloadInAHandlerLeavesInOneCallWithItsHeader) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [](TcpConnection& peer, InputBuffer& in) {
    in.take();
    peer.send("header");
    peer.send(pattern(50'000));
  };
  World::Link link = world.connect(record, std::move(callbacks));
  const std::uint64_t singles = world.kernel.calls(Call::send);
  const std::uint64_t gathered = world.kernel.calls(Call::sendmsg);
  deliver(link, "get");
  expect_received(link, "header" + pattern(50'000));
  EXPECT_EQ(world.kernel.calls(Call::send), singles);
  EXPECT_EQ(world.kernel.calls(Call::sendmsg), gathered + 1);
}

TEST_P(WritePath, AnOwnedPayloadThatHasToWaitIsNeverCopied) {
  World::Link link = world.connect();
  shrink_buffers(link);
  std::string first = pattern(kMiB);
  std::string second = pattern(500'000);
  const SharedBytes third{pattern(400'000)};
  const auto within = [](const iovec& piece, const void* memory, std::size_t size) {
    return piece.iov_base >= memory && static_cast<const char*>(piece.iov_base) + piece.iov_len <=
                                           static_cast<const char*>(memory) + size;
  };
  const void* const first_memory = first.data();
  const void* const second_memory = second.data();
  const void* const third_memory = third.bytes().data();
  std::size_t strange = 0;
  std::size_t pieces_seen = 0;
  world.tap.on_send = [&](int, std::span<const iovec> pieces) {
    for (const iovec& piece : pieces) {
      ++pieces_seen;
      if (!within(piece, first_memory, kMiB) && !within(piece, second_memory, 500'000) &&
          !within(piece, third_memory, 400'000)) {
        ++strange;
      }
    }
  };
  link.connection->send(std::move(first));
  link.connection->send(std::move(second));
  link.connection->send(third);
  expect_received(link, pattern(kMiB) + pattern(500'000) + pattern(400'000));
  EXPECT_GT(pieces_seen, 3u);
  EXPECT_EQ(strange, 0u) << "pieces that left from other memory than the payloads'";
}

TEST_P(WritePath, ABroadcastSharesOneCopyOfItsBytes) {
  std::vector<World::Link> links;
  for (int i = 0; i < 5; ++i)
    links.push_back(world.connect());
  const SharedBytes news{pattern(60'000)};
  std::size_t from_the_shared_bytes = 0;
  world.tap.on_send = [&](int, std::span<const iovec> pieces) {
    for (const iovec& piece : pieces) {
      if (piece.iov_base == news.bytes().data()) ++from_the_shared_bytes;
    }
  };
  for (const World::Link& link : links)
    link.connection->send(news);
  for (const World::Link& link : links)
    expect_received(link, pattern(60'000));
  EXPECT_EQ(from_the_shared_bytes, 5u);
}

// -- Write-complete --

TEST_P(WritePath, WriteCompleteComesOncePerDrainAfterTheLastByte) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_write_complete = [record](TcpConnection& peer) {
    EXPECT_EQ(peer.queued_bytes(), 0u);
    record->events.emplace_back("write_complete");
  };
  World::Link link = world.connect(record, std::move(callbacks));
  shrink_buffers(link);
  for (std::size_t drains = 1; drains <= 3; ++drains) {
    for (int i = 0; i < 10; ++i)
      link.connection->send(pattern(50'000));
    EXPECT_EQ(record->count("write_complete"), drains - 1);
    EXPECT_EQ(collect(world, link, 500'000).size(), 500'000u);
    world.turn(3);
    EXPECT_EQ(record->count("write_complete"), drains);
  }
}

TEST_P(WritePath, ASendNeverRunsUserCode) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  bool sending = false;
  const auto outside_of_send = [&](TcpConnection&) { EXPECT_FALSE(sending); };
  callbacks.on_write_complete = outside_of_send;
  callbacks.on_high_water = outside_of_send;
  callbacks.on_low_water = outside_of_send;
  World::Link link = world.connect(record, std::move(callbacks));
  shrink_buffers(link);
  for (const std::size_t size : {10u, 5000u, 1'000'000u, 20'000'000u}) {
    sending = true;
    link.connection->send(pattern(size));
    sending = false;
  }
  ASSERT_TRUE(ended(link));  // the last one is over the hard cap
  EXPECT_EQ(record->report->reason, CloseReason::overflow);
}

// -- Fault matrix: errors that end a connection --

// Fault matrix: sendmsg ECONNRESET, EPIPE
TEST_P(WritePath, ASendThatFailsEndsTheConnectionAfterWhatHasArrivedWasRead) {
  for (const int error : {ECONNRESET, EPIPE}) {
    for (const std::size_t size : {std::size_t{10}, std::size_t{5000}}) {
      SCOPED_TRACE(testing::Message() << "errno " << error << ", size " << size);
      World::Link link = world.connect();
      deliver(link, "already there");
      const auto rule = world.kernel.inject(
          {.call = Call::send, .fd = link.connection->descriptor(), .error = error});
      world.loop.queue_in_loop([&] { link.connection->send(pattern(size)); });
      world.settle();
      EXPECT_EQ(link.record->closes, 1) << "the peer is silent, and the connection is kept";
      EXPECT_EQ(world.kernel.fired(rule), 1u);
      EXPECT_EQ(link.record->received, "already there");
      if (link.record->closes == 0) {
        link.connection->abort();
        ASSERT_TRUE(ended(link));
        continue;
      }
      EXPECT_EQ(link.record->report->reason, CloseReason::reset);
      EXPECT_EQ(link.record->report->error.value(), error);
      EXPECT_EQ(charged(), 0u);
    }
  }
}

// Fault matrix: epoll_ctl ADD ENOMEM, ENOSPC
TEST_P(WritePath, AConnectionThatCannotBeRegisteredIsClosedAndCounted) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "poll registers nothing that could fail");
  ConnectionTable& table = ConnectionTable::of(world.loop);
  for (const int error : {ENOMEM, ENOSPC}) {
    SCOPED_TRACE(error);
    SocketPair pair = tcp_pair(world.kernel);
    const std::size_t descriptors = World::open_descriptors();
    const std::uint64_t refused = table.statistics().refused;
    auto record = std::make_shared<Record>();
    const auto rule =
        world.kernel.inject({.call = Call::epoll_ctl, .operation = EPOLL_CTL_ADD, .error = error});
    const Result<ConnectionHandle> handle = table.adopt(
        std::move(pair.server), SocketAddress(), make_behaviour(World::recording(record)), nullptr);
    ASSERT_FALSE(handle.has_value());
    EXPECT_EQ(handle.error().value(), error);
    EXPECT_EQ(world.kernel.fired(rule), 1u);
    EXPECT_EQ(table.statistics().refused, refused + 1);
    EXPECT_EQ(World::open_descriptors(), descriptors - 1);
    world.turn(3);
    EXPECT_TRUE(record->events.empty());
    EXPECT_EQ(table.size(), 0u);
  }
}

// Fault matrix: recv EAGAIN, ENOBUFS, ENOMEM
TEST_P(WritePath, ARecvThatAnswersNothingYetLosesNothing) {
  const std::string text = pattern(200'000);
  for (const int error : {EAGAIN, EINTR, ENOBUFS, ENOMEM}) {
    SCOPED_TRACE(error);
    World::Link link = world.connect();
    const auto rule = world.kernel.inject({.call = Call::recv,
                                           .fd = link.connection->descriptor(),
                                           .every = 2,
                                           .times = 5,
                                           .error = error});
    feed(world, link, text);
    EXPECT_TRUE(world.run_until([&] {
      world.kernel.advance(std::chrono::milliseconds(20));
      return link.record->received.size() == text.size();
    }));
    EXPECT_EQ(first_difference(link.record->received, text), kNowhere);
    EXPECT_GE(world.kernel.fired(rule), 1u);
    EXPECT_TRUE(link.connection->is_open());
    world.kernel.heal();
  }
}

// Fault matrix: recv ENOBUFS, with back-off
TEST_P(WritePath, ARecvWithoutKernelMemoryIsRetriedWithoutSpinning) {
  World::Link link = world.connect();
  const auto rule = world.kernel.inject(
      {.call = Call::recv, .fd = link.connection->descriptor(), .every = 1, .error = ENOBUFS});
  deliver(link, "patience");
  const TimePoint begin = world.kernel.now();
  world.turn(500);
  std::uint64_t attempts_max = 2;
  Duration delay = std::chrono::milliseconds(10);
  for (Duration at = delay; at <= world.kernel.now() - begin; at += delay) {
    ++attempts_max;
    delay = std::min<Duration>(delay * 2, std::chrono::seconds(1));
  }
  EXPECT_GE(world.kernel.fired(rule), 1u);
  EXPECT_LE(world.kernel.fired(rule), attempts_max);
  world.kernel.heal();
  world.kernel.advance(std::chrono::seconds(1));
  EXPECT_TRUE(world.run_until([&] { return link.record->received == "patience"; }));
}

// Fault matrix: recv ECONNRESET, ECONNABORTED
TEST_P(WritePath, ARecvThatFailsEndsTheConnectionWithItsError) {
  for (const int error : {ECONNRESET, ECONNABORTED, EHOSTUNREACH}) {
    SCOPED_TRACE(error);
    World::Link link = world.connect();
    deliver(link, "first");
    ASSERT_TRUE(world.run_until([&] { return link.record->received == "first"; }));
    const auto rule = world.kernel.inject(
        {.call = Call::recv, .fd = link.connection->descriptor(), .error = error});
    deliver(link, "second");
    ASSERT_TRUE(ended(link));
    EXPECT_EQ(world.kernel.fired(rule), 1u);
    EXPECT_EQ(link.record->report->reason, CloseReason::reset);
    EXPECT_EQ(link.record->report->error.value(), error);
    EXPECT_EQ(link.record->report->bytes_received, 5u);
  }
}

// Fault matrix: recv falls short
TEST_P(WritePath, InputThatComesByteByByteIsWhole) {
  World::Link link = world.connect();
  const auto rule = world.kernel.inject(
      {.call = Call::recv, .fd = link.connection->descriptor(), .every = 1, .shorten_to = 1});
  const std::string text = pattern(3000);
  deliver(link, text);
  send_fin(link);
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(link.record->received, text);
  EXPECT_EQ(link.record->report->reason, CloseReason::eof);
  EXPECT_GE(world.kernel.fired(rule), 3000u);
}

PENSTOCK_ON_EVERY_BACKEND(WritePath);

}  // namespace
}  // namespace penstock::test

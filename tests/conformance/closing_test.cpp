// Close, half-close and reset (scenarios C1 to C16), the limits of time, behaviour and context, on every back-end.

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::seconds;

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;
constexpr std::size_t kNowhere = std::string_view::npos;

/// Records on_peer_finished too; with it, the end of the input is the callbacks' affair.
ConnectionCallbacks recording_the_end(const std::shared_ptr<Record>& record) {
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_peer_finished = [record](TcpConnection&) {
    record->events.emplace_back("peer_finished");
  };
  return callbacks;
}

class Closing : public ConformanceTest {
 protected:
  std::size_t charged() { return world.loop.memory().used(); }
  bool ended(const Record& record) {
    return world.run_until([&] { return record.closes == 1; });
  }
  bool ended(const World::Link& link) { return ended(*link.record); }
  void expect_end(const World::Link& link, CloseReason reason,
                  TimeoutKind timeout = TimeoutKind::none) {
    ASSERT_TRUE(ended(link));
    EXPECT_EQ(to_string(link.record->report->reason), to_string(reason));
    EXPECT_EQ(to_string(link.record->report->timeout), to_string(timeout));
    world.turn(5);
    EXPECT_EQ(link.record->closes, 1);
    EXPECT_EQ(link.record->events.back(), "close");
    EXPECT_EQ(charged(), 0u);
  }
  void expect_end_of(const World::Link& link, CloseReason reason) {
    ASSERT_TRUE(ended(link));
    EXPECT_EQ(to_string(link.record->report->reason), to_string(reason));
  }
};

// -- Half-close --

// C1
TEST_P(Closing, APeerThatFinishesAfterItsRequestGetsTheWholeReplyThenFin) {
  const std::string reply = pattern(3 * kMiB);
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    record->received += in.take_string();
    peer.send(reply);
  };
  World::Link link = world.connect(record, std::move(callbacks));
  shrink_buffers(link);
  deliver(link, "request");
  send_fin(link);
  world.settle();
  EXPECT_EQ(record->closes, 0) << "closed with the reply still queued";
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(all.result, 0);
  EXPECT_EQ(first_difference(all.text, reply), kNowhere);
  expect_end(link, CloseReason::eof);
  EXPECT_EQ(record->received, "request");
  EXPECT_EQ(record->report->bytes_sent, reply.size());
  EXPECT_EQ(record->report->bytes_received, 7u);
}

// C1
TEST_P(Closing, AHoldDelaysTheAutomaticFinishUntilItsRelease) {
  ConnectionLimits limits;
  limits.half_close_timeout = seconds(1000);
  limits.idle_timeout = seconds(1000);
  World::Link link = world.connect(limits);
  link.connection->hold();
  link.connection->hold();
  deliver(link, "request");
  send_fin(link);
  world.settle();
  pass(world, seconds(20'000));
  EXPECT_EQ(link.record->closes, 0) << "a limit of time ran in spite of the hold";
  EXPECT_EQ(receive(linux_kernel(), link.client.get()).result, -EAGAIN) << "FIN in spite of holds";
  link.connection->release();
  world.settle();
  EXPECT_EQ(receive(linux_kernel(), link.client.get()).result, -EAGAIN) << "FIN with one hold left";
  world.loop.queue_in_loop([&] {
    link.connection->send("the computed reply");
    link.connection->release();
  });
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(all.text, "the computed reply");
  EXPECT_EQ(all.result, 0);
  expect_end(link, CloseReason::eof);
}

TEST_P(Closing, AHoldThatIsReleasedBeforeThePeerFinishesChangesNothing) {
  World::Link link = world.connect();
  link.connection->hold();
  link.connection->release();
  world.settle();
  EXPECT_EQ(receive(linux_kernel(), link.client.get()).result, -EAGAIN);
  send_fin(link);
  EXPECT_EQ(collect_to_end(world, link).result, 0);
  expect_end(link, CloseReason::eof);
}

// C2
TEST_P(Closing, FinishSendsFinBehindTheLastQueuedByte) {
  const std::string payload = pattern(kMiB);
  World::Link link = world.connect();
  shrink_buffers(link);
  const std::uint64_t shutdowns = world.kernel.calls(Call::shutdown);
  std::size_t queued_at_shutdown = 1;
  world.kernel.before(Call::shutdown,
                      [&](int) { queued_at_shutdown = link.connection->queued_bytes(); });
  link.connection->send(payload);
  link.connection->finish();
  world.settle();
  EXPECT_EQ(world.kernel.calls(Call::shutdown), shutdowns);
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(all.result, 0);
  EXPECT_EQ(first_difference(all.text, payload), kNowhere);
  EXPECT_EQ(queued_at_shutdown, 0u);
  EXPECT_EQ(world.kernel.calls(Call::shutdown), shutdowns + 1);
  // The other direction is still open.
  deliver(link, "and still I speak");
  EXPECT_TRUE(world.run_until([&] { return link.record->received == "and still I speak"; }));
  send_fin(link);
  expect_end(link, CloseReason::eof);
}

// C2
TEST_P(Closing, FinishInTheHandlerThatSendsSendsFinBehindIt) {
  for (const std::size_t size : {std::size_t{5}, std::size_t{5000}, kMiB}) {
    SCOPED_TRACE(size);
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
      in.take();
      peer.send(pattern(size));
      peer.finish();
    };
    World::Link link = world.connect(record, std::move(callbacks));
    shrink_buffers(link);
    deliver(link, "go");
    const Received all = collect_to_end(world, link);
    EXPECT_EQ(all.result, 0);
    EXPECT_EQ(first_difference(all.text, pattern(size)), kNowhere);
    send_fin(link);
    expect_end(link, CloseReason::eof);
  }
}

// C14
TEST_P(Closing, AnApplicationThatIgnoresTheEndOfInputIsClosedByTheHalfCloseLimit) {
  const std::size_t descriptors = World::open_descriptors();
  auto record = std::make_shared<Record>();
  ConnectionLimits limits;
  limits.half_close_timeout = seconds(1000);
  limits.idle_timeout = seconds(0);
  World::Link link = world.connect(record, recording_the_end(record), limits);
  deliver(link, "bye");
  send_fin(link);
  ASSERT_TRUE(world.run_until([&] { return record->count("peer_finished") == 1; }));
  pass(world, seconds(900));
  EXPECT_EQ(record->closes, 0);
  EXPECT_EQ(receive(linux_kernel(), link.client.get()).result, -EAGAIN) << "an automatic finish";
  pass(world, seconds(200));
  expect_end(link, CloseReason::timeout, TimeoutKind::half_close);
  EXPECT_EQ(record->received, "bye");
  EXPECT_EQ(record->count("peer_finished"), 1u);
  link.client.reset();
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

TEST_P(Closing, TheCallbackForTheEndOfInputDecidesWhatFollows) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_peer_finished = [record](TcpConnection& peer) {
    record->events.emplace_back("peer_finished");
    peer.send("one more thing");
    peer.finish();
  };
  World::Link link = world.connect(record, std::move(callbacks));
  send_fin(link);
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(all.text, "one more thing");
  EXPECT_EQ(all.result, 0);
  expect_end(link, CloseReason::eof);
}

// The half-close limit runs only without progress.
TEST_P(Closing, AHalfClosedConnectionThatStillSendsIsNotClosedByTheHalfCloseLimit) {
  auto record = std::make_shared<Record>();
  ConnectionLimits limits;
  limits.half_close_timeout = seconds(1000);
  limits.idle_timeout = seconds(0);
  World::Link link = world.connect(record, recording_the_end(record), limits);
  send_fin(link);
  ASSERT_TRUE(world.run_until([&] { return record->count("peer_finished") == 1; }));
  for (int i = 0; i < 10; ++i) {
    pass(world, seconds(700));
    ASSERT_EQ(record->closes, 0) << "after " << i << " replies";
    link.connection->send("tick");
    EXPECT_EQ(collect(world, link, 4), "tick");
  }
  pass(world, seconds(1100));
  expect_end(link, CloseReason::timeout, TimeoutKind::half_close);
}

// C16
TEST_P(Closing, APeerThatNeverFinishesAfterOurFinIsClosedByTheHalfCloseLimit) {
  ConnectionLimits limits;
  limits.half_close_timeout = seconds(1000);
  limits.idle_timeout = seconds(0);
  World::Link link = world.connect(limits);
  link.connection->send("that is all");
  link.connection->finish();
  EXPECT_EQ(collect_to_end(world, link).text, "that is all");
  pass(world, seconds(900));
  EXPECT_EQ(link.record->closes, 0);
  deliver(link, "progress");
  world.settle();
  pass(world, seconds(900));
  EXPECT_EQ(link.record->closes, 0) << "input is progress";
  pass(world, seconds(200));
  expect_end(link, CloseReason::timeout, TimeoutKind::half_close);
  EXPECT_EQ(link.record->received, "progress");
}

// -- close() --

// C3
TEST_P(Closing, CloseWithUnreadInputAndQueuedOutputLosesNothingForThePeer) {
  const std::string reply = pattern(3 * kMiB);
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    record->events.emplace_back("message");
    in.consume(1);
    peer.send(reply);
    peer.close();
  };
  World::Link link = world.connect(record, std::move(callbacks));
  const std::string request = pattern(50'000);
  deliver(link, request);
  world.turn();
  EXPECT_EQ(record->count("message"), 1u);
  // More input, which nobody will read, comes before and while the output leaves.
  feed(world, link, request);
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(all.result, 0) << "a reset, which loses data at the peer";
  EXPECT_EQ(first_difference(all.text, reply), kNowhere);
  feed(world, link, request);
  world.settle();
  EXPECT_EQ(record->closes, 0) << "the drain ended early";
  send_fin(link);
  expect_end(link, CloseReason::local);
  EXPECT_EQ(record->count("message"), 1u);
  EXPECT_EQ(record->report->bytes_sent, reply.size());
  EXPECT_EQ(record->report->bytes_discarded, 0u);
  EXPECT_EQ(record->report->bytes_received, 3 * request.size());
  EXPECT_EQ(record->report->input_discarded, 3 * request.size() - 1);
}

// C3
TEST_P(Closing, CloseOfAPausedConnectionWithUnreadInputLosesNothingForThePeer) {
  World::Link link = world.connect();
  link.connection->pause_reading();
  deliver(link, pattern(50'000));
  link.connection->send(pattern(2 * kMiB));
  link.connection->close();
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(all.result, 0);
  EXPECT_EQ(first_difference(all.text, pattern(2 * kMiB)), kNowhere);
  send_fin(link);
  expect_end(link, CloseReason::local);
  EXPECT_TRUE(link.record->received.empty());
}

TEST_P(Closing, CloseDropsWhatTheMessageCallbackHadLeftUnconsumed) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) { in.consume(3); };
  World::Link link = world.connect(record, std::move(callbacks));
  deliver(link, "0123456789");
  world.settle();
  EXPECT_GT(charged(), 0u);
  link.connection->close();
  EXPECT_EQ(charged(), 0u);
  EXPECT_EQ(collect_to_end(world, link).result, 0);
  send_fin(link);
  expect_end(link, CloseReason::local);
  EXPECT_EQ(record->report->input_discarded, 7u);
}

TEST_P(Closing, ADrainEndsWhenThePeerStaysSilent) {
  ConnectionLimits limits;
  limits.drain_idle_timeout = seconds(1000);
  limits.drain_timeout = seconds(10'000);
  World::Link link = world.connect(limits);
  link.connection->close();
  world.settle();
  pass(world, seconds(900));
  deliver(link, "late");
  world.settle();
  pass(world, seconds(900));
  EXPECT_EQ(link.record->closes, 0) << "input is not silence";
  pass(world, seconds(200));
  expect_end(link, CloseReason::local);
}

TEST_P(Closing, ADrainEndsAfterItsWholeTimeEvenIfThePeerKeepsSending) {
  ConnectionLimits limits;
  limits.drain_idle_timeout = seconds(1000);
  limits.drain_timeout = seconds(3000);
  World::Link link = world.connect(limits);
  link.connection->close();
  world.settle();
  for (int i = 0; i < 5; ++i) {
    pass(world, seconds(550));
    ASSERT_EQ(link.record->closes, 0);
    deliver(link, "more");
    world.settle();
  }
  pass(world, seconds(300));  // 3,050
  expect_end(link, CloseReason::local);
}

TEST_P(Closing, ADrainWithoutASilenceLimitStillEndsAfterItsWholeTime) {
  ConnectionLimits limits;
  limits.idle_timeout = seconds(0);
  limits.drain_idle_timeout = seconds(0);
  limits.drain_timeout = seconds(1000);
  World::Link link = world.connect(limits);
  link.connection->close();
  world.settle();
  pass(world, seconds(900));
  EXPECT_EQ(link.record->closes, 0);
  pass(world, seconds(200));
  EXPECT_EQ(link.record->closes, 1);
}

TEST_P(Closing, ADrainEndsAfterItsMostBytes) {
  ConnectionLimits limits;
  limits.drain_max = 100 * kKiB;
  World::Link link = world.connect(limits);
  link.connection->close();
  feed(world, link, pattern(90 * kKiB));
  world.settle();
  EXPECT_EQ(link.record->closes, 0);
  feed(world, link, pattern(20 * kKiB));
  expect_end(link, CloseReason::local);
  EXPECT_GT(link.record->report->bytes_received, 100 * kKiB);
  EXPECT_EQ(link.record->report->input_discarded, link.record->report->bytes_received);
}

TEST_P(Closing, AClosingConnectionWhosePeerDoesNotReadEndsByTheWriteStallLimit) {
  ConnectionLimits limits;
  limits.write_stall_timeout = seconds(1000);
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  link.connection->send(pattern(kMiB));
  link.connection->close();
  world.settle();
  for (int i = 0; i < 16 && link.record->closes == 0; ++i)
    pass(world, seconds(100));
  expect_end(link, CloseReason::timeout, TimeoutKind::write_stall);
  EXPECT_EQ(link.record->report->bytes_sent + link.record->report->bytes_discarded, kMiB);
}

TEST_P(Closing, AProtocolErrorIsReportedAsThatAndLosesNothingForThePeer) {
  World::Link link = world.connect();
  shrink_buffers(link);
  link.connection->send(pattern(kMiB));
  link.connection->close_with_protocol_error();
  deliver(link, "unread");
  EXPECT_EQ(first_difference(collect_to_end(world, link).text, pattern(kMiB)), kNowhere);
  send_fin(link);
  expect_end(link, CloseReason::protocol);
}

// -- Reset behind data --

// C4, C5, K2, K3
TEST_P(Closing, AResetBehindDataIsToldAfterTheDataAndNeverAsAnEnd) {
  const std::string data = pattern(5000);
  for (const bool watches : {false, true}) {
    for (const std::size_t reply : {0u, 5u, 5000u, 100'000u}) {
      for (const std::size_t at_most : {0u, 1000u, 2500u}) {
        SCOPED_TRACE(testing::Message() << "on_peer_finished " << watches << ", reply " << reply
                                        << ", recv at most " << at_most);
        auto record = std::make_shared<Record>();
        ConnectionCallbacks callbacks =
            watches ? recording_the_end(record) : World::recording(record);
        callbacks.on_message = [record, reply](TcpConnection& peer, InputBuffer& in) {
          record->events.emplace_back("message");
          record->received += in.take_string();
          if (reply > 0) peer.send(pattern(reply));
        };
        World::Link link = world.connect(record, std::move(callbacks));
        std::optional<FaultyKernel::Rule> rule;
        if (at_most > 0) {
          rule = world.kernel.inject({.call = Call::recv,
                                      .fd = link.connection->descriptor(),
                                      .every = 1,
                                      .shorten_to = at_most});
        }
        const std::uint64_t options_read = world.kernel.calls(Call::getsockopt);
        deliver(link, data);
        send_reset(link);
        ASSERT_TRUE(ended(link));
        EXPECT_EQ(first_difference(record->received, data), kNowhere);
        EXPECT_EQ(to_string(record->report->reason), "reset");
        EXPECT_TRUE(record->report->error);
        EXPECT_EQ(record->count("peer_finished"), 0u) << "a reset was announced as an end";
        EXPECT_EQ(world.kernel.calls(Call::getsockopt), options_read) << "SO_ERROR was read";
        EXPECT_TRUE(!rule || world.kernel.fired(*rule) >= 2);
        world.kernel.heal();
        EXPECT_EQ(charged(), 0u);
      }
    }
  }
}

// C4
TEST_P(Closing, AResetThatASendFindsFirstStillDeliversTheInput) {
  for (const bool watches : {false, true}) {
    for (const std::size_t size : {5u, 5000u}) {
      SCOPED_TRACE(testing::Message() << "on_peer_finished " << watches << ", size " << size);
      auto record = std::make_shared<Record>();
      World::Link link =
          world.connect(record, watches ? recording_the_end(record) : World::recording(record));
      deliver(link, "before the reset");
      send_reset(link);
      world.loop.queue_in_loop([&] { link.connection->send(pattern(size)); });
      ASSERT_TRUE(ended(link));
      EXPECT_EQ(record->received, "before the reset");
      EXPECT_EQ(to_string(record->report->reason), "reset");
      EXPECT_EQ(record->count("peer_finished"), 0u);
      EXPECT_EQ(record->report->bytes_sent, 0u);
    }
  }
}

// C4
TEST_P(Closing, AResetBetweenReadinessAndRecvIsAReset) {
  World::Link link = world.connect();
  deliver(link, "data");
  bool done = false;
  world.kernel.before(Call::recv, [&](int) {
    if (!std::exchange(done, true)) send_reset(link);
  });
  ASSERT_TRUE(ended(link));
  EXPECT_TRUE(done);
  EXPECT_EQ(link.record->received, "data");
  EXPECT_EQ(to_string(link.record->report->reason), "reset");
}

TEST_P(Closing, AResetAfterTheEndOfInputIsAReset) {
  auto record = std::make_shared<Record>();
  World::Link link = world.connect(record, recording_the_end(record));
  deliver(link, "data");
  send_fin(link);
  ASSERT_TRUE(world.run_until([&] { return record->count("peer_finished") == 1; }));
  send_reset(link);
  expect_end(link, CloseReason::reset);
  EXPECT_EQ(record->received, "data");
}

TEST_P(Closing, AResetWhileWeDrainEndsTheConnection) {
  World::Link link = world.connect();
  shrink_buffers(link);
  link.connection->send(pattern(kMiB));
  link.connection->close();
  world.settle();
  send_reset(link);
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(link.record->report->bytes_sent + link.record->report->bytes_discarded, kMiB);
  EXPECT_GT(link.record->report->bytes_discarded, 0u);
  EXPECT_EQ(charged(), 0u);
}

// C6
TEST_P(Closing, AllBytesComeBeforeTheEndThatArrivedWithThem) {
  for (const bool paused_before : {false, true}) {
    for (const std::size_t at_most : {0u, 1000u}) {
      SCOPED_TRACE(testing::Message() << paused_before << ' ' << at_most);
      auto record = std::make_shared<Record>();
      ConnectionCallbacks callbacks = World::recording(record);
      std::size_t received_at_end = 0;
      callbacks.on_peer_finished = [record, &received_at_end](TcpConnection& peer) {
        received_at_end = record->received.size();
        peer.finish();
      };
      World::Link link = world.connect(record, std::move(callbacks));
      std::optional<FaultyKernel::Rule> rule;
      if (at_most > 0) {
        rule = world.kernel.inject({.call = Call::recv,
                                    .fd = link.connection->descriptor(),
                                    .every = 1,
                                    .shorten_to = at_most});
      }
      if (paused_before) link.connection->pause_reading();
      // As much as the kernel takes without a turn of the loop, in any case more than one receive.
      const std::string block = pattern(60'000);
      std::string sent;
      for (int i = 0; i < 3; ++i) {
        const ssize_t count = send_text(linux_kernel(), link.client.get(), block);
        if (count > 0) sent += block.substr(0, static_cast<std::size_t>(count));
      }
      ASSERT_GT(sent.size(), 65'536u);
      send_fin(link);
      world.turn(3);
      if (paused_before) {
        EXPECT_TRUE(record->received.empty());
        link.connection->resume_reading();
      }
      expect_end(link, CloseReason::eof);
      EXPECT_EQ(first_difference(record->received, sent), kNowhere);
      EXPECT_EQ(received_at_end, sent.size());
      EXPECT_TRUE(!rule || world.kernel.fired(*rule) >= 2);
      world.kernel.heal();
    }
  }
}

// K30
TEST_P(Closing, BytesBehindAnUrgentByteAreNotStranded) {
  World::Link link = world.connect();
  deliver(link, "before");
  EXPECT_EQ(::send(link.client.get(), "!", 1, MSG_OOB | MSG_NOSIGNAL), 1);
  deliver(link, "behind");
  EXPECT_TRUE(world.run_until([&] { return link.record->received == "beforebehind"; }));
  send_fin(link);
  expect_end(link, CloseReason::eof);
}

// -- Ends while reading is paused --

// C7
TEST_P(Closing, AFinWhileReadingIsPausedCostsNoWakeupsAndIsToldOnResume) {
  for (const bool own_fin_too : {false, true}) {
    SCOPED_TRACE(own_fin_too);
    auto record = std::make_shared<Record>();
    World::Link link = world.connect(record, recording_the_end(record));
    link.connection->pause_reading();
    if (own_fin_too) link.connection->finish();
    world.settle();
    deliver(link, "data");
    send_fin(link);
    const std::uint64_t wakeups = world.kernel.wakeups();
    world.turn(50);
    EXPECT_LE(world.kernel.wakeups(), wakeups + 1);
    const std::uint64_t wakeups_then = world.kernel.wakeups();
    world.turn(500);
    EXPECT_EQ(world.kernel.wakeups(), wakeups_then);
    EXPECT_TRUE(record->received.empty());
    EXPECT_EQ(record->count("peer_finished"), 0u);
    EXPECT_EQ(record->closes, 0);
    link.connection->resume_reading();
    ASSERT_TRUE(world.run_until([&] { return record->count("peer_finished") == 1; }));
    EXPECT_EQ(record->received, "data");
    if (!own_fin_too) link.connection->finish();
    expect_end(link, CloseReason::eof);
  }
}

// C8, K7
TEST_P(Closing, AResetWhileReadingIsPausedCostsNoWakeupsAndIsToldOnResumeBehindTheData) {
  for (const bool output_pending : {false, true}) {
    SCOPED_TRACE(output_pending);
    auto record = std::make_shared<Record>();
    World::Link link = world.connect(record, recording_the_end(record));
    shrink_buffers(link);
    link.connection->pause_reading();
    if (output_pending) link.connection->send(pattern(kMiB));
    world.settle();
    deliver(link, pattern(5000));
    send_reset(link);
    world.turn(50);
    EXPECT_EQ(link.connection->queued_bytes(), 0u);
    EXPECT_EQ(charged(), 0u) << "output for a dead peer is kept";
    const std::uint64_t wakeups = world.kernel.wakeups();
    world.turn(500);
    EXPECT_EQ(world.kernel.wakeups(), wakeups);
    EXPECT_TRUE(record->received.empty());
    EXPECT_EQ(record->closes, 0);
    EXPECT_EQ(link.connection->try_send("too late"), SendOutcome::closed);
    link.connection->resume_reading();
    expect_end(link, CloseReason::reset);
    EXPECT_EQ(record->received, pattern(5000));
    EXPECT_EQ(record->count("peer_finished"), 0u);
    if (output_pending) {
      EXPECT_EQ(record->report->bytes_sent + record->report->bytes_discarded, kMiB);
    }
  }
}

/// Takes nothing and pauses while `wait` holds; records all else, the peer's end too.
ConnectionCallbacks waiting(const std::shared_ptr<Record>& record, const bool& wait) {
  ConnectionCallbacks callbacks = recording_the_end(record);
  callbacks.on_message = [record, &wait](TcpConnection& peer, InputBuffer& in) {
    record->events.emplace_back(wait ? "refused" : "message");
    if (wait) {
      peer.pause_reading();
    } else {
      record->received += in.take_string();
    }
  };
  return callbacks;
}

// C7, C8: the FIN has been read already and waits behind what the callback left.
TEST_P(Closing, AResetBehindAFinThatWaitsForAResumeIsToldOnceBehindTheData) {
  bool wait = true;
  auto record = std::make_shared<Record>();
  World::Link link = world.connect(record, waiting(record, wait));
  deliver(link, "kept");
  world.settle();
  ASSERT_EQ(record->events, (std::vector<std::string>{"connect", "refused"}));
  send_fin(link);
  wait_for(linux_kernel(), link.connection->descriptor(), POLLRDHUP);
  link.connection->resume_reading();  // reads the FIN, then offers what is kept, and is refused
  world.settle();
  ASSERT_EQ(record->events.back(), "refused");
  send_reset(link);
  wait_for(linux_kernel(), link.connection->descriptor(), POLLHUP);
  world.turn(10);
  const std::uint64_t wakeups = world.kernel.wakeups();
  world.turn(500);
  EXPECT_EQ(world.kernel.wakeups(), wakeups);
  EXPECT_EQ(record->closes, 0) << "ended before the data was taken";
  EXPECT_EQ(link.connection->try_send("too late"), SendOutcome::closed);
  wait = false;
  link.connection->resume_reading();
  expect_end(link, CloseReason::reset);
  EXPECT_EQ(record->received, "kept");
  EXPECT_EQ(record->report->input_discarded, 0u);
  EXPECT_EQ(record->count("peer_finished"), 0u);
}

// C7, C8: the same poll reads the FIN and is told of the reset.
TEST_P(Closing, AFinAndAResetInOnePollAreToldAsOneResetBehindTheData) {
  bool wait = true;
  auto record = std::make_shared<Record>();
  World::Link link = world.connect(record, waiting(record, wait));
  deliver(link, "kept");
  world.settle();
  ASSERT_EQ(record->count("refused"), 1u);
  const int fd = link.connection->descriptor();
  send_fin(link);
  wait_for(linux_kernel(), fd, POLLRDHUP);
  send_reset(link);
  ASSERT_NE(wait_for(linux_kernel(), fd, POLLHUP) & POLLERR, 0);
  wait = false;
  link.connection->resume_reading();
  const std::uint64_t reads = world.kernel.calls_on(Call::recv, fd);
  world.turn();
  EXPECT_EQ(world.kernel.calls_on(Call::recv, fd), reads + 1) << "the FIN";
  expect_end(link, CloseReason::reset);
  EXPECT_EQ(record->received, "kept");
  EXPECT_EQ(record->report->input_discarded, 0u);
  EXPECT_EQ(record->count("message"), 1u);
  // On a completion back-end what was kept is consumed by the time the two are delivered.
  EXPECT_EQ(record->count("peer_finished"), acts_at_once(GetParam()) ? 0u : 1u);
  const std::uint64_t wakeups = world.kernel.wakeups();
  world.turn(100);
  EXPECT_EQ(world.kernel.wakeups(), wakeups);
}

// C8
TEST_P(Closing, AResetLiftsThePauseThatTheOutputHadCaused) {
  World::Link link = world.connect();
  shrink_buffers(link);
  link.connection->send(pattern(kMiB));
  world.settle();
  EXPECT_FALSE(link.connection->is_reading());
  deliver(link, pattern(5000));
  send_reset(link);
  expect_end(link, CloseReason::reset);
  EXPECT_EQ(link.record->received, pattern(5000));
}

// C8
TEST_P(Closing, AResetWhilePausedIsToldAfterTheLimitWithoutAResume) {
  auto record = std::make_shared<Record>();
  ConnectionLimits limits;
  limits.broken_pause_timeout = seconds(1000);
  limits.idle_timeout = seconds(0);
  World::Link link = world.connect(record, recording_the_end(record), limits);
  link.connection->pause_reading();
  deliver(link, pattern(5000));
  send_reset(link);
  world.settle();
  pass(world, seconds(900));
  EXPECT_EQ(record->closes, 0);
  EXPECT_TRUE(record->received.empty());
  pass(world, seconds(200));
  expect_end(link, CloseReason::reset);
  EXPECT_EQ(record->received, pattern(5000));
  EXPECT_EQ(record->count("peer_finished"), 0u);
}

// C8
TEST_P(Closing, APauseThatComesAfterTheResetEndsByTheSameLimit) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [record](TcpConnection& peer, InputBuffer& in) {
    record->received += in.take_string();
    peer.pause_reading();
  };
  ConnectionLimits limits;
  limits.broken_pause_timeout = seconds(1000);
  limits.idle_timeout = seconds(0);
  World::Link link = world.connect(record, std::move(callbacks), limits);
  const auto rule = world.kernel.inject(
      {.call = Call::recv, .fd = link.connection->descriptor(), .every = 1, .shorten_to = 1000});
  deliver(link, pattern(5000));
  send_reset(link);
  world.loop.queue_in_loop([&] { link.connection->send("meets the reset first"); });
  world.settle();
  EXPECT_EQ(record->received.size(), 1000u);
  EXPECT_GE(world.kernel.fired(rule), 1u);
  world.kernel.heal();
  for (int i = 0; i < 3 && record->closes == 0; ++i)
    pass(world, seconds(1100));
  EXPECT_EQ(record->closes, 1) << "kept for ever";
  EXPECT_EQ(record->received, pattern(5000));
}

// C8, C13: the error event of a reset comes in the same poll as the failure of the send.
TEST_P(Closing, AFailedSendOfAPausedConnectionIsReportedWithItsOwnError) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "the reset is seen before the send is made");
  for (const std::size_t size : {5u, 5000u}) {
    SCOPED_TRACE(size);
    World::Link link = world.connect();
    link.connection->pause_reading();
    world.settle();
    const int fd = link.connection->descriptor();
    send_reset(link);
    ASSERT_NE(wait_for(linux_kernel(), fd, POLLHUP) & POLLERR, 0);
    const auto rule = world.kernel.inject({.call = Call::send, .fd = fd, .error = ETIMEDOUT});
    link.connection->send(pattern(size));
    world.turn(2);
    EXPECT_EQ(world.kernel.fired(rule), 1u);
    ASSERT_EQ(link.record->closes, 1) << "taken for a reset, which waits for a resume";
    expect_end(link, CloseReason::timeout, TimeoutKind::unacknowledged);
    EXPECT_EQ(link.record->report->error, system_error(ETIMEDOUT));
    EXPECT_EQ(link.record->report->bytes_sent, 0u);
  }
}

// C8
TEST_P(Closing, ABrokenConnectionThatIsClosedWhilePausedEnds) {
  World::Link link = world.connect();
  link.connection->pause_reading();
  deliver(link, "unread");
  send_reset(link);
  world.settle();
  EXPECT_EQ(link.record->closes, 0);
  link.connection->close();
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(charged(), 0u);
}

// -- Every verb in every order --

// C9
TEST_P(Closing, BothSidesCloseAtOnceAndEachIsToldOnce) {
  for (const bool with_output : {false, true}) {
    World::Link link = world.connect();
    if (with_output) link.connection->send("last words");
    link.connection->close();
    send_fin(link);
    const Received all = collect_to_end(world, link);
    EXPECT_EQ(all.result, 0);
    EXPECT_EQ(all.text, with_output ? "last words" : "");
    expect_end(link, CloseReason::local);
  }
}

enum class Verb : std::uint8_t { finish, close, abort };

void apply(TcpConnection& connection, const std::vector<Verb>& verbs) {
  for (const Verb verb : verbs) {
    switch (verb) {
      case Verb::finish:
        connection.finish();
        break;
      case Verb::close:
        connection.close();
        break;
      case Verb::abort:
        connection.abort();
        break;
    }
  }
}

bool contains(const std::vector<Verb>& verbs, Verb verb) {
  return std::ranges::find(verbs, verb) != verbs.end();
}

/// All sequences of one, two and three verbs.
std::vector<std::vector<Verb>> verb_sequences() {
  const std::vector<Verb> verbs{Verb::finish, Verb::close, Verb::abort};
  std::vector<std::vector<Verb>> sequences{{}};
  std::size_t begin = 0;
  for (int length = 1; length <= 3; ++length) {
    const std::size_t end = sequences.size();
    for (; begin < end; ++begin) {
      for (const Verb verb : verbs) {
        sequences.push_back(sequences[begin]);
        sequences.back().push_back(verb);
      }
    }
  }
  sequences.erase(sequences.begin());
  return sequences;
}

enum class Moment : std::uint8_t {
  idle,
  output_pending,
  in_handler,
  in_handler_with_reply,
  paused
};

// C10
TEST_P(Closing, FinishCloseAndAbortAreIdempotentInEveryOrderAndState) {
  const std::string payload = pattern(500'000);
  ASSERT_EQ(verb_sequences().size(), 39u);
  for (const Moment moment : {Moment::idle, Moment::output_pending, Moment::in_handler,
                              Moment::in_handler_with_reply, Moment::paused}) {
    for (const std::vector<Verb>& verbs : verb_sequences()) {
      std::string trace = "moment " + std::to_string(static_cast<int>(moment)) + ", verbs";
      for (const Verb verb : verbs)
        trace += ' ' + std::to_string(static_cast<int>(verb));
      SCOPED_TRACE(trace);
      auto record = std::make_shared<Record>();
      ConnectionCallbacks callbacks = World::recording(record);
      const bool in_handler =
          moment == Moment::in_handler || moment == Moment::in_handler_with_reply;
      callbacks.on_message = [&verbs, &payload, moment](TcpConnection& peer, InputBuffer& in) {
        in.take();
        if (moment == Moment::in_handler_with_reply) peer.send(payload);
        apply(peer, verbs);
      };
      const auto on_close = std::make_shared<ConnectionCallbacks>(World::recording(record));
      callbacks.on_close = [on_close, verbs](TcpConnection& peer, const CloseReport& report) {
        apply(peer, verbs);  // too late to do anything
        EXPECT_EQ(peer.try_send("too late"), SendOutcome::closed);
        on_close->on_close(peer, report);
      };
      World::Link link = world.connect(record, std::move(callbacks));
      const bool with_output =
          moment == Moment::output_pending || moment == Moment::in_handler_with_reply;
      if (moment == Moment::output_pending) {
        shrink_buffers(link);
        link.connection->send(payload);
      }
      if (moment == Moment::paused) link.connection->pause_reading();
      if (in_handler) {
        deliver(link, "now");
        world.turn();
      } else {
        apply(*link.connection, verbs);
      }
      const bool aborts = contains(verbs, Verb::abort);
      if (aborts) {
        ASSERT_TRUE(ended(link));
      } else {
        const Received all = collect_to_end(world, link);
        EXPECT_EQ(all.result, 0);
        EXPECT_EQ(first_difference(all.text, with_output ? payload : ""), kNowhere);
        send_fin(link);
        if (moment == Moment::paused && !contains(verbs, Verb::close)) {
          link.connection->resume_reading();
        }
        ASSERT_TRUE(ended(link));
        EXPECT_EQ(record->report->bytes_discarded, 0u);
      }
      const bool ours = aborts || contains(verbs, Verb::close);
      EXPECT_EQ(to_string(record->report->reason),
                to_string(ours ? CloseReason::local : CloseReason::eof));
      EXPECT_EQ(record->report->bytes_sent + record->report->bytes_discarded,
                with_output ? payload.size() : 0u);
      world.turn(3);
      EXPECT_EQ(record->closes, 1);
      EXPECT_EQ(record->events.back(), "close");
      EXPECT_EQ(charged(), 0u);
    }
  }
  EXPECT_EQ(ConnectionTable::of(world.loop).size(), 0u);
}

// C10
TEST_P(Closing, EveryVerbInOnConnectEndsTheConnectionOnce) {
  for (const std::vector<Verb>& verbs : verb_sequences()) {
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_connect = [&verbs](TcpConnection& peer) {
      peer.send("welcome and goodbye");
      apply(peer, verbs);
    };
    World::Link link = world.connect(record, std::move(callbacks));
    const Received all = collect_to_end(world, link);
    if (!contains(verbs, Verb::abort)) {
      EXPECT_EQ(all.text, "welcome and goodbye");
      EXPECT_EQ(all.result, 0);
    }
    link.client.reset();
    ASSERT_TRUE(ended(link));
  }
}

// C12
TEST_P(Closing, ASendAfterTheEndIsRefusedAndNothingOfItLeaves) {
  for (const Verb verb : {Verb::finish, Verb::close, Verb::abort}) {
    for (const std::size_t size : {std::size_t{5}, std::size_t{5000}}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(verb) << ' ' << size);
      World::Link link = world.connect();
      shrink_buffers(link);
      link.connection->send(pattern(kMiB));
      apply(*link.connection, {verb});
      std::string kept = pattern(size);
      EXPECT_EQ(link.connection->try_send(std::string_view(kept)), SendOutcome::closed);
      EXPECT_EQ(link.connection->try_send(std::move(kept)), SendOutcome::closed);
      EXPECT_EQ(kept, pattern(size));
      link.connection->send(pattern(size));  // dropped
      if (verb == Verb::abort) {
        ASSERT_TRUE(ended(link));
        continue;
      }
      const Received all = collect_to_end(world, link);
      EXPECT_EQ(all.result, 0);
      EXPECT_EQ(first_difference(all.text, pattern(kMiB)), kNowhere);
      link.client.reset();
      ASSERT_TRUE(ended(link));
      EXPECT_EQ(link.record->report->bytes_sent, kMiB);
    }
  }
}

// C13
TEST_P(Closing, APeerThatTheKernelGaveUpOnIsReportedAsUnacknowledged) {
  World::Link receiving = world.connect();
  const auto by_recv = world.kernel.inject(
      {.call = Call::recv, .fd = receiving.connection->descriptor(), .error = ETIMEDOUT});
  deliver(receiving, "x");
  expect_end(receiving, CloseReason::timeout, TimeoutKind::unacknowledged);
  EXPECT_EQ(world.kernel.fired(by_recv), 1u);
  EXPECT_EQ(receiving.record->report->error.value(), ETIMEDOUT);

  World::Link sending = world.connect();
  const auto by_send = world.kernel.inject(
      {.call = Call::send, .fd = sending.connection->descriptor(), .error = ETIMEDOUT});
  sending.connection->send("y");
  expect_end(sending, CloseReason::timeout, TimeoutKind::unacknowledged);
  EXPECT_EQ(world.kernel.fired(by_send), 1u);
}

// C15
TEST_P(Closing, AbortResetsThePeerAndReportsWhatWasQueued) {
  World::Link link = world.connect();
  shrink_buffers(link);
  link.connection->send(pattern(kMiB));
  world.settle();
  const std::size_t queued = link.connection->queued_bytes();
  ASSERT_GT(queued, 0u);
  link.connection->abort();
  EXPECT_FALSE(link.connection->is_open());
  EXPECT_EQ(link.connection->descriptor(), -1);
  EXPECT_EQ(link.record->closes, 0) << "abort() ran user code";
  expect_end(link, CloseReason::local);
  EXPECT_EQ(link.record->report->bytes_discarded, queued);
  EXPECT_EQ(link.record->report->bytes_sent, kMiB - queued);
  EXPECT_EQ(receive_to_end(linux_kernel(), link.client.get()).result, -ECONNRESET);
}

TEST_P(Closing, InputLeftUnconsumedAtTheEndIsReportedAsTruncated) {
  for (const bool watches : {false, true}) {
    SCOPED_TRACE(watches);
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [](TcpConnection&, InputBuffer& in) { in.consume(4); };
    if (watches) callbacks.on_peer_finished = [](TcpConnection& peer) { peer.finish(); };
    World::Link link = world.connect(record, std::move(callbacks));
    deliver(link, "whole, and a ha");
    send_fin(link);
    expect_end(link, CloseReason::truncated);
    EXPECT_EQ(record->report->bytes_received, 15u);
    EXPECT_EQ(record->report->input_discarded, 11u);
    EXPECT_EQ(collect_to_end(world, link).result, 0);
  }
}

TEST_P(Closing, TheReportAddsUp) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [](TcpConnection&, InputBuffer& in) {
    in.consume(std::min<std::size_t>(in.size(), 900));
  };
  World::Link link = world.connect(record, std::move(callbacks));
  shrink_buffers(link);
  deliver(link, pattern(1000));
  world.settle();
  link.connection->send(pattern(400'000));
  link.connection->send("and a small one");
  EXPECT_EQ(link.connection->try_send(std::string(20 * kMiB, 'x')), SendOutcome::full);
  world.settle();
  EXPECT_EQ(link.connection->bytes_received(), 1000u);
  const std::uint64_t sent = link.connection->bytes_sent();
  const std::size_t queued = link.connection->queued_bytes();
  EXPECT_EQ(sent + queued, 400'015u);
  world.kernel.advance(seconds(7));
  world.turn(2);
  link.connection->abort();
  expect_end(link, CloseReason::local);
  EXPECT_EQ(record->report->bytes_received, 1000u);
  EXPECT_EQ(record->report->bytes_sent, sent);
  EXPECT_EQ(record->report->bytes_discarded, queued);
  EXPECT_EQ(record->report->input_discarded, 100u);
  EXPECT_GE(record->report->duration, seconds(7));
}

// R9
TEST_P(Closing, ADescriptorLeavesThePollerBeforeItIsClosed) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "nothing stays with the kernel");
  const std::size_t descriptors = World::open_descriptors();
  World::Link link = world.connect();
  const int fd = link.connection->descriptor();
  ASSERT_TRUE(armed_events(world, fd).has_value());
  int closes_seen = 0;
  world.kernel.before(Call::close, [&](int closing) {
    if (closing != fd) return;
    ++closes_seen;
    EXPECT_FALSE(armed_events(world, fd).has_value());
  });
  send_fin(link);
  expect_end(link, CloseReason::eof);
  EXPECT_EQ(closes_seen, 1);
  link.client.reset();
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// -- Limits of time --

TEST_P(Closing, AnIdleConnectionIsClosedAndAnyByteDelaysIt) {
  ConnectionLimits limits;
  limits.idle_timeout = seconds(1000);
  World::Link link = world.connect(limits);
  for (int i = 0; i < 3; ++i) {
    pass(world, seconds(900));
    deliver(link, "in");
    world.settle();
    pass(world, seconds(900));
    link.connection->send("out");
    EXPECT_EQ(collect(world, link, 3), "out");
    ASSERT_EQ(link.record->closes, 0);
  }
  pass(world, seconds(900));
  EXPECT_EQ(link.record->closes, 0);
  // Output that is still under way would count as activity.
  ASSERT_TRUE(all_acknowledged(linux_kernel(), link.connection->descriptor()));
  pass(world, seconds(200));
  expect_end(link, CloseReason::timeout, TimeoutKind::idle);
}

TEST_P(Closing, AHeldConnectionIsNotIdle) {
  ConnectionLimits limits;
  limits.idle_timeout = seconds(1000);
  World::Link link = world.connect(limits);
  link.connection->hold();
  pass(world, seconds(5000));
  EXPECT_EQ(link.record->closes, 0);
  link.connection->release();
  pass(world, seconds(900));
  EXPECT_EQ(link.record->closes, 0);
  pass(world, seconds(200));
  expect_end(link, CloseReason::timeout, TimeoutKind::idle);
}

TEST_P(Closing, WithoutLimitsOfTimeNothingIsEverClosed) {
  ConnectionLimits limits;
  limits.idle_timeout = limits.write_stall_timeout = limits.half_close_timeout = seconds(0);
  limits.drain_idle_timeout = limits.drain_timeout = seconds(0);
  World::Link idle = world.connect(limits);
  World::Link stalled = world.connect(limits);
  World::Link finished = world.connect(limits);
  World::Link draining = world.connect(limits);
  shrink_buffers(stalled);
  stalled.connection->send(pattern(kMiB));
  finished.connection->finish();
  draining.connection->close();
  world.settle();
  for (int i = 0; i < 10; ++i)
    pass(world, seconds(100'000));
  for (const World::Link* link : {&idle, &stalled, &finished, &draining}) {
    EXPECT_EQ(link->record->closes, 0);
  }
}

// C16
TEST_P(Closing, CloseAfterFinishIsLimitedLikeAnyClose) {
  ConnectionLimits limits;
  limits.drain_idle_timeout = seconds(5);
  limits.drain_timeout = seconds(30);
  limits.half_close_timeout = seconds(100'000);
  World::Link silent = world.connect(limits);
  World::Link talking = world.connect(limits);
  for (const World::Link* link : {&silent, &talking}) {
    link->connection->finish();
    link->connection->close();
  }
  world.settle();
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(talking.record->closes, 0);
    deliver(talking, "x");
    world.settle();
    pass(world, seconds(4));
    if (i == 1) expect_end_of(silent, CloseReason::local);
  }
  pass(world, seconds(4));
  expect_end_of(talking, CloseReason::local);
}

// C14
TEST_P(Closing, AHalfClosedPeerThatStillTakesOutputIsNotClosed) {
  ConnectionLimits limits;
  limits.half_close_timeout = seconds(100);
  World::Link link = world.connect(limits);
  // The client's window is small, our kernel takes all: only acknowledgements show progress.
  const int small = 16 * 1024;
  linux_kernel().setsockopt(link.client.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  const std::string reply = pattern(400 * kKiB);
  link.connection->send(reply);
  link.connection->finish();
  world.settle();
  ASSERT_EQ(link.connection->queued_bytes(), 0u);
  std::size_t read = 0;
  const auto under_way = [&] {
    return linux_kernel().unacknowledged_bytes(link.connection->descriptor());
  };
  int rounds = 0;
  for (int before = under_way(); before > 1; ++rounds) {
    pass(world, seconds(101));
    ASSERT_EQ(link.record->closes, 0) << "round " << rounds;
    // Until the peer's kernel has acknowledged more than before.
    ASSERT_TRUE(eventually([&] {
      const Received some = receive(linux_kernel(), link.client.get());
      read += some.text.size();
      return under_way() < before;
    }));
    before = under_way();
  }
  EXPECT_GT(rounds, 2);
  EXPECT_EQ(read + collect_to_end(world, link).text.size(), reply.size());
}

// -- Behaviour and context --

TEST_P(Closing, AnotherBehaviourTakesOverAtTheNextEvent) {
  auto before = std::make_shared<Record>();
  auto after = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(before);
  callbacks.on_message = [before, after](TcpConnection& peer, InputBuffer& in) {
    before->received += in.take_string(7);
    peer.set_behaviour(make_behaviour(World::recording(after)));
  };
  World::Link link = world.connect(before, std::move(callbacks));
  deliver(link, "upgradebinary");
  world.settle();
  EXPECT_EQ(before->received, "upgrade");
  EXPECT_EQ(after->received, "binary") << "what the old one left goes to the new one";
  deliver(link, " and more");
  EXPECT_TRUE(world.run_until([&] { return after->received == "binary and more"; }));
  send_fin(link);
  ASSERT_TRUE(world.run_until([&] { return after->closes == 1; }));
  EXPECT_EQ(before->closes, 0);
  EXPECT_EQ(after->count("connect"), 0u);
}

TEST_P(Closing, WriteCompleteOfAReplySentAtTheChangeGoesToTheNewBehaviour) {
  auto after = std::make_shared<Record>();
  auto before = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(before);
  callbacks.on_write_complete = {};
  callbacks.on_message = [after](TcpConnection& peer, InputBuffer& in) {
    in.take();
    peer.set_behaviour(make_behaviour(World::recording(after)));
    peer.send("101 Switching Protocols");
  };
  World::Link link = world.connect(before, std::move(callbacks));
  deliver(link, "upgrade");
  EXPECT_EQ(collect(world, link, 23), "101 Switching Protocols");
  world.turn(3);
  EXPECT_EQ(after->count("write_complete"), 1u);
}

TEST_P(Closing, TheLimitsOfANewBehaviourApply) {
  for (const seconds idle_before : {seconds(0), seconds(100'000)}) {
    SCOPED_TRACE(idle_before.count());
    auto record = std::make_shared<Record>();
    ConnectionLimits before;
    before.idle_timeout = idle_before;
    World::Link link = world.connect(record, World::recording(record), before);
    ConnectionLimits after;
    after.idle_timeout = seconds(1000);
    link.connection->set_behaviour(make_behaviour(World::recording(record), after));
    deliver(link, "an event");
    world.settle();
    pass(world, seconds(900));
    EXPECT_EQ(record->closes, 0);
    pass(world, seconds(200));
    world.turn(2);
    EXPECT_EQ(record->closes, 1) << "the new idle limit has no effect";
  }
}

struct Tracker {
  Tracker(std::string its_name, std::shared_ptr<Record> its_record)
      : name(std::move(its_name)), record(std::move(its_record)) {}
  Tracker(const Tracker&) = delete;
  Tracker& operator=(const Tracker&) = delete;
  ~Tracker() { record->events.push_back("destroyed " + name); }
  std::string name;
  std::shared_ptr<Record> record;
};

TEST_P(Closing, TheContextLivesUntilAfterOnClose) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_connect = [record](TcpConnection& peer) {
    EXPECT_FALSE(peer.has_context());
    peer.emplace_context<Tracker>("first", record);
  };
  callbacks.on_message = [record](TcpConnection& peer, InputBuffer& in) {
    EXPECT_EQ(peer.context<Tracker>().name, "first");
    peer.emplace_context<Tracker>(in.take_string(), record);
  };
  callbacks.on_close = [record](TcpConnection& peer, const CloseReport&) {
    ++record->closes;
    record->events.push_back("closed with " + peer.context<Tracker>().name);
  };
  World::Link link = world.connect(record, std::move(callbacks));
  deliver(link, "second");
  send_fin(link);
  ASSERT_TRUE(ended(link));
  const std::vector<std::string> expected{"destroyed first", "closed with second",
                                          "destroyed second"};
  EXPECT_EQ(record->events, expected);
}

TEST_P(Closing, ConnectionsOfALoopThatGoesAreReportedAndTheirContextsDestroyed) {
  const std::size_t descriptors = World::open_descriptors();
  auto record = std::make_shared<Record>();
  std::optional<World::Link> link;
  {
    World short_lived(GetParam());
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_connect = [record](TcpConnection& peer) {
      peer.emplace_context<Tracker>("it", record);
    };
    link = short_lived.connect(record, std::move(callbacks));
    shrink_buffers(*link);
    link->connection->send(pattern(kMiB));
  }
  EXPECT_EQ(record->closes, 1);
  EXPECT_EQ(record->report->reason, CloseReason::local);
  EXPECT_EQ(record->report->bytes_sent + record->report->bytes_discarded, kMiB);
  EXPECT_EQ(record->events.back(), "destroyed it");
  link->client.reset();
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

TEST_P(Closing, AConnectionThatOnCloseAdoptsWhileItsLoopGoesIsEndedToo) {
  constexpr std::size_t kConnections =
      5;  // each but the first adopted by the end of the one before
  const std::size_t descriptors = World::open_descriptors();
  std::vector<std::shared_ptr<Record>> records;
  std::vector<UniqueFd> clients;
  std::function<void(EventLoop&)> adopt_next = [&](EventLoop& loop) {
    SocketPair pair = tcp_pair(linux_kernel());
    clients.push_back(std::move(pair.client));
    const auto record = records.emplace_back(std::make_shared<Record>());
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_connect = [record](TcpConnection& peer) {
      record->events.emplace_back("connect");
      peer.hold();  // nothing that a connection waits for may hold up the end
      peer.pause_reading();
      peer.send("hello");
    };
    callbacks.on_close = [&, record](TcpConnection& peer, const CloseReport& report) {
      record->events.emplace_back("close");
      record->report = report;
      if (records.size() < kConnections) adopt_next(peer.loop());
    };
    EXPECT_TRUE(ConnectionTable::of(loop)
                    .adopt(std::move(pair.server), SocketAddress(),
                           make_behaviour(std::move(callbacks)), nullptr)
                    .has_value());
  };
  {
    World short_lived(GetParam());
    adopt_next(short_lived.loop);
    short_lived.turn(3);
  }
  ASSERT_EQ(records.size(), kConnections);
  for (const auto& record : records) {
    EXPECT_EQ(record->count("connect"), 1u);
    EXPECT_EQ(record->count("close"), 1u);
    EXPECT_EQ(record->events.back(), "close");
    ASSERT_TRUE(record->report.has_value());
    EXPECT_EQ(record->report->reason, CloseReason::local);
  }
  for (const UniqueFd& client : clients) {
    EXPECT_EQ(receive_to_end(linux_kernel(), client.get()).result, -ECONNRESET);
  }
  clients.clear();
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

PENSTOCK_ON_EVERY_BACKEND(Closing);

}  // namespace
}  // namespace penstock::test

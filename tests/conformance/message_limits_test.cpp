// Limits of time of messages, and heartbeats, on every back-end: peers that never say anything, that
// dribble, or that are gone without a word.

#include <cerrno>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "penstock/tcp/server.h"
#include "support/serving.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

/// Reads lines; says how long one may be, as a reader of frames does.
struct Lines {
  std::shared_ptr<Record> record;
  static std::size_t message_max() { return std::size_t{1024} * 1024; }
  void operator()(TcpConnection& peer, InputBuffer& in) const {
    while (const auto end = in.find('\n', in.progress())) {
      record->received += in.take_string(*end + 1);
      if (!peer.wants_input()) return;
    }
    in.set_progress(in.size());
  }
};

class MessageLimits : public ConformanceTest {
 protected:
  World::Link connect_lines(ConnectionLimits limits) {
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = Lines{record};
    callbacks.message_max = Lines::message_max();
    return world.connect(record, std::move(callbacks), limits);
  }
  /// Limits of messages alone.
  static ConnectionLimits limits() {
    ConnectionLimits limits;
    limits.idle_timeout = seconds(0);
    limits.first_message_timeout = seconds(10);
    limits.message_timeout = seconds(30);
    limits.message_rate_min = 240;
    return limits;
  }
  /// The client sends the text, and the loop has dispatched it.
  void say(const World::Link& link, std::string_view text) {
    deliver(link, text);
    world.turn(3);
  }
  void expect_ended(const World::Link& link, TimeoutKind kind) {
    ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
    EXPECT_EQ(link.record->report->reason, CloseReason::timeout);
    EXPECT_EQ(link.record->report->timeout, kind);
    EXPECT_EQ(receive_to_end(linux_kernel(), link.client.get()).result, -ECONNRESET);
  }
};

// S3
TEST_P(MessageLimits, APeerThatSaysNothingEndsAfterTheFirstMessageTimeout) {
  World::Link link = connect_lines(limits());
  pass(world, milliseconds(9'900));
  EXPECT_EQ(link.record->closes, 0);
  pass(world, milliseconds(200));
  expect_ended(link, TimeoutKind::first_message);
}

TEST_P(MessageLimits, DribblingDoesNotPutTheFirstMessageTimeoutOff) {
  World::Link link = connect_lines(limits());
  for (int i = 0; i < 9; ++i) {
    say(link, std::string(400, 'x'));  // fast enough for the rate
    pass(world, seconds(1));
  }
  EXPECT_EQ(link.record->closes, 0);
  say(link, "x");
  pass(world, seconds(2));
  expect_ended(link, TimeoutKind::first_message);
}

TEST_P(MessageLimits, AfterTheFirstMessageOnlyTheOneThatHasBegunIsTimed) {
  World::Link link = connect_lines(limits());
  say(link, "hello\n");
  for (int i = 0; i < 100; ++i)
    pass(world, seconds(100));
  EXPECT_EQ(link.record->closes, 0) << "silence between messages is the idle limit's";
  say(link, "again\n");
  EXPECT_EQ(link.record->received, "hello\nagain\n");
}

// S1
TEST_P(MessageLimits, AMessageThatComesTooSlowlyEndsTheConnection) {
  World::Link link = connect_lines(limits());
  say(link, "hello\nbeg");
  for (int i = 0; i < 4; ++i) {
    pass(world, seconds(1));
    say(link, "x");
    EXPECT_EQ(link.record->closes, 0) << "within its grace";
  }
  pass(world, milliseconds(1'100));
  expect_ended(link, TimeoutKind::slow_message);
  EXPECT_GT(link.record->report->input_discarded, 0U);
}

TEST_P(MessageLimits, AMessageThatKeepsTheRateMayTakeLongerThanTheGraceButNotForEver) {
  World::Link link = connect_lines(limits());
  say(link, "hello\n");
  for (int i = 0; i < 28; ++i) {
    say(link, std::string(300, 'x'));
    pass(world, seconds(1));
    EXPECT_EQ(link.record->closes, 0) << i;
  }
  say(link, std::string(300, 'x'));
  pass(world, seconds(3));
  expect_ended(link, TimeoutKind::slow_message);
}

TEST_P(MessageLimits, EachMessageHasItsOwnTime) {
  World::Link link = connect_lines(limits());
  say(link, "first\nsecond begins");
  for (int i = 0; i < 20; ++i) {
    pass(world, seconds(4));
    say(link, " and ends\nthe next one begins");
    EXPECT_EQ(link.record->closes, 0) << i;
  }
}

TEST_P(MessageLimits, WhileWeDoNotReadNobodyIsTooSlow) {
  World::Link link = connect_lines(limits());
  link.connection->pause_reading();
  for (int i = 0; i < 10; ++i)
    pass(world, seconds(10));
  EXPECT_EQ(link.record->closes, 0) << "it may have said something, but nobody listened";
  link.connection->resume_reading();
  pass(world, seconds(9));
  EXPECT_EQ(link.record->closes, 0) << "its time begins anew";
  say(link, "hello\nhalf");
  link.connection->pause_reading();
  for (int i = 0; i < 10; ++i)
    pass(world, seconds(10));
  EXPECT_EQ(link.record->closes, 0);
  link.connection->resume_reading();
  pass(world, seconds(4));
  EXPECT_EQ(link.record->closes, 0);
  pass(world, seconds(2));
  expect_ended(link, TimeoutKind::slow_message);
}

TEST_P(MessageLimits, TheyDoNotHoldUnlessAskedForOrFramesAreReadByAServer) {
  ConnectionLimits plain;
  plain.idle_timeout = seconds(0);
  World::Link link = connect_lines(plain);
  say(link, "half a li");
  for (int i = 0; i < 20; ++i)
    pass(world, seconds(10));
  EXPECT_EQ(link.record->closes, 0) << "a client, or an adopted connection, may wait";

  for (const bool frames : {false, true}) {
    SCOPED_TRACE(frames);
    TcpServerOptions options;
    options.limits.idle_timeout = seconds(0);
    Ledger ledger;
    TcpServer server(world.loop, std::move(options));
    ledger.keep(server);
    if (frames) server.on_message(Lines{std::make_shared<Record>()});
    ASSERT_TRUE(server.start());
    RawClient client(connect_to(server.address()));
    ASSERT_TRUE(world.run_until([&] { return ledger.connects == 1; }));
    pass(world, seconds(11));
    world.settle();
    EXPECT_EQ(ledger.closes, frames ? 1U : 0U);
    if (frames) {
      EXPECT_EQ(ledger.reports.at(0).timeout, TimeoutKind::first_message);
      EXPECT_EQ(server.statistics().ends[TimeoutKind::first_message], 1U);
    }
  }
}

TEST_P(MessageLimits, AServerThatReadsFramesCanBeToldToWait) {
  TcpServerOptions options;
  options.limits.idle_timeout = seconds(0);
  options.limits.first_message_timeout = seconds(0);
  Ledger ledger;
  TcpServer server(world.loop, std::move(options));
  ledger.keep(server);
  server.on_message(Lines{std::make_shared<Record>()});
  ASSERT_TRUE(server.start());
  RawClient client(connect_to(server.address()));
  ASSERT_TRUE(world.run_until([&] { return ledger.connects == 1; }));
  for (int i = 0; i < 10; ++i)
    pass(world, seconds(10));
  EXPECT_EQ(ledger.closes, 0U);
}

TEST_P(MessageLimits, AMessageAsLongAsMessageMaxSaysFitsWhateverTheInputLimit) {
  ConnectionLimits small = limits();
  small.input_max = 1024;
  World::Link link = connect_lines(small);
  const std::string line = std::string(Lines::message_max() - 1, 'x') + '\n';
  feed(world, link, line);
  EXPECT_TRUE(world.run_until([&] { return link.record->received.size() == line.size(); }));
  EXPECT_EQ(link.record->closes, 0);
  feed(world, link, std::string(Lines::message_max() + 70'000, 'x'));
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->error, make_error_code(Errc::input_limit));
}

// T6: a message costs no timer call; the timer is looked at when it fires.
TEST_P(MessageLimits, MessagesDoNotTouchTheTimer) {
  World::Link link = connect_lines(limits());
  say(link, "hello\n");
  const TimePoint next = world.loop.timers().next_deadline();
  for (int i = 0; i < 20; ++i) {
    world.kernel.advance(milliseconds(1));
    say(link, "line\n");
    EXPECT_EQ(world.loop.timers().next_deadline(), next);
  }
}

// -- Heartbeats --

class Heartbeats : public ConformanceTest {
 protected:
  World::Link connect_beating(unsigned missed_max, Duration idle = seconds(0)) {
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_heartbeat = [record](TcpConnection& peer) {
      record->events.emplace_back("heartbeat");
      EXPECT_NE(peer.send_message(SharedBytes(std::string("ping")), {.lane = Lane::control}),
                SendOutcome::dropped);
    };
    ConnectionLimits limits;
    limits.idle_timeout = idle;
    limits.heartbeat_interval = seconds(20);
    limits.heartbeats_missed_max = missed_max;
    limits.write_stall_timeout = seconds(0);
    return world.connect(record, std::move(callbacks), limits);
  }
  std::size_t beats(const World::Link& link) { return link.record->count("heartbeat"); }
};

TEST_P(Heartbeats, ComeAfterSilenceAndEndAConnectionThatDoesNotAnswer) {
  World::Link link = connect_beating(3);
  pass(world, seconds(19));
  EXPECT_EQ(beats(link), 0U);
  for (std::size_t beat = 1; beat <= 3; ++beat) {
    pass(world, beat == 1 ? seconds(2) : seconds(20));
    EXPECT_EQ(beats(link), beat);
    EXPECT_EQ(link.record->closes, 0);
  }
  world.settle();
  EXPECT_EQ(receive_available(link), "pingpingping");
  pass(world, seconds(20));
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->reason, CloseReason::timeout);
  EXPECT_EQ(link.record->report->timeout, TimeoutKind::heartbeat);
  EXPECT_EQ(beats(link), 3U);
}

TEST_P(Heartbeats, AnyInputIsAnAnswer) {
  World::Link link = connect_beating(1);
  for (std::size_t round = 1; round <= 20; ++round) {
    pass(world, seconds(21));
    EXPECT_EQ(beats(link), round);
    deliver(link, "x");
    world.turn(3);
  }
  EXPECT_EQ(link.record->closes, 0);
}

TEST_P(Heartbeats, DoNotComeWhileInputDoes) {
  World::Link link = connect_beating(1);
  for (int i = 0; i < 10; ++i) {
    deliver(link, "x");
    world.turn(3);
    pass(world, seconds(15));
  }
  EXPECT_EQ(beats(link), 0U);
  EXPECT_EQ(link.record->closes, 0);
}

TEST_P(Heartbeats, OutputIsNoSignOfThePeersLife) {
  World::Link link = connect_beating(2, seconds(300));
  for (int i = 0; i < 6; ++i) {
    if (link.record->closes == 0) link.connection->send("news");
    world.settle();
    pass(world, seconds(10));
  }
  pass(world, seconds(1));
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->timeout, TimeoutKind::heartbeat);
}

TEST_P(Heartbeats, WhileReadingIsPausedNobodyIsMissed) {
  World::Link link = connect_beating(1);
  link.connection->pause_reading();
  for (int i = 0; i < 10; ++i)
    pass(world, seconds(30));
  EXPECT_EQ(beats(link), 0U);
  link.connection->resume_reading();
  pass(world, seconds(19));
  EXPECT_EQ(beats(link), 0U);
  pass(world, seconds(2));
  EXPECT_EQ(beats(link), 1U);
  EXPECT_EQ(link.record->closes, 0);
}

TEST_P(Heartbeats, ACallbackMayEndTheConnectionOrThrow) {
  for (const bool throws : {false, true}) {
    SCOPED_TRACE(throws);
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_heartbeat = [throws](TcpConnection& peer) {
      if (throws) throw std::runtime_error("from a heartbeat");
      peer.abort();
    };
    ConnectionLimits limits;
    limits.heartbeat_interval = seconds(20);
    World::Link link = world.connect(record, std::move(callbacks), limits);
    pass(world, seconds(21));
    ASSERT_TRUE(world.run_until([&] { return record->closes == 1; }));
    EXPECT_EQ(record->report->reason, CloseReason::local);
  }
}

TEST_P(Heartbeats, NoneComesAfterFinishOrTheEndOfInput) {
  World::Link link = connect_beating(1);
  link.connection->finish();
  pass(world, seconds(21));
  EXPECT_EQ(beats(link), 0U);
}

PENSTOCK_ON_EVERY_BACKEND(MessageLimits);
PENSTOCK_ON_EVERY_BACKEND(Heartbeats);

}  // namespace
}  // namespace penstock::test

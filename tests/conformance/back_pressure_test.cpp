// Back-pressure and memory (scenarios B1 to B10), pauses, kept input, caps and stalls, on every back-end.

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::seconds;

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;
constexpr std::size_t kNowhere = std::string_view::npos;
/// The most that one receive brings.
constexpr std::size_t kReceiveMax = 64 * kKiB;

class BackPressure : public ConformanceTest {
 protected:
  std::size_t charged() { return world.loop.memory().used(); }
  bool ended(const World::Link& link) {
    return world.run_until([&] { return link.record->closes == 1; });
  }
  World::Link connect_echo(ConnectionLimits limits = {}) {
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [](TcpConnection& peer, InputBuffer& in) { peer.send(in.take()); };
    return world.connect(record, std::move(callbacks), limits);
  }
  static void expect_alternating(const Record& record) {
    bool above = false;
    for (const std::string& event : record.events) {
      if (event != "high" && event != "low") continue;
      EXPECT_EQ(event == "low", above) << "two of a kind in a row";
      above = event == "high";
    }
  }
};

// -- Output: marks, caps, stalls --

// B1
TEST_P(BackPressure, APeerThatNeverReadsCostsNoMoreThanTheCapAndIsClosed) {
  ConnectionLimits limits;
  limits.output_max = 2 * kMiB;
  limits.write_stall_timeout = seconds(1000);
  World::Link link = world.connect(limits);
  const TimePoint begin = world.kernel.now();
  std::size_t accepted = 0;
  std::size_t refusals = 0;
  std::size_t charged_max = 0;
  const std::string small = pattern(700);
  const std::string large = pattern(30'000);
  TimePoint end = kNever;
  for (int i = 0; i < 400 && link.record->closes == 0; ++i) {
    for (const std::string* payload : {&small, &large}) {
      while (true) {
        const SendOutcome outcome = link.connection->try_send(*payload);
        if (outcome == SendOutcome::full) ++refusals;
        if (outcome == SendOutcome::full || outcome == SendOutcome::closed) break;
        accepted += payload->size();
      }
    }
    charged_max = std::max(charged_max, charged());
    world.settle();  // the kernel has acknowledged what it will
    pass(world, seconds(10));
    if (link.record->closes == 1) end = world.kernel.now();
  }
  ASSERT_EQ(link.record->closes, 1) << "never closed";
  EXPECT_EQ(link.record->report->timeout, TimeoutKind::write_stall);
  EXPECT_GT(refusals, 10u);
  EXPECT_LE(charged_max, limits.output_max);
  EXPECT_GT(charged_max, limits.output_max / 2);
  EXPECT_GE(end - begin, seconds(1000));
  EXPECT_LE(end - begin, seconds(1520));
  EXPECT_EQ(link.record->report->bytes_sent + link.record->report->bytes_discarded, accepted);
  EXPECT_EQ(charged(), 0u);
}

TEST_P(BackPressure, APeerThatDoesNotReadIsClosedBetweenOneAndOneAndAHalfTimesTheLimit) {
  ConnectionLimits limits;
  limits.write_stall_timeout = seconds(1000);
  limits.idle_timeout = seconds(0);
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  link.connection->send(pattern(kMiB));
  world.settle();
  const TimePoint begin = world.kernel.now();
  while (link.record->closes == 0 && world.kernel.now() - begin < seconds(3000)) {
    pass(world, seconds(10));
  }
  const Duration took = world.kernel.now() - begin;
  ASSERT_EQ(link.record->closes, 1);
  EXPECT_EQ(link.record->report->reason, CloseReason::timeout);
  EXPECT_EQ(link.record->report->timeout, TimeoutKind::write_stall);
  EXPECT_GE(took, seconds(1000));
  EXPECT_LE(took, seconds(1520));
  EXPECT_EQ(charged(), 0u);
  EXPECT_EQ(receive_to_end(linux_kernel(), link.client.get()).result, -ECONNRESET);
}

TEST_P(BackPressure, ASlowReaderThatStillReadsIsNotClosed) {
  ConnectionLimits limits;
  limits.write_stall_timeout = seconds(1000);
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  const std::string payload = pattern(4 * kMiB);
  link.connection->send(payload);
  world.settle();
  std::string received;
  for (int i = 0; i < 10; ++i) {
    for (int step = 0; step < 9; ++step)
      pass(world, seconds(100));
    ASSERT_EQ(link.record->closes, 0) << "after " << received.size() << " bytes";
    received += receive_available(link);
    world.settle();
  }
  // Now it stops.
  const TimePoint begin = world.kernel.now();
  while (link.record->closes == 0 && world.kernel.now() - begin < seconds(3000)) {
    pass(world, seconds(10));
  }
  ASSERT_EQ(link.record->closes, 1);
  EXPECT_EQ(link.record->report->timeout, TimeoutKind::write_stall);
  EXPECT_GE(world.kernel.now() - begin, seconds(1000));
  EXPECT_LE(world.kernel.now() - begin, seconds(1520));
  EXPECT_EQ(first_difference(received, payload.substr(0, received.size())), kNowhere);
}

// A reader may empty the kernel's buffers for a long time before the kernel asks for more output (measured: 1.5 MB of 4.3 MB);
// until then only the unacknowledged bytes tell.
TEST_P(BackPressure, AReaderWhoseProgressOnlyTheKernelSeesIsNotClosed) {
  ConnectionLimits limits;
  limits.write_stall_timeout = seconds(1000);
  World::Link link = world.connect(limits);
  link.connection->send(pattern(15 * kMiB));
  world.settle();
  ASSERT_GT(link.connection->queued_bytes(), 0u);
  const std::uint64_t sends = send_calls(world);
  std::size_t rounds_without_a_send = 0;
  for (int i = 0; i < 10; ++i) {
    for (int step = 0; step < 9; ++step)
      pass(world, seconds(100));
    ASSERT_EQ(link.record->closes, 0) << "in round " << i;
    // Enough for the window to open, so that the peer's kernel acknowledges more.
    const int before = linux_kernel().unacknowledged_bytes(link.connection->descriptor());
    while (linux_kernel().unacknowledged_bytes(link.connection->descriptor()) >= before &&
           receive(linux_kernel(), link.client.get(), 16 * kKiB).result > 0) {
    }
    world.settle();
    if (send_calls(world) == sends) ++rounds_without_a_send;
  }
  EXPECT_GT(rounds_without_a_send, 0u);
}

TEST_P(BackPressure, HighAndLowWaterAreToldAlternatelyAndAtTheMarks) {
  auto record = std::make_shared<Record>();
  ConnectionLimits limits;
  limits.low_water = 50'000;
  limits.high_water = 200'000;
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_high_water = [record](TcpConnection& peer) {
    EXPECT_GT(peer.queued_bytes(), 200'000u);
    record->events.emplace_back("high");
  };
  callbacks.on_low_water = [record](TcpConnection& peer) {
    EXPECT_LE(peer.queued_bytes(), 50'000u);
    record->events.emplace_back("low");
  };
  World::Link link = world.connect(record, std::move(callbacks), limits);
  shrink_buffers(link);
  const auto fill_kernel = [&] {
    while (link.connection->queued_bytes() == 0) {
      link.connection->send(pattern(10'000));
      if (!acts_at_once(GetParam())) world.turn(3);
    }
  };
  for (std::size_t round = 0; round < 3; ++round) {
    fill_kernel();
    const std::size_t queued = link.connection->queued_bytes();
    // Exactly the mark is not above it.
    link.connection->send(pattern(200'000 - queued));
    ASSERT_EQ(link.connection->queued_bytes(), 200'000u);
    world.turn(3);
    EXPECT_EQ(record->count("high"), round);
    EXPECT_EQ(link.connection->try_send("!"), SendOutcome::accepted_above_high_water);
    world.turn(3);
    EXPECT_EQ(record->count("high"), round + 1);
    link.connection->send(pattern(100'000));
    world.turn(3);
    EXPECT_EQ(record->count("high"), round + 1);
    ASSERT_TRUE(world.run_until([&] {
      EXPECT_EQ(record->count("low"),
                link.connection->queued_bytes() <= 50'000 ? round + 1 : round);
      if (receive(linux_kernel(), link.client.get(), 20'000).result > 0) return false;
      return link.connection->queued_bytes() == 0;
    }));
    receive_available(link);
  }
  expect_alternating(*record);
}

TEST_P(BackPressure, AnEchoServerIsBoundedAgainstAPeerThatNeverReads) {
  World::Link link = connect_echo();
  shrink_buffers(link);
  std::size_t sent = 0;
  const std::string block = pattern(256 * kKiB);
  ConnectionLimits limits;
  // A completion back-end may have taken more when it is told to stop (rule 4 of the seam).
  const std::size_t under_way = acts_at_once(GetParam()) ? kReceiveMax : 2 * kReceiveMax;
  for (int i = 0; i < 200; ++i) {
    const ssize_t count = send_text(linux_kernel(), link.client.get(), block);
    if (count > 0) sent += static_cast<std::size_t>(count);
    world.turn();
    EXPECT_LE(link.connection->queued_bytes(), limits.high_water + under_way);
  }
  EXPECT_FALSE(link.connection->is_reading());
  EXPECT_GT(sent, link.connection->bytes_received()) << "the kernel took less than was read";
  world.settle();
  const std::uint64_t receives = world.kernel.calls(Call::recv);
  const std::uint64_t wakeups = world.kernel.wakeups();
  world.turn(300);
  EXPECT_EQ(world.kernel.calls(Call::recv), receives);
  EXPECT_EQ(world.kernel.wakeups(), wakeups) << "spins on input that it does not want";
  EXPECT_EQ(link.record->count("high"), 1u);
  EXPECT_EQ(link.record->count("low"), 0u);
  // Reading goes on by itself when the peer reads.
  const std::uint64_t received = link.connection->bytes_received();
  EXPECT_EQ(collect(world, link, received).size(), received);
  EXPECT_TRUE(world.run_until([&] { return link.connection->bytes_received() > received; }));
  EXPECT_EQ(collect(world, link, sent - received).size(), sent - received);
  EXPECT_EQ(link.connection->bytes_received(), sent);
  EXPECT_TRUE(link.connection->is_reading());
  world.turn(2);
  EXPECT_EQ(link.record->count("high"), link.record->count("low"));
}

// B2
TEST_P(BackPressure, WhoIsToldToWaitForLowWaterIsCalled) {
  ConnectionLimits limits;
  limits.low_water = 1000;
  limits.high_water = 10'000;
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  while (link.connection->queued_bytes() == 0)
    link.connection->send(pattern(5000));
  // The peer reads everything: the next wait finds the socket writable, in the same turn in which the mark is passed.
  receive_available(link);
  SendOutcome outcome = SendOutcome::accepted;
  world.loop.queue_in_loop([&] {
    while (outcome == SendOutcome::accepted)
      outcome = link.connection->try_send(pattern(5000));
  });
  std::string rest;
  ASSERT_TRUE(world.run_until([&] {
    rest += receive_available(link);
    return link.connection->queued_bytes() == 0;
  }));
  EXPECT_EQ(outcome, SendOutcome::accepted_above_high_water);
  world.turn(5);
  EXPECT_EQ(link.record->count("low"), 1u) << "the sender waits for ever";
  EXPECT_EQ(link.record->count("high"), 1u);
  EXPECT_TRUE(link.connection->is_reading());
  expect_alternating(*link.record);
}

// B2: the same with every combination of sizes, as a producer that stops at the mark and goes on at on_low_water
TEST_P(BackPressure, AProducerThatFollowsTheMarksNeverFreezes) {
  for (const std::size_t size : {500u, 5000u, 40'000u, 200'000u}) {
    SCOPED_TRACE(size);
    auto record = std::make_shared<Record>();
    const std::size_t wanted = 20 * size;
    std::size_t produced = 0;
    const auto produce = [&produced, size, wanted](TcpConnection& peer) {
      while (produced < wanted) {
        const SendOutcome outcome = peer.try_send(pattern(size));
        if (outcome == SendOutcome::full || outcome == SendOutcome::closed) return;
        produced += size;
        if (outcome == SendOutcome::accepted_above_high_water) return;
      }
    };
    ConnectionLimits limits;
    limits.low_water = 1000;
    limits.high_water = 8000;
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_low_water = [record, produce](TcpConnection& peer) {
      record->events.emplace_back("low");
      produce(peer);
    };
    World::Link link = world.connect(record, std::move(callbacks), limits);
    shrink_buffers(link);
    world.loop.queue_in_loop([&] { produce(*link.connection); });
    EXPECT_EQ(collect(world, link, wanted).size(), wanted) << "frozen";
    expect_alternating(*record);
    link.connection->abort();
    ASSERT_TRUE(ended(link));
  }
}

// B3
TEST_P(BackPressure, FiftyMegabytesThroughAPeerThatPausesComeBackWhole) {
  constexpr std::size_t kTotal = 50 * kMiB;
  World::Link link = connect_echo();
  const std::string block = pattern(kMiB);
  std::size_t sent = 0;
  std::size_t received = 0;
  std::size_t wrong = 0;
  bool reading = false;
  ASSERT_TRUE(world.run_until([&] {
    while (sent < kTotal) {
      const ssize_t count = send_text(linux_kernel(), link.client.get(),
                                      std::string_view(block).substr(sent % block.size()));
      if (count < 0) break;
      sent += static_cast<std::size_t>(count);
    }
    // Reads only once the server has paused, and then all there is.
    if (!link.connection->is_reading() || sent == kTotal) reading = true;
    while (reading) {
      const Received some = receive(linux_kernel(), link.client.get(), 256 * kKiB);
      if (some.result <= 0) {
        reading = false;
        break;
      }
      std::string_view rest = some.text;
      while (!rest.empty()) {
        const std::size_t at = received % block.size();
        const std::string_view part = rest.substr(0, block.size() - at);
        if (part != std::string_view(block).substr(at, part.size())) ++wrong;
        received += part.size();
        rest.remove_prefix(part.size());
      }
    }
    return received == kTotal;
  }));
  EXPECT_EQ(wrong, 0u);
  world.turn(3);
  EXPECT_TRUE(link.connection->is_reading());
  EXPECT_GE(link.record->count("high"), 2u) << "it has never been paused";
  EXPECT_EQ(link.record->count("high"), link.record->count("low"));
  expect_alternating(*link.record);
  EXPECT_EQ(charged(), 0u);
}

// B7
TEST_P(BackPressure, AnOscillatingConsumerTogglesNoMoreThanTheHysteresisAllows) {
  ConnectionLimits limits;
  limits.low_water = 64 * kKiB;
  limits.high_water = 128 * kKiB;
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  std::size_t received = 0;
  const std::string payload = pattern(4 * kKiB);
  for (int i = 0; i < 3000; ++i) {
    // Around the mark: whenever the peer has read a little, the sender fills up again.
    while (link.connection->queued_bytes() <= limits.high_water) {
      link.connection->send(payload);
    }
    const Received some = receive(linux_kernel(), link.client.get(), i % 7 == 0 ? 200'000 : 3000);
    received += some.text.size();
    world.turn();
  }
  const std::size_t toggles = link.record->count("high") + link.record->count("low");
  EXPECT_GE(toggles, 1u);
  EXPECT_LE(toggles, 2 * (received / (limits.high_water - limits.low_water) + 1));
  expect_alternating(*link.record);
}

// B5
TEST_P(BackPressure, NoMarkIsToldAfterTheConnectionHasEnded) {
  for (const int end : {0, 1, 2}) {
    SCOPED_TRACE(end);
    World::Link link = world.connect();
    shrink_buffers(link);
    link.connection->send(pattern(kMiB));
    world.settle();
    ASSERT_EQ(link.record->count("high"), 1u);
    switch (end) {
      case 0:
        link.connection->abort();
        break;
      case 1:
        send_reset(link);
        break;
      default:
        link.connection->close();
        EXPECT_EQ(collect_to_end(world, link).text.size(), kMiB);
        link.client.reset();
        break;
    }
    ASSERT_TRUE(ended(link));
    world.turn(5);
    EXPECT_EQ(link.record->events.back(), "close");
    EXPECT_EQ(link.record->closes, 1);
    expect_alternating(*link.record);
    EXPECT_EQ(charged(), 0u);
  }
}

TEST_P(BackPressure, OverTheHardCapTrySendAnswersFullAndLeavesThePayloadAsItWas) {
  ConnectionLimits limits;
  limits.output_max = 100'000;
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  while (link.connection->queued_bytes() == 0)
    link.connection->send(pattern(20'000));
  for (const std::size_t size : {std::size_t{150'000}, std::size_t{100'000}}) {
    SCOPED_TRACE(size);
    const std::size_t queued = link.connection->queued_bytes();
    const std::size_t held = charged();

    std::string text = pattern(size);
    const char* const text_memory = text.data();
    EXPECT_EQ(link.connection->try_send(std::move(text)), SendOutcome::full);
    EXPECT_EQ(text.data(), text_memory);
    EXPECT_EQ(first_difference(text, pattern(size)), kNowhere);

    std::vector<std::byte> bytes(size, std::byte{7});
    const std::byte* const bytes_memory = bytes.data();
    EXPECT_EQ(link.connection->try_send(std::move(bytes)), SendOutcome::full);
    EXPECT_EQ(bytes.data(), bytes_memory);
    EXPECT_EQ(bytes.size(), size);

    const SharedBytes shared{pattern(size)};
    const std::byte* const shared_memory = shared.bytes().data();
    EXPECT_EQ(link.connection->try_send(shared), SendOutcome::full);
    EXPECT_EQ(shared.bytes().data(), shared_memory);
    EXPECT_EQ(shared.size(), size);

    EXPECT_EQ(link.connection->try_send(std::string_view(text)), SendOutcome::full);
    EXPECT_EQ(link.connection->queued_bytes(), queued);
    EXPECT_EQ(charged(), held);
  }
  EXPECT_TRUE(link.connection->is_open());
  EXPECT_EQ(link.connection->try_send("a small one fits"), SendOutcome::accepted);
  EXPECT_EQ(link.record->closes, 0);
}

TEST_P(BackPressure, OverTheHardCapSendClosesWithOverflow) {
  for (const int kind : {0, 1, 2, 3, 4}) {
    SCOPED_TRACE(kind);
    ConnectionLimits limits;
    limits.output_max = 100'000;
    World::Link link = world.connect(limits);
    shrink_buffers(link);
    std::size_t accepted = 0;
    while (link.connection->queued_bytes() == 0) {
      link.connection->send(pattern(20'000));
      accepted += 20'000;
    }
    switch (kind) {
      case 0:
        link.connection->send(std::string_view(pattern(150'000)));
        break;
      case 1:
        link.connection->send(pattern(150'000));
        break;
      case 2:
        link.connection->send(std::vector<std::byte>(150'000));
        break;
      case 3:
        link.connection->send(SharedBytes(pattern(150'000)));
        break;
      default:
        while (link.connection->is_open()) {
          link.connection->send("small ones reach it too");
          accepted += 23;
        }
        accepted -= 23;
        break;
    }
    EXPECT_FALSE(link.connection->is_open());
    EXPECT_EQ(link.record->closes, 0) << "send() ran user code";
    ASSERT_TRUE(ended(link));
    EXPECT_EQ(to_string(link.record->report->reason), "overflow");
    EXPECT_EQ(link.record->report->bytes_sent + link.record->report->bytes_discarded, accepted);
    EXPECT_EQ(charged(), 0u);
  }
}

// The cap counts what a payload holds in memory, not what of it is in use.
TEST_P(BackPressure, TheHardCapCountsCapacityAndOverhead) {
  ConnectionLimits limits;
  limits.output_max = 100'000;
  World::Link link = world.connect(limits);
  std::string spacious = pattern(5000);
  spacious.reserve(200'000);
  EXPECT_EQ(link.connection->try_send(std::move(spacious)), SendOutcome::full);
  EXPECT_EQ(link.connection->try_send(pattern(5000)), SendOutcome::accepted);
  EXPECT_EQ(collect(world, link, 5000).size(), 5000u);
}

// B8: the part of it that concerns sends
TEST_P(BackPressure, AnExhaustedMemoryBudgetRefusesAndRecovers) {
  World bounded(GetParam(), make_counted<MemoryBudget>(2 * kMiB));
  World::Link first = bounded.connect();
  World::Link second = bounded.connect();
  World::Link third = bounded.connect();
  for (const World::Link* link : {&first, &second, &third}) {
    shrink_buffers(*link);
    while (link->connection->queued_bytes() == 0)
      link->connection->send(pattern(10'000));
  }
  EXPECT_NE(first.connection->try_send(pattern(1'500'000)), SendOutcome::full);
  std::string refused = pattern(kMiB);
  EXPECT_EQ(second.connection->try_send(std::move(refused)), SendOutcome::full);
  EXPECT_EQ(refused.size(), kMiB);
  EXPECT_TRUE(second.connection->is_open());
  EXPECT_LE(bounded.loop.memory().used(), 2 * kMiB);
  third.connection->send(pattern(kMiB));
  ASSERT_TRUE(bounded.run_until([&] { return third.record->closes == 1; }));
  EXPECT_EQ(to_string(third.record->report->reason), "overflow");
  // What the first held is free again.
  first.connection->abort();
  ASSERT_TRUE(bounded.run_until([&] { return first.record->closes == 1; }));
  EXPECT_NE(second.connection->try_send(std::move(refused)), SendOutcome::full);
  second.connection->abort();
  ASSERT_TRUE(bounded.run_until([&] { return second.record->closes == 1; }));
  EXPECT_EQ(bounded.loop.memory().used(), 0u);
}

// -- Reading: pauses --

TEST_P(BackPressure, PausesAreCounted) {
  World::Link link = world.connect();
  link.connection->pause_reading();
  link.connection->pause_reading();
  EXPECT_FALSE(link.connection->is_reading());
  deliver(link, "waiting");
  world.turn(20);
  EXPECT_TRUE(link.record->received.empty());
  EXPECT_EQ(world.kernel.calls_on(Call::recv, link.connection->descriptor()), 0u);
  link.connection->resume_reading();
  world.turn(20);
  EXPECT_TRUE(link.record->received.empty());
  link.connection->resume_reading();
  EXPECT_TRUE(link.connection->is_reading());
  EXPECT_TRUE(world.run_until([&] { return link.record->received == "waiting"; }));
}

TEST_P(BackPressure, TheUsersPauseAndThatOfTheOutputAreCountedApart) {
  World::Link link = world.connect();
  shrink_buffers(link);
  link.connection->send(pattern(kMiB));
  world.settle();
  EXPECT_FALSE(link.connection->is_reading()) << "output is above the high-water mark";
  link.connection->pause_reading();
  deliver(link, "input");
  // The output drains: the user's pause remains.
  EXPECT_EQ(collect(world, link, kMiB).size(), kMiB);
  world.settle();
  EXPECT_EQ(link.record->count("low"), 1u);
  EXPECT_FALSE(link.connection->is_reading());
  EXPECT_TRUE(link.record->received.empty());
  // The user resumes while output is above the mark: the output's pause remains.
  link.connection->send(pattern(kMiB));
  world.settle();
  link.connection->resume_reading();
  world.settle();
  EXPECT_FALSE(link.connection->is_reading());
  EXPECT_TRUE(link.record->received.empty());
  EXPECT_EQ(collect(world, link, kMiB).size(), kMiB);
  EXPECT_TRUE(world.run_until([&] { return link.record->received == "input"; }));
}

TEST_P(BackPressure, APausedConnectionCostsNoWakeupsWhileItsPeerIsQuiet) {
  World::Link link = world.connect();
  link.connection->pause_reading();
  deliver(link, pattern(50'000));
  world.settle();
  const std::uint64_t wakeups = world.kernel.wakeups();
  const std::uint64_t receives = world.kernel.calls(Call::recv);
  world.turn(300);
  EXPECT_EQ(world.kernel.wakeups(), wakeups);
  EXPECT_EQ(world.kernel.calls(Call::recv), receives);
  link.connection->resume_reading();
  EXPECT_TRUE(world.run_until([&] { return link.record->received.size() == 50'000; }));
}

// RE8
TEST_P(BackPressure, APauseInsideTheMessageCallbackHoldsTheRestUntilTheResume) {
  for (const bool consumes_all : {true, false}) {
    SCOPED_TRACE(consumes_all);
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [record, consumes_all](TcpConnection& peer, InputBuffer& in) {
      record->events.emplace_back("message");
      record->received += in.take_string(consumes_all ? in.size() : 1);
      peer.pause_reading();
    };
    World::Link link = world.connect(record, std::move(callbacks));
    const auto rule = world.kernel.inject(
        {.call = Call::recv, .fd = link.connection->descriptor(), .every = 1, .shorten_to = 10});
    const std::string text = pattern(30);
    deliver(link, text);
    std::size_t messages = 0;
    while (record->received.size() < text.size() && messages < 100) {
      ++messages;
      ASSERT_TRUE(world.run_until([&] { return record->count("message") == messages; }));
      world.turn(10);
      EXPECT_EQ(record->count("message"), messages) << "called while paused";
      link.connection->resume_reading();
    }
    EXPECT_EQ(record->received, text);
    EXPECT_EQ(messages, consumes_all ? 3u : 30u);
    EXPECT_GE(world.kernel.fired(rule), 2u);
    world.kernel.heal();
    send_fin(link);
    ASSERT_TRUE(ended(link));
    EXPECT_EQ(to_string(record->report->reason), "eof");
  }
}

TEST_P(BackPressure, PausedInputIsDeliveredBeforeTheEndThatFollowedIt) {
  for (const bool watches_the_end : {false, true}) {
    SCOPED_TRACE(watches_the_end);
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [record](TcpConnection& peer, InputBuffer& in) {
      record->events.emplace_back("message");
      record->received += in.take_string(std::min<std::size_t>(in.size(), 5));
      peer.pause_reading();
    };
    if (watches_the_end) {
      callbacks.on_peer_finished = [record](TcpConnection& peer) {
        EXPECT_EQ(record->received, "firstsecndthird") << "the end came before the data";
        peer.finish();
      };
    }
    World::Link link = world.connect(record, std::move(callbacks));
    deliver(link, "firstsecndthird");
    send_fin(link);
    for (std::size_t messages = 1; messages <= 3; ++messages) {
      world.settle();
      EXPECT_EQ(record->count("message"), messages);
      if (record->closes > 0) break;
      world.loop.queue_in_loop([&] { link.connection->resume_reading(); });
    }
    ASSERT_TRUE(ended(link));
    EXPECT_EQ(record->received, "firstsecndthird");
    EXPECT_EQ(to_string(record->report->reason), "eof");
  }
}

// -- Input that is left unconsumed --

TEST_P(BackPressure, InputLeftUnconsumedIsOfferedAgainWithWhatComesNext) {
  auto record = std::make_shared<Record>();
  std::vector<std::string> offers;
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&offers](TcpConnection&, InputBuffer& in) {
    offers.emplace_back(in.text());
    if (const auto end = in.find('\n')) in.consume(*end + 1);
  };
  World::Link link = world.connect(record, std::move(callbacks));
  for (const std::string_view part : {"one li", "ne\ntwo", " lines", "\n"}) {
    deliver(link, part);
    world.settle();
  }
  const std::vector<std::string> expected{"one li", "one line\ntwo", "two lines", "two lines\n"};
  EXPECT_EQ(offers, expected);
  EXPECT_EQ(charged(), 0u);
}

TEST_P(BackPressure, InputWithoutProgressEndsWithOverflowAtItsLimit) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  std::size_t offered_max = 0;
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    offered_max = std::max(offered_max, in.size());
  };
  ConnectionLimits limits;
  limits.input_max = 10'000;
  World::Link link = world.connect(record, std::move(callbacks), limits);
  deliver(link, pattern(9999));
  world.settle();
  EXPECT_EQ(record->closes, 0);
  EXPECT_EQ(offered_max, 9999u);
  EXPECT_GE(charged(), 9999u);
  deliver(link, "!!");
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(to_string(record->report->reason), "overflow");
  EXPECT_EQ(record->report->input_discarded, 10'001u);
  EXPECT_EQ(charged(), 0u);
}

TEST_P(BackPressure, AMessageOfExactlyTheInputLimitCanBeReceived) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [record](TcpConnection&, InputBuffer& in) {
    if (in.size() >= 10'000) record->received += in.take_string(10'000);
  };
  ConnectionLimits limits;
  limits.input_max = 10'000;
  World::Link link = world.connect(record, std::move(callbacks), limits);
  const auto rule = world.kernel.inject(
      {.call = Call::recv, .fd = link.connection->descriptor(), .every = 1, .shorten_to = 999});
  feed(world, link, pattern(10'000) + pattern(10'000));
  EXPECT_TRUE(
      world.run_until([&] { return record->received.size() == 20'000 || record->closes == 1; }));
  EXPECT_EQ(record->received, pattern(10'000) + pattern(10'000));
  EXPECT_GE(world.kernel.fired(rule), 20u);
  EXPECT_EQ(record->closes, 0);
}

// P3: memory per connection stays under its cap, also when the callback makes some progress each time.
TEST_P(BackPressure, AConsumerThatTakesLittleIsNotBuriedInKeptInput) {
  auto record = std::make_shared<Record>();
  ConnectionLimits limits;
  limits.input_max = 16 * kKiB;
  std::size_t offered_max = 0;
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    offered_max = std::max(offered_max, in.size());
    in.consume(1);
  };
  World::Link link = world.connect(record, std::move(callbacks), limits);
  const std::string block = pattern(64 * kKiB);
  for (int i = 0; i < 100 && record->closes == 0; ++i) {
    send_text(linux_kernel(), link.client.get(), block);
    world.turn(2);
  }
  EXPECT_LE(offered_max, limits.input_max + kReceiveMax);
  EXPECT_LE(charged(), 2 * (limits.input_max + kReceiveMax) + 4 * kKiB);
}

// B4
TEST_P(BackPressure, AConsumerThatTakesLittleIsCalledAgainWhileInputComes) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [record](TcpConnection&, InputBuffer& in) {
    record->received += in.take_string(std::min<std::size_t>(in.size(), 700));
  };
  World::Link link = world.connect(record, std::move(callbacks));
  const auto rule = world.kernel.inject(
      {.call = Call::recv, .fd = link.connection->descriptor(), .every = 1, .shorten_to = 600});
  const std::string text = pattern(300'000);
  feed(world, link, text);
  EXPECT_TRUE(world.run_until([&] { return record->received.size() == text.size(); }));
  EXPECT_EQ(first_difference(record->received, text), kNowhere);
  EXPECT_GE(world.kernel.fired(rule), 499u);
}

// B4
TEST_P(BackPressure, AConsumerThatPausesAtEachMessageIsCalledUntilNothingIsLeft) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [record](TcpConnection& peer, InputBuffer& in) {
    record->events.emplace_back("message");
    record->received += in.take_string(std::min<std::size_t>(in.size(), 1000));
    peer.pause_reading();
    peer.loop().queue_in_loop([handle = peer.handle()] {
      static_cast<void>(handle.post([](TcpConnection& again) { again.resume_reading(); }));
    });
  };
  ConnectionLimits limits;
  limits.input_max = 100 * kKiB;
  World::Link link = world.connect(record, std::move(callbacks), limits);
  const std::string text = pattern(200'000);
  feed(world, link, text);
  EXPECT_TRUE(world.run_until([&] { return record->received.size() == text.size(); }));
  EXPECT_EQ(first_difference(record->received, text), kNowhere);
}

// -- Memory of many --

// RE8
TEST_P(BackPressure, ResumingInsideTheCallbackWithoutProgressDoesNotSpin) {
  int calls = 0;
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    ++calls;
    peer.pause_reading();
    peer.resume_reading();
    if (in.find('\n')) record->received += in.take_string();
  };
  World::Link link = world.connect(record, std::move(callbacks));
  deliver(link, "half a ");
  world.settle();
  world.turn(20);
  EXPECT_EQ(calls, 1) << "offered again with nothing new";
  deliver(link, "line\n");
  ASSERT_TRUE(world.run_until([&] { return !record->received.empty(); }));
  EXPECT_EQ(record->received, "half a line\n");
  EXPECT_EQ(calls, 2);
}

// W14
TEST_P(BackPressure, WhoeverIsRefusedIsToldWhenOutputHasDrained) {
  ConnectionLimits limits;
  limits.output_max = 100 * kKiB;
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  const std::string large = pattern(90 * kKiB);
  std::size_t accepted = 0;
  while (link.connection->try_send(large) != SendOutcome::full)
    accepted += large.size();
  ASSERT_GT(link.connection->queued_bytes(), 0u);
  EXPECT_EQ(link.record->count("low"), 0u);
  EXPECT_EQ(collect(world, link, accepted).size(), accepted);
  EXPECT_TRUE(world.run_until([&] { return link.record->count("low") == 1; }));
  EXPECT_EQ(link.record->count("high"), 0u) << "output was never above the mark";
  EXPECT_EQ(link.connection->try_send(large), SendOutcome::accepted);
}

// B10, small
// B2: requests that the high-water mark holds back come before the end that follows them, wherever
// the back-end has got it by then.
TEST_P(BackPressure, InputHeldBackByTheHighWaterMarkIsHandledBeforeTheEndThatFollowedIt) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    while (const auto end = in.find('\n')) {
      const std::string line = in.take_string(*end + 1);
      record->received += line;
      peer.send(std::string(kMiB, line[0]));
      if (!peer.wants_input()) return;
    }
  };
  callbacks.on_peer_finished = nullptr;
  World::Link link = world.connect(record, std::move(callbacks));
  shrink_buffers(link);
  send_text(linux_kernel(), link.client.get(), "a\nb\nc\n");
  send_fin(link);
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(all.result, 0);
  EXPECT_EQ(record->received, "a\nb\nc\n");
  EXPECT_EQ(first_difference(
                all.text, std::string(kMiB, 'a') + std::string(kMiB, 'b') + std::string(kMiB, 'c')),
            std::string_view::npos);
  ASSERT_TRUE(world.run_until([&] { return record->closes == 1; }));
  EXPECT_EQ(record->report->reason, CloseReason::eof);
}

// B10, small
// One that can never fit is refused, too, and does not concern the one that waits.
TEST_P(BackPressure, WhoeverIsRefusedIsToldWhateverIsRefusedAfterTheDrain) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  const std::string never(64 * kKiB, 'n');
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    in.consume(in.size());
    EXPECT_EQ(peer.try_send(never), SendOutcome::full);
  };
  ConnectionLimits limits;
  limits.output_max = 32 * kKiB;
  World::Link link = world.connect(record, std::move(callbacks), limits);
  world.settle();
  deliver(link, "x");
  link.connection->send("queued");
  EXPECT_EQ(link.connection->try_send(std::string(30 * kKiB, 'r')), SendOutcome::full);
  EXPECT_EQ(collect(world, link, 6), "queued");
  EXPECT_TRUE(world.run_until([&] { return record->count("low") == 1; }));
}

TEST_P(BackPressure, PausedConnectionsKeepTheirInputInTheKernel) {
  std::vector<World::Link> links;
  std::vector<std::size_t> sent;
  for (int i = 0; i < 100; ++i) {
    links.push_back(world.connect());
    links.back().connection->pause_reading();
    // Bounded, so that all of it has come through in seconds also where each byte is checked.
    constexpr int kBuffer = 256 * 1024;
    const int server = links.back().connection->descriptor();
    const int client = links.back().client.get();
    ASSERT_EQ(::setsockopt(server, SOL_SOCKET, SO_RCVBUF, &kBuffer, sizeof kBuffer), 0);
    ASSERT_EQ(::setsockopt(client, SOL_SOCKET, SO_SNDBUF, &kBuffer, sizeof kBuffer), 0);
    sent.push_back(send_until_full(linux_kernel(), links.back().client.get()));
    EXPECT_GT(sent.back(), 64 * kKiB);
  }
  world.turn(20);
  EXPECT_EQ(charged(), 0u);
  const std::uint64_t wakeups = world.kernel.wakeups();
  world.turn(50);
  EXPECT_EQ(world.kernel.wakeups(), wakeups);
  EXPECT_EQ(world.kernel.calls(Call::recv), 0u);
  for (const World::Link& link : links)
    link.connection->resume_reading();
  for (std::size_t i = 0; i < links.size(); ++i) {
    EXPECT_TRUE(world.run_until([&] { return links[i].record->received.size() == sent[i]; }));
  }
  EXPECT_EQ(charged(), 0u);
}

TEST_P(BackPressure, AnIdleConnectionOwnsNoBuffers) {
  World::Link link = connect_echo();
  for (const std::size_t size : {std::size_t{1}, std::size_t{10'000}, kMiB}) {
    feed(world, link, pattern(size));
    EXPECT_EQ(collect(world, link, size).size(), size);
    world.turn(2);
    EXPECT_EQ(charged(), 0u);
  }
}

PENSTOCK_ON_EVERY_BACKEND(BackPressure);

}  // namespace
}  // namespace penstock::test

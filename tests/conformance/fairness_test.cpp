// What the busy may cost the quiet (scenarios Q1 to Q6), on every back-end: counted in bytes, in turns,
// and in the time of a clock that goes only while a handler says so.

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "support/serving.h"
#include "support/still_clock.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

constexpr std::size_t kReadBudget = std::size_t{64} * 1024;  // per connection and turn
constexpr std::size_t kTurnBudget = IoOptions{}.turn_bytes;  // of all that are busy

// A wait that finds more ready is followed by more.
constexpr std::size_t budget_of(std::size_t ready) {
  return std::max(kTurnBudget, ready * 32 * 1024);
}

constexpr std::size_t divided_up(std::size_t sum, std::size_t by) { return (sum + by - 1) / by; }

class Fairness : public ConformanceTest {
 protected:
  Fairness() : ConformanceTest(StillClock::shared(), {}) {}

  /// A connection whose client sends all that the kernel takes.
  struct Flooder {
    World::Link link;
    std::size_t served = 0;  ///< Bytes its handler has been given.
  };

  std::function<void()> on_served;  ///< Runs behind each handler of a flooding connection.

  std::vector<std::unique_ptr<Flooder>> make_flooders(std::size_t count) {
    std::vector<std::unique_ptr<Flooder>> flooders;
    for (std::size_t i = 0; i < count; ++i) {
      flooders.push_back(std::make_unique<Flooder>());
      Flooder& flooder = *flooders.back();
      ConnectionCallbacks callbacks;
      callbacks.on_message = [this, &flooder](TcpConnection&, InputBuffer& in) {
        flooder.served += in.size();
        in.consume(in.size());
        if (on_served) on_served();
      };
      flooder.link = world.connect(std::make_shared<Record>(), std::move(callbacks));
    }
    return flooders;
  }
  static void flood(const std::vector<std::unique_ptr<Flooder>>& flooders) {
    for (const auto& flooder : flooders) {
      send_until_full(linux_kernel(), flooder->link.client.get());
      wait_for(linux_kernel(), flooder->link.connection->descriptor(), POLLIN);
    }
  }
  static std::size_t served(const std::vector<std::unique_ptr<Flooder>>& flooders) {
    std::size_t sum = 0;
    for (const auto& flooder : flooders)
      sum += flooder->served;
    return sum;
  }
  /// A byte that is ready to be read when this returns.
  static void write_byte(const World::Link& link) {
    send_text(linux_kernel(), link.client.get(), "x");
    ASSERT_NE(wait_for(linux_kernel(), link.connection->descriptor(), POLLIN), 0);
  }
};

// Q1
TEST_P(Fairness, AQuietConnectionWaitsForTheFloodingOnesNoLongerThanTheirBudget) {
  const auto flooders = make_flooders(4);
  std::size_t served_before = 0;
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    record->received += in.take_string();
    served_before = served(flooders);
  };
  World::Link quiet = world.connect(record, std::move(callbacks));
  flood(flooders);
  world.turn(5);
  for (std::size_t round = 1; round <= 30; ++round) {
    flood(flooders);
    const std::size_t at_ready = served(flooders);
    write_byte(quiet);
    int turns = 0;
    while (record->received.size() < round) {
      ASSERT_LT(++turns, 10);
      world.turn();
    }
    EXPECT_LE(turns, 2);
    // Of those that are busy, none; one that had little to read before may not count as busy.
    // Where input is delivered in a later poll, others are served meanwhile.
    EXPECT_LE(served_before - at_ready,
              acts_at_once(GetParam()) ? kTurnBudget : 2 * budget_of(flooders.size() + 1));
    world.turn(static_cast<int>(round % 3));
  }
  for (const auto& flooder : flooders)
    EXPECT_GT(flooder->served, 0u);
}

// Q1: it becomes ready while the flooding ones are being served, the worst moment.
TEST_P(Fairness, AConnectionThatBecomesReadyInMidTurnWaitsForTheRestOfTheBudget) {
  const auto flooders = make_flooders(8);
  auto record = std::make_shared<Record>();
  std::size_t served_before = 0;
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    record->received += in.take_string();
    served_before = served(flooders);
  };
  World::Link quiet = world.connect(record, std::move(callbacks));
  flood(flooders);
  world.turn(2);  // now it is known who is busy
  for (std::size_t round = 1; round <= 16; ++round) {
    std::size_t at_ready = 0;
    // Written in the handler of whichever flooding connection is served next.
    on_served = [&] {
      if (at_ready != 0) return;
      at_ready = served(flooders);
      write_byte(quiet);
    };
    for (int turns = 0; record->received.size() < round; ++turns) {
      ASSERT_LT(turns, 10);
      flood(flooders);
      world.loop.step();
    }
    ASSERT_NE(at_ready, 0u);
    // The rest of this turn's; where input is delivered in a later poll, two more.
    const std::size_t turns = acts_at_once(GetParam()) ? 1 : 3;
    EXPECT_LE(served_before - at_ready, turns * budget_of(flooders.size() + 1));
  }
  on_served = nullptr;
}

// Q1: what a handler sends counts too.
TEST_P(Fairness, ATurnServesFewerBusyConnectionsIfTheirInputIsAnswered) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "sends happen in a later poll");
  constexpr std::size_t kConnections = 3;
  std::vector<World::Link> links;
  std::vector<std::size_t> received(kConnections, 0);
  for (std::size_t i = 0; i < kConnections; ++i) {
    ConnectionCallbacks callbacks;
    callbacks.on_message = [&received, i](TcpConnection& peer, InputBuffer& in) {
      received[i] += in.size();
      peer.send(in.take());
    };
    links.push_back(world.connect(std::make_shared<Record>(), std::move(callbacks)));
  }
  std::vector<std::byte> answers(std::size_t{1} << 20);
  for (int turn = 0; turn < 12; ++turn) {
    const std::vector<std::size_t> before = received;
    for (const World::Link& link : links) {
      send_until_full(linux_kernel(), link.client.get());
      wait_for(linux_kernel(), link.connection->descriptor(), POLLIN);
    }
    world.loop.step();
    std::size_t sum = 0;
    for (std::size_t i = 0; i < kConnections; ++i)
      sum += received[i] - before[i];
    if (turn > 0) {
      EXPECT_LE(sum, kTurnBudget / 2);
    }
    for (const World::Link& link : links) {
      while (linux_kernel().recv(link.client.get(), answers.data(), answers.size(), MSG_DONTWAIT) >
             0) {
      }
    }
  }
  for (const std::size_t bytes : received)
    EXPECT_GE(bytes, 2 * kReadBudget) << "nobody is left out";
}

// Q1: a turn gives each connection its budget and no more, in bytes and in calls, and all of them
// together theirs.
TEST_P(Fairness, ATurnReadsAtMostTheBudgetOfEachConnection) {
  const auto flooders = make_flooders(3);
  flood(flooders);
  world.loop.step();                                 // now it is known who is busy
  if (!acts_at_once(GetParam())) world.loop.step();  // what this one brings the next one delivers
  for (int turn = 0; turn < 20; ++turn) {
    flood(flooders);
    std::vector<std::size_t> before;
    for (const auto& flooder : flooders)
      before.push_back(flooder->served);
    const std::size_t served_before = served(flooders);
    world.loop.step();
    EXPECT_LE(served(flooders) - served_before, kTurnBudget);
    for (std::size_t i = 0; i < flooders.size(); ++i)
      EXPECT_LE(flooders[i]->served - before[i], kReadBudget);
    world.turn(static_cast<int>(divided_up(flooders.size() * kReadBudget, kTurnBudget)));
    for (std::size_t i = 0; i < flooders.size(); ++i)
      EXPECT_GT(flooders[i]->served - before[i], 0u) << "nobody is left out";
  }
  // Short reads: it is the calls that are bounded then.
  const auto shortened =
      world.kernel.inject({.call = Call::recv, .every = 1, .shorten_to = std::size_t{100}});
  for (int turn = 0; turn < 5; ++turn) {
    std::vector<std::uint64_t> before;
    for (const auto& flooder : flooders) {
      before.push_back(world.kernel.calls_on(Call::recv, flooder->link.connection->descriptor()));
    }
    world.loop.step();
    for (std::size_t i = 0; i < flooders.size(); ++i) {
      EXPECT_LE(
          world.kernel.calls_on(Call::recv, flooders[i]->link.connection->descriptor()) - before[i],
          4u);
    }
  }
  EXPECT_GT(world.kernel.fired(shortened), 0u);
}

// Q1: what a connection may move is foreseen from what it moved before; when it has more, it is read no
// further than the budget goes.
TEST_P(Fairness, WhoHasMoreThanTheLastTimeIsReadOnlyAsFarAsTheBudgetGoes) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "input is delivered in a later poll");
  const auto flooders = make_flooders(3);
  constexpr std::size_t kBusy = 20 * 1024;
  std::size_t turns_that_could_pass_it = 0;
  for (int round = 0; round < 8; ++round) {
    for (const auto& flooder : flooders)
      deliver(flooder->link, std::string(kBusy, 'b'));
    world.settle();  // each moved 20 KiB the last time
    const std::size_t before = served(flooders);
    deliver(flooders[0]->link, std::string(2 * kBusy, 'm'));
    for (const std::size_t much : {1UL, 2UL})
      deliver(flooders[much]->link, std::string(kReadBudget, 'm'));
    world.loop.step();
    EXPECT_LE(served(flooders) - before, kTurnBudget);
    if (served(flooders) - before > kTurnBudget - kBusy) ++turns_that_could_pass_it;
    world.settle();
    EXPECT_EQ(served(flooders) - before, 2 * kBusy + 2 * kReadBudget);
  }
  EXPECT_GT(turns_that_could_pass_it, 0u);
}

// Q1: a limit of time must not pass input that has come in time and waits for its turn.
TEST_P(Fairness, ABusyConnectionWhoseInputWaitsForItsTurnIsNotSilent) {
  const auto flooders = make_flooders(8);
  ConnectionLimits limits;
  limits.idle_timeout = std::chrono::seconds(10);
  World::Link link = world.connect(limits);
  const std::string much(40 * 1024, 'm');  // enough to count as busy
  deliver(link, much);
  world.turn(2);
  std::size_t sent = much.size();
  for (int phase = 0; phase < 12; ++phase) {
    flood(flooders);
    for (int turn = 0; turn < phase; ++turn)
      world.loop.step(Duration::zero());
    deliver(link, much);
    sent += much.size();
    world.kernel.advance(std::chrono::seconds(11));
    for (int turn = 0; turn < 20 && link.record->received.size() < sent; ++turn) {
      flood(flooders);
      world.loop.step(Duration::zero());
      ASSERT_EQ(link.record->closes, 0) << "in phase " << phase;
    }
    ASSERT_EQ(link.record->received.size(), sent);
  }
}

// -- Time -----------------------------------------------------------------------------------------

constexpr Duration kTurnTime = IoOptions{}.turn_time;

/// Connections whose handlers take long, for each message or for each byte.
class SlowHandlers : public Fairness {
 protected:
  struct Slow {
    World::Link link;
    std::size_t calls = 0;
    std::string received;
    std::size_t most_at_once = 0;  ///< Bytes that one call was given.
  };

  std::unique_ptr<Slow> make_slow(Duration each_call, Duration each_kibibyte = Duration::zero()) {
    auto slow = std::make_unique<Slow>();
    ConnectionCallbacks callbacks;
    callbacks.on_message = [this, each_call, each_kibibyte, &slow = *slow](TcpConnection&,
                                                                           InputBuffer& in) {
      ++slow.calls;
      slow.most_at_once = std::max(slow.most_at_once, in.size());
      world.kernel.advance(each_call +
                           each_kibibyte * static_cast<Duration::rep>(in.size()) / 1024);
      slow.received += in.take_string();
    };
    slow->link = world.connect(std::make_shared<Record>(), std::move(callbacks));
    return slow;
  }
  std::vector<std::unique_ptr<Slow>> make_slow_ones(std::size_t count, Duration each_call) {
    std::vector<std::unique_ptr<Slow>> slow;
    for (std::size_t i = 0; i < count; ++i)
      slow.push_back(make_slow(each_call));
    return slow;
  }
  /// Each has a message that is ready when this returns.
  static void ask(const std::vector<std::unique_ptr<Slow>>& slow) {
    for (const auto& each : slow)
      write_byte(each->link);
  }
  static std::size_t calls(const std::vector<std::unique_ptr<Slow>>& slow) {
    std::size_t sum = 0;
    for (const auto& each : slow)
      sum += each->calls;
    return sum;
  }
  /// A turn has been long, the next one is timed: from then on it is known who is slow.
  void learn(const std::vector<std::unique_ptr<Slow>>& slow) {
    for (int turn = 0; turn < 2; ++turn) {
      ask(slow);
      world.settle();
    }
  }

  void SetUp() override {
    PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "handlers run in a later poll, and are not timed");
  }
};

// Q1: small messages, each of which takes long.
TEST_P(SlowHandlers, AQuietConnectionIsServedBeforeThemAndWaitsForOneAtMost) {
  const auto slow = make_slow_ones(6, std::chrono::milliseconds(1));
  World::Link quiet = world.connect();
  learn(slow);
  for (std::size_t round = 1; round <= 12; ++round) {
    ask(slow);
    const std::size_t before = calls(slow);
    world.loop.step();
    EXPECT_EQ(calls(slow) - before, 1u) << "one uses up the time";
    write_byte(quiet);
    world.loop.step();
    EXPECT_EQ(quiet.record->received.size(), round);
    EXPECT_EQ(calls(slow) - before, 2u);
    world.settle();
    for (const auto& each : slow)
      EXPECT_EQ(each->received.size(), 2 + round) << "nobody is left out";
  }
}

// Q1: those that together fit into the time are served in one turn.
TEST_P(SlowHandlers, ATurnServesAsManyAsFitIntoItsTime) {
  const auto slow = make_slow_ones(6, kTurnTime / 3);
  learn(slow);
  for (int round = 0; round < 6; ++round) {
    ask(slow);
    for (int turn = 1; turn <= 2; ++turn) {
      const std::size_t before = calls(slow);
      world.loop.step();
      EXPECT_EQ(calls(slow) - before, 3u);
    }
    world.settle();
  }
}

// Q1: much input, of which each byte takes a while: it is given in pieces that fit.
TEST_P(SlowHandlers, AConnectionIsGivenNoMoreInputThanItsTimeAllows) {
  const auto slow = make_slow(Duration::zero(), std::chrono::microseconds(20));
  World::Link quiet = world.connect();
  constexpr std::size_t kInTime = 5 * 1024;  // 100 us
  const std::string bytes = pattern(600 * 1024);
  std::size_t sent = 0;
  std::size_t rounds = 0;
  for (int turn = 0; slow->received.size() < bytes.size(); ++turn) {
    ASSERT_LT(turn, 1000);
    const std::string_view left = std::string_view(bytes).substr(sent);
    const ssize_t taken =
        linux_kernel().send(slow->link.client.get(), left.data(), left.size(), MSG_DONTWAIT);
    if (taken > 0) sent += static_cast<std::size_t>(taken);
    if (slow->received.size() < sent)
      wait_for(linux_kernel(), slow->link.connection->descriptor(), POLLIN);
    if (turn == 2) slow->most_at_once = 0;  // it takes two turns to learn
    write_byte(quiet);
    const TimePoint before = world.kernel.now();
    world.loop.step();
    EXPECT_EQ(quiet.record->received.size(), ++rounds);
    if (turn >= 2) {
      EXPECT_LE(world.kernel.now() - before, kTurnTime);
    }
  }
  EXPECT_EQ(slow->received, bytes);
  EXPECT_LE(slow->most_at_once, kInTime);
  EXPECT_GT(slow->most_at_once, kInTime - 1024);
}

// Q1: a small message stays whole, whatever it costs.
TEST_P(SlowHandlers, ASmallMessageIsNotCutForTheTimeItTakes) {
  const auto slow = make_slow(std::chrono::seconds(1));
  const std::string message = pattern(1024);
  for (std::size_t round = 1; round <= 10; ++round) {
    deliver(slow->link, message);
    world.settle();
    EXPECT_EQ(slow->calls, round);
    EXPECT_EQ(slow->received.size(), round * message.size());
  }
}

// Q5: accepting has its time too; who comes in numbers is accepted over several turns, and no
// further event is needed for that.
TEST_P(SlowHandlers, AcceptingUsesUpAQuarterOfTheTimeAtMost) {
  constexpr std::size_t kClients = 12;
  constexpr Duration kEach = std::chrono::microseconds(10);
  constexpr Duration kTimePerDescriptor = std::chrono::microseconds(10);
  TcpServer server(world.loop);
  std::size_t connects = 0;
  server.on_connect([&](TcpConnection&) {
    ++connects;
    world.kernel.advance(kEach);
  });
  ASSERT_TRUE(server.start().has_value());
  World::Link quiet = world.connect();
  std::vector<UniqueFd> clients;
  for (std::size_t i = 0; i < kClients; ++i)
    clients.push_back(start_connect(linux_kernel(), server.address()));
  for (const UniqueFd& client : clients)
    ASSERT_NE(wait_for(linux_kernel(), client.get(), POLLOUT), 0);
  std::size_t turns = 0;
  while (connects < kClients) {
    ASSERT_LT(++turns, 100u);
    write_byte(quiet);
    const std::size_t before = connects;
    world.loop.step();
    EXPECT_GE(connects - before, 1u);
    // The last one may begin just within the time. To poll() every descriptor counts.
    const std::size_t looked_at = registers_with_the_kernel(GetParam()) ? 2 : 4 + connects;
    const Duration time =
        std::max(kTurnTime, kTimePerDescriptor * static_cast<Duration::rep>(looked_at)) / 4;
    EXPECT_LE(kEach * static_cast<Duration::rep>(connects - before - 1), time);
    EXPECT_EQ(quiet.record->received.size(), turns);
  }
  EXPECT_GE(turns, 3u);
  server.stop();
  ASSERT_TRUE(world.run_until([&] { return server.statistics().live == 0; }));
}

// Q1: what was long once is forgotten within a few turns.
TEST_P(SlowHandlers, WhoTookLongOnceIsSoonLikeTheOthers) {
  Duration takes = std::chrono::milliseconds(1);
  std::size_t served = 0;
  std::vector<World::Link> links;
  for (int i = 0; i < 6; ++i) {
    ConnectionCallbacks callbacks;
    callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
      ++served;
      in.consume(in.size());
      world.kernel.advance(takes);
    };
    links.push_back(world.connect(std::make_shared<Record>(), std::move(callbacks)));
  }
  const auto ask_all = [&] {
    for (const World::Link& link : links)
      write_byte(link);
  };
  for (int turn = 0; turn < 2; ++turn) {
    ask_all();
    world.settle();
  }
  ask_all();
  served = 0;
  world.loop.step();
  EXPECT_EQ(served, 1u);
  world.settle();
  takes = Duration::zero();
  for (int turn = 0; turn < 6; ++turn) {  // 1 ms is six halvings above a quarter of the budget
    ask_all();
    world.settle();
  }
  ask_all();
  served = 0;
  world.loop.step();
  EXPECT_EQ(served, links.size());
}

// Q1: a machine that stood still inside of a handler is not held against the connection for long.
TEST_P(SlowHandlers, ATimeThatWasLostOnceIsSoonForgotten) {
  const auto slow = make_slow_ones(4, std::chrono::milliseconds(1));
  Duration lost = std::chrono::seconds(30);
  std::size_t calls_before = 0;
  ConnectionCallbacks callbacks;
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    in.consume(in.size());
    calls_before = calls(slow);
    world.kernel.advance(std::exchange(lost, Duration::zero()));
  };
  World::Link quiet = world.connect(std::make_shared<Record>(), std::move(callbacks));
  learn(slow);
  int servings = 0;
  for (bool first = false; !first; ++servings) {
    ASSERT_LE(servings, 9);
    ask(slow);
    write_byte(quiet);
    const std::size_t calls_of_all = calls(slow);
    world.settle();
    first = servings > 0 && calls_before == calls_of_all;
  }
}

// T5, Q1: a limit of time does not pass input that waits for a turn, however many have theirs before.
TEST_P(SlowHandlers, InputThatWaitsBehindManyOfThemIsNoSilence) {
  constexpr Duration kEach = std::chrono::milliseconds(100);
  constexpr std::size_t kMany = 40;  // of which each uses up a turn
  ConnectionLimits limits;
  limits.idle_timeout = std::chrono::seconds(3);
  std::vector<World::Link> links;
  std::vector<std::size_t> asked(kMany, 0);
  for (std::size_t i = 0; i < kMany; ++i) {
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [&, record](TcpConnection&, InputBuffer& in) {
      record->received += in.take_string();
      world.kernel.advance(kEach);
    };
    links.push_back(world.connect(record, std::move(callbacks), limits));
  }
  for (std::size_t turn = 0; turn < 5 * kMany; ++turn) {
    // Each has the next message under way as soon as it was served.
    for (std::size_t i = 0; i < kMany; ++i) {
      if (links[i].record->received.size() < asked[i]) continue;
      write_byte(links[i]);
      ++asked[i];
    }
    world.loop.step();
    for (std::size_t i = 0; i < kMany; ++i)
      ASSERT_EQ(links[i].record->closes, 0) << "connection " << i << ", turn " << turn;
  }
}

// Q1: the message behind one that took long has arrived whole, and is not cut into many.
TEST_P(SlowHandlers, AMessageBehindOneThatTookLongComesInTwoPiecesAtMost) {
  constexpr std::size_t kMessage = 32 * 1024;
  std::size_t calls_of_message = 0;
  std::size_t messages = 0;
  ConnectionCallbacks callbacks;
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    ++calls_of_message;
    if (in.size() < kMessage) return;
    in.consume(kMessage);
    ++messages;
    world.kernel.advance(std::chrono::milliseconds(10));
  };
  World::Link link = world.connect(std::make_shared<Record>(), std::move(callbacks));
  for (std::size_t round = 1; round <= 8; ++round) {
    calls_of_message = 0;
    deliver(link, std::string(kMessage, 'm'));
    world.settle();
    EXPECT_EQ(messages, round);
    if (round > 2) {
      EXPECT_LE(calls_of_message, 2u);
    }
  }
}

// Q1: what a message cost in long turns is no measure for the time of short ones, when nobody looks
// at the clock.
TEST_P(SlowHandlers, WhatAMessageCostOnceDoesNotCutAFloodLater) {
  Duration takes = std::chrono::milliseconds(1);
  std::size_t most_at_once = 0;
  std::size_t received = 0;
  std::size_t calls_of_flood = 0;
  ConnectionCallbacks callbacks;
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    world.kernel.advance(takes);
    most_at_once = std::max(most_at_once, in.size());
    received += in.size();
    ++calls_of_flood;
    in.consume(in.size());
  };
  World::Link link = world.connect(std::make_shared<Record>(), std::move(callbacks));
  for (int i = 0; i < 3; ++i) {
    write_byte(link);
    world.settle();
  }
  takes = Duration::zero();
  for (int i = 0; i < 30; ++i) {  // short turns, until nobody is timed
    write_byte(link);
    world.settle();
  }
  received = calls_of_flood = 0;
  for (int i = 0; i < 16; ++i) {
    deliver(link, std::string(kReadBudget, 'f'));
    world.settle();
  }
  EXPECT_EQ(received, 16 * kReadBudget);
  EXPECT_LE(calls_of_flood, 2 * 16u) << "the kernel may hand 64 KiB over in two parts";
}

// Q1: who has sent a message is not too slow because we read it in pieces.
TEST_P(SlowHandlers, AMessageThatHasArrivedWholeIsNotTooSlowHoweverLongItsRestWaits) {
  constexpr std::size_t kMessage = 4 * kReadBudget;
  const auto slow = make_slow_ones(10, std::chrono::milliseconds(50));
  ConnectionLimits limits;
  limits.message_timeout = std::chrono::milliseconds(200);  // of a round of 500
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.message_max = 2 * kMessage;
  std::size_t pieces = 0;
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    ++pieces;
    if (in.size() >= kMessage) record->received += in.take_string(kMessage);
  };
  World::Link link = world.connect(record, std::move(callbacks), limits);
  learn(slow);
  ASSERT_EQ(send_text(linux_kernel(), link.client.get(), std::string(kMessage, 'm')),
            static_cast<ssize_t>(kMessage));
  std::vector<std::size_t> asked(slow.size(), 2);
  for (int turn = 0; turn < 300 && record->received.empty(); ++turn) {
    for (std::size_t i = 0; i < slow.size(); ++i) {
      if (slow[i]->received.size() < asked[i]) continue;
      write_byte(slow[i]->link);
      ++asked[i];
    }
    world.loop.step();
    ASSERT_EQ(record->closes, 0) << "turn " << turn << ", piece " << pieces;
  }
  EXPECT_EQ(record->received.size(), kMessage);
  EXPECT_GE(pieces, 4u);
  // The part of one is still too slow, and a little that waits is no excuse.
  world.settle();
  deliver(link, std::string(kReadBudget, 'm'));
  world.settle();
  for (int i = 0; i < 10 && record->closes == 0; ++i) {
    world.kernel.advance(std::chrono::milliseconds(100));
    send_text(linux_kernel(), link.client.get(), "dribble");
    world.turn(2);
  }
  ASSERT_EQ(record->closes, 1);
  EXPECT_EQ(record->report->timeout, TimeoutKind::slow_message);
}

// Q1: a budget that is nearly used up cuts no small message.
TEST_P(SlowHandlers, ASmallMessageIsNotCutForABudgetThatIsNearlyUsedUp) {
  std::vector<std::byte> answers(std::size_t{1} << 20);
  const auto read_answers = [&](const World::Link& link) {
    while (linux_kernel().recv(link.client.get(), answers.data(), answers.size(), MSG_DONTWAIT) >
           0) {
    }
  };
  ConnectionCallbacks callbacks;
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    const std::size_t size = in.size();
    in.consume(size);
    peer.send(std::string(size - 8, 'e'));  // 8 bytes of the budget are left
  };
  World::Link echo = world.connect(std::make_shared<Record>(), std::move(callbacks));
  const auto slow = make_slow(kTurnTime / 2);
  for (int round = 0; round < 4; ++round) {
    deliver(echo, std::string(kReadBudget, 'x'));
    deliver(slow->link, "x");
    world.settle();
    read_answers(echo);
  }
  slow->calls = 0;
  deliver(echo, std::string(kReadBudget, 'x'));
  deliver(slow->link, std::string(500, 'm'));
  world.settle();
  EXPECT_EQ(slow->calls, 1u);
}

// Q1: nor one whose answer is large.
TEST_P(SlowHandlers, ASmallRequestWithALargeAnswerIsNotCut) {
  std::size_t requests = 0;
  std::vector<World::Link> links;
  for (int i = 0; i < 2; ++i) {
    ConnectionCallbacks callbacks;
    callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
      ++requests;
      in.consume(in.size());
      peer.send(std::string(60 * 1024, 'a'));
    };
    links.push_back(world.connect(std::make_shared<Record>(), std::move(callbacks)));
  }
  std::vector<std::byte> answers(std::size_t{1} << 20);
  for (int round = 0; round < 5; ++round) {
    requests = 0;
    for (const World::Link& link : links)
      deliver(link, std::string(200, 'r'));
    world.settle();
    EXPECT_EQ(requests, links.size()) << "each in one piece";
    for (const World::Link& link : links) {
      while (linux_kernel().recv(link.client.get(), answers.data(), answers.size(), MSG_DONTWAIT) >
             0) {
      }
    }
  }
}

PENSTOCK_ON_EVERY_BACKEND(SlowHandlers);

/// A clock that counts how often it is read.
class CountedClock final : public ForwardingKernel {
 public:
  CountedClock() : ForwardingKernel(linux_kernel()) {}
  std::size_t readings = 0;

 private:
  TimePoint raw_now() override {
    ++readings;
    return StillClock::shared().now();
  }
};

class ClockReadings : public testing::TestWithParam<Backend> {
 protected:
  CountedClock clock;
  World world{GetParam(), {}, clock, {}};
};

// Performance: as long as turns are short no connection is timed.
TEST_P(ClockReadings, AShortTurnReadsTheClockTwiceHoweverManyItServes) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "one back-end inside of another");
  std::vector<World::Link> links;
  for (int i = 0; i < 20; ++i)
    links.push_back(world.connect());
  world.settle();
  for (const World::Link& link : links)
    deliver(link, "x");
  const std::size_t before = clock.readings;
  world.loop.step();
  for (const World::Link& link : links)
    EXPECT_EQ(link.record->received, "x");
  EXPECT_EQ(clock.readings - before, 2u);
}

PENSTOCK_ON_EVERY_BACKEND(ClockReadings);

// -- Much to read, much that is ready -------------------------------------------------------------

// Q2: what the budget leaves is fetched by the loop itself; no further byte announces it.
TEST_P(Fairness, AFirehoseIsDrainedOverManyTurnsWithoutAFurtherEdge) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  std::size_t received = 0;
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    received += in.size();
    in.consume(in.size());
  };
  World::Link firehose = world.connect(record, std::move(callbacks));
  world.settle();
  const std::size_t sent = send_until_full(linux_kernel(), firehose.client.get());
  ASSERT_GT(sent, 8 * kReadBudget);
  ASSERT_NE(wait_for(linux_kernel(), firehose.connection->descriptor(), POLLIN), 0);
  // From here on the client does nothing at all.
  if (!acts_at_once(GetParam())) world.loop.step();
  for (int turn = 0; turn < 5; ++turn) {
    const std::size_t before = received;
    world.loop.step();
    EXPECT_LE(received - before, kReadBudget);
    EXPECT_GT(received - before, 0u);
  }
  ASSERT_TRUE(world.run_until([&] { return received == sent; }));
  // Drained means drained: the loop sleeps again.
  world.settle();
  const std::uint64_t recvs = world.kernel.calls(Call::recv);
  world.turn(20);
  EXPECT_EQ(world.kernel.calls(Call::recv), recvs);
  firehose.client.reset();
  EXPECT_TRUE(world.run_until([&] { return record->count("close") == 1; }));
}

// Q2: the same with the end of the input right behind it, in the same event.
TEST_P(Fairness, AFirehoseWithItsEndBehindItIsDrainedWhole) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  std::size_t received = 0;
  std::size_t most_in_a_turn = 0;
  std::size_t in_this_turn = 0;
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    received += in.size();
    in_this_turn += in.size();
    in.consume(in.size());
  };
  World::Link firehose = world.connect(record, std::move(callbacks));
  world.settle();
  const std::size_t sent = send_until_full(linux_kernel(), firehose.client.get());
  linux_kernel().shutdown(firehose.client.get(), SHUT_WR);
  firehose.client.reset();
  ASSERT_TRUE(world.run_until([&] {
    most_in_a_turn = std::max(most_in_a_turn, std::exchange(in_this_turn, 0));
    return record->count("close") == 1;
  }));
  EXPECT_EQ(received, sent);
  EXPECT_EQ(record->report->reason, CloseReason::eof);
  EXPECT_LE(most_in_a_turn, 2 * kReadBudget);
}

// Q3
TEST_P(Fairness, MoreReadyConnectionsThanEventsAreAllServedInTurn) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "poll answers for all at once");
  constexpr std::size_t kConnections = 40;
  constexpr std::size_t kEvents = 8;
  std::vector<World::Link> links;
  for (std::size_t i = 0; i < kConnections; ++i)
    links.push_back(world.connect());
  world.settle();
  const auto small =
      world.kernel.inject({.call = Call::epoll_wait, .every = 1, .shorten_to = kEvents});
  for (std::size_t round = 1; round <= 3; ++round) {
    for (const World::Link& link : links)
      write_byte(link);
    world.turn(static_cast<int>(kConnections / kEvents + 1));
    for (const World::Link& link : links)
      EXPECT_EQ(link.record->received.size(), round);
  }
  EXPECT_GT(world.kernel.fired(small), 0u);
}

// Q3: also when they never stop being ready.
TEST_P(Fairness, ConnectionsThatAreAlwaysReadyTakeTurnsInASmallEventArray) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "poll answers for all at once");
  constexpr std::size_t kConnections = 12;
  constexpr std::size_t kEvents = 3;
  const auto flooders = make_flooders(kConnections);
  World::Link quiet = world.connect();
  flood(flooders);
  const auto small =
      world.kernel.inject({.call = Call::epoll_wait, .every = 1, .shorten_to = kEvents});
  world.turn(static_cast<int>(kConnections / kEvents + 1));
  for (int round = 1; round <= 4; ++round) {
    flood(flooders);
    write_byte(quiet);
    std::vector<std::size_t> before;
    for (const auto& flooder : flooders)
      before.push_back(flooder->served);
    const auto until_all_are_heard = static_cast<int>(divided_up(kConnections + 1, kEvents) + 1);
    world.turn(until_all_are_heard);
    EXPECT_EQ(quiet.record->received.size(), static_cast<std::size_t>(round));
    world.turn(static_cast<int>(divided_up(kConnections * kReadBudget, kTurnBudget)));
    for (std::size_t i = 0; i < kConnections; ++i) {
      EXPECT_GT(flooders[i]->served, before[i]) << "connection " << i << " was left out";
    }
  }
  EXPECT_GT(world.kernel.fired(small), 0u);
}

// Q3: the array grows, and one wait then answers for all.
TEST_P(Fairness, MoreReadyConnectionsThanTheFirstArrayHoldsAreServedWithinAFewTurns) {
  constexpr std::size_t kConnections = 300;
  std::vector<World::Link> links;
  for (std::size_t i = 0; i < kConnections; ++i)
    links.push_back(world.connect());
  world.settle();
  for (const World::Link& link : links)
    write_byte(link);
  world.turn(static_cast<int>(kConnections / 64 + 2));
  for (const World::Link& link : links)
    EXPECT_EQ(link.record->received, "x");
}

// Q4: tasks that breed, and timers that are always due, leave connections their share.
TEST_P(Fairness, TasksAndTimersWithoutEndDoNotHoldUpAConnection) {
  World::Link link = world.connect();
  bool stop = false;
  std::function<void()> breed = [&] {
    if (!stop) world.loop.queue_in_loop([&] { breed(); });
  };
  for (int i = 0; i < 5000; ++i)
    breed();
  std::function<void()> tick = [&] {
    if (!stop) world.loop.run_after(Duration::zero(), [&] { tick(); });
  };
  for (int i = 0; i < 100; ++i)
    tick();
  std::uint64_t timers_before = 0;
  std::uint64_t timers_fired_then = 0;
  for (std::size_t round = 1; round <= 10; ++round) {
    write_byte(link);
    const std::uint64_t tasks = world.loop.statistics().tasks_run;
    const std::uint64_t timers = world.loop.statistics().timers_fired;
    const unsigned turns = acts_at_once(GetParam()) ? 1 : 2;
    for (unsigned i = 0; i < turns; ++i)
      world.loop.step();
    EXPECT_EQ(link.record->received.size(), round);
    EXPECT_LE(world.loop.statistics().tasks_run - tasks, turns * 1024u);
    EXPECT_LE(world.loop.statistics().timers_fired - timers, turns * 1024u);
    EXPECT_GT(world.loop.statistics().tasks_run, tasks);
    timers_before = std::exchange(timers_fired_then, timers);
    // The timers were made by tasks behind those 5,000. Of two turns, one at least has some.
    if (round > 8) {
      EXPECT_GT(world.loop.statistics().timers_fired, timers_before);
    }
  }
  stop = true;
}

// Q4: the same from another thread.
TEST_P(Fairness, TasksPostedWithoutEndByAnotherThreadDoNotHoldUpAConnection) {
  World::Link link = world.connect();
  std::atomic<bool> stop = false;
  std::atomic<std::size_t> under_way = 0;
  constexpr std::size_t kUnderWayMax = 10'000;
  std::thread producer([&] {
    while (!stop) {
      if (under_way >= kUnderWayMax) {
        std::this_thread::yield();
        continue;
      }
      ++under_way;
      world.loop.queue_in_loop([&] { --under_way; });
    }
  });
  std::uint64_t served_among_tasks = 0;
  for (std::size_t round = 1; round <= 20; ++round) {
    write_byte(link);
    const std::uint64_t tasks = world.loop.statistics().tasks_run;
    const unsigned turns = acts_at_once(GetParam()) ? 1 : 2;
    for (unsigned i = 0; i < turns; ++i)
      world.loop.step();
    EXPECT_EQ(link.record->received.size(), round);
    const std::uint64_t run = world.loop.statistics().tasks_run - tasks;
    EXPECT_LE(run, turns * 1024u);
    served_among_tasks += run > 0 ? 1 : 0;
    while (under_way == 0)
      std::this_thread::yield();
  }
  EXPECT_GT(served_among_tasks, 0u);
  stop = true;
  producer.join();
  ASSERT_TRUE(world.run_until([&] { return under_way == 0; }));
}

// Q6
TEST_P(Fairness, TenThousandSmallWritesAreGathered) {
  World::Link link = world.connect();
  RawClient client(std::move(link.client));
  const auto sends = [&] {
    return world.kernel.calls(Call::send) + world.kernel.calls(Call::sendmsg);
  };
  const std::uint64_t before = sends();
  constexpr std::size_t kWrites = 10'000;
  for (std::size_t i = 0; i < kWrites; ++i)
    link.connection->send("0123456789");
  ASSERT_TRUE(world.run_until([&] {
    client.read_some();
    return client.bytes == kWrites * 10;
  }));
  // 100,000 bytes leave in pieces of about 64 KiB.
  EXPECT_LE(sends() - before, 4u);
}

PENSTOCK_ON_EVERY_BACKEND(Fairness);

}  // namespace
}  // namespace penstock::test

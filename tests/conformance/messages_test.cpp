// Whole messages to peers that do not keep up: lanes, slow-consumer policies, groups; and messages of
// several pieces. On every back-end.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bytes/failing_allocation.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::seconds;

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;
constexpr std::size_t kMessageSize = 1000;

/// A message that names its kind and number and ends as only itself ends: a cut would show.
std::string message(std::uint64_t number, char kind = 'm', std::size_t size = kMessageSize) {
  char head[32];
  std::snprintf(head, sizeof head, "<%c%010llu ", kind, static_cast<unsigned long long>(number));
  std::string text;
  text.reserve(size);
  text = head;
  text.resize(size - 1, static_cast<char>('a' + number % 26));
  text.push_back('>');
  return text;
}
SharedBytes shared_message(std::uint64_t number, char kind = 'm', std::size_t size = kMessageSize) {
  return SharedBytes(message(number, kind, size));
}

struct Parsed {
  char kind;
  std::uint64_t number;
  friend bool operator==(const Parsed&, const Parsed&) = default;
};

/// What arrived, taken apart; every message must be whole.
std::vector<Parsed> parse(std::string_view text) {
  std::vector<Parsed> all;
  while (!text.empty()) {
    const std::size_t end = text.find('>');
    if (text.size() < 14 || end == std::string_view::npos) {
      ADD_FAILURE() << "no whole message: " << text.substr(0, 40);
      break;
    }
    const Parsed parsed{text[1], std::stoull(std::string(text.substr(2, 10)))};
    if (text.substr(0, end + 1) != message(parsed.number, parsed.kind, end + 1)) {
      ADD_FAILURE() << "a message was cut near " << text.substr(0, 40);
      break;
    }
    all.push_back(parsed);
    text.remove_prefix(end + 1);
  }
  return all;
}

std::vector<std::uint64_t> numbers(const std::vector<Parsed>& all, char kind) {
  std::vector<std::uint64_t> found;
  for (const Parsed& each : all) {
    if (each.kind == kind) found.push_back(each.number);
  }
  return found;
}

bool strictly_rising(const std::vector<std::uint64_t>& all) {
  return std::ranges::adjacent_find(all, std::ranges::greater_equal{}) == all.end();
}

class Messages : public ConformanceTest {
 protected:
  std::size_t charged() { return world.loop.memory().used(); }

  World::Link connect_with(SlowConsumer policy, std::size_t backlog_max) {
    ConnectionLimits limits;
    limits.slow_consumer = policy;
    limits.backlog_max = backlog_max;
    limits.write_stall_timeout = seconds(0);
    World::Link link = world.connect(limits);
    shrink_buffers(link);
    return link;
  }

  /// Fills the kernel's buffers, and what may be staged: the next message waits.
  void stall(World::Link& link) {
    link.connection->send(message(0, 'f', kMiB));
    world.settle();
    ASSERT_GT(link.connection->queued_bytes(), 0U);
  }
  /// What arrives behind the filling.
  std::vector<Parsed> drain(World::Link& link) {
    link.connection->finish();
    const Received all = collect_to_end(world, link);
    EXPECT_EQ(all.result, 0);
    EXPECT_GE(all.text.size(), kMiB);
    EXPECT_EQ(all.text.substr(0, kMiB), message(0, 'f', kMiB));
    send_fin(link);
    EXPECT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
    return parse(std::string_view(all.text).substr(kMiB));
  }
};

// -- Messages to a peer that keeps up --

TEST_P(Messages, ToAPeerThatReadsAllArriveInOrderWithOtherSends) {
  World::Link link = world.connect();
  std::string expected;
  for (std::uint64_t i = 0; i < 200; ++i) {
    EXPECT_EQ(link.connection->send_message(shared_message(i)), SendOutcome::accepted);
    link.connection->send("<between>");
    expected += message(i) + "<between>";
    if (i % 10 == 0) world.turn();
  }
  EXPECT_EQ(collect(world, link, expected.size()), expected);
  EXPECT_EQ(link.connection->messages_dropped(), 0U);
}

// R24
TEST_P(Messages, OfOneTurnLeaveInOneGatheredCallAndUncopied) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "a completion back-end takes nothing at once");
  World::Link link = world.connect();
  std::vector<SharedBytes> all;
  for (std::uint64_t i = 0; i < 10; ++i)
    all.push_back(shared_message(i));
  std::vector<const void*> pieces_sent;
  world.tap.on_send = [&](int, std::span<const iovec> pieces) {
    for (const iovec& piece : pieces)
      pieces_sent.push_back(piece.iov_base);
  };
  const std::uint64_t calls = send_calls(world);
  for (const SharedBytes& each : all)
    EXPECT_EQ(link.connection->send_message(each), SendOutcome::accepted);
  world.turn();
  EXPECT_EQ(send_calls(world), calls + 1);
  ASSERT_EQ(pieces_sent.size(), all.size());
  for (std::size_t i = 0; i < all.size(); ++i)
    EXPECT_EQ(pieces_sent[i], all[i].bytes().data()) << "copied";
  world.tap.on_send = nullptr;
}

// -- Policies --

TEST_P(Messages, DropOldestKeepsTheNewestWholeAndCountsTheRest) {
  World::Link link = connect_with(SlowConsumer::drop_oldest, 64 * kKiB);
  stall(link);
  constexpr std::uint64_t kSent = 1000;
  std::size_t charged_max = 0;
  const std::size_t charged_before = charged();
  for (std::uint64_t i = 0; i < kSent; ++i) {
    EXPECT_NE(link.connection->send_message(shared_message(i)), SendOutcome::full);
    charged_max = std::max(charged_max, charged());
    if (i % 100 == 0) world.settle();
  }
  EXPECT_LE(charged_max, charged_before + 128 * kKiB);
  const std::uint64_t dropped = link.connection->messages_dropped();
  const std::vector<Parsed> arrived = drain(link);
  const std::vector<std::uint64_t> order = numbers(arrived, 'm');
  EXPECT_TRUE(strictly_rising(order));
  ASSERT_FALSE(order.empty());
  EXPECT_EQ(order.back(), kSent - 1) << "the newest arrives";
  EXPECT_EQ(order.size() + dropped, kSent);
  EXPECT_GE(order.size(), 40U);
  EXPECT_LE(order.size(), 64U);
  ASSERT_TRUE(link.record->report.has_value());
  EXPECT_EQ(link.record->report->messages_dropped, dropped);
  EXPECT_EQ(link.record->report->bytes_discarded, 0U);
  EXPECT_EQ(ConnectionTable::of(world.loop).statistics().messages_dropped, dropped);
  EXPECT_EQ(charged(), 0U);
}

TEST_P(Messages, DropNewestKeepsTheOldestAndSaysSo) {
  World::Link link = connect_with(SlowConsumer::drop_newest, 64 * kKiB);
  stall(link);
  std::uint64_t accepted = 0;
  for (std::uint64_t i = 0; i < 500; ++i) {
    const SendOutcome outcome = link.connection->send_message(shared_message(i));
    if (outcome == SendOutcome::dropped) continue;
    EXPECT_EQ(outcome, SendOutcome::accepted_above_high_water);
    EXPECT_EQ(i, accepted) << "accepted behind one that was dropped";
    ++accepted;
  }
  EXPECT_EQ(link.connection->messages_dropped(), 500 - accepted);
  const std::vector<std::uint64_t> order = numbers(drain(link), 'm');
  ASSERT_EQ(order.size(), accepted);
  EXPECT_TRUE(strictly_rising(order));
  EXPECT_EQ(order.front(), 0U);
}

TEST_P(Messages, RejectTellsTheSenderAndLaterThatThereIsRoom) {
  World::Link link = connect_with(SlowConsumer::reject, 16 * kKiB);
  stall(link);
  std::vector<std::uint64_t> accepted;
  std::uint64_t refused = 0;
  for (std::uint64_t i = 0; i < 100; ++i) {
    SharedBytes bytes = shared_message(i);
    if (link.connection->send_message(bytes) == SendOutcome::full) {
      ++refused;
      EXPECT_FALSE(bytes.empty());
    } else {
      accepted.push_back(i);
    }
  }
  EXPECT_GT(refused, 50U);
  EXPECT_GT(accepted.size(), 5U);
  const std::size_t low = link.record->count("low");
  const std::string all = collect(world, link, kMiB + accepted.size() * kMessageSize);
  ASSERT_TRUE(world.run_until([&] { return link.record->count("low") > low; }));
  EXPECT_EQ(link.connection->send_message(shared_message(1000)), SendOutcome::accepted);
  accepted.push_back(1000);
  link.connection->finish();
  const Received rest = collect_to_end(world, link);
  send_fin(link);
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(numbers(parse((all + rest.text).substr(kMiB)), 'm'), accepted);
  EXPECT_EQ(link.record->report->messages_dropped, refused);
}

TEST_P(Messages, KeepLatestSendsTheLastOfEachKeyInThePlaceOfTheFirst) {
  World::Link link = connect_with(SlowConsumer::keep_latest, kMiB);
  stall(link);
  constexpr std::uint64_t kKeys = 10;
  for (std::uint64_t i = 0; i < 300; ++i) {
    EXPECT_EQ(link.connection->send_message(shared_message(i), {.key = i % kKeys}),
              SendOutcome::accepted_above_high_water);
  }
  EXPECT_EQ(link.connection->messages_dropped(), 290U);
  EXPECT_LE(link.connection->queued_bytes(), kMiB + kKeys * kMessageSize);
  std::vector<std::uint64_t> expected;
  for (std::uint64_t key = 0; key < kKeys; ++key)
    expected.push_back(290 + key);
  EXPECT_EQ(numbers(drain(link), 'm'), expected);
}

TEST_P(Messages, KeepLatestOfManyKeysStaysWithinItsBoundAndDropsTheOldest) {
  World::Link link = connect_with(SlowConsumer::keep_latest, 32 * kKiB);
  stall(link);
  for (std::uint64_t i = 0; i < 300; ++i)
    EXPECT_NE(link.connection->send_message(shared_message(i), {.key = i}), SendOutcome::full);
  // Growing in place must not pass the bound either.
  EXPECT_NE(link.connection->send_message(shared_message(299, 'm', 20 * kKiB), {.key = 299}),
            SendOutcome::full);
  EXPECT_LE(link.connection->queued_bytes(), kMiB + 32 * kKiB);
  const std::vector<std::uint64_t> order = numbers(drain(link), 'm');
  EXPECT_TRUE(strictly_rising(order));
  EXPECT_EQ(order.back(), 299U);
}

TEST_P(Messages, DisconnectEndsTheConnectionWithOverflow) {
  World::Link link = connect_with(SlowConsumer::disconnect, 16 * kKiB);
  stall(link);
  SendOutcome outcome = SendOutcome::accepted;
  std::uint64_t sent = 0;
  while (outcome != SendOutcome::closed && sent < 1000)
    outcome = link.connection->send_message(shared_message(sent++));
  EXPECT_LT(sent, 20U);
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->reason, CloseReason::overflow);
  EXPECT_EQ(link.record->report->error, make_error_code(Errc::output_limit));
  EXPECT_EQ(link.record->report->messages_dropped, 1U);
  EXPECT_EQ(receive_to_end(linux_kernel(), link.client.get()).result, -ECONNRESET);
  EXPECT_EQ(charged(), 0U);
}

TEST_P(Messages, APolicyCanBeSetForOneConnection) {
  World::Link link = connect_with(SlowConsumer::disconnect, 16 * kKiB);
  link.connection->set_slow_consumer(SlowConsumer::drop_newest, 4 * kKiB);
  stall(link);
  std::uint64_t accepted = 0;
  for (std::uint64_t i = 0; i < 100; ++i) {
    if (link.connection->send_message(shared_message(i)) != SendOutcome::dropped) ++accepted;
  }
  EXPECT_GE(accepted, 2U);
  EXPECT_LE(accepted, 4U);
  EXPECT_EQ(numbers(drain(link), 'm').size(), accepted);
}

TEST_P(Messages, OneThatIsLargerThanTheBacklogMayBeIsDroppedAndNotTheOthers) {
  World::Link link = connect_with(SlowConsumer::drop_oldest, 16 * kKiB);
  stall(link);
  for (std::uint64_t i = 0; i < 5; ++i)
    EXPECT_NE(link.connection->send_message(shared_message(i)), SendOutcome::dropped);
  EXPECT_EQ(link.connection->send_message(shared_message(99, 'm', 17 * kKiB)),
            SendOutcome::dropped);
  EXPECT_EQ(numbers(drain(link), 'm').size(), 5U);
}

// B2: a message that is dropped does not concern whoever waits for room.
TEST_P(Messages, WhoeverWasRefusedIsToldOfRoomAlthoughAMessageWasDroppedSince) {
  ConnectionLimits limits;
  limits.slow_consumer = SlowConsumer::drop_newest;
  limits.backlog_max = 4 * kKiB;
  limits.output_max = 2 * kMiB;
  limits.high_water = 8 * kMiB;
  limits.write_stall_timeout = seconds(0);
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  stall(link);
  EXPECT_EQ(link.connection->try_send(std::string(kMiB, 'x')), SendOutcome::full);
  EXPECT_EQ(link.connection->send_message(shared_message(1, 'm', 5 * kKiB)), SendOutcome::dropped);
  EXPECT_EQ(collect(world, link, kMiB).size(), kMiB);
  EXPECT_TRUE(world.run_until([&] { return link.record->count("low") == 1; }));
}

TEST_P(Messages, NoneIsDroppedForOneThatDoesNotFitAllTheSame) {
  World::Link link = connect_with(SlowConsumer::drop_oldest, 16 * kKiB);
  stall(link);
  for (std::uint64_t i = 0; i < 5; ++i)
    EXPECT_NE(link.connection->send_message(shared_message(i)), SendOutcome::dropped);
  // It waits in the same line, and is never dropped.
  link.connection->send(message(5, 'p', 15 * kKiB));
  EXPECT_EQ(link.connection->send_message(shared_message(6, 'm', 2 * kKiB)), SendOutcome::dropped);
  EXPECT_EQ(link.connection->messages_dropped(), 1U);
  const std::vector<Parsed> arrived = drain(link);
  EXPECT_EQ(numbers(arrived, 'm').size(), 5U);
  EXPECT_EQ(numbers(arrived, 'p').size(), 1U);
}

TEST_P(Messages, OneThatGrowsBeyondTheBacklogInItsPlaceIsDroppedAndNotTheOthers) {
  World::Link link = connect_with(SlowConsumer::keep_latest, 16 * kKiB);
  stall(link);
  for (std::uint64_t i = 0; i < 5; ++i) {
    EXPECT_NE(link.connection->send_message(shared_message(i), {.key = i}), SendOutcome::dropped);
  }
  EXPECT_EQ(link.connection->send_message(shared_message(99, 'm', 17 * kKiB), {.key = 4}),
            SendOutcome::dropped);
  EXPECT_EQ(link.connection->messages_dropped(), 1U);
  EXPECT_EQ(numbers(drain(link), 'm'), (std::vector<std::uint64_t>{0, 1, 2, 3, 4}));
}

TEST_P(Messages, TheLatestOfAKeyThatGrowsIsKeptAndOlderOnesMakeRoom) {
  World::Link link = connect_with(SlowConsumer::keep_latest, 16 * kKiB);
  stall(link);
  for (std::uint64_t i = 0; i < 10; ++i) {
    EXPECT_NE(link.connection->send_message(shared_message(i), {.key = i}), SendOutcome::dropped);
  }
  EXPECT_EQ(link.connection->send_message(shared_message(99, 'm', 10 * kKiB), {.key = 0}),
            SendOutcome::accepted_above_high_water);
  const std::uint64_t dropped = link.connection->messages_dropped();
  const std::vector<std::uint64_t> order = numbers(drain(link), 'm');
  EXPECT_EQ(order.size() + dropped, 11U);
  EXPECT_NE(std::ranges::find(order, 99U), order.end()) << "the latest was dropped for older ones";
}

// Who drops is above the mark no longer than what waits is.
TEST_P(Messages, WhatIsDroppedNoLongerKeepsTheConnectionFromReading) {
  ConnectionLimits limits;
  limits.slow_consumer = SlowConsumer::drop_oldest;
  limits.backlog_max = 1800 * kKiB;
  limits.low_water = 2 * kMiB;
  limits.high_water = 2 * kMiB + kMiB / 2;
  limits.write_stall_timeout = seconds(0);
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  stall(link);
  static_cast<void>(link.connection->send_message(shared_message(1, 'm', 1700 * kKiB)));
  EXPECT_FALSE(link.connection->is_reading());
  EXPECT_EQ(link.connection->send_message(shared_message(2, 'm', 200 * kKiB)),
            SendOutcome::accepted);
  EXPECT_LT(link.connection->queued_bytes(), limits.low_water);
  EXPECT_TRUE(link.connection->is_reading());
  EXPECT_EQ(numbers(drain(link), 'm'), std::vector<std::uint64_t>{2});
}

// B1: the cap holds for all that waits together.
TEST_P(Messages, TheHardCapHoldsForMessagesToo) {
  ConnectionLimits limits;
  limits.slow_consumer = SlowConsumer::drop_newest;
  limits.output_max = 2 * kMiB;
  limits.backlog_max = 64 * kMiB;
  limits.write_stall_timeout = seconds(0);
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  stall(link);
  std::size_t charged_max = 0;
  for (std::uint64_t i = 0; i < 400; ++i) {
    static_cast<void>(link.connection->send_message(shared_message(i, 'm', 10 * kKiB)));
    charged_max = std::max(charged_max, charged());
  }
  EXPECT_GT(link.connection->messages_dropped(), 200U);
  EXPECT_LE(link.connection->queued_bytes(), limits.output_max);
  EXPECT_EQ(link.connection->try_send(std::string(kMiB, 'x')), SendOutcome::full);
  link.connection->abort();
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(charged(), 0U);
}

TEST_P(Messages, AnExhaustedBudgetDropsMessagesInsteadOfTheConnection) {
  World small(GetParam(), make_counted<MemoryBudget>(3 * kMiB));
  ConnectionLimits limits;
  limits.slow_consumer = SlowConsumer::drop_oldest;
  limits.write_stall_timeout = seconds(0);
  World::Link link = small.connect(limits);
  shrink_buffers(link);
  link.connection->send(message(0, 'f', kMiB));
  small.settle();
  std::uint64_t dropped = 0;
  for (std::uint64_t i = 0; i < 100; ++i) {
    if (link.connection->send_message(shared_message(i, 'm', 900 * kKiB)) == SendOutcome::dropped)
      ++dropped;
  }
  EXPECT_GT(dropped, 0U);
  EXPECT_TRUE(link.connection->is_open());
  EXPECT_EQ(link.record->closes, 0);
}

// -- Lanes --

TEST_P(Messages, TheControlLanePassesWhatWaitsButIsNeverInsideAMessage) {
  World::Link link = connect_with(SlowConsumer::drop_oldest, kMiB);
  stall(link);
  for (std::uint64_t i = 0; i < 500; ++i)
    EXPECT_NE(link.connection->send_message(shared_message(i)), SendOutcome::dropped);
  EXPECT_NE(link.connection->send_message(shared_message(1, 'c', 40), {.lane = Lane::control}),
            SendOutcome::dropped);
  EXPECT_NE(link.connection->send_message(shared_message(2, 'c', 40), {.lane = Lane::control}),
            SendOutcome::dropped);
  const std::vector<Parsed> arrived = drain(link);
  EXPECT_EQ(numbers(arrived, 'c'), (std::vector<std::uint64_t>{1, 2}));
  EXPECT_EQ(numbers(arrived, 'm').size(), 500U);
  const auto at = std::ranges::find(arrived, Parsed{'c', 1}) - arrived.begin();
  EXPECT_LE(at, 66) << "behind more than one gathered send";
}

TEST_P(Messages, TheControlLaneIsNotDroppedForTheBacklog) {
  World::Link link = connect_with(SlowConsumer::drop_oldest, 8 * kKiB);
  stall(link);
  for (std::uint64_t i = 0; i < 50; ++i) {
    EXPECT_NE(link.connection->send_message(shared_message(i, 'c'), {.lane = Lane::control}),
              SendOutcome::dropped);
    static_cast<void>(link.connection->send_message(shared_message(i)));
  }
  EXPECT_EQ(numbers(drain(link), 'c').size(), 50U);
}

TEST_P(Messages, OtherSendsKeepTheirPlaceAndAreNeverDropped) {
  World::Link link = connect_with(SlowConsumer::drop_oldest, 32 * kKiB);
  stall(link);
  for (std::uint64_t i = 0; i < 200; ++i) {
    static_cast<void>(link.connection->send_message(shared_message(2 * i)));
    if (i % 20 != 0) continue;
    const std::string plain = message(2 * i + 1, 'p');
    switch (i / 20 % 5) {
      case 0:
        link.connection->send(plain);
        break;
      case 1:
        link.connection->send(std::string(plain));
        break;
      case 2: {
        const auto bytes = std::as_bytes(std::span(plain));
        link.connection->send(std::vector<std::byte>(bytes.begin(), bytes.end()));
        break;
      }
      case 3:
        link.connection->send(SharedBytes(std::string(plain)));
        break;
      default: {
        const auto bytes = std::as_bytes(std::span(plain));
        link.connection->send(
            {.head = bytes.first(3), .body = bytes.subspan(3, 990), .tail = bytes.subspan(993)});
        break;
      }
    }
  }
  const std::vector<Parsed> arrived = drain(link);
  EXPECT_EQ(numbers(arrived, 'p').size(), 10U);
  std::vector<std::uint64_t> order;
  for (const Parsed& each : arrived)
    order.push_back(each.number);
  EXPECT_TRUE(strictly_rising(order));
}

// 64 pieces are all that one gathered send takes.
TEST_P(Messages, SmallOnesThatWaitedLeaveTogether) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "a completion back-end sends in later polls");
  World::Link link = connect_with(SlowConsumer::drop_oldest, 4 * kMiB);
  stall(link);
  constexpr std::uint64_t kSmall = 5000;
  constexpr std::size_t kSize = 20;
  for (std::uint64_t i = 0; i < kSmall; ++i)
    EXPECT_NE(link.connection->send_message(shared_message(i, 'm', kSize)), SendOutcome::dropped);
  const std::size_t charged_before = charged();
  std::size_t fullest = 0;
  world.tap.on_send = [&](int, std::span<const iovec> pieces) {
    std::size_t size = 0;
    for (const iovec& piece : pieces)
      size += piece.iov_len;
    if (pieces[0].iov_len <= 4 * kKiB) fullest = std::max(fullest, size);  // the filling is over
  };
  const std::vector<std::uint64_t> order = numbers(drain(link), 'm');
  world.tap.on_send = nullptr;
  EXPECT_EQ(order.size(), kSmall);
  EXPECT_TRUE(strictly_rising(order));
  EXPECT_GT(fullest, 4 * kKiB + 64 * kSize);
  EXPECT_GT(charged_before, kSmall * kSize);
  EXPECT_EQ(charged(), 0U);
}

// -- Ends --

TEST_P(Messages, FinishAndCloseSendWhatWaitsFirst) {
  for (const bool close : {false, true}) {
    SCOPED_TRACE(close);
    World::Link link = connect_with(SlowConsumer::drop_oldest, kMiB);
    stall(link);
    for (std::uint64_t i = 0; i < 300; ++i)
      EXPECT_NE(link.connection->send_message(shared_message(i)), SendOutcome::dropped);
    if (close) link.connection->close();
    EXPECT_EQ(numbers(drain(link), 'm').size(), 300U);
    EXPECT_EQ(link.record->report->bytes_discarded, 0U);
  }
}

TEST_P(Messages, WhatWaitsAtTheEndIsReportedAsDiscarded) {
  World::Link link = connect_with(SlowConsumer::drop_oldest, kMiB);
  stall(link);
  for (std::uint64_t i = 0; i < 100; ++i)
    EXPECT_NE(link.connection->send_message(shared_message(i)), SendOutcome::dropped);
  const std::size_t queued = link.connection->queued_bytes();
  EXPECT_GT(queued, 100 * kMessageSize);
  link.connection->abort();
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->bytes_discarded, queued);
  EXPECT_EQ(link.record->report->bytes_sent + queued, kMiB + 100 * kMessageSize);
  EXPECT_EQ(charged(), 0U);
}

TEST_P(Messages, AResetWhileMessagesWaitFreesThem) {
  World::Link link = connect_with(SlowConsumer::drop_oldest, kMiB);
  stall(link);
  for (std::uint64_t i = 0; i < 100; ++i)
    EXPECT_NE(link.connection->send_message(shared_message(i)), SendOutcome::dropped);
  send_reset(link);
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->reason, CloseReason::reset);
  EXPECT_GT(link.record->report->bytes_discarded, 100 * kMessageSize);
  EXPECT_EQ(charged(), 0U);
}

TEST_P(Messages, NoneIsAcceptedAfterFinishOrTheEnd) {
  World::Link link = world.connect();
  link.connection->finish();
  EXPECT_EQ(link.connection->send_message(shared_message(1)), SendOutcome::closed);
  EXPECT_EQ(link.connection->send_message(SharedBytes()), SendOutcome::closed);
}

// B9
TEST_P(Messages, WithoutMemoryAMessageIsRefusedWholeAndTheOthersArrive) {
  for (std::size_t k = 0; k < 6; ++k) {
    SCOPED_TRACE(k);
    World::Link link = connect_with(SlowConsumer::drop_newest, kMiB);
    stall(link);
    SharedBytes first = shared_message(1);
    SharedBytes second = shared_message(2);
    SendOutcome outcome = SendOutcome::accepted;
    bool happened = false;
    {
      const FailingAllocation failing(k);
      outcome = link.connection->send_message(std::move(first));
      happened = failing.happened();
    }
    if (happened) {
      EXPECT_EQ(outcome, SendOutcome::dropped);
    }
    EXPECT_EQ(link.connection->send_message(std::move(second)),
              SendOutcome::accepted_above_high_water);
    const std::vector<std::uint64_t> expected =
        happened ? std::vector<std::uint64_t>{2} : std::vector<std::uint64_t>{1, 2};
    EXPECT_EQ(numbers(drain(link), 'm'), expected);
    if (!happened) return;
  }
  FAIL() << "every allocation failed, and there is always another";
}

// -- Messages in pieces --

TEST_P(Messages, PiecesLeaveAsOneInOrderWhateverTheirSizes) {
  World::Link link = world.connect();
  std::string expected;
  const std::string text = pattern(300'000);
  const auto bytes = std::as_bytes(std::span(text));
  for (const std::size_t body :
       {0UL, 1UL, 100UL, 4000UL, 4050UL, 4096UL, 4097UL, 70'000UL, 299'000UL}) {
    for (const std::size_t head : {0UL, 4UL, 16UL}) {
      for (const std::size_t tail : {0UL, 4UL}) {
        link.connection->send({.head = bytes.first(head),
                               .body = bytes.subspan(head, body),
                               .tail = bytes.subspan(head + body, tail)});
        expected += text.substr(0, head + body + tail);
      }
    }
    world.turn();
  }
  EXPECT_EQ(first_difference(collect(world, link, expected.size()), expected),
            std::string_view::npos);
}

TEST_P(Messages, PiecesAreAcceptedAllOrNone) {
  ConnectionLimits limits;
  limits.output_max = 2 * kMiB;
  limits.write_stall_timeout = seconds(0);
  World::Link link = world.connect(limits);
  shrink_buffers(link);
  const std::string large = pattern(900 * kKiB);
  const std::string head = "head";
  const MessageParts parts{.head = std::as_bytes(std::span(head)),
                           .body = std::as_bytes(std::span(large))};
  std::size_t accepted = 0;
  while (link.connection->try_send(parts) != SendOutcome::full) {
    ++accepted;
    world.settle();
    ASSERT_LT(accepted, 20U);
  }
  link.connection->finish();
  std::string expected;
  for (std::size_t i = 0; i < accepted; ++i)
    expected += head + large;
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(first_difference(all.text, expected), std::string_view::npos);
}

TEST_P(Messages, ALargeBodyLeavesAtOnceAndUncopiedBetweenItsEnds) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "a completion back-end takes nothing at once");
  World::Link link = world.connect();
  const std::string body = pattern(50'000);
  std::vector<iovec> sent;
  world.tap.on_send = [&](int, std::span<const iovec> pieces) {
    sent.insert(sent.end(), pieces.begin(), pieces.end());
  };
  world.loop.queue_in_loop([&] {
    link.connection->send({.head = std::as_bytes(std::span("head", 4)),
                           .body = std::as_bytes(std::span(body)),
                           .tail = std::as_bytes(std::span("tail", 4))});
    ASSERT_EQ(sent.size(), 3U);
    EXPECT_EQ(sent[1].iov_base, body.data());
  });
  EXPECT_EQ(collect(world, link, body.size() + 8), "head" + body + "tail");
  world.tap.on_send = nullptr;
}

// -- Groups --

TEST_P(Messages, AGroupSendsToItsMembersAndNoOther) {
  ConnectionGroup group;
  std::vector<World::Link> links;
  for (int i = 0; i < 5; ++i)
    links.push_back(world.connect());
  for (const std::size_t i : {0UL, 1UL, 3UL}) {
    group.add(*links[i].connection);
    group.add(*links[i].connection);
  }
  EXPECT_EQ(group.size(), 3U);
  EXPECT_TRUE(group.contains(*links[3].connection));
  EXPECT_FALSE(group.contains(*links[2].connection));
  EXPECT_EQ(group.send(shared_message(1)).loops_posted, 1U);
  world.settle();
  group.remove(*links[1].connection);
  group.remove(*links[1].connection);
  EXPECT_EQ(group.size(), 2U);
  EXPECT_EQ(group.send(shared_message(2)).loops_posted, 1U);
  world.settle();
  const std::string both = message(1) + message(2);
  const std::string expected[] = {both, message(1), "", both, ""};
  for (std::size_t i = 0; i < links.size(); ++i)
    EXPECT_EQ(receive_available(links[i]), expected[i]) << i;
  EXPECT_EQ(group.statistics().accepted, 5U);
}

// R25
TEST_P(Messages, AConnectionThatEndsLeavesItsGroups) {
  ConnectionGroup first;
  ConnectionGroup second;
  World::Link gone = world.connect();
  World::Link stays = world.connect();
  for (ConnectionGroup* group : {&first, &second}) {
    group->add(*gone.connection);
    group->add(*stays.connection);
  }
  send_reset(gone);
  ASSERT_TRUE(world.run_until([&] { return gone.record->closes == 1; }));
  world.turn();
  EXPECT_EQ(first.size(), 1U);
  EXPECT_EQ(second.size(), 1U);
  // The slot's next tenant gets nothing that was meant for the one before.
  World::Link next = world.connect();
  static_cast<void>(first.send(shared_message(1)));
  world.settle();
  EXPECT_EQ(receive_available(next), "");
  EXPECT_EQ(receive_available(stays), message(1));
}

TEST_P(Messages, AGroupMayGoBeforeItsMembersAndWhatIsUnderWayArrives) {
  World::Link link = world.connect();
  {
    ConnectionGroup group;
    group.add(*link.connection);
    static_cast<void>(group.send(shared_message(1)));
  }
  world.settle();
  EXPECT_EQ(receive_available(link), message(1));
  send_fin(link);
  EXPECT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
}

TEST_P(Messages, AMemberMayLeaveOrJoinInItsOwnOnCloseWithoutHarm) {
  ConnectionGroup group;
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_close = [&group, record](TcpConnection& peer, const CloseReport&) {
    group.remove(peer);
    group.add(peer);
    ++record->closes;
  };
  World::Link link = world.connect(record, std::move(callbacks));
  group.add(*link.connection);
  send_reset(link);
  ASSERT_TRUE(world.run_until([&] { return record->closes == 1; }));
  world.turn();
  EXPECT_EQ(group.size(), 0U);
}

TEST_P(Messages, ABroadcastToAnySetReachesThoseThatLiveAndCountsTheOthers) {
  std::vector<World::Link> links;
  std::vector<ConnectionHandle> handles;
  for (int i = 0; i < 4; ++i) {
    links.push_back(world.connect());
    handles.push_back(links.back().handle);
  }
  send_reset(links[2]);
  ASSERT_TRUE(world.run_until([&] { return links[2].record->closes == 1; }));
  handles.push_back(ConnectionHandle());
  const std::uint64_t stale = ConnectionTable::of(world.loop).statistics().stale_drops;
  EXPECT_EQ(broadcast(handles, shared_message(1)).loops_posted, 1U);
  world.settle();
  EXPECT_EQ(ConnectionTable::of(world.loop).statistics().stale_drops, stale + 1);
  for (const std::size_t i : {0UL, 1UL, 3UL})
    EXPECT_EQ(receive_available(links[i]), message(1));
}

/// Fails each allocation of `send` in turn: what it answers is how many loops the message reaches.
template <class Send>
void expect_told_whom_it_misses(World& first, World& second, const World::Link& here,
                                const World::Link& there, Send send) {
  bool failed = true;
  for (std::size_t which = 0; failed && which < 50; ++which) {
    const SharedBytes bytes = shared_message(which);
    BroadcastResult result;
    {
      const FailingAllocation failing(which);
      try {
        result = send(bytes);
      } catch (const std::bad_alloc&) {
        EXPECT_TRUE(failing.happened()) << which;
      }
      failed = failing.happened();
    }
    first.settle();
    second.settle();
    const std::size_t reached =
        (receive_available(here).empty() ? 0U : 1U) + (receive_available(there).empty() ? 0U : 1U);
    EXPECT_EQ(reached, result.loops_posted) << which;
    const std::size_t told = result.loops_posted + result.loops_full;
    EXPECT_TRUE(told == 2 || told == 0) << which;
  }
  EXPECT_FALSE(failed);
}

TEST_P(Messages, ABroadcastWithoutMemoryReachesNobodyOrSaysWhomItMisses) {
  World second(GetParam());
  World::Link here = world.connect();
  World::Link there = second.connect();
  const ConnectionHandle handles[] = {here.handle, there.handle};
  expect_told_whom_it_misses(world, second, here, there,
                             [&](const SharedBytes& bytes) { return broadcast(handles, bytes); });
}

TEST_P(Messages, AGroupSendWithoutMemoryReachesNobodyOrSaysWhomItMisses) {
  World second(GetParam());
  World::Link here = world.connect();
  World::Link there = second.connect();
  ConnectionGroup group;
  group.add(*here.connection);
  group.add(*there.connection);
  expect_told_whom_it_misses(world, second, here, there,
                             [&](const SharedBytes& bytes) { return group.send(bytes); });
}

TEST_P(Messages, AGroupMayGoWithoutMemory) {
  World::Link link = world.connect();
  auto group = std::make_unique<ConnectionGroup>();
  group->add(*link.connection);
  {
    const FailingAllocation failing;
    group.reset();
  }
  link.connection->send("still here");
  EXPECT_EQ(collect(world, link, 10), "still here");
  link.client.reset();
  EXPECT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
}

TEST_P(Messages, AGroupSendKeepsItsPlaceAmongSendsThroughHandles) {
  ConnectionGroup group;
  World::Link link = world.connect();
  group.add(*link.connection);
  std::string expected;
  for (std::uint64_t i = 0; i < 30; ++i) {
    switch (i % 3) {
      case 0:
        EXPECT_EQ(link.handle.send(message(i)), PostResult::posted);
        break;
      case 1:
        static_cast<void>(group.send(shared_message(i)));
        break;
      default:
        EXPECT_EQ(link.handle.send_message(shared_message(i)), PostResult::posted);
        break;
    }
    expected += message(i);
  }
  EXPECT_EQ(collect(world, link, expected.size()), expected);
}

// R24, with a tenth of them stalled.
TEST_P(Messages, MembersThatDoNotReadHoldUpNobodyAndCostWhatTheirPolicyAllows) {
  ConnectionGroup group;
  std::vector<World::Link> links;
  for (int i = 0; i < 20; ++i) {
    links.push_back(connect_with(SlowConsumer::drop_oldest, 32 * kKiB));
    group.add(*links.back().connection);
  }
  stall(links[0]);
  stall(links[1]);
  constexpr std::uint64_t kSent = 300;
  std::vector<std::string> received(links.size());
  for (std::uint64_t i = 0; i < kSent; ++i) {
    static_cast<void>(group.send(shared_message(i)));
    world.turn();
    for (std::size_t each = 2; each < links.size(); ++each)
      received[each] += receive_available(links[each]);
  }
  std::string expected;
  for (std::uint64_t i = 0; i < kSent; ++i)
    expected += message(i);
  for (std::size_t each = 2; each < links.size(); ++each) {
    received[each] += collect(world, links[each], expected.size() - received[each].size());
    EXPECT_EQ(first_difference(received[each], expected), std::string_view::npos) << each;
  }
  for (const std::size_t each : {0UL, 1UL}) {
    EXPECT_GT(links[each].connection->messages_dropped(), kSent / 2);
    const std::vector<std::uint64_t> order = numbers(drain(links[each]), 'm');
    EXPECT_TRUE(strictly_rising(order));
    EXPECT_EQ(order.back(), kSent - 1);
  }
}

PENSTOCK_ON_EVERY_BACKEND(Messages);

}  // namespace
}  // namespace penstock::test

// What a program can ask: counters of back-ends, loops, connections and servers, why connections
// ended, and the options of a socket; on every back-end.

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "penstock/tcp/adopt.h"
#include "support/serving.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::seconds;

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;
constexpr std::size_t kNowhere = std::string_view::npos;

template <class Counts>
std::uint64_t sum_of(const Counts& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
}

class Statistics : public ConformanceTest {
 protected:
  const ConnectionStatistics& counts() { return ConnectionTable::of(world.loop).statistics(); }
  IoStatistics io() { return world.loop.statistics().io; }
  bool ended(const World::Link& link) {
    return world.run_until([&] { return link.record->closes == 1; });
  }
  void end(const World::Link& link) {
    if (link.record->closes == 0) {
      EXPECT_EQ(link.handle.abort(), PostResult::posted);
    }
    ASSERT_TRUE(ended(link));
  }
};

// -- Back-end --

TEST_P(Statistics, AShortSendAndABlockedOneAreCountedAsSuch) {
  World::Link link = world.connect();
  const int fd = link.connection->descriptor();
  world.turn(3);
  IoStatistics before = io();
  const auto cut =
      world.kernel.inject({.call = Call::send, .fd = fd, .first = 1, .shorten_to = 10});
  world.loop.queue_in_loop([&] { link.connection->send(pattern(1000)); });
  EXPECT_EQ(collect(world, link, 1000), pattern(1000));
  EXPECT_EQ(world.kernel.fired(cut), 1u);
  world.settle();
  EXPECT_EQ(io().short_sends, before.short_sends + 1);
  EXPECT_EQ(io().blocked_sends, before.blocked_sends);

  before = io();
  const auto refused =
      world.kernel.inject({.call = Call::send, .fd = fd, .times = 1, .error = EAGAIN});
  world.loop.queue_in_loop([&] { link.connection->send(pattern(1000)); });
  EXPECT_EQ(collect(world, link, 1000), pattern(1000));
  EXPECT_EQ(world.kernel.fired(refused), 1u);
  world.settle();
  EXPECT_EQ(io().short_sends, before.short_sends);
  EXPECT_EQ(io().blocked_sends, before.blocked_sends + 1);

  before = io();
  const auto starved =
      world.kernel.inject({.call = Call::send, .fd = fd, .times = 1, .error = ENOBUFS});
  world.loop.queue_in_loop([&] { link.connection->send(pattern(1000)); });
  EXPECT_EQ(collect(world, link, 1000), pattern(1000));
  EXPECT_EQ(world.kernel.fired(starved), 1u);
  EXPECT_EQ(io().blocked_sends, before.blocked_sends + 1);
  EXPECT_EQ(io().short_sends, before.short_sends);
}

TEST_P(Statistics, SendsTheKernelTakesWholeAreNeitherShortNorBlocked) {
  World::Link link = world.connect();
  const std::uint64_t calls = send_calls(world);
  for (int i = 0; i < 20; ++i) {
    world.loop.queue_in_loop([&] { link.connection->send("all of it"); });
    EXPECT_EQ(collect(world, link, 9), "all of it");
  }
  EXPECT_EQ(send_calls(world), calls + 20);
  EXPECT_EQ(io().short_sends, 0u);
  EXPECT_EQ(io().blocked_sends, 0u);
}

TEST_P(Statistics, ASlowReaderMakesEverySendShortOrBlockedButTheLast) {
  World::Link link = world.connect();
  shrink_buffers(link);
  const std::uint64_t calls = send_calls(world);
  world.loop.queue_in_loop([&] { link.connection->send(pattern(4 * kMiB)); });
  EXPECT_EQ(first_difference(collect(world, link, 4 * kMiB), pattern(4 * kMiB)), kNowhere);
  world.settle();
  const IoStatistics now = io();
  EXPECT_GT(now.short_sends, 0u);
  const std::uint64_t made = send_calls(world) - calls;
  EXPECT_LE(now.short_sends + now.blocked_sends, made);
  EXPECT_GE(now.short_sends + now.blocked_sends + 1, made)
      << "one payload: each call takes all there is, or falls short";
}

TEST_P(Statistics, WaitsWakeupsAndEventsAreWhatTheKernelWasAskedAndAnswered) {
  World::Link link = world.connect();
  const std::uint64_t asked = world.kernel.calls(Call::epoll_wait) + world.kernel.calls(Call::poll);
  const std::uint64_t answered = world.kernel.wakeups();
  const LoopStatistics before = world.loop.statistics();
  deliver(link, "x");
  ASSERT_TRUE(world.run_until([&] { return link.record->received == "x"; }));
  world.turn(10);
  const LoopStatistics after = world.loop.statistics();
  EXPECT_EQ(after.io.waits - before.io.waits,
            world.kernel.calls(Call::epoll_wait) + world.kernel.calls(Call::poll) - asked);
  EXPECT_EQ(after.io.wakeups - before.io.wakeups, world.kernel.wakeups() - answered);
  EXPECT_EQ(after.turns - before.turns, after.io.waits - before.io.waits);
  EXPECT_GE(after.io.events - before.io.events, 1u);
  EXPECT_EQ(after.io.unknown_events, 0u);
}

// -- Loop --

TEST_P(Statistics, TheLagCountsEveryTurnAndShowsALongOne) {
  const std::uint64_t turns = world.loop.statistics().turns;
  const std::uint64_t counted = world.loop.lag().count();
  for (int i = 0; i < 10; ++i)
    world.loop.step();
  EXPECT_EQ(world.loop.statistics().turns, turns + 10);
  EXPECT_EQ(world.loop.lag().count(), counted + 10);
  EXPECT_LT(world.loop.lag().max(), std::chrono::hours(1));
  // A task that takes an hour; the clock is the kernel's.
  world.loop.queue_in_loop([&] { world.kernel.advance(std::chrono::minutes(10)); });
  world.turn();
  EXPECT_GE(world.loop.lag().max(), std::chrono::minutes(10));
  EXPECT_GE(world.loop.lag().percentile(1.0), std::chrono::minutes(10));
}

TEST_P(Statistics, TheTimeSpentInCallbacksIsLagOfTheNextTurnAndTheWaitIsNot) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
    record->received += in.take_string();
    world.kernel.advance(std::chrono::minutes(5));
  };
  World::Link link =
      world.connect(record, std::move(callbacks), {.idle_timeout = Duration::zero()});
  world.turn(3);
  // What passes inside of the wait belongs to nobody.
  const Call wait = GetParam() == Backend::poll ? Call::poll : Call::epoll_wait;
  bool waited = false;
  world.kernel.before(wait, [&](int) {
    if (!std::exchange(waited, true)) world.kernel.advance(std::chrono::minutes(2));
  });
  world.turn(2);
  EXPECT_TRUE(waited);
  world.kernel.before(wait, {});
  EXPECT_LT(world.loop.lag().max(), std::chrono::minutes(2));
  deliver(link, "slow");
  ASSERT_TRUE(world.run_until([&] { return record->received == "slow"; }));
  world.turn(2);
  EXPECT_GE(world.loop.lag().max(), std::chrono::minutes(5));
  EXPECT_LT(world.loop.lag().max(), std::chrono::minutes(7));
}

// -- Connections --

TEST_P(Statistics, BytesOfLivingAndEndedConnectionsAreCountedTogether) {
  World::Link first = world.connect();
  World::Link second = world.connect();
  EXPECT_EQ(counts().opened, 2u);
  deliver(first, pattern(1000));
  deliver(second, pattern(2000));
  ASSERT_TRUE(world.run_until([&] { return counts().bytes_received == 3000; }));
  world.loop.queue_in_loop([&] {
    first.connection->send(pattern(10'000));
    second.connection->send(pattern(20'000));
  });
  collect(world, first, 10'000);
  collect(world, second, 20'000);
  EXPECT_EQ(counts().bytes_sent, 30'000u);
  end(first);
  EXPECT_EQ(counts().bytes_received, 3000u);
  EXPECT_EQ(counts().bytes_sent, 30'000u);
  EXPECT_EQ(counts().closed, 1u);
  deliver(second, pattern(5));
  ASSERT_TRUE(world.run_until([&] { return counts().bytes_received == 3005; }));
  EXPECT_EQ(second.connection->bytes_received(), 2005u);
  EXPECT_EQ(second.connection->bytes_sent(), 20'000u);
}

TEST_P(Statistics, QueuedBytesAreThoseOfAllConnections) {
  ConnectionTable& table = ConnectionTable::of(world.loop);
  EXPECT_EQ(table.queued_bytes(), 0u);
  World::Link first = world.connect();
  World::Link second = world.connect();
  shrink_buffers(first);
  shrink_buffers(second);
  world.loop.queue_in_loop([&] {
    first.connection->send(pattern(2 * kMiB));
    second.connection->send(pattern(4 * kMiB));
  });
  world.turn(5);
  const std::size_t queued = table.queued_bytes();
  EXPECT_EQ(queued, first.connection->queued_bytes() + second.connection->queued_bytes());
  EXPECT_EQ(queued + counts().bytes_sent, 6 * kMiB);
  collect(world, first, 2 * kMiB);
  world.settle();
  EXPECT_EQ(table.queued_bytes(), second.connection->queued_bytes());
  end(second);
  EXPECT_EQ(table.queued_bytes(), 0u);
}

TEST_P(Statistics, EndsAreCountedByReason) {
  std::uint64_t ends = 0;
  const auto expect_next = [&](CloseReason reason, const World::Link& link) {
    ASSERT_TRUE(ended(link)) << to_string(reason);
    EXPECT_EQ(to_string(link.record->report->reason), to_string(reason));
    EXPECT_EQ(counts().ends[reason], 1u);
    EXPECT_EQ(sum_of(counts().ends.reasons), ++ends);
    EXPECT_EQ(counts().closed, ends);
  };
  {
    World::Link link = world.connect();
    send_fin(link);
    expect_next(CloseReason::eof, link);
  }
  {
    World::Link link = world.connect();
    send_reset(link);
    expect_next(CloseReason::reset, link);
  }
  {
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [](TcpConnection&, InputBuffer&) {};
    World::Link link = world.connect(record, std::move(callbacks));
    deliver(link, "half a mess");
    send_fin(link);
    expect_next(CloseReason::truncated, link);
  }
  {
    World::Link link = world.connect({.idle_timeout = seconds(100)});
    pass(world, seconds(150));
    expect_next(CloseReason::timeout, link);
  }
  {
    World::Link link = world.connect({.output_max = 64 * kKiB});
    world.loop.queue_in_loop([&] { link.connection->send(pattern(kMiB)); });
    expect_next(CloseReason::overflow, link);
  }
  {
    World::Link link = world.connect();
    world.loop.queue_in_loop([&] { link.connection->close_with_protocol_error(); });
    world.turn(2);
    send_fin(link);
    expect_next(CloseReason::protocol, link);
  }
  {
    World::Link link = world.connect();
    EXPECT_EQ(link.handle.abort(), PostResult::posted);
    expect_next(CloseReason::local, link);
  }
  {
    World::Link link = world.connect();
    world.loop.queue_in_loop([&] { link.connection->detach([](UniqueFd, std::string) {}); });
    expect_next(CloseReason::detached, link);
  }
  for (const std::uint64_t each : counts().ends.reasons)
    EXPECT_EQ(each, 1u);
  EXPECT_EQ(counts().opened, kCloseReasons);
}

TEST_P(Statistics, TimeoutsAreCountedByKind) {
  std::uint64_t ends = 0;
  const auto expect_next = [&](TimeoutKind kind, const World::Link& link) {
    ASSERT_TRUE(ended(link)) << to_string(kind);
    EXPECT_EQ(to_string(link.record->report->reason), to_string(CloseReason::timeout));
    EXPECT_EQ(to_string(link.record->report->timeout), to_string(kind));
    EXPECT_EQ(counts().ends[kind], 1u);
    EXPECT_EQ(counts().ends[CloseReason::timeout], ++ends);
    EXPECT_EQ(counts().ends[TimeoutKind::none], 0u);
  };
  {
    World::Link link = world.connect({.idle_timeout = seconds(100)});
    pass(world, seconds(150));
    expect_next(TimeoutKind::idle, link);
  }
  {
    World::Link link = world.connect({.write_stall_timeout = seconds(40)});
    shrink_buffers(link);
    world.loop.queue_in_loop([&] { link.connection->send(pattern(4 * kMiB)); });
    world.turn(5);
    for (int i = 0; i < 12; ++i)
      pass(world, seconds(10));
    expect_next(TimeoutKind::write_stall, link);
  }
  {
    World::Link link =
        world.connect({.idle_timeout = seconds(0), .half_close_timeout = seconds(100)});
    world.loop.queue_in_loop([&] { link.connection->finish(); });
    world.turn(3);
    pass(world, seconds(150));
    expect_next(TimeoutKind::half_close, link);
  }
  {
    World::Link link = world.connect();
    const auto rule = world.kernel.inject(
        {.call = Call::recv, .fd = link.connection->descriptor(), .error = ETIMEDOUT});
    deliver(link, "x");
    expect_next(TimeoutKind::unacknowledged, link);
    EXPECT_EQ(world.kernel.fired(rule), 1u);
  }
  EXPECT_EQ(counts().ends[CloseReason::timeout], 4u);
}

TEST_P(Statistics, WhatComesTooLateForAConnectionIsCounted) {
  World::Link link = world.connect();
  end(link);
  world.turn(2);
  EXPECT_EQ(counts().stale_drops, 0u);
  EXPECT_EQ(link.handle.send("one"), PostResult::posted);
  EXPECT_EQ(link.handle.send(std::string(kMiB, 'x')), PostResult::posted);
  EXPECT_EQ(link.handle.finish(), PostResult::posted);
  EXPECT_EQ(link.handle.close(), PostResult::posted);
  EXPECT_EQ(link.handle.abort(), PostResult::posted);
  bool visited = false;
  EXPECT_EQ(link.handle.post([&](TcpConnection&) { visited = true; }), PostResult::posted);
  world.turn(3);
  EXPECT_EQ(counts().stale_drops, 6u);
  EXPECT_FALSE(visited);
}

TEST_P(Statistics, AConnectionThatCannotBeRegisteredIsRefusedAndNotAnEnd) {
  if (GetParam() == Backend::poll) return;  // it has nothing to refuse
  const auto rule =
      world.kernel.inject({.call = Call::epoll_ctl, .operation = EPOLL_CTL_ADD, .error = ENOSPC});
  SocketPair pair = tcp_pair(world.kernel);
  auto record = std::make_shared<Record>();
  EXPECT_FALSE(
      adopt_connection(world.loop, std::move(pair.server), make_behaviour(World::recording(record)))
          .has_value());
  EXPECT_EQ(world.kernel.fired(rule), 1u);
  EXPECT_EQ(counts().refused, 1u);
  EXPECT_EQ(counts().opened, 0u);
  EXPECT_EQ(counts().closed, 0u);
  EXPECT_EQ(sum_of(counts().ends.reasons), 0u);
  EXPECT_TRUE(record->events.empty());
}

// -- Servers --

TEST_P(Statistics, AServerAddsUpWhatItsConnectionsDidAndWhyTheyEnded) {
  Ledger ledger;
  TcpServer server(world.loop);
  ledger.keep(server);
  server.on_message([](TcpConnection& peer, InputBuffer& in) { peer.send(in.take_string()); });
  ASSERT_TRUE(server.start().has_value());
  std::vector<RawClient> clients = connect_many(server.address(), 4);
  ASSERT_TRUE(world.run_until([&] { return ledger.connects == 4; }));
  EXPECT_EQ(server.statistics().accepted, 4u);
  EXPECT_EQ(server.statistics().live, 4u);
  EXPECT_EQ(server.statistics().ended, 0u);
  for (RawClient& client : clients)
    send_text(linux_kernel(), client.fd.get(), "12345");
  ASSERT_TRUE(world.run_until([&] {
    std::size_t bytes = 0;
    for (RawClient& client : clients) {
      client.read_some();
      bytes += client.bytes;
    }
    return bytes == 20;
  }));
  EXPECT_EQ(server.statistics().bytes_received, 0u) << "counted when they end";
  linux_kernel().shutdown(clients[0].fd.get(), SHUT_WR);
  linux_kernel().shutdown(clients[1].fd.get(), SHUT_WR);
  reset_on_close(linux_kernel(), clients[2].fd.get());
  clients[2].fd.reset();
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == 3; }));
  world.turn();
  const ServerStatistics now = server.statistics();
  EXPECT_EQ(now.ends[CloseReason::eof], 2u);
  EXPECT_EQ(now.ends[CloseReason::reset], 1u);
  EXPECT_EQ(now.ended, 3u);
  EXPECT_EQ(now.live, 1u);
  EXPECT_EQ(sum_of(now.ends.reasons), now.ended);
  EXPECT_EQ(now.bytes_received, 15u);
  EXPECT_EQ(now.bytes_sent, 15u);
  world.loop.queue_in_loop([&] { server.stop(Duration::zero()); });
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == 4; }));
  world.turn();
  EXPECT_EQ(server.statistics().ends[CloseReason::local], 1u);
  EXPECT_EQ(server.statistics().aborted_at_stop, 1u);
  EXPECT_EQ(server.statistics().accepted, server.statistics().live + server.statistics().ended);
}

TEST_P(Statistics, AServerCountsTimeoutsByKind) {
  Ledger ledger;
  TcpServer server(world.loop, {.limits = {.idle_timeout = seconds(100)}});
  ledger.keep(server);
  ASSERT_TRUE(server.start().has_value());
  const std::vector<RawClient> clients = connect_many(server.address(), 3);
  ASSERT_TRUE(world.run_until([&] { return ledger.connects == 3; }));
  pass(world, seconds(150));
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == 3; }));
  world.turn();
  EXPECT_EQ(server.statistics().ends[CloseReason::timeout], 3u);
  EXPECT_EQ(server.statistics().ends[TimeoutKind::idle], 3u);
  EXPECT_EQ(server.statistics().ends[TimeoutKind::none], 0u);
}

TEST_P(Statistics, ConnectionsThatCouldNotBeServedAreCountedAndNotLive) {
  if (GetParam() == Backend::poll) return;  // it has nothing to refuse
  Ledger ledger;
  TcpServer server(world.loop);
  ledger.keep(server);
  ASSERT_TRUE(server.start().has_value());
  std::vector<RawClient> clients = connect_many(server.address(), 3);
  const auto rule = world.kernel.inject(
      {.call = Call::epoll_ctl, .operation = EPOLL_CTL_ADD, .times = 2, .error = ENOMEM});
  ASSERT_TRUE(world.run_until([&] { return ledger.connects == 1; }));
  EXPECT_EQ(world.kernel.fired(rule), 2u);
  const ServerStatistics now = server.statistics();
  EXPECT_EQ(now.accepted, 3u);
  EXPECT_EQ(now.refused_at_start, 2u);
  EXPECT_EQ(now.live, 1u);
  EXPECT_EQ(now.accepted, now.live + now.ended);
  EXPECT_EQ(sum_of(now.ends.reasons), now.ended);
}

// -- Which limit it was --

TEST_P(Statistics, AnOverflowOfOutputSaysSo) {
  for (const bool large : {true, false}) {
    SCOPED_TRACE(large);
    World::Link link = world.connect({.output_max = 64 * kKiB});
    shrink_buffers(link);
    world.loop.queue_in_loop([&] {
      if (large) {
        link.connection->send(pattern(kMiB));
        return;
      }
      for (int i = 0; i < 1'000'000 && link.connection->can_send(); ++i)
        link.connection->send("a hundred bytes or so, again and again");
    });
    ASSERT_TRUE(ended(link));
    EXPECT_EQ(to_string(link.record->report->reason), to_string(CloseReason::overflow));
    EXPECT_EQ(link.record->report->error, make_error_code(Errc::output_limit));
  }
}

TEST_P(Statistics, AnOverflowOfInputSaysSo) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [](TcpConnection&, InputBuffer&) {};
  World::Link link = world.connect(record, std::move(callbacks), {.input_max = 8 * kKiB});
  feed(world, link, pattern(20 * kKiB));
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(to_string(record->report->reason), to_string(CloseReason::overflow));
  EXPECT_EQ(record->report->error, make_error_code(Errc::input_limit));
  EXPECT_GE(record->report->input_discarded, 8 * kKiB);
}

// A budget so small that one connection exhausts it, by what it sends or by what it keeps.
TEST(MemoryLimit, AnOverflowOfTheBudgetSaysSo) {
  for (const Backend backend : kBackends) {
    for (const bool output : {true, false}) {
      SCOPED_TRACE(backend_word(backend) + (output ? " output" : " input"));
      World world(backend, make_counted<MemoryBudget>(256 * kKiB));
      auto record = std::make_shared<Record>();
      ConnectionCallbacks callbacks = World::recording(record);
      callbacks.on_message = [](TcpConnection&, InputBuffer&) {};
      World::Link link = world.connect(record, std::move(callbacks), {.input_max = 64 * kMiB});
      shrink_buffers(link);
      if (output) {
        world.loop.queue_in_loop([&] { link.connection->send(pattern(4 * kMiB)); });
      } else {
        std::string_view left = record->received;
        const std::string text = pattern(4 * kMiB);
        left = text;
        ASSERT_TRUE(world.run_until([&] {
          const ssize_t sent =
              send_text(linux_kernel(), link.client.get(), left.substr(0, 64 * kKiB));
          if (sent > 0) left.remove_prefix(static_cast<std::size_t>(sent));
          return record->closes == 1;
        }));
      }
      ASSERT_TRUE(world.run_until([&] { return record->closes == 1; }));
      EXPECT_EQ(to_string(record->report->reason), to_string(CloseReason::overflow));
      EXPECT_EQ(record->report->error, make_error_code(Errc::memory_limit));
      EXPECT_EQ(world.loop.memory().used(), 0u);
    }
  }
}

// The limit named is the one that refused, not one that refused something before.
TEST_P(Statistics, TheLimitNamedIsTheOneThatRefusedLast) {
  World small(GetParam(), make_counted<MemoryBudget>(256 * kKiB));
  World::Link link = small.connect({.output_max = kMiB});
  small.loop.queue_in_loop([&] {
    EXPECT_EQ(link.connection->try_send(pattern(2 * kMiB)), SendOutcome::full);    // the cap
    EXPECT_EQ(link.connection->try_send(pattern(512 * kKiB)), SendOutcome::full);  // the budget
    link.connection->send(pattern(2 * kMiB));
  });
  ASSERT_TRUE(small.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->error, make_error_code(Errc::output_limit));
}

TEST_P(Statistics, AnEndThatIsNoOverflowNamesNoLimit) {
  World::Link link = world.connect({.output_max = 64 * kKiB});
  world.loop.queue_in_loop(
      [&] { EXPECT_EQ(link.connection->try_send(pattern(kMiB)), SendOutcome::full); });
  world.turn(2);
  send_fin(link);
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(to_string(link.record->report->reason), to_string(CloseReason::eof));
  EXPECT_FALSE(link.record->report->error);
}

// -- Options --

TEST_P(Statistics, OptionsAreSetAndReadOnTheSocketItself) {
  World::Link link = world.connect();
  TcpConnection& peer = *link.connection;
  ASSERT_TRUE(peer.set_option(IPPROTO_TCP, TCP_NODELAY, 1).has_value());
  EXPECT_EQ(peer.option<int>(IPPROTO_TCP, TCP_NODELAY).value(), 1);
  ASSERT_TRUE(peer.set_option(IPPROTO_TCP, TCP_NODELAY, 0).has_value());
  EXPECT_EQ(peer.option<int>(IPPROTO_TCP, TCP_NODELAY).value(), 0);
  ASSERT_TRUE(
      peer.set_option(SOL_SOCKET, SO_LINGER, linger{.l_onoff = 1, .l_linger = 7}).has_value());
  const auto lingering = peer.option<linger>(SOL_SOCKET, SO_LINGER);
  ASSERT_TRUE(lingering.has_value());
  EXPECT_EQ(lingering->l_onoff, 1);
  EXPECT_EQ(lingering->l_linger, 7);
  EXPECT_EQ(peer.option<int>(SOL_SOCKET, SO_TYPE).value(), SOCK_STREAM);
  EXPECT_EQ(peer.set_option(SOL_SOCKET, 54'321, 1).error(), system_error(ENOPROTOOPT));
  EXPECT_EQ(peer.option<int>(SOL_SOCKET, 54'321).error(), system_error(ENOPROTOOPT));
  EXPECT_EQ(peer.set_option(IPPROTO_TCP, TCP_NODELAY, char{1}).error(), system_error(EINVAL))
      << "the size is the type's";
}

TEST_P(Statistics, TheKernelsViewOfAConnectionIsPlausible) {
  World::Link link = world.connect();
  const auto fresh = link.connection->info();
  ASSERT_TRUE(fresh.has_value());
  EXPECT_EQ(fresh->tcpi_state, TCP_ESTABLISHED);
  EXPECT_EQ(fresh->tcpi_total_retrans, 0u);
  EXPECT_GT(fresh->tcpi_snd_cwnd, 0u);
  EXPECT_GT(fresh->tcpi_snd_mss, 0u);
  world.loop.queue_in_loop([&] { link.connection->send(pattern(500'000)); });
  collect(world, link, 500'000);
  ASSERT_TRUE(all_acknowledged(linux_kernel(), link.connection->descriptor()));
  const auto busy = link.connection->info();
  ASSERT_TRUE(busy.has_value());
  EXPECT_EQ(busy->tcpi_unacked, 0u);
  EXPECT_GT(busy->tcpi_rtt, 0u);
  send_fin(link);
  ASSERT_TRUE(ended(link));
}

TEST_P(Statistics, AnInfoThatTheKernelRefusesIsItsError) {
  World::Link link = world.connect();
  const auto rule = world.kernel.inject({.call = Call::getsockopt, .error = ENOBUFS});
  EXPECT_EQ(link.connection->info().error(), system_error(ENOBUFS));
  EXPECT_EQ(world.kernel.fired(rule), 1u);
  EXPECT_TRUE(link.connection->info().has_value());
}

TEST_P(Statistics, AUnixSocketHasOptionsButNoInfo) {
  SocketPair pair = unix_pair(world.kernel);
  std::optional<std::error_code> no_info;
  std::optional<std::error_code> no_delay;
  int buffer = 0;
  ConnectionCallbacks callbacks;
  callbacks.on_connect = [&](TcpConnection& peer) {
    const auto info = peer.info();
    if (!info) no_info = info.error();
    const auto set = peer.set_option(IPPROTO_TCP, TCP_NODELAY, 1);
    if (!set) no_delay = set.error();
    buffer = peer.option<int>(SOL_SOCKET, SO_SNDBUF).value();
  };
  ASSERT_TRUE(
      adopt_connection(world.loop, std::move(pair.server), make_behaviour(std::move(callbacks)))
          .has_value());
  ASSERT_TRUE(no_info.has_value());
  EXPECT_TRUE(*no_info == system_error(EOPNOTSUPP) || *no_info == system_error(ENOPROTOOPT));
  ASSERT_TRUE(no_delay.has_value());
  EXPECT_TRUE(*no_delay == system_error(EOPNOTSUPP) || *no_delay == system_error(ENOPROTOOPT));
  EXPECT_GT(buffer, 0);
}

TEST_P(Statistics, AfterTheEndEveryOptionIsNotConnected) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  const auto expect_gone = [&](TcpConnection& peer) {
    EXPECT_EQ(peer.set_option(IPPROTO_TCP, TCP_NODELAY, 1).error(), system_error(ENOTCONN));
    EXPECT_EQ(peer.option<int>(SOL_SOCKET, SO_TYPE).error(), system_error(ENOTCONN));
    EXPECT_EQ(peer.info().error(), system_error(ENOTCONN));
    EXPECT_EQ(peer.descriptor(), -1);
    EXPECT_EQ(peer.local_address(), SocketAddress());
  };
  bool seen = false;
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    in.take();
    peer.abort();
    expect_gone(peer);
  };
  callbacks.on_close = [&](TcpConnection& peer, const CloseReport& report) {
    expect_gone(peer);
    EXPECT_NE(peer.peer_address(), SocketAddress()) << "known to the end";
    seen = true;
    record->report = report;
    ++record->closes;
  };
  World::Link link = world.connect(record, std::move(callbacks));
  const std::uint64_t asked = world.kernel.calls(Call::getsockopt);
  deliver(link, "x");
  ASSERT_TRUE(ended(link));
  EXPECT_TRUE(seen);
  EXPECT_EQ(world.kernel.calls(Call::getsockopt), asked);
}

PENSTOCK_ON_EVERY_BACKEND(Statistics);

}  // namespace
}  // namespace penstock::test

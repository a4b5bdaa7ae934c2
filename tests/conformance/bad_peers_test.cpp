// Peers that mean harm, as far as accepting goes: too many connections of one source, too fast,
// without a word, and gone at once (scenarios S3, S5, S10, S11), on every back-end.

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <deque>
#include <new>
#include <stdexcept>
#include <thread>

#include "bytes/failing_allocation.h"
#include "support/captured_log.h"
#include "support/connecting.h"
#include "support/pretended_peers.h"
#include "support/serving.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class BadPeers : public testing::TestWithParam<Backend> {
 protected:
  TcpServer& start(TcpServerOptions options) {
    server_ = std::make_unique<TcpServer>(world.loop, std::move(options));
    ledger.keep(*server_);
    EXPECT_TRUE(server_->start().has_value());
    return *server_;
  }
  /// From now on time passes only when told to, for the loop too.
  void stand_still() {
    peers.stand_still();
    world.turn();
  }
  TcpServer& server() { return *server_; }
  void destroy_server() { server_.reset(); }
  ServerStatistics statistics() const { return server_->statistics(); }

  /// A client that the server takes for one from there. Turns until it has been accepted.
  RawClient come_from(const std::string& address) {
    const std::uint64_t accepted = statistics().accepted;
    peers.who = [peer = address_of(address)](std::size_t) { return peer; };
    RawClient client(connect_to(server().address()));
    EXPECT_TRUE(world.run_until([&] { return statistics().accepted == accepted + 1; }));
    return client;
  }
  void expect_reset(RawClient& client) {
    EXPECT_TRUE(world.run_until([&] {
      client.read_some();
      return client.ended;
    }));
    EXPECT_TRUE(client.was_reset()) << client.end;
  }
  bool none_is_left() {
    return world.run_until([&] { return statistics().live == 0; });
  }
  /// Turns, and shows that nothing happens in them: no wake-up, no accept.
  void expect_idle() {
    const std::uint64_t wakeups = world.kernel.wakeups();
    const std::uint64_t accepts = world.kernel.calls(Call::accept4);
    const std::uint64_t accepted = statistics().accepted;
    for (int i = 0; i < 50; ++i)
      world.loop.step();
    EXPECT_EQ(world.kernel.wakeups(), wakeups);
    EXPECT_EQ(world.kernel.calls(Call::accept4), accepts);
    EXPECT_EQ(statistics().accepted, accepted);
  }
  /// Lets time pass, on the loop's clock only.
  void pass(Duration time) {
    world.kernel.advance(time);
    world.settle();
  }

  PretendedPeers peers;
  World world{GetParam(), {}, peers};
  Ledger ledger;

 private:
  std::unique_ptr<TcpServer> server_;
};

PENSTOCK_ON_EVERY_BACKEND(BadPeers);

// -- Connections of one source --------------------------------------------------------------------

TEST_P(BadPeers, OneMoreThanASourceMayHaveIsResetAtOnceAndCounted) {
  start({.connections_per_source_max = 2});
  RawClient first = come_from("10.0.0.1:1001");
  const RawClient second = come_from("10.0.0.1:1002");
  RawClient third = come_from("10.0.0.1:1003");
  expect_reset(third);
  EXPECT_EQ(statistics().refused_for_source, 1u);
  EXPECT_EQ(statistics().live, 2u);
  EXPECT_EQ(statistics().sources, 1u);
  EXPECT_EQ(statistics().ended, 0u) << "it never was a connection";
  const RawClient other = come_from("10.0.0.2:1001");
  EXPECT_EQ(statistics().live, 3u);
  EXPECT_EQ(statistics().sources, 2u);
  // One goes, one may come.
  first.fd.reset();
  ASSERT_TRUE(world.run_until([&] { return statistics().live == 2; }));
  const RawClient fourth = come_from("10.0.0.1:1004");
  RawClient fifth = come_from("10.0.0.1:1005");
  expect_reset(fifth);
  EXPECT_EQ(statistics().live, 3u);
  EXPECT_EQ(statistics().refused_for_source, 2u);
  EXPECT_EQ(ledger.connects, 4u);
}

TEST_P(BadPeers, Ipv6CountsBySixtyFourBitsAndIpv4InsideItAsIpv4) {
  start({.connections_per_source_max = 1});
  const RawClient six = come_from("[2001:db8:0:1::1]:1");
  RawClient neighbour = come_from("[2001:db8:0:1:ffff::2]:1");
  expect_reset(neighbour);
  const RawClient next_net = come_from("[2001:db8:0:2::1]:1");
  const RawClient mapped = come_from("[::ffff:10.0.0.1]:1");
  RawClient plain = come_from("10.0.0.1:2");
  expect_reset(plain);
  const RawClient other_mapped = come_from("[::ffff:10.0.0.2]:1");
  EXPECT_EQ(statistics().live, 4u);
  EXPECT_EQ(statistics().sources, 4u);
  EXPECT_EQ(statistics().refused_for_source, 2u);
}

TEST_P(BadPeers, PeersOnTheLoopbackAreNeverRefusedForTheirSource) {
  start({.connections_per_source_max = 1});
  std::vector<RawClient> clients;
  for (const char* address : {"127.0.0.1:1", "127.0.0.1:2", "127.1.2.3:1", "127.1.2.3:2", "[::1]:1",
                              "[::1]:2", "[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:2"}) {
    clients.push_back(come_from(address));
  }
  EXPECT_EQ(statistics().live, clients.size());
  EXPECT_EQ(statistics().sources, 0u);
  // Only ::1 is: its /64 is not.
  clients.push_back(come_from("[::2]:1"));
  EXPECT_EQ(statistics().sources, 1u);
  clients.clear();
  EXPECT_TRUE(none_is_left());
  EXPECT_EQ(statistics().refused_for_source, 0u);
  EXPECT_EQ(statistics().sources, 0u);
}

TEST_P(BadPeers, UnixPeersAreNeverRefusedForTheirSource) {
  start({.listen = "unix:" + unused_abstract_name(), .connections_per_source_max = 1});
  const std::vector<RawClient> clients = connect_many(server().address(), 3);
  EXPECT_TRUE(world.run_until([&] { return ledger.connects == 3; }));
  EXPECT_EQ(statistics().sources, 0u);
}

TEST_P(BadPeers, WhoeverIsRefusedForItsSourceTakesNobodysPlace) {
  start({.max_connections = 2, .connections_per_source_max = 1});
  const RawClient greedy = come_from("10.0.0.1:1");
  for (int i = 0; i < 5; ++i) {
    RawClient again = come_from("10.0.0.1:2");
    expect_reset(again);
  }
  const RawClient other = come_from("10.0.0.2:1");
  EXPECT_EQ(statistics().live, 2u);
  // Full: who waits is not even looked at.
  const RawClient waiting(connect_to(server().address()));
  world.settle();
  expect_idle();
}

TEST_P(BadPeers, HoweverAConnectionEndsItsSourceMayComeAgain) {
  start({.connections_per_source_max = 1,
         .limits = {.idle_timeout = seconds(10), .drain_idle_timeout = seconds(1)}});
  std::optional<UniqueFd> taken;
  const std::vector<std::function<void(TcpConnection&, RawClient&)>> ends = {
      [](TcpConnection& peer, RawClient&) { peer.abort(); },
      [](TcpConnection& peer, RawClient& client) {
        peer.close();
        client.fd.reset();
      },
      [](TcpConnection&, RawClient& client) { client.fd.reset(); },
      [](TcpConnection&, RawClient& client) {
        reset_on_close(linux_kernel(), client.fd.get());
        client.fd.reset();
      },
      [this](TcpConnection&, RawClient&) { world.kernel.advance(seconds(11)); },
      [this, &taken](TcpConnection& peer, RawClient&) {
        world.loop.queue_in_loop([&peer, &taken] {
          peer.detach([&taken](UniqueFd fd, std::string) { taken.emplace(std::move(fd)); });
        });
      },
  };
  for (std::size_t i = 0; i < ends.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "end " << i);
    RawClient client = come_from("10.0.0.1:1");
    ASSERT_EQ(statistics().live, 1u);
    ASSERT_EQ(statistics().sources, 1u);
    ends[i](**ledger.live.begin(), client);
    ASSERT_TRUE(none_is_left());
    EXPECT_EQ(statistics().sources, 0u);
  }
  EXPECT_TRUE(taken.has_value()) << "detached, it lives on and is not counted";
  EXPECT_EQ(statistics().refused_for_source, 0u);
  EXPECT_EQ(ledger.connects, ends.size());
}

TEST_P(BadPeers, AConnectionThatCannotBeServedIsNotCountedForItsSource) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "poll registers nothing that could fail");
  start({.connections_per_source_max = 1});
  const auto rule = world.kernel.inject(
      {.call = Call::epoll_ctl, .operation = EPOLL_CTL_ADD, .times = 3, .error = ENOSPC});
  for (int i = 0; i < 3; ++i) {
    RawClient client = come_from("10.0.0.1:1");
    EXPECT_TRUE(none_is_left());
    EXPECT_EQ(statistics().sources, 0u);
  }
  EXPECT_EQ(world.kernel.fired(rule), 3u);
  EXPECT_EQ(statistics().refused_at_start, 3u);
  const RawClient client = come_from("10.0.0.1:1");
  EXPECT_EQ(statistics().live, 1u);
  EXPECT_EQ(statistics().refused_for_source, 0u);
}

// B9
TEST_P(BadPeers, WhicheverAllocationFailsTheSourceIsCountedRight) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "the deferring back-end itself has no answer to that");
  constexpr std::size_t kAllocationsMax = 200;
  bool happened = true;
  std::size_t which = 0;
  std::size_t uncounted = 0;
  for (; happened; ++which) {
    ASSERT_LT(which, kAllocationsMax);
    SCOPED_TRACE(testing::Message() << "allocation " << which);
    const CapturedLog quiet;
    PretendedPeers elsewhere;
    const SocketAddress peer = address_of("10.0.0.1:1");
    elsewhere.who = [&peer](std::size_t) { return peer; };
    EventLoop loop({.backend = GetParam(), .kernel = &elsewhere});
    TcpServer caller(loop, {.connections_per_source_max = 1});
    caller.on_message([](TcpConnection&, InputBuffer& in) { in.consume(in.size()); });
    ASSERT_TRUE(caller.start().has_value());
    loop.step();
    RawClient client(connect_to(caller.address()));
    {
      const FailingAllocation failing(which);
      for (int turn = 0; turn < 3; ++turn)
        loop.step();
      happened = failing.happened();
    }
    EXPECT_EQ(caller.statistics().accepted, 1u);
    EXPECT_EQ(caller.statistics().sources, caller.statistics().live);
    uncounted += quiet.count("no memory to count it");
    client.fd.reset();
    EXPECT_TRUE(eventually([&] {
      loop.step();
      return caller.statistics().live == 0;
    }));
    EXPECT_EQ(caller.statistics().sources, 0u);
  }
  EXPECT_GT(which, 1u) << "no allocation was reached";
  EXPECT_EQ(uncounted, 1u) << "that of the table was among them";
}

TEST_P(BadPeers, WithoutEntropyAServerThatNeedsASecretDoesNotStart) {
  for (const TcpServerOptions& options : {TcpServerOptions{.connections_per_source_max = 1},
                                          TcpServerOptions{.balance = Balance::peer_hash}}) {
    const auto rule = world.kernel.inject({.call = Call::entropy, .error = ENOSYS});
    TcpServer caller(world.loop,
                     {.balance = options.balance,
                      .connections_per_source_max = options.connections_per_source_max});
    EXPECT_EQ(error_of(caller.start()), std::error_code(ENOSYS, std::system_category()));
    EXPECT_EQ(world.kernel.fired(rule), 1u);
    EXPECT_TRUE(caller.start().has_value()) << "there is some again";
  }
  const std::uint64_t before = world.kernel.calls(Call::entropy);
  TcpServer caller(world.loop);
  EXPECT_TRUE(caller.start().has_value());
  EXPECT_EQ(world.kernel.calls(Call::entropy), before) << "no other server asks for any";
}

// S10. A Unix socket: there are not so many ports. The addresses follow each other, as those of one
// who owns a network would.
TEST_P(BadPeers, HoweverManySourcesComeAndGoOnlyThoseThatAreThereAreKept) {
  constexpr std::size_t kSources = 3'000;
  constexpr std::size_t kAtATime = 20;
  peers.who = tenth_address;
  start({.listen = "unix:" + unused_abstract_name(), .connections_per_source_max = 1});
  std::deque<UniqueFd> clients;
  for (std::size_t i = 0; i < kSources; ++i) {
    clients.push_back(connect_to(server().address()));
    if (clients.size() > kAtATime) clients.pop_front();
    ASSERT_TRUE(world.run_until([&] {
      const ServerStatistics now = statistics();
      EXPECT_EQ(now.sources, now.live);
      return now.accepted == i + 1 && now.live <= kAtATime;
    }));
  }
  EXPECT_EQ(peers.named(), kSources);
  EXPECT_EQ(statistics().refused_for_source, 0u);
  clients.clear();
  EXPECT_TRUE(none_is_left());
  EXPECT_EQ(statistics().sources, 0u);
}

// S5
TEST_P(BadPeers, AStormOfConnectionsThatResetAtOnceLeavesNothingBehind) {
  constexpr std::size_t kConnections = 1'500;
  constexpr std::size_t kAtATime = 50;
  const CapturedLog log;
  stand_still();
  // Half of them from one source, which is over its limit most of the time.
  peers.who = [](std::size_t number) { return tenth_address(number % 2 == 0 ? 0 : number); };
  start({.connections_per_source_max = 2});
  world.settle();
  const std::size_t timers = world.loop.timers().size();
  const std::size_t descriptors = World::open_descriptors();
  for (std::size_t begun = 0; begun < kConnections; begun += kAtATime) {
    std::vector<RawClient> storm = connect_many(server().address(), kAtATime);
    for (RawClient& client : storm)
      reset_on_close(linux_kernel(), client.fd.get());
    storm.clear();
    world.turn();
  }
  ASSERT_TRUE(world.run_until([&] { return statistics().accepted == kConnections; }));
  ASSERT_TRUE(none_is_left());
  world.settle();
  EXPECT_EQ(statistics().sources, 0u);
  EXPECT_EQ(ledger.closes, ledger.connects);
  EXPECT_EQ(ledger.connects + statistics().refused_for_source, kConnections);
  EXPECT_EQ(world.loop.timers().size(), timers);
  EXPECT_EQ(World::open_descriptors(), descriptors);
  EXPECT_EQ(world.loop.memory().used(), 0u);
  EXPECT_LE(log.lines().size(), 10u);
  expect_idle();
  const RawClient good = come_from("10.9.9.9:1");
  EXPECT_EQ(statistics().live, 1u);
}

// -- Silence --------------------------------------------------------------------------------------

// S3
TEST_P(BadPeers, SilentClientsThatFillTheServerMakeRoomForOthersInBoundedTime) {
  constexpr std::size_t kPlaces = 5;
  start({.max_connections = kPlaces, .limits = {.first_message_timeout = seconds(10)}});
  std::vector<RawClient> silent = connect_many(server().address(), kPlaces);
  ASSERT_TRUE(world.run_until([&] { return ledger.connects == kPlaces; }));
  const RawClient good(connect_to(server().address()));
  send_text(linux_kernel(), good.fd.get(), "hello");
  world.settle();
  EXPECT_EQ(ledger.connects, kPlaces);
  world.kernel.advance(seconds(10));
  ASSERT_TRUE(world.run_until([&] { return ledger.received == "hello"; }));
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == kPlaces; }));
  EXPECT_EQ(ledger.count(CloseReason::timeout), kPlaces);
  for (const CloseReport& report : ledger.reports)
    EXPECT_EQ(to_string(report.timeout), to_string(TimeoutKind::first_message));
  EXPECT_EQ(statistics().live, 1u);
}

// -- The log (S11) --------------------------------------------------------------------------------

TEST_P(BadPeers, RefusalsAreLoggedTenTimesASecondWithTheNumberOfTheOthers) {
  constexpr std::size_t kRefusals = 60;
  const CapturedLog log;
  stand_still();
  start({.connections_per_source_max = 1});
  const RawClient settled = come_from("10.0.0.1:1");
  const auto refuse_many = [&] {
    const std::uint64_t before = statistics().refused_for_source;
    std::vector<RawClient> clients = connect_many(server().address(), kRefusals);
    EXPECT_TRUE(
        world.run_until([&] { return statistics().refused_for_source == before + kRefusals; }));
  };
  refuse_many();
  EXPECT_EQ(log.count("10.0.0.1 has 1 already"), 10u);
  EXPECT_EQ(log.count("more like it"), 0u);
  world.kernel.advance(milliseconds(999));
  world.turn();
  refuse_many();
  EXPECT_EQ(log.count("10.0.0.1 has 1 already"), 10u);
  world.kernel.advance(milliseconds(1));
  world.turn();
  refuse_many();
  EXPECT_EQ(log.count("10.0.0.1 has 1 already"), 20u);
  EXPECT_EQ(log.count("(110 more like it were not logged)"), 1u);
  EXPECT_EQ(log.lines().size(), 20u);
}

TEST_P(BadPeers, ConnectionsThatCannotBeServedAreLoggedTenTimesASecond) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "poll registers nothing that could fail");
  constexpr std::size_t kRefusals = 40;
  const CapturedLog log;
  stand_still();
  start({});
  world.kernel.inject(
      {.call = Call::epoll_ctl, .operation = EPOLL_CTL_ADD, .every = 1, .error = ENOSPC});
  std::vector<RawClient> clients = connect_many(server().address(), kRefusals);
  EXPECT_TRUE(world.run_until([&] { return statistics().refused_at_start == kRefusals; }));
  EXPECT_EQ(log.count("a connection was closed at once"), 10u);
}

TEST_P(BadPeers, WhatATaskThrowsIsEscapedAndLoggedTenTimesASecond) {
  constexpr int kErrors = 200;
  const CapturedLog log;
  stand_still();
  const auto throw_many = [&] {
    for (int i = 0; i < kErrors; ++i) {
      world.loop.queue_in_loop([] { throw std::runtime_error("bad \x1b[2J\nname \x7f\xc2\x9b"); });
    }
    world.turn();
  };
  throw_many();
  EXPECT_EQ(log.lines().size(), 10u);
  world.kernel.advance(seconds(1));
  world.turn();
  throw_many();
  ASSERT_EQ(log.lines().size(), 20u);
  EXPECT_EQ(log.count(R"(a task threw: bad \x1b[2J\x0aname \x7f\xc2\x9b)"), 20u);
  EXPECT_EQ(log.count("(190 more like it were not logged)"), 1u);
  EXPECT_EQ(world.loop.statistics().exceptions, std::uint64_t{2 * kErrors});
}

// -- The rate of accepting ------------------------------------------------------------------------

TEST_P(BadPeers, ExactlyTheRateIsAcceptedAndTheOthersWaitWithoutAWakeUp) {
  stand_still();
  start({.accepts_per_second_max = 5});
  const std::vector<RawClient> clients = connect_many(server().address(), 14);
  world.settle();
  EXPECT_EQ(ledger.connects, 5u) << "after quiet, a second's worth";
  EXPECT_EQ(statistics().accept_rate_pauses, 1u);
  expect_idle();
  pass(milliseconds(199));
  EXPECT_EQ(ledger.connects, 5u);
  expect_idle();
  pass(milliseconds(1));
  EXPECT_EQ(ledger.connects, 6u);
  EXPECT_EQ(statistics().accept_rate_pauses, 2u);
  expect_idle();
  for (std::size_t i = 7; i <= 9; ++i) {
    pass(milliseconds(200));
    EXPECT_EQ(ledger.connects, i);
  }
  // A timer that fires late does not lose what was due meanwhile.
  pass(milliseconds(600));
  EXPECT_EQ(ledger.connects, 12u);
  expect_idle();
  pass(seconds(10));
  EXPECT_EQ(ledger.connects, 14u);
  // Quiet for long: no more at once than after a quiet second.
  pass(seconds(1000));
  const std::vector<RawClient> later = connect_many(server().address(), 8);
  world.settle();
  EXPECT_EQ(ledger.connects, 19u);
}

TEST_P(BadPeers, ClientsThatComeSlowerThanTheRateNeverWait) {
  stand_still();
  start({.accepts_per_second_max = 10});
  std::vector<RawClient> clients;
  for (std::size_t i = 1; i <= 30; ++i) {
    clients.emplace_back(connect_to(server().address()));
    world.settle();
    EXPECT_EQ(ledger.connects, i);
    pass(milliseconds(100));
  }
  EXPECT_EQ(statistics().accept_rate_pauses, 0u);
}

TEST_P(BadPeers, WhoIsRefusedForItsSourceUsesUpTheRateToo) {
  stand_still();
  peers.who = [](std::size_t) { return tenth_address(1); };
  start({.connections_per_source_max = 1, .accepts_per_second_max = 2});
  const std::vector<RawClient> clients = connect_many(server().address(), 4);
  world.settle();
  EXPECT_EQ(statistics().accepted, 2u);
  EXPECT_EQ(statistics().refused_for_source, 1u);
  expect_idle();
}

TEST_P(BadPeers, AFullServerAndAUsedUpRateEachHoldUpAcceptingUntilBothAreOver) {
  stand_still();
  start({.max_connections = 3, .accepts_per_second_max = 2});
  std::vector<RawClient> clients = connect_many(server().address(), 8);
  world.settle();
  EXPECT_EQ(ledger.connects, 2u) << "the rate";
  pass(seconds(1));
  EXPECT_EQ(ledger.connects, 3u) << "the server is full";
  expect_idle();
  pass(milliseconds(500));
  EXPECT_EQ(ledger.connects, 3u) << "due, and still full";
  expect_idle();
  const auto let_one_go = [&] {
    (*ledger.live.begin())->abort();
    const std::size_t closes = ledger.closes;
    EXPECT_TRUE(world.run_until([&] { return ledger.closes == closes + 1; }));
    world.settle();
  };
  let_one_go();
  EXPECT_EQ(ledger.connects, 4u) << "room, and one was due";
  let_one_go();
  EXPECT_EQ(ledger.connects, 5u) << "and another";
  let_one_go();
  EXPECT_EQ(ledger.connects, 5u) << "room, but the rate is used up";
  expect_idle();
  pass(milliseconds(500));
  EXPECT_EQ(ledger.connects, 6u);
}

TEST_P(BadPeers, AShortageAndAUsedUpRateEachHoldUpAcceptingUntilBothAreOver) {
  stand_still();
  start({.accepts_per_second_max = 1});
  std::vector<RawClient> clients = connect_many(server().address(), 4);
  world.settle();
  EXPECT_EQ(ledger.connects, 1u);
  const auto shortage =
      world.kernel.inject({.call = Call::accept4, .every = 1, .times = 2, .error = ENOMEM});
  expect_idle();
  EXPECT_EQ(world.kernel.fired(shortage), 0u) << "the rate comes first";
  pass(seconds(1));
  EXPECT_EQ(world.kernel.fired(shortage), 1u);
  expect_idle();
  pass(milliseconds(10));
  EXPECT_EQ(world.kernel.fired(shortage), 2u);
  expect_idle();
  pass(milliseconds(20));
  EXPECT_EQ(ledger.connects, 2u) << "a call that failed has used nothing up";
  // The end of one of ours ends a shortage, and not the pause of the rate.
  (*ledger.live.begin())->abort();
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == 1; }));
  world.settle();
  EXPECT_EQ(ledger.connects, 2u);
  expect_idle();
  pass(seconds(1));
  EXPECT_EQ(ledger.connects, 3u);
}

TEST_P(BadPeers, AStopWhileTheRateIsUsedUpLeavesNoTimerAndResetsWhoWaits) {
  stand_still();
  start({.accepts_per_second_max = 1});
  std::vector<RawClient> clients = connect_many(server().address(), 3);
  world.settle();
  EXPECT_EQ(ledger.connects, 1u);
  server().stop(Duration::zero());
  ASSERT_TRUE(none_is_left());
  for (RawClient& client : clients)
    expect_reset(client);
  EXPECT_EQ(world.loop.timers().size(), 0u);
  pass(seconds(5));
  EXPECT_EQ(ledger.connects, 1u);
  destroy_server();
  EXPECT_EQ(world.loop.timers().size(), 0u);
}

TEST_P(BadPeers, AServerDestroyedWhileTheRateIsUsedUpLeavesNoTimer) {
  stand_still();
  start({.accepts_per_second_max = 1});
  const RawClient client(connect_to(server().address()));
  world.settle();
  EXPECT_EQ(ledger.connects, 1u);
  destroy_server();
  EXPECT_EQ(world.loop.timers().size(), 0u);
}

// -- For real -------------------------------------------------------------------------------------

/// Gives an interface of this thread's network an address and brings it up.
bool set_address(const std::string& interface, const std::string& address) {
  const UniqueFd fd(linux_kernel(), ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  interface.copy(request.ifr_name, sizeof request.ifr_name - 1);
  sockaddr_in wanted{};
  wanted.sin_family = AF_INET;
  if (::inet_pton(AF_INET, address.c_str(), &wanted.sin_addr) != 1) return false;
  std::memcpy(&request.ifr_addr, &wanted, sizeof wanted);
  if (::ioctl(fd.get(), SIOCSIFADDR, &request) != 0) return false;
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  return ::ioctl(fd.get(), SIOCSIFFLAGS, &request) == 0;
}

/// A network of this thread's own, in which two hosts other than the loopback live.
bool enter_network_of_hosts() {
  return ::unshare(CLONE_NEWNET) == 0 && set_address("lo", "127.0.0.1") &&
         set_address("lo:1", "10.1.0.1") && set_address("lo:2", "10.1.0.2");
}

UniqueFd connect_from(const std::string& host, const SocketAddress& server) {
  UniqueFd fd = tcp_socket(linux_kernel());
  const SocketAddress from = address_of(host + ":0");
  EXPECT_EQ(linux_kernel().bind(fd.get(), from.data(), from.size()), 0);
  EXPECT_EQ(linux_kernel().connect(fd.get(), server.data(), server.size()), -EINPROGRESS);
  EXPECT_NE(wait_for(linux_kernel(), fd.get(), POLLOUT) & POLLOUT, 0);
  return fd;
}

// Nothing pretended: the addresses are the kernel's.
TEST_P(BadPeers, InANetworkOfSeveralHostsEachIsCountedByItsAddress) {
  bool entered = false;
  // A thread may have a network of its own: the rest of the process stays where it is.
  std::thread([&] {
    entered = enter_network_of_hosts();
    if (!entered) return;
    for (const char* listen : {"10.1.0.1:0", "[::]:0"}) {
      World there(GetParam());
      TcpServer counting(there.loop, {.listen = listen, .connections_per_source_max = 2});
      Ledger book;
      book.keep(counting);
      ASSERT_TRUE(counting.start().has_value());
      const SocketAddress address =
          address_of("10.1.0.1:" + std::to_string(counting.address().port()));
      std::vector<RawClient> clients;
      for (const char* host :
           {"10.1.0.2", "10.1.0.2", "10.1.0.2", "10.1.0.1", "10.1.0.1", "10.1.0.2"}) {
        clients.emplace_back(connect_from(host, address));
      }
      EXPECT_TRUE(there.run_until([&] { return counting.statistics().accepted == 6; }));
      EXPECT_EQ(counting.statistics().refused_for_source, 2u);
      EXPECT_EQ(counting.statistics().sources, 2u);
      EXPECT_EQ(book.connects, 4u);
      for (std::size_t i = 0; i < clients.size(); ++i) {
        clients[i].read_some();
        EXPECT_EQ(clients[i].was_reset(), i == 2 || i == 5) << i;
      }
      clients.clear();
      EXPECT_TRUE(there.run_until([&] { return counting.statistics().live == 0; }));
      EXPECT_EQ(counting.statistics().sources, 0u);
    }
  }).join();
  PENSTOCK_ONLY_IF(entered, "no network namespace, or no addresses in it, may be made here");
}

}  // namespace
}  // namespace penstock::test

// Accepting, and running out of what it needs (scenarios ACC1 to ACC14), on every back-end.

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <new>
#include <semaphore>

#include "bytes/failing_allocation.h"
#include "support/captured_log.h"
#include "support/serving.h"
#include "support/still_clock.h"
#include "support/world.h"

namespace penstock::test {
namespace {

class Accepting : public ConformanceTest {
 protected:
  /// A server on the world's loop whose callbacks keep the ledger.
  TcpServer& start(TcpServerOptions options = {}) {
    server_ = std::make_unique<TcpServer>(world.loop, std::move(options));
    ledger.keep(*server_);
    EXPECT_TRUE(server_->start().has_value());
    return *server_;
  }
  TcpServer& server() { return *server_; }
  void destroy_server() { server_.reset(); }
  /// One that answers with what it is sent.
  void start_echo() {
    server_ = std::make_unique<TcpServer>(world.loop);
    ledger.keep(*server_);
    server_->on_message([this](TcpConnection& peer, InputBuffer& in) {
      ledger.seen(peer);
      peer.send(in.take_string());
    });
    EXPECT_TRUE(server_->start().has_value());
  }

  FaultyKernel::Rule fail_every_accept(int error) {
    return world.kernel.inject({.call = Call::accept4, .every = 1, .error = error});
  }

  /// Turns for a while (real time passes) and shows that the shortage costs nothing but the retries
  /// of its back-off, of at least 10 ms each: an accept and one with the reserve; and a wake-up.
  void expect_no_spin() {
    constexpr int kTurns = 100;
    const std::uint64_t accepts = world.kernel.calls(Call::accept4);
    const std::uint64_t events = world.kernel.events();
    const TimePoint begin = world.kernel.now();
    for (int i = 0; i < kTurns; ++i)
      world.loop.step(std::chrono::milliseconds(1));
    const auto retries_max =
        static_cast<std::uint64_t>((world.kernel.now() - begin) / std::chrono::milliseconds(10)) +
        2;
    EXPECT_LE(world.kernel.calls(Call::accept4) - accepts, 2 * retries_max);
    EXPECT_LE(world.kernel.events() - events, retries_max);
  }

  Ledger ledger;

 private:
  std::unique_ptr<TcpServer> server_;
};

// ACC1, ACC2: LT would repeat the event for ever (K8), ET would strand the clients (K9).
TEST_P(Accepting, RunningOutOfDescriptorsNeitherSpinsNorStrandsAnyone) {
  start();
  const auto shortage = fail_every_accept(EMFILE);
  std::vector<RawClient> clients = connect_many(server().address(), 3);
  ASSERT_TRUE(world.run_until([&] { return world.kernel.fired(shortage) > 0; }));
  expect_no_spin();
  EXPECT_EQ(ledger.connects, 0u);
  EXPECT_GE(server().statistics().accept_errors, 1u);
  world.kernel.heal();
  EXPECT_TRUE(world.run_until([&] { return ledger.connects == 3; }));
  EXPECT_EQ(server().statistics().refused_for_descriptors, 0u);
}

// ACC1, ACC2: with the reserve descriptor, who waits is told so.
TEST_P(Accepting, ClientsThatFindNoDescriptorAreRefusedWithTheReserve) {
  start();
  const std::size_t descriptors = World::open_descriptors();
  {
    std::vector<RawClient> clients = connect_many(server().address(), 3);
    const auto shortage = world.kernel.inject({.call = Call::accept4, .error = EMFILE});
    ASSERT_TRUE(world.run_until([&] { return world.kernel.fired(shortage) == 1; }));
    ASSERT_TRUE(world.run_until([&] {
      for (RawClient& client : clients)
        client.read_some();
      const auto refused = static_cast<std::size_t>(
          std::ranges::count_if(clients, [](const RawClient& each) { return each.ended; }));
      return refused + ledger.connects == 3;
    }));
    EXPECT_GE(server().statistics().refused_for_descriptors, 1u);
    EXPECT_EQ(server().statistics().refused_for_descriptors + ledger.connects, 3u);
    // The listener has survived, and so has its reserve.
    RawClient next(connect_to(server().address()));
    const std::size_t before = ledger.connects;
    EXPECT_TRUE(world.run_until([&] { return ledger.connects == before + 1; }));
  }
  EXPECT_TRUE(world.run_until([&] { return ledger.closes == ledger.connects; }));
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// ACC3: another thread was faster and took the reserve.
TEST_P(Accepting, WithoutItsReserveItFallsBackToTimedRetries) {
  start();
  const auto shortage = fail_every_accept(EMFILE);
  const auto stolen = world.kernel.inject({.call = Call::open, .every = 1, .error = EMFILE});
  std::vector<RawClient> clients = connect_many(server().address(), 2);
  ASSERT_TRUE(world.run_until([&] { return world.kernel.fired(shortage) > 2; }));
  EXPECT_GE(world.kernel.fired(stolen), 1u);
  expect_no_spin();
  EXPECT_EQ(ledger.connects, 0u);
  world.kernel.heal();
  EXPECT_TRUE(world.run_until([&] { return ledger.connects == 2; }));
}

// ACC3: the reserve served once, and somebody took its descriptor.
TEST_P(Accepting, LosingTheReserveWhileRefusingLeavesTheOthersWaitingForARetry) {
  start();
  std::vector<RawClient> clients = connect_many(server().address(), 3);
  const auto shortage = world.kernel.inject({.call = Call::accept4, .error = EMFILE});
  const auto stolen = world.kernel.inject({.call = Call::open, .times = 2, .error = EMFILE});
  const auto settled = [&] {
    for (RawClient& client : clients)
      client.read_some();
    return ledger.connects + server().statistics().refused_for_descriptors == 3;
  };
  ASSERT_TRUE(world.run_until([&] { return world.kernel.fired(stolen) >= 1 && settled(); }));
  EXPECT_EQ(world.kernel.fired(shortage), 1u);
  world.kernel.heal();
  // The next shortage is survived, with a reserve or without.
  const auto again = world.kernel.inject({.call = Call::accept4, .error = EMFILE});
  RawClient late(connect_to(server().address()));
  const std::size_t connects = ledger.connects;
  EXPECT_TRUE(world.run_until([&] {
    late.read_some();
    return late.ended || ledger.connects > connects;
  }));
  EXPECT_EQ(world.kernel.fired(again), 1u);
}

// Part 4: any close of ours resumes accepting at once.
TEST_P(Accepting, ADescriptorOfOursThatComesFreeEndsTheShortageAtOnce) {
  start();
  std::vector<RawClient> clients = connect_many(server().address(), 1);
  ASSERT_TRUE(world.run_until([&] { return ledger.connects == 1; }));
  const auto shortage = fail_every_accept(EMFILE);
  clients.emplace_back(connect_to(server().address()));
  ASSERT_TRUE(world.run_until([&] { return world.kernel.fired(shortage) >= 8; }));  // 50 ms by now
  world.kernel.heal();
  (*ledger.live.begin())->abort();
  world.turn(3);
  EXPECT_EQ(ledger.closes, 1u);
  EXPECT_EQ(ledger.connects, 2u);
}

// ACC4
TEST_P(Accepting, EveryErrorOfAcceptLeavesTheListenerAlive) {
  start();
  std::vector<RawClient> clients;
  for (const int error :
       {ENFILE, EMFILE, ENOMEM, ENOBUFS, EPERM, EPROTO, ECONNABORTED, ENETDOWN, EHOSTUNREACH}) {
    const auto rule = world.kernel.inject({.call = Call::accept4, .error = error});
    const std::size_t before = ledger.connects;
    clients.emplace_back(connect_to(server().address()));
    RawClient& hit = clients.back();
    EXPECT_TRUE(world.run_until([&] {
      hit.read_some();
      return hit.ended || ledger.connects == before + 1;
    })) << error;
    EXPECT_EQ(world.kernel.fired(rule), 1u) << error;
    // Only a shortage of descriptors may cost that client its connection.
    if (error != EMFILE && error != ENFILE) {
      EXPECT_EQ(ledger.connects, before + 1) << error;
    }
    const std::size_t then = ledger.connects;
    clients.emplace_back(connect_to(server().address()));
    EXPECT_TRUE(world.run_until([&] { return ledger.connects == then + 1; })) << error;
  }
}

// ACC4
TEST_P(Accepting, AShortageThatLastsIsRetriedInTimeNotInALoop) {
  for (const int error : {ENFILE, ENOMEM, ENOBUFS}) {
    start();
    const std::size_t connects = ledger.connects;
    const auto rule = fail_every_accept(error);
    RawClient client(connect_to(server().address()));
    ASSERT_TRUE(world.run_until([&] { return world.kernel.fired(rule) > 0; })) << error;
    expect_no_spin();
    world.kernel.heal();
    EXPECT_TRUE(world.run_until([&] { return ledger.connects == connects + 1; })) << error;
    destroy_server();
  }
}

/// A server whose every accept fails for want of descriptors while the clock goes only as the test
/// says; `lines` counts what is logged of it.
class ShortageLog {
 public:
  explicit ShortageLog(Backend backend) : loop_({.backend = backend, .kernel = &kernel}) {
    EXPECT_TRUE(server_.start().has_value());
  }

  std::size_t lines() const { return log_.count("accepting on"); }
  std::uint64_t failures() const { return server_.statistics().accept_errors; }
  void turn() {
    for (int i = 0; i < 5; ++i)
      loop_.step();
  }
  /// Lets time pass until accepting has failed once more.
  void fail_again() {
    const std::uint64_t before = failures();
    kernel.advance(kBackOffMax);
    turn();
    ASSERT_EQ(failures(), before + 1);
  }
  /// A client comes, finds no descriptor, and is accepted in the end.
  void shortage_that_passes() {
    const std::uint64_t accepted = server_.statistics().accepted;
    const auto rule =
        kernel.inject({.call = Call::accept4, .first = 1, .times = 2, .error = EMFILE});
    clients_.emplace_back(connect_to(server_.address()));
    turn();
    EXPECT_EQ(kernel.fired(rule), 2u) << "one accept, and one with the reserve";
    kernel.heal();
    kernel.advance(kBackOffMax);
    turn();
    EXPECT_EQ(server_.statistics().accepted, accepted + 1);
  }
  void shortage_that_lasts() {
    kernel.inject({.call = Call::accept4, .every = 1, .error = EMFILE});
    clients_.emplace_back(connect_to(server_.address()));
    turn();
    ASSERT_EQ(failures(), 1u);
  }

  static constexpr Duration kBackOffMax = std::chrono::milliseconds(50);  // the listener's
  static constexpr Duration kInterval = std::chrono::seconds(1);          // of its log

 private:
 public:
  FaultyKernel kernel{StillClock::shared()};

 private:
  CapturedLog log_;
  EventLoop loop_;
  TcpServer server_{loop_};
  std::vector<RawClient> clients_;
};

// ACC1: whoever looks at the log sees that it lasts, and the log is not flooded.
TEST_P(Accepting, AShortageThatLastsIsLoggedOnceASecond) {
  ShortageLog shortage(GetParam());
  shortage.shortage_that_lasts();
  EXPECT_EQ(shortage.lines(), 1u);
  constexpr std::size_t kSeconds = 5;
  for (std::size_t second = 1; second <= kSeconds; ++second) {
    for (Duration passed = ShortageLog::kBackOffMax; passed < ShortageLog::kInterval;
         passed += ShortageLog::kBackOffMax) {
      shortage.fail_again();
      EXPECT_EQ(shortage.lines(), second);
    }
    shortage.fail_again();
    EXPECT_EQ(shortage.lines(), second + 1);
  }
  EXPECT_EQ(shortage.failures(), 1 + kSeconds * 20);
}

// ACC1: each accept that succeeds between them begins a new shortage, and none a new line.
TEST_P(Accepting, ShortagesThatComeAndGoWithinASecondAreLoggedOnce) {
  ShortageLog shortage(GetParam());
  constexpr int kShortages = 15;  // with a back-off each: less than a second
  for (int i = 0; i < kShortages; ++i)
    shortage.shortage_that_passes();
  EXPECT_EQ(shortage.failures(), std::uint64_t{kShortages});
  EXPECT_EQ(shortage.lines(), 1u);
  shortage.kernel.advance(ShortageLog::kInterval);
  shortage.turn();
  shortage.shortage_that_passes();
  EXPECT_EQ(shortage.lines(), 2u);
}

// ACC4: an error of one connection is skipped, within the budget of a turn, and others are served
// meanwhile.
TEST_P(Accepting, ErrorsOfSingleConnectionsStayWithinTheBudgetOfATurn) {
  start();
  RawClient settled(connect_to(server().address()));
  ASSERT_TRUE(world.run_until([&] { return ledger.connects == 1; }));
  const auto rule = fail_every_accept(ECONNABORTED);
  RawClient client(connect_to(server().address()));
  ASSERT_TRUE(world.run_until([&] { return world.kernel.fired(rule) > 0; }));
  for (int turn = 0; turn < 20; ++turn) {
    const std::uint64_t accepts = world.kernel.calls(Call::accept4);
    world.loop.step();
    EXPECT_LE(world.kernel.calls(Call::accept4) - accepts, 16u);
  }
  send_text(linux_kernel(), settled.fd.get(), "x");
  ASSERT_TRUE(world.run_until([&] { return ledger.received == "x"; }));
  world.kernel.heal();
  EXPECT_TRUE(world.run_until([&] { return ledger.connects == 2; }));
}

// ACC5: accept4 of a connection that was reset in the backlog succeeds (K10).
TEST_P(Accepting, AClientThatResetsBeforeItIsAcceptedIsReportedAsReset) {
  start();
  const std::size_t descriptors = World::open_descriptors();
  for (int i = 0; i < 5; ++i) {
    UniqueFd fd = connect_to(server().address());
    reset_on_close(linux_kernel(), fd.get());
  }
  {
    RawClient good(connect_to(server().address()));
    ASSERT_TRUE(world.run_until([&] { return server().statistics().accepted == 6; }));
    ASSERT_TRUE(world.run_until([&] { return ledger.closes == ledger.connects - 1; }));
    EXPECT_EQ(ledger.count(CloseReason::reset), ledger.closes);
    send_text(linux_kernel(), good.fd.get(), "alive");
    EXPECT_TRUE(world.run_until([&] { return ledger.received == "alive"; }));
  }
  EXPECT_TRUE(world.run_until([&] { return server().statistics().live == 0; }));
  EXPECT_EQ(server().statistics().ended, 6u);
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// ACC7
TEST_P(Accepting, AFullServerLeavesClientsInTheBacklogUntilOneOfItsOwnGoes) {
  start({.max_connections = 2});
  EXPECT_EQ(server().max_connections(), 2u);
  std::vector<RawClient> clients = connect_many(server().address(), 5);
  ASSERT_TRUE(world.run_until([&] { return ledger.connects == 2; }));
  world.settle();
  const std::uint64_t accepts = world.kernel.calls(Call::accept4);
  const std::uint64_t events = world.kernel.events();
  world.turn(100);
  EXPECT_EQ(world.kernel.calls(Call::accept4), accepts);
  EXPECT_EQ(world.kernel.events(), events);
  for (std::size_t served = 3; served <= 5; ++served) {
    (*ledger.live.begin())->abort();
    world.turn(2);
    EXPECT_EQ(ledger.connects, served) << "resumes as soon as one has closed";
    EXPECT_EQ(ledger.live.size(), 2u);
    EXPECT_EQ(server().statistics().live, 2u);
  }
}

// ACC7: closes of the peer count as well, and the limit is never passed on the way.
TEST_P(Accepting, TheLimitHoldsWhileClientsComeAndGo) {
  start({.max_connections = 3});
  std::vector<RawClient> clients = connect_many(server().address(), 12);
  std::size_t most = 0;
  for (RawClient& client : clients) {
    const std::size_t ended = ledger.closes;
    ASSERT_TRUE(world.run_until([&] { return ledger.connects > ended; }));
    most = std::max(most, ledger.live.size());
    client.fd.reset();
    ASSERT_TRUE(world.run_until([&] {
      most = std::max(most, ledger.live.size());
      return ledger.closes > ended;
    }));
  }
  EXPECT_EQ(ledger.connects, 12u);
  EXPECT_LE(most, 3u);
  EXPECT_EQ(server().statistics().live, 0u);
}

// ACC7: a connection that never came to be makes room, too.
TEST_P(Accepting, ARegistrationThatFailsDoesNotEatAwayTheLimit) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "poll registers nothing that could fail");
  start({.max_connections = 1});
  for (int i = 0; i < 3; ++i) {
    const auto rule =
        world.kernel.inject({.call = Call::epoll_ctl, .operation = EPOLL_CTL_ADD, .error = ENOMEM});
    RawClient client(connect_to(server().address()));
    ASSERT_TRUE(world.run_until([&] {
      client.read_some();
      return client.ended;
    }));
    EXPECT_EQ(world.kernel.fired(rule), 1u);
  }
  EXPECT_EQ(ledger.connects, 0u);
  EXPECT_EQ(server().statistics().live, 0u);
  RawClient client(connect_to(server().address()));
  EXPECT_TRUE(world.run_until([&] { return ledger.connects == 1; }));
}

// ACC8
TEST_P(Accepting, APortRefusesWithinOneTurnOfTheStop) {
  start();
  RawClient client(connect_to(server().address()));
  ASSERT_TRUE(world.run_until([&] { return ledger.connects == 1; }));
  RawClient pending(connect_to(server().address()));
  server().stop();
  world.turn();
  EXPECT_EQ(connect_outcome(server().address()), ECONNREFUSED);
  // Who waited in the backlog learns it.
  EXPECT_TRUE(world.run_until([&] {
    pending.read_some();
    return pending.ended;
  }));
}

// ACC8
TEST_P(Accepting, APortRefusesOnceItsServerIsDestroyed) {
  start();
  const SocketAddress address = server().address();
  EXPECT_EQ(connect_outcome(address), 0);
  destroy_server();
  EXPECT_EQ(connect_outcome(address), ECONNREFUSED);
  // The address is free for the next one (K19).
  start({.listen = address.to_string()});
  EXPECT_EQ(connect_outcome(address), 0);
}

// ACC11: a burst costs those who are there at most the budget of a turn.
TEST_P(Accepting, ABurstOfClientsHoldsUpTheOthersByTheBudgetOfATurnOnly) {
  constexpr std::size_t kBurst = 100;
  start();
  RawClient settled(connect_to(server().address()));
  ASSERT_TRUE(world.run_until([&] { return ledger.connects == 1; }));
  std::vector<RawClient> burst = connect_many(server().address(), kBurst);
  std::string expected;
  while (ledger.connects < 1 + kBurst) {
    send_text(linux_kernel(), settled.fd.get(), "x");
    expected += 'x';
    ASSERT_NE(wait_for(linux_kernel(), settled.fd.get(), POLLOUT), 0);
    const std::uint64_t accepts = world.kernel.calls(Call::accept4);
    const std::size_t connects = ledger.connects;
    world.loop.step();
    EXPECT_LE(world.kernel.calls(Call::accept4) - accepts, 16u);
    EXPECT_LE(ledger.connects - connects, 16u);
    ASSERT_TRUE(world.run_until([&] { return ledger.received == expected; }));
    // A completion back-end delivers the byte one turn later.
    EXPECT_LE(world.kernel.calls(Call::accept4) - accepts, acts_at_once(GetParam()) ? 32u : 48u)
        << "accepted before the waiting byte was served";
    ASSERT_LT(expected.size(), 2 * kBurst) << "the burst is never accepted";
  }
}

// ACC11: the backlog beyond one turn's budget is served without a further connection to announce
// it.
TEST_P(Accepting, TheRestOfABurstNeedsNoFurtherEvent) {
  start();
  std::vector<RawClient> burst = connect_many(server().address(), 50);
  world.loop.step();
  EXPECT_LE(ledger.connects, 16u);
  EXPECT_TRUE(world.run_until([&] { return ledger.connects == 50; }));
}

// ACC12: every call that is made for a new connection, failing one after the other, all k.
TEST_P(Accepting, WhicheverCallFailsAfterAcceptNoDescriptorIsLost) {
  // What one connection does: it comes, sends, is answered, and goes.
  const auto script = [&](RawClient& client) {
    const std::size_t accepted = server().statistics().accepted;
    client.fd = connect_to(server().address());
    send_text(linux_kernel(), client.fd.get(), "hello");
    EXPECT_TRUE(world.run_until([&] { return server().statistics().accepted > accepted; }));
    EXPECT_TRUE(world.run_until([&] {
      client.read_some();
      return client.ended || client.bytes == 5;
    }));
    client.fd.reset();
    EXPECT_TRUE(world.run_until([&] { return server().statistics().live == 0; }));
    world.turn(2);
  };
  struct Step {
    Call call;
    int operation;
    std::vector<int> errors;
  };
  const std::vector<Step> steps = {
      {Call::setsockopt, 0, {ENOMEM, EINVAL}},
      {Call::getsockopt, 0, {ENOMEM}},
      {Call::getsockname, 0, {ENOBUFS}},
      {Call::getpeername, 0, {ENOTCONN}},
      {Call::epoll_ctl, EPOLL_CTL_ADD, {ENOMEM, ENOSPC}},
      {Call::recv, 0, {ENOMEM, ECONNRESET}},
      {Call::send, 0, {EAGAIN, ENOBUFS}},
      {Call::sendmsg, 0, {EAGAIN, ENOBUFS}},
      {Call::shutdown, 0, {ENOTCONN}},
      {Call::close, 0, {EINTR, EIO}},
      {Call::accept4, 0, {EINTR}},
  };
  start_echo();
  {
    RawClient warm_up;
    script(warm_up);
  }
  const std::size_t descriptors = World::open_descriptors();
  for (const Step& step : steps) {
    const auto make_fault = [&](std::uint64_t which, int error) {
      return Fault{.call = step.call, .operation = step.operation, .first = which, .error = error};
    };
    // How many there are when nothing fails.
    const auto counting = world.kernel.inject(make_fault(1'000'000, EIO));
    {
      RawClient client;
      script(client);
    }
    const std::uint64_t calls = world.kernel.matched(counting);
    world.kernel.heal();
    for (const int error : step.errors) {
      for (std::uint64_t which = 1; which <= calls; ++which) {
        SCOPED_TRACE(testing::Message() << "call " << static_cast<std::size_t>(step.call) << " #"
                                        << which << " errno " << error);
        const auto rule = world.kernel.inject(make_fault(which, error));
        RawClient client;
        script(client);
        EXPECT_EQ(world.kernel.fired(rule), 1u);
        world.kernel.heal();
        EXPECT_EQ(ledger.closes, ledger.connects);
        EXPECT_TRUE(ledger.live.empty());
        EXPECT_EQ(World::open_descriptors(), descriptors);
      }
    }
  }
}

// ACC12, B9: every allocation that is made for a new connection, failing one after the other.
TEST_P(Accepting, WhicheverAllocationFailsAfterAcceptOnlyThatConnectionEnds) {
  PENSTOCK_ONLY_IF(acts_at_once(GetParam()), "the deferring back-end itself has no answer to that");
  constexpr std::size_t kAllocationsMax = 200;
  bool happened = true;
  std::size_t which = 0;
  for (; happened; ++which) {
    ASSERT_LT(which, kAllocationsMax);
    SCOPED_TRACE(testing::Message() << "allocation " << which);
    // The real kernel: the faulty one allocates for itself. The callbacks do not.
    const std::size_t descriptors = World::open_descriptors();
    {
      std::size_t connects = 0;
      std::size_t closes = 0;
      auto owned_loop = std::make_unique<EventLoop>(EventLoopOptions{.backend = GetParam()});
      auto owned_server = std::make_unique<TcpServer>(*owned_loop);
      EventLoop& loop = *owned_loop;
      TcpServer& server = *owned_server;
      server.on_connect([&](TcpConnection&) { ++connects; });
      server.on_message([&](TcpConnection&, InputBuffer& in) { in.consume(in.size()); });
      server.on_close([&](TcpConnection&, const CloseReport&) { ++closes; });
      ASSERT_TRUE(server.start().has_value());
      loop.step();
      RawClient client(connect_to(server.address()));
      try {
        const FailingAllocation failing(which);
        for (int turn = 0; turn < 3; ++turn)
          loop.step();
        happened = failing.happened();
      } catch (const std::bad_alloc&) {
        // The loop is stuck in the turn that was left: it cannot even be destroyed.
        static_cast<void>(owned_server.release());
        static_cast<void>(owned_loop.release());
        ADD_FAILURE() << "the exception left the loop";
        continue;
      }
      EXPECT_EQ(server.statistics().accepted, 1u);
      RawClient next(connect_to(server.address()));
      for (int turn = 0; turn < 3; ++turn)
        loop.step();
      EXPECT_EQ(server.statistics().accepted, 2u);
      client.fd.reset();
      next.fd.reset();
      EXPECT_TRUE(eventually([&] {
        loop.step();
        return server.statistics().live == 0;
      }));
      EXPECT_EQ(closes, connects);
      EXPECT_EQ(server.statistics().ended, 2u);
    }
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
  EXPECT_GT(which, 1u) << "no allocation was reached";
}

PENSTOCK_ON_EVERY_BACKEND(Accepting);

// -- A server with loops of its own, each in a thread

class AcceptingForLoops : public testing::TestWithParam<Backend> {
 protected:
  /// Turns the server's first loop, which the test's thread drives, until the condition holds.
  static bool run_until(TcpServer& server, const std::function<bool()>& condition) {
    return eventually([&] {
      server.loop().step(std::chrono::milliseconds(1));
      return condition();
    });
  }

  FaultyKernel kernel{linux_kernel()};
};

// ACC10
TEST_P(AcceptingForLoops, LeastConnectionsSpreadsThemEvenly) {
  constexpr std::size_t kLoops = 4;
  std::mutex mutex;
  std::map<EventLoop*, int> live;
  TcpServer server({.loops = kLoops, .backend = GetParam(), .kernel = &kernel});
  server.on_connect([&](TcpConnection& peer) {
    const std::scoped_lock lock(mutex);
    ++live[&peer.loop()];
  });
  server.on_close([&](TcpConnection& peer, const CloseReport&) {
    const std::scoped_lock lock(mutex);
    --live[&peer.loop()];
  });
  ASSERT_TRUE(server.start().has_value());
  const auto adopted = [&] {
    const std::scoped_lock lock(mutex);
    std::size_t sum = 0;
    for (const auto& [loop, count] : live)
      sum += static_cast<std::size_t>(count);
    return sum;
  };
  const auto expect_even = [&] {
    const std::scoped_lock lock(mutex);
    EXPECT_EQ(live.size(), kLoops);
    EXPECT_FALSE(live.contains(&server.loop())) << "the first loop only accepts";
    const auto [least, most] =
        std::ranges::minmax_element(live, {}, [](const auto& entry) { return entry.second; });
    EXPECT_LE(most->second - least->second, 2);
  };
  std::vector<RawClient> clients = connect_many(server.address(), 41);
  ASSERT_TRUE(run_until(server, [&] { return adopted() == 41; }));
  expect_even();
  // All connections of two loops' worth leave; who comes next goes where there is room.
  clients.erase(clients.begin(), clients.begin() + 20);
  ASSERT_TRUE(run_until(server, [&] { return server.statistics().live == 21; }));
  for (RawClient& more : connect_many(server.address(), 30))
    clients.push_back(std::move(more));
  ASSERT_TRUE(run_until(server, [&] { return adopted() == 51; }));
  expect_even();
}

// ACC7, over loops: the count is that of all of them.
TEST_P(AcceptingForLoops, TheLimitCountsTheConnectionsOfAllLoops) {
  std::atomic<int> live = 0;
  std::atomic<int> most = 0;
  std::atomic<int> connects = 0;
  TcpServer server({.loops = 3, .backend = GetParam(), .max_connections = 2, .kernel = &kernel});
  server.on_connect([&](TcpConnection&) {
    const int now = ++live;
    int seen = most.load();
    while (seen < now && !most.compare_exchange_weak(seen, now)) {
    }
    ++connects;
  });
  server.on_close([&](TcpConnection&, const CloseReport&) { --live; });
  ASSERT_TRUE(server.start().has_value());
  std::vector<RawClient> clients = connect_many(server.address(), 10);
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(run_until(server, [&] { return connects.load() > i; })) << i;
    clients[static_cast<std::size_t>(i)].fd.reset();
  }
  EXPECT_TRUE(run_until(server, [&] { return server.statistics().live == 0; }));
  EXPECT_EQ(connects.load(), 10);
  EXPECT_LE(most.load(), 2);
}

// ACC12, over loops
TEST_P(AcceptingForLoops, ARegistrationThatFailsOnAnotherLoopLosesNoDescriptor) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "poll registers nothing that could fail");
  std::atomic<int> connects = 0;
  TcpServer server({.loops = 2, .backend = GetParam(), .kernel = &kernel});
  server.on_connect([&](TcpConnection&) { ++connects; });
  ASSERT_TRUE(server.start().has_value());
  const std::size_t descriptors = World::open_descriptors();
  const auto rule = kernel.inject(
      {.call = Call::epoll_ctl, .operation = EPOLL_CTL_ADD, .times = 4, .error = ENOSPC});
  {
    std::vector<RawClient> clients = connect_many(server.address(), 4);
    ASSERT_TRUE(run_until(server, [&] { return server.statistics().ended == 4; }));
    EXPECT_EQ(kernel.fired(rule), 4u);
    for (RawClient& client : clients) {
      EXPECT_TRUE(eventually([&] {
        client.read_some();
        return client.ended;
      }));
    }
  }
  EXPECT_EQ(connects.load(), 0);
  EXPECT_EQ(World::open_descriptors(), descriptors);
  RawClient next(connect_to(server.address()));
  EXPECT_TRUE(run_until(server, [&] { return connects.load() == 1; }));
}

/// Holds up a loop in another thread until it is let go.
class HeldLoop {
 public:
  void hold(EventLoop& loop) {
    loop.queue_in_loop([this] {
      held_.release();
      free_.acquire();
    });
  }
  void wait_until_held() { held_.acquire(); }
  void let_go() { free_.release(); }

 private:
  std::binary_semaphore held_{0};
  std::binary_semaphore free_{0};
};

// ACC14, XT5
TEST_P(AcceptingForLoops, AConnectionUnderWayToAnotherLoopAtTheStopIsClosedAndNotServed) {
  for (const bool at_once : {false, true}) {
    SCOPED_TRACE(at_once ? "stop(0)" : "stop()");
    const std::size_t descriptors = World::open_descriptors();
    {
      HeldLoop held;
      std::atomic<int> connects = 0;
      std::atomic<int> messages = 0;
      std::atomic<int> closes = 0;
      TcpServer server({.loops = 1,
                        .backend = GetParam(),
                        .kernel = &kernel,
                        .on_thread_start = [&](std::size_t, EventLoop& loop) { held.hold(loop); }});
      server.on_connect([&](TcpConnection&) { ++connects; });
      server.on_message([&](TcpConnection&, InputBuffer& in) {
        ++messages;
        in.consume(in.size());
      });
      server.on_close([&](TcpConnection&, const CloseReport&) { ++closes; });
      ASSERT_TRUE(server.start().has_value());
      held.wait_until_held();
      std::vector<RawClient> clients = connect_many(server.address(), 3);
      for (RawClient& client : clients)
        send_text(linux_kernel(), client.fd.get(), "serve me");
      EXPECT_TRUE(run_until(server, [&] { return server.statistics().accepted == 3; }));
      EXPECT_EQ(server.statistics().live, 3u);
      if (at_once) {
        server.stop(Duration::zero());
      } else {
        server.stop();
      }
      server.loop().step();
      held.let_go();
      EXPECT_TRUE(eventually([&] {
        server.loop().step();
        for (RawClient& client : clients) {
          client.read_some();
          if (client.ended) client.fd.reset();
        }
        return server.statistics().live == 0;
      }));
      EXPECT_EQ(messages.load(), 0);
      EXPECT_EQ(connects.load(), 0) << "served after the stop";
      EXPECT_EQ(closes.load(), connects.load());
      EXPECT_EQ(server.statistics().ended, 3u);
      EXPECT_EQ(server.statistics().refused_at_stop, 3u);
    }
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
}

// ACC14, XT5: the server goes while connections are under way to its loops.
TEST_P(AcceptingForLoops, DestroyingTheServerLosesNoConnectionUnderWayToAnotherLoop) {
  const std::size_t descriptors = World::open_descriptors();
  std::vector<RawClient> clients;
  std::atomic<int> connects = 0;
  std::atomic<int> closes = 0;
  {
    HeldLoop held;
    TcpServer server({.loops = 1,
                      .backend = GetParam(),
                      .kernel = &kernel,
                      .on_thread_start = [&](std::size_t, EventLoop& loop) { held.hold(loop); }});
    server.on_connect([&](TcpConnection&) { ++connects; });
    server.on_close([&](TcpConnection&, const CloseReport&) { ++closes; });
    ASSERT_TRUE(server.start().has_value());
    held.wait_until_held();
    clients = connect_many(server.address(), 3);
    EXPECT_TRUE(run_until(server, [&] { return server.statistics().accepted == 3; }));
    held.let_go();
  }
  EXPECT_EQ(closes.load(), connects.load());
  for (RawClient& client : clients) {
    EXPECT_TRUE(eventually([&] {
      client.read_some();
      return client.ended;
    }));
  }
  clients.clear();
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

INSTANTIATE_TEST_SUITE_P(Backends, AcceptingForLoops, testing::ValuesIn(kBackends),
                         backend_test_name);

}  // namespace
}  // namespace penstock::test

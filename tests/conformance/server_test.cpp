// How a server starts, stops and dies (scenarios G1, G2, XT4 to XT6, B5), on every back-end: on a
// loop of the program's, and with loops of its own.

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <latch>
#include <mutex>
#include <optional>
#include <semaphore>
#include <thread>

#include "support/serving.h"
#include "support/world.h"

namespace penstock::test {
namespace {

constexpr std::size_t kMuch = std::size_t{12} * 1024 * 1024;  // more than the kernel's buffers take

/// An environment variable for the length of a scope.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    ::setenv(name, value, 1);
  }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;
  ~ScopedVariable() {
    if (before_) {
      ::setenv(name_, before_->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }

 private:
  const char* name_;
  std::optional<std::string> before_;
};

// -- On a loop of the program's

class Server : public ConformanceTest {
 protected:
  TcpServer& start(TcpServerOptions options = {}) {
    server = std::make_unique<TcpServer>(world.loop, std::move(options));
    ledger.keep(*server);
    EXPECT_TRUE(server->start().has_value());
    return *server;
  }
  /// One that sends `kMuch` to whoever connects.
  TcpServer& start_sender(TcpServerOptions options = {}) {
    server = std::make_unique<TcpServer>(world.loop, std::move(options));
    ledger.keep(*server);
    server->on_connect([this](TcpConnection& peer) {
      ledger.up(peer);
      peer.send(std::string(kMuch, 's'));
    });
    EXPECT_TRUE(server->start().has_value());
    return *server;
  }
  /// One that takes a hold for each message, and leaves the reply to the test.
  TcpServer& start_holder() {
    server = std::make_unique<TcpServer>(world.loop);
    ledger.keep(*server);
    server->on_message([this](TcpConnection& peer, InputBuffer& in) {
      ledger.seen(peer);
      in.consume(in.size());
      peer.hold();
      held = &peer;
    });
    stopped = false;
    server->on_stopped([this] { stopped = true; });
    EXPECT_TRUE(server->start().has_value());
    return *server;
  }
  /// Makes this client's connection the one that is held.
  void request_hold(const RawClient& client) {
    held = nullptr;
    EXPECT_EQ(send_text(linux_kernel(), client.fd.get(), "?"), 1);
    EXPECT_TRUE(world.run_until([&] { return held != nullptr; }));
  }
  std::vector<RawClient> clients_of(TcpServer& its_server, Ledger& its_ledger, std::size_t count) {
    const std::size_t wanted = its_ledger.connects + count;
    std::vector<RawClient> clients = connect_many(its_server.address(), count);
    EXPECT_TRUE(world.run_until([&] { return its_ledger.connects == wanted; }));
    return clients;
  }
  std::error_code start_error(TcpServerOptions options) {
    const std::size_t descriptors = World::open_descriptors();
    TcpServer failing(world.loop, std::move(options));
    const Result<void> started = failing.start();
    EXPECT_FALSE(started.has_value());
    EXPECT_EQ(World::open_descriptors(), descriptors);
    return started ? std::error_code() : started.error();
  }

  Ledger ledger;
  TcpConnection* held = nullptr;
  bool stopped = false;
  std::unique_ptr<TcpServer> server;
};

TEST_P(Server, StartSaysWhyItCannotListen) {
  const Listener taken = listen_tcp(linux_kernel());
  EXPECT_EQ(start_error({.listen = taken.address.to_string()}), system_error(EADDRINUSE));
  EXPECT_EQ(start_error({.listen = "192.0.2.1:0"}), system_error(EADDRNOTAVAIL));
  for (const char* nonsense : {"", "nonsense", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:-1",
                               "[::1", "1.2.3.4.5:80", "127.0.0.1:80x"}) {
    const std::error_code error = start_error({.listen = nonsense});
    EXPECT_TRUE(error == make_error_code(Errc::bad_address) ||
                error == make_error_code(Errc::needs_resolver))
        << nonsense;
  }
  EXPECT_EQ(start_error({.listen = "example.com:80"}), make_error_code(Errc::needs_resolver));
  EXPECT_EQ(start_error({.max_connections = linux_kernel().descriptor_limit()}),
            make_error_code(Errc::too_many_connections));
}

TEST_P(Server, StartingTwiceIsAnErrorAndChangesNothing) {
  start();
  const Result<void> again = server->start();
  ASSERT_FALSE(again.has_value());
  EXPECT_EQ(again.error(), make_error_code(Errc::already_started));
  clients_of(*server, ledger, 1);
}

TEST_P(Server, AServerThatCouldNotStartCanBeStartedOnceThePortIsFree) {
  std::optional<Listener> taken = listen_tcp(linux_kernel());
  const std::string address = taken->address.to_string();
  server = std::make_unique<TcpServer>(world.loop, TcpServerOptions{.listen = address});
  ledger.keep(*server);
  ASSERT_FALSE(server->start().has_value());
  taken.reset();
  ASSERT_TRUE(server->start().has_value());
  RawClient client(connect_to(server->address()));
  send_text(linux_kernel(), client.fd.get(), "hello");
  ASSERT_TRUE(world.run_until([&] { return server->statistics().live == 1; }));
  EXPECT_TRUE(world.run_until([&] { return ledger.received == "hello"; }))
      << "its callbacks were lost with the first attempt";
}

TEST_P(Server, WhicheverCallOfStartFailsNothingIsLeftBehind) {
  const std::size_t descriptors = World::open_descriptors();
  bool reached = true;
  int failed = 0;
  for (std::uint64_t which = 1; reached; ++which) {
    ASSERT_LT(which, 100u);
    const auto rule = world.kernel.inject({.call = Call::any, .first = which, .error = ENOMEM});
    TcpServer failing(world.loop);
    const Result<void> started = failing.start();
    reached = world.kernel.fired(rule) > 0;
    world.kernel.heal();
    if (!started) {
      ++failed;
      EXPECT_TRUE(reached);
      EXPECT_EQ(started.error(), system_error(ENOMEM));
      EXPECT_EQ(World::open_descriptors(), descriptors);
      EXPECT_EQ(failing.address(), SocketAddress());
    }
  }
  EXPECT_GE(failed, 5) << "socket, setsockopt, bind, listen, epoll_ctl";
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

TEST_P(Server, TheDefaultLimitLeavesDescriptorsToTheProgram) {
  start();
  const std::size_t limit = linux_kernel().descriptor_limit();
  EXPECT_GE(server->max_connections(), 1u);
  EXPECT_LT(server->max_connections(), limit - World::open_descriptors());
}

// G1: what is queued goes out before the end, however slowly it is read.
TEST_P(Server, AnOrderlyStopFlushesTheQueueToASlowReader) {
  start_sender();
  std::vector<RawClient> clients = clients_of(*server, ledger, 2);
  world.turn(5);
  EXPECT_GT((*ledger.live.begin())->queued_bytes(), 0u);
  server->stop();
  world.turn(5);
  EXPECT_EQ(ledger.closes, 0u) << "output is still queued";
  std::vector<char> piece(std::size_t{64} * 1024);
  for (RawClient& client : clients) {
    ASSERT_TRUE(world.run_until([&] {
      // A slow reader: one piece a turn.
      const ssize_t count = linux_kernel().recv(client.fd.get(), piece.data(), piece.size(), 0);
      if (count > 0) client.bytes += static_cast<std::size_t>(count);
      if (count == 0 || (count < 0 && count != -EAGAIN)) {
        client.ended = true;
        client.end = count;
      }
      return client.ended;
    }));
    EXPECT_EQ(client.bytes, kMuch);
    EXPECT_TRUE(client.saw_eof());
    client.fd.reset();
  }
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == 2; }));
  EXPECT_EQ(ledger.count(CloseReason::local), 2u);
  for (const CloseReport& report : ledger.reports)
    EXPECT_EQ(report.bytes_discarded, 0u);
  EXPECT_EQ(server->statistics().aborted_at_stop, 0u);
  EXPECT_EQ(server->statistics().bytes_sent, 2 * kMuch);
  EXPECT_EQ(server->statistics().live, 0u);
  EXPECT_EQ(server->statistics().ended, 2u);
}

// G2
TEST_P(Server, AtTheDeadlineWhatIsLeftIsResetAndCounted) {
  start_sender();
  std::vector<RawClient> clients = clients_of(*server, ledger, 3);
  server->stop(std::chrono::minutes(10));
  world.turn(5);
  EXPECT_EQ(ledger.closes, 0u);
  EXPECT_EQ(server->statistics().aborted_at_stop, 0u);
  // One has its bytes in time.
  ASSERT_TRUE(world.run_until([&] {
    clients[0].read_some();
    return clients[0].ended;
  }));
  clients[0].fd.reset();
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == 1; }));
  world.kernel.advance(std::chrono::minutes(10));
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == 3; }));
  // Write stalls may not have taken them first: those limits were not reached before in one sample.
  EXPECT_EQ(server->statistics().aborted_at_stop + ledger.count(CloseReason::timeout), 2u);
  for (std::size_t i = 1; i < 3; ++i) {
    ASSERT_TRUE(eventually([&] {
      clients[i].read_some();
      return clients[i].ended;
    }));
    EXPECT_TRUE(clients[i].was_reset());
    EXPECT_LT(clients[i].bytes, kMuch);
  }
  for (const CloseReport& report : ledger.reports) {
    EXPECT_EQ(report.bytes_sent + report.bytes_discarded, kMuch);
  }
}

// G2: the same without limits of time that could come first.
TEST_P(Server, AtTheDeadlineAConnectionWithoutLimitsIsResetToo) {
  ConnectionLimits limits;
  limits.write_stall_timeout = Duration::zero();
  limits.idle_timeout = Duration::zero();
  limits.half_close_timeout = Duration::zero();
  start_sender({.limits = limits, .stop_deadline = std::chrono::minutes(1)});
  std::vector<RawClient> clients = clients_of(*server, ledger, 2);
  server->stop();
  world.turn(2);
  world.kernel.advance(std::chrono::seconds(50));
  world.turn(3);
  EXPECT_EQ(ledger.closes, 0u);
  world.kernel.advance(std::chrono::seconds(11));
  world.turn(3);
  EXPECT_EQ(ledger.closes, 2u);
  EXPECT_EQ(server->statistics().aborted_at_stop, 2u);
}

// G2
TEST_P(Server, ASecondStopCanOnlyBringTheDeadlineForward) {
  ConnectionLimits limits;
  limits.write_stall_timeout = Duration::zero();
  start_sender({.limits = limits});
  std::vector<RawClient> clients = clients_of(*server, ledger, 1);
  server->stop(std::chrono::minutes(10));
  world.turn(2);
  server->stop(std::chrono::minutes(2));
  world.turn(2);
  server->stop(std::chrono::hours(5));
  world.turn(2);
  world.kernel.advance(std::chrono::seconds(121));
  world.turn(3);
  EXPECT_EQ(ledger.closes, 1u);
  EXPECT_EQ(server->statistics().aborted_at_stop, 1u);
}

// G2
TEST_P(Server, ASecondStopOfZeroResetsAtOnce) {
  start_sender();
  std::vector<RawClient> clients = clients_of(*server, ledger, 3);
  server->stop();
  world.turn(3);
  EXPECT_EQ(ledger.closes, 0u);
  server->stop(Duration::zero());
  world.turn(2);
  EXPECT_EQ(ledger.closes, 3u);
  EXPECT_EQ(server->statistics().aborted_at_stop, 3u);
  for (RawClient& client : clients) {
    ASSERT_TRUE(eventually([&] {
      client.read_some();
      return client.ended;
    }));
    EXPECT_TRUE(client.was_reset());
  }
}

// G2: three impatient calls are one.
TEST_P(Server, AConnectionResetByTheStopIsCountedOnce) {
  start_sender();
  std::vector<RawClient> clients = clients_of(*server, ledger, 2);
  world.loop.queue_in_loop([&] {
    server->stop(Duration::zero());
    server->stop(Duration::zero());
    server->stop(Duration::zero());
  });
  world.turn(3);
  EXPECT_EQ(ledger.closes, 2u);
  EXPECT_EQ(server->statistics().aborted_at_stop, 2u);
}

// G2: one that had ended by itself, and was not yet reported, has not been reset by the stop.
TEST_P(Server, AConnectionThatHadEndedByItselfIsNotCountedAsReset) {
  start_sender();
  std::vector<RawClient> clients = clients_of(*server, ledger, 2);
  world.loop.queue_in_loop([&] {
    (*ledger.live.begin())->abort();
    server->stop(Duration::zero());
  });
  world.turn(3);
  EXPECT_EQ(ledger.closes, 2u);
  EXPECT_EQ(server->statistics().aborted_at_stop, 1u);
}

TEST_P(Server, AStopWithoutConnectionsIsOverAtOnceAndIdempotent) {
  start();
  for (int i = 0; i < 3; ++i)
    server->stop();
  world.turn();
  EXPECT_EQ(connect_outcome(server->address()), ECONNREFUSED);
  server->stop(Duration::zero());
  world.turn();
  EXPECT_EQ(server->statistics().aborted_at_stop, 0u);
}

// A stop asked for by a callback, of its own connection's server.
TEST_P(Server, AStopFromInsideACallbackStillSendsTheReply) {
  server = std::make_unique<TcpServer>(world.loop);
  ledger.keep(*server);
  server->on_message([&](TcpConnection& peer, InputBuffer& in) {
    in.consume(in.size());
    peer.send("good");
    server->stop();
    peer.send("bye");
  });
  ASSERT_TRUE(server->start().has_value());
  std::vector<RawClient> clients = clients_of(*server, ledger, 1);
  send_text(linux_kernel(), clients[0].fd.get(), "quit");
  ASSERT_TRUE(world.run_until([&] {
    clients[0].read_some();
    return clients[0].ended;
  }));
  EXPECT_TRUE(clients[0].saw_eof());
  // Nothing can be sent behind the end that the stop asked for.
  EXPECT_EQ(clients[0].bytes, 4u);
  clients[0].fd.reset();
  EXPECT_TRUE(world.run_until([&] { return ledger.closes == 1; }));
}

// G1: a reply that is still being computed is waited for.
TEST_P(Server, AnOrderlyStopWaitsForTheReplyOfAHeldConnection) {
  for (const bool peer_finishes : {false, true}) {
    SCOPED_TRACE(peer_finishes);
    ledger = {};
    start_holder();
    std::vector<RawClient> clients = clients_of(*server, ledger, 2);
    request_hold(clients[0]);
    if (peer_finishes) {
      EXPECT_EQ(linux_kernel().shutdown(clients[0].fd.get(), SHUT_WR), 0);
    }
    world.settle();
    world.loop.queue_in_loop([&] { server->stop(std::chrono::minutes(10)); });
    world.settle();
    EXPECT_EQ(ledger.closes, 1u) << "only the one without a hold";
    world.kernel.advance(std::chrono::minutes(9));
    world.settle();
    clients[0].read_some();
    EXPECT_FALSE(clients[0].ended);
    ASSERT_EQ(ledger.live, std::set{held});
    EXPECT_FALSE(stopped);
    world.loop.queue_in_loop([&] {
      held->send("the computed reply");
      held->release();
    });
    ASSERT_TRUE(world.run_until([&] {
      clients[0].read_some();
      return clients[0].ended;
    }));
    EXPECT_TRUE(clients[0].saw_eof());
    EXPECT_EQ(clients[0].bytes, std::string_view("the computed reply").size());
    clients[0].fd.reset();
    ASSERT_TRUE(world.run_until([&] { return stopped; }));
    EXPECT_EQ(ledger.closes, 2u);
    EXPECT_EQ(ledger.count(CloseReason::local), 2u);
    EXPECT_EQ(server->statistics().aborted_at_stop, 0u);
  }
}

// G2
TEST_P(Server, AtTheDeadlineAHeldConnectionIsResetToo) {
  start_holder();
  std::vector<RawClient> clients = clients_of(*server, ledger, 1);
  request_hold(clients[0]);
  server->stop(std::chrono::minutes(10));
  world.settle();
  world.kernel.advance(std::chrono::minutes(9));
  world.turn(4);
  EXPECT_EQ(ledger.closes, 0u);
  world.kernel.advance(std::chrono::minutes(2));
  world.turn(4);
  EXPECT_EQ(ledger.closes, 1u);
  EXPECT_EQ(ledger.count(CloseReason::local), 1u);
  EXPECT_EQ(server->statistics().aborted_at_stop, 1u);
  ASSERT_TRUE(eventually([&] {
    clients[0].read_some();
    return clients[0].ended;
  }));
  EXPECT_TRUE(clients[0].was_reset());
}

TEST_P(Server, SeveralServersLiveOnOneLoop) {
  constexpr std::size_t kServers = 3;
  std::array<Ledger, kServers> ledgers;
  std::array<std::unique_ptr<TcpServer>, kServers> servers;
  std::array<std::vector<RawClient>, kServers> clients;
  for (std::size_t i = 0; i < kServers; ++i) {
    servers[i] =
        std::make_unique<TcpServer>(world.loop, TcpServerOptions{.max_connections = i + 1});
    ledgers[i].keep(*servers[i]);
    ASSERT_TRUE(servers[i]->start().has_value());
  }
  for (std::size_t i = 0; i < kServers; ++i)
    clients[i] = clients_of(*servers[i], ledgers[i], i + 1);
  // The limit of one is not that of another.
  EXPECT_EQ(ledgers[2].live.size(), 3u);
  servers[1].reset();
  EXPECT_EQ(ledgers[1].closes, 2u);
  servers[0]->stop(Duration::zero());
  world.turn(3);
  EXPECT_EQ(ledgers[0].closes, 1u);
  EXPECT_EQ(ledgers[2].closes, 0u);
  for (RawClient& client : clients[2])
    send_text(linux_kernel(), client.fd.get(), "x");
  EXPECT_TRUE(world.run_until([&] { return ledgers[2].received == "xxx"; }));
}

// -- How it dies --

TEST_P(Server, DestroyedWhileItsLoopStandsStillItReportsEveryEndFirst) {
  const std::size_t descriptors = World::open_descriptors();
  start_sender();
  std::vector<RawClient> clients = clients_of(*server, ledger, 3);
  server.reset();
  EXPECT_EQ(ledger.closes, 3u);
  EXPECT_EQ(ledger.count(CloseReason::local), 3u);
  EXPECT_EQ(ConnectionTable::of(world.loop).size(), 0u);
  clients.clear();
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

TEST_P(Server, DestroyedInOneOfItsCallbacksItsConnectionsAreReportedInThatTurn) {
  const std::size_t descriptors = World::open_descriptors();
  server = std::make_unique<TcpServer>(world.loop);
  ledger.keep(*server);
  bool destroyed = false;
  server->on_message([&](TcpConnection& peer, InputBuffer& in) {
    ledger.seen(peer);
    ASSERT_FALSE(destroyed) << "a message behind the reset";
    server.reset();
    destroyed = true;
    EXPECT_EQ(ledger.closes, 0u) << "no callback inside of another";
    EXPECT_FALSE(peer.is_open());
    // What the callback holds is still there.
    EXPECT_EQ(in.take_string(), "die");
  });
  ASSERT_TRUE(server->start().has_value());
  std::vector<RawClient> clients = clients_of(*server, ledger, 4);
  for (RawClient& client : clients)
    send_text(linux_kernel(), client.fd.get(), "die");
  ASSERT_TRUE(world.run_until([&] { return destroyed; }));
  if (!acts_at_once(GetParam())) world.turn(2);  // closing takes a while there
  EXPECT_EQ(ledger.closes, 4u);
  world.turn(2);
  clients.clear();
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// B5: a server that goes in a task while output is queued, and one that is asked to finish before.
TEST_P(Server, DestroyedInATaskWhileDrainingItReportsEachEndOnce) {
  start_sender();
  std::vector<RawClient> clients = clients_of(*server, ledger, 2);
  server->stop();
  world.turn(2);
  world.loop.queue_in_loop([&] { server.reset(); });
  world.turn(3);
  EXPECT_EQ(ledger.closes, 2u);
  EXPECT_EQ(ledger.count(CloseReason::local), 2u);
}

TEST_P(Server, ALoopDestroyedWithLiveConnectionsReportsEachEndOnce) {
  const std::size_t descriptors = World::open_descriptors();
  Ledger its_ledger;
  std::vector<RawClient> clients;
  std::vector<std::shared_ptr<Record>> records;
  std::vector<UniqueFd> peers;
  {
    EventLoop loop({.backend = GetParam(), .kernel = &world.kernel});
    ConnectionTable& table = ConnectionTable::of(loop);
    for (int i = 0; i < 5; ++i) {
      SocketPair pair = tcp_pair(world.kernel);
      records.push_back(std::make_shared<Record>());
      ConnectionCallbacks callbacks = World::recording(records.back());
      const auto adopted = table.adopt(std::move(pair.server), SocketAddress(),
                                       make_behaviour(std::move(callbacks)), nullptr);
      ASSERT_TRUE(adopted.has_value());
      PostResult posted = PostResult::posted;
      if (i == 1) posted = adopted->send(std::string(kMuch, 'x'));
      if (i == 2) posted = adopted->close();
      if (i == 3) posted = adopted->finish();
      EXPECT_EQ(posted, PostResult::posted);
      peers.push_back(std::move(pair.client));
    }
    loop.step();
    loop.run_after(std::chrono::hours(1), [] { ADD_FAILURE() << "a timer of a dead loop"; });
    loop.queue_in_loop([] { ADD_FAILURE() << "a task of a dead loop"; });
  }
  for (const auto& record : records) {
    EXPECT_EQ(record->closes, 1);
    EXPECT_EQ(record->events.back(), "close");
    EXPECT_EQ(record->report->reason, CloseReason::local);
  }
  peers.clear();
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// XT6: outside of the loop, while it runs in another thread.
TEST_P(Server, DestroyedFromAnotherThreadItWaitsForEveryOnClose) {
  for (int round = 0; round < 10; ++round) {
    std::atomic<int> connects = 0;
    std::atomic<int> closes = 0;
    EventLoop loop({.backend = GetParam(), .kernel = &world.kernel});
    auto its_server = std::make_unique<TcpServer>(loop);
    its_server->on_connect([&](TcpConnection&) { ++connects; });
    its_server->on_message(
        [](TcpConnection& peer, InputBuffer& in) { peer.send(in.take_string()); });
    its_server->on_close([&](TcpConnection&, const CloseReport&) {
      std::this_thread::yield();
      ++closes;
    });
    ASSERT_TRUE(its_server->start().has_value());
    std::thread runner([&] { EXPECT_TRUE(loop.run().has_value()); });
    std::vector<RawClient> clients = connect_many(its_server->address(), 8);
    EXPECT_TRUE(eventually([&] { return connects.load() == 8; }));
    for (RawClient& client : clients)
      send_text(linux_kernel(), client.fd.get(), "write on");
    its_server.reset();
    EXPECT_EQ(closes.load(), 8);
    loop.stop();
    runner.join();
  }
}

// XT6: the loop is told to stop while the server is being destroyed elsewhere; the destruction must
// come to its end.
TEST_P(Server, DestroyedFromAnotherThreadWhileTheLoopStopsItDoesNotHang) {
  std::atomic<int> closes = 0;
  EventLoop loop({.backend = GetParam(), .kernel = &world.kernel});
  auto its_server = std::make_unique<TcpServer>(loop);
  std::atomic<int> connects = 0;
  its_server->on_connect([&](TcpConnection&) { ++connects; });
  its_server->on_close([&](TcpConnection&, const CloseReport&) { ++closes; });
  ASSERT_TRUE(its_server->start().has_value());
  const RawClient client(connect_to(its_server->address()));
  ASSERT_TRUE(eventually([&] {
    loop.step();
    return connects.load() == 1;
  }));
  std::latch last_turn(1);
  std::atomic<bool> destroyed = false;
  std::thread runner([&] {
    loop.run_after(Duration::zero(), [&] {
      loop.stop();
      last_turn.count_down();
      // This turn lasts until the destructor has found the loop running and posted to it.
      EXPECT_TRUE(eventually([&] { return loop.mailbox().has_mail(); }));
    });
    EXPECT_TRUE(loop.run().has_value());
    EXPECT_TRUE(eventually([&] { return destroyed.load(); }))
        << "the destructor waits for a loop that has stopped";
    while (!destroyed.load())
      loop.step();  // so that the test comes to an end
  });
  last_turn.wait();
  its_server.reset();
  destroyed = true;
  runner.join();
  EXPECT_EQ(closes.load(), 1);
}

PENSTOCK_ON_EVERY_BACKEND(Server);

// -- With loops of its own

/// A server that runs in a thread.
class OwnLoops : public testing::TestWithParam<std::tuple<Backend, std::size_t>> {
 protected:
  TcpServerOptions options() {
    TcpServerOptions made;
    made.loops = std::get<1>(GetParam());
    made.backend = std::get<0>(GetParam());
    made.kernel = &kernel;
    return made;
  }
  void keep(TcpServer& server) {
    server.on_connect([this](TcpConnection& peer) {
      const std::scoped_lock lock(mutex);
      ledger.up(peer);
    });
    server.on_message([this](TcpConnection& peer, InputBuffer& in) {
      {
        const std::scoped_lock lock(mutex);
        ledger.seen(peer);
      }
      peer.send(in.take_string());
    });
    server.on_close([this](TcpConnection& peer, const CloseReport& report) {
      const std::scoped_lock lock(mutex);
      ledger.down(peer, report);
    });
    server.on_listening([this] { listening.count_down(); });
  }
  void run(TcpServer& server) {
    runner = std::thread([&] { result = server.run(); });
    listening.wait();
  }
  std::size_t connects() {
    const std::scoped_lock lock(mutex);
    return ledger.connects;
  }

  FaultyKernel kernel{linux_kernel()};
  std::mutex mutex;
  Ledger ledger;
  std::latch listening{1};
  std::thread runner;
  int result = -1;
};

TEST_P(OwnLoops, ServesUntilItIsStoppedFromAnotherThread) {
  const std::size_t descriptors = World::open_descriptors();
  {
    TcpServer server(options());
    keep(server);
    run(server);
    std::vector<RawClient> clients = connect_many(server.address(), 6);
    for (RawClient& client : clients)
      send_text(linux_kernel(), client.fd.get(), "echo");
    for (RawClient& client : clients) {
      EXPECT_TRUE(eventually([&] {
        client.read_some();
        return client.bytes == 4;
      }));
    }
    EXPECT_EQ(server.statistics().live, 6u);
    server.stop();
    for (RawClient& client : clients) {
      EXPECT_TRUE(eventually([&] {
        client.read_some();
        return client.ended;
      }));
      EXPECT_TRUE(client.saw_eof());
      client.fd.reset();
    }
    runner.join();
    EXPECT_EQ(result, 0);
    EXPECT_EQ(ledger.connects, 6u);
    EXPECT_EQ(ledger.closes, 6u);
    const ServerStatistics statistics = server.statistics();
    EXPECT_EQ(statistics.accepted, 6u);
    EXPECT_EQ(statistics.ended, 6u);
    EXPECT_EQ(statistics.live, 0u);
    EXPECT_EQ(statistics.bytes_received, 24u);
    EXPECT_EQ(statistics.bytes_sent, 24u);
    EXPECT_EQ(statistics.aborted_at_stop, 0u);
  }
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// G2
TEST_P(OwnLoops, AStopOfZeroResetsTheConnectionsOfAllLoops) {
  TcpServer server(options());
  keep(server);
  run(server);
  std::vector<RawClient> clients = connect_many(server.address(), 6);
  EXPECT_TRUE(eventually([&] { return connects() == 6; }));
  server.stop(Duration::zero());
  runner.join();
  EXPECT_EQ(result, 0);
  EXPECT_EQ(ledger.closes, 6u);
  EXPECT_EQ(server.statistics().aborted_at_stop, 6u);
  for (RawClient& client : clients) {
    EXPECT_TRUE(eventually([&] {
      client.read_some();
      return client.ended;
    }));
    EXPECT_TRUE(client.was_reset());
  }
}

// G1: a stop that flushes, over all loops.
TEST_P(OwnLoops, AnOrderlyStopFlushesTheQueuesOfAllLoops) {
  TcpServer server(options());
  keep(server);
  server.on_connect([this](TcpConnection& peer) {
    peer.send(std::string(kMuch, 's'));
    const std::scoped_lock lock(mutex);
    ledger.up(peer);
  });
  run(server);
  std::vector<RawClient> clients = connect_many(server.address(), 3);
  EXPECT_TRUE(eventually([&] { return connects() == 3; }));
  server.stop();
  for (RawClient& client : clients) {
    EXPECT_TRUE(eventually([&] {
      client.read_some();
      return client.ended;
    }));
    EXPECT_TRUE(client.saw_eof());
    EXPECT_EQ(client.bytes, kMuch);
    client.fd.reset();
  }
  runner.join();
  EXPECT_EQ(result, 0);
  EXPECT_EQ(server.statistics().aborted_at_stop, 0u);
}

// XT6: the server goes without a stop; never run, it was driven by hand.
TEST_P(OwnLoops, DestroyedWithLiveConnectionsItReportsEachEndOnce) {
  const std::size_t descriptors = World::open_descriptors();
  std::vector<RawClient> clients;
  {
    TcpServer server(options());
    keep(server);
    ASSERT_TRUE(server.start().has_value());
    clients = connect_many(server.address(), 6);
    EXPECT_TRUE(eventually([&] {
      server.loop().step();
      return connects() == 6;
    }));
    for (RawClient& client : clients)
      send_text(linux_kernel(), client.fd.get(), "write on");
  }
  EXPECT_EQ(ledger.closes, 6u);
  EXPECT_TRUE(ledger.live.empty());
  for (RawClient& client : clients) {
    EXPECT_TRUE(eventually([&] {
      client.read_some();
      return client.ended;
    }));
    client.fd.reset();
  }
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

TEST_P(OwnLoops, AStartThatFailsLeavesNoThreadAndNoDescriptor) {
  const Listener taken = listen_tcp(linux_kernel());
  TcpServerOptions failing_options = options();
  failing_options.listen = taken.address.to_string();
  const std::size_t before = World::open_descriptors();
  {
    TcpServer server(std::move(failing_options));
    const std::size_t descriptors = World::open_descriptors();
    const Result<void> started = server.start();
    ASSERT_FALSE(started.has_value());
    EXPECT_EQ(started.error(), system_error(EADDRINUSE));
    EXPECT_EQ(World::open_descriptors(), descriptors);
    EXPECT_EQ(server.run(), 1);
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
  EXPECT_EQ(World::open_descriptors(), before);
}

TEST_P(OwnLoops, WhicheverCallFailsWhileItStartsAndStopsNothingIsLeftBehind) {
  const std::size_t before = World::open_descriptors();
  bool reached = true;
  int failed = 0;
  for (std::uint64_t which = 1; reached; ++which) {
    ASSERT_LT(which, 200u);
    SCOPED_TRACE(which);
    // Waits and clocks cannot fail; closing succeeds whatever it says. Reads and writes of the
    // wake-up are settled at the loop.
    const auto rule = kernel.inject({.call = Call::epoll_create, .first = which, .error = EMFILE});
    const auto second = kernel.inject({.call = Call::eventfd, .first = which, .error = ENFILE});
    const auto third = kernel.inject(
        {.call = Call::epoll_ctl, .operation = EPOLL_CTL_ADD, .first = which, .error = ENOSPC});
    {
      TcpServer server(options());
      const Result<void> started = server.start();
      if (!started) ++failed;
    }
    reached = kernel.fired(rule) + kernel.fired(second) + kernel.fired(third) > 0;
    kernel.heal();
    EXPECT_EQ(World::open_descriptors(), before);
  }
  EXPECT_GE(failed, 1);
}

TEST_P(OwnLoops, AnUnknownBackendInTheEnvironmentIsAnErrorOfStart) {
  const ScopedVariable variable("PENSTOCK_BACKEND", "telepathy");
  const std::size_t descriptors = World::open_descriptors();
  {
    TcpServerOptions automatic = options();
    automatic.backend = Backend::automatic;
    TcpServer server(std::move(automatic));
    const Result<void> started = server.start();
    ASSERT_FALSE(started.has_value());
    EXPECT_EQ(started.error(), make_error_code(Errc::unknown_backend));
    EXPECT_EQ(server.run(), 1);
    server.stop();
    EXPECT_EQ(server.address(), SocketAddress());
    EXPECT_EQ(server.statistics().live, 0u);
    // And of a server on a loop that was made so.
    EventLoop loop({.backend = Backend::automatic, .kernel = &kernel});
    EXPECT_EQ(loop.error(), make_error_code(Errc::unknown_backend));
    TcpServer on_it(loop);
    EXPECT_EQ(on_it.start().error(), make_error_code(Errc::unknown_backend));
    on_it.stop();
    // An explicit choice does not ask the environment.
    TcpServer explicit_choice(options());
    EXPECT_TRUE(explicit_choice.start().has_value());
  }
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

TEST_P(OwnLoops, TheEnvironmentChoosesTheBackendOfAutomatic) {
  for (const Backend backend : kBackends) {
    const std::string name(to_string(backend));
    const ScopedVariable variable("PENSTOCK_BACKEND", name.c_str());
    TcpServerOptions automatic = options();
    automatic.backend = Backend::automatic;
    TcpServer server(std::move(automatic));
    ASSERT_TRUE(server.start().has_value());
    EXPECT_EQ(server.loop().backend().name(), backend == Backend::custom ? "deferring" : name);
  }
}

// -- run() and signals --

std::set<int> blocked_signals() {
  sigset_t mask;
  sigemptyset(&mask);
  EXPECT_EQ(::pthread_sigmask(SIG_SETMASK, nullptr, &mask), 0);
  std::set<int> blocked;
  for (int number = 1; number < NSIG; ++number) {
    if (sigismember(&mask, number) == 1) blocked.insert(number);
  }
  return blocked;
}

/// A signal for this thread.
void signal_here(int number) { EXPECT_EQ(::pthread_kill(::pthread_self(), number), 0); }

// G1
TEST_P(OwnLoops, ASignalStopsItInOrderAndRestoresTheMask) {
  for (const int number : {SIGTERM, SIGINT}) {
    const std::set<int> mask = blocked_signals();
    const std::size_t descriptors = World::open_descriptors();
    {
      TcpServer server(options());
      std::atomic<std::size_t> greeted = 0;
      server.on_connect([&](TcpConnection& peer) {
        peer.send("in flight");
        ++greeted;
      });
      RawClient client;
      server.on_listening([&] {
        EXPECT_TRUE(blocked_signals().contains(number));
        client.fd = connect_to(server.address());
        server.loop().run_every(std::chrono::milliseconds(1), [&, sent = false]() mutable {
          if (greeted.load() == 1 && !sent) {
            sent = true;
            signal_here(number);
          }
          client.read_some();
          if (client.ended) client.fd.reset();
        });
      });
      EXPECT_EQ(server.run(), 0);
      EXPECT_TRUE(eventually([&] {
        if (!client.ended) client.read_some();
        return client.ended;
      }));
      EXPECT_TRUE(client.saw_eof());
      EXPECT_EQ(client.bytes, std::string_view("in flight").size());
      EXPECT_EQ(server.statistics().aborted_at_stop, 0u);
      EXPECT_EQ(blocked_signals(), mask);
      client.fd.reset();
    }
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
}

// G2
TEST_P(OwnLoops, ASecondSignalResetsAndAnswers130) {
  for (const bool together : {false, true}) {
    const std::set<int> mask = blocked_signals();
    TcpServer server(options());
    std::atomic<std::size_t> greeted = 0;
    server.on_connect([&](TcpConnection& peer) {
      peer.send(std::string(kMuch, 'x'));
      ++greeted;
    });
    std::vector<RawClient> clients;
    server.on_listening([&] {
      clients = connect_many(server.address(), 3);
      server.loop().run_every(std::chrono::milliseconds(1), [&, sent = 0]() mutable {
        if (greeted.load() < 3 || sent == 2) return;
        // The first one closes the port; nobody reads, so the second one finds all of them.
        if (sent == 1 && connect_outcome(server.address()) != ECONNREFUSED) return;
        signal_here(sent == 0 ? SIGTERM : SIGINT);
        ++sent;
        if (together && sent == 1) {
          signal_here(SIGINT);
          ++sent;
        }
      });
    });
    EXPECT_EQ(server.run(), 130);
    EXPECT_EQ(server.statistics().live, 0u);
    EXPECT_EQ(server.statistics().aborted_at_stop, 3u);
    for (RawClient& client : clients) {
      EXPECT_TRUE(eventually([&] {
        client.read_some();
        return client.ended;
      }));
      EXPECT_TRUE(client.was_reset());
    }
    EXPECT_EQ(blocked_signals(), mask);
  }
}

// G1: a signal that had been blocked and pending before run() stops it, too, and stays blocked
// afterwards.
TEST_P(OwnLoops, AMaskThatBlockedTheSignalAlreadyIsRestoredAsItWas) {
  sigset_t block;
  sigset_t previous;
  sigemptyset(&block);
  sigaddset(&block, SIGTERM);
  ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &block, &previous), 0);
  const std::set<int> mask = blocked_signals();
  {
    TcpServer server(options());
    signal_here(SIGTERM);
    EXPECT_EQ(server.run(), 0);
  }
  EXPECT_EQ(blocked_signals(), mask);
  sigset_t pending;
  sigpending(&pending);
  EXPECT_EQ(sigismember(&pending, SIGTERM), 0);
  ::pthread_sigmask(SIG_SETMASK, &previous, nullptr);
}

TEST_P(OwnLoops, ARunThatCannotStartRestoresTheMask) {
  const std::set<int> mask = blocked_signals();
  const Listener taken = listen_tcp(linux_kernel());
  TcpServerOptions failing_options = options();
  failing_options.listen = taken.address.to_string();
  TcpServer server(std::move(failing_options));
  EXPECT_EQ(server.run(), 1);
  EXPECT_EQ(blocked_signals(), mask);
}

TEST_P(OwnLoops, ARunThatCannotWatchItsSignalsRestoresTheMask) {
  const std::set<int> mask = blocked_signals();
  for (std::uint64_t which = 1; which <= 2; ++which) {
    SCOPED_TRACE(which);
    const auto rule = kernel.inject({.call = Call::signalfd, .first = which, .error = ENOMEM});
    TcpServer server(options());
    EXPECT_EQ(server.run(), 1);
    EXPECT_EQ(kernel.fired(rule), 1u);
    EXPECT_EQ(blocked_signals(), mask);
    // Nothing of the call is left in the loop, not even a watch of the signals.
    EXPECT_TRUE(kernel.calls(Call::signalfd) >= which);
    kernel.heal();
  }
}

// A stop that was over before run() began.
TEST_P(OwnLoops, ARunOfAServerThatHasStoppedReturns) {
  TcpServer server(options());
  keep(server);
  ASSERT_TRUE(server.start().has_value());
  server.stop();
  for (int turn = 0; turn < 3; ++turn)
    server.loop().step();
  EXPECT_EQ(connect_outcome(server.address()), ECONNREFUSED);
  // If run() waits for ever, this ends it.
  const TimerId rescue = server.loop().run_after(std::chrono::seconds(5), [&] {
    ADD_FAILURE() << "run() waits for a stop that has been";
    server.loop().stop();
  });
  EXPECT_EQ(server.run(), 0);
  server.loop().cancel(rescue);
}

// A stop asked for between start() and run() is not lost.
TEST_P(OwnLoops, AStopBeforeRunIsNotLost) {
  TcpServer server(options());
  keep(server);
  ASSERT_TRUE(server.start().has_value());
  server.stop();
  EXPECT_EQ(server.run(), 0);
  EXPECT_EQ(connect_outcome(server.address()), ECONNREFUSED);
}

std::string own_loops_name(const testing::TestParamInfo<std::tuple<Backend, std::size_t>>& info) {
  return backend_word(std::get<0>(info.param)) + "_" + std::to_string(std::get<1>(info.param)) +
         "_loops";
}

INSTANTIATE_TEST_SUITE_P(Backends, OwnLoops,
                         testing::Combine(testing::ValuesIn(kBackends),
                                          testing::Values(std::size_t{0}, std::size_t{2})),
                         own_loops_name);

}  // namespace
}  // namespace penstock::test

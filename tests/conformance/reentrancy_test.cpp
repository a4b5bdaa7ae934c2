// What callbacks may do, and when things die (scenarios RE1 to RE13), on every back-end.

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <tuple>

#include "penstock/os/forwarding_kernel.h"
#include "support/serving.h"
#include "support/world.h"

namespace penstock::test {
namespace {

// -- RE1: every action at every point

enum class Action {
  finish,
  close,
  abort,
  destroy_owner,
  destroy_other,
  pause,
  resume,
  throws,
  stop_loop,
};
constexpr std::array kActions = {Action::finish,        Action::close,         Action::abort,
                                 Action::destroy_owner, Action::destroy_other, Action::pause,
                                 Action::resume,        Action::throws,        Action::stop_loop};

enum class Point {
  connect,
  message,
  write_complete,
  high_water,
  low_water,
  peer_finished,
  timer,
  task,
  close,
  accept,
};
constexpr std::array kPoints = {Point::connect,    Point::message,   Point::write_complete,
                                Point::high_water, Point::low_water, Point::peer_finished,
                                Point::timer,      Point::task,      Point::close,
                                Point::accept};

const char* name_of(Action action) {
  switch (action) {
    case Action::finish:
      return "Finish";
    case Action::close:
      return "Close";
    case Action::abort:
      return "Abort";
    case Action::destroy_owner:
      return "DestroyOwner";
    case Action::destroy_other:
      return "DestroyOther";
    case Action::pause:
      return "Pause";
    case Action::resume:
      return "Resume";
    case Action::throws:
      return "Throw";
    case Action::stop_loop:
      return "StopLoop";
  }
  return "";
}

const char* name_of(Point point) {
  switch (point) {
    case Point::connect:
      return "Connect";
    case Point::message:
      return "Message";
    case Point::write_complete:
      return "WriteComplete";
    case Point::high_water:
      return "HighWater";
    case Point::low_water:
      return "LowWater";
    case Point::peer_finished:
      return "PeerFinished";
    case Point::timer:
      return "Timer";
    case Point::task:
      return "Task";
    case Point::close:
      return "OnClose";
    case Point::accept:
      return "Accept";
  }
  return "";
}

/// One script that passes through all the points: a client connects and says "ping"; the server
/// sends it more than the kernel takes; the client reads all of it and finishes; the server
/// finishes too. At the cell's point, once, the action is done.
class Cell : public testing::TestWithParam<std::tuple<Backend, Action, Point>> {
 protected:
  static constexpr std::size_t kPayload = std::size_t{8} * 1024 * 1024;
  static constexpr std::size_t kBehind = 2;  // clients behind the first in the backlog (accept)

  Backend backend() const { return std::get<0>(GetParam()); }
  Action action() const { return std::get<1>(GetParam()); }
  Point point() const { return std::get<2>(GetParam()); }

  /// Does the action if this is its point and its connection (the first).
  void at(Point here, TcpConnection* peer) {
    if (here != point() || done || peer != first) return;
    done = true;
    last_turn_before = world->loop.statistics().turns;
    switch (action()) {
      case Action::finish:
        if (peer != nullptr) peer->finish();
        break;
      case Action::close:
        if (peer != nullptr) peer->close();
        break;
      case Action::abort:
        if (peer != nullptr) peer->abort();
        break;
      case Action::destroy_owner:
        owner.reset();
        break;
      case Action::destroy_other:
        other.reset();
        if (bystander.record->closes == 0) bystander.connection->abort();
        break;
      case Action::pause:
        peer->pause_reading();
        paused = true;
        break;
      case Action::resume:
        peer->pause_reading();
        peer->resume_reading();
        break;
      case Action::throws:
        throw std::runtime_error("thrown by the test");
      case Action::stop_loop:
        world->loop.stop();
        break;
    }
  }

  void set_up_owner() {
    ConnectionLimits limits;
    limits.high_water = std::size_t{256} * 1024;
    owner = std::make_unique<TcpServer>(world->loop, TcpServerOptions{.limits = limits});
    owner->on_connect([this](TcpConnection& peer) {
      ledger.up(peer);
      if (first == nullptr) {
        first = &peer;
        world->loop.run_after(Duration::zero(), [this] { at_if_alive(Point::timer); });
        world->loop.queue_in_loop([this] { at_if_alive(Point::task); });
        peer.send(std::string(kPayload, 'p'));
      }
      at(point() == Point::accept ? Point::accept : Point::connect, &peer);
    });
    owner->on_message([this](TcpConnection& peer, InputBuffer& in) {
      ledger.seen(peer);
      ledger.received += in.take_string();
      at(Point::message, &peer);
    });
    owner->on_write_complete([this](TcpConnection& peer) {
      ledger.seen(peer);
      at(Point::write_complete, &peer);
    });
    owner->on_high_water([this](TcpConnection& peer) {
      ledger.seen(peer);
      highs += &peer == first ? 1 : 0;
      at(Point::high_water, &peer);
    });
    owner->on_low_water([this](TcpConnection& peer) {
      ledger.seen(peer);
      at(Point::low_water, &peer);
    });
    owner->on_peer_finished([this](TcpConnection& peer) {
      ledger.seen(peer);
      at(Point::peer_finished, &peer);
      peer.finish();
    });
    owner->on_close([this](TcpConnection& peer, const CloseReport& report) {
      ledger.down(peer, report);
      if (&peer == first) {
        first_report = report;
        first_over = true;
      }
      at(Point::close, &peer);
    });
    ASSERT_TRUE(owner->start().has_value());
  }

  void at_if_alive(Point here) {
    if (!first_over) at(here, first);
  }

  void set_up_other() {
    other = std::make_unique<TcpServer>(world->loop);
    other_ledger.keep(*other);
    ASSERT_TRUE(other->start().has_value());
    other_client.fd = connect_to(other->address());
    ASSERT_TRUE(world->run_until([this] { return other_ledger.connects == 1; }));
    bystander = world->connect();
  }

  /// The client's part of the script.
  void pump_client() {
    // A timer falls due within a few turns: time for it.
    if (point() == Point::timer && !done) return;
    // It does not read before the output has risen above its mark, so that every point is passed.
    if (highs > 0 || first_over || reading) {
      reading = true;
      client.read_some();
    }
    // Any end that was asked for at an early point keeps the high-water mark from being reported.
    if (done && (action() == Action::finish || action() == Action::close)) reading = true;
    if (client.bytes == kPayload && !client_finished && !client.ended && !paused) {
      client_finished = true;
      linux_kernel().shutdown(client.fd.get(), SHUT_WR);
    }
    if (client.ended) client.fd.reset();
    // A paused connection goes on once somebody resumes it.
    if (paused && done && world->loop.statistics().turns > last_turn_before + 20) {
      paused = false;
      if (!first_over) first->resume_reading();
    }
  }

  bool script_over() const { return first_over || (client.ended && done); }

  void run_script() {
    const TimePoint end = linux_kernel().now() + std::chrono::seconds(20);
    while (!first_over) {
      ASSERT_LT(linux_kernel().now(), end) << "the script does not end";
      if (action() == Action::stop_loop && !done) {
        // The loop runs by itself, and a timer moves the client, until the action stops it.
        const TimerId timer = world->loop.run_every(std::chrono::microseconds(500), [this] {
          pump_client();
          ASSERT_FALSE(first_over) << "the point was not passed";
        });
        ASSERT_TRUE(world->loop.run().has_value());
        world->loop.cancel(timer);
        EXPECT_TRUE(done);
        const std::uint64_t turns = world->loop.statistics().turns;
        EXPECT_EQ(turns, last_turn_before) << "the loop stops behind the turn";
      }
      world->loop.step(std::chrono::milliseconds(1));
      pump_client();
    }
  }

  std::optional<World> world;
  Ledger ledger;
  Ledger other_ledger;
  std::unique_ptr<TcpServer> owner;
  std::unique_ptr<TcpServer> other;
  RawClient client;
  RawClient other_client;
  World::Link bystander;
  TcpConnection* first = nullptr;
  CloseReport first_report;
  std::size_t highs = 0;
  std::uint64_t last_turn_before = 0;
  bool first_over = false;
  bool reading = false;
  bool client_finished = false;
  bool paused = false;
  bool done = false;
};

// RE1
TEST_P(Cell, EndsEachConnectionOnceAndLosesNothing) {
  const std::size_t descriptors = World::open_descriptors();
  world.emplace(backend());
  set_up_other();
  set_up_owner();
  const SocketAddress address = owner->address();
  client.fd = connect_to(address);
  send_text(linux_kernel(), client.fd.get(), "ping");
  std::vector<RawClient> behind;
  if (point() == Point::accept) behind = connect_many(address, kBehind);

  run_script();
  ASSERT_FALSE(HasFatalFailure());
  EXPECT_TRUE(done) << "the point was not passed";
  world->turn(3);

  // What the action promises.
  const bool early = point() != Point::close;
  switch (action()) {
    case Action::finish:
    case Action::close:
      client.read_some();
      EXPECT_EQ(client.bytes, kPayload) << "what was queued before the end was lost";
      EXPECT_EQ(first_report.bytes_sent, kPayload);
      EXPECT_EQ(first_report.bytes_discarded, 0u);
      break;
    case Action::abort:
    case Action::destroy_owner:
      if (early) {
        EXPECT_EQ(first_report.reason, CloseReason::local);
        EXPECT_EQ(first_report.bytes_sent + first_report.bytes_discarded, kPayload);
      }
      break;
    case Action::throws:
      EXPECT_EQ(world->loop.statistics().exceptions, 1u);
      if (early && point() != Point::timer && point() != Point::task) {
        EXPECT_EQ(first_report.reason, CloseReason::local);
        EXPECT_EQ(first_report.error, make_error_code(Errc::callback_threw));
      } else {
        EXPECT_EQ(first_report.reason, CloseReason::eof);
      }
      break;
    case Action::destroy_other:
    case Action::pause:
    case Action::resume:
    case Action::stop_loop:
      // It does not touch this connection: the script runs to its regular end.
      EXPECT_EQ(first_report.reason, CloseReason::eof);
      EXPECT_EQ(client.bytes, kPayload);
      EXPECT_EQ(ledger.received, "ping");
      break;
  }
  if (action() == Action::destroy_other) {
    EXPECT_EQ(other_ledger.closes, 1u);
    EXPECT_EQ(bystander.record->closes, 1);
  } else {
    // Nobody else was touched.
    EXPECT_EQ(other_ledger.closes, 0u);
    EXPECT_EQ(bystander.record->closes, 0);
    send_text(linux_kernel(), other_client.fd.get(), "still there");
    EXPECT_TRUE(world->run_until([&] { return other_ledger.received == "still there"; }));
  }
  if (action() == Action::destroy_owner) {
    EXPECT_EQ(connect_outcome(address), ECONNREFUSED);
  } else {
    // The server lives and serves on.
    const std::size_t connects = ledger.connects;
    RawClient next(connect_to(address));
    EXPECT_TRUE(world->run_until([&] { return ledger.connects > connects; }));
  }

  // All of it ends, once each.
  owner.reset();
  other.reset();
  if (bystander.record->closes == 0) bystander.connection->abort();
  world->turn(3);
  EXPECT_EQ(ledger.closes, ledger.connects);
  EXPECT_TRUE(ledger.live.empty());
  EXPECT_EQ(other_ledger.closes, other_ledger.connects);
  EXPECT_EQ(bystander.record->closes, 1);
  EXPECT_EQ(bystander.record->events.back(), "close");
  EXPECT_EQ(ConnectionTable::of(world->loop).size(), 0u);
  world.reset();
  client.fd.reset();
  other_client.fd.reset();
  bystander.client.reset();
  behind.clear();
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

std::string cell_name(const testing::TestParamInfo<std::tuple<Backend, Action, Point>>& cell) {
  return std::string(name_of(std::get<1>(cell.param))) + "In" + name_of(std::get<2>(cell.param)) +
         "_" + backend_word(std::get<0>(cell.param));
}

INSTANTIATE_TEST_SUITE_P(Matrix, Cell,
                         testing::Combine(testing::ValuesIn(kBackends), testing::ValuesIn(kActions),
                                          testing::ValuesIn(kPoints)),
                         cell_name);

// -- The others

class Reentrancy : public ConformanceTest {
 protected:
  /// Sends a byte to each and waits, outside of the loop, until all have arrived, so that one wait
  /// answers for all.
  static void make_ready_together(const std::vector<World::Link*>& links) {
    for (const World::Link* link : links) {
      send_text(linux_kernel(), link->client.get(), "x");
      ASSERT_NE(wait_for(linux_kernel(), link->connection->descriptor(), POLLIN), 0);
    }
  }
};

// RE2
TEST_P(Reentrancy, AnEventForAConnectionClosedEarlierInTheBatchIsDropped) {
  for (const bool abortive : {true, false}) {
    World::Link victim;
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
      in.consume(in.size());
      if (abortive) {
        victim.connection->abort();
      } else {
        victim.connection->close();
      }
    };
    // The killer is first in the batch: epoll goes by readiness, poll by registration.
    World::Link killer = world.connect(record, std::move(callbacks));
    victim = world.connect();
    world.settle();
    make_ready_together({&killer, &victim});
    const std::uint64_t stale = world.loop.statistics().io.stale_events;
    world.turn();
    if (abortive && acts_at_once(GetParam())) {
      EXPECT_EQ(world.loop.statistics().io.stale_events, stale + 1);
    }
    EXPECT_EQ(victim.record->count("message"), 0u) << "no more on_message behind a close";
    victim.client.reset();
    ASSERT_TRUE(world.run_until([&] { return victim.record->closes == 1; }));
    world.turn(3);
    EXPECT_EQ(victim.record->events.back(), "close");
    EXPECT_EQ(victim.record->closes, 1);
    EXPECT_EQ(killer.record->closes, 0);
    killer.connection->abort();
    world.turn(3);
  }
}

// RE3: the number of the closed descriptor is in use again before its event is looked at (K11).
TEST_P(Reentrancy, AConnectionThatInheritsADescriptorNumberGetsNoForeignEvent) {
  World::Link victim;
  SocketPair fresh = tcp_pair(linux_kernel());
  auto fresh_record = std::make_shared<Record>();
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  int number = -1;
  ConnectionHandle heir;
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    in.consume(in.size());
    number = victim.connection->descriptor();
    victim.connection->abort();
    const int inherited = ::fcntl(fresh.server.get(), F_DUPFD_CLOEXEC, number);
    EXPECT_EQ(inherited, number) << "the descriptor is closed at once";
    fresh.server.reset();
    const auto adopted = ConnectionTable::of(peer.loop())
                             .adopt(UniqueFd(world.kernel, inherited), SocketAddress(),
                                    make_behaviour(World::recording(fresh_record)), nullptr);
    EXPECT_TRUE(adopted.has_value());
    if (adopted) heir = *adopted;
  };
  World::Link killer = world.connect(record, std::move(callbacks));
  victim = world.connect();
  world.settle();
  make_ready_together({&killer, &victim});
  const std::uint64_t stale = world.loop.statistics().io.stale_events;
  const std::uint64_t recvs = world.kernel.calls_on(Call::recv, victim.connection->descriptor());
  world.turn();
  ASSERT_GE(number, 0);
  if (acts_at_once(GetParam())) {  // else the victim's bytes had been taken, and are dropped
    EXPECT_EQ(world.loop.statistics().io.stale_events, stale + 1);
    EXPECT_EQ(world.kernel.calls_on(Call::recv, number), recvs) << "a foreign event was believed";
  }
  EXPECT_EQ(fresh_record->events, std::vector<std::string>{"connect"});
  if (!acts_at_once(GetParam())) world.turn();
  EXPECT_EQ(victim.record->closes, 1);
  // And it works.
  send_text(linux_kernel(), fresh.client.get(), "mine");
  ASSERT_TRUE(world.run_until([&] { return fresh_record->received == "mine"; }));
  EXPECT_EQ(heir.abort(), PostResult::posted);
  ASSERT_TRUE(world.run_until([&] { return fresh_record->closes == 1; }));
}

/// Shows that every change of a registration is of a descriptor that is registered and open.
class ControlWatcher final : public ForwardingKernel {
 public:
  using ForwardingKernel::ForwardingKernel;
  int changes = 0;

 private:
  int raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) override {
    ++changes;
    const int result = ForwardingKernel::raw_epoll_ctl(epoll_fd, operation, fd, event);
    EXPECT_EQ(result, 0) << "epoll_ctl operation " << operation << " on descriptor " << fd;
    return result;
  }
};

// RE4: interest that was changed in the same batch as the close is neither applied late nor to a
// successor.
TEST_P(Reentrancy, NoInterestIsChangedBehindAClose) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "the kernel keeps no interest");
  ControlWatcher watcher(linux_kernel());
  {
    EventLoop loop({.backend = GetParam(), .kernel = &watcher});
    ConnectionTable& table = ConnectionTable::of(loop);
    struct Owner final : ConnectionOwner {
      void connection_started(TcpConnection& connection) noexcept override { newest = &connection; }
      void connection_ended(TcpConnection&) noexcept override { ++ended; }
      TcpConnection* newest = nullptr;
      int ended = 0;
    } owner;
    const std::vector<std::function<void(TcpConnection&)>> changes = {
        [](TcpConnection& victim) { victim.pause_reading(); },
        [](TcpConnection& victim) {
          victim.pause_reading();
          victim.resume_reading();
        },
        [](TcpConnection& victim) { victim.send(std::string(std::size_t{8} << 20, 'x')); },
        [](TcpConnection& victim) { victim.send("small"); },
        [](TcpConnection& victim) { victim.finish(); },
        [](TcpConnection& victim) { victim.close(); },
    };
    int expected_ends = 0;
    for (const auto& change : changes) {
      std::array<SocketPair, 3> pairs = {tcp_pair(linux_kernel()), tcp_pair(linux_kernel()),
                                         tcp_pair(linux_kernel())};
      TcpConnection* victim = nullptr;
      auto successor = std::make_shared<Record>();
      ConnectionCallbacks callbacks;
      callbacks.on_message = [&](TcpConnection&, InputBuffer& in) {
        in.consume(in.size());
        const int number = victim->descriptor();
        change(*victim);
        victim->abort();
        const int inherited = ::fcntl(pairs[2].server.get(), F_DUPFD_CLOEXEC, number);
        EXPECT_EQ(inherited, number);
        pairs[2].server.reset();
        EXPECT_TRUE(table
                        .adopt(UniqueFd(watcher, inherited), SocketAddress(),
                               make_behaviour(World::recording(successor)), &owner)
                        .has_value());
      };
      const BehaviourPtr killing = make_behaviour(std::move(callbacks));
      const BehaviourPtr quiet = make_behaviour({});
      ASSERT_TRUE(table.adopt(std::move(pairs[0].server), SocketAddress(), killing, &owner));
      TcpConnection* const killer = owner.newest;
      ASSERT_TRUE(table.adopt(std::move(pairs[1].server), SocketAddress(), quiet, &owner));
      victim = owner.newest;
      loop.step();
      send_text(linux_kernel(), pairs[0].client.get(), "x");
      ASSERT_TRUE(eventually([&] {
        loop.step();
        return successor->count("connect") == 1;
      }));
      TcpConnection* const heir = owner.newest;
      for (int turn = 0; turn < 3; ++turn)
        loop.step();
      send_text(linux_kernel(), pairs[2].client.get(), "hello");
      EXPECT_TRUE(eventually([&] {
        loop.step();
        return successor->received == "hello";
      }));
      EXPECT_EQ(successor->count("close"), 0u);
      killer->abort();
      heir->abort();
      for (int turn = 0; turn < 3; ++turn)
        loop.step();
      expected_ends += 3;
      EXPECT_EQ(owner.ended, expected_ends);
    }
  }
  EXPECT_GT(watcher.changes, 0);
}

// RE5
TEST_P(Reentrancy, WhateverACallbackThrowsOnlyItsConnectionEnds) {
  const std::vector<std::function<void()>> throwers = {
      [] { throw std::runtime_error("an exception"); },
      [] { throw std::bad_alloc(); },
      [] { throw 42; },
  };
  World::Link other = world.connect();
  std::uint64_t exceptions = 0;
  for (const auto& thrower : throwers) {
    for (const char* where :
         {"connect", "message", "peer_finished", "write_complete", "high", "low", "close"}) {
      SCOPED_TRACE(where);
      const std::string place = where;
      auto record = std::make_shared<Record>();
      const auto note = [record, place, &thrower](const char* event) {
        record->events.emplace_back(event);
        if (place == event) thrower();
      };
      ConnectionCallbacks callbacks;
      callbacks.on_connect = [note](TcpConnection&) { note("connect"); };
      callbacks.on_message = [note](TcpConnection& peer, InputBuffer& in) {
        in.consume(in.size());
        peer.send(std::string(std::size_t{8} << 20, 'x'));
        note("message");
      };
      callbacks.on_peer_finished = [note](TcpConnection& peer) {
        note("peer_finished");
        peer.finish();
      };
      callbacks.on_write_complete = [note](TcpConnection&) { note("write_complete"); };
      callbacks.on_high_water = [note](TcpConnection&) { note("high"); };
      callbacks.on_low_water = [note](TcpConnection&) { note("low"); };
      callbacks.on_close = [record, note](TcpConnection&, const CloseReport& report) {
        record->report = report;
        ++record->closes;
        note("close");
      };
      World::Link link = world.connect(record, std::move(callbacks));
      RawClient client(std::move(link.client));
      send_text(linux_kernel(), client.fd.get(), "go");
      bool finished = false;
      ASSERT_TRUE(world.run_until([&] {
        if (record->count("high") > 0) client.read_some();
        if (client.bytes == std::size_t{8} << 20 && !finished) {
          finished = true;
          linux_kernel().shutdown(client.fd.get(), SHUT_WR);
        }
        return record->closes == 1;
      }));
      world.turn(3);
      ++exceptions;
      EXPECT_EQ(record->closes, 1);
      EXPECT_EQ(record->events.back(), "close");
      EXPECT_EQ(record->count(place), 1u);
      EXPECT_EQ(world.loop.statistics().exceptions, exceptions);
      if (place != "close") {
        EXPECT_EQ(record->report->error, make_error_code(Errc::callback_threw));
      }
    }
  }
  // Tasks, timers and watch callbacks are counted, and nothing ends.
  world.loop.queue_in_loop([] { throw std::runtime_error("a task"); });
  world.loop.run_after(Duration::zero(), [] { throw std::bad_alloc(); });
  world.turn(3);
  EXPECT_EQ(world.loop.statistics().exceptions, exceptions + 2);
  send_text(linux_kernel(), other.client.get(), "alive");
  EXPECT_TRUE(world.run_until([&] { return other.record->received == "alive"; }));
  EXPECT_EQ(other.record->closes, 0);
  other.connection->abort();
  world.turn(3);
}

// RE6: a callback gives its connection another behaviour: it lives until it returns, then it is
// freed.
TEST_P(Reentrancy, ABehaviourThatReplacesItselfLivesUntilItReturns) {
  auto probe = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = probe;
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks;
  callbacks.on_message = [probe = std::move(probe), record, watch](TcpConnection& peer,
                                                                   InputBuffer& in) {
    record->events.emplace_back("old");
    in.consume(in.size());
    peer.set_behaviour(make_behaviour({}));  // replaced again, before it has been used
    ConnectionCallbacks next;
    next.on_message = [record](TcpConnection& next_peer, InputBuffer& next_in) {
      record->events.emplace_back("new");
      next_in.consume(next_in.size());
      next_peer.set_behaviour(make_behaviour({}));  // cleared
    };
    next.on_close = [record](TcpConnection&, const CloseReport&) { ++record->closes; };
    peer.set_behaviour(make_behaviour(std::move(next)));
    EXPECT_FALSE(watch.expired());
    ++*probe;
  };
  World::Link link = world.connect(record, std::move(callbacks));
  send_text(linux_kernel(), link.client.get(), "one");
  ASSERT_TRUE(world.run_until([&] { return record->count("old") == 1; }));
  send_text(linux_kernel(), link.client.get(), "two");
  ASSERT_TRUE(world.run_until([&] { return record->count("new") == 1; }));
  EXPECT_TRUE(watch.expired()) << "the old behaviour was not freed";
  send_text(linux_kernel(), link.client.get(), "three");
  world.settle();
  EXPECT_EQ(record->events, (std::vector<std::string>{"old", "new"}));
  link.connection->abort();
  world.turn(3);
  EXPECT_EQ(record->closes, 0) << "the cleared behaviour has no on_close";
}

// RE6: the same in each of the callbacks that the notify step runs.
TEST_P(Reentrancy, ABehaviourReplacedInEachCallbackIsUsedFromTheNextEventOn) {
  for (const char* where :
       {"connect", "message", "peer_finished", "write_complete", "high", "low", "close"}) {
    SCOPED_TRACE(where);
    const std::string place = where;
    auto old_record = std::make_shared<Record>();
    auto new_record = std::make_shared<Record>();
    const auto note = [=](TcpConnection& peer, const char* event) {
      old_record->events.emplace_back(event);
      if (place == event) {
        ConnectionCallbacks next = World::recording(new_record);
        next.on_peer_finished = [](TcpConnection& finished) { finished.finish(); };
        peer.set_behaviour(make_behaviour(std::move(next)));
      }
    };
    ConnectionCallbacks callbacks;
    callbacks.on_connect = [note](TcpConnection& peer) { note(peer, "connect"); };
    callbacks.on_message = [note](TcpConnection& peer, InputBuffer& in) {
      in.consume(in.size());
      note(peer, "message");
    };
    callbacks.on_peer_finished = [note](TcpConnection& peer) {
      peer.finish();
      note(peer, "peer_finished");
    };
    callbacks.on_write_complete = [note](TcpConnection& peer) { note(peer, "write_complete"); };
    callbacks.on_high_water = [note](TcpConnection& peer) { note(peer, "high"); };
    callbacks.on_low_water = [note](TcpConnection& peer) { note(peer, "low"); };
    callbacks.on_close = [note](TcpConnection& peer, const CloseReport&) { note(peer, "close"); };
    World::Link link = world.connect(old_record, std::move(callbacks));
    RawClient client(std::move(link.client));
    link.connection->send(std::string(std::size_t{8} << 20, 'x'));
    send_text(linux_kernel(), client.fd.get(), "go");
    world.settle();
    bool finished = false;
    ASSERT_TRUE(world.run_until([&] {
      client.read_some();
      if (client.bytes == std::size_t{8} << 20 && !finished) {
        finished = true;
        linux_kernel().shutdown(client.fd.get(), SHUT_WR);
      }
      return old_record->count("close") + new_record->count("close") > 0;
    }));
    world.turn(3);
    EXPECT_EQ(old_record->count(place), 1u);
    EXPECT_EQ(old_record->count("close") + new_record->count("close"), 1u);
    EXPECT_EQ(old_record->count("message") + new_record->count("message"), 1u);
  }
}

// RE7
TEST_P(Reentrancy, StoppingInOnConnectClosesTheRestOfTheBatch) {
  for (const int how : {0, 1, 2}) {
    SCOPED_TRACE(how);
    const std::size_t descriptors = World::open_descriptors();
    {
      Ledger ledger;
      auto server = std::make_unique<TcpServer>(world.loop);
      ledger.keep(*server);
      server->on_connect([&](TcpConnection& peer) {
        ledger.up(peer);
        if (ledger.connects > 1) return;
        if (how == 0) server->stop();
        if (how == 1) server->stop(Duration::zero());
        if (how == 2) server.reset();
      });
      ASSERT_TRUE(server->start().has_value());
      std::vector<RawClient> clients = connect_many(server->address(), 5);
      ASSERT_TRUE(world.run_until([&] {
        for (RawClient& client : clients) {
          client.read_some();
          if (client.ended) client.fd.reset();
        }
        return std::ranges::all_of(clients, [](const RawClient& each) { return each.ended; });
      }));
      ASSERT_TRUE(world.run_until([&] { return ledger.closes == 1; }));
      EXPECT_EQ(ledger.connects, 1u);
      server.reset();
    }
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
}

// RE8
TEST_P(Reentrancy, PausingInOnMessageLosesAndRepeatsNothing) {
  constexpr std::size_t kBytes = 200'000;
  std::string sent(kBytes, '\0');
  for (std::size_t i = 0; i < kBytes; ++i)
    sent[i] = static_cast<char>('a' + i % 23);
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  int depth = 0;
  std::size_t resumes_due = 0;
  std::size_t pauses_seen = 0;
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    EXPECT_EQ(++depth, 1) << "on_message inside of on_message";
    EXPECT_EQ(resumes_due, 0u) << "on_message while paused";
    // Takes a little, and leaves the rest for later.
    record->received += in.take_string(std::min<std::size_t>(in.size(), 999));
    peer.pause_reading();
    peer.resume_reading();
    peer.pause_reading();
    resumes_due = 1;
    ++pauses_seen;
    --depth;
  };
  World::Link link = world.connect(record, std::move(callbacks));
  std::size_t written = 0;
  ASSERT_TRUE(world.run_until([&] {
    if (written < kBytes) {
      const ssize_t count = linux_kernel().send(link.client.get(), sent.data() + written,
                                                std::min<std::size_t>(kBytes - written, 7000), 0);
      if (count > 0) written += static_cast<std::size_t>(count);
    }
    if (resumes_due > 0) {
      resumes_due = 0;
      link.connection->resume_reading();
    }
    return record->received.size() == kBytes || record->closes > 0;
  }));
  EXPECT_EQ(record->closes, 0);
  EXPECT_EQ(record->received, sent);
  EXPECT_GE(pauses_seen, kBytes / 999);
  link.connection->abort();
  world.turn(3);
}

// RE9
TEST_P(Reentrancy, EverythingIsRefusedOrHarmlessInOnClose) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  int visits = 0;
  callbacks.on_close = [&](TcpConnection& peer, const CloseReport& report) {
    record->report = report;
    ++record->closes;
    EXPECT_FALSE(peer.is_open());
    EXPECT_EQ(peer.descriptor(), -1);
    EXPECT_EQ(peer.local_address(), SocketAddress());
    EXPECT_EQ(peer.queued_bytes(), 0u);
    peer.send("late");
    peer.send(std::string(100'000, 'x'));
    EXPECT_EQ(peer.try_send("late"), SendOutcome::closed);
    EXPECT_EQ(peer.try_send(std::string(100'000, 'x')), SendOutcome::closed);
    EXPECT_EQ(peer.queued_bytes(), 0u);
    peer.finish();
    peer.close();
    peer.abort();
    peer.close_with_protocol_error();
    peer.pause_reading();
    peer.resume_reading();
    peer.hold();
    peer.release();
    peer.set_behaviour(make_behaviour({}));
    static_cast<void>(peer.handle().send("late"));
    static_cast<void>(peer.handle().post([&](TcpConnection&) { ++visits; }));
  };
  const auto ends = std::vector<std::function<void(World::Link&)>>{
      [](World::Link& link) { link.connection->abort(); },
      [](World::Link& link) { link.connection->close(); },
      [](World::Link& link) { link.client.reset(); },
      [](World::Link& link) {
        reset_on_close(linux_kernel(), link.client.get());
        link.client.reset();
      },
  };
  const BehaviourPtr behaviour = make_behaviour(std::move(callbacks));
  for (std::size_t i = 0; i < ends.size(); ++i) {
    World::Link link = world.connect(record, World::recording(record));
    link.connection->set_behaviour(behaviour);
    ends[i](link);
    if (i == 1) link.client.reset();
    if (i == 2) link.connection->finish();
    ASSERT_TRUE(world.run_until([&] { return record->closes == static_cast<int>(i) + 1; })) << i;
    world.turn(3);
    EXPECT_EQ(record->closes, static_cast<int>(i) + 1);
  }
  EXPECT_EQ(visits, 0);
}

// RE9: the connection's context is there until on_close has run, and gone right behind it.
TEST_P(Reentrancy, TheContextOutlivesOnCloseAndNotMuchMore) {
  auto probe = std::make_shared<int>(7);
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks;
  callbacks.on_connect = [&](TcpConnection& peer) {
    peer.emplace_context<std::shared_ptr<int>>(probe);
  };
  callbacks.on_close = [&](TcpConnection& peer, const CloseReport&) {
    ++record->closes;
    EXPECT_EQ(*peer.context<std::shared_ptr<int>>(), 7);
  };
  World::Link link = world.connect(record, std::move(callbacks));
  EXPECT_EQ(probe.use_count(), 2);
  link.connection->abort();
  ASSERT_TRUE(world.run_until([&] { return record->closes == 1; }));
  EXPECT_EQ(probe.use_count(), 1);
}

// RE10
TEST_P(Reentrancy, AHandleIsInertAfterItsServerAndLoopHaveGone) {
  ConnectionHandle handle;
  ConnectionHandle of_a_dead_connection;
  {
    EventLoop loop({.backend = GetParam()});
    TcpServer server(loop);
    std::size_t connects = 0;
    std::size_t closes = 0;
    server.on_connect([&](TcpConnection& peer) {
      (++connects == 1 ? of_a_dead_connection : handle) = peer.handle();
    });
    server.on_close([&](TcpConnection&, const CloseReport&) { ++closes; });
    ASSERT_TRUE(server.start().has_value());
    std::vector<RawClient> clients = connect_many(server.address(), 1);
    ASSERT_TRUE(eventually([&] {
      loop.step();
      return connects == 1;
    }));
    clients[0].fd.reset();
    ASSERT_TRUE(eventually([&] {
      loop.step();
      return closes == 1;
    }));
    // A new tenant in the slot of the old one.
    clients.emplace_back(connect_to(server.address()));
    ASSERT_TRUE(eventually([&] {
      loop.step();
      return connects == 2;
    }));
    const std::uint64_t stale = ConnectionTable::of(loop).statistics().stale_drops;
    EXPECT_EQ(of_a_dead_connection.send("for the dead"), PostResult::posted);
    EXPECT_EQ(of_a_dead_connection.abort(), PostResult::posted);
    for (int turn = 0; turn < 3; ++turn)
      loop.step();
    EXPECT_EQ(ConnectionTable::of(loop).statistics().stale_drops, stale + 2);
    EXPECT_EQ(clients[1].read_some(), 0u);
    EXPECT_FALSE(clients[1].ended);
    // Under way when everything goes: destroyed unrun.
    EXPECT_EQ(handle.post([](TcpConnection&) { ADD_FAILURE() << "ran after its loop"; }),
              PostResult::posted);
  }
  for (const ConnectionHandle& each : {handle, of_a_dead_connection, ConnectionHandle()}) {
    EXPECT_EQ(each.send("x"), PostResult::closed);
    EXPECT_EQ(each.send(std::string(100'000, 'x')), PostResult::closed);
    EXPECT_EQ(each.finish(), PostResult::closed);
    EXPECT_EQ(each.close(), PostResult::closed);
    EXPECT_EQ(each.abort(), PostResult::closed);
    EXPECT_EQ(each.post([](TcpConnection&) {}), PostResult::closed);
  }
  // Also when another loop has taken the place in the table.
  EventLoop next({.backend = GetParam()});
  EXPECT_EQ(handle.send("x"), PostResult::closed);
}

/// The depth of the stack, for comparison with others of the same thread.
[[gnu::noinline]] std::uintptr_t stack_position() {
  return reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
}

// RE11: thousands of connections (as many as descriptors allow) end by one call, without recursion.
TEST_P(Reentrancy, EndingThousandsAtOnceTakesNoMoreStackThanEndingOne) {
  const std::size_t free = linux_kernel().descriptor_limit() - World::open_descriptors();
  const std::size_t many = std::min<std::size_t>(4000, free / 2 - 32);
  std::uintptr_t lowest = UINTPTR_MAX;
  std::uintptr_t highest = 0;
  std::size_t closes = 0;
  std::vector<ConnectionHandle> handles;
  ConnectionTable& table = ConnectionTable::of(world.loop);
  ConnectionCallbacks callbacks;
  callbacks.on_close = [&](TcpConnection&, const CloseReport&) {
    ++closes;
    lowest = std::min(lowest, stack_position());
    highest = std::max(highest, stack_position());
    // And each tries to end all the others once more.
    if (closes % 2000 == 1) {
      for (const ConnectionHandle& each : handles)
        static_cast<void>(each.abort());
    }
  };
  const BehaviourPtr behaviour = make_behaviour(std::move(callbacks));
  std::vector<UniqueFd> peers;
  for (std::size_t i = 0; i < many; ++i) {
    SocketPair pair = unix_pair(linux_kernel());
    const auto handle = table.adopt(std::move(pair.server), SocketAddress(), behaviour, nullptr);
    ASSERT_TRUE(handle.has_value());
    handles.push_back(*handle);
    peers.push_back(std::move(pair.client));
  }
  table.shut_down();  // aborts all
  ASSERT_TRUE(world.run_until([&] { return closes == many; }));
  EXPECT_EQ(table.size(), 0u);
  EXPECT_LE(highest - lowest, std::uintptr_t{16} * 1024);
}

// RE12
TEST_P(Reentrancy, ADuplicateOfTheDescriptorKeepsNoGhostEventsAlive) {
  for (const bool abortive : {true, false}) {
    World::Link link = world.connect();
    UniqueFd duplicate(linux_kernel(), ::fcntl(link.connection->descriptor(), F_DUPFD_CLOEXEC, 0));
    ASSERT_TRUE(duplicate);
    if (abortive) {
      link.connection->abort();
    } else {
      link.connection->close();
      // The peer finishes too, or close() would wait for it.
      linux_kernel().shutdown(link.client.get(), SHUT_WR);
    }
    ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
    world.settle();
    const std::uint64_t events = world.loop.statistics().io.events;
    // The duplicate keeps the connection alive in the kernel, and the peer makes it ready. (The
    // abort's reset needs the last descriptor to go.)
    if (abortive) send_text(linux_kernel(), link.client.get(), "who is there?");
    ASSERT_NE(wait_for(linux_kernel(), duplicate.get(), POLLIN), 0);
    world.turn(20);
    EXPECT_EQ(world.loop.statistics().io.events, events) << "events of a closed connection";
  }
}

// RE12: the same for a listener, of which a child process may hold a copy.
TEST_P(Reentrancy, ADuplicateOfTheListenerBringsNoGhostEvents) {
  Ledger ledger;
  TcpServer server(world.loop);
  ledger.keep(server);
  int listener = -1;
  world.kernel.before(Call::listen, [&](int fd) { listener = fd; });
  ASSERT_TRUE(server.start().has_value());
  world.kernel.before(Call::listen, nullptr);
  ASSERT_GE(listener, 0);
  const UniqueFd duplicate(linux_kernel(), ::fcntl(listener, F_DUPFD_CLOEXEC, 0));
  server.stop(Duration::zero());
  world.turn(2);
  const std::uint64_t events = world.loop.statistics().io.events;
  const RawClient client(connect_to(server.address()));
  ASSERT_NE(wait_for(linux_kernel(), duplicate.get(), POLLIN), 0);
  world.turn(20);
  EXPECT_EQ(world.loop.statistics().io.events, events);
  EXPECT_EQ(ledger.connects, 0u);
}

PENSTOCK_ON_EVERY_BACKEND(Reentrancy);

}  // namespace
}  // namespace penstock::test

// Computations on workers for connections (R18, R27), on every back-end: answered once, in order
// where that is asked for, never unbounded, and whatever goes first. A valve holds the workers, so
// that each test decides what is under way when.

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <latch>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/captured_log.h"
#include "support/serving.h"
#include "support/world.h"

namespace penstock::test {
namespace {

/// Lets computations pass one by one, or all.
class Valve {
 public:
  void wait() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return passes_ > 0; });
    --waiting_;
    if (passes_ != kAll) --passes_;
  }
  void let_pass(int passes = 1) { set(passes); }
  void open() { set(kAll); }
  /// Waits until so many computations stand here.
  void wait_for_waiting(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ == count; });
  }

 private:
  static constexpr int kAll = -1;
  void set(int passes) {
    const std::scoped_lock lock(mutex_);
    passes_ = passes == kAll ? 1'000'000'000 : passes_ + passes;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  int passes_ = 0;
};

/// A pool whose computations stand behind a valve. It can always be destroyed.
struct Workers {
  explicit Workers(WorkerPoolOptions options) : pool(std::move(options)) {
    EXPECT_TRUE(pool.start().has_value());
  }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;
  ~Workers() { valve.open(); }

  Valve valve;
  WorkerPool pool;
};

class Offload : public ConformanceTest {
 protected:
  /// What a connection of these tests does with a line: "x" is answered with "<x>".
  struct Service {
    WorkerPool& pool;
    OffloadOrder order = OffloadOrder::any;
    std::function<std::string(std::string)> compute;
    /// Of its own accord a failure ends the connection.
    std::function<void(TcpConnection&, OffloadFailure)> on_failed{};
    std::size_t full = 0;
  };

  static std::string answer(const std::string& line) { return "<" + line + ">\n"; }

  static void serve(Service& service, TcpConnection& peer, InputBuffer& in) {
    while (peer.wants_input()) {
      const auto end = in.find('\n');
      if (!end) return;
      OffloadOptions options{.order = service.order};
      if (service.on_failed) options.on_failed = service.on_failed;
      const PostResult taken = offload(
          service.pool, peer,
          [compute = service.compute, line = std::string(in.text().substr(0, *end))] {
            return compute(line);
          },
          [](TcpConnection& to, const std::string& reply) { to.send(reply); }, std::move(options));
      if (taken != PostResult::posted) {
        ++service.full;
        return;
      }
      in.consume(*end + 1);
    }
  }

  /// Without on_peer_finished: the end of the input is answered by finish(), once nothing holds it.
  World::Link connect(Service& service) {
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks;
    callbacks.on_message = [&service](TcpConnection& peer, InputBuffer& in) {
      serve(service, peer, in);
    };
    callbacks.on_close = [record](TcpConnection&, const CloseReport& report) {
      record->report = report;
      ++record->closes;
    };
    return world.connect(record, std::move(callbacks));
  }

  const OffloadStatistics& counts() { return Offloads::of(world.loop).statistics(); }
  [[nodiscard]] bool run_until_begun(std::uint64_t count) {
    return world.run_until([&] { return counts().begun == count; });
  }
  /// Receives exactly so many bytes, turning the loop.
  std::string receive_bytes(const UniqueFd& client, std::size_t size) {
    std::string all;
    EXPECT_TRUE(world.run_until([&] {
      const Received some = receive(linux_kernel(), client.get(), size - all.size());
      all += some.text;
      return all.size() >= size || (some.result <= 0 && some.result != -EAGAIN);
    }));
    return all;
  }
};

PENSTOCK_ON_EVERY_BACKEND(Offload);

// R18
TEST_P(Offload, AMessageIsComputedOnAWorkerAndAnsweredOnTheLoop) {
  Workers workers({.threads = 1});
  workers.valve.open();
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  bool replied = false;
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    EXPECT_EQ(offload(
                  workers.pool, peer,
                  [&, text = in.take_string()] {
                    EXPECT_EQ(WorkerPool::current(), &workers.pool);
                    EXPECT_EQ(EventLoop::current(), nullptr);
                    return std::make_unique<std::string>(text + text);
                  },
                  [&](TcpConnection& to, std::unique_ptr<std::string> result) {
                    EXPECT_TRUE(world.loop.in_loop());
                    EXPECT_EQ(WorkerPool::current(), nullptr);
                    EXPECT_EQ(&to, &peer);
                    to.send(std::move(*result));
                    replied = true;
                  }),
              PostResult::posted);
  };
  const World::Link link = world.connect(record, std::move(callbacks));
  send_text(linux_kernel(), link.client.get(), "ab");
  EXPECT_EQ(receive_bytes(link.client, 4), "abab");
  EXPECT_TRUE(replied);
  EXPECT_EQ(counts().replied, 1U);
  EXPECT_EQ(counts().under_way, 0U);
}

TEST_P(Offload, AComputationWithoutAResultIsAnsweredToo) {
  Workers workers({.threads = 1});
  const World::Link link = world.connect();
  std::atomic<bool> computed{false};
  ASSERT_EQ(offload(
                workers.pool, *link.connection, [&] { computed = true; },
                [](TcpConnection& to) { to.send("done"); }),
            PostResult::posted);
  EXPECT_EQ(receive_bytes(link.client, 4), "done");
  EXPECT_TRUE(computed);
}

// C1: the half-close is not the end of what the peer wants to hear.
TEST_P(Offload, APeerThatHasFinishedStillGetsItsReplies) {
  Workers workers({.threads = 1});
  Service service{.pool = workers.pool, .compute = [&](const std::string& line) {
                    workers.valve.wait();
                    return answer(line);
                  }};
  const World::Link link = connect(service);
  send_text(linux_kernel(), link.client.get(), "a\nb\n");
  linux_kernel().shutdown(link.client.get(), SHUT_WR);
  ASSERT_TRUE(run_until_begun(2));
  world.settle();
  EXPECT_EQ(link.record->closes, 0);
  workers.valve.open();
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  const Received all = receive_to_end(linux_kernel(), link.client.get());
  EXPECT_EQ(all.text, "<a>\n<b>\n");
  EXPECT_EQ(all.result, 0);
  EXPECT_EQ(link.record->report->reason, CloseReason::eof);
}

// B: strictly bounded, nothing lost, nobody waits.
TEST_P(Offload, AFullPoolPausesReadingUntilThereIsRoomAndLosesNothing) {
  constexpr std::size_t kConnections = 6;
  constexpr std::size_t kLines = 20;
  Workers workers({.threads = 1, .queue_max = 2});
  Service service{.pool = workers.pool, .compute = [&](const std::string& line) {
                    workers.valve.wait();
                    return answer(line);
                  }};
  std::vector<World::Link> links;
  std::string lines;
  std::string answers;
  for (std::size_t i = 0; i < kLines; ++i) {
    lines += std::to_string(i) + "\n";
    answers += answer(std::to_string(i));
  }
  for (std::size_t i = 0; i < kConnections; ++i) {
    links.push_back(connect(service));
    send_text(linux_kernel(), links.back().client.get(), lines);
  }
  // One runs, two are queued, and each connection has one that waits.
  ASSERT_TRUE(world.run_until([&] { return workers.pool.statistics().waiting == kConnections; }));
  workers.valve.wait_for_waiting(1);
  world.settle();
  EXPECT_EQ(counts().under_way, 3 + kConnections);
  EXPECT_EQ(workers.pool.statistics().queued, 2U);
  for (const World::Link& link : links)
    EXPECT_FALSE(link.connection->is_reading());
  // Each that passes lets the next one in, and one more line is read.
  workers.valve.let_pass(1);
  ASSERT_TRUE(run_until_begun(4 + kConnections));
  world.settle();
  EXPECT_EQ(workers.pool.statistics().waiting, kConnections);
  EXPECT_EQ(counts().replied, 1U);

  workers.valve.open();
  for (const World::Link& link : links)
    EXPECT_EQ(receive_bytes(link.client, answers.size()), answers);  // one worker: in order
  ASSERT_TRUE(world.run_until([&] { return counts().under_way == 0; }));
  world.settle();
  for (const World::Link& link : links) {
    EXPECT_TRUE(link.connection->is_reading());
    EXPECT_EQ(link.record->closes, 0);
  }
  const WorkerPoolStatistics pool = workers.pool.statistics();
  EXPECT_EQ(pool.queued_peak, 2U);
  EXPECT_EQ(pool.waiting_peak, kConnections);
  EXPECT_EQ(pool.refused, 0U);
  EXPECT_EQ(counts().begun, kConnections * kLines);
  EXPECT_EQ(counts().replied, kConnections * kLines);
  EXPECT_GE(counts().waited, kConnections);
  EXPECT_EQ(service.full, 0U) << "wants_input() had said so";
}

TEST_P(Offload, AConnectionHasABoundedNumberUnderWay) {
  constexpr std::size_t kLines = 200;
  Workers workers({.threads = 2, .queue_max = 1000});
  Service service{.pool = workers.pool, .compute = [&](const std::string& line) {
                    workers.valve.wait();
                    return answer(line);
                  }};
  const World::Link link = connect(service);
  std::string lines;
  std::multiset<std::string> wanted;
  std::size_t size = 0;
  for (std::size_t i = 0; i < kLines; ++i) {
    lines += std::to_string(i) + "\n";
    wanted.insert(answer(std::to_string(i)));
    size += answer(std::to_string(i)).size();
  }
  send_text(linux_kernel(), link.client.get(), lines);
  ASSERT_TRUE(run_until_begun(kOffloadsPerConnectionMax));
  world.settle();
  EXPECT_EQ(counts().begun, kOffloadsPerConnectionMax);
  EXPECT_FALSE(link.connection->is_reading());
  workers.valve.let_pass(kOffloadsPerConnectionMax / 2 - 1);
  ASSERT_TRUE(
      world.run_until([&] { return counts().replied == kOffloadsPerConnectionMax / 2 - 1; }));
  world.settle();
  EXPECT_EQ(counts().begun, kOffloadsPerConnectionMax) << "below half of it only";
  workers.valve.open();
  const std::string received = receive_bytes(link.client, size);
  std::multiset<std::string> answers;
  for (std::size_t at = 0; at < received.size();) {
    const std::size_t end = received.find('\n', at) + 1;
    answers.insert(received.substr(at, end - at));
    at = end;
  }
  EXPECT_EQ(answers, wanted);
  EXPECT_LE(counts().under_way_peak, kOffloadsPerConnectionMax);
}

TEST_P(Offload, PerConnectionKeepsTheOrderOfTheMessagesWhateverTheyTake) {
  constexpr std::size_t kConnections = 3;
  constexpr int kLines = 40;
  Workers workers({.threads = 4});
  std::array<std::atomic<int>, kConnections> running{};
  std::atomic<int> overlaps{0};
  Service service{.pool = workers.pool,
                  .order = OffloadOrder::per_connection,
                  .compute = [&](const std::string& line) {
                    std::atomic<int>& mine = running[static_cast<std::size_t>(line[0] - 'a')];
                    if (mine.fetch_add(1) != 0) ++overlaps;
                    for (int i = line.back() % 2 == 0 ? 10 : 0; i > 0; --i)
                      std::this_thread::yield();
                    --mine;
                    return answer(line);
                  }};
  std::vector<World::Link> links;
  std::vector<std::string> wanted(kConnections);
  for (std::size_t i = 0; i < kConnections; ++i) {
    links.push_back(connect(service));
    std::string lines;
    for (int line = 0; line < kLines; ++line) {
      const std::string text = std::string(1, static_cast<char>('a' + i)) + std::to_string(line);
      lines += text + "\n";
      wanted[i] += answer(text);
    }
    send_text(linux_kernel(), links.back().client.get(), lines);
    linux_kernel().shutdown(links.back().client.get(), SHUT_WR);
  }
  ASSERT_TRUE(world.run_until([&] {
    return std::ranges::all_of(links,
                               [](const World::Link& link) { return link.record->closes == 1; });
  }));
  for (std::size_t i = 0; i < kConnections; ++i)
    EXPECT_EQ(receive_to_end(linux_kernel(), links[i].client.get()).text, wanted[i]);
  EXPECT_EQ(overlaps, 0);
  EXPECT_LE(counts().under_way_peak, kConnections);
}

TEST_P(Offload, InAnyOrderSeveralOfAConnectionAreComputedAtATime) {
  Workers workers({.threads = 2});
  std::latch both(2);
  Service service{.pool = workers.pool, .compute = [&](const std::string& line) {
                    both.arrive_and_wait();  // each ends only beside the other
                    return answer(line);
                  }};
  const World::Link link = connect(service);
  send_text(linux_kernel(), link.client.get(), "1\n2\n");
  const std::string received = receive_bytes(link.client, 8);
  EXPECT_TRUE(received == "<1>\n<2>\n" || received == "<2>\n<1>\n") << received;
}

TEST_P(Offload, WhoeverIgnoresThePauseIsRefusedAndKeepsWhatHeHas) {
  Workers workers({.threads = 1});
  const World::Link link = world.connect();
  const auto compute = [&] { workers.valve.wait(); };
  int replies = 0;
  const auto reply = [&replies](TcpConnection&) { ++replies; };
  const auto per_connection = [] { return OffloadOptions{.order = OffloadOrder::per_connection}; };
  ASSERT_EQ(offload(workers.pool, *link.connection, compute, reply, per_connection()),
            PostResult::posted);
  EXPECT_FALSE(link.connection->wants_input());
  auto kept = std::make_unique<int>(7);
  auto second = [kept = std::move(kept)] { return *kept; };
  const auto take = [&replies](TcpConnection&, int) { ++replies; };
  EXPECT_EQ(offload(workers.pool, *link.connection, std::move(second), take), PostResult::full);
  workers.valve.open();
  ASSERT_TRUE(world.run_until([&] { return replies == 1; }));
  EXPECT_TRUE(link.connection->wants_input());
  EXPECT_EQ(offload(workers.pool, *link.connection, std::move(second), take), PostResult::posted);
  ASSERT_TRUE(world.run_until([&] { return replies == 2; }));
}

// One at a time behind several: reading is paused until the several are answered, and only then.
TEST_P(Offload, OneThatWantsToBeAloneWaitsForTheOthers) {
  Workers workers({.threads = 1});
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  std::vector<PostResult> results;
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    while (peer.wants_input() && !in.empty()) {
      const char what = in.text()[0];
      const OffloadOrder order = what == 'o' ? OffloadOrder::per_connection : OffloadOrder::any;
      results.push_back(offload(
          workers.pool, peer, [&] { workers.valve.wait(); },
          [what](TcpConnection& to) { to.send(std::string(1, what)); }, {.order = order}));
      if (results.back() != PostResult::posted) return;
      in.consume(1);
    }
  };
  const World::Link link = world.connect(record, std::move(callbacks));
  send_text(linux_kernel(), link.client.get(), "aaoa");
  ASSERT_TRUE(world.run_until([&] { return results.size() == 3; }));
  world.settle();
  EXPECT_EQ(results.back(), PostResult::full);
  EXPECT_FALSE(link.connection->is_reading());
  workers.valve.let_pass(1);
  ASSERT_TRUE(world.run_until([&] { return counts().replied == 1; }));
  world.settle();
  EXPECT_EQ(results.size(), 3U) << "there is still one";
  workers.valve.let_pass(1);
  ASSERT_TRUE(run_until_begun(3));
  world.settle();
  EXPECT_EQ(results.size(), 4U);
  workers.valve.open();
  EXPECT_EQ(receive_bytes(link.client, 4), "aaoa");
}

TEST_P(Offload, AReplyMayBeginTheNextComputation) {
  Workers workers({.threads = 2});
  workers.valve.open();
  struct Steps {
    WorkerPool& pool;
    int left = 20;
    void next(TcpConnection& peer) {
      if (left-- == 0) {
        peer.send("end");
        return;
      }
      EXPECT_EQ(offload(
                    pool, peer, [] {}, [this](TcpConnection& to) { next(to); },
                    {.order = OffloadOrder::per_connection}),
                PostResult::posted);
    }
  } steps{workers.pool};
  const World::Link link = world.connect();
  steps.next(*link.connection);
  EXPECT_EQ(receive_bytes(link.client, 3), "end");
  EXPECT_TRUE(link.connection->is_reading());
  EXPECT_EQ(counts().replied, 20U);
}

// -- Failures

TEST_P(Offload, AComputationThatThrowsEndsItsConnectionAsACallbackDoes) {
  const CapturedLog log;
  Workers workers({.threads = 1});
  Service service{.pool = workers.pool, .compute = [](const std::string& line) -> std::string {
                    throw std::runtime_error("cannot compute " + line);
                  }};
  const World::Link link = connect(service);
  const World::Link other = world.connect();
  send_text(linux_kernel(), link.client.get(), "a\n");
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->reason, CloseReason::local);
  EXPECT_EQ(link.record->report->error, make_error_code(Errc::callback_threw));
  EXPECT_EQ(receive_to_end(linux_kernel(), link.client.get()).result, -ECONNRESET);
  EXPECT_EQ(other.record->closes, 0);
  EXPECT_EQ(counts().failed, 1U);
  EXPECT_EQ(workers.pool.statistics().threw, 1U);
  EXPECT_EQ(log.count("worker's task threw: cannot compute a"), 1U);
}

TEST_P(Offload, AFailureCallbackMayAnswerInPlaceOfTheReply) {
  const CapturedLog log;
  Workers workers({.threads = 1});
  std::vector<OffloadFailure> failures;
  Service service{.pool = workers.pool,
                  .order = OffloadOrder::per_connection,
                  .compute = [](const std::string& line) -> std::string {
                    if (line == "bad") throw 7;
                    return answer(line);
                  },
                  .on_failed =
                      [&](TcpConnection& peer, OffloadFailure failure) {
                        EXPECT_TRUE(world.loop.in_loop());
                        failures.push_back(failure);
                        peer.send("sorry\n");
                      }};
  const World::Link link = connect(service);
  send_text(linux_kernel(), link.client.get(), "a\nbad\nb\n");
  EXPECT_EQ(receive_bytes(link.client, 14), "<a>\nsorry\n<b>\n");
  EXPECT_EQ(failures, std::vector{OffloadFailure::threw});
}

TEST_P(Offload, AReplyThatThrowsEndsItsConnection) {
  const CapturedLog log;
  Workers workers({.threads = 1});
  const World::Link link = world.connect();
  ASSERT_EQ(offload(
                workers.pool, *link.connection, [] {},
                [](TcpConnection&) { throw std::runtime_error("no answer"); }),
            PostResult::posted);
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->error, make_error_code(Errc::callback_threw));
  EXPECT_EQ(world.loop.statistics().exceptions, 1U);
  EXPECT_EQ(log.count("reply to a computation threw: no answer"), 1U);
}

// -- Whatever goes first

TEST_P(Offload, AConnectionThatHasEndedGetsNoReplyNorDoesTheNextInItsSlot) {
  Workers workers({.threads = 1, .queue_max = 1});
  Service service{.pool = workers.pool, .compute = [&](const std::string& line) {
                    workers.valve.wait();
                    return answer(line);
                  }};
  const World::Link link = connect(service);
  send_text(linux_kernel(), link.client.get(), "a\nb\nc\n");
  ASSERT_TRUE(world.run_until([&] { return workers.pool.statistics().waiting == 1; }));
  link.connection->abort();
  EXPECT_EQ(
      offload(workers.pool, *link.connection, [] {}, [](TcpConnection&) {}), PostResult::closed);
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  const World::Link next = connect(service);
  EXPECT_EQ(next.connection, link.connection) << "the slot is used again";
  workers.valve.open();
  ASSERT_TRUE(world.run_until([&] { return counts().under_way == 0; }));
  EXPECT_GE(counts().begun, 2U);
  EXPECT_EQ(counts().late, counts().begun);
  EXPECT_EQ(counts().replied, 0U);
  send_text(linux_kernel(), next.client.get(), "d\n");
  EXPECT_EQ(receive_bytes(next.client, 4), "<d>\n");
  EXPECT_TRUE(next.connection->is_reading());
}

TEST_P(Offload, AConnectionThatIsClosingGetsNoReplyAndLosesNoneSentBefore) {
  Workers workers({.threads = 1});
  Service service{.pool = workers.pool, .compute = [&](const std::string& line) {
                    workers.valve.wait();
                    return answer(line);
                  }};
  const World::Link link = connect(service);
  send_text(linux_kernel(), link.client.get(), "a\n");
  ASSERT_TRUE(run_until_begun(1));
  link.connection->send("bye");
  link.connection->close();
  workers.valve.open();
  ASSERT_TRUE(world.run_until([&] { return counts().late == 1; }));
  EXPECT_EQ(receive_bytes(link.client, 3), "bye");
  linux_kernel().shutdown(link.client.get(), SHUT_WR);
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
}

TEST_P(Offload, AServerMayBeDestroyedWhileItsConnectionsAreBeingComputedFor) {
  Workers workers({.threads = 1, .queue_max = 1});
  Service service{.pool = workers.pool, .compute = [&](const std::string& line) {
                    workers.valve.wait();
                    return answer(line);
                  }};
  auto server = std::make_unique<TcpServer>(world.loop);
  server->on_message([&](TcpConnection& peer, InputBuffer& in) { serve(service, peer, in); });
  ASSERT_TRUE(server->start().has_value());
  std::vector<UniqueFd> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(connect_to(server->address()));
    send_text(linux_kernel(), clients.back().get(), "a\nb\nc\n");
  }
  ASSERT_TRUE(world.run_until([&] { return workers.pool.statistics().waiting == 3; }));
  const std::uint64_t begun = counts().begun;
  server.reset();
  workers.valve.open();
  ASSERT_TRUE(world.run_until([&] { return counts().under_way == 0; }));
  EXPECT_EQ(counts().late, begun);
}

TEST_P(Offload, ALoopMayBeDestroyedWhileWorkersComputeForIt) {
  Workers workers({.threads = 1, .queue_max = 1});
  const auto held = std::make_shared<int>(0);
  {
    World gone(GetParam());
    const World::Link link = gone.connect();
    const World::Link other = gone.connect();
    const auto compute = [&, held] { workers.valve.wait(); };
    const auto reply = [held](TcpConnection&) { ADD_FAILURE() << "its loop is gone"; };
    for (int i = 0; i < 2; ++i)
      ASSERT_EQ(offload(workers.pool, *link.connection, compute, reply), PostResult::posted);
    workers.valve.wait_for_waiting(1);
    for (const World::Link* each : {&link, &other})
      ASSERT_NE(offload(workers.pool, *each->connection, compute, reply), PostResult::closed);
    EXPECT_GE(workers.pool.statistics().waiting, 1U);
  }
  workers.valve.open();
  EXPECT_EQ(workers.pool.stop(WorkerStop::finish), 0U);
  EXPECT_EQ(held.use_count(), 1) << "what was captured has been destroyed";
}

TEST_P(Offload, AnOrderlyStopOfTheServerWaitsForTheReplies) {
  constexpr std::size_t kLines = 1000;  // more than may be under way: the client never pauses
  Workers workers({.threads = 2});
  Service service{.pool = workers.pool, .compute = [&](const std::string&) {
                    workers.valve.wait();
                    return std::string("r\n");
                  }};
  TcpServer server(world.loop);
  Ledger ledger;
  ledger.keep(server);
  server.on_message([&](TcpConnection& peer, InputBuffer& in) {
    ledger.seen(peer);
    serve(service, peer, in);
  });
  bool stopped = false;
  server.on_stopped([&] { stopped = true; });
  ASSERT_TRUE(server.start().has_value());
  const UniqueFd one = connect_to(server.address());
  const UniqueFd many = connect_to(server.address());
  send_text(linux_kernel(), one.get(), "a\n");
  std::string lines;
  for (std::size_t i = 0; i < kLines; ++i)
    lines += "x\n";
  send_text(linux_kernel(), many.get(), lines);
  ASSERT_TRUE(run_until_begun(1 + kOffloadsPerConnectionMax));
  server.stop();
  world.settle();
  EXPECT_FALSE(stopped);
  workers.valve.open();
  std::string of_one;
  std::string of_many;
  ASSERT_TRUE(world.run_until([&] {
    of_one += receive(linux_kernel(), one.get()).text;
    of_many += receive(linux_kernel(), many.get()).text;
    if (counts().under_way == 0) {
      linux_kernel().shutdown(one.get(), SHUT_WR);
      linux_kernel().shutdown(many.get(), SHUT_WR);
    }
    return stopped;
  }));
  of_one += receive_to_end(linux_kernel(), one.get()).text;
  of_many += receive_to_end(linux_kernel(), many.get()).text;
  EXPECT_EQ(of_one, "r\n");
  EXPECT_EQ(of_many.size(), 2 * (counts().replied - 1)) << "each that was begun was answered";
  EXPECT_EQ(counts().late, 0U);
  EXPECT_LT(counts().begun, kLines) << "what had not begun was not begun any more";
  EXPECT_EQ(server.statistics().aborted_at_stop, 0U);
}

// R27: what was accepted is run or reported.
TEST_P(Offload, APoolThatStopsTellsTheConnectionsWhoseTasksItDropped) {
  Workers workers({.threads = 1, .queue_max = 1});
  std::vector<OffloadFailure> failures;
  Service told{.pool = workers.pool,
               .compute =
                   [&](const std::string& line) {
                     workers.valve.wait();
                     return answer(line);
                   },
               .on_failed =
                   [&](TcpConnection& peer, OffloadFailure failure) {
                     failures.push_back(failure);
                     peer.send("sorry\n");
                   }};
  Service silent{.pool = workers.pool, .compute = told.compute};
  const World::Link first = connect(told);
  send_text(linux_kernel(), first.client.get(), "a\nb\nc\n");
  ASSERT_TRUE(world.run_until([&] { return workers.pool.statistics().waiting == 1; }));
  workers.valve.wait_for_waiting(1);
  const World::Link second = connect(silent);
  send_text(linux_kernel(), second.client.get(), "d\n");
  ASSERT_TRUE(world.run_until([&] { return workers.pool.statistics().waiting == 2; }));

  std::size_t dropped = 0;
  std::thread stopper([&] { dropped = workers.pool.stop(WorkerStop::drop); });
  EXPECT_TRUE(world.run_until([&] { return workers.pool.statistics().dropped == 3; }));
  workers.valve.open();
  stopper.join();
  EXPECT_EQ(dropped, 3U);
  EXPECT_EQ(receive_bytes(first.client, 16).size(), 16U);
  ASSERT_TRUE(world.run_until([&] { return second.record->closes == 1; }));
  EXPECT_EQ(failures, (std::vector{OffloadFailure::dropped, OffloadFailure::dropped}));
  EXPECT_EQ(second.record->report->error, make_error_code(Errc::stopped));
  EXPECT_TRUE(first.connection->is_reading()) << "the pause is over";
  EXPECT_EQ(counts().under_way, 0U);
  // Later ones are told the same way.
  send_text(linux_kernel(), first.client.get(), "e\n");
  EXPECT_EQ(receive_bytes(first.client, 6), "sorry\n");
  EXPECT_EQ(failures.size(), 3U);
  // And the hold is gone: the peer's end is answered.
  linux_kernel().shutdown(first.client.get(), SHUT_WR);
  ASSERT_TRUE(world.run_until([&] { return first.record->closes == 1; }));
}

// -- Many threads. Small queues, so that most of it waits.

class OffloadThreads : public testing::TestWithParam<Backend> {};
PENSTOCK_ON_EVERY_BACKEND(OffloadThreads);

TEST_P(OffloadThreads, ManyConnectionsOfFourLoopsShareAPoolAndLoseNothing) {
  constexpr std::size_t kConnections = 48;
  constexpr int kLines = 60;
  WorkerPool pool({.threads = 3, .queue_max = 4});
  ASSERT_TRUE(pool.start().has_value());
  std::atomic<std::uint64_t> replied{0};
  TcpServer server({.loops = 4, .backend = GetParam()});
  server.on_message([&](TcpConnection& peer, InputBuffer& in) {
    while (peer.wants_input()) {
      const auto end = in.find('\n');
      if (!end) return;
      std::string line = in.take_string(*end + 1);
      const OffloadOrder order = line[0] == 'o' ? OffloadOrder::per_connection : OffloadOrder::any;
      EXPECT_EQ(offload(
                    pool, peer, [line = std::move(line)] { return line; },
                    [&](TcpConnection& to, std::string reply) {
                      ++replied;
                      to.send(std::move(reply));
                    },
                    {.order = order}),
                PostResult::posted);
    }
  });
  std::latch listening(1);
  server.on_listening([&] { listening.count_down(); });
  std::thread runner([&] { EXPECT_EQ(server.run(), 0); });
  listening.wait();
  std::vector<UniqueFd> clients;
  std::vector<std::string> sent(kConnections);
  for (std::size_t i = 0; i < kConnections; ++i) {
    clients.push_back(connect_to(server.address()));
    for (int line = 0; line < kLines; ++line)
      sent[i] += (i % 2 == 0 ? "o" : "a") + std::to_string(line) + "\n";
    EXPECT_EQ(send_text(linux_kernel(), clients[i].get(), sent[i]),
              static_cast<ssize_t>(sent[i].size()));
    linux_kernel().shutdown(clients[i].get(), SHUT_WR);
  }
  const auto sorted = [](const std::string& text) {
    std::multiset<std::string> lines;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
      lines.insert(text.substr(at, end - at));
      at = end;
    }
    return lines;
  };
  for (std::size_t i = 0; i < kConnections; ++i) {
    const Received all = receive_to_end(linux_kernel(), clients[i].get());
    EXPECT_EQ(all.result, 0);
    if (i % 2 == 0) {
      EXPECT_EQ(all.text, sent[i]);
    } else {
      EXPECT_EQ(sorted(all.text), sorted(sent[i]));
    }
  }
  EXPECT_EQ(replied, kConnections * kLines);
  EXPECT_LE(pool.statistics().queued_peak, 4U);
  EXPECT_LE(pool.statistics().waiting_peak, kConnections);
  EXPECT_EQ(pool.statistics().refused, 0U);
  clients.clear();
  server.stop();
  runner.join();
}

// Clients reset, the server, its loops and the pool go: in both orders, at any moment.
TEST_P(OffloadThreads, EverythingMayGoWhileComputationsAreUnderWay) {
  const CapturedLog log;  // the server says how many it resets
  for (int round = 0; round < 12; ++round) {
    const auto held = std::make_shared<int>(0);
    {
      WorkerPool pool({.threads = 2, .queue_max = 2});
      ASSERT_TRUE(pool.start().has_value());
      std::atomic<int> computed{0};
      auto server =
          std::make_unique<TcpServer>(TcpServerOptions{.loops = 2, .backend = GetParam()});
      server->on_message([&, held](TcpConnection& peer, InputBuffer& in) {
        while (peer.wants_input() && !in.empty()) {
          in.consume(1);
          EXPECT_NE(offload(
                        pool, peer, [&computed, held] { ++computed; },
                        [held](TcpConnection& to) { to.send("r"); }),
                    PostResult::full);
        }
      });
      std::latch listening(1);
      server->on_listening([&] { listening.count_down(); });
      std::thread runner([&] { static_cast<void>(server->run()); });
      listening.wait();
      std::vector<UniqueFd> clients;
      for (int i = 0; i < 12; ++i) {
        clients.push_back(connect_to(server->address()));
        send_text(linux_kernel(), clients.back().get(), std::string(2000, 'x'));
      }
      EXPECT_TRUE(eventually([&] { return computed > 20 * round; }));
      for (std::size_t i = 0; i < clients.size(); i += 2) {
        reset_on_close(linux_kernel(), clients[i].get());
        clients[i].reset();
      }
      if (round % 2 == 0) pool.stop(round % 4 == 0 ? WorkerStop::drop : WorkerStop::finish);
      server->stop(Duration::zero());
      runner.join();
      server.reset();
    }
    EXPECT_EQ(held.use_count(), 1);
  }
}

}  // namespace
}  // namespace penstock::test

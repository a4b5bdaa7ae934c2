// What a client does between its attempts and its connections: waiting, giving up, connecting again
// (scenarios N8, N10, N11 and the contract of tcp/client.h), and what other threads may do to it, on
// every back-end. A single attempt is in client_test.cpp.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <latch>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "penstock/tcp/client.h"
#include "support/connecting.h"
#include "support/loop_thread.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

const std::error_code kRefused = system_error(ECONNREFUSED);

class ClientRetry : public testing::TestWithParam<Backend> {
 protected:
  TcpClient& make(TcpClientOptions options) {
    client = std::make_unique<TcpClient>(world.loop, std::move(options));
    diary.keep(*client);
    return *client;
  }
  void start(TcpClientOptions options) {
    descriptors = World::open_descriptors();
    const Result<void> started = make(std::move(options)).start();
    ASSERT_TRUE(started.has_value()) << started.error().message();
  }
  bool told(const std::string& event, std::size_t times = 1) {
    return world.run_until([&] { return diary.count(event) >= times; });
  }
  bool reaches(ClientState state) {
    return world.run_until([&] { return client->state() == state; });
  }
  void expect_silence() {
    const std::size_t events = diary.events.size();
    const std::size_t attempts = sockets.count("connect");
    for (int i = 0; i < 4; ++i)
      pass(world, hours(1));
    EXPECT_EQ(diary.events.size(), events) << "behind the end: " << diary.events.back();
    EXPECT_EQ(sockets.count("connect"), attempts) << "an attempt behind the end";
  }
  void expect_no_descriptor_lost(std::size_t more = 0) {
    EXPECT_EQ(World::open_descriptors(), descriptors + more);
  }
  /// The client connects, and its peer leaves.
  void one_short_connection(Port& port) {
    const std::size_t closes = diary.count("close");
    ASSERT_TRUE(world.run_until([&] { return diary.live != nullptr; }));
    static_cast<void>(port.accept());
    ASSERT_TRUE(told("close", closes + 1));
    world.turn(2);
  }

  SocketTap sockets;
  World world{GetParam(), {}, sockets};
  std::size_t descriptors = 0;  // open when the client started
  Diary diary;
  std::unique_ptr<TcpClient> client;
};

/// Waits for an hour at most before each further attempt.
TcpClientOptions patient(std::string address) {
  return {.connect_to = std::move(address),
          .attempts_max = 3,
          .retry_delay_min = hours(1),
          .retry_delay_max = hours(1),
          .stable_after = hours(10),
          .reconnect = true};
}

/// Tries again at once.
TcpClientOptions hasty(std::string address) {
  return {.connect_to = std::move(address),
          .attempts_max = 3,
          .retry_delay_min = Duration::zero(),
          .retry_delay_max = Duration::zero(),
          .stable_after = hours(10),
          .reconnect = true};
}

// -- The pause before a further attempt -----------------------------------------------------------

TEST_P(ClientRetry, TheNextAttemptComesWhenItWasSaidToAndNotBefore) {
  const Port port;
  TcpClientOptions options = patient(port.text());
  options.attempts_max = 20;
  start(options);
  for (std::size_t attempt = 1; attempt < 20; ++attempt) {
    ASSERT_TRUE(told("failed", attempt));
    ASSERT_TRUE(diary.failures.back().retry_in.has_value());
    const Duration pause = *diary.failures.back().retry_in;
    if (pause < seconds(120)) {  // too short to tell: the test itself takes time
      pass(world, pause);
      continue;
    }
    EXPECT_EQ(client->state(), ClientState::waiting);
    pass(world, pause - seconds(60));
    EXPECT_EQ(sockets.count("connect"), attempt) << "too early";
    pass(world, seconds(60));
  }
  ASSERT_TRUE(told("failed", 20));
  EXPECT_FALSE(diary.failures.back().retry_in.has_value());
}

// N8: whatever the dice say, the pause is between zero and the bound for its number.
TEST_P(ClientRetry, ThePauseIsNeverBeyondItsBound) {
  const std::string missing = "unix:" + unused_unix_path();
  const Duration longest = Duration::max();
  const struct {
    Duration min;
    Duration max;
  } cases[] = {
      {milliseconds(100), seconds(5)},
      {seconds(5), milliseconds(100)},
      {Duration::zero(), seconds(5)},
      {Duration::zero(), Duration::zero()},
      {nanoseconds(1), longest},
      {hours(1), longest},
      {longest, longest},
      {longest, hours(1)},
      {seconds(-1), seconds(5)},
      {milliseconds(100), seconds(-1)},
  };
  const std::uint64_t dice[] = {0,
                                1,
                                UINT64_MAX,
                                UINT64_MAX / 2,
                                UINT64_MAX / 2 + 1,
                                static_cast<std::uint64_t>(Duration(seconds(5)).count()),
                                static_cast<std::uint64_t>(Duration(milliseconds(100)).count())};
  for (const auto& [min, max] : cases) {
    for (const std::uint64_t number : dice) {
      SCOPED_TRACE(testing::Message()
                   << min.count() << " to " << max.count() << " ns, dice " << number);
      sockets.dice = number;
      diary = Diary();
      TcpClientOptions options = patient(missing);
      options.attempts_max = 80;
      options.retry_delay_min = min;
      options.retry_delay_max = max;
      start(options);
      // min x 2^(n-1), as long as that is below max.
      Duration bound = std::clamp(min, Duration::zero(), std::max(max, Duration::zero()));
      for (std::size_t attempt = 1; attempt <= 80; ++attempt) {
        ASSERT_TRUE(told("failed", attempt));
        if (attempt == 80) break;
        const Duration pause = diary.failures.back().retry_in.value_or(seconds(-1));
        ASSERT_GE(pause, Duration::zero());
        ASSERT_LE(pause, bound) << "before attempt " << attempt + 1;
        if (pause > hours(24)) break;  // the clock of the test ends too
        bound = bound > max - bound ? std::max(max, Duration::zero()) : bound * 2;
        world.kernel.advance(pause);
      }
      client.reset();
      world.turn(3);
    }
  }
}

TEST_P(ClientRetry, WithoutRandomNumbersItStillRetries) {
  const Port port;
  const auto rule = world.kernel.inject({.call = Call::entropy, .every = 1, .error = ENOSYS});
  TcpClientOptions options = hasty(port.text());
  options.retry_delay_min = seconds(10);
  options.retry_delay_max = seconds(20);
  start(options);
  ASSERT_TRUE(told("failed"));
  EXPECT_LE(*diary.failures[0].retry_in, seconds(10));
  pass(world, seconds(10));
  ASSERT_TRUE(told("failed", 2));
  EXPECT_LE(*diary.failures[1].retry_in, seconds(20));
  EXPECT_EQ(world.kernel.fired(rule), 2u);
}

TEST_P(ClientRetry, WithoutALimitOfAttemptsItNeverGivesUp) {
  TcpClientOptions options = hasty("unix:" + unused_unix_path());
  options.attempts_max = 0;
  options.retry_delay_min = nanoseconds(1);
  options.retry_delay_max = nanoseconds(5);
  start(options);
  ASSERT_TRUE(told("failed", 300));
  for (std::size_t i = 0; i < 300; ++i) {
    ASSERT_TRUE(diary.failures[i].retry_in.has_value());
    EXPECT_EQ(diary.failures[i].attempt, i + 1);
  }
  client.reset();
  world.turn(3);
  expect_no_descriptor_lost();
}

// N8
TEST_P(ClientRetry, ManyClientsThatLoseOneServerComeBackSpreadOut) {
  constexpr std::size_t kClients = 1000;
  constexpr Duration kMin = seconds(100);
  constexpr std::size_t kAttempts = 4;
  constexpr std::size_t kBuckets = 10;
  if (linux_kernel().descriptor_limit() < 3 * kClients) GTEST_SKIP() << "needs 3,000 descriptors";
  const std::size_t before = World::open_descriptors();
  auto server =
      std::make_unique<TcpServer>(world.loop, TcpServerOptions{.max_connections = kClients});
  ASSERT_TRUE(server->start().has_value());

  struct Caller {
    std::unique_ptr<TcpClient> client;
    std::size_t connects = 0;
    std::size_t closes = 0;
    TimePoint told_at{};
    std::vector<ConnectFailure> failures;
  };
  std::vector<Caller> callers(kClients);
  std::size_t early = 0;
  for (Caller& caller : callers) {
    caller.client = std::make_unique<TcpClient>(
        world.loop, TcpClientOptions{.connect_to = server->address().to_string(),
                                     .connect_timeout = Duration::zero(),
                                     .attempts_max = kAttempts,
                                     .retry_delay_min = kMin,
                                     .retry_delay_max = hours(1),
                                     .stable_after = seconds(10),
                                     .reconnect = true});
    caller.client->on_connect([&caller](TcpConnection&) { ++caller.connects; });
    caller.client->on_close([&caller](TcpConnection&, const CloseReport&) { ++caller.closes; });
    caller.client->on_connect_failed([&, this](const ConnectFailure& failure) {
      if (!caller.failures.empty()) {
        const TimePoint due = caller.told_at + caller.failures.back().retry_in.value();
        early += world.loop.read_clock() < due ? 1u : 0u;
      }
      caller.told_at = world.loop.now();
      caller.failures.push_back(failure);
    });
    ASSERT_TRUE(caller.client->start().has_value());
  }
  const auto all = [&](auto condition) {
    return world.run_until([&] { return std::ranges::all_of(callers, condition); });
  };
  ASSERT_TRUE(all([](const Caller& caller) { return caller.connects == 1; }));
  pass(world, seconds(11));  // all are stable
  const std::size_t attempts_before = sockets.count("connect");
  server.reset();
  ASSERT_TRUE(all([](const Caller& caller) { return caller.closes == 1; }));
  world.settle();

  // The first comes back within the shortest bound; who is due is served before time goes on.
  std::array<std::size_t, kBuckets> first{};
  for (std::size_t& bucket : first) {
    const std::size_t attempts = sockets.count("connect");
    std::size_t came = 0;
    for (const Caller& caller : callers)
      came += caller.failures.empty() ? 0u : 1u;
    world.kernel.advance(kMin / kBuckets);
    world.settle();
    for (const Caller& caller : callers)
      bucket += caller.failures.empty() ? 0u : 1u;
    bucket -= came;
    EXPECT_LE(sockets.count("connect") - attempts, kClients / 2) << "a thundering herd";
  }
  pass(world, seconds(1));
  world.settle();
  EXPECT_TRUE(std::ranges::all_of(callers, [](const Caller& caller) {
    return !caller.failures.empty();
  })) << "beyond the bound of its first pause";
  for (const std::size_t bucket : first) {
    EXPECT_GT(bucket, kClients / kBuckets / 2);
    EXPECT_LT(bucket, kClients / kBuckets * 2);
  }
  ASSERT_TRUE(world.run_until([&] {
    world.kernel.advance(seconds(50));
    world.settle();
    return std::ranges::all_of(
        callers, [](const Caller& caller) { return caller.client->state() == ClientState::idle; });
  }));

  std::array<std::size_t, kBuckets> spread{};
  for (const Caller& caller : callers) {
    ASSERT_EQ(caller.failures.size(), kAttempts);
    Duration bound = kMin;
    for (std::size_t i = 0; i < kAttempts; ++i, bound *= 2) {
      const ConnectFailure& failure = caller.failures[i];
      ASSERT_EQ(failure.error, kRefused);
      ASSERT_EQ(failure.attempt, i + 1);
      ASSERT_EQ(failure.retry_in.has_value(), i + 1 < kAttempts);
      if (!failure.retry_in) continue;
      ASSERT_GE(*failure.retry_in, Duration::zero());
      ASSERT_LE(*failure.retry_in, bound);
      const auto share =
          static_cast<std::size_t>(*failure.retry_in / (bound / kBuckets + nanoseconds(1)));
      ++spread[std::min(share, kBuckets - 1)];
    }
  }
  // Even: three pauses each; a third off is more than six standard deviations.
  for (const std::size_t bucket : spread) {
    EXPECT_GT(bucket, 200u);
    EXPECT_LT(bucket, 400u);
  }
  EXPECT_EQ(early, 0u);
  EXPECT_EQ(sockets.count("connect") - attempts_before, kClients * kAttempts);
  callers.clear();
  world.turn(5);
  EXPECT_EQ(World::open_descriptors(), before);
}

// -- Connecting again -----------------------------------------------------------------------------

TEST_P(ClientRetry, WhoeverEndsTheConnectionItConnectsAgain) {
  Port port;
  port.open();
  TcpClientOptions options = hasty(port.text());
  options.attempts_max = 0;
  options.limits.idle_timeout = seconds(1000);
  start(options);
  UniqueFd detached;
  const std::function<void(UniqueFd&)> ends[] = {
      [&](UniqueFd& server) { server.reset(); },
      [&](UniqueFd& server) {
        reset_on_close(linux_kernel(), server.get());
        server.reset();
      },
      [&](UniqueFd& server) {
        diary.live->close();
        linux_kernel().shutdown(server.get(), SHUT_WR);
      },
      [&](UniqueFd&) { diary.live->abort(); },
      [&](UniqueFd&) { pass(world, seconds(1001)); },
      [&](UniqueFd&) {
        diary.live->detach([&](UniqueFd fd, const std::string&) { detached = std::move(fd); });
      },
      [&](UniqueFd&) { EXPECT_EQ(client->handle().abort(), PostResult::posted); },
  };
  const CloseReason reasons[] = {CloseReason::eof,   CloseReason::reset,   CloseReason::local,
                                 CloseReason::local, CloseReason::timeout, CloseReason::detached,
                                 CloseReason::local};
  for (std::size_t i = 0; i < std::size(ends); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(told("connect", i + 1));
    EXPECT_EQ(client->state(), ClientState::connected);
    EXPECT_EQ(client->connection(), diary.live);
    UniqueFd server = port.accept();
    ends[i](server);
    ASSERT_TRUE(told("close", i + 1));
    EXPECT_EQ(to_string(diary.reports[i].reason), to_string(reasons[i]));
  }
  ASSERT_TRUE(told("connect", std::size(ends) + 1));
  EXPECT_TRUE(detached);
  EXPECT_TRUE(diary.failures.empty());
  EXPECT_EQ(client->statistics().connections, std::size(ends) + 1);
  EXPECT_EQ(client->statistics().attempts, std::size(ends) + 1);
}

TEST_P(ClientRetry, WithoutReconnectOneConnectionIsAll) {
  Port port;
  port.open();
  TcpClientOptions options = hasty(port.text());
  options.reconnect = false;
  start(options);
  one_short_connection(port);
  EXPECT_EQ(client->state(), ClientState::idle);
  EXPECT_EQ(client->connection(), nullptr);
  EXPECT_FALSE(client->handle());
  expect_silence();
  expect_no_descriptor_lost();
  // It may be started again, and counts anew.
  ASSERT_TRUE(client->start().has_value());
  EXPECT_EQ(error_of(client->start()), make_error_code(Errc::already_started));
  one_short_connection(port);
  EXPECT_EQ(client->state(), ClientState::idle);
  EXPECT_EQ(client->statistics().connections, 2u);
  EXPECT_TRUE(diary.failures.empty());
}

// N11
TEST_P(ClientRetry, AServerThatSpeaksAndLeavesIsHeardEachTime) {
  Port port;
  port.open();
  TcpClientOptions options = hasty(port.text());
  options.attempts_max = 0;
  start(options);
  std::string said;
  for (std::size_t i = 1; i <= 10; ++i) {
    const std::string text = "greeting number " + std::to_string(i) + ".";
    {
      ASSERT_TRUE(world.run_until([&] { return port.someone_waits(); }));
      const UniqueFd server = port.accept();
      send_text(linux_kernel(), server.get(), text);
    }
    said += text;
    ASSERT_TRUE(told("close", i));
    EXPECT_EQ(diary.received, said);
    EXPECT_EQ(diary.reports.back().reason, CloseReason::eof);
  }
  EXPECT_TRUE(diary.failures.empty());
}

TEST_P(ClientRetry, ConnectionsThatDoNotLastUseUpTheAttempts) {
  Port port;
  port.open();
  start(hasty(port.text()));
  for (int i = 0; i < 3; ++i)
    one_short_connection(port);
  ASSERT_TRUE(reaches(ClientState::idle));
  EXPECT_EQ(diary.count("connect"), 3u);
  ASSERT_EQ(diary.failures.size(), 1u);
  EXPECT_EQ(diary.failures[0].error, make_error_code(Errc::unstable_connection));
  EXPECT_EQ(diary.failures[0].attempt, 3u);
  EXPECT_FALSE(diary.failures[0].retry_in.has_value());
  EXPECT_EQ(diary.events.back(), "failed") << "behind its on_close";
  expect_silence();
  expect_no_descriptor_lost();
  // It has given up, and may be started again: three more.
  ASSERT_TRUE(client->start().has_value());
  for (int i = 0; i < 3; ++i)
    one_short_connection(port);
  ASSERT_TRUE(told("failed", 2));
  EXPECT_EQ(diary.failures[1].attempt, 3u);
  expect_silence();
}

TEST_P(ClientRetry, AConnectionThatDoesNotLastCountsBesideFailures) {
  std::optional<Port> port(std::in_place);
  port->open();
  TcpClientOptions options = hasty(port->text());
  options.attempts_max = 4;
  start(options);
  one_short_connection(*port);
  port.reset();  // refuses from now on
  ASSERT_TRUE(reaches(ClientState::idle));
  EXPECT_EQ(client->statistics().attempts, 4u);
  std::size_t attempt = diary.count("connect") + 1;
  for (const ConnectFailure& failure : diary.failures)
    EXPECT_EQ(failure.attempt, attempt++);
  EXPECT_FALSE(diary.failures.back().retry_in.has_value());
}

// One that lasts at each start: the count goes on behind those that did not last.
TEST_P(ClientRetry, ConnectionsThatDoNotLastKeepThePauseGrowing) {
  constexpr std::size_t kRuns = 24;
  constexpr Duration kMin = seconds(100);
  std::size_t beyond_the_first_bound = 0;
  for (std::size_t run = 0; run < kRuns; ++run) {
    std::optional<Port> port(std::in_place);
    port->open();
    diary = Diary();
    TcpClientOptions options = hasty(port->text());
    options.attempts_max = 0;
    options.retry_delay_min = kMin;
    options.retry_delay_max = hours(10);
    start(options);
    for (int i = 0; i < 3; ++i) {
      one_short_connection(*port);
      EXPECT_EQ(client->state(), ClientState::waiting);
      if (i < 2) pass(world, kMin * (1 << i));  // the bound of the pause
    }
    port.reset();
    pass(world, kMin * 4);
    ASSERT_TRUE(told("failed"));
    EXPECT_EQ(diary.failures[0].attempt, 4u);
    ASSERT_LE(*diary.failures[0].retry_in, kMin * 8);
    beyond_the_first_bound += *diary.failures[0].retry_in > kMin ? 1u : 0u;
  }
  EXPECT_GT(beyond_the_first_bound, 0u) << "by chance once in 8^24";
}

TEST_P(ClientRetry, AConnectionThatLastsBeginsTheCountAnew) {
  std::optional<Port> port(std::in_place);
  const std::string address = port->text();
  TcpClientOptions options = patient(address);
  options.attempts_max = 4;
  options.stable_after = hours(10);
  start(options);
  ASSERT_TRUE(told("failed"));
  pass(world, hours(1));
  ASSERT_TRUE(told("failed", 2));
  EXPECT_EQ(diary.failures[1].attempt, 2u);
  port->open();
  pass(world, hours(1));
  ASSERT_TRUE(told("connect"));
  {
    const UniqueFd server = port->accept();
    client->connection()->hold();  // nor its own idle limit shall end it
    for (int i = 0; i < 10; ++i)
      pass(world, hours(1));
    EXPECT_EQ(diary.count("close"), 0u);
    client->connection()->release();
  }
  port.reset();
  ASSERT_TRUE(told("close"));
  ASSERT_TRUE(reaches(ClientState::waiting));
  for (std::size_t attempt = 1; attempt <= 4; ++attempt) {
    pass(world, hours(1));
    ASSERT_TRUE(told("failed", 2 + attempt));
    EXPECT_EQ(diary.failures.back().attempt, attempt);
  }
  EXPECT_FALSE(diary.failures.back().retry_in.has_value());
  EXPECT_EQ(client->state(), ClientState::idle);
}

TEST_P(ClientRetry, AConnectionThatLastedALittleLessDoesNot) {
  Port port;
  port.open();
  TcpClientOptions options = hasty(port.text());
  options.attempts_max = 1;
  options.limits.idle_timeout = Duration::zero();
  start(options);
  ASSERT_TRUE(told("connect"));
  {
    const UniqueFd server = port.accept();
    pass(world, hours(9));
  }
  ASSERT_TRUE(told("failed"));
  EXPECT_EQ(diary.failures[0].error, make_error_code(Errc::unstable_connection));
  expect_silence();
}

// N10
TEST_P(ClientRetry, AServerRestartsOverTimeWaitAndItsClientsComeBack) {
  constexpr int kRestarts = 100;
  constexpr std::size_t kClients = 3;
  std::string address = "127.0.0.1:0";
  std::vector<std::unique_ptr<TcpClient>> clients;
  std::array<Diary, kClients> diaries;
  std::unique_ptr<TcpServer> server;
  int in_time_wait = 0;
  for (int restart = 0; restart < kRestarts; ++restart) {
    SCOPED_TRACE(restart);
    server = std::make_unique<TcpServer>(world.loop, TcpServerOptions{.listen = address});
    std::size_t served = 0;
    std::size_t ended = 0;
    server->on_connect([&](TcpConnection& peer) {
      ++served;
      peer.send("bye");
      peer.close();  // the server's end goes to TIME_WAIT
    });
    server->on_close([&](TcpConnection&, const CloseReport&) { ++ended; });
    const Result<void> started = server->start();
    ASSERT_TRUE(started.has_value()) << started.error().message();
    if (clients.empty()) {
      address = server->address().to_string();
      for (Diary& its : diaries) {
        clients.push_back(
            std::make_unique<TcpClient>(world.loop, TcpClientOptions{.connect_to = address,
                                                                     .attempts_max = 0,
                                                                     .retry_delay_min = seconds(1),
                                                                     .retry_delay_max = seconds(5),
                                                                     .reconnect = true}));
        its.keep(*clients.back());
        ASSERT_TRUE(clients.back()->start().has_value());
      }
    }
    ASSERT_TRUE(world.run_until([&] {
      world.kernel.advance(seconds(1));
      world.settle();
      return served >= kClients && ended == served;
    }));
    server.reset();
    const SocketAddress same = SocketAddress::parse(address).value();
    const UniqueFd probe = tcp_socket(linux_kernel());
    in_time_wait += linux_kernel().bind(probe.get(), same.data(), same.size()) == -EADDRINUSE;
  }
  EXPECT_EQ(in_time_wait, kRestarts) << "nothing was in TIME_WAIT";
  for (const Diary& its : diaries) {
    EXPECT_GE(its.count("connect"), std::size_t{kRestarts} / 2);
    EXPECT_EQ(its.count("connect"), its.reports.size());
    for (const ConnectFailure& failure : its.failures)
      EXPECT_EQ(failure.error, kRefused);
  }
}

// -- start, state, stop ---------------------------------------------------------------------------

TEST_P(ClientRetry, StartingTwiceIsAnErrorAndChangesNothing) {
  std::optional<Port> port(std::in_place);
  start(patient(port->text()));
  const std::error_code already = make_error_code(Errc::already_started);
  EXPECT_EQ(client->state(), ClientState::connecting);
  EXPECT_EQ(error_of(client->start()), already);
  ASSERT_TRUE(told("failed"));
  EXPECT_EQ(client->state(), ClientState::waiting);
  EXPECT_EQ(error_of(client->start()), already);
  port->open();
  pass(world, hours(1));
  ASSERT_TRUE(told("connect"));
  EXPECT_EQ(client->state(), ClientState::connected);
  EXPECT_EQ(error_of(client->start()), already);
  EXPECT_EQ(client->statistics().attempts, 2u);
  EXPECT_EQ(sockets.count("connect"), 2u);
}

TEST_P(ClientRetry, ItMayBeStartedAgainAfterGivingUpInTheCallbackThatSaysSo) {
  std::optional<Port> port(std::in_place);
  std::size_t starts = 1;
  diary.then = [&](const std::string& event, TcpConnection*) {
    if (event != "failed") return;
    const bool gave_up = !diary.failures.back().retry_in;
    if (gave_up && ++starts == 3) port->open();
    const Result<void> answer = client->start();
    if (!gave_up) {
      EXPECT_EQ(error_of(answer), make_error_code(Errc::already_started));
    } else {
      EXPECT_TRUE(answer.has_value());
    }
  };
  start(hasty(port->text()));
  ASSERT_TRUE(told("connect"));
  ASSERT_EQ(diary.failures.size(), 6u);
  for (std::size_t i = 0; i < 6; ++i)
    EXPECT_EQ(diary.failures[i].attempt, i % 3 + 1);
  EXPECT_EQ(client->statistics().failures, 6u);
}

TEST_P(ClientRetry, EachCallbackSeesWhatTheClientIsDoing) {
  std::optional<Port> port(std::in_place);
  std::size_t checked = 0;
  diary.then = [&](const std::string& event, TcpConnection* peer) {
    ++checked;
    if (event == "failed") {
      EXPECT_EQ(client->state(), ClientState::waiting);
      EXPECT_EQ(client->connection(), nullptr);
      EXPECT_FALSE(client->handle());
      EXPECT_EQ(client->statistics().failures, diary.failures.size());
    }
    if (peer != nullptr) {
      EXPECT_EQ(client->state(), ClientState::connected);
      EXPECT_EQ(client->connection(), peer);
      EXPECT_EQ(client->handle(), peer->handle());
      EXPECT_EQ(client->statistics().connections, 1u) << "in " << event;
      EXPECT_EQ(&peer->loop(), &client->loop());
    }
  };
  start(patient(port->text()));
  ASSERT_TRUE(told("failed"));
  port->open();
  pass(world, hours(1));
  ASSERT_TRUE(told("connect"));
  {
    const UniqueFd server = port->accept();
    send_text(linux_kernel(), server.get(), "x");
  }
  ASSERT_TRUE(told("close"));
  EXPECT_GE(checked, 4u);
}

TEST_P(ClientRetry, AStopWhileWaitingIsFollowedByNothing) {
  const Port port;
  start(patient(port.text()));
  ASSERT_TRUE(told("failed"));
  client->stop();
  world.turn(2);
  EXPECT_EQ(client->state(), ClientState::stopped);
  expect_silence();
  EXPECT_EQ(diary.events.size(), 1u);
  EXPECT_EQ(error_of(client->start()), make_error_code(Errc::stopped));
  expect_no_descriptor_lost();
}

TEST_P(ClientRetry, AStopWhileConnectedFlushesAndConnectsNoMore) {
  Port port;
  port.open();
  start(hasty(port.text()));
  ASSERT_TRUE(told("connect"));
  const std::string payload = pattern(std::size_t{4} * 1024 * 1024);
  std::string arrived;
  {
    const UniqueFd server = port.accept();
    diary.live->send(payload);
    client->stop();
    client->stop();
    world.turn(2);
    EXPECT_EQ(client->state(), ClientState::stopped);
    ssize_t end = -EAGAIN;
    ASSERT_TRUE(world.run_until([&] {
      Received some = receive(linux_kernel(), server.get(), std::size_t{256} * 1024);
      arrived += some.text;
      end = some.result;
      return end <= 0 && end != -EAGAIN;
    }));
    EXPECT_EQ(end, 0);
  }
  EXPECT_EQ(first_difference(arrived, payload), std::string_view::npos);
  ASSERT_TRUE(told("close"));
  EXPECT_EQ(diary.reports[0].reason, CloseReason::local);
  EXPECT_EQ(diary.reports[0].bytes_discarded, 0u);
  expect_silence();
  EXPECT_EQ(diary.count("close"), 1u);
  EXPECT_EQ(client->connection(), nullptr);
  EXPECT_EQ(error_of(client->start()), make_error_code(Errc::stopped));
  expect_no_descriptor_lost();
}

TEST_P(ClientRetry, DestroyedWhileConnectedItResetsAndReportsFirst) {
  Port port;
  port.open();
  start(hasty(port.text()));
  ASSERT_TRUE(told("connect"));
  const UniqueFd server = port.accept();
  client.reset();
  EXPECT_EQ(diary.count("close"), 1u) << "on_close comes before the destructor returns";
  EXPECT_EQ(diary.reports.at(0).reason, CloseReason::local);
  EXPECT_EQ(receive(linux_kernel(), server.get()).result, -ECONNRESET);
  expect_silence();
  expect_no_descriptor_lost(1);
  EXPECT_EQ(diary.token.use_count(), 1);
}

TEST_P(ClientRetry, DestroyedWhileAStopIsUnderWayItResets) {
  Port port;
  port.open();
  start(hasty(port.text()));
  ASSERT_TRUE(told("connect"));
  const UniqueFd server = port.accept();
  diary.live->send(std::string(std::size_t{8} * 1024 * 1024, 'x'));
  client->stop();
  world.turn(4);
  EXPECT_EQ(diary.count("close"), 0u);
  client.reset();
  EXPECT_EQ(diary.count("close"), 1u);
  expect_silence();
  expect_no_descriptor_lost(1);
}

TEST_P(ClientRetry, AnExceptionInOnConnectFailedIsCountedAndChangesNothing) {
  const Port port;
  diary.then = [](const std::string&, TcpConnection*) { throw std::runtime_error("thrown"); };
  start(hasty(port.text()));
  ASSERT_TRUE(told("failed", 3));
  EXPECT_EQ(world.loop.statistics().exceptions, 3u);
  EXPECT_EQ(client->state(), ClientState::idle);
  expect_silence();
  expect_no_descriptor_lost();
}

TEST_P(ClientRetry, ANewClientMayTakeThePlaceOfOneThatFailed) {
  const Port port;
  std::size_t made = 0;
  std::function<void()> replace = [&] {
    ++made;
    client = std::make_unique<TcpClient>(
        world.loop, TcpClientOptions{.connect_to = port.text(), .attempts_max = 1});
    client->on_connect_failed([&](const ConnectFailure& failure) {
      EXPECT_FALSE(failure.retry_in.has_value());
      if (made < 20) replace();
    });
    EXPECT_TRUE(client->start().has_value());
  };
  const std::size_t before = World::open_descriptors();
  replace();
  ASSERT_TRUE(world.run_until([&] { return made == 20 && client->state() == ClientState::idle; }));
  client.reset();
  world.turn(3);
  EXPECT_EQ(World::open_descriptors(), before);
}

PENSTOCK_ON_EVERY_BACKEND(ClientRetry);

// -- Other threads --------------------------------------------------------------------------------

/// What a client in another thread was told.
struct Told {
  std::atomic<int> connects{0};
  std::atomic<int> closes{0};
  std::atomic<int> failures{0};
  std::atomic<bool> over{false};  // nothing may come any more
  std::atomic<int> late{0};

  void keep(TcpClient& client) {
    client.on_connect([this](TcpConnection&) { count(connects); });
    client.on_message([this](TcpConnection&, InputBuffer& in) {
      in.consume(in.size());
      late += over ? 1 : 0;
    });
    client.on_close([this](TcpConnection&, const CloseReport&) { count(closes); });
    client.on_connect_failed([this](const ConnectFailure&) { count(failures); });
  }

 private:
  void count(std::atomic<int>& counter) {
    late += over ? 1 : 0;
    ++counter;
  }
};

class ClientThreads : public testing::TestWithParam<Backend> {
 protected:
  enum class Stage { fresh, connecting, waiting, connected };
  static constexpr std::array kStages = {Stage::fresh, Stage::connecting, Stage::waiting,
                                         Stage::connected};

  /// Brings the client to a stage, on the loop's thread.
  void bring_to(Stage stage) {
    TcpClientOptions options{.connect_to = stage == Stage::waiting     ? refusing.text()
                                           : stage == Stage::connected ? open.text()
                                                                       : full.text(),
                             .attempts_max = 0,
                             .retry_delay_min = hours(1),
                             .retry_delay_max = hours(1),
                             .reconnect = true};
    client = std::make_unique<TcpClient>(thread->loop, options);
    told.keep(*client);
    std::latch started(1);
    thread->loop.queue_in_loop([&] {
      EXPECT_TRUE(client->start().has_value());
      started.count_down();
    });
    started.wait();
    if (stage == Stage::waiting) {
      ASSERT_TRUE(eventually([&] { return told.failures == 1; }));
    }
    if (stage == Stage::connected) {
      server = open.accept();
      ASSERT_TRUE(eventually([&] { return told.connects == 1; }));
    }
    if (stage == Stage::connecting) pass_a_turn();
  }
  void pass_a_turn() {
    std::latch turned(1);
    thread->loop.queue_in_loop([&] { turned.count_down(); });
    turned.wait();
  }
  ClientState state() {
    std::latch asked(1);
    ClientState answer{};
    thread->loop.queue_in_loop([&] {
      answer = client->state();
      asked.count_down();
    });
    asked.wait();
    return answer;
  }

  Port refusing;
  Port open;
  FullPort full;
  UniqueFd server;
  Told told;
  std::unique_ptr<LoopThread> thread;
  std::unique_ptr<TcpClient> client;
};

// XT4, XT6
TEST_P(ClientThreads, DestroyedFromAnotherThreadItWaitsForItsOnCloseAndTellsNothingMore) {
  open.open();
  for (int round = 0; round < 5; ++round) {
    for (const Stage stage : kStages) {
      SCOPED_TRACE(testing::Message() << "stage " << static_cast<int>(stage));
      const std::size_t before = World::open_descriptors();
      told.connects = told.closes = told.failures = 0;
      thread = std::make_unique<LoopThread>(EventLoopOptions{.backend = GetParam()});
      bring_to(stage);
      client.reset();
      EXPECT_EQ(told.closes, told.connects);
      told.over = true;
      pass_a_turn();
      pass_a_turn();
      server.reset();
      thread.reset();
      EXPECT_EQ(told.late, 0);
      told.over = false;
      EXPECT_EQ(World::open_descriptors(), before);
    }
  }
}

// C11, XT4
TEST_P(ClientThreads, StoppedFromAnotherThreadItEndsForGood) {
  open.open();
  for (int round = 0; round < 5; ++round) {
    for (const Stage stage : kStages) {
      SCOPED_TRACE(testing::Message() << "stage " << static_cast<int>(stage));
      const std::size_t before = World::open_descriptors();
      told.connects = told.closes = told.failures = 0;
      thread = std::make_unique<LoopThread>(EventLoopOptions{.backend = GetParam()});
      bring_to(stage);
      std::thread other([&] { client->stop(); });
      client->stop();
      other.join();
      server.reset();
      EXPECT_TRUE(eventually([&] { return told.closes == told.connects; }));
      EXPECT_EQ(state(), ClientState::stopped);
      told.over = true;
      pass_a_turn();
      client.reset();
      thread.reset();
      EXPECT_EQ(told.late, 0);
      told.over = false;
      EXPECT_EQ(World::open_descriptors(), before);
    }
  }
}

// The attempt may end just while it is stopped or destroyed.
TEST_P(ClientThreads, StopsAndDestructionsRaceWithTheOutcome) {
  open.open();
  thread = std::make_unique<LoopThread>(EventLoopOptions{.backend = GetParam()});
  const std::size_t before = World::open_descriptors();
  for (int round = 0; round < 100; ++round) {
    told.connects = told.closes = told.failures = 0;
    TcpClientOptions options{.connect_to = round % 3 == 0 ? refusing.text() : open.text(),
                             .attempts_max = 0,
                             .retry_delay_min = nanoseconds(1),
                             .retry_delay_max = std::chrono::microseconds(100),
                             .reconnect = true};
    client = std::make_unique<TcpClient>(thread->loop, options);
    told.keep(*client);
    std::latch started(1);
    thread->loop.queue_in_loop([&] {
      EXPECT_TRUE(client->start().has_value());
      started.count_down();
    });
    started.wait();
    for (int i = 0; i < round % 7; ++i)
      std::this_thread::yield();
    if (round % 2 == 0) client->stop();
    client.reset();
    EXPECT_EQ(told.closes, told.connects);
    told.over = true;
    pass_a_turn();
    EXPECT_EQ(told.late, 0);
    told.over = false;
    while (open.someone_waits())
      static_cast<void>(open.accept());
  }
  pass_a_turn();
  EXPECT_TRUE(eventually([&] { return World::open_descriptors() == before; }));
}

// What was asked of the loop is done by whoever destroys the client, if the loop stops meanwhile.
TEST_P(ClientThreads, DestroyedWhileItsLoopStopsItDoesNotHang) {
  open.open();
  for (int round = 0; round < 20; ++round) {
    const std::size_t before = World::open_descriptors();
    told.connects = told.closes = told.failures = 0;
    thread = std::make_unique<LoopThread>(EventLoopOptions{.backend = GetParam()});
    bring_to(round % 2 == 0 ? Stage::connected : Stage::connecting);
    thread->loop.stop();
    client.reset();
    EXPECT_EQ(told.closes, told.connects);
    server.reset();
    thread.reset();
    EXPECT_EQ(World::open_descriptors(), before);
  }
}

// The handle is for other threads; it outlives what it names.
TEST_P(ClientThreads, OtherThreadsSendThroughTheHandle) {
  open.open();
  thread = std::make_unique<LoopThread>(EventLoopOptions{.backend = GetParam()});
  bring_to(Stage::connected);
  ConnectionHandle handle;
  std::latch asked(1);
  thread->loop.queue_in_loop([&] {
    handle = client->handle();
    asked.count_down();
  });
  asked.wait();
  ASSERT_TRUE(handle);
  EXPECT_EQ(handle.send("from afar"), PostResult::posted);
  EXPECT_NE(wait_for(linux_kernel(), server.get(), POLLIN), 0);
  EXPECT_EQ(receive(linux_kernel(), server.get()).text, "from afar");
  client.reset();
  EXPECT_EQ(handle.send("too late"), PostResult::posted);
  pass_a_turn();
  thread.reset();
  EXPECT_EQ(handle.send("far too late"), PostResult::closed);
}

PENSTOCK_ON_EVERY_BACKEND(ClientThreads);

}  // namespace
}  // namespace penstock::test

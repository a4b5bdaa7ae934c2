// One connection attempt of a client, and its end (scenarios N1 to N7, N9, N11, C11), on every
// back-end. What a client does between its attempts is in client_retry_test.cpp.

#include "penstock/tcp/client.h"

#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "bytes/failing_allocation.h"
#include "support/connecting.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

const std::error_code kRefused = system_error(ECONNREFUSED);

bool on_epoll(Backend backend) { return backend != Backend::poll; }

class Client : public testing::TestWithParam<Backend> {
 protected:
  /// Retries at once, twice at most: what a test says otherwise comes on top.
  static TcpClientOptions options_for(std::string address) {
    return {.connect_to = std::move(address),
            .attempts_max = 3,
            .retry_delay_min = Duration::zero(),
            .retry_delay_max = Duration::zero()};
  }

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
  /// Nothing more comes, whatever time passes.
  void expect_silence() {
    const std::size_t events = diary.events.size();
    const std::size_t attempts = sockets.count("connect");
    for (int i = 0; i < 4; ++i)
      pass(world, hours(1));
    EXPECT_EQ(diary.events.size(), events) << "behind the end: " << diary.events.back();
    EXPECT_EQ(sockets.count("connect"), attempts) << "an attempt behind the end";
  }
  /// `more`: what the test itself has opened since the start.
  void expect_no_descriptor_lost(std::size_t more = 0) {
    EXPECT_EQ(World::open_descriptors(), descriptors + more);
  }

  /// A raw peer reads, while the loop turns, to its end: 0 or -errno.
  ssize_t receive_to_end_while_turning(int fd) {
    ssize_t result = 0;
    EXPECT_TRUE(world.run_until([&] {
      result = receive(linux_kernel(), fd).result;
      return result <= 0 && result != -EAGAIN;
    }));
    return result;
  }

  SocketTap sockets;
  World world{GetParam(), {}, sockets};
  std::size_t descriptors = 0;  // open when the client started
  Diary diary;
  std::unique_ptr<TcpClient> client;
};

// -- Failures -------------------------------------------------------------------------------------

// N1
TEST_P(Client, AClosedPortFailsOncePerAttemptAndLosesNoDescriptor) {
  const Port port;
  start(options_for(port.text()));
  EXPECT_EQ(client->state(), ClientState::connecting);
  ASSERT_TRUE(told("failed", 3));
  expect_silence();
  EXPECT_EQ(diary.events, (std::vector<std::string>{"failed", "failed", "failed"}));
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(diary.failures[i].error, kRefused);
    EXPECT_EQ(diary.failures[i].attempt, i + 1);
    EXPECT_EQ(diary.failures[i].retry_in.has_value(), i < 2);
  }
  EXPECT_EQ(client->state(), ClientState::idle);
  EXPECT_EQ(client->connection(), nullptr);
  EXPECT_FALSE(client->handle());
  const ClientStatistics statistics = client->statistics();
  EXPECT_EQ(statistics.attempts, 3u);
  EXPECT_EQ(statistics.failures, 3u);
  EXPECT_EQ(statistics.timeouts, 0u);
  EXPECT_EQ(statistics.self_connects, 0u);
  EXPECT_EQ(statistics.connections, 0u);
  EXPECT_EQ(sockets.count("connect"), 3u);
  expect_no_descriptor_lost();
}

// N1: the kernel answers some attempts at once, and even these are told later.
TEST_P(Client, NoOutcomeIsToldBeforeStartReturns) {
  const Listener listener =
      listen_unix(SocketAddress::parse("unix:" + unused_abstract_name()).value());
  const Port closed;
  for (const std::string& address :
       {"unix:" + unused_unix_path(), listener.address.to_string(), closed.text()}) {
    SCOPED_TRACE(address);
    diary.events.clear();
    start(options_for(address));
    EXPECT_TRUE(diary.events.empty());
    EXPECT_EQ(client->state(), ClientState::connecting);
    ASSERT_TRUE(world.run_until([&] { return !diary.events.empty(); }));
    client.reset();
    world.turn(5);
    expect_no_descriptor_lost();
  }
}

// N2
TEST_P(Client, TheErrorOfAnAttemptIsReadOnce) {
  const Port port;
  start(options_for(port.text()));
  ASSERT_TRUE(told("failed", 3));
  world.turn(5);
  EXPECT_EQ(sockets.count("connect"), 3u);
  std::size_t begun = 0;
  for (const SocketCall& call : sockets.calls)
    begun += call.name == "connect" && call.result == -EINPROGRESS ? 1u : 0u;
  EXPECT_EQ(begun, 3u) << "the kernel answered at once: SO_ERROR had nothing to tell";
  EXPECT_EQ(sockets.count_so_error(), 3u);
  for (const ConnectFailure& failure : diary.failures)
    EXPECT_EQ(failure.error, kRefused);
}

// N2: whoever asked SO_ERROR again would be told "no error" (K4).
TEST_P(Client, EveryErrorThatTheKernelTellsLaterIsTheOneTold) {
  for (const int error : {ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, ECONNRESET, ECONNREFUSED,
                          EADDRNOTAVAIL, ENETDOWN, EPROTO}) {
    SCOPED_TRACE(system_error(error).message());
    Port port;
    port.open();
    diary = Diary();
    std::size_t lies = 0;
    sockets.so_error = [&](int) -> std::optional<int> { return ++lies == 1 ? error : 0; };
    start(options_for(port.text()));
    ASSERT_TRUE(told("failed"));
    EXPECT_EQ(lies, 1u);
    EXPECT_EQ(diary.events.front(), "failed") << "connected in spite of its error";
    EXPECT_EQ(diary.failures.front().error, system_error(error));
    EXPECT_TRUE(diary.failures.front().retry_in.has_value());
    EXPECT_EQ(client->statistics().timeouts, error == ETIMEDOUT ? 1u : 0u);
    ASSERT_TRUE(told("connect"));
    EXPECT_EQ(diary.failures.size(), 1u);
    client.reset();
    world.turn(5);
    expect_no_descriptor_lost();
  }
}

// -- N3: self-connect

/// A port of a loopback address that nobody uses.
SocketAddress unused_port(const std::string& host) {
  const SocketAddress any = SocketAddress::parse(host + ":0").value();
  const UniqueFd fd(linux_kernel(),
                    linux_kernel().socket(any.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(linux_kernel().bind(fd.get(), any.data(), any.size()), 0);
  return local_address(linux_kernel(), fd.get());
}

// N3
TEST_P(Client, AnAttemptThatMeetsItselfIsAFailureHoweverTheAddressIsWritten) {
  const struct {
    std::string from_host;
    std::string to_host;
  } cases[] = {
      {"127.77.1.1", "127.77.1.1"},
      {"127.0.0.1", "localhost"},
      {"127.0.0.1", "0.0.0.0"},
      {"127.0.0.1", ""},
      {"0.0.0.0", "127.0.0.1"},
      {"[::1]", "[::1]"},
      {"[::1]", "[::]"},
      {"[::ffff:127.0.0.1]", "[::ffff:127.0.0.1]"},
  };
  for (const auto& [from_host, to_host] : cases) {
    SCOPED_TRACE(from_host + " to " + to_host);
    const std::string port = std::to_string(unused_port(from_host).port());
    diary = Diary();
    TcpClientOptions options = options_for(to_host + ":" + port);
    options.connect_from = from_host + ":" + port;
    start(options);
    ASSERT_TRUE(world.run_until([&] { return diary.events.size() >= 3; }));
    EXPECT_EQ(diary.events, (std::vector<std::string>{"failed", "failed", "failed"}));
    for (const ConnectFailure& failure : diary.failures)
      EXPECT_EQ(failure.error, make_error_code(Errc::self_connected)) << failure.error.message();
    EXPECT_EQ(client->statistics().self_connects, 3u);
    client.reset();
    world.turn(5);
    expect_no_descriptor_lost();
  }
}

// N3: not every connection between equal ports, or equal addresses, is one with itself.
TEST_P(Client, AConnectionFromTheSamePortOfAnotherAddressIsNone) {
  Port port;
  port.open();
  TcpClientOptions options = options_for(port.text());
  options.connect_from = "127.0.0.2:" + std::to_string(port.address().port());
  start(options);
  ASSERT_TRUE(told("connect"));
  const UniqueFd server = port.accept();
  EXPECT_EQ(diary.live->local_address().to_string(), options.connect_from);
}

/// Moves the calling thread into a network of its own, with so many ports to connect from.
bool enter_own_network(const std::string& port_range) {
  if (::unshare(CLONE_NEWNET) != 0) return false;
  const UniqueFd fd(linux_kernel(), ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::string("lo").copy(request.ifr_name, sizeof request.ifr_name - 1);
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  if (::ioctl(fd.get(), SIOCSIFFLAGS, &request) != 0) return false;
  const UniqueFd range(linux_kernel(),
                       ::open("/proc/sys/net/ipv4/ip_local_port_range", O_WRONLY | O_CLOEXEC));
  return range && ::write(range.get(), port_range.data(), port_range.size()) ==
                      static_cast<ssize_t>(port_range.size());
}

// N3 (K15)
TEST_P(Client, OnADeadPortOfTheEphemeralRangeEverySelfConnectIsDetected) {
  constexpr std::uint64_t kWanted = 20;
  constexpr std::size_t kAttemptsMax = 20'000;
  bool entered = false;
  // A thread may have a network of its own: the rest of the process stays where it is.
  std::thread([&] {
    entered = enter_own_network("40000 40099");
    if (!entered) return;
    const std::size_t before = World::open_descriptors();
    {
      World there(GetParam());
      TcpClient caller(there.loop, {.connect_to = "127.0.0.1:40050",
                                    .attempts_max = 0,
                                    .retry_delay_min = Duration::zero(),
                                    .retry_delay_max = Duration::zero()});
      std::size_t connects = 0;
      std::size_t refused = 0;
      std::size_t met_itself = 0;
      std::size_t others = 0;
      caller.on_connect([&](TcpConnection&) { ++connects; });
      caller.on_connect_failed([&](const ConnectFailure& failure) {
        if (failure.error == make_error_code(Errc::self_connected)) {
          ++met_itself;
        } else {
          ++(failure.error == kRefused ? refused : others);
        }
      });
      EXPECT_TRUE(caller.start().has_value());
      while (met_itself < kWanted && connects == 0 && caller.statistics().attempts < kAttemptsMax)
        there.loop.step(milliseconds(5));
      EXPECT_EQ(connects, 0u) << "a connection with itself was taken for one with a server";
      EXPECT_GT(met_itself, 0u) << "none in " << caller.statistics().attempts << " attempts";
      EXPECT_EQ(others, 0u);
      EXPECT_GT(refused, 0u);
      EXPECT_EQ(caller.statistics().self_connects, met_itself);
      EXPECT_LE(World::open_descriptors(), before + 10) << "what met itself is not closed";
    }
    EXPECT_EQ(World::open_descriptors(), before);
  }).join();
  if (!entered) GTEST_SKIP() << "a network namespace of its own needs CAP_SYS_ADMIN (be root)";
}

// -- Limits of time -------------------------------------------------------------------------------

// N4
TEST_P(Client, AnAttemptThatHangsEndsAtTheConnectTimeout) {
  const FullPort port;
  TcpClientOptions options = options_for(port.text());
  options.connect_timeout = seconds(1000);
  options.attempts_max = 2;
  start(options);
  world.settle();
  pass(world, seconds(900));
  EXPECT_TRUE(diary.events.empty());
  EXPECT_EQ(client->state(), ClientState::connecting);
  pass(world, seconds(101));
  ASSERT_TRUE(told("failed"));
  EXPECT_EQ(diary.failures[0].error, system_error(ETIMEDOUT));
  // The second one has its own time, all of it.
  world.settle();
  EXPECT_EQ(client->state(), ClientState::connecting);
  pass(world, seconds(900));
  EXPECT_EQ(diary.events.size(), 1u);
  pass(world, seconds(101));
  ASSERT_TRUE(told("failed", 2));
  EXPECT_EQ(diary.failures[1].error, system_error(ETIMEDOUT));
  EXPECT_EQ(client->statistics().timeouts, 2u);
  expect_silence();
  expect_no_descriptor_lost();
}

TEST_P(Client, WithoutAConnectTimeoutAnAttemptHangsOn) {
  const FullPort port;
  TcpClientOptions options = options_for(port.text());
  options.connect_timeout = Duration::zero();
  start(options);
  world.settle();
  pass(world, hours(1000));
  EXPECT_TRUE(diary.events.empty());
  EXPECT_EQ(client->state(), ClientState::connecting);
  client.reset();
  world.turn(5);
  expect_no_descriptor_lost();
}

// N4: the kernel has connected, and the loop learns of it too late.
TEST_P(Client, ASuccessBehindTheTimeoutIsNotTold) {
  Port port;
  port.open();
  TcpClientOptions options = options_for(port.text());
  options.connect_timeout = seconds(1000);
  options.attempts_max = 1;
  start(options);
  // A wait that a signal interrupts has no events, and ends all the same.
  const auto epoll = world.kernel.inject({.call = Call::epoll_wait, .every = 1, .error = EINTR});
  const auto poll = world.kernel.inject({.call = Call::poll, .every = 1, .error = EINTR});
  const UniqueFd server = port.accept();
  pass(world, seconds(1001));
  world.turn(4);
  EXPECT_GT(world.kernel.fired(epoll) + world.kernel.fired(poll), 1u);
  world.kernel.heal();
  ASSERT_TRUE(told("failed"));
  EXPECT_EQ(diary.failures[0].error, system_error(ETIMEDOUT));
  expect_silence();
  EXPECT_EQ(diary.events, (std::vector<std::string>{"failed"}));
  expect_no_descriptor_lost(1);
  EXPECT_EQ(receive(linux_kernel(), server.get()).result, -ECONNRESET) << "the peer still waits";
}

// N4: both have come when the loop looks: one of them is told.
TEST_P(Client, ASuccessAndATimeoutInOneTurnAreOneOutcome) {
  Port port;
  port.open();
  TcpClientOptions options = options_for(port.text());
  options.connect_timeout = seconds(1000);
  options.attempts_max = 1;
  start(options);
  {
    const UniqueFd server = port.accept();
    pass(world, seconds(1001));
    ASSERT_TRUE(world.run_until([&] { return !diary.events.empty(); }));
    world.settle();
    EXPECT_EQ(diary.count("connect") + diary.count("failed"), 1u);
  }
  client.reset();
  world.turn(5);
  expect_no_descriptor_lost();
}

// -- N6: errors of the calls that an attempt consists of ------------------------------------------

struct Step {
  Call call;
  std::vector<int> errors;
  int operation = 0;
};

// N6: once; the next attempt succeeds.
TEST_P(Client, AnErrorOfAnyCallFailsTheAttemptAndLosesNothing) {
  std::vector<Step> steps = {
      {Call::socket, {EMFILE, ENFILE, ENOBUFS, ENOMEM}},
      {Call::setsockopt, {ENOMEM, ENOBUFS}},
      {Call::bind, {EADDRNOTAVAIL, EADDRINUSE, ENOMEM}},
      {Call::connect,
       {EADDRNOTAVAIL, ENETUNREACH, EHOSTUNREACH, ECONNREFUSED, ETIMEDOUT, EAGAIN, ENOBUFS, ENOMEM,
        EADDRINUSE, ENETDOWN}},
  };
  if (on_epoll(GetParam())) steps.push_back({Call::epoll_ctl, {ENOMEM, ENOSPC}, EPOLL_CTL_ADD});
  for (const Step& step : steps) {
    for (const int error : step.errors) {
      SCOPED_TRACE(testing::Message() << "call " << static_cast<int>(step.call) << ": "
                                      << system_error(error).message());
      Port port;
      port.open();
      diary = Diary();
      const auto rule =
          world.kernel.inject({.call = step.call, .operation = step.operation, .error = error});
      TcpClientOptions options = options_for(port.text());
      options.connect_from = "127.0.0.1:0";
      start(options);
      ASSERT_TRUE(told("connect"));
      EXPECT_EQ(world.kernel.fired(rule), 1u);
      ASSERT_EQ(diary.events, (std::vector<std::string>{"failed", "connect"}));
      EXPECT_EQ(diary.failures[0].error, system_error(error));
      EXPECT_EQ(diary.failures[0].attempt, 1u);
      EXPECT_TRUE(diary.failures[0].retry_in.has_value());
      EXPECT_EQ(client->statistics().timeouts, error == ETIMEDOUT ? 1u : 0u);
      client.reset();
      world.turn(5);
      expect_no_descriptor_lost();
    }
  }
}

// N6: what another attempt cannot change.
TEST_P(Client, AnErrorThatNoFurtherAttemptCanMendEndsTheAttempts) {
  const std::vector<Step> steps = {
      {Call::socket, {EACCES, EAFNOSUPPORT, EPROTONOSUPPORT}},
      {Call::bind, {EACCES, EINVAL}},
      {Call::connect, {EACCES, EPERM, EAFNOSUPPORT, EINVAL}},
  };
  for (const Step& step : steps) {
    for (const int error : step.errors) {
      SCOPED_TRACE(testing::Message() << "call " << static_cast<int>(step.call) << ": "
                                      << system_error(error).message());
      Port port;
      port.open();
      diary = Diary();
      const auto rule = world.kernel.inject({.call = step.call, .error = error});
      TcpClientOptions options = options_for(port.text());
      options.connect_from = "127.0.0.1:0";
      start(options);
      ASSERT_TRUE(told("failed"));
      EXPECT_EQ(world.kernel.fired(rule), 1u);
      EXPECT_EQ(diary.failures[0].error, system_error(error));
      EXPECT_FALSE(diary.failures[0].retry_in.has_value());
      EXPECT_EQ(client->state(), ClientState::idle);
      expect_silence();
      expect_no_descriptor_lost();
      // It may still be started again.
      EXPECT_TRUE(client->start().has_value());
      EXPECT_TRUE(told("connect"));
      client.reset();
      world.turn(5);
      expect_no_descriptor_lost();
    }
  }
}

// N6: every call of a kind, one after the other, all k, from the start to the end of a connection.
TEST_P(Client, WhicheverCallFailsNoDescriptorIsLostAndOneOutcomeIsTold) {
  std::vector<Step> steps = {
      {Call::socket, {EMFILE}},        {Call::setsockopt, {ENOMEM, EINVAL}},
      {Call::bind, {EADDRINUSE}},      {Call::connect, {ENOBUFS, EINTR, EINPROGRESS}},
      {Call::getsockopt, {ENOBUFS}},   {Call::getsockname, {ENOBUFS}},
      {Call::getpeername, {ENOTCONN}}, {Call::entropy, {ENOSYS}},
      {Call::close, {EINTR, EIO}},
  };
  if (on_epoll(GetParam())) steps.push_back({Call::epoll_ctl, {ENOMEM}, EPOLL_CTL_ADD});
  const auto script = [&] {
    Port port;
    diary = Diary();
    TcpClientOptions options = options_for(port.text());
    options.connect_from = "127.0.0.1:0";
    options.attempts_max = 0;
    // Refused once, then connected, then closed by the peer.
    diary.then = [&](const std::string& event, TcpConnection*) {
      if (event == "failed" && diary.failures.size() == 1) port.open();
    };
    start(options);
    EXPECT_TRUE(world.run_until(
        [&] { return diary.live != nullptr || client->state() == ClientState::idle; }));
    const std::size_t attempts = client->statistics().attempts;
    EXPECT_EQ(diary.failures.size() + diary.count("connect"), attempts);
    if (diary.live != nullptr) {
      while (port.someone_waits())
        static_cast<void>(port.accept());
      EXPECT_TRUE(told("close"));
    }
    client.reset();
    world.turn(5);
    expect_no_descriptor_lost();
  };
  script();
  for (const Step& step : steps) {
    for (const int error : step.errors) {
      const auto counting = world.kernel.inject(
          {.call = step.call, .operation = step.operation, .first = 1'000'000, .error = error});
      script();
      const std::uint64_t calls = world.kernel.matched(counting);
      world.kernel.heal();
      ASSERT_GT(calls, 0u) << static_cast<int>(step.call);
      for (std::uint64_t which = 1; which <= calls; ++which) {
        SCOPED_TRACE(testing::Message() << "call " << static_cast<int>(step.call) << " number "
                                        << which << ": " << system_error(error).message());
        const auto rule = world.kernel.inject(
            {.call = step.call, .operation = step.operation, .first = which, .error = error});
        script();
        EXPECT_EQ(world.kernel.fired(rule), 1u);
        world.kernel.heal();
      }
    }
  }
}

// B9, for attempts: every allocation, one after the other.
TEST_P(Client, WhicheverAllocationFailsWhileConnectingTheClientGoesOn) {
  if (GetParam() == Backend::custom) GTEST_SKIP() << "the deferring back-end allocates for itself";
  constexpr std::size_t kAllocationsMax = 200;
  bool happened = true;
  for (std::size_t which = 0; happened; ++which) {
    ASSERT_LT(which, kAllocationsMax);
    SCOPED_TRACE(testing::Message() << "allocation " << which);
    const std::size_t before = World::open_descriptors();
    {
      // The real kernel: the faulty one allocates for itself. The callbacks do not.
      Port port;
      EventLoop loop({.backend = GetParam()});
      TcpClientOptions options = options_for(port.text());
      options.attempts_max = 0;
      TcpClient caller(loop, options);
      std::size_t connects = 0;
      std::size_t failures = 0;
      std::size_t closes = 0;
      caller.on_connect([&](TcpConnection&) { ++connects; });
      caller.on_close([&](TcpConnection&, const CloseReport&) { ++closes; });
      caller.on_connect_failed([&](const ConnectFailure&) {
        if (++failures == 1) port.open();
      });
      ASSERT_TRUE(caller.start().has_value());
      {
        const FailingAllocation failing(which);
        for (int turn = 0; turn < 12; ++turn)
          loop.step();
        happened = failing.happened();
      }
      EXPECT_TRUE(eventually([&] {
        loop.step();
        return connects == 1;
      }));
      EXPECT_EQ(caller.statistics().attempts, failures + connects);
      while (port.someone_waits())
        static_cast<void>(port.accept());
      EXPECT_TRUE(eventually([&] {
        loop.step();
        return closes == 1;
      }));
    }
    EXPECT_EQ(World::open_descriptors(), before);
  }
}

// -- N7: odd events -------------------------------------------------------------------------------

constexpr std::array<std::uint32_t, 9> kOddEvents = {EPOLLOUT,
                                                     EPOLLIN,
                                                     EPOLLIN | EPOLLRDHUP,
                                                     EPOLLIN | EPOLLOUT | EPOLLRDHUP,
                                                     EPOLLHUP,
                                                     EPOLLIN | EPOLLHUP,
                                                     EPOLLOUT | EPOLLHUP,
                                                     EPOLLERR,
                                                     EPOLLERR | EPOLLHUP | EPOLLIN | EPOLLOUT};

// N7
TEST_P(Client, ASuccessIsTakenForOneWhateverEventTellsIt) {
  for (const std::uint32_t events : kOddEvents) {
    SCOPED_TRACE(events);
    Port port;
    port.open();
    diary = Diary();
    sockets.odd_events_told = 0;
    start(options_for(port.text()));
    const UniqueFd server = port.accept();  // the kernel has connected before the loop looks
    sockets.odd_events = {events};
    ASSERT_TRUE(world.run_until([&] { return !diary.events.empty(); }));
    EXPECT_EQ(sockets.odd_events_told, 1u);
    EXPECT_EQ(diary.events, (std::vector<std::string>{"connect"}));
    send_text(linux_kernel(), server.get(), "welcome");
    ASSERT_TRUE(told("message"));
    EXPECT_EQ(diary.received, "welcome");
    client.reset();
    world.turn(5);
    expect_no_descriptor_lost(1);
  }
}

// N7
TEST_P(Client, AFailureIsTakenForOneWhateverEventTellsIt) {
  for (const std::uint32_t events : kOddEvents) {
    SCOPED_TRACE(events);
    const Port port;
    diary = Diary();
    sockets.odd_events_told = 0;
    TcpClientOptions options = options_for(port.text());
    options.attempts_max = 1;
    start(options);
    sockets.odd_events = {events};
    ASSERT_TRUE(told("failed"));
    EXPECT_EQ(sockets.odd_events_told, 1u);
    EXPECT_EQ(diary.failures[0].error, kRefused);
    expect_silence();
    EXPECT_EQ(diary.events.size(), 1u);
    expect_no_descriptor_lost();
  }
}

// N7: the kernel still tries; an event alone is no success. What says HUP may be taken for a
// failure: it would be repeated for ever.
TEST_P(Client, AnEventWithoutAnOutcomeIsNoSuccess) {
  for (const std::uint32_t events : kOddEvents) {
    SCOPED_TRACE(events);
    const FullPort port;
    diary = Diary();
    sockets.odd_events_told = 0;
    TcpClientOptions options = options_for(port.text());
    options.attempts_max = 1;
    options.connect_timeout = seconds(1000);
    start(options);
    sockets.odd_events = {events, events, events};
    world.turn(10);
    EXPECT_GE(sockets.odd_events_told, 1u);
    EXPECT_EQ(diary.count("connect"), 0u);
    if ((events & (EPOLLHUP | EPOLLERR)) == 0) {
      EXPECT_EQ(sockets.odd_events_told, 3u);
      EXPECT_TRUE(diary.events.empty()) << diary.failures.at(0).error.message();
      const std::uint64_t wakeups = world.kernel.wakeups();
      world.turn(50);
      EXPECT_EQ(world.kernel.wakeups(), wakeups) << "it spins";
      pass(world, seconds(1001));
      ASSERT_TRUE(told("failed"));
      EXPECT_EQ(diary.failures[0].error, system_error(ETIMEDOUT));
    } else {
      sockets.odd_events.clear();
      if (diary.events.empty()) pass(world, seconds(1001));
      ASSERT_TRUE(told("failed"));
    }
    expect_silence();
    EXPECT_EQ(diary.events.size(), 1u);
    expect_no_descriptor_lost();
    sockets.odd_events.clear();
  }
}

// N7: and the real outcome is still noticed afterwards.
TEST_P(Client, ASuccessBehindAnEventWithoutAnOutcomeIsTold) {
  Port port;
  port.open();
  const auto rule = world.kernel.inject({.call = Call::getpeername, .error = ENOTCONN});
  start(options_for(port.text()));
  ASSERT_TRUE(world.run_until([&] { return !diary.events.empty(); }));
  EXPECT_EQ(world.kernel.fired(rule), 1u);
  EXPECT_EQ(diary.events, (std::vector<std::string>{"connect"}));
}

// N9
TEST_P(Client, ASocketIsNotWatchedBeforeItConnects) {
  Port port;
  port.open();
  std::size_t seen = 0;
  world.kernel.before(Call::connect, [&](int fd) {
    ++seen;
    EXPECT_EQ(armed_events(world, fd), std::nullopt);
  });
  start(options_for(port.text()));
  ASSERT_TRUE(told("connect"));
  EXPECT_EQ(seen, 1u);
  const int fd = sockets.last_connect();
  bool connected = false;
  for (const SocketCall& call : sockets.calls) {
    if (call.fd != fd) continue;
    if (call.name == "socket") connected = false;  // the number in a new life
    if (call.name == "connect") connected = true;
    const bool watched = call.name == "epoll_ctl" && call.option == EPOLL_CTL_ADD;
    EXPECT_TRUE(connected || !watched);
  }
  EXPECT_EQ(sockets.count("connect"), 1u);
}

// -- N11: peers that leave at once ----------------------------------------------------------------

// N11: it has gone before the loop looks for the first time.
TEST_P(Client, WhatAPeerWroteBeforeItLeftArrivesThenTheEnd) {
  const std::string text = pattern(200'000);
  Port port;
  port.open();
  start(options_for(port.text()));
  {
    const UniqueFd server = port.accept();
    ASSERT_EQ(send_text(linux_kernel(), server.get(), text), static_cast<ssize_t>(text.size()));
  }
  ASSERT_TRUE(told("close"));
  EXPECT_EQ(first_difference(diary.received, text), std::string_view::npos);
  EXPECT_EQ(diary.events.front(), "connect");
  EXPECT_EQ(diary.count("peer_finished"), 1u);
  EXPECT_EQ(diary.reports[0].reason, CloseReason::eof);
  EXPECT_EQ(diary.reports[0].bytes_received, text.size());
  EXPECT_TRUE(diary.failures.empty());
  EXPECT_EQ(client->state(), ClientState::idle) << "its only connection has ended";
  expect_silence();
  expect_no_descriptor_lost();
}

// N11
TEST_P(Client, APeerThatLeavesWithoutAWordIsAConnectionThatEnded) {
  Port port;
  port.open();
  start(options_for(port.text()));
  static_cast<void>(port.accept());
  ASSERT_TRUE(told("close"));
  EXPECT_EQ(diary.events, (std::vector<std::string>{"connect", "peer_finished", "close"}));
  EXPECT_EQ(diary.reports[0].reason, CloseReason::eof);
}

// N11, C4: an attempt that failed, or a connection that was reset; never one that ended well.
TEST_P(Client, APeerThatResetsAtOnceIsNeverTakenForACleanEnd) {
  Port port;
  port.open();
  TcpClientOptions options = options_for(port.text());
  options.attempts_max = 1;
  start(options);
  {
    const UniqueFd server = port.accept();
    send_text(linux_kernel(), server.get(), "never mind");
    reset_on_close(linux_kernel(), server.get());
  }
  ASSERT_TRUE(world.run_until([&] { return client->state() == ClientState::idle; }));
  if (diary.failures.empty()) {
    EXPECT_EQ(diary.events.front(), "connect");
    ASSERT_EQ(diary.reports.size(), 1u);
    EXPECT_EQ(diary.reports[0].reason, CloseReason::reset);
  } else {
    EXPECT_EQ(diary.events.size(), 1u);
    EXPECT_EQ(diary.failures[0].error, system_error(ECONNRESET));
  }
  expect_silence();
  expect_no_descriptor_lost();
}

// -- C11: stop and destruction outside of callbacks -----------------------------------------------

// C11
TEST_P(Client, AStopWhileConnectingIsFollowedByNothing) {
  const Port refusing;
  Port open;
  open.open();
  const FullPort full;
  for (const std::string& address : {refusing.text(), open.text(), full.text()}) {
    for (const int turns : {0, 1, 2, 3}) {
      SCOPED_TRACE(testing::Message() << address << " after " << turns << " turns");
      diary = Diary();
      start(options_for(address));
      // By then it may have connected, or failed, already.
      while (open.someone_waits())
        static_cast<void>(open.accept());
      world.turn(turns);
      const bool was_connected = diary.live != nullptr;
      const std::size_t events = diary.events.size();
      client->stop();
      world.settle();
      EXPECT_EQ(client->state(), ClientState::stopped);
      EXPECT_EQ(client->connection(), nullptr);
      expect_silence();
      if (was_connected) {
        EXPECT_EQ(diary.count("close"), 1u);
      } else {
        EXPECT_EQ(diary.events.size(), events) << diary.events.back();
      }
      expect_no_descriptor_lost();
      EXPECT_EQ(error_of(client->start()), make_error_code(Errc::stopped));
      client.reset();
      expect_no_descriptor_lost();
    }
  }
}

// C11
TEST_P(Client, DestroyedWhileConnectingItTellsNothing) {
  const Port refusing;
  Port open;
  open.open();
  const FullPort full;
  for (const std::string& address : {refusing.text(), open.text(), full.text()}) {
    for (const int turns : {0, 1, 2, 3}) {
      SCOPED_TRACE(testing::Message() << address << " after " << turns << " turns");
      diary = Diary();
      start(options_for(address));
      while (open.someone_waits())
        static_cast<void>(open.accept());
      world.turn(turns);
      const bool was_connected = diary.live != nullptr;
      const std::size_t events = diary.events.size();
      client.reset();
      if (was_connected) {
        EXPECT_EQ(diary.events.size(), events + 1);
        EXPECT_EQ(diary.events.back(), "close") << "on_close comes before the destructor returns";
      } else {
        EXPECT_EQ(diary.events.size(), events);
      }
      const std::size_t at_end = diary.events.size();
      world.settle();
      pass(world, hours(1));
      EXPECT_EQ(diary.events.size(), at_end);
      expect_no_descriptor_lost();
      EXPECT_EQ(diary.token.use_count(), 1) << "its callbacks are still there";
    }
  }
}

TEST_P(Client, AStopBeforeStartIsForGood) {
  Port port;
  port.open();
  make(options_for(port.text())).stop();
  EXPECT_EQ(error_of(client->start()), make_error_code(Errc::stopped));
  world.turn(3);
  EXPECT_EQ(client->state(), ClientState::stopped);
  EXPECT_EQ(error_of(client->start()), make_error_code(Errc::stopped));
  expect_silence();
}

TEST_P(Client, AStopIsInForceAtOnce) {
  Port port;
  port.open();
  start(options_for(port.text()));
  client->stop();
  EXPECT_EQ(error_of(client->start()), make_error_code(Errc::stopped));
  world.settle();
  EXPECT_TRUE(diary.events.empty());
  expect_no_descriptor_lost();
}

// The loop goes right behind its client, without another turn.
TEST_P(Client, ALoopDestroyedBehindItsConnectingClientClosesEverything) {
  const FullPort full;
  Port open;
  open.open();
  const Port refusing;
  for (const std::string& address : {refusing.text(), open.text(), full.text()}) {
    for (const int turns : {0, 1, 2}) {
      SCOPED_TRACE(testing::Message() << address << " after " << turns << " turns");
      const std::size_t before = World::open_descriptors();
      {
        World there(GetParam());
        TcpClient caller(there.loop, options_for(address));
        ASSERT_TRUE(caller.start().has_value());
        there.turn(turns);
      }
      while (open.someone_waits())
        static_cast<void>(open.accept());
      EXPECT_EQ(World::open_descriptors(), before);
    }
  }
}

TEST_P(Client, OnALoopThatCouldNotBeMadeItSaysSo) {
  FaultyKernel kernel(linux_kernel());
  kernel.inject({.call = Call::eventfd, .error = EMFILE});
  EventLoop broken({.backend = GetParam(), .kernel = &kernel});
  ASSERT_EQ(broken.error(), system_error(EMFILE));
  TcpClient caller(broken, options_for("127.0.0.1:1"));
  EXPECT_EQ(error_of(caller.start()), system_error(EMFILE));
  caller.stop();
  EXPECT_EQ(caller.connection(), nullptr);
  EXPECT_FALSE(caller.handle());
}

// -- Addresses (R20) ------------------------------------------------------------------------------

TEST_P(Client, ThePeerSeesTheAddressItConnectsFrom) {
  Port port;
  port.open();
  TcpClientOptions options = options_for(port.text());
  options.connect_from = "127.0.0.2:0";
  start(options);
  ASSERT_TRUE(told("connect"));
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  const UniqueFd server = port.accept();
  ASSERT_EQ(linux_kernel().getpeername(server.get(), address, &size), 0);
  const SocketAddress peer(address, size);
  EXPECT_TRUE(peer.to_string().starts_with("127.0.0.2:")) << peer.to_string();
  EXPECT_EQ(peer, diary.live->local_address());
  EXPECT_EQ(diary.live->peer_address(), port.address());
}

TEST_P(Client, AFixedPortOfItsOwnCanBeUsedAgainAtOnce) {
  const SocketAddress own = unused_port("127.77.1.2");
  for (int round = 0; round < 2; ++round) {
    SCOPED_TRACE(round);
    Port port;
    port.open();
    diary = Diary();
    TcpClientOptions options = options_for(port.text());
    options.connect_from = own.to_string();
    options.attempts_max = 1;
    start(options);
    ASSERT_TRUE(world.run_until([&] { return !diary.events.empty(); }));
    ASSERT_EQ(diary.events.front(), "connect") << diary.failures.at(0).error.message();
    EXPECT_EQ(diary.live->local_address(), own);
    // It finishes first: its end goes to TIME_WAIT.
    const UniqueFd server = port.accept();
    diary.live->finish();
    EXPECT_EQ(receive_to_end_while_turning(server.get()), 0);
    EXPECT_EQ(linux_kernel().shutdown(server.get(), SHUT_WR), 0);
    ASSERT_TRUE(told("close"));
    client.reset();
  }
}

TEST_P(Client, ConnectsOverIpv6) {
  const SocketAddress any = SocketAddress::parse("[::1]:0").value();
  const UniqueFd listener(linux_kernel(),
                          linux_kernel().socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0));
  if (linux_kernel().bind(listener.get(), any.data(), any.size()) != 0) {
    GTEST_SKIP() << "no IPv6 here";
  }
  ASSERT_EQ(linux_kernel().listen(listener.get(), 8), 0);
  const SocketAddress address = local_address(linux_kernel(), listener.get());
  for (const std::string from : {"", "[::1]:0"}) {
    SCOPED_TRACE(from);
    diary = Diary();
    TcpClientOptions options = options_for(address.to_string());
    options.connect_from = from;
    start(options);
    ASSERT_TRUE(world.run_until([&] { return !diary.events.empty(); }));
    ASSERT_EQ(diary.events.front(), "connect") << diary.failures.at(0).error.message();
    EXPECT_EQ(diary.live->peer_address(), address);
    EXPECT_TRUE(diary.live->local_address().to_string().starts_with("[::1]:"));
    client.reset();
    world.turn(5);
    expect_no_descriptor_lost();
  }
}

TEST_P(Client, ConnectsToUnixPathsAndAbstractNames) {
  for (const std::string& text : {"unix:" + unused_unix_path(), "unix:" + unused_abstract_name()}) {
    SCOPED_TRACE(text);
    const SocketAddress address = SocketAddress::parse(text).value();
    const Listener listener = listen_unix(address);
    diary = Diary();
    start(options_for(text));
    ASSERT_TRUE(world.run_until([&] { return !diary.events.empty(); }));
    ASSERT_EQ(diary.events.front(), "connect") << diary.failures.at(0).error.message();
    EXPECT_EQ(diary.live->peer_address().to_string(), text);
    const UniqueFd server = accept_one(linux_kernel(), listener);
    diary.live->send("hello");
    ASSERT_TRUE(told("write_complete"));
    EXPECT_EQ(receive(linux_kernel(), server.get()).text, "hello");
    send_text(linux_kernel(), server.get(), "welcome");
    ASSERT_TRUE(told("message"));
    EXPECT_EQ(diary.received, "welcome");
    client.reset();
    if (address.path().front() == '/') linux_kernel().unlink(address.path().c_str());
    expect_no_descriptor_lost(1);
  }
}

TEST_P(Client, AUnixPeerSeesTheNameItConnectsFrom) {
  const std::string to = "unix:" + unused_abstract_name();
  const Listener listener = listen_unix(SocketAddress::parse(to).value());
  TcpClientOptions options = options_for(to);
  options.connect_from = "unix:" + unused_abstract_name();
  start(options);
  ASSERT_TRUE(told("connect"));
  sockaddr_storage storage{};
  socklen_t size = sizeof storage;
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  const UniqueFd server = accept_one(linux_kernel(), listener);
  ASSERT_EQ(linux_kernel().getpeername(server.get(), address, &size), 0);
  EXPECT_EQ(SocketAddress(address, size).to_string(), options.connect_from);
}

// K33: nothing tells when the backlog has room again.
TEST_P(Client, AFullUnixBacklogIsWaitedOutByTimer) {
  const std::string to = "unix:" + unused_abstract_name();
  const Listener listener = listen_unix(SocketAddress::parse(to).value(), 0);
  const UniqueFd filler = start_connect(linux_kernel(), listener.address);
  TcpClientOptions options = options_for(to);
  options.connect_timeout = seconds(1000);
  start(options);
  world.turn(100);
  EXPECT_EQ(sockets.calls.back().result, -EAGAIN) << "the backlog is not full";
  EXPECT_LE(sockets.count("connect"), 30u) << "it spins";
  for (int i = 0; i < 50; ++i)
    pass(world, seconds(1));
  EXPECT_GT(sockets.count("connect"), 40u) << "it does not try again";
  EXPECT_LE(sockets.count("connect"), 300u);
  EXPECT_TRUE(diary.events.empty()) << "one that waits has not failed";
  EXPECT_EQ(client->state(), ClientState::connecting);
  const UniqueFd first = accept_one(linux_kernel(), listener);
  pass(world, seconds(1));
  ASSERT_TRUE(told("connect"));
  EXPECT_EQ(diary.events.size(), 1u);
  EXPECT_EQ(client->statistics().attempts, 1u);
  client.reset();
  expect_no_descriptor_lost(1);
}

// K33, N4
TEST_P(Client, AUnixBacklogThatStaysFullFailsByTheConnectTimeout) {
  const std::string to = "unix:" + unused_abstract_name();
  const Listener listener = listen_unix(SocketAddress::parse(to).value(), 0);
  const UniqueFd filler = start_connect(linux_kernel(), listener.address);
  TcpClientOptions options = options_for(to);
  options.connect_timeout = seconds(1000);
  options.attempts_max = 1;
  start(options);
  for (int i = 0; i < 9; ++i)
    pass(world, seconds(100));
  EXPECT_TRUE(diary.events.empty());
  pass(world, seconds(101));
  ASSERT_TRUE(told("failed"));
  EXPECT_EQ(diary.failures[0].error, system_error(ETIMEDOUT));
  EXPECT_FALSE(diary.failures[0].retry_in.has_value());
  expect_silence();
  expect_no_descriptor_lost();
}

// K33, C11
TEST_P(Client, AStopOrAnEndWhileAUnixBacklogIsFullTellsNothing) {
  const std::string to = "unix:" + unused_abstract_name();
  const Listener listener = listen_unix(SocketAddress::parse(to).value(), 0);
  const UniqueFd filler = start_connect(linux_kernel(), listener.address);
  for (const bool stop : {true, false}) {
    start(options_for(to));
    world.turn(5);
    if (stop) {
      client->stop();
    } else {
      client.reset();
    }
    world.turn(5);
    expect_no_descriptor_lost();
    expect_silence();
    EXPECT_TRUE(diary.events.empty());
  }
}

TEST_P(Client, AUnixPathThatAppearsLaterIsConnectedTo) {
  const std::string path = unused_unix_path();
  start(options_for("unix:" + path));
  ASSERT_TRUE(told("failed"));
  EXPECT_EQ(diary.failures[0].error, system_error(ENOENT));
  ASSERT_TRUE(diary.failures[0].retry_in.has_value());
  std::optional<Listener> listener = listen_unix(SocketAddress::parse("unix:" + path).value());
  ASSERT_TRUE(told("connect"));
  EXPECT_EQ(diary.failures.size(), 1u);
  client.reset();
  // Its server is gone, its path is not.
  listener.reset();
  diary = Diary();
  start(options_for("unix:" + path));
  ASSERT_TRUE(told("failed"));
  EXPECT_EQ(diary.failures[0].error, kRefused);
  EXPECT_TRUE(diary.failures[0].retry_in.has_value());
  linux_kernel().unlink(path.c_str());
}

TEST_P(Client, StartSaysWhichAddressItCannotUse) {
  const std::string too_long = "unix:/" + std::string(200, 'x');
  const struct {
    std::string to;
    std::string from;
    Errc error;
  } cases[] = {
      {"", "", Errc::bad_address},
      {"127.0.0.1", "", Errc::bad_address},
      {"127.0.0.1:99999", "", Errc::bad_address},
      {"127.0.0.1:http", "", Errc::bad_address},
      {"[::1:80", "", Errc::bad_address},
      {"unix:", "", Errc::bad_address},
      {too_long, "", Errc::bad_address},
      {"example.org:80", "", Errc::needs_resolver},
      {"127.0.0.1:80", "nonsense", Errc::bad_address},
      {"127.0.0.1:80", "example.org:0", Errc::needs_resolver},
  };
  for (const auto& [to, from, error] : cases) {
    SCOPED_TRACE(to + " from " + from);
    TcpClientOptions options = options_for(to);
    options.connect_from = from;
    const Result<void> started = make(options).start();
    ASSERT_FALSE(started.has_value());
    EXPECT_EQ(started.error(), make_error_code(error)) << started.error().message();
    EXPECT_EQ(client->state(), ClientState::idle);
    EXPECT_EQ(client->statistics().attempts, 0u);
    world.turn(3);
    EXPECT_TRUE(diary.events.empty());
  }
}

TEST_P(Client, ALocalAddressOfAnotherFamilyIsAFailureForGood) {
  Port port;
  port.open();
  TcpClientOptions options = options_for(port.text());
  options.connect_from = "[::1]:0";
  start(options);
  ASSERT_TRUE(told("failed"));
  expect_silence();
  EXPECT_EQ(diary.events.size(), 1u) << "it tries again what cannot succeed";
  expect_no_descriptor_lost();
}

TEST_P(Client, ALocalAddressThatIsNotOursIsRetried) {
  Port port;
  port.open();
  TcpClientOptions options = options_for(port.text());
  options.connect_from = "192.0.2.1:0";  // TEST-NET-1: nobody's
  start(options);
  ASSERT_TRUE(told("failed", 3));
  for (const ConnectFailure& failure : diary.failures)
    EXPECT_EQ(failure.error, system_error(EADDRNOTAVAIL));
  expect_silence();
  expect_no_descriptor_lost();
}

PENSTOCK_ON_EVERY_BACKEND(Client);

// -- N5, RE1: every action at every point of a client's life --------------------------------------

enum class Action { destroy, stop, stop_and_destroy, throws, start };
constexpr std::array kActions = {Action::destroy, Action::stop, Action::stop_and_destroy,
                                 Action::throws, Action::start};

enum class Point {
  connect,
  failed,
  last_failed,
  message,
  peer_finished,
  write_complete,
  high,
  low,
  close,
  timer_connecting,
  task_connecting,
  timer_waiting,
  task_waiting,
  timer_connected,
  task_connected,
};
constexpr std::array kPoints = {Point::connect,
                                Point::failed,
                                Point::last_failed,
                                Point::message,
                                Point::peer_finished,
                                Point::write_complete,
                                Point::high,
                                Point::low,
                                Point::close,
                                Point::timer_connecting,
                                Point::task_connecting,
                                Point::timer_waiting,
                                Point::task_waiting,
                                Point::timer_connected,
                                Point::task_connected};

constexpr std::array<const char*, 5> kActionNames = {"Destroy", "Stop", "StopAndDestroy", "Throw",
                                                     "Start"};
// The names of callbacks are also those of the diary's events.
constexpr std::array<const char*, 15> kPointNames = {
    "connect",         "failed",        "last_failed",  "message",         "peer_finished",
    "write_complete",  "high",          "low",          "close",           "timer_connecting",
    "task_connecting", "timer_waiting", "task_waiting", "timer_connected", "task_connected"};

/// One script that passes through all the points: refused, waiting, connected, more output than
/// goes, input, the end. At the cell's point, once, the action is done.
class ClientCell : public testing::TestWithParam<std::tuple<Backend, Action, Point>> {
 protected:
  static constexpr std::size_t kPayload = std::size_t{6} * 1024 * 1024;

  Action action() const { return std::get<1>(GetParam()); }
  Point point() const { return std::get<2>(GetParam()); }
  bool at(Point some) const { return point() == some; }

  void act() {
    if (done) return;
    done = true;
    events_before = diary.events.size();
    was_live = diary.live != nullptr;
    switch (action()) {
      case Action::destroy:
        client.reset();
        break;
      case Action::stop:
        client->stop();
        break;
      case Action::stop_and_destroy:
        client->stop();
        client.reset();
        break;
      case Action::throws:
        throw std::runtime_error("thrown by the test");
      case Action::start:
        answer = client->start();
        break;
    }
  }

  void make_client() {
    TcpClientOptions options{.connect_to = at_connecting() ? full.text() : port.text(),
                             .attempts_max = at(Point::last_failed) ? 1u : 0u,
                             .retry_delay_min = seconds(1000),
                             .retry_delay_max = seconds(1000),
                             .reconnect = true};
    client = std::make_unique<TcpClient>(world.loop, options);
    diary.keep(*client);
    diary.then = [this](const std::string& event, TcpConnection* peer) {
      if (event == "connect") peer->send(std::string(kPayload, 'p'));
      const bool here = at(Point::last_failed)
                            ? event == "failed"
                            : event == kPointNames[static_cast<std::size_t>(point())];
      if (here) act();
    };
  }

  bool at_connecting() const { return at(Point::timer_connecting) || at(Point::task_connecting); }
  void act_in_timer_or_task(Point timer, Point task) {
    if (done || (!at(timer) && !at(task))) return;
    if (at(timer)) world.loop.run_after(Duration::zero(), [this] { act(); });
    if (at(task)) world.loop.queue_in_loop([this] { act(); });
    ASSERT_TRUE(world.run_until([this] { return done; }));
  }

  bool until(const std::string& event) {
    return world.run_until([&] { return done || diary.count(event) > 0; });
  }

  void run_script() {
    ASSERT_TRUE(client->start().has_value());
    world.turn(2);
    act_in_timer_or_task(Point::timer_connecting, Point::task_connecting);
    if (done) return;
    ASSERT_TRUE(until("failed"));
    if (done) return;
    act_in_timer_or_task(Point::timer_waiting, Point::task_waiting);
    if (done) return;
    port.open();
    pass(world, seconds(1001));
    ASSERT_TRUE(until("connect"));
    if (!port.someone_waits()) wait_a_while_for_the_peer();
    server = port.accept();
    ASSERT_TRUE(until("high"));
    act_in_timer_or_task(Point::timer_connected, Point::task_connected);
    if (done) return;
    std::size_t taken = 0;
    ASSERT_TRUE(world.run_until([&] {
      taken += receive(linux_kernel(), server.get(), std::size_t{256} * 1024).text.size();
      return done || (taken == kPayload && diary.count("write_complete") > 0);
    }));
    if (done) return;
    send_text(linux_kernel(), server.get(), "hello");
    ASSERT_TRUE(until("message"));
    if (done) return;
    linux_kernel().shutdown(server.get(), SHUT_WR);
    ASSERT_TRUE(until("close"));
  }

  void wait_a_while_for_the_peer() {
    EXPECT_TRUE(eventually([this] { return port.someone_waits(); }));
  }

  void expect_what_follows() {
    ASSERT_TRUE(done) << "the point was not passed";
    const bool over = action() != Action::throws && action() != Action::start;
    // A peer that is still there takes what comes, so that an orderly end can come about.
    ASSERT_TRUE(world.run_until([&] {
      if (server && receive(linux_kernel(), server.get(), std::size_t{256} * 1024).result <= 0 &&
          was_live && diary.live == nullptr) {
        server.reset();
      }
      if (server && over) linux_kernel().shutdown(server.get(), SHUT_WR);
      return !over || diary.live == nullptr;
    }));
    world.turn(8);
    const std::size_t attempts = sockets.count("connect");
    if (over) {
      for (std::size_t i = events_before; i < diary.events.size(); ++i) {
        const std::string& event = diary.events[i];
        EXPECT_TRUE(was_live && may_follow(event)) << event << " behind the action";
      }
      EXPECT_EQ(diary.count("close"), diary.count("connect"));
      for (int i = 0; i < 3; ++i)
        pass(world, hours(1));
      EXPECT_EQ(sockets.count("connect"), attempts) << "it connects again";
      EXPECT_EQ(world.loop.statistics().exceptions, 0u);
      if (client) {
        EXPECT_EQ(client->state(), ClientState::stopped);
        EXPECT_EQ(error_of(client->start()), make_error_code(Errc::stopped));
      }
    } else if (action() == Action::throws) {
      EXPECT_EQ(world.loop.statistics().exceptions, 1u);
      if (was_live && at_callback()) {
        ASSERT_TRUE(world.run_until([&] { return diary.live == nullptr; }));
        EXPECT_EQ(diary.count("close"), 1u);
        EXPECT_EQ(diary.reports[0].reason, CloseReason::local);
        EXPECT_EQ(diary.reports[0].error, make_error_code(Errc::callback_threw));
      }
      world.turn(4);
      EXPECT_EQ(client->state(), expected_state());
    } else if (at(Point::last_failed)) {
      EXPECT_TRUE(answer->has_value()) << "it had given up";
      EXPECT_TRUE(world.run_until([&] { return diary.count("failed") == 2; }));
    } else {
      ASSERT_FALSE(answer->has_value());
      EXPECT_EQ(answer->error(), make_error_code(Errc::already_started));
      EXPECT_TRUE(world.run_until([&] { return client->state() == expected_state(); }));
    }
    client.reset();
    server.reset();
    EXPECT_EQ(diary.count("close"), diary.count("connect"));
    diary.then = {};
    world.turn(8);
    EXPECT_EQ(World::open_descriptors(), descriptors);
    EXPECT_EQ(diary.token.use_count(), 1) << "its callbacks are still there";
  }

  /// An orderly end still sends; and what is told together with low water had happened before it.
  bool may_follow(const std::string& event) const {
    if (event == "close") return true;
    if (event == "write_complete" && at(Point::low)) return true;
    return action() == Action::stop &&
           (event == "write_complete" || event == "low" || event == "high");
  }
  bool at_callback() const { return !at(Point::timer_connected) && !at(Point::task_connected); }
  /// Where it stands a few turns after an action that did not end it.
  ClientState expected_state() const {
    switch (point()) {
      case Point::last_failed:
        return ClientState::idle;
      case Point::failed:
      case Point::timer_waiting:
      case Point::task_waiting:
      case Point::peer_finished:
      case Point::close:
        return ClientState::waiting;
      case Point::timer_connecting:
      case Point::task_connecting:
        return ClientState::connecting;
      default:
        break;
    }
    const bool ended = action() == Action::throws && at_callback();
    return ended ? ClientState::waiting : ClientState::connected;
  }

  FullPort full;
  Port port;
  SocketTap sockets;
  World world{std::get<0>(GetParam()), {}, sockets};
  std::size_t descriptors = World::open_descriptors();
  Diary diary;
  UniqueFd server;
  bool done = false;
  bool was_live = false;
  std::size_t events_before = 0;
  std::optional<Result<void>> answer;
  std::unique_ptr<TcpClient> client;
};

// N5, RE1
TEST_P(ClientCell, LeavesNothingBehindAndTellsNothingMore) {
  make_client();
  run_script();
  if (HasFatalFailure()) return;
  expect_what_follows();
}

std::string cell_name(const testing::TestParamInfo<ClientCell::ParamType>& info) {
  const auto& [backend, action, point] = info.param;
  return std::string(kActionNames[static_cast<std::size_t>(action)]) + "_in_" +
         kPointNames[static_cast<std::size_t>(point)] + "_" + backend_word(backend);
}

INSTANTIATE_TEST_SUITE_P(Cells, ClientCell,
                         testing::Combine(testing::ValuesIn(kBackends), testing::ValuesIn(kActions),
                                          testing::ValuesIn(kPoints)),
                         cell_name);

// N5: one client ends another one.
class ClientPair : public ConformanceTest {};

TEST_P(ClientPair, AClientMayDestroyAnotherThatIsDueInTheSameTurn) {
  for (const bool refuse : {true, false}) {
    SCOPED_TRACE(refuse);
    Port port;
    if (!refuse) port.open();
    const std::size_t descriptors = World::open_descriptors();
    const TcpClientOptions options{.connect_to = port.text(), .attempts_max = 1};
    std::array<std::unique_ptr<TcpClient>, 2> clients;
    std::array<Diary, 2> diaries;
    for (std::size_t i = 0; i < 2; ++i) {
      clients[i] = std::make_unique<TcpClient>(world.loop, options);
      diaries[i].keep(*clients[i]);
      diaries[i].then = [&clients, i](const std::string& event, TcpConnection*) {
        if (event != "close") clients[1 - i].reset();
      };
      ASSERT_TRUE(clients[i]->start().has_value());
    }
    ASSERT_TRUE(
        world.run_until([&] { return !diaries[0].events.empty() || !diaries[1].events.empty(); }));
    world.settle();
    EXPECT_EQ(diaries[0].events.size() + diaries[1].events.size(), 1u);
    for (std::size_t i = 0; i < 2; ++i)
      diaries[i].then = {};
    clients = {};
    world.turn(5);
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
}

PENSTOCK_ON_EVERY_BACKEND(ClientPair);

}  // namespace
}  // namespace penstock::test

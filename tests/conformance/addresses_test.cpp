// Where a server can listen (R20, K33, rows of 2.3 and 2.15): Unix paths and abstract names, both
// families of IP, and descriptors it inherits; on every back-end.

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "support/serving.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

constexpr std::size_t kNowhere = std::string_view::npos;
constexpr std::size_t kKiB = 1024;

/// A directory that goes with everything in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "penstock-XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }

  std::string file(const std::string& name) const { return (path_ / name).string(); }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

/// What is at the path, itself and not what it points to; nothing when there is nothing.
std::optional<FileStatus> status_of(const std::string& path) {
  FileStatus status;
  if (linux_kernel().file_status(AT_FDCWD, path.c_str(), status) < 0) return std::nullopt;
  return status;
}

bool is_socket(const std::string& path) {
  const auto status = status_of(path);
  return status && S_ISSOCK(status->mode);
}

SocketAddress unix_address(const std::string& path) {
  return SocketAddress::parse("unix:" + path).value();
}

/// A raw socket bound to the address, in blocking mode, and listening unless told otherwise.
UniqueFd raw_bound(const SocketAddress& address, int type = SOCK_STREAM, int backlog = 16) {
  UniqueFd fd(linux_kernel(), ::socket(address.family(), type, 0));
  EXPECT_TRUE(fd);
  EXPECT_EQ(linux_kernel().bind(fd.get(), address.data(), address.size()), 0);
  if (backlog >= 0) {
    EXPECT_EQ(linux_kernel().listen(fd.get(), backlog), 0);
  }
  return fd;
}

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

/// A name no other test or process has.
std::string abstract_name() {
  static int count = 0;
  return "@penstock-test-" + std::to_string(::getpid()) + "-" + std::to_string(++count);
}

class Addresses : public ConformanceTest {
 protected:
  std::unique_ptr<TcpServer> make(TcpServerOptions options) {
    auto server = std::make_unique<TcpServer>(world.loop, std::move(options));
    server->on_connect([this](TcpConnection& peer) { connected(peer); });
    server->on_message([](TcpConnection& peer, InputBuffer& in) { peer.send(in.take_string()); });
    server->on_close([this](TcpConnection& peer, const CloseReport& report) {
      ++closes;
      local_at_the_end = peer.local_address();
      last_report = report;
    });
    return server;
  }
  std::unique_ptr<TcpServer> serve(TcpServerOptions options) {
    auto server = make(std::move(options));
    const Result<void> started = server->start();
    EXPECT_TRUE(started.has_value()) << started.error().message();
    return server;
  }
  std::error_code start_error(const std::string& listen) {
    auto server = make({.listen = listen});
    const Result<void> started = server->start();
    EXPECT_FALSE(started.has_value()) << listen;
    EXPECT_EQ(server->address(), SocketAddress());
    return started ? std::error_code() : started.error();
  }
  void connected(TcpConnection& peer) {
    ++connects;
    last_peer = peer.peer_address();
    last_local = peer.local_address();
  }

  /// The client sends and finishes; all of it comes back, and then the end.
  void expect_echo(World::Link link, std::size_t size = 100 * kKiB) {
    const std::string text = pattern(size);
    const std::size_t closes_before = closes;
    feed(world, link, text);
    send_fin(link);
    const Received all = collect_to_end(world, link);
    EXPECT_EQ(all.result, 0);
    EXPECT_EQ(first_difference(all.text, text), kNowhere);
    EXPECT_TRUE(world.run_until([&] { return closes > closes_before && closes == connects; }));
    EXPECT_EQ(to_string(last_report.reason), to_string(CloseReason::eof));
    EXPECT_EQ(local_at_the_end, SocketAddress()) << "it had ended";
  }
  void expect_echo(const SocketAddress& address, std::size_t size = 100 * kKiB) {
    World::Link link;
    link.client = connect_to(address);
    expect_echo(std::move(link), size);
  }
  /// The outcome of connecting to a Unix socket right now: 0 or an errno value.
  static int connect_error(const SocketAddress& address) {
    const UniqueFd fd(linux_kernel(),
                      ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    return -linux_kernel().connect(fd.get(), address.data(), address.size());
  }

  TemporaryDirectory directory;
  std::string path = directory.file("socket");
  std::size_t connects = 0;
  std::size_t closes = 0;
  SocketAddress last_peer;
  SocketAddress last_local;
  SocketAddress local_at_the_end;
  CloseReport last_report;
};

// -- Unix sockets --

TEST_P(Addresses, AUnixPathIsServedAndRemovedAtTheStop) {
  const std::size_t descriptors = World::open_descriptors();
  auto server = serve({.listen = "unix:" + path});
  EXPECT_TRUE(is_socket(path));
  EXPECT_EQ(server->address().to_string(), "unix:" + path);
  expect_echo(server->address());
  expect_echo(server->address(), 150 * kKiB);
  server->stop();
  world.turn(2);
  EXPECT_FALSE(status_of(path).has_value());
  EXPECT_EQ(connect_error(unix_address(path)), ENOENT);
  EXPECT_EQ(World::open_descriptors(), descriptors);
  // Whoever comes next at that place is none of its affair.
  std::ofstream(path) << "mine";
  server.reset();
  EXPECT_TRUE(status_of(path).has_value());
}

TEST_P(Addresses, AUnixPathIsRemovedWhenItsServerIsDestroyed) {
  const std::size_t descriptors = World::open_descriptors();
  auto server = serve({.listen = "unix:" + path});
  const UniqueFd client = connect_to(server->address());
  ASSERT_TRUE(world.run_until([&] { return connects == 1; }));
  server.reset();
  EXPECT_EQ(closes, 1u);
  EXPECT_EQ(directory.files(), 0u);
  EXPECT_EQ(World::open_descriptors(), descriptors + 1) << "the client's own";
}

TEST_P(Addresses, AUnixPathIsRemovedBeforeTheLastConnectionsHaveEnded) {
  auto server = serve({.listen = "unix:" + path});
  World::Link link;
  link.client = connect_to(server->address());
  ASSERT_TRUE(world.run_until([&] { return connects == 1; }));
  send_text(linux_kernel(), link.client.get(), "last words");
  ASSERT_TRUE(world.run_until(
      [&] { return wait_for(linux_kernel(), link.client.get(), POLLIN | POLLOUT) & POLLIN; }));
  server->stop();
  world.turn();
  EXPECT_FALSE(status_of(path).has_value());
  EXPECT_EQ(collect_to_end(world, link).text, "last words");
  link.client.reset();
  EXPECT_TRUE(world.run_until([&] { return closes == 1; }));
}

TEST_P(Addresses, AnAbstractNameIsServedAndLeavesNoFile) {
  const std::string name = abstract_name();
  auto server = serve({.listen = "unix:" + name});
  EXPECT_FALSE(status_of(name).has_value()) << "a file in the working directory";
  EXPECT_EQ(server->address().to_string(), "unix:" + name);
  EXPECT_EQ(server->address().path(), name);
  expect_echo(server->address());
  EXPECT_EQ(start_error("unix:" + name), system_error(EADDRINUSE));
  expect_echo(server->address());
  server->stop();
  world.turn(2);
  EXPECT_EQ(connect_error(unix_address(name)), ECONNREFUSED);
  auto next = serve({.listen = "unix:" + name});
  expect_echo(next->address());
}

TEST_P(Addresses, AServerCanBeStartedAgainAtThePathOfTheOneBefore) {
  for (int i = 0; i < 5; ++i) {
    auto server = serve({.listen = "unix:" + path});
    expect_echo(server->address());
    if (i % 2 == 0) {
      server->stop();
      world.turn(2);
    }
  }
  EXPECT_EQ(directory.files(), 0u);
}

TEST_P(Addresses, TheSocketOfADeadListenerIsReplaced) {
  raw_bound(unix_address(path)).reset();
  const auto stale = status_of(path);
  ASSERT_TRUE(stale.has_value());
  auto server = serve({.listen = "unix:" + path});
  EXPECT_TRUE(is_socket(path));
  expect_echo(server->address());
  server->stop();
  world.turn(2);
  EXPECT_EQ(directory.files(), 0u);
}

TEST_P(Addresses, APathOfALiveServerIsNotTakenAndThatServerStillWorks) {
  auto server = serve({.listen = "unix:" + path});
  const auto before = status_of(path);
  const std::size_t descriptors = World::open_descriptors();
  EXPECT_EQ(start_error("unix:" + path), system_error(EADDRINUSE));
  ASSERT_TRUE(status_of(path).has_value());
  EXPECT_TRUE(status_of(path)->is_same(*before));
  expect_echo(server->address());
  EXPECT_TRUE(world.run_until([&] { return closes == connects; }));
  EXPECT_EQ(World::open_descriptors(), descriptors);
  server->stop();
  world.turn(2);
  EXPECT_EQ(directory.files(), 0u);
}

// K33: a connection attempt to it says EAGAIN.
TEST_P(Addresses, APathOfALiveServerWithAFullBacklogIsNotTaken) {
  const UniqueFd live = raw_bound(unix_address(path), SOCK_STREAM, 0);
  std::vector<UniqueFd> waiting;
  int outcome = 0;
  while (outcome == 0 && waiting.size() < 100) {
    waiting.emplace_back(linux_kernel(),
                         ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const SocketAddress address = unix_address(path);
    outcome = linux_kernel().connect(waiting.back().get(), address.data(), address.size());
  }
  ASSERT_EQ(outcome, -EAGAIN);
  const auto before = status_of(path);
  EXPECT_EQ(start_error("unix:" + path), system_error(EADDRINUSE));
  ASSERT_TRUE(status_of(path).has_value());
  EXPECT_TRUE(status_of(path)->is_same(*before));
}

TEST_P(Addresses, AFileThatIsNoDeadListenerIsNeverRemoved) {
  const std::string regular = directory.file("regular");
  std::ofstream(regular) << "precious";
  const std::string folder = directory.file("folder");
  ASSERT_EQ(::mkdir(folder.c_str(), 0700), 0);
  const std::string fifo = directory.file("fifo");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  const std::string stale = directory.file("stale");
  raw_bound(unix_address(stale)).reset();
  const std::string datagram = directory.file("datagram");
  const UniqueFd live_datagram = raw_bound(unix_address(datagram), SOCK_DGRAM, -1);
  const auto link_to = [&](const char* name, const std::string& target) {
    const std::string link = directory.file(name);
    EXPECT_EQ(::symlink(target.c_str(), link.c_str()), 0);
    return link;
  };
  const std::vector<std::string> in_the_way = {regular,
                                               folder,
                                               fifo,
                                               datagram,
                                               link_to("link-to-file", regular),
                                               link_to("link-to-socket", stale),
                                               link_to("link-to-nothing", directory.file("none"))};
  const std::size_t files = directory.files();
  const std::size_t descriptors = World::open_descriptors();
  for (const std::string& file : in_the_way) {
    SCOPED_TRACE(file);
    const auto before = status_of(file);
    EXPECT_EQ(start_error("unix:" + file), system_error(EADDRINUSE));
    ASSERT_TRUE(status_of(file).has_value());
    EXPECT_TRUE(status_of(file)->is_same(*before));
    EXPECT_EQ(status_of(file)->mode, before->mode);
  }
  EXPECT_EQ(directory.files(), files);
  EXPECT_EQ(World::open_descriptors(), descriptors);
  EXPECT_EQ(std::filesystem::file_size(regular), 8u);
}

TEST_P(Addresses, WhatTookThePathOverIsLeftAtTheStop) {
  for (const bool destroyed : {false, true}) {
    SCOPED_TRACE(destroyed);
    auto server = serve({.listen = "unix:" + path});
    ASSERT_EQ(::unlink(path.c_str()), 0);
    const UniqueFd successor = raw_bound(unix_address(path));
    const auto before = status_of(path);
    if (destroyed) {
      server.reset();
    } else {
      server->stop();
      world.turn(2);
    }
    ASSERT_TRUE(status_of(path).has_value());
    EXPECT_TRUE(status_of(path)->is_same(*before));
    EXPECT_EQ(connect_error(unix_address(path)), 0);
    ASSERT_EQ(::unlink(path.c_str()), 0);
  }
}

TEST_P(Addresses, AnotherServerOfOursMayTakeThePathOver) {
  auto server = serve({.listen = "unix:" + path});
  const std::string aside = directory.file("aside");
  ASSERT_EQ(::rename(path.c_str(), aside.c_str()), 0);
  auto successor = serve({.listen = "unix:" + path});
  server->stop();
  world.turn(2);
  EXPECT_TRUE(is_socket(path));
  EXPECT_TRUE(is_socket(aside)) << "moved by somebody, who looks after it";
  expect_echo(successor->address());
  successor->stop();
  world.turn(2);
  EXPECT_FALSE(status_of(path).has_value());
}

TEST_P(Addresses, APathThatCannotBeRemovedDoesNotHoldUpTheStop) {
  const std::size_t descriptors = World::open_descriptors();
  auto server = serve({.listen = "unix:" + path});
  bool stopped = false;
  server->on_stopped([&] { stopped = true; });
  const auto rule = world.kernel.inject({.call = Call::unlink, .every = 1, .error = EACCES});
  server->stop();
  world.turn(2);
  EXPECT_EQ(world.kernel.fired(rule), 1u);
  world.kernel.heal();
  EXPECT_EQ(World::open_descriptors(), descriptors);
  EXPECT_EQ(connect_error(unix_address(path)), ECONNREFUSED);
  // It is stale now, so it is in nobody's way.
  auto next = serve({.listen = "unix:" + path});
  expect_echo(next->address());
}

TEST_P(Addresses, WhichUnixPathCannotBeIsSaid) {
  EXPECT_EQ(start_error("unix:" + directory.file("none/socket")), system_error(ENOENT));
  std::ofstream(directory.file("file")) << "x";
  EXPECT_EQ(start_error("unix:" + directory.file("file/socket")), system_error(ENOTDIR));
  EXPECT_EQ(start_error("unix:"), make_error_code(Errc::bad_address));
  EXPECT_EQ(start_error("unix:" + std::string(200, 'p')), make_error_code(Errc::bad_address));
}

TEST_P(Addresses, ConnectionsOfAUnixSocketKnowTheirEnds) {
  auto server = serve({.listen = "unix:" + path});
  expect_echo(server->address());
  EXPECT_TRUE(last_peer.is_unix());
  EXPECT_EQ(last_peer.path(), "") << "the client is unnamed";
  EXPECT_EQ(last_local, server->address());
  // A client with a name of its own.
  const SocketAddress own = unix_address(directory.file("client"));
  World::Link link;
  link.client =
      UniqueFd(linux_kernel(), ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  ASSERT_EQ(linux_kernel().bind(link.client.get(), own.data(), own.size()), 0);
  const SocketAddress there = server->address();
  ASSERT_EQ(linux_kernel().connect(link.client.get(), there.data(), there.size()), 0);
  expect_echo(std::move(link));
  EXPECT_EQ(last_peer, own);
}

// K33
TEST_P(Addresses, NoOptionOfTcpIsSetOnAUnixSocket) {
  for (const std::string& listen : {"unix:" + path, "unix:" + abstract_name()}) {
    const std::uint64_t before = world.kernel.calls(Call::setsockopt);
    auto server = serve({.listen = listen});
    expect_echo(server->address());
    server->stop();
    world.turn(2);
    EXPECT_EQ(world.kernel.calls(Call::setsockopt), before) << listen;
  }
  auto server = serve({});
  EXPECT_GT(world.kernel.calls(Call::setsockopt), 0u) << "counting would have shown it";
}

// 2.15
TEST_P(Addresses, WhicheverCallOfAStartFailsNoFileAndNoDescriptorIsLeft) {
  const std::size_t descriptors = World::open_descriptors();
  bool reached = true;
  int failed = 0;
  std::uint64_t which = 1;
  for (; reached; ++which) {
    SCOPED_TRACE(which);
    ASSERT_LT(which, 100u);
    auto server = make({.listen = "unix:" + path});
    const auto rule = world.kernel.inject({.call = Call::any, .first = which, .error = ENOMEM});
    const Result<void> started = server->start();
    reached = world.kernel.fired(rule) > 0;
    world.kernel.heal();
    if (started) {
      expect_echo(server->address(), 10);
      server->stop();
      world.turn(2);
    } else {
      ++failed;
      EXPECT_TRUE(reached);
      EXPECT_EQ(started.error(), system_error(ENOMEM));
    }
    EXPECT_EQ(directory.files(), 0u);
    server.reset();
    EXPECT_EQ(directory.files(), 0u);
    EXPECT_EQ(World::open_descriptors(), descriptors);
    std::filesystem::remove(path);
  }
  EXPECT_GE(failed, 5) << "socket, bind, file_status, listen, getsockname";
}

// The same by name, so that each is known to have happened.
TEST_P(Addresses, EveryStepOfAStartThatFailsLeavesNoFileAndNoDescriptor) {
  std::vector<Call> steps = {Call::socket, Call::bind, Call::file_status, Call::listen,
                             Call::getsockname};
  if (GetParam() != Backend::poll) steps.push_back(Call::epoll_ctl);
  const std::size_t descriptors = World::open_descriptors();
  for (const Call step : steps) {
    SCOPED_TRACE(static_cast<int>(step));
    const auto rule = world.kernel.inject({.call = step, .error = ENOBUFS});
    auto server = make({.listen = "unix:" + path});
    const Result<void> started = server->start();
    EXPECT_EQ(world.kernel.fired(rule), 1u);
    world.kernel.heal();
    EXPECT_FALSE(started.has_value());
    if (!started) {
      EXPECT_EQ(started.error(), system_error(ENOBUFS));
    }
    EXPECT_EQ(directory.files(), 0u);
    EXPECT_EQ(World::open_descriptors(), descriptors);
    std::filesystem::remove(path);
    // The same server can be started once the trouble is over.
    EXPECT_TRUE(server->start().has_value());
    expect_echo(server->address(), 10);
  }
}

TEST_P(Addresses, WhicheverCallFailsWhileAStaleSocketIsReplacedNoDescriptorIsLeft) {
  const std::size_t descriptors = World::open_descriptors();
  bool reached = true;
  int failed = 0;
  for (std::uint64_t which = 1; reached; ++which) {
    SCOPED_TRACE(which);
    ASSERT_LT(which, 100u);
    raw_bound(unix_address(path)).reset();
    auto server = make({.listen = "unix:" + path});
    const auto rule = world.kernel.inject({.call = Call::any, .first = which, .error = EIO});
    const Result<void> started = server->start();
    reached = world.kernel.fired(rule) > 0;
    world.kernel.heal();
    if (!started) ++failed;
    server.reset();
    EXPECT_EQ(World::open_descriptors(), descriptors);
    std::filesystem::remove(path);
  }
  EXPECT_GE(failed, 8) << "the stale one is looked at, probed and unlinked, too";
}

// -- IPv4 and IPv6 --

TEST_P(Addresses, EachFamilyIsServedAtItsLoopback) {
  for (const char* listen : {"127.0.0.1:0", "[::1]:0", "localhost:0"}) {
    SCOPED_TRACE(listen);
    auto server = serve({.listen = listen});
    EXPECT_NE(server->address().port(), 0);
    World::Link link;
    link.client = connect_to(server->address());
    const SocketAddress client = local_address(linux_kernel(), link.client.get());
    expect_echo(std::move(link));
    EXPECT_EQ(last_peer, client);
    EXPECT_EQ(last_local, server->address());
    EXPECT_EQ(SocketAddress::parse(server->address().to_string()).value(), server->address());
  }
}

TEST_P(Addresses, TheIpv6WildcardServesBothFamilies) {
  auto server = serve({.listen = "[::]:0"});
  const std::string port = std::to_string(server->address().port());
  for (const bool four : {false, true}) {
    SCOPED_TRACE(four);
    const std::string host = four ? "127.0.0.1:" : "[::1]:";
    World::Link link;
    link.client = connect_to(SocketAddress::parse(host + port).value());
    const std::uint16_t client = local_address(linux_kernel(), link.client.get()).port();
    expect_echo(std::move(link));
    const std::string seen_host = four ? "[::ffff:127.0.0.1]:" : "[::1]:";
    EXPECT_EQ(last_peer.to_string(), seen_host + std::to_string(client));
    EXPECT_EQ(last_local.to_string(), seen_host + port);
  }
}

TEST_P(Addresses, Ipv6OnlyLeavesIpv4ToOthers) {
  auto six = serve({.listen = "[::]:0", .ipv6_only = true});
  const std::string port = std::to_string(six->address().port());
  const SocketAddress by_four = SocketAddress::parse("127.0.0.1:" + port).value();
  EXPECT_EQ(connect_outcome(by_four), ECONNREFUSED);
  expect_echo(SocketAddress::parse("[::1]:" + port).value());
  EXPECT_EQ(last_peer.family(), AF_INET6);
  auto four = serve({.listen = ":" + port});
  expect_echo(by_four);
  EXPECT_EQ(last_peer.family(), AF_INET);
  expect_echo(SocketAddress::parse("[::1]:" + port).value());
}

TEST_P(Addresses, Ipv6OnlyMeansNothingToOtherFamilies) {
  for (const std::string& listen : {std::string("127.0.0.1:0"), "unix:" + path}) {
    SCOPED_TRACE(listen);
    auto server = serve({.listen = listen, .ipv6_only = true});
    expect_echo(server->address());
  }
}

TEST_P(Addresses, EveryStepOfATcpStartThatFailsLeavesNoDescriptor) {
  const std::size_t descriptors = World::open_descriptors();
  bool reached = true;
  int failed = 0;
  for (std::uint64_t which = 1; reached; ++which) {
    SCOPED_TRACE(which);
    ASSERT_LT(which, 100u);
    auto server = make({.listen = "[::]:0"});
    const auto rule = world.kernel.inject({.call = Call::any, .first = which, .error = ENOMEM});
    const Result<void> started = server->start();
    reached = world.kernel.fired(rule) > 0;
    world.kernel.heal();
    if (!started) {
      ++failed;
      EXPECT_EQ(started.error(), system_error(ENOMEM));
      EXPECT_EQ(World::open_descriptors(), descriptors);
    }
  }
  EXPECT_GE(failed, 6) << "SO_REUSEADDR and IPV6_V6ONLY, too";
}

// -- Inherited descriptors --

TEST_P(Addresses, AnInheritedTcpListenerIsServedAndMadeNonBlocking) {
  for (const char* host : {"127.0.0.1:0", "[::1]:0"}) {
    SCOPED_TRACE(host);
    const std::size_t descriptors = World::open_descriptors();
    const int fd = raw_bound(SocketAddress::parse(host).value()).release();
    const SocketAddress address = local_address(linux_kernel(), fd);
    ASSERT_EQ(::fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    // Somebody waits already.
    World::Link early;
    early.client = connect_to(address);
    auto server = serve({.listen = "fd:" + std::to_string(fd)});
    EXPECT_NE(::fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    EXPECT_NE(::fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_EQ(server->address(), address);
    expect_echo(std::move(early));
    EXPECT_EQ(last_local, address);
    expect_echo(address);
    server->stop();
    world.turn(2);
    EXPECT_FALSE(is_open(fd));
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
}

TEST_P(Addresses, ConnectionsOfAnInheritedTcpListenerHaveTheOptionsOfOthers) {
  const int fd = raw_bound(SocketAddress::parse("127.0.0.1:0").value()).release();
  auto server = std::make_unique<TcpServer>(world.loop,
                                            TcpServerOptions{.listen = "fd:" + std::to_string(fd)});
  int no_delay = -1;
  int keep_alive = -1;
  int idle = -1;
  server->on_connect([&](TcpConnection& peer) {
    no_delay = peer.option<int>(IPPROTO_TCP, TCP_NODELAY).value();
    keep_alive = peer.option<int>(SOL_SOCKET, SO_KEEPALIVE).value();
    idle = peer.option<int>(IPPROTO_TCP, TCP_KEEPIDLE).value();
  });
  ASSERT_TRUE(server->start().has_value());
  const UniqueFd client = connect_to(server->address());
  EXPECT_TRUE(world.run_until([&] { return no_delay >= 0; }));
  EXPECT_EQ(no_delay, 1);
  EXPECT_EQ(keep_alive, 1);
  EXPECT_EQ(idle, 60);
}

TEST_P(Addresses, AnInheritedUnixListenerIsServedAndItsPathLeft) {
  const int fd = raw_bound(unix_address(path)).release();
  const auto before = status_of(path);
  const std::uint64_t options = world.kernel.calls(Call::setsockopt);
  auto server = serve({.listen = "fd:" + std::to_string(fd)});
  EXPECT_EQ(server->address(), unix_address(path));
  expect_echo(server->address());
  EXPECT_EQ(world.kernel.calls(Call::setsockopt), options);
  server->stop();
  world.turn(2);
  EXPECT_FALSE(is_open(fd));
  ASSERT_TRUE(status_of(path).has_value()) << "who made it removes it";
  EXPECT_TRUE(status_of(path)->is_same(*before));
  server.reset();
  EXPECT_TRUE(status_of(path).has_value());
}

TEST_P(Addresses, WhoKeepsADuplicateOfAnInheritedListenerKeepsTheBacklog) {
  const UniqueFd mine = raw_bound(unix_address(path));
  auto first = serve({.listen = "fd:" + std::to_string(::dup(mine.get()))});
  expect_echo(first->address());
  first->stop();
  world.turn(2);
  World::Link waiting;
  waiting.client = connect_to(unix_address(path));
  auto second = serve({.listen = "fd:" + std::to_string(::dup(mine.get()))});
  expect_echo(std::move(waiting));
}

// What listens to nothing is none of ours: fd:2 by mistake must not close the standard error.
TEST_P(Addresses, ADescriptorThatIsNoListenerIsRefusedAndLeftAlone) {
  std::array<int, 2> pipes{-1, -1};
  ASSERT_EQ(::pipe(pipes.data()), 0);
  const UniqueFd reader(linux_kernel(), pipes[0]);
  const UniqueFd writer(linux_kernel(), pipes[1]);
  const UniqueFd file(linux_kernel(),
                      ::open(directory.file("file").c_str(), O_RDWR | O_CREAT, 0600));
  const UniqueFd event(linux_kernel(), ::eventfd(0, 0));
  const SocketAddress loopback = SocketAddress::parse("127.0.0.1:0").value();
  const UniqueFd bound = raw_bound(loopback, SOCK_STREAM, -1);
  const UniqueFd fresh(linux_kernel(), ::socket(AF_INET, SOCK_STREAM, 0));
  const UniqueFd datagram = raw_bound(loopback, SOCK_DGRAM, -1);
  const UniqueFd packets = raw_bound(unix_address(directory.file("packets")), SOCK_SEQPACKET);
  const SocketPair connected = tcp_pair(linux_kernel());
  std::array<int, 2> pair{-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair.data()), 0);
  const UniqueFd left(linux_kernel(), pair[0]);
  const UniqueFd right(linux_kernel(), pair[1]);
  const std::size_t descriptors = World::open_descriptors();
  for (const UniqueFd* wrong : {&reader, &writer, &file, &event, &bound, &fresh, &datagram,
                                &packets, &connected.server, &left}) {
    SCOPED_TRACE(wrong->get());
    const int flags = ::fcntl(wrong->get(), F_GETFL);
    const std::uint64_t closed = world.kernel.calls_on(Call::close, wrong->get());
    EXPECT_EQ(start_error("fd:" + std::to_string(wrong->get())),
              make_error_code(Errc::not_listening));
    EXPECT_TRUE(is_open(wrong->get()));
    EXPECT_EQ(::fcntl(wrong->get(), F_GETFL), flags);
    EXPECT_EQ(world.kernel.calls_on(Call::close, wrong->get()), closed);
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
}

TEST_P(Addresses, ADescriptorThatIsNotOpenIsAnErrorAndNothingIsClosed) {
  int free = 0;
  {
    const UniqueFd gone = tcp_socket(linux_kernel());
    free = gone.get();
  }
  for (const int number : {free, 1'000'000, 2'147'483'647}) {
    SCOPED_TRACE(number);
    const std::size_t descriptors = World::open_descriptors();
    const std::uint64_t closed = world.kernel.calls_on(Call::close, number);
    EXPECT_EQ(start_error("fd:" + std::to_string(number)), system_error(EBADF));
    EXPECT_EQ(world.kernel.calls_on(Call::close, number), closed);
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
}

TEST_P(Addresses, ATextThatNamesNoDescriptorIsABadAddress) {
  const std::size_t descriptors = World::open_descriptors();
  const std::uint64_t closed = world.kernel.calls(Call::close);
  for (const char* text : {"fd:", "fd:-1", "fd:+3", "fd: 3", "fd:3 ", "fd:3x", "fd:x", "fd:0x3",
                           "fd:2147483648", "fd:99999999999999999999", "fd:3:4", "fd"}) {
    EXPECT_EQ(start_error(text), make_error_code(Errc::bad_address)) << text;
  }
  EXPECT_EQ(world.kernel.calls(Call::close), closed);
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// A limit that does not fit is found before the descriptor is looked at.
TEST_P(Addresses, AnInheritedListenerIsLeftAloneWhenTheLimitsDoNotFit) {
  const UniqueFd listener = raw_bound(unix_address(path));
  auto server = make({.listen = "fd:" + std::to_string(listener.get()),
                      .max_connections = linux_kernel().descriptor_limit()});
  const Result<void> started = server->start();
  ASSERT_FALSE(started.has_value());
  EXPECT_EQ(started.error(), make_error_code(Errc::too_many_connections));
  server.reset();
  EXPECT_TRUE(is_open(listener.get()));
  EXPECT_EQ(connect_error(unix_address(path)), 0);
}

// A listener is taken over: it is closed when what follows fails, and only once.
TEST_P(Addresses, WhicheverCallFailsBehindAnInheritedListenerNoDescriptorIsLeft) {
  const std::size_t descriptors = World::open_descriptors();
  std::size_t failed = 0;
  std::size_t left_alone = 0;
  bool reached = true;
  for (std::uint64_t which = 1; reached; ++which) {
    SCOPED_TRACE(which);
    ASSERT_LT(which, 100u);
    const int fd = raw_bound(SocketAddress::parse("127.0.0.1:0").value()).release();
    const std::uint64_t closed = world.kernel.calls_on(Call::close, fd);
    auto server = make({.listen = "fd:" + std::to_string(fd)});
    const auto rule = world.kernel.inject({.call = Call::any, .first = which, .error = ENOMEM});
    const Result<void> started = server->start();
    reached = world.kernel.fired(rule) > 0;
    world.kernel.heal();
    if (!started) {
      ++failed;
      EXPECT_TRUE(reached);
      if (is_open(fd)) {
        ++left_alone;
        EXPECT_EQ(world.kernel.calls_on(Call::close, fd), closed);
        ::close(fd);
      } else {
        EXPECT_EQ(world.kernel.calls_on(Call::close, fd), closed + 1);
      }
    }
    server.reset();
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
  EXPECT_GE(failed, 5u) << "getsockopt, fcntl, getsockname, setsockopt, and registering";
  EXPECT_LE(left_alone, 2u) << "only while it was not known to be a listener";
}

PENSTOCK_ON_EVERY_BACKEND(Addresses);

}  // namespace
}  // namespace penstock::test

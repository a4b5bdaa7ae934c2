// One loop of the library on the real kernel with a FaultyKernel before it, driven step by step by the test, and raw sockets as its
// clients: no second thread, no sleeping, no fixed port. The body of a conformance test takes the back-end as its parameter.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "penstock/bytes/memory_budget.h"
#include "penstock/os/forwarding_kernel.h"
#include "penstock/penstock.h"
#include "penstock/sim/faulty_kernel.h"
#include "penstock/tcp/connection_table.h"
#include "support/sockets.h"
#include "support/untimed.h"

namespace penstock::test {

/// What the callbacks of one connection have been told, in order.
struct Record {
  std::vector<std::string>
      events;  ///< "connect", "message", "peer_finished", "write_complete", "high", "low", "close"
  std::string received;  ///< All input that the message callback consumed.
  std::optional<CloseReport> report;
  int closes = 0;

  /// How often an event of that name came.
  std::size_t count(const std::string& event) const;
};

/// Sees each send on its way to the real kernel, shortened or not: which pieces, in which memory.
class SendTap final : public ForwardingKernel {
 public:
  using ForwardingKernel::ForwardingKernel;

  /// Runs before each send and sendmsg that reaches the kernel.
  std::function<void(int fd, std::span<const iovec> pieces)> on_send;

 private:
  ssize_t raw_send(int fd, const void* bytes, std::size_t size, int flags) override;
  ssize_t raw_sendmsg(int fd, const msghdr* message, int flags) override;
};

class World {
 public:
  /// `budget` bounds the memory of all connections; empty is the library's default. `real` stands
  /// behind the faulty kernel; it outlives the world. `io` is how the loop divides its time.
  explicit World(Backend backend, CountedPtr<MemoryBudget> budget = {},
                 Kernel& real = linux_kernel(), IoOptions io = kUntimed);
  /// Removes the hooks first: what they refer to is often gone by now, and the loop still ends its connections.
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  SendTap tap;
  FaultyKernel kernel{tap};

 private:
  // Learns which connection an adoption made.
  struct Owner final : ConnectionOwner {
    void connection_started(TcpConnection& connection) noexcept override { newest = &connection; }
    void connection_ended(TcpConnection&) noexcept override { ++ended; }
    TcpConnection* newest = nullptr;
    std::size_t ended = 0;
  };
  Owner owner_;
  int steps_per_turn_;

 public:
  EventLoop loop;

  /// Turns the loop until the condition holds; false after forty seconds (which is a failed test).
  [[nodiscard]] bool run_until(const std::function<bool()>& condition);
  /// Turns the loop, without waiting, until several turns in a row have had no event, nobody waits for a turn, and the kernel's loopback
  /// has nothing under way.
  void settle();
  /// Turns the loop, without waiting, as often as it takes for what is at hand to go `turns` steps
  /// further: once for each on most back-ends, several times on the deferring one. For exactly one
  /// turn, loop.step().
  void turn(int turns = 1);

  /// Callbacks that write into `record` and consume all input. Wrap or replace single ones as the test needs.
  static ConnectionCallbacks recording(const std::shared_ptr<Record>& record);

  /// A connection of the loop and the raw client at its other end. `connection` dangles after on_close: ask `record`.
  struct Link {
    UniqueFd client;
    TcpConnection* connection = nullptr;
    ConnectionHandle handle;
    std::shared_ptr<Record> record;
  };
  /// Connects by TCP and adopts. The callbacks default to recording(record).
  Link connect(ConnectionLimits limits = {});
  Link connect(std::shared_ptr<Record> record, ConnectionCallbacks callbacks,
               ConnectionLimits limits = {});

  /// Descriptors of this process; take it before and after to show that none is lost.
  static std::size_t open_descriptors() { return linux_kernel().open_descriptors(); }
};

/// A suite whose tests run on every back-end: `class WriteTest : public ConformanceTest {}; TEST_P(WriteTest, …)
/// PENSTOCK_ON_EVERY_BACKEND(WriteTest);`
class ConformanceTest : public testing::TestWithParam<Backend> {
 protected:
  ConformanceTest() = default;
  /// With `real` behind the faulty kernel; it outlives the test.
  ConformanceTest(Kernel& real, IoOptions io) : world(GetParam(), {}, real, io) {}

  World world{GetParam()};
};

/// The back-ends there are; a new one joins here.
inline constexpr Backend kBackends[] = {Backend::epoll, Backend::epoll_edge, Backend::poll,
                                        Backend::custom /* deferring */};

// -- What only some of them do. A test that is about it says so and skips the others. --

/// The kernel keeps the interest set, so that there is something to register (epoll).
bool registers_with_the_kernel(Backend backend);
/// send() reaches the kernel before it returns, and an event its handler in the same poll.
bool acts_at_once(Backend backend);
/// The calls by which a loop on it is made: each can fail.
std::vector<Call> making_calls(Backend backend);
/// The call of the kernel seam by which it waits.
Call wait_call(Backend backend);

/// "epoll", "epoll_et", "poll", "deferring".
std::string backend_word(Backend backend);
std::string backend_test_name(const testing::TestParamInfo<Backend>& info);

}  // namespace penstock::test

#define PENSTOCK_ONLY_IF(condition, reason) \
  if (!(condition)) GTEST_SKIP() << (reason)

#define PENSTOCK_ON_EVERY_BACKEND(Suite)                                                    \
  INSTANTIATE_TEST_SUITE_P(Backends, Suite, testing::ValuesIn(::penstock::test::kBackends), \
                           ::penstock::test::backend_test_name)

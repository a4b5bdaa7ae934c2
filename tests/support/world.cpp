#include "support/world.h"

#include <algorithm>
#include <utility>

#include "support/deferring_backend.h"

namespace penstock::test {
namespace {

// Before any test: kBackends names it.
[[maybe_unused]] const bool kCustomBackendIsSet = [] {
  set_custom_backend(&make_deferring_backend);
  return true;
}();

}  // namespace

World::~World() {
  tap.on_send = nullptr;
  for (std::size_t call = 0; call < kCallKinds; ++call)
    kernel.before(Call{call}, {});
}

std::size_t Record::count(const std::string& event) const {
  return static_cast<std::size_t>(std::ranges::count(events, event));
}

ssize_t SendTap::raw_send(int fd, const void* bytes, std::size_t size, int flags) {
  const iovec piece{.iov_base = const_cast<void*>(bytes), .iov_len = size};
  if (on_send) on_send(fd, std::span(&piece, 1));
  return ForwardingKernel::raw_send(fd, bytes, size, flags);
}

ssize_t SendTap::raw_sendmsg(int fd, const msghdr* message, int flags) {
  if (on_send) on_send(fd, std::span(message->msg_iov, message->msg_iovlen));
  return ForwardingKernel::raw_sendmsg(fd, message, flags);
}

World::World(Backend backend, CountedPtr<MemoryBudget> budget, Kernel& real, IoOptions io)
    : tap(real),
      steps_per_turn_(acts_at_once(backend) ? 1 : 4),
      loop({.backend = backend, .kernel = &kernel, .io = io, .memory_budget = std::move(budget)}) {}

bool World::run_until(const std::function<bool()>& condition) {
  // Real time, so that a test may move the loop's clock.
  const TimePoint end = linux_kernel().now() + std::chrono::seconds(40);
  while (!condition()) {
    if (linux_kernel().now() > end) return false;
    loop.step(std::chrono::milliseconds(5));
  }
  return true;
}

void World::settle() {
  constexpr int kQuietTurns = 5;
  for (int quiet = 0; quiet < kQuietTurns;) {
    const std::uint64_t events = loop.statistics().io.events;
    loop.step(std::chrono::milliseconds(1));
    const bool still = loop.statistics().io.events == events && !loop.backend().round_under_way();
    quiet = still ? quiet + 1 : 0;
  }
}

void World::turn(int turns) {
  for (int i = 0; i < turns * steps_per_turn_; ++i)
    loop.step();
}

ConnectionCallbacks World::recording(const std::shared_ptr<Record>& record) {
  ConnectionCallbacks callbacks;
  callbacks.on_connect = [record](TcpConnection&) { record->events.emplace_back("connect"); };
  callbacks.on_message = [record](TcpConnection&, InputBuffer& in) {
    record->events.emplace_back("message");
    record->received += in.take_string();
  };
  callbacks.on_write_complete = [record](TcpConnection&) {
    record->events.emplace_back("write_complete");
  };
  callbacks.on_high_water = [record](TcpConnection&) { record->events.emplace_back("high"); };
  callbacks.on_low_water = [record](TcpConnection&) { record->events.emplace_back("low"); };
  callbacks.on_close = [record](TcpConnection&, const CloseReport& report) {
    record->events.emplace_back("close");
    record->report = report;
    ++record->closes;
  };
  return callbacks;
}

World::Link World::connect(ConnectionLimits limits) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = recording(record);
  return connect(std::move(record), std::move(callbacks), limits);
}

World::Link World::connect(std::shared_ptr<Record> record, ConnectionCallbacks callbacks,
                           ConnectionLimits limits) {
  SocketPair pair = tcp_pair(kernel);
  Link link;
  link.client = UniqueFd(linux_kernel(), pair.client.release());
  link.record = std::move(record);
  ConnectionTable& table = ConnectionTable::of(loop);
  Result<ConnectionHandle> handle =
      table.adopt(std::move(pair.server), local_address(linux_kernel(), link.client.get()),
                  make_behaviour(std::move(callbacks), limits), &owner_);
  EXPECT_TRUE(handle.has_value());
  if (handle) {
    link.handle = *handle;
    link.connection = owner_.newest;
  }
  return link;
}

bool registers_with_the_kernel(Backend backend) { return backend != Backend::poll; }
bool acts_at_once(Backend backend) { return backend != Backend::custom; }
std::vector<Call> making_calls(Backend backend) {
  if (backend == Backend::poll) return {Call::eventfd};
  return {Call::epoll_create, Call::eventfd, Call::epoll_ctl};
}
Call wait_call(Backend backend) { return backend == Backend::poll ? Call::poll : Call::epoll_wait; }

std::string backend_word(Backend backend) {
  if (backend == Backend::custom) return "deferring";
  std::string word(to_string(backend));
  std::ranges::replace(word, '-', '_');
  return word;
}

std::string backend_test_name(const testing::TestParamInfo<Backend>& info) {
  return backend_word(info.param);
}

}  // namespace penstock::test

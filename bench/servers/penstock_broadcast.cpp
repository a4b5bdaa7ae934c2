// The publisher of the broadcast benchmark: waits until --connections have joined (a byte each), then
// sends --messages of --size bytes to all of them, one every --interval-us, through a ConnectionGroup;
// ends when all have gone, and prints one line of JSON: what it cost. The messages are those that
// ../load/subscribers.c checks.

#include <sys/resource.h>
#include <sys/socket.h>

#include <atomic>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <string_view>

#include "../pattern.h"
#include "penstock/os/forwarding_kernel.h"
#include "penstock/penstock.h"

namespace {

std::atomic<std::uint64_t> allocations{0};

}  // namespace

// Counts every allocation of the process.
void* operator new(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using namespace penstock;

struct Options {
  TcpServerOptions server;
  std::uint64_t connections = 100;
  std::uint64_t messages = 100;
  std::uint64_t size = 1024;
  std::uint64_t interval_microseconds = 50'000;
  SlowConsumer policy = SlowConsumer::drop_oldest;
  std::uint64_t backlog_max = std::uint64_t{32} * 1024;
  bool counts_copies = false;
};

// Sees which memory each send takes its bytes from.
class CopyCounter final : public ForwardingKernel {
 public:
  using ForwardingKernel::ForwardingKernel;

  void know(const SharedBytes& payload) {
    const std::lock_guard lock(mutex_);
    payloads_[payload.bytes().data()] = payload;
  }
  std::uint64_t copied_pieces() const noexcept { return copied_.load(); }
  std::uint64_t shared_pieces() const noexcept { return shared_.load(); }

 private:
  ssize_t raw_send(int fd, const void* bytes, std::size_t size, int flags) override {
    note(bytes);
    return ForwardingKernel::raw_send(fd, bytes, size, flags);
  }
  ssize_t raw_sendmsg(int fd, const msghdr* message, int flags) override {
    for (std::size_t i = 0; i < message->msg_iovlen; ++i)
      note(message->msg_iov[i].iov_base);
    return ForwardingKernel::raw_sendmsg(fd, message, flags);
  }

  void note(const void* bytes) {
    const auto* begin = static_cast<const std::byte*>(bytes);
    const std::lock_guard lock(mutex_);
    auto next = payloads_.upper_bound(begin);
    const bool known = next != payloads_.begin() && begin < (--next)->first + next->second.size();
    (known ? shared_ : copied_).fetch_add(1, std::memory_order_relaxed);
  }

  std::mutex mutex_;
  std::map<const std::byte*, SharedBytes> payloads_;
  std::atomic<std::uint64_t> copied_{0};
  std::atomic<std::uint64_t> shared_{0};
};

SharedBytes make_message(std::uint64_t number, std::size_t size) {
  std::string bytes(size, '\0');
  auto* data = reinterpret_cast<unsigned char*>(bytes.data());
  const std::int64_t now = linux_kernel().now().time_since_epoch().count();
  std::memcpy(data, &number, sizeof number);
  std::memcpy(data + sizeof number, &now, sizeof now);
  constexpr std::size_t kHeader = 16;
  fill_pattern(data + kHeader, size - kHeader, number + kHeader);
  return SharedBytes(std::move(bytes));
}

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

[[noreturn]] void usage() {
  std::fprintf(stderr,
               "usage: penstock_broadcast [--listen HOST:PORT] [--backend NAME] [--loops N] "
               "[--connections N] [--messages N] [--size BYTES] [--interval-us N] "
               "[--policy drop-oldest|drop-newest|disconnect] [--backlog BYTES] "
               "[--count-copies 1]\n");
  std::exit(2);
}

std::uint64_t number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) usage();
  return value;
}

SlowConsumer policy(std::string_view text) {
  if (text == "drop-oldest") return SlowConsumer::drop_oldest;
  if (text == "drop-newest") return SlowConsumer::drop_newest;
  if (text == "disconnect") return SlowConsumer::disconnect;
  usage();
}

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    if (i + 1 >= count) usage();
    const std::string_view name(arguments[i]);
    const std::string_view value(arguments[i + 1]);
    if (name == "--listen") {
      options.server.listen = value;
    } else if (name == "--backend") {
      const Result<Backend> backend = parse_backend(value);
      if (!backend) usage();
      options.server.backend = *backend;
    } else if (name == "--loops") {
      options.server.loops = number(value);
    } else if (name == "--connections") {
      options.connections = number(value);
    } else if (name == "--messages") {
      options.messages = number(value);
    } else if (name == "--size") {
      options.size = number(value);
    } else if (name == "--interval-us") {
      options.interval_microseconds = number(value);
    } else if (name == "--policy") {
      options.policy = policy(value);
    } else if (name == "--backlog") {
      options.backlog_max = number(value);
    } else if (name == "--count-copies") {
      options.counts_copies = number(value) != 0;
    } else {
      usage();
    }
  }
  constexpr std::uint64_t kSizeMin = 16;
  if (options.size < kSizeMin || options.connections == 0 || options.messages == 0) usage();
  return options;
}

}  // namespace

int main(int argument_count, char** arguments) {
  Options options = parse(argument_count, arguments);
  CopyCounter copies(linux_kernel());
  if (options.counts_copies) options.server.kernel = &copies;
  ConnectionLimits& limits = options.server.limits;
  limits.slow_consumer = options.policy;
  limits.backlog_max = options.backlog_max;
  limits.idle_timeout = Duration::zero();
  limits.write_stall_timeout = Duration::zero();

  ConnectionGroup group;
  std::atomic<std::uint64_t> joined{0};
  std::atomic<std::uint64_t> dropped{0};
  TcpServer server(std::move(options.server));
  EventLoop& loop = server.loop();
  std::uint64_t published = 0;
  std::uint64_t allocations_before = 0;
  double cpu_before = 0;
  TimerId timer{};
  std::uint64_t allocations_made = 0;
  // Until then the pools of nodes fill, and the backlogs of those that do not read.
  const std::uint64_t warm_up = options.messages / 2;
  const auto publish = [&] {
    if (published == options.messages) {
      loop.cancel(timer);
      return;
    }
    SharedBytes message = make_message(published, options.size);
    if (options.counts_copies) copies.know(message);
    if (published == warm_up) {
      allocations_before = allocations.load();
      cpu_before = cpu_seconds();
    }
    static_cast<void>(group.send(std::move(message)));
    ++published;
    allocations_made = allocations.load() - allocations_before;
  };
  server.on_connect([](TcpConnection& peer) {
    // Or the kernel alone would hold all that a stalled reader misses.
    const int send_buffer = 32 * 1024;
    static_cast<void>(peer.set_option(SOL_SOCKET, SO_SNDBUF, send_buffer));
  });
  server.on_message([&](TcpConnection& peer, InputBuffer& in) {
    in.take();
    group.add(peer);
    if (++joined != options.connections) return;
    loop.run_in_loop([&] {
      timer = loop.run_every(std::chrono::microseconds(options.interval_microseconds), publish);
    });
  });
  server.on_close([&](TcpConnection&, const CloseReport& report) {
    dropped.fetch_add(report.messages_dropped, std::memory_order_relaxed);
    if (--joined == 0) server.stop();
  });
  server.on_listening([&server] {
    std::printf("listening on %s\n", server.address().to_string().c_str());
    std::fflush(stdout);
  });
  const int status = server.run();
  const GroupStatistics account = group.statistics();
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  std::printf(
      "{\"accepted\": %llu, \"dropped\": %llu, \"closed\": %llu, \"cpu_seconds\": %.6f, "
      "\"measured_messages\": %llu, \"allocations\": %llu, \"resident_max_kib\": %ld, "
      "\"copied_pieces\": %llu, \"shared_pieces\": %llu}\n",
      static_cast<unsigned long long>(account.accepted),
      static_cast<unsigned long long>(dropped.load()),
      static_cast<unsigned long long>(account.closed), cpu_seconds() - cpu_before,
      static_cast<unsigned long long>(options.messages - warm_up),
      static_cast<unsigned long long>(allocations_made), used.ru_maxrss,
      static_cast<unsigned long long>(copies.copied_pieces()),
      static_cast<unsigned long long>(copies.shared_pieces()));
  return status;
}

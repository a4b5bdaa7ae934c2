// Measures one way to send from many threads (design.h): producers send bursts of small messages to
// connections over loopback, in turn; each waits until its burst has arrived, so that nothing piles
// up. One thread plays all peers: it reads and checks every byte. Prints one line of JSON.
//
//   designs --design send-thread|functor-loop|handles [--producers N] [--burst N] [--messages N]
//           [--connections N] [--size BYTES] [--stuck]
//
// --stuck adds a connection whose peer never reads. Its kernel buffers are full before anything is
// measured, and each producer goes on sending to it, one message in 64.
//
// Exit status: 0; 1 a wrong byte, a message out of order, or a system call that failed; 2 usage.

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <semaphore>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "../pattern.h"
#include "design.h"

namespace {

std::atomic<std::uint64_t> allocations{0};

void* counted_allocation(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// Every allocation of the process is counted. What these forms do not cover is not used here.
void* operator new(std::size_t size) { return counted_allocation(size); }
void* operator new[](std::size_t size) { return counted_allocation(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace designs {

void insist(bool fine, const char* what) {
  if (fine) return;
  std::fprintf(stderr, "designs: %s failed: %s\n", what, std::strerror(errno));
  std::_Exit(1);
}

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kProducersMax = 64;
constexpr std::size_t kStuckOneIn = 64;  // of a producer's messages, one goes to the stuck one
constexpr std::size_t kStuckFillBytes = 1U << 20;  // far more than its kernel buffers take
constexpr int kStuckBufferBytes = 16 * 1024;

struct Options {
  std::string_view design;
  std::size_t producers = 1;
  std::size_t burst = 64;
  std::size_t messages = 200'000;  // of all producers together
  std::size_t connections = 64;
  std::size_t size = 64;
  bool stuck = false;
};

/// What a message begins with; the rest of it is the pattern, from a place that depends on these.
struct Head {
  std::uint32_t producer;
  std::uint32_t connection;
  std::uint64_t number;  // counts up for each producer and connection
};

/// The pattern, long enough to be read from any place of its period.
class Bytes {
 public:
  explicit Bytes(std::size_t size)
      : size_(size), pattern_(PENSTOCK_BENCH_PATTERN_PERIOD_BYTES + size) {
    fill_pattern(pattern_.data(), pattern_.size(), 0);
  }

  std::string message(const Head& head) const {
    std::string bytes(size_, '\0');
    std::memcpy(bytes.data(), &head, sizeof head);
    std::memcpy(bytes.data() + sizeof head, rest_of(head), size_ - sizeof head);
    return bytes;
  }
  bool is_right(const Head& head, const char* message) const {
    return std::memcmp(message + sizeof head, rest_of(head), size_ - sizeof head) == 0;
  }

 private:
  const unsigned char* rest_of(const Head& head) const {
    const std::uint64_t place =
        head.number * size_ + head.producer * 7919ULL + head.connection * 104'729ULL;
    return pattern_.data() + place % PENSTOCK_BENCH_PATTERN_PERIOD_BYTES;
  }

  std::size_t size_;
  std::vector<unsigned char> pattern_;
};

struct Pair {
  int server;
  int client;
};

void set_option(int descriptor, int level, int name, int value) {
  insist(::setsockopt(descriptor, level, name, &value, sizeof value) == 0, "setsockopt");
}

/// A connection over loopback, both ends non-blocking. Small: with little room in the kernel.
class Connector {
 public:
  Connector() : listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    address_.sin_family = AF_INET;
    address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address_;
    insist(listener_ >= 0 && ::bind(listener_, as_address(), size) == 0 &&
               ::listen(listener_, 16) == 0 && ::getsockname(listener_, as_address(), &size) == 0,
           "listening on loopback");
  }
  Connector(const Connector&) = delete;
  Connector& operator=(const Connector&) = delete;
  ~Connector() { ::close(listener_); }

  enum class Room : std::uint8_t { usual, little };
  Pair connect(Room room) {
    const int client = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    insist(client >= 0, "socket");
    if (room == Room::little) set_option(client, SOL_SOCKET, SO_RCVBUF, kStuckBufferBytes);
    insist(::connect(client, as_address(), sizeof address_) == 0, "connect");
    const int server = ::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    insist(server >= 0, "accept4");
    if (room == Room::little) set_option(server, SOL_SOCKET, SO_SNDBUF, kStuckBufferBytes);
    set_option(server, IPPROTO_TCP, TCP_NODELAY, 1);
    return {.server = server, .client = client};
  }

 private:
  sockaddr* as_address() { return reinterpret_cast<sockaddr*>(&address_); }

  int listener_;
  sockaddr_in address_{};
};

/// All peers that read, in one thread.
class Peers {
 public:
  Peers(const Options& options, const Bytes& bytes, std::vector<int> clients)
      : options_(options),
        bytes_(bytes),
        epoll_(::epoll_create1(EPOLL_CLOEXEC)),
        stop_(::eventfd(0, EFD_CLOEXEC)),
        burst_over_(options.producers) {
    insist(epoll_ >= 0 && stop_ >= 0, "epoll_create1, eventfd");
    for (auto& semaphore : burst_over_)
      semaphore = std::make_unique<std::binary_semaphore>(0);
    for (const int client : clients) {
      watch(client, peers_.size());
      peers_.push_back({.fd = client, .next = std::vector<std::uint64_t>(options.producers)});
    }
    watch(stop_, peers_.size());
    thread_ = std::thread([this] { run(); });
  }
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;
  ~Peers() {
    const std::uint64_t one = 1;
    insist(::write(stop_, &one, sizeof one) == sizeof one, "write to an eventfd");
    thread_.join();
    for (const Peer& peer : peers_)
      ::close(peer.fd);
    ::close(stop_);
    ::close(epoll_);
  }

  /// A producer: this many messages of it are under way, none has arrived.
  void expect(std::size_t producer, std::size_t count) { left_[producer].store(count); }
  /// Waits until they have.
  void wait_for(std::size_t producer) { burst_over_[producer]->acquire(); }

 private:
  struct Peer {
    int fd;
    std::vector<std::uint64_t> next;  // the number expected of each producer
    std::array<char, 64 * 1024> buffer{};
    std::size_t kept = 0;
  };

  void watch(int descriptor, std::uint64_t index) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = index;
    insist(::epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptor, &event) == 0, "epoll_ctl");
  }

  void run() {
    std::array<epoll_event, 64> events{};
    while (true) {
      const int count = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
      insist(count >= 0 || errno == EINTR, "epoll_wait");
      for (int i = 0; i < count; ++i) {
        const std::size_t index = events[static_cast<std::size_t>(i)].data.u64;
        if (index == peers_.size()) return;
        read(index);
      }
    }
  }

  void read(std::size_t index) {
    Peer& peer = peers_[index];
    const ssize_t taken = ::recv(peer.fd, peer.buffer.data() + peer.kept,
                                 peer.buffer.size() - peer.kept, MSG_DONTWAIT);
    insist(taken > 0 || (taken < 0 && errno == EAGAIN), "recv");
    if (taken < 0) return;
    const std::size_t size = peer.kept + static_cast<std::size_t>(taken);
    std::size_t at = 0;
    for (; at + options_.size <= size; at += options_.size)
      check(peer, index, peer.buffer.data() + at);
    peer.kept = size - at;
    std::memmove(peer.buffer.data(), peer.buffer.data() + at, peer.kept);
  }

  void check(Peer& peer, std::size_t index, const char* message) {
    Head head{};
    std::memcpy(&head, message, sizeof head);
    if (head.producer >= options_.producers || head.connection != index ||
        head.number != peer.next[head.producer] || !bytes_.is_right(head, message)) {
      std::fprintf(stderr, "designs: a message is wrong, missing, or out of order\n");
      std::_Exit(1);
    }
    ++peer.next[head.producer];
    if (left_[head.producer].fetch_sub(1) == 1) burst_over_[head.producer]->release();
  }

  const Options& options_;
  const Bytes& bytes_;
  int epoll_;
  int stop_;
  std::vector<Peer> peers_;
  std::array<std::atomic<std::size_t>, kProducersMax> left_{};
  std::vector<std::unique_ptr<std::binary_semaphore>> burst_over_;
  std::thread thread_;
};

/// One thread that sends. Its numbers go on from one run to the next.
class Producer {
 public:
  Producer(const Options& options, const Bytes& bytes, std::size_t index)
      : options_(options),
        bytes_(bytes),
        index_(index),
        next_connection_(index * 17),
        numbers_(options.connections) {}

  /// Sends so many; answers how long it was sending, not counted the waiting.
  Clock::duration run(Design& design, Peers& peers, std::size_t messages) {
    Clock::duration sending{};
    for (std::size_t sent = 0; sent < messages;) {
      const std::size_t burst = std::min(options_.burst, messages - sent);
      peers.expect(index_, burst);
      const Clock::time_point begin = Clock::now();
      for (std::size_t i = 0; i < burst; ++i)
        send_one(design);
      sending += Clock::now() - begin;
      sent += burst;
      peers.wait_for(index_);
    }
    return sending;
  }
  std::uint64_t sent_to_the_stuck_one() const { return to_the_stuck_one_; }

 private:
  void send_one(Design& design) {
    const std::size_t connection = next_connection_++ % options_.connections;
    const Head head{.producer = static_cast<std::uint32_t>(index_),
                    .connection = static_cast<std::uint32_t>(connection),
                    .number = numbers_[connection]++};
    design.send(connection, bytes_.message(head));
    if (options_.stuck && next_connection_ % kStuckOneIn == 0) {
      design.send(options_.connections, bytes_.message(head));
      ++to_the_stuck_one_;
    }
  }

  const Options& options_;
  const Bytes& bytes_;
  std::size_t index_;
  std::size_t next_connection_;
  std::vector<std::uint64_t> numbers_;
  std::uint64_t to_the_stuck_one_ = 0;
};

struct Measured {
  double send_nanoseconds;       // of a producer, in send()
  double delivered_nanoseconds;  // from the first send to the last arrival, for each message
};

Measured run_all(const Options& options, Design& design, Peers& peers,
                 std::vector<Producer>& producers, std::size_t messages) {
  const std::size_t each = messages / producers.size();
  std::vector<Clock::duration> sending(producers.size());
  std::vector<std::thread> threads;
  std::barrier start(static_cast<std::ptrdiff_t>(producers.size()) + 1);
  for (std::size_t i = 0; i < producers.size(); ++i) {
    threads.emplace_back([&, i] {
      start.arrive_and_wait();
      sending[i] = producers[i].run(design, peers, each);
    });
  }
  start.arrive_and_wait();
  const Clock::time_point begin = Clock::now();
  for (std::thread& thread : threads)
    thread.join();
  const std::chrono::duration<double, std::nano> whole = Clock::now() - begin;
  std::chrono::duration<double, std::nano> in_send{};
  for (const Clock::duration& one : sending)
    in_send += one;
  const auto all = static_cast<double>(each * options.producers);
  return {.send_nanoseconds = in_send.count() / all, .delivered_nanoseconds = whole.count() / all};
}

std::unique_ptr<Design> make(std::string_view name, std::vector<int> descriptors) {
  if (name == "send-thread") return make_send_thread(std::move(descriptors));
  if (name == "functor-loop") return make_functor_loop(std::move(descriptors));
  return make_handles(std::move(descriptors));
}

void measure(const Options& options) {
  const Bytes bytes(options.size);
  std::vector<int> servers;
  std::vector<int> clients;
  int never_reads = -1;
  {
    Connector connector;
    for (std::size_t i = 0; i < options.connections; ++i) {
      const Pair pair = connector.connect(Connector::Room::usual);
      servers.push_back(pair.server);
      clients.push_back(pair.client);
    }
    if (options.stuck) {
      const Pair pair = connector.connect(Connector::Room::little);
      servers.push_back(pair.server);
      never_reads = pair.client;
    }
  }
  const std::unique_ptr<Design> design = make(options.design, std::move(servers));
  Peers peers(options, bytes, std::move(clients));  // goes first: it takes an end for a failure
  std::vector<Producer> producers;
  for (std::size_t i = 0; i < options.producers; ++i)
    producers.emplace_back(options, bytes, i);

  if (options.stuck) {
    for (std::size_t sent = 0; sent < kStuckFillBytes; sent += options.size)
      design->send(options.connections, bytes.message({}));
  }
  run_all(options, *design, peers, producers, options.messages / 10);  // warm
  std::uint64_t to_the_stuck_one = 0;
  for (const Producer& producer : producers)
    to_the_stuck_one -= producer.sent_to_the_stuck_one();
  const std::uint64_t allocations_before = allocations.load();
  const std::uint64_t wakeups_before = design->wakeups();
  const Measured measured = run_all(options, *design, peers, producers, options.messages);
  const auto messages =
      static_cast<double>(options.messages / options.producers * options.producers);
  const auto wakeups = static_cast<double>(design->wakeups() - wakeups_before);
  const auto allocated = static_cast<double>(allocations.load() - allocations_before);
  for (const Producer& producer : producers)
    to_the_stuck_one += producer.sent_to_the_stuck_one();
  std::printf(
      "{\"design\": \"%.*s\", \"producers\": %zu, \"burst\": %zu, \"messages\": %.0f, \"stuck\": "
      "%s, "
      "\"sent_to_the_stuck_one\": %llu, \"send_nanoseconds\": %.1f, \"delivered_nanoseconds\": "
      "%.1f, "
      "\"wakeups_per_thousand\": %.2f, \"allocations_per_message\": %.3f}\n",
      static_cast<int>(options.design.size()), options.design.data(), options.producers,
      options.burst, messages, options.stuck ? "true" : "false",
      static_cast<unsigned long long>(to_the_stuck_one), measured.send_nanoseconds,
      measured.delivered_nanoseconds, 1e3 * wakeups / messages, allocated / messages);
  if (never_reads >= 0) ::close(never_reads);
}

std::optional<std::size_t> number(std::string_view text, std::size_t least, std::size_t most) {
  std::size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  if (value < least || value > most) return std::nullopt;
  return value;
}

bool set_number(Options& options, std::string_view name, std::string_view text) {
  struct Entry {
    std::string_view name;
    std::size_t* value;
    std::size_t least;
    std::size_t most;
  };
  const std::array entries{
      Entry{.name = "--producers", .value = &options.producers, .least = 1, .most = kProducersMax},
      Entry{.name = "--burst", .value = &options.burst, .least = 1, .most = 100'000},
      Entry{.name = "--messages", .value = &options.messages, .least = 1000, .most = 1'000'000'000},
      Entry{.name = "--connections", .value = &options.connections, .least = 1, .most = 10'000},
      Entry{.name = "--size", .value = &options.size, .least = sizeof(Head), .most = 32 * 1024},
  };
  for (const Entry& entry : entries) {
    if (entry.name != name) continue;
    const std::optional<std::size_t> value = number(text, entry.least, entry.most);
    if (value) *entry.value = *value;
    return value.has_value();
  }
  return false;
}

bool parse(Options& options, int count, char** arguments) {
  for (int i = 1; i < count; ++i) {
    const std::string_view name(arguments[i]);
    if (name == "--stuck") {
      options.stuck = true;
      continue;
    }
    if (++i == count) return false;
    const std::string_view text(arguments[i]);
    if (name == "--design") {
      options.design = text;
    } else if (!set_number(options, name, text)) {
      return false;
    }
  }
  return options.design == "send-thread" || options.design == "functor-loop" ||
         options.design == "handles";
}

}  // namespace
}  // namespace designs

int main(int argument_count, char** arguments) {
  designs::Options options;
  if (!designs::parse(options, argument_count, arguments)) {
    std::fprintf(
        stderr,
        "usage: designs --design send-thread|functor-loop|handles [--producers N] [--burst N]\n"
        "               [--messages N] [--connections N] [--size BYTES] [--stuck]\n");
    return 2;
  }
  designs::measure(options);
  return 0;
}

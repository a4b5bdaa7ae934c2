// Many threads send through handles at once (R17, R24 to R27; XT3, XT7). Quick by default; `make soak` sets
// PENSTOCK_STRESS_MESSAGES=2500000, messages for each of four producers.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <latch>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "penstock/tcp/connection_table.h"
#include "support/loop_thread.h"
#include "support/serving.h"
#include "support/world.h"

namespace penstock::test {
namespace {

constexpr std::uint32_t kProducers = 4;

std::uint64_t messages_of_each() {
  const char* text = std::getenv("PENSTOCK_STRESS_MESSAGES");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 20'000;
}

/// What travels: who sent it and its number, which counts up for each connection.
struct Message {
  std::uint32_t producer;
  std::uint32_t padding;
  std::uint64_t number;
};
static_assert(sizeof(Message) == 16);

std::string bytes_of(const Message& message) {
  std::string bytes(sizeof message, '\0');
  std::memcpy(bytes.data(), &message, sizeof message);
  return bytes;
}

/// Reads messages and checks that those of each producer come in order, none twice, none left out.
class Reader {
 public:
  explicit Reader(UniqueFd fd) : fd_(std::move(fd)) {}

  /// Reads what is there. False at the end, which end() tells.
  bool read_some() {
    const ssize_t count =
        linux_kernel().recv(fd_.get(), buffer_.data() + kept_, buffer_.size() - kept_, 0);
    if (count == -EAGAIN) return true;
    if (count <= 0) {
      end_ = count;
      return false;
    }
    const std::size_t size = kept_ + static_cast<std::size_t>(count);
    std::size_t at = 0;
    for (; at + sizeof(Message) <= size; at += sizeof(Message)) {
      Message message{};
      std::memcpy(&message, buffer_.data() + at, sizeof message);
      if (message.producer >= kProducers || message.number != next_[message.producer]) {
        ADD_FAILURE() << "producer " << message.producer << " number " << message.number;
        return false;
      }
      ++next_[message.producer];
      received_.fetch_add(1, std::memory_order_release);
    }
    kept_ = size - at;
    std::memmove(buffer_.data(), buffer_.data() + at, kept_);
    return true;
  }
  void read_to_end() {
    while (read_some())
      wait_for(linux_kernel(), fd_.get(), POLLIN);
  }
  int fd() const { return fd_.get(); }
  ssize_t end() const { return end_; }
  /// Any thread.
  std::uint64_t received() const { return received_.load(std::memory_order_acquire); }
  std::uint64_t received_of(std::uint32_t producer) const { return next_[producer]; }

 private:
  UniqueFd fd_;
  std::vector<char> buffer_ = std::vector<char>(256 * 1024);
  std::size_t kept_ = 0;
  ssize_t end_ = 0;
  std::array<std::uint64_t, kProducers> next_{};
  std::atomic<std::uint64_t> received_{0};
};

/// Whether an attempt has succeeded; waits for its end.
bool connected(const UniqueFd& fd) {
  wait_for(linux_kernel(), fd.get(), POLLOUT);
  int error = 0;
  socklen_t size = sizeof error;
  linux_kernel().getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  return error == 0;
}

class HandlesTest : public testing::TestWithParam<Backend> {};
PENSTOCK_ON_EVERY_BACKEND(HandlesTest);

// XT7: none lost, none doubled, in order for each producer and connection; what was refused is told and taken back.
TEST_P(HandlesTest, four_producers_lose_double_and_reorder_nothing) {
  constexpr std::size_t kConnections = 4;
  constexpr std::uint64_t kWindow =
      100'000;  // messages under way to a connection: 1.6 MB, below its cap
  const std::uint64_t each = messages_of_each();
  // A small bound, so that refusals happen.
  LoopThread thread({.backend = GetParam(), .posted_bytes_max = std::size_t{256} * 1024});
  std::vector<std::unique_ptr<Reader>> readers;
  std::vector<ConnectionHandle> handles(kConnections);
  std::latch adopted(1);
  std::vector<SocketPair> pairs;
  for (std::size_t i = 0; i < kConnections; ++i) {
    pairs.push_back(tcp_pair(linux_kernel()));
    readers.push_back(std::make_unique<Reader>(std::move(pairs[i].client)));
  }
  thread.loop.queue_in_loop([&] {
    for (std::size_t i = 0; i < kConnections; ++i) {
      const auto handle =
          adopt_connection(thread.loop, std::move(pairs[i].server), make_behaviour({}));
      ASSERT_TRUE(handle.has_value());
      handles[i] = *handle;
    }
    adopted.count_down();
  });
  adopted.wait();

  std::vector<std::thread> reading;
  for (const auto& reader : readers)
    reading.emplace_back([&reader] { reader->read_to_end(); });
  std::array<std::atomic<std::uint64_t>, kConnections> sent{};
  std::atomic<std::uint64_t> refused{0};
  std::vector<std::thread> producers;
  for (std::uint32_t producer = 0; producer < kProducers; ++producer) {
    producers.emplace_back([&, producer] {
      for (std::uint64_t i = 0; i < each; ++i) {
        const std::size_t to = i % kConnections;
        while (sent[to].load() - readers[to]->received() > kWindow)
          std::this_thread::yield();
        std::string message =
            bytes_of({.producer = producer, .padding = 0, .number = i / kConnections});
        while (handles[to].send(std::move(message)) != PostResult::posted) {
          ASSERT_EQ(message.size(), sizeof(Message)) << "a refused payload is left as it was";
          refused.fetch_add(1);
          std::this_thread::yield();
        }
        sent[to].fetch_add(1);
      }
    });
  }
  for (std::thread& producer : producers)
    producer.join();
  for (const ConnectionHandle& handle : handles)
    EXPECT_EQ(handle.close(), PostResult::posted);
  for (std::thread& reader : reading)
    reader.join();
  for (std::size_t i = 0; i < kConnections; ++i) {
    EXPECT_EQ(readers[i]->end(), 0) << "behind the last message comes the end";
    EXPECT_EQ(readers[i]->received(), sent[i].load());
    const std::uint64_t expected = each / kConnections + (i < each % kConnections ? 1 : 0);
    for (std::uint32_t producer = 0; producer < kProducers; ++producer)
      EXPECT_EQ(readers[i]->received_of(producer), expected);
  }
  RecordProperty("refused", std::to_string(refused.load()));
}

// XT3, XT5, XT6, R25, R27: connections come and go while four threads send to them, and in the middle the server
// stops. Each message was posted or refused; each posted one was taken by its connection or dropped and counted; what
// a peer gets is in order, from the first message on, without a gap.
TEST_P(HandlesTest, what_is_sent_into_connections_that_churn_is_delivered_or_accounted_for) {
  const std::uint64_t each = std::max<std::uint64_t>(messages_of_each() / 10, 2'000);
  constexpr int kRounds = 3;
  for (int round = 0; round < kRounds; ++round) {
    std::mutex mutex;  // guards the two below
    std::vector<ConnectionHandle> handles;
    std::vector<std::uint64_t> next;  // for each handle; all producers count it together
    std::atomic<int> connects{0};
    std::atomic<int> closes{0};
    std::atomic<std::uint64_t> posted{0};
    std::atomic<std::uint64_t> executed{0};
    LoopThread thread({.backend = GetParam()});
    TcpServer server(thread.loop);
    server.on_connect([&](TcpConnection& peer) {
      ++connects;
      const std::scoped_lock lock(mutex);
      handles.push_back(peer.handle());
      next.push_back(0);
    });
    server.on_close([&](TcpConnection&, const CloseReport&) { ++closes; });
    std::latch started(1);
    thread.loop.queue_in_loop([&] {
      EXPECT_TRUE(server.start().has_value());
      started.count_down();
    });
    started.wait();
    const SocketAddress address = server.address();

    std::atomic<bool> over{false};
    std::vector<std::thread> producers;
    for (std::uint32_t producer = 0; producer < kProducers; ++producer) {
      producers.emplace_back([&] {
        for (std::uint64_t i = 0; !over; ++i) {
          const std::scoped_lock lock(mutex);  // so that numbers are posted in their order
          if (handles.empty()) continue;
          const std::size_t to = i % handles.size();
          // One producer, as far as the reader is concerned: the order under the lock is one.
          const std::string text = bytes_of({.producer = 0, .padding = 0, .number = next[to]});
          const PostResult result = handles[to].post([&executed, text](TcpConnection& peer) {
            executed.fetch_add(1);
            peer.send(text);
          });
          if (result != PostResult::posted) continue;
          ++next[to];
          posted.fetch_add(1);
        }
      });
    }
    std::thread churn([&] {
      while (!over) {
        UniqueFd fd = start_connect(linux_kernel(), address);
        if (!connected(fd)) break;  // the server has stopped
        Reader reader(std::move(fd));
        for (int i = 0; i < 20 && reader.read_some(); ++i)
          std::this_thread::yield();
      }
    });
    EXPECT_TRUE(eventually(
        [&] { return connects.load() > 5 && posted.load() > each && executed.load() > 0; }));
    server.stop(std::chrono::seconds(2));
    EXPECT_TRUE(eventually([&] { return server.statistics().live == 0; }));
    over = true;
    for (std::thread& producer : producers)
      producer.join();
    churn.join();
    std::latch counted(1);
    std::uint64_t dropped = 0;
    thread.loop.queue_in_loop([&] {  // behind everything that was posted
      dropped = ConnectionTable::of(thread.loop).statistics().stale_drops;
      counted.count_down();
    });
    counted.wait();
    EXPECT_EQ(closes.load(), connects.load());
    EXPECT_EQ(executed.load() + dropped, posted.load());
    EXPECT_GT(executed.load(), 0u);
    const std::scoped_lock lock(mutex);
    for (const ConnectionHandle& handle : handles)
      EXPECT_NE(handle.send("too late"), PostResult::full);
  }
}

}  // namespace
}  // namespace penstock::test

// Connections that leave a loop without ending, and connections made of what somebody else
// connected: TcpConnection::detach and adopt_connection, on every back-end.

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <vector>

#include "penstock/tcp/adopt.h"
#include "support/loop_thread.h"
#include "support/serving.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::seconds;

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;
constexpr std::size_t kNowhere = std::string_view::npos;

/// What a taker was given.
struct Taken {
  int calls = 0;
  UniqueFd fd;
  std::string unread;
};

/// A pair whose server side sends small pieces at once: who adopts leaves the options as they are.
SocketPair prompt_pair(Kernel& kernel) {
  SocketPair pair = tcp_pair(kernel);
  const int on = 1;
  EXPECT_EQ(kernel.setsockopt(pair.server.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), 0);
  return pair;
}

class Detach : public ConformanceTest {
 protected:
  /// A taker that keeps what it is given and notes it among the events.
  static TcpConnection::DetachCallback keep(const std::shared_ptr<Taken>& taken,
                                            const std::shared_ptr<Record>& record) {
    return [taken, record](UniqueFd fd, std::string unread) {
      ++taken->calls;
      taken->fd = std::move(fd);
      taken->unread = std::move(unread);
      record->events.emplace_back("taken");
    };
  }
  /// Detaches it from a task of the loop.
  void detach(const World::Link& link) {
    world.loop.queue_in_loop([this, &link] { link.connection->detach(keep(taken, link.record)); });
  }
  bool ended(const Record& record) {
    return world.run_until([&] { return record.closes > 0; });
  }
  void expect_detached(const Record& record) {
    ASSERT_TRUE(ended(record));
    world.turn(5);
    EXPECT_EQ(record.closes, 1);
    EXPECT_EQ(to_string(record.report->reason), to_string(CloseReason::detached));
    ASSERT_EQ(taken->calls, 1);
    EXPECT_TRUE(taken->fd);
    ASSERT_GE(record.events.size(), 2u);
    EXPECT_EQ(record.events[record.events.size() - 2], "taken");
    EXPECT_EQ(record.events.back(), "close");
    EXPECT_EQ(record.report->bytes_discarded, 0u);
    EXPECT_EQ(record.report->input_discarded, 0u);
    EXPECT_EQ(world.loop.memory().used(), 0u);
  }
  void expect_not_detached(const Record& record, CloseReason reason) {
    ASSERT_TRUE(ended(record));
    world.turn(5);
    EXPECT_EQ(record.closes, 1);
    EXPECT_EQ(to_string(record.report->reason), to_string(reason));
    EXPECT_EQ(taken->calls, 0);
    EXPECT_EQ(world.loop.memory().used(), 0u);
  }
  /// What is still in the kernel for the descriptor that was taken.
  std::string rest() const {
    std::string text;
    while (true) {
      Received some = receive(linux_kernel(), taken->fd.get());
      if (some.result <= 0) return text;
      text += some.text;
    }
  }
  /// Both directions of the taken descriptor, without a loop.
  void expect_works_both_ways(const World::Link& link) {
    EXPECT_EQ(send_text(linux_kernel(), taken->fd.get(), "from here"), 9);
    wait_for(linux_kernel(), link.client.get(), POLLIN);
    EXPECT_EQ(receive(linux_kernel(), link.client.get()).text, "from here");
    EXPECT_EQ(send_text(linux_kernel(), link.client.get(), "from there"), 10);
    wait_for(linux_kernel(), taken->fd.get(), POLLIN);
    EXPECT_EQ(receive(linux_kernel(), taken->fd.get()).text, "from there");
  }

  std::shared_ptr<Taken> taken = std::make_shared<Taken>();
};

// -- What is given back --

TEST_P(Detach, TheDescriptorIsGivenBackConnectedAndWorksBothWays) {
  const std::size_t descriptors = World::open_descriptors();
  {
    World::Link link = world.connect();
    const int number = link.connection->descriptor();
    deliver(link, "hello");
    ASSERT_TRUE(world.run_until([&] { return link.record->received == "hello"; }));
    detach(link);
    expect_detached(*link.record);
    EXPECT_EQ(taken->fd.get(), number);
    EXPECT_EQ(taken->unread, "");
    EXPECT_NE(::fcntl(taken->fd.get(), F_GETFL) & O_NONBLOCK, 0);
    EXPECT_NE(::fcntl(taken->fd.get(), F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_FALSE(armed_events(world, number).has_value()) << "the loop still watches it";
    EXPECT_EQ(link.record->report->bytes_received, 5u);
    EXPECT_FALSE(link.record->report->error);
    expect_works_both_ways(link);
    const std::uint64_t calls = world.kernel.calls_on(Call::any, number);
    deliver(link, "nobody's");
    world.turn(5);
    EXPECT_EQ(world.kernel.calls_on(Call::any, number), calls);
    taken->fd.reset();
  }
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

TEST_P(Detach, InputThatWasKeptIsHandedOver) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [record](TcpConnection&, InputBuffer& in) {
    record->events.emplace_back("message");
    if (record->received.empty()) {
      record->received = std::string("12");
      in.consume(2);
    }
  };
  World::Link link = world.connect(record, std::move(callbacks));
  deliver(link, "12345");
  ASSERT_TRUE(world.run_until([&] { return record->count("message") == 1; }));
  deliver(link, "678");
  ASSERT_TRUE(world.run_until([&] { return record->count("message") == 2; }));
  EXPECT_GT(world.loop.memory().used(), 0u);
  detach(link);
  expect_detached(*record);
  EXPECT_EQ(taken->unread, "345678");
  EXPECT_EQ(record->report->bytes_received, 8u);
  expect_works_both_ways(link);
}

TEST_P(Detach, InputInTheKernelStaysThereOrIsHandedOver) {
  World::Link link = world.connect();
  world.turn(2);
  world.loop.queue_in_loop([&] { link.connection->pause_reading(); });
  world.turn(2);
  deliver(link, pattern(50'000));
  world.turn(3);
  detach(link);
  expect_detached(*link.record);
  EXPECT_EQ(first_difference(taken->unread + rest(), pattern(50'000)), kNowhere);
  EXPECT_EQ(link.record->received, "");
  expect_works_both_ways(link);
}

// Whatever the place at which it is detached: consumed, unread and the kernel's make the whole.
TEST_P(Detach, WhereverItIsDetachedInTheInputNoByteIsLostOrDoubled) {
  const std::string text = pattern(300 * kKiB);
  for (const std::size_t stop :
       {std::size_t{1}, std::size_t{2}, std::size_t{4095}, std::size_t{65'535}, std::size_t{65'536},
        std::size_t{65'537}, std::size_t{150'000}, std::size_t{300 * kKiB}}) {
    for (const bool takes_all : {false, true}) {
      SCOPED_TRACE(std::to_string(stop) + (takes_all ? " takes all" : " leaves the rest"));
      taken = std::make_shared<Taken>();
      auto record = std::make_shared<Record>();
      ConnectionCallbacks callbacks = World::recording(record);
      callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
        const std::size_t wanted = stop - record->received.size();
        if (in.size() < wanted) {
          record->received += in.take_string();
          return;
        }
        record->received += in.take_string(takes_all ? in.size() : wanted);
        peer.detach(keep(taken, record));
      };
      World::Link link = world.connect(record, std::move(callbacks));
      std::string_view left = text;
      ASSERT_TRUE(world.run_until([&] {
        const ssize_t sent = left.empty() ? 0 : send_text(linux_kernel(), link.client.get(), left);
        if (sent > 0) left.remove_prefix(static_cast<std::size_t>(sent));
        return record->closes == 1;
      }));
      expect_detached(*record);
      std::string whole = record->received + taken->unread;
      ASSERT_TRUE(eventually([&] {
        if (!left.empty()) {
          const ssize_t sent = send_text(linux_kernel(), link.client.get(), left);
          if (sent > 0) left.remove_prefix(static_cast<std::size_t>(sent));
        }
        whole += rest();
        return whole.size() >= text.size();
      }));
      EXPECT_EQ(first_difference(whole, text), kNowhere);
      EXPECT_EQ(record->report->bytes_received, record->received.size() + taken->unread.size());
    }
  }
}

TEST_P(Detach, TheRestOfTheMessageInHandIsHandedOver) {
  for (const std::size_t consumed : {std::size_t{0}, std::size_t{1}, std::size_t{6}}) {
    SCOPED_TRACE(consumed);
    taken = std::make_shared<Taken>();
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
      in.consume(consumed);
      peer.detach(keep(taken, record));
    };
    World::Link link = world.connect(record, std::move(callbacks));
    deliver(link, "abcdef");
    expect_detached(*record);
    EXPECT_EQ(taken->unread + rest(), std::string("abcdef").substr(consumed));
    expect_works_both_ways(link);
  }
}

// -- Output goes first --

TEST_P(Detach, OutputIsFlushedToASlowReaderFirst) {
  const std::string text = pattern(8 * kMiB);
  World::Link link = world.connect();
  shrink_buffers(link);
  world.loop.queue_in_loop([&] {
    link.connection->send(text);
    link.connection->detach(keep(taken, link.record));
  });
  world.turn(10);
  EXPECT_GT(link.connection->queued_bytes(), 0u);
  EXPECT_EQ(taken->calls, 0);
  deliver(link, "a question meanwhile");
  world.turn(5);
  EXPECT_EQ(link.record->count("message"), 0u) << "no more on_message from detach() on";
  std::string got = collect(world, link, text.size() / 2);
  EXPECT_EQ(taken->calls, 0);
  EXPECT_EQ(link.record->closes, 0);
  got += collect(world, link, text.size() - got.size());
  expect_detached(*link.record);
  EXPECT_EQ(first_difference(got, text), kNowhere);
  EXPECT_EQ(link.record->report->bytes_sent, text.size());
  EXPECT_EQ(taken->unread + rest(), "a question meanwhile");
  expect_works_both_ways(link);
}

TEST_P(Detach, WhatIsAcceptedBehindTheDetachArrivesToo) {
  for (const std::size_t size : {std::size_t{10}, 8 * kKiB, 2 * kMiB}) {
    SCOPED_TRACE(size);
    taken = std::make_shared<Taken>();
    auto record = std::make_shared<Record>();
    std::string accepted;
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
      in.take();
      peer.send("before ");
      accepted += "before ";
      peer.detach(keep(taken, record));
      for (const std::string& text : {pattern(size), std::string("tail")}) {
        const SendOutcome outcome = peer.try_send(text);
        if (outcome == SendOutcome::closed) continue;
        ASSERT_NE(outcome, SendOutcome::full);
        accepted += text;
      }
    };
    World::Link link = world.connect(record, std::move(callbacks));
    shrink_buffers(link);
    deliver(link, "go");
    std::string got;
    ASSERT_TRUE(world.run_until([&] {
      got += receive_available(link);
      return record->closes == 1;
    }));
    expect_detached(*record);
    EXPECT_EQ(record->report->bytes_sent, accepted.size());
    taken->fd.reset();
    const Received tail = collect_to_end(world, link);
    EXPECT_EQ(first_difference(got + tail.text, accepted), kNowhere);
  }
}

TEST_P(Detach, APeerThatTakesNoOutputIsGivenUpAndNotHandedOver) {
  World::Link link = world.connect();
  shrink_buffers(link);
  world.loop.queue_in_loop([&] {
    link.connection->send(pattern(8 * kMiB));
    link.connection->detach(keep(taken, link.record));
  });
  world.turn(10);
  for (int i = 0; i < 12; ++i)
    pass(world, seconds(10));
  expect_not_detached(*link.record, CloseReason::timeout);
  EXPECT_EQ(link.record->report->timeout, TimeoutKind::write_stall);
  EXPECT_GT(link.record->report->bytes_discarded, 0u);
}

// -- From every callback --

TEST_P(Detach, ItCanBeDetachedInsideOfEveryCallback) {
  const std::string text = pattern(2 * kMiB);
  for (const std::string where :
       {"connect", "message", "peer_finished", "write_complete", "high", "low", "task", "timer"}) {
    SCOPED_TRACE(where);
    const std::size_t descriptors = World::open_descriptors();
    taken = std::make_shared<Taken>();
    auto record = std::make_shared<Record>();
    bool detached = false;
    const auto at = [&](const std::string& here, TcpConnection& peer) {
      record->events.push_back(here);
      if (here != where) return;
      peer.detach(keep(taken, record));
      detached = true;
    };
    ConnectionCallbacks callbacks;
    callbacks.on_connect = [&](TcpConnection& peer) {
      peer.emplace_context<std::string>("mine");
      EXPECT_TRUE(peer.set_option(SOL_SOCKET, SO_SNDBUF, 32768).has_value());
      if (where != "message" && where != "peer_finished") peer.send(text);
      at("connect", peer);
      if (where == "task") world.loop.queue_in_loop([&at, &peer] { at("task", peer); });
      if (where == "timer") {
        world.loop.run_after(Duration::zero(), [&at, &peer] { at("timer", peer); });
      }
    };
    callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
      EXPECT_FALSE(detached) << "on_message behind detach()";
      record->received += in.take_string();
      at("message", peer);
    };
    callbacks.on_peer_finished = [&](TcpConnection& peer) { at("peer_finished", peer); };
    callbacks.on_write_complete = [&](TcpConnection& peer) { at("write_complete", peer); };
    callbacks.on_high_water = [&](TcpConnection& peer) { at("high", peer); };
    callbacks.on_low_water = [&](TcpConnection& peer) { at("low", peer); };
    callbacks.on_close = [record](TcpConnection& peer, const CloseReport& report) {
      EXPECT_EQ(peer.context<std::string>(), "mine");
      EXPECT_EQ(peer.descriptor(), -1);
      record->events.emplace_back("close");
      record->report = report;
      ++record->closes;
    };
    {
      World::Link link = world.connect(record, std::move(callbacks));
      send_text(linux_kernel(), link.client.get(), "hello");
      if (where == "peer_finished") send_fin(link);
      std::string got;
      world.turn(3);  // so much is pending
      ASSERT_TRUE(world.run_until([&] {
        got += receive_available(link);
        return record->closes == 1;
      }));
      expect_detached(*record);
      EXPECT_TRUE(detached);
      got += receive_available(link);
      if (where != "message" && where != "peer_finished") {
        ASSERT_TRUE(eventually([&] {
          got += receive_available(link);
          return got.size() >= text.size();
        }));
        EXPECT_EQ(first_difference(got, text), kNowhere);
      }
      std::string input = record->received + taken->unread;
      ASSERT_TRUE(eventually([&] {
        input += rest();
        return input.size() >= 5;
      }));
      EXPECT_EQ(input, "hello");
      if (where == "peer_finished") {
        EXPECT_EQ(receive(linux_kernel(), taken->fd.get()).result, 0) << "the end is still there";
      } else {
        expect_works_both_ways(link);
      }
      taken->fd.reset();
    }
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
}

TEST_P(Detach, InsideOfOnCloseItIsTooLate) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_close = [&](TcpConnection& peer, const CloseReport& report) {
    peer.detach(keep(taken, record));
    record->report = report;
    ++record->closes;
  };
  World::Link link = world.connect(record, std::move(callbacks));
  world.loop.queue_in_loop([&] { link.connection->abort(); });
  expect_not_detached(*record, CloseReason::local);
  EXPECT_EQ(taken.use_count(), 1) << "the taker is destroyed, uncalled";
}

// -- The conversation goes on --

TEST_P(Detach, ItCanBeAdoptedByItsOwnLoopInTheTaker) {
  auto record = std::make_shared<Record>();
  auto next = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
    in.consume(3);
    peer.detach([&](UniqueFd fd, std::string unread) {
      next->received = std::move(unread);
      EXPECT_TRUE(
          adopt_connection(world.loop, std::move(fd), make_behaviour(World::recording(next)))
              .has_value());
    });
  };
  World::Link link = world.connect(record, std::move(callbacks));
  deliver(link, "abcdef");
  ASSERT_TRUE(ended(*record));
  deliver(link, "ghi");
  ASSERT_TRUE(world.run_until([&] { return next->received == "defghi"; }));
  send_fin(link);
  EXPECT_EQ(collect_to_end(world, link).result, 0);
  ASSERT_TRUE(ended(*next));
  EXPECT_EQ(to_string(next->report->reason), to_string(CloseReason::eof));
  EXPECT_EQ(next->events.front(), "connect");
  const ConnectionStatistics& statistics = ConnectionTable::of(world.loop).statistics();
  EXPECT_EQ(statistics.ends[CloseReason::detached], 1u);
  EXPECT_EQ(statistics.ends[CloseReason::eof], 1u);
  EXPECT_EQ(statistics.opened, 2u);
  EXPECT_EQ(statistics.closed, 2u);
}

// One echo, handed from loop to loop in the middle of everything.
TEST_P(Detach, AnEchoThatChangesLoopsHundredsOfTimesLosesDoublesAndReordersNothing) {
  const std::size_t descriptors = World::open_descriptors();
  {
    EventLoop other({.backend = GetParam(), .kernel = &world.kernel});
    const std::string text = pattern(2 * kMiB);
    std::uint32_t dice = 12345;
    const auto roll = [&dice](std::uint32_t sides) {
      dice = dice * 1'664'525 + 1'013'904'223;
      return (dice >> 8) % sides;
    };
    std::size_t hops = 0;
    std::size_t live = 0;
    std::size_t closes = 0;
    std::optional<CloseReason> last;
    std::function<void(EventLoop&, UniqueFd, std::string)> join;
    const auto hop = [&](TcpConnection& peer) {
      EventLoop& next = &peer.loop() == &world.loop ? other : world.loop;
      peer.detach([&, &here = peer.loop()](UniqueFd fd, std::string unread) {
        ++hops;
        switch (roll(3)) {
          case 0:  // in a task of the other loop
            next.queue_in_loop([&, fd = std::move(fd), unread = std::move(unread)]() mutable {
              join(next, std::move(fd), std::move(unread));
            });
            break;
          case 1:  // at once, on the loop it leaves
            join(here, std::move(fd), std::move(unread));
            break;
          default:  // at once, on the other loop, which stands still
            join(next, std::move(fd), std::move(unread));
        }
      });
    };
    join = [&](EventLoop& loop, UniqueFd fd, std::string unread) {
      ConnectionCallbacks callbacks;
      callbacks.on_connect = [&, unread = std::move(unread)](TcpConnection& peer) {
        ++live;
        peer.send(std::string_view(unread));
        if (hops < 1000 && roll(8) == 0) hop(peer);
      };
      callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
        const bool hops_on = hops < 1000 && roll(2) == 0;
        peer.send(
            in.take_string(hops_on ? roll(static_cast<std::uint32_t>(in.size())) : in.size()));
        if (hops_on) hop(peer);  // with some of the input unread
      };
      callbacks.on_write_complete = [&](TcpConnection& peer) {
        if (hops < 1000 && roll(16) == 0) hop(peer);
      };
      callbacks.on_close = [&](TcpConnection&, const CloseReport& report) {
        ++closes;
        --live;
        last = report.reason;
      };
      EXPECT_TRUE(
          adopt_connection(loop, std::move(fd), make_behaviour(std::move(callbacks))).has_value());
    };
    SocketPair pair = prompt_pair(world.kernel);
    World::Link link;
    link.client = UniqueFd(linux_kernel(), pair.client.release());
    join(world.loop, std::move(pair.server), {});
    std::string_view left = text;
    std::string got;
    got.reserve(text.size());
    const auto exchange = [&] {
      other.step();
      world.loop.step();
      // Never more under way than the echo may hold back without being read.
      while (!left.empty() && text.size() - left.size() - got.size() < 4 * kKiB) {
        const ssize_t sent =
            send_text(linux_kernel(), link.client.get(), left.substr(0, 1 + roll(5000)));
        if (sent <= 0) break;
        left.remove_prefix(static_cast<std::size_t>(sent));
      }
      got += receive_available(link);
    };
    ASSERT_TRUE(world.run_until([&] {
      for (int i = 0; i < 100; ++i)
        exchange();
      return got.size() >= text.size();
    })) << got.size()
        << " bytes came back, " << hops << " hops";
    EXPECT_EQ(first_difference(got, text), kNowhere);
    EXPECT_GT(hops, 200u);
    send_fin(link);
    ASSERT_TRUE(world.run_until([&] {
      other.step();
      return closes == hops + 1;
    }));
    EXPECT_EQ(live, 0u);
    EXPECT_EQ(to_string(*last), to_string(CloseReason::eof));
    EXPECT_EQ(receive_to_end(linux_kernel(), link.client.get()).result, 0);
    EXPECT_EQ(ConnectionTable::of(world.loop).statistics().ends[CloseReason::detached] +
                  ConnectionTable::of(other).statistics().ends[CloseReason::detached],
              hops);
  }
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// The same between loops in two threads: the client is this one.
TEST_P(Detach, AnEchoThatChangesThreadsLosesNothing) {
  const std::size_t descriptors = World::open_descriptors();
  {
    std::atomic<int> hops{0};
    std::binary_semaphore over{0};
    std::function<void(EventLoop&, UniqueFd, std::string)> join;
    LoopThread left({.backend = GetParam()});
    LoopThread right({.backend = GetParam()});
    join = [&](EventLoop& loop, UniqueFd fd, std::string unread) {
      ConnectionCallbacks callbacks;
      callbacks.on_connect = [unread = std::move(unread)](TcpConnection& peer) {
        peer.send(std::string_view(unread));
      };
      callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
        const bool hops_on = hops.load() < 200;
        peer.send(in.take_string(hops_on ? in.size() / 2 : in.size()));
        if (!hops_on) return;
        hops.fetch_add(1);
        EventLoop& next = &peer.loop() == &left.loop ? right.loop : left.loop;
        peer.detach([&](UniqueFd its_fd, std::string its_unread) {
          next.queue_in_loop(
              [&, its_fd = std::move(its_fd), its_unread = std::move(its_unread)]() mutable {
                join(next, std::move(its_fd), std::move(its_unread));
              });
        });
      };
      callbacks.on_close = [&](TcpConnection&, const CloseReport& report) {
        if (report.reason != CloseReason::detached) over.release();
      };
      EXPECT_TRUE(
          adopt_connection(loop, std::move(fd), make_behaviour(std::move(callbacks))).has_value());
    };
    SocketPair pair = prompt_pair(linux_kernel());
    left.loop.queue_in_loop(
        [&, fd = std::move(pair.server)]() mutable { join(left.loop, std::move(fd), {}); });
    for (int i = 0; i < 400; ++i) {
      const std::string text = pattern(static_cast<std::size_t>(1 + i * 37 % 3000));
      ASSERT_EQ(send_text(linux_kernel(), pair.client.get(), text),
                static_cast<ssize_t>(text.size()));
      std::string got;
      while (got.size() < text.size()) {
        ASSERT_NE(wait_for(linux_kernel(), pair.client.get(), POLLIN), 0);
        Received some = receive(linux_kernel(), pair.client.get());
        ASSERT_GT(some.result, 0);
        got += some.text;
      }
      ASSERT_EQ(first_difference(got, text), kNowhere);
    }
    EXPECT_EQ(hops.load(), 200);
    linux_kernel().shutdown(pair.client.get(), SHUT_WR);
    over.acquire();
    EXPECT_EQ(receive_to_end(linux_kernel(), pair.client.get()).result, 0);
  }
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// -- The peer ends first --

TEST_P(Detach, APeerThatHasFinishedCanStillBeHandedOver) {
  auto record = std::make_shared<Record>();
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_peer_finished = [record](TcpConnection&) {
    record->events.emplace_back("peer_finished");
  };
  World::Link link = world.connect(record, std::move(callbacks));
  deliver(link, "bye");
  send_fin(link);
  ASSERT_TRUE(world.run_until([&] { return record->count("peer_finished") == 1; }));
  detach(link);
  expect_detached(*record);
  // The next owner is told of the end as well, and may still answer.
  auto next = std::make_shared<Record>();
  ConnectionCallbacks answering = World::recording(next);
  answering.on_peer_finished = [next](TcpConnection& peer) {
    next->events.emplace_back("peer_finished");
    peer.send("answer");
    peer.finish();
  };
  ASSERT_TRUE(
      adopt_connection(world.loop, std::move(taken->fd), make_behaviour(std::move(answering)))
          .has_value());
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(all.text, "answer");
  EXPECT_EQ(all.result, 0);
  ASSERT_TRUE(ended(*next));
  EXPECT_EQ(next->count("peer_finished"), 1u);
  EXPECT_EQ(to_string(next->report->reason), to_string(CloseReason::eof));
}

TEST_P(Detach, AFinWhileItsOutputIsFlushedIsLeftForTheNextOwner) {
  const std::string text = pattern(4 * kMiB);
  World::Link link = world.connect();
  shrink_buffers(link);
  world.loop.queue_in_loop([&] {
    link.connection->send(text);
    link.connection->detach(keep(taken, link.record));
  });
  world.turn(5);
  deliver(link, "last");
  send_fin(link);
  world.turn(5);
  EXPECT_EQ(taken->calls, 0);
  EXPECT_EQ(first_difference(collect(world, link, text.size()), text), kNowhere);
  expect_detached(*link.record);
  EXPECT_EQ(taken->unread + rest(), "last");
  EXPECT_EQ(receive(linux_kernel(), taken->fd.get()).result, 0);
  EXPECT_EQ(send_text(linux_kernel(), taken->fd.get(), "good bye"), 8);
  EXPECT_EQ(collect(world, link, 8), "good bye");
}

TEST_P(Detach, AResetWhileItsOutputIsFlushedEndsIt) {
  World::Link link = world.connect();
  shrink_buffers(link);
  world.loop.queue_in_loop([&] {
    link.connection->send(pattern(4 * kMiB));
    link.connection->detach(keep(taken, link.record));
  });
  world.turn(5);
  EXPECT_EQ(taken->calls, 0);
  send_reset(link);
  expect_not_detached(*link.record, CloseReason::reset);
  EXPECT_EQ(link.record->report->error, system_error(ECONNRESET));
  EXPECT_GT(link.record->report->bytes_discarded, 0u);
  EXPECT_EQ(taken.use_count(), 1);
}

// There is nothing to hand over; and without limits of time nothing else would end it.
TEST_P(Detach, ABrokenConnectionEndsAtOnceInsteadOfBeingDetached) {
  ConnectionLimits limits;
  limits.broken_pause_timeout = Duration::zero();
  limits.idle_timeout = Duration::zero();
  World::Link link = world.connect(limits);
  world.loop.queue_in_loop([&] {
    link.connection->pause_reading();
    link.connection->send(pattern(4 * kMiB));
  });
  world.turn(5);
  send_reset(link);
  ASSERT_TRUE(world.run_until([&] { return !link.connection->can_send(); })) << "it is broken";
  world.settle();
  EXPECT_EQ(link.record->closes, 0) << "paused: the end is told on resume";
  detach(link);
  world.turn(10);
  ASSERT_EQ(link.record->closes, 1);
  expect_not_detached(*link.record, CloseReason::reset);
}

// Accepted bytes have been dropped: that must not go on as if nothing were.
TEST_P(Detach, AConnectionWhoseSendHasFailedIsNotHandedOver) {
  World::Link link = world.connect();
  shrink_buffers(link);
  const int fd = link.connection->descriptor();
  FaultyKernel::Rule rule{};
  FaultyKernel::Rule gathered{};
  world.loop.queue_in_loop([&] {
    link.connection->send("queued first");
    rule = world.kernel.inject({.call = Call::send, .fd = fd, .every = 1, .error = EPIPE});
    gathered = world.kernel.inject({.call = Call::sendmsg, .fd = fd, .every = 1, .error = EPIPE});
    link.connection->send(std::string_view(pattern(100 * kKiB)));
    link.connection->detach(keep(taken, link.record));
  });
  ASSERT_TRUE(ended(*link.record));
  EXPECT_GT(world.kernel.fired(rule) + world.kernel.fired(gathered), 0u);
  expect_not_detached(*link.record, CloseReason::reset);
  EXPECT_EQ(link.record->report->error, system_error(EPIPE));
}

TEST_P(Detach, AResetThatNobodyHasSeenYetIsFoundByWhoeverHasTheDescriptor) {
  World::Link link = world.connect();
  world.turn(2);
  world.loop.queue_in_loop([&] {
    link.connection->pause_reading();
    send_reset(link);
    link.connection->detach(keep(taken, link.record));
  });
  ASSERT_TRUE(ended(*link.record));
  world.turn(3);
  EXPECT_EQ(link.record->closes, 1);
  if (taken->calls == 1) {
    EXPECT_EQ(to_string(link.record->report->reason), to_string(CloseReason::detached));
    ASSERT_TRUE(
        eventually([&] { return receive(linux_kernel(), taken->fd.get()).result == -ECONNRESET; }));
  } else {
    EXPECT_EQ(to_string(link.record->report->reason), to_string(CloseReason::reset));
  }
}

// -- Together with other ends --

TEST_P(Detach, AnEndThatCameBeforePrevails) {
  for (const bool abort : {false, true}) {
    SCOPED_TRACE(abort);
    World::Link link = world.connect();
    world.loop.queue_in_loop([&] {
      if (abort) {
        link.connection->abort();
      } else {
        link.connection->close();
      }
      link.connection->detach(keep(taken, link.record));
    });
    world.turn(3);
    if (!abort) send_fin(link);
    expect_not_detached(*link.record, CloseReason::local);
    EXPECT_EQ(collect_to_end(world, link).result, abort ? -ECONNRESET : 0);
    EXPECT_EQ(taken.use_count(), 1);
  }
}

TEST_P(Detach, ACloseWhileItsOutputIsFlushedPrevails) {
  const std::string text = pattern(4 * kMiB);
  World::Link link = world.connect();
  shrink_buffers(link);
  world.loop.queue_in_loop([&] {
    link.connection->send(text);
    link.connection->detach(keep(taken, link.record));
  });
  world.turn(5);
  world.loop.queue_in_loop([&] { link.connection->close(); });
  world.turn(2);
  send_fin(link);
  const Received all = collect_to_end(world, link);
  EXPECT_EQ(all.result, 0);
  EXPECT_EQ(first_difference(all.text, text), kNowhere);
  expect_not_detached(*link.record, CloseReason::local);
  EXPECT_EQ(link.record->report->bytes_discarded, 0u);
}

TEST_P(Detach, AnAbortWhileItsOutputIsFlushedPrevails) {
  World::Link link = world.connect();
  shrink_buffers(link);
  world.loop.queue_in_loop([&] {
    link.connection->send(pattern(4 * kMiB));
    link.connection->detach(keep(taken, link.record));
  });
  world.turn(5);
  world.loop.queue_in_loop([&] { link.connection->abort(); });
  expect_not_detached(*link.record, CloseReason::local);
  EXPECT_GT(link.record->report->bytes_discarded, 0u);
  EXPECT_EQ(collect_to_end(world, link).result, -ECONNRESET);
}

TEST_P(Detach, AnEndInTheSameHandlerPrevails) {
  for (const std::string verb : {"close", "abort", "throw"}) {
    SCOPED_TRACE(verb);
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = [&](TcpConnection& peer, InputBuffer& in) {
      in.take();
      peer.detach(keep(taken, record));
      if (verb == "close") peer.close();
      if (verb == "abort") peer.abort();
      if (verb == "throw") throw std::runtime_error("on purpose");
    };
    World::Link link = world.connect(record, std::move(callbacks));
    deliver(link, "go");
    world.turn(5);
    if (verb == "close") send_fin(link);
    expect_not_detached(*record, CloseReason::local);
    EXPECT_EQ(collect_to_end(world, link).result, verb == "close" ? 0 : -ECONNRESET);
  }
}

// The hand-over is under way; what is still asked for then ends or hands over, never both.
TEST_P(Detach, AnEndBehindADetachThatIsUnderWayEndsOrHandsOverButOnce) {
  for (const std::string verb : {"close", "abort", "finish", "protocol"}) {
    SCOPED_TRACE(verb);
    const std::size_t descriptors = World::open_descriptors();
    {
      taken = std::make_shared<Taken>();
      World::Link link = world.connect();
      world.turn(2);
      world.loop.queue_in_loop([&] {
        link.connection->detach(keep(taken, link.record));
        if (verb == "close") link.connection->close();
        if (verb == "abort") link.connection->abort();
        if (verb == "finish") link.connection->finish();
        if (verb == "protocol") link.connection->close_with_protocol_error();
      });
      world.turn(3);
      if (taken->calls == 0) send_fin(link);
      ASSERT_TRUE(ended(*link.record));
      world.turn(3);
      EXPECT_EQ(link.record->closes, 1);
      EXPECT_EQ(taken->calls == 1, link.record->report->reason == CloseReason::detached);
      if (taken->calls == 1) {
        expect_works_both_ways(link);
        taken->fd.reset();
      }
    }
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
}

TEST_P(Detach, AFinishBeforeOrBehindTheDetachGoesOutBehindTheLastByte) {
  const std::string text = pattern(2 * kMiB);
  for (const bool before : {true, false}) {
    SCOPED_TRACE(before);
    taken = std::make_shared<Taken>();
    World::Link link = world.connect();
    shrink_buffers(link);
    world.loop.queue_in_loop([&] {
      link.connection->send(text);
      if (before) link.connection->finish();
      link.connection->detach(keep(taken, link.record));
      link.connection->finish();
    });
    const Received all = collect_to_end(world, link);
    EXPECT_EQ(all.result, 0);
    EXPECT_EQ(first_difference(all.text, text), kNowhere);
    expect_detached(*link.record);
    deliver(link, "still heard");
    EXPECT_EQ(rest(), "still heard");
    EXPECT_EQ(send_text(linux_kernel(), taken->fd.get(), "x"), -EPIPE);
  }
}

TEST_P(Detach, OnlyTheFirstDetachCounts) {
  const auto second = std::make_shared<Taken>();
  World::Link link = world.connect();
  shrink_buffers(link);
  world.loop.queue_in_loop([&] {
    link.connection->send(pattern(kMiB));
    link.connection->detach(keep(taken, link.record));
    link.connection->detach(keep(second, link.record));
  });
  world.turn(3);
  EXPECT_EQ(second.use_count(), 1);
  world.loop.queue_in_loop([&] { link.connection->detach(keep(second, link.record)); });
  world.turn(3);
  collect(world, link, kMiB);
  expect_detached(*link.record);
  EXPECT_EQ(second->calls, 0);
  EXPECT_EQ(second.use_count(), 1);
}

TEST_P(Detach, ATakerThatThrowsCostsTheDescriptorAndNothingElse) {
  const std::size_t descriptors = World::open_descriptors();
  {
    World::Link link = world.connect();
    World::Link bystander = world.connect();
    const std::uint64_t exceptions = world.loop.statistics().exceptions;
    world.loop.queue_in_loop([&] {
      link.connection->detach(
          [](UniqueFd, std::string) { throw std::runtime_error("on purpose"); });
    });
    ASSERT_TRUE(ended(*link.record));
    world.turn(3);
    EXPECT_EQ(link.record->closes, 1);
    EXPECT_EQ(to_string(link.record->report->reason), to_string(CloseReason::detached));
    EXPECT_EQ(world.loop.statistics().exceptions, exceptions + 1);
    EXPECT_EQ(collect_to_end(world, link).result, 0);
    deliver(bystander, "and me?");
    EXPECT_TRUE(world.run_until([&] { return bystander.record->received == "and me?"; }));
    world.loop.queue_in_loop([&] { bystander.connection->abort(); });
    EXPECT_TRUE(ended(*bystander.record));
  }
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

TEST_P(Detach, WhatIsSentThroughAHandleAfterwardsIsDroppedAndCounted) {
  World::Link link = world.connect();
  detach(link);
  expect_detached(*link.record);
  ConnectionTable& table = ConnectionTable::of(world.loop);
  const std::uint64_t dropped = table.statistics().stale_drops;
  EXPECT_EQ(link.handle.send("too late"), PostResult::posted);
  EXPECT_EQ(link.handle.close(), PostResult::posted);
  world.turn(3);
  EXPECT_EQ(table.statistics().stale_drops, dropped + 2);
  expect_works_both_ways(link);
}

TEST_P(Detach, ALoopThatIsDestroyedReportsADetachOnce) {
  const std::size_t descriptors = World::open_descriptors();
  for (const bool queued : {false, true}) {
    SCOPED_TRACE(queued);
    taken = std::make_shared<Taken>();
    auto record = std::make_shared<Record>();
    SocketPair pair = tcp_pair(world.kernel);
    {
      EventLoop loop({.backend = GetParam(), .kernel = &world.kernel});
      ConnectionCallbacks callbacks = World::recording(record);
      callbacks.on_connect = [&](TcpConnection& peer) {
        if (queued) peer.send(std::string(16 * kMiB - 64 * kKiB, 'q'));
        peer.detach(keep(taken, record));
      };
      ASSERT_TRUE(
          adopt_connection(loop, std::move(pair.server), make_behaviour(std::move(callbacks)))
              .has_value());
    }
    EXPECT_EQ(record->closes, 1);
    EXPECT_EQ(taken->calls == 1, record->report->reason == CloseReason::detached);
    EXPECT_EQ(taken->calls, queued ? 0 : 1);
    taken->fd.reset();
  }
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// -- Servers --

TEST_P(Detach, AServerCountsADetachedConnectionAsEndedAndStopsWithoutIt) {
  Ledger ledger;
  TcpServer server(world.loop);
  ledger.keep(server);
  server.on_message([&](TcpConnection& peer, InputBuffer& in) {
    in.take();
    peer.detach([&](UniqueFd fd, std::string unread) {
      ++taken->calls;
      taken->fd = std::move(fd);
      taken->unread = std::move(unread);
    });
  });
  bool stopped = false;
  server.on_stopped([&] { stopped = true; });
  ASSERT_TRUE(server.start().has_value());
  World::Link link;
  link.client = connect_to(server.address());
  send_text(linux_kernel(), link.client.get(), "upgrade");
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == 1; }));
  world.turn();
  EXPECT_EQ(ledger.count(CloseReason::detached), 1u);
  const ServerStatistics statistics = server.statistics();
  EXPECT_EQ(statistics.live, 0u);
  EXPECT_EQ(statistics.ended, 1u);
  EXPECT_EQ(statistics.ends[CloseReason::detached], 1u);
  EXPECT_EQ(statistics.bytes_received, 7u);
  world.loop.queue_in_loop([&] { server.stop(); });
  ASSERT_TRUE(world.run_until([&] { return stopped; }));
  EXPECT_EQ(server.statistics().aborted_at_stop, 0u);
  expect_works_both_ways(link);
}

TEST_P(Detach, ADetachedConnectionMakesRoomForTheNext) {
  Ledger ledger;
  TcpServer server(world.loop, {.max_connections = 1});
  ledger.keep(server);
  server.on_message([&](TcpConnection& peer, InputBuffer& in) {
    ledger.received += in.take_string();
    peer.detach([&](UniqueFd fd, std::string) { taken->fd = std::move(fd); });
  });
  ASSERT_TRUE(server.start().has_value());
  std::vector<RawClient> clients = connect_many(server.address(), 2);
  for (RawClient& client : clients)
    send_text(linux_kernel(), client.fd.get(), "x");
  EXPECT_TRUE(world.run_until([&] { return ledger.closes == 2; }));
  EXPECT_EQ(ledger.received, "xx");
}

TEST_P(Detach, AStopWhileItsOutputIsFlushedEndsItInOrder) {
  const std::string text = pattern(4 * kMiB);
  for (const bool at_once : {false, true}) {
    SCOPED_TRACE(at_once);
    Ledger ledger;
    TcpServer server(world.loop);
    ledger.keep(server);
    server.on_connect([&](TcpConnection& peer) {
      ledger.up(peer);
      peer.send(text);
      peer.detach([&](UniqueFd, std::string) { ++taken->calls; });
    });
    ASSERT_TRUE(server.start().has_value());
    World::Link link;
    link.client = connect_to(server.address());
    ASSERT_TRUE(world.run_until([&] { return ledger.connects == 1; }));
    world.turn(3);
    world.loop.queue_in_loop([&] { server.stop(at_once ? Duration::zero() : seconds(600)); });
    world.turn(3);
    if (!at_once) {
      EXPECT_EQ(ledger.closes, 0u);
      send_fin(link);
    }
    const Received all = collect_to_end(world, link);
    EXPECT_EQ(all.result, at_once ? -ECONNRESET : 0);
    if (!at_once) {
      EXPECT_EQ(first_difference(all.text, text), kNowhere);
    }
    ASSERT_TRUE(world.run_until([&] { return ledger.closes == 1; }));
    EXPECT_EQ(ledger.count(CloseReason::local), 1u);
    EXPECT_EQ(taken->calls, 0);
    EXPECT_EQ(server.statistics().aborted_at_stop, at_once ? 1u : 0u);
  }
}

TEST_P(Detach, ATakerMayDestroyTheServer) {
  const std::size_t descriptors = World::open_descriptors();
  {
    Ledger ledger;
    auto server = std::make_unique<TcpServer>(world.loop);
    ledger.keep(*server);
    server->on_message([&](TcpConnection& peer, InputBuffer& in) {
      in.consume(1);
      peer.detach([&](UniqueFd fd, std::string unread) {
        server.reset();
        ++taken->calls;
        taken->fd = std::move(fd);
        taken->unread = std::move(unread);
      });
    });
    ASSERT_TRUE(server->start().has_value());
    const SocketAddress address = server->address();
    World::Link link;
    link.client = connect_to(address);
    std::vector<RawClient> others = connect_many(address, 3);
    ASSERT_TRUE(world.run_until([&] { return ledger.connects == 4; }));
    send_text(linux_kernel(), link.client.get(), "go");
    ASSERT_TRUE(world.run_until([&] { return ledger.closes == 4; }));
    EXPECT_EQ(ledger.count(CloseReason::detached), 1u);
    EXPECT_EQ(ledger.count(CloseReason::local), 3u);
    EXPECT_EQ(taken->calls, 1);
    EXPECT_EQ(taken->unread, "o");
    expect_works_both_ways(link);
    for (RawClient& other : others) {
      ASSERT_TRUE(eventually([&] {
        other.read_some();
        return other.ended;
      }));
      EXPECT_TRUE(other.was_reset());
    }
    taken->fd.reset();
    world.turn(3);
  }
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

// The server dies between detach() and its taker.
TEST_P(Detach, AServerThatIsDestroyedWhileADetachIsUnderWayReportsItOnce) {
  Ledger ledger;
  auto server = std::make_unique<TcpServer>(world.loop);
  ledger.keep(*server);
  server->on_message([&](TcpConnection& peer, InputBuffer& in) {
    in.take();
    peer.detach([&](UniqueFd fd, std::string) {
      ++taken->calls;
      taken->fd = std::move(fd);
    });
    world.loop.queue_in_loop([&] { server.reset(); });
  });
  ASSERT_TRUE(server->start().has_value());
  World::Link link;
  link.client = connect_to(server->address());
  send_text(linux_kernel(), link.client.get(), "go");
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == 1 && !server; }));
  EXPECT_EQ(taken->calls == 1, ledger.count(CloseReason::detached) == 1);
  if (taken->calls == 1) expect_works_both_ways(link);
}

// -- Adopting --

TEST_P(Detach, ASocketPairCanBeAdoptedAndItsOptionsAreLeft) {
  std::array<int, 2> fds{-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds.data()), 0);  // blocking, and inheritable
  World::Link link;
  link.client = UniqueFd(linux_kernel(), fds[1]);
  ASSERT_EQ(::fcntl(fds[1], F_SETFL, O_NONBLOCK), 0);
  auto record = std::make_shared<Record>();
  SocketAddress peer_address;
  ConnectionCallbacks callbacks = World::recording(record);
  callbacks.on_connect = [&](TcpConnection& peer) {
    record->events.emplace_back("connect");
    peer_address = peer.peer_address();
    peer.send("welcome");
  };
  const std::uint64_t options = world.kernel.calls(Call::setsockopt);
  const Result<ConnectionHandle> handle = adopt_connection(
      world.loop, UniqueFd(world.kernel, fds[0]), make_behaviour(std::move(callbacks)));
  ASSERT_TRUE(handle.has_value());
  EXPECT_EQ(record->count("connect"), 1u);
  EXPECT_TRUE(peer_address.is_unix());
  EXPECT_NE(::fcntl(fds[0], F_GETFL) & O_NONBLOCK, 0);
  EXPECT_NE(::fcntl(fds[0], F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_EQ(world.kernel.calls(Call::setsockopt), options);
  EXPECT_EQ(collect(world, link, 7), "welcome");
  const std::string text = pattern(kMiB);
  feed(world, link, text);
  ASSERT_TRUE(world.run_until([&] { return record->received.size() >= text.size(); }));
  EXPECT_EQ(first_difference(record->received, text), kNowhere);
  EXPECT_EQ(handle->send("through the handle"), PostResult::posted);
  EXPECT_EQ(collect(world, link, 18), "through the handle");
  send_fin(link);
  EXPECT_EQ(collect_to_end(world, link).result, 0);
  ASSERT_TRUE(ended(*record));
  EXPECT_EQ(to_string(record->report->reason), to_string(CloseReason::eof));
}

TEST_P(Detach, WhatIsNoConnectedStreamSocketCannotBeAdoptedAndIsClosed) {
  std::array<int, 2> pipes{-1, -1};
  ASSERT_EQ(::pipe(pipes.data()), 0);
  const UniqueFd writer(linux_kernel(), pipes[1]);
  std::array<int, 2> datagrams{-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams.data()), 0);
  const UniqueFd other_end(linux_kernel(), datagrams[1]);
  std::array<int, 2> packets{-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets.data()), 0);
  const UniqueFd other_packets(linux_kernel(), packets[1]);
  struct Case {
    const char* what;
    int fd;
    int error;
  };
  const std::vector<Case> cases = {
      {"pipe", pipes[0], ENOTSOCK},
      {"eventfd", ::eventfd(0, 0), ENOTSOCK},
      {"file", ::open("/dev/null", O_RDWR), ENOTSOCK},
      {"datagrams", datagrams[0], EPROTOTYPE},
      {"packets", packets[0], EPROTOTYPE},
      {"udp", ::socket(AF_INET, SOCK_DGRAM, 0), EPROTOTYPE},
      {"unconnected", ::socket(AF_INET, SOCK_STREAM, 0), ENOTCONN},
      {"unconnected unix", ::socket(AF_UNIX, SOCK_STREAM, 0), ENOTCONN},
      {"listening", listen_tcp(linux_kernel()).fd.release(), ENOTCONN},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.what);
    const std::size_t descriptors = World::open_descriptors();
    auto record = std::make_shared<Record>();
    const Result<ConnectionHandle> adopted = adopt_connection(
        world.loop, UniqueFd(world.kernel, each.fd), make_behaviour(World::recording(record)));
    ASSERT_FALSE(adopted.has_value());
    EXPECT_EQ(adopted.error(), system_error(each.error));
    EXPECT_EQ(::fcntl(each.fd, F_GETFD), -1);
    EXPECT_EQ(World::open_descriptors(), descriptors - 1);
    EXPECT_TRUE(record->events.empty());
  }
  EXPECT_EQ(adopt_connection(world.loop, UniqueFd(), make_behaviour({})).error(),
            system_error(EBADF));
  EXPECT_EQ(ConnectionTable::of(world.loop).size(), 0u);
}

TEST_P(Detach, WhicheverCallOfAnAdoptionFailsTheDescriptorIsClosed) {
  bool reached = true;
  int failed = 0;
  for (std::uint64_t which = 1; reached; ++which) {
    SCOPED_TRACE(which);
    ASSERT_LT(which, 50u);
    const std::size_t descriptors = World::open_descriptors();
    SocketPair pair = tcp_pair(linux_kernel());
    auto record = std::make_shared<Record>();
    const auto rule = world.kernel.inject({.call = Call::any, .first = which, .error = ENOMEM});
    const Result<ConnectionHandle> adopted =
        adopt_connection(world.loop, UniqueFd(world.kernel, pair.server.release()),
                         make_behaviour(World::recording(record)));
    reached = world.kernel.fired(rule) > 0;
    world.kernel.heal();
    if (adopted) {
      EXPECT_EQ(adopted->abort(), PostResult::posted);
      EXPECT_TRUE(ended(*record));
    } else {
      ++failed;
      EXPECT_EQ(adopted.error(), system_error(ENOMEM));
      EXPECT_TRUE(record->events.empty());
    }
    world.turn(3);
    pair.client.reset();
    EXPECT_EQ(World::open_descriptors(), descriptors);
  }
  EXPECT_GE(failed, GetParam() == Backend::poll ? 3 : 4)
      << "getsockopt, getpeername, fcntl and, but for poll, epoll_ctl";
}

// A recv stops short at descriptors that are passed (unix(7)): falling short proves nothing there.
TEST_P(Detach, BytesBehindDescriptorsThatArePassedAreNotStranded) {
  for (const bool paused : {false, true}) {
    SCOPED_TRACE(paused);
    SocketPair pair = unix_pair(linux_kernel());
    const UniqueFd passed = tcp_socket(linux_kernel());
    const auto pass_one = [&](std::string text) {
      std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
      iovec part{.iov_base = text.data(), .iov_len = text.size()};
      msghdr message{};
      message.msg_iov = &part;
      message.msg_iovlen = 1;
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int));
      const int fd = passed.get();
      std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
      EXPECT_EQ(linux_kernel().sendmsg(pair.client.get(), &message, 0),
                static_cast<ssize_t>(text.size()));
    };
    const std::size_t descriptors = World::open_descriptors();
    auto record = std::make_shared<Record>();
    TcpConnection* connection = nullptr;
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_connect = [&](TcpConnection& peer) {
      connection = &peer;
      if (paused) peer.pause_reading();
    };
    const int fd = pair.server.get();
    ASSERT_TRUE(adopt_connection(world.loop, UniqueFd(world.kernel, pair.server.release()),
                                 make_behaviour(std::move(callbacks)))
                    .has_value());
    // What is registered at first is told in the first turn; the burst has one event to itself.
    world.turn(3);
    const std::uint64_t reads = world.kernel.calls_on(Call::recv, fd);
    std::string text;
    for (int i = 0; i < 10; ++i) {
      send_text(linux_kernel(), pair.client.get(), "before ");
      pass_one("with ");
      send_text(linux_kernel(), pair.client.get(), "after ");
      text += "before with after ";
    }
    if (paused) {
      world.turn(3);
      EXPECT_EQ(record->received, "");
      world.loop.queue_in_loop([&] { connection->resume_reading(); });
    }
    ASSERT_TRUE(world.run_until([&] { return record->received.size() >= text.size(); }))
        << record->received;
    EXPECT_EQ(record->received, text);
    EXPECT_GE(world.kernel.calls_on(Call::recv, fd), reads + 10) << "recv did not stop short";
    EXPECT_EQ(World::open_descriptors(), descriptors) << "what was passed is nobody's";
    send_text(linux_kernel(), pair.client.get(), "last ");
    pass_one("words");
    linux_kernel().shutdown(pair.client.get(), SHUT_WR);
    ASSERT_TRUE(ended(*record));
    EXPECT_EQ(record->received, text + "last words");
    EXPECT_EQ(to_string(record->report->reason), to_string(CloseReason::eof));
  }
}

PENSTOCK_ON_EVERY_BACKEND(Detach);

}  // namespace
}  // namespace penstock::test

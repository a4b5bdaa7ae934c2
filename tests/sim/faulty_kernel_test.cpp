#include "penstock/sim/faulty_kernel.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include <array>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "support/sockets.h"

namespace penstock {
namespace {

using test::Epoll;
using test::SocketPair;

constexpr std::uint32_t kEdge = EPOLLET;

class FaultyKernelTest : public testing::Test {
 protected:
  /// The results of receiving one byte at a time, as often as told; 1 for a byte.
  std::vector<ssize_t> receive_bytes(int fd, int times) {
    std::vector<ssize_t> results;
    for (int i = 0; i < times; ++i) {
      char byte = 0;
      results.push_back(kernel_.recv(fd, &byte, 1, 0));
    }
    return results;
  }

  /// Sends three parts of three bytes each with one sendmsg.
  ssize_t send_parts(int fd) {
    std::array<std::string, 3> texts{"abc", "def", "ghi"};
    std::array<iovec, 3> parts{};
    for (std::size_t i = 0; i < parts.size(); ++i) {
      parts[i] = {.iov_base = texts[i].data(), .iov_len = texts[i].size()};
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    return kernel_.sendmsg(fd, &message, 0);
  }

  FaultyKernel kernel_{linux_kernel()};
};

using Results = std::vector<ssize_t>;

// -- Which calls --

TEST_F(FaultyKernelTest, disturbs_nothing_without_rules) {
  SocketPair pair = test::tcp_pair(kernel_);
  EXPECT_EQ(send_parts(pair.client.get()), 9);
  test::wait_for(kernel_, pair.server.get(), POLLIN);
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).text, "abcdefghi");
}

TEST_F(FaultyKernelTest, a_rule_fires_once_at_the_first_matching_call_by_default) {
  SocketPair pair = test::unix_pair(kernel_);
  ASSERT_EQ(send_parts(pair.client.get()), 9);
  const auto rule = kernel_.inject({.call = Call::recv, .error = ENOBUFS});

  EXPECT_EQ(receive_bytes(pair.server.get(), 3), (Results{-ENOBUFS, 1, 1}));
  EXPECT_EQ(kernel_.fired(rule), 1u);
  EXPECT_EQ(kernel_.matched(rule), 3u);
}

TEST_F(FaultyKernelTest, a_rule_fires_from_the_nth_call_on_as_often_as_told) {
  SocketPair pair = test::unix_pair(kernel_);
  ASSERT_EQ(send_parts(pair.client.get()), 9);
  const auto rule =
      kernel_.inject({.call = Call::recv, .first = 3, .times = 2, .error = ECONNRESET});

  EXPECT_EQ(receive_bytes(pair.server.get(), 5), (Results{1, 1, -ECONNRESET, -ECONNRESET, 1}));
  EXPECT_EQ(kernel_.fired(rule), 2u);
}

TEST_F(FaultyKernelTest, a_rule_fires_at_every_kth_call_without_end) {
  SocketPair pair = test::unix_pair(kernel_);
  ASSERT_EQ(send_parts(pair.client.get()), 9);
  kernel_.inject({.call = Call::recv, .every = 3, .error = EAGAIN});

  EXPECT_EQ(receive_bytes(pair.server.get(), 7), (Results{1, 1, -EAGAIN, 1, 1, -EAGAIN, 1}));
}

TEST_F(FaultyKernelTest, first_every_and_times_work_together) {
  SocketPair pair = test::unix_pair(kernel_);
  ASSERT_EQ(send_parts(pair.client.get()), 9);
  kernel_.inject({.call = Call::recv, .first = 2, .every = 2, .times = 2, .error = EAGAIN});

  EXPECT_EQ(receive_bytes(pair.server.get(), 7), (Results{1, -EAGAIN, 1, -EAGAIN, 1, 1, 1}));
}

TEST_F(FaultyKernelTest, a_rule_counts_from_its_injection) {
  SocketPair pair = test::unix_pair(kernel_);
  ASSERT_EQ(send_parts(pair.client.get()), 9);
  EXPECT_EQ(receive_bytes(pair.server.get(), 2), (Results{1, 1}));
  kernel_.inject({.call = Call::recv, .first = 2, .error = EAGAIN});

  EXPECT_EQ(receive_bytes(pair.server.get(), 3), (Results{1, -EAGAIN, 1}));
}

TEST_F(FaultyKernelTest, a_rule_may_be_for_one_descriptor_or_for_those_of_a_predicate) {
  SocketPair pair = test::unix_pair(kernel_);
  const int client = pair.client.get();
  const int server = pair.server.get();
  kernel_.inject({.call = Call::send, .fd = client, .error = ENOBUFS});
  kernel_.inject(
      {.call = Call::send, .where = [&](int fd) { return fd == server; }, .error = ENOMEM});

  EXPECT_EQ(kernel_.send(server, "x", 1, 0), -ENOMEM);
  EXPECT_EQ(kernel_.send(client, "x", 1, 0), -ENOBUFS);
  EXPECT_EQ(kernel_.send(server, "x", 1, 0), 1);
  EXPECT_EQ(kernel_.send(client, "x", 1, 0), 1);
}

TEST_F(FaultyKernelTest, a_rule_for_any_call_finds_the_kth_call_of_all) {
  SocketPair pair = test::unix_pair(kernel_);
  const auto rule = kernel_.inject({.call = Call::any, .first = 3, .error = EIO});

  EXPECT_EQ(kernel_.send(pair.client.get(), "x", 1, 0), 1);
  EXPECT_EQ(kernel_.eventfd(0, -1), -EINVAL) << "a call that fails by itself counts too";
  EXPECT_GE(kernel_.now(), TimePoint{}) << "one that cannot fail does not";
  EXPECT_EQ(receive_bytes(pair.server.get(), 2), (Results{-EIO, 1}));
  EXPECT_EQ(kernel_.fired(rule), 1u);
}

TEST_F(FaultyKernelTest, of_two_due_rules_the_earlier_one_fires_and_the_other_misses_its_turn) {
  SocketPair pair = test::unix_pair(kernel_);
  const auto first = kernel_.inject({.call = Call::send, .error = ENOBUFS});
  const auto second = kernel_.inject({.call = Call::send, .every = 1, .error = ENOMEM});

  EXPECT_EQ(kernel_.send(pair.client.get(), "x", 1, 0), -ENOBUFS);
  EXPECT_EQ(kernel_.fired(second), 0u);
  EXPECT_EQ(kernel_.matched(second), 1u);
  EXPECT_EQ(kernel_.send(pair.client.get(), "x", 1, 0), -ENOMEM);
  EXPECT_EQ(kernel_.fired(first), 1u);
}

TEST_F(FaultyKernelTest, healing_ends_all_rules_and_keeps_their_counts) {
  SocketPair pair = test::unix_pair(kernel_);
  const auto rule = kernel_.inject({.call = Call::send, .every = 1, .error = ENOBUFS});
  EXPECT_EQ(kernel_.send(pair.client.get(), "x", 1, 0), -ENOBUFS);

  kernel_.heal();

  EXPECT_EQ(kernel_.send(pair.client.get(), "x", 1, 0), 1);
  EXPECT_EQ(kernel_.fired(rule), 1u);
}

// -- How --

TEST_F(FaultyKernelTest, a_failed_call_is_not_made) {
  SocketPair pair = test::unix_pair(kernel_);
  kernel_.inject({.call = Call::send, .error = EPIPE});

  EXPECT_EQ(kernel_.send(pair.client.get(), "lost?", 5, 0), -EPIPE);
  EXPECT_EQ(test::receive(linux_kernel(), pair.server.get()).result, -EAGAIN);
}

TEST_F(FaultyKernelTest, every_kind_of_call_can_be_made_to_fail) {
  std::array<char, 8> bytes{};
  std::array<std::byte, 8> random{};
  sockaddr_storage storage{};
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  socklen_t size = sizeof storage;
  msghdr message{};
  epoll_event event{};
  sigset_t signals;
  sigemptyset(&signals);
  const auto rule = kernel_.inject({.call = Call::any, .every = 1, .error = EXDEV});

  EXPECT_EQ(kernel_.socket(AF_INET, SOCK_STREAM, 0), -EXDEV);
  EXPECT_EQ(kernel_.bind(-1, address, size), -EXDEV);
  EXPECT_EQ(kernel_.listen(-1, 1), -EXDEV);
  EXPECT_EQ(kernel_.accept4(-1, nullptr, nullptr, 0), -EXDEV);
  EXPECT_EQ(kernel_.connect(-1, address, size), -EXDEV);
  EXPECT_EQ(kernel_.getsockopt(-1, 0, 0, nullptr, &size), -EXDEV);
  EXPECT_EQ(kernel_.setsockopt(-1, 0, 0, nullptr, 0), -EXDEV);
  EXPECT_EQ(kernel_.getsockname(-1, address, &size), -EXDEV);
  EXPECT_EQ(kernel_.getpeername(-1, address, &size), -EXDEV);
  EXPECT_EQ(kernel_.shutdown(-1, SHUT_WR), -EXDEV);
  EXPECT_EQ(kernel_.recv(-1, bytes.data(), 1, 0), -EXDEV);
  EXPECT_EQ(kernel_.send(-1, bytes.data(), 1, 0), -EXDEV);
  EXPECT_EQ(kernel_.sendmsg(-1, &message, 0), -EXDEV);
  EXPECT_EQ(kernel_.sendfile(-1, -1, nullptr, 1), -EXDEV);
  EXPECT_EQ(kernel_.splice(-1, -1, 1, 0), -EXDEV);
  EXPECT_EQ(kernel_.unacknowledged_bytes(-1), -EXDEV);
  EXPECT_EQ(kernel_.epoll_create(0), -EXDEV);
  EXPECT_EQ(kernel_.epoll_ctl(-1, EPOLL_CTL_ADD, -1, &event), -EXDEV);
  EXPECT_EQ(kernel_.epoll_wait(-1, &event, 1, -1), -EXDEV);
  pollfd polled{};
  EXPECT_EQ(kernel_.poll(std::span(&polled, 1), nullptr), -EXDEV);
  EXPECT_EQ(kernel_.eventfd(0, 0), -EXDEV);
  EXPECT_EQ(kernel_.signalfd(-1, &signals, 0), -EXDEV);
  EXPECT_EQ(kernel_.signal_mask(SIG_BLOCK, &signals, nullptr), -EXDEV);
  EXPECT_EQ(kernel_.read(-1, bytes.data(), 1), -EXDEV);
  EXPECT_EQ(kernel_.write(-1, bytes.data(), 1), -EXDEV);
  EXPECT_EQ(kernel_.open("/dev/null", O_RDONLY), -EXDEV);
  EXPECT_EQ(kernel_.unlink("/no/such/file"), -EXDEV);
  FileStatus status;
  EXPECT_EQ(kernel_.file_status(-1, "/", status), -EXDEV);
  EXPECT_EQ(kernel_.make_nonblocking(-1), -EXDEV);
  EXPECT_EQ(kernel_.entropy(random), -EXDEV);
  EXPECT_EQ(kernel_.close(-1), -EBADF) << "made nevertheless, and really failed";
  EXPECT_EQ(kernel_.fired(rule), kCallKinds - 1);
}

TEST_F(FaultyKernelTest, a_shortened_call_asks_for_less) {
  SocketPair pair = test::unix_pair(kernel_);
  const auto rule = kernel_.inject({.call = Call::any, .every = 1, .shorten_to = 2});

  EXPECT_EQ(kernel_.send(pair.client.get(), "abcd", 4, 0), 2);
  EXPECT_EQ(kernel_.write(pair.client.get(), "cdef", 4), 2);
  EXPECT_EQ(test::receive(linux_kernel(), pair.server.get(), 3).text, "abc");
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).text, "d");
  EXPECT_EQ(kernel_.fired(rule), 3u);
}

TEST_F(FaultyKernelTest, a_call_that_asks_for_no_more_is_not_shortened) {
  SocketPair pair = test::unix_pair(kernel_);
  const auto rule = kernel_.inject({.call = Call::send, .every = 1, .shorten_to = 2});

  EXPECT_EQ(kernel_.send(pair.client.get(), "ab", 2, 0), 2);
  EXPECT_EQ(kernel_.matched(rule), 0u);
  EXPECT_EQ(kernel_.fired(rule), 0u);
}

TEST_F(FaultyKernelTest, a_shortened_sendmsg_keeps_the_order_across_the_edges_of_its_parts) {
  constexpr std::string_view kWhole = "abcdefghi";
  for (std::size_t size = 1; size < kWhole.size(); ++size) {
    SocketPair pair = test::unix_pair(kernel_);
    const auto rule = kernel_.inject({.call = Call::sendmsg, .shorten_to = size});

    EXPECT_EQ(send_parts(pair.client.get()), static_cast<ssize_t>(size));
    EXPECT_EQ(test::receive(kernel_, pair.server.get()).text, kWhole.substr(0, size));
    EXPECT_EQ(kernel_.fired(rule), 1u);
  }
}

TEST_F(FaultyKernelTest, sendfile_and_splice_fall_short_too) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
  ASSERT_NE(file, nullptr);
  ASSERT_NE(std::fputs("from a file", file.get()), EOF);
  ASSERT_EQ(std::fflush(file.get()), 0);
  SocketPair pair = test::unix_pair(kernel_);
  kernel_.inject({.call = Call::sendfile, .shorten_to = 4});
  off_t offset = 0;
  EXPECT_EQ(kernel_.sendfile(pair.client.get(), ::fileno(file.get()), &offset, 11), 4);
  EXPECT_EQ(offset, 4);

  std::array<int, 2> pipe{-1, -1};
  ASSERT_EQ(::pipe(pipe.data()), 0);
  const UniqueFd reading(kernel_, pipe[0]);
  const UniqueFd writing(kernel_, pipe[1]);
  kernel_.inject({.call = Call::splice, .shorten_to = 4});
  EXPECT_EQ(kernel_.splice(pair.server.get(), writing.get(), 100, 0), 4);
}

TEST_F(FaultyKernelTest, records_of_an_eventfd_are_never_shortened) {
  const UniqueFd fd(kernel_, kernel_.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  const auto rule = kernel_.inject({.call = Call::any, .every = 1, .shorten_to = 1});
  std::uint64_t count = 5;

  EXPECT_EQ(kernel_.write(fd.get(), &count, sizeof count), 8);
  EXPECT_EQ(kernel_.read(fd.get(), &count, sizeof count), 8);
  EXPECT_EQ(count, 5u);
  EXPECT_EQ(kernel_.fired(rule), 0u);
}

TEST_F(FaultyKernelTest, a_stream_under_the_number_of_a_closed_eventfd_is_shortened_again) {
  UniqueFd record(kernel_, kernel_.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  const int number = record.get();
  record.reset();
  const SocketPair pair = test::unix_pair(kernel_);
  ASSERT_EQ(pair.client.get(), number);
  kernel_.inject({.call = Call::write, .shorten_to = 1});

  EXPECT_EQ(kernel_.write(number, "abc", 3), 1);
}

TEST_F(FaultyKernelTest, a_close_that_fails_has_closed_all_the_same) {
  SocketPair pair = test::unix_pair(kernel_);
  kernel_.inject({.call = Call::close, .error = EIO});

  EXPECT_EQ(kernel_.close(pair.client.release()), -EIO);
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).result, 0) << "the peer sees the end";
}

TEST_F(FaultyKernelTest, an_interrupted_connect_goes_on) {
  const test::Listener listener = test::listen_tcp(kernel_);
  const auto rule = kernel_.inject({.call = Call::connect, .error = EINTR});

  const UniqueFd client = test::start_connect(kernel_, listener.address);

  EXPECT_EQ(test::wait_for(kernel_, client.get(), POLLOUT), POLLOUT);
  EXPECT_TRUE(test::accept_one(kernel_, listener));
  EXPECT_EQ(kernel_.fired(rule), 1u);
}

TEST_F(FaultyKernelTest, a_refused_connect_is_not_made) {
  const test::Listener listener = test::listen_tcp(kernel_);
  const UniqueFd client = test::tcp_socket(kernel_);
  kernel_.inject({.call = Call::connect, .error = ECONNREFUSED});

  EXPECT_EQ(kernel_.connect(client.get(), listener.address.data(), listener.address.size()),
            -ECONNREFUSED);
  EXPECT_EQ(kernel_.accept4(listener.fd.get(), nullptr, nullptr, 0), -EAGAIN);
}

TEST_F(FaultyKernelTest, an_interrupted_wait_answers_no_events_and_loses_none) {
  SocketPair pair = test::unix_pair(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.client.get(), EPOLLOUT | kEdge), 0);
  kernel_.inject({.call = Call::epoll_wait, .error = EINTR});

  EXPECT_EQ(epoll.wait(), 0u);
  EXPECT_EQ(epoll.wait(), std::uint32_t{EPOLLOUT});
}

TEST_F(FaultyKernelTest, a_shortened_wait_returns_the_other_events_next_time) {
  SocketPair pair = test::unix_pair(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.client.get(), EPOLLOUT | kEdge), 0);
  ASSERT_EQ(epoll.add(pair.server.get(), EPOLLOUT | kEdge), 0);
  kernel_.inject({.call = Call::epoll_wait, .shorten_to = 1});
  std::array<epoll_event, 8> events{};

  EXPECT_EQ(kernel_.epoll_wait(epoll.fd(), events.data(), 8, 0), 1);
  EXPECT_EQ(kernel_.epoll_wait(epoll.fd(), events.data(), 8, 0), 1);
  EXPECT_EQ(kernel_.epoll_wait(epoll.fd(), events.data(), 8, 0), 0);
}

TEST_F(FaultyKernelTest, epoll_ctl_can_be_made_to_fail_by_operation) {
  SocketPair pair = test::unix_pair(kernel_);
  Epoll epoll(kernel_);
  const auto rule =
      kernel_.inject({.call = Call::epoll_ctl, .operation = EPOLL_CTL_MOD, .error = ENOMEM});

  EXPECT_EQ(epoll.add(pair.client.get(), EPOLLOUT | kEdge), 0);
  EXPECT_EQ(epoll.wait(), std::uint32_t{EPOLLOUT});
  EXPECT_EQ(epoll.change(pair.client.get(), EPOLLOUT | EPOLLIN | kEdge), -ENOMEM);
  EXPECT_EQ(epoll.now(), 0u) << "it just fails";
  EXPECT_EQ(epoll.remove(pair.client.get()), 0);
  EXPECT_EQ(kernel_.fired(rule), 1u);
}

// -- No edge is lost --

/// A byte waits at `server`, which is registered edge-triggered and has had its event.
class FaultyKernelEdgeTest : public FaultyKernelTest {
 protected:
  FaultyKernelEdgeTest() {
    EXPECT_EQ(epoll_.add(pair_.server.get(), EPOLLIN | kEdge), 0);
    EXPECT_EQ(kernel_.send(pair_.client.get(), "abc", 3, 0), 3);
    EXPECT_EQ(epoll_.wait(), std::uint32_t{EPOLLIN});
    EXPECT_EQ(epoll_.now(), 0u);
  }

  SocketPair pair_ = test::unix_pair(kernel_);
  Epoll epoll_{kernel_};
};

TEST_F(FaultyKernelEdgeTest, an_injected_failure_to_receive_is_followed_by_another_event) {
  kernel_.inject({.call = Call::recv, .error = EAGAIN});
  EXPECT_EQ(test::receive(kernel_, pair_.server.get()).result, -EAGAIN);

  EXPECT_EQ(epoll_.now(), std::uint32_t{EPOLLIN});
  EXPECT_EQ(test::receive(kernel_, pair_.server.get()).text, "abc");
}

TEST_F(FaultyKernelEdgeTest, a_shortened_receive_is_followed_by_another_event) {
  kernel_.inject({.call = Call::recv, .shorten_to = 1});
  EXPECT_EQ(test::receive(kernel_, pair_.server.get()).text, "a");

  EXPECT_EQ(epoll_.now(), std::uint32_t{EPOLLIN});
  EXPECT_EQ(test::receive(kernel_, pair_.server.get()).text, "bc");
}

TEST_F(FaultyKernelEdgeTest, a_receive_that_got_all_there_was_is_followed_by_none) {
  kernel_.inject({.call = Call::recv, .shorten_to = 100});
  EXPECT_EQ(test::receive(kernel_, pair_.server.get()).text, "abc");

  EXPECT_EQ(epoll_.now(), 0u);
}

TEST_F(FaultyKernelEdgeTest, the_latest_registration_is_the_one_re_armed) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | kEdge;
  event.data.u64 = 4711;
  ASSERT_EQ(kernel_.epoll_ctl(epoll_.fd(), EPOLL_CTL_MOD, pair_.server.get(), &event), 0);
  EXPECT_NE(epoll_.now(), 0u);
  kernel_.inject({.call = Call::recv, .error = EAGAIN});
  test::receive(kernel_, pair_.server.get());

  event = {};
  EXPECT_EQ(kernel_.epoll_wait(epoll_.fd(), &event, 1, 0), 1);
  EXPECT_EQ(event.events, std::uint32_t{EPOLLIN | EPOLLOUT});
  const std::uint64_t user_data = event.data.u64;  // a copy: epoll_event is packed
  EXPECT_EQ(user_data, 4711u);
}

TEST_F(FaultyKernelEdgeTest, what_has_left_the_epoll_is_not_brought_back) {
  ASSERT_EQ(epoll_.remove(pair_.server.get()), 0);
  kernel_.inject({.call = Call::recv, .error = EAGAIN});
  EXPECT_EQ(test::receive(kernel_, pair_.server.get()).result, -EAGAIN);

  EXPECT_EQ(epoll_.now(), 0u);
}

TEST_F(FaultyKernelEdgeTest, a_one_shot_registration_stays_disarmed) {
  ASSERT_EQ(epoll_.change(pair_.server.get(), EPOLLIN | EPOLLONESHOT), 0);
  EXPECT_EQ(epoll_.now(), std::uint32_t{EPOLLIN});
  kernel_.inject({.call = Call::recv, .error = EAGAIN});
  EXPECT_EQ(test::receive(kernel_, pair_.server.get()).result, -EAGAIN);

  EXPECT_EQ(epoll_.now(), 0u);
}

TEST_F(FaultyKernelEdgeTest, the_next_owner_of_a_descriptor_number_inherits_no_registration) {
  const int number = pair_.server.get();
  pair_.server.reset();
  const UniqueFd next(kernel_, kernel_.eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));
  ASSERT_EQ(next.get(), number);
  kernel_.inject({.call = Call::read, .error = EAGAIN});
  std::uint64_t count = 0;
  EXPECT_EQ(kernel_.read(next.get(), &count, sizeof count), -EAGAIN);

  EXPECT_EQ(epoll_.now(), 0u);
}

TEST_F(FaultyKernelTest, an_injected_failure_to_send_is_followed_by_another_event) {
  SocketPair pair = test::unix_pair(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.client.get(), EPOLLOUT | kEdge), 0);
  ASSERT_EQ(epoll.now(), std::uint32_t{EPOLLOUT});
  ASSERT_EQ(epoll.now(), 0u);
  kernel_.inject({.call = Call::sendmsg, .error = ENOBUFS});
  EXPECT_EQ(send_parts(pair.client.get()), -ENOBUFS);

  EXPECT_EQ(epoll.now(), std::uint32_t{EPOLLOUT});
}

TEST_F(FaultyKernelTest, an_injected_failure_to_accept_is_followed_by_another_event) {
  const test::Listener listener = test::listen_tcp(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(listener.fd.get(), EPOLLIN | kEdge), 0);
  const UniqueFd client = test::start_connect(kernel_, listener.address);
  ASSERT_EQ(epoll.wait(), std::uint32_t{EPOLLIN});
  kernel_.inject({.call = Call::accept4, .error = EMFILE});
  EXPECT_EQ(kernel_.accept4(listener.fd.get(), nullptr, nullptr, 0), -EMFILE);

  EXPECT_EQ(epoll.now(), std::uint32_t{EPOLLIN});
  EXPECT_TRUE(test::accept_one(kernel_, listener));
}

TEST_F(FaultyKernelTest, an_injected_failure_to_read_an_eventfd_is_followed_by_another_event) {
  const UniqueFd fd(kernel_, kernel_.eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(fd.get(), EPOLLIN | kEdge), 0);
  ASSERT_EQ(epoll.now(), std::uint32_t{EPOLLIN});
  kernel_.inject({.call = Call::read, .fd = fd.get(), .error = EAGAIN});
  std::uint64_t count = 0;
  EXPECT_EQ(kernel_.read(fd.get(), &count, sizeof count), -EAGAIN);

  EXPECT_EQ(epoll.now(), std::uint32_t{EPOLLIN});
}

// -- What a test can see and do --

TEST_F(FaultyKernelTest, counts_calls_by_kind_and_by_descriptor) {
  SocketPair pair = test::unix_pair(linux_kernel());
  kernel_.inject({.call = Call::send, .error = EAGAIN});
  kernel_.send(pair.client.get(), "x", 1, 0);
  kernel_.send(pair.client.get(), "x", 1, 0);
  kernel_.send(pair.server.get(), "x", 1, 0);
  receive_bytes(pair.server.get(), 1);

  EXPECT_EQ(kernel_.calls(), 4u);
  EXPECT_EQ(kernel_.calls(Call::send), 3u) << "disturbed ones included";
  EXPECT_EQ(kernel_.calls(Call::close), 0u);
  EXPECT_EQ(kernel_.calls_on(Call::send, pair.client.get()), 2u);
  EXPECT_EQ(kernel_.calls_on(Call::any, pair.server.get()), 2u);
  EXPECT_EQ(kernel_.calls_on(Call::recv, pair.client.get()), 0u);
}

TEST_F(FaultyKernelTest, a_status_that_fails_is_not_read) {
  const SocketPair pair = test::unix_pair(kernel_);
  const auto by_fd =
      kernel_.inject({.call = Call::file_status, .fd = pair.client.get(), .error = EACCES});
  FileStatus status;
  EXPECT_EQ(kernel_.file_status(pair.server.get(), "", status), 0);
  status = {};
  EXPECT_EQ(kernel_.file_status(pair.client.get(), "", status), -EACCES);
  EXPECT_EQ(status.inode, 0u);
  EXPECT_EQ(kernel_.file_status(pair.client.get(), "", status), 0);
  EXPECT_TRUE(S_ISSOCK(status.mode));
  EXPECT_EQ(kernel_.fired(by_fd), 1u);
  EXPECT_EQ(kernel_.calls(Call::file_status), 3u);
  EXPECT_EQ(kernel_.calls_on(Call::file_status, pair.client.get()), 2u);
}

TEST_F(FaultyKernelTest, a_descriptor_that_cannot_be_made_nonblocking_is_left_as_it_was) {
  std::array<int, 2> fds{-1, -1};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds.data()), 0);
  const UniqueFd left(kernel_, fds[0]);
  const UniqueFd right(kernel_, fds[1]);
  const auto rule = kernel_.inject({.call = Call::make_nonblocking, .error = EINVAL});
  EXPECT_EQ(kernel_.make_nonblocking(left.get()), -EINVAL);
  EXPECT_EQ(::fcntl(left.get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(::fcntl(left.get(), F_GETFD), 0);
  EXPECT_EQ(kernel_.make_nonblocking(left.get()), 0);
  EXPECT_NE(::fcntl(left.get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(kernel_.fired(rule), 1u);
}

TEST_F(FaultyKernelTest, tells_what_the_last_poll_waited_for) {
  const SocketPair pair = test::unix_pair(kernel_);
  const int first = pair.client.get();
  const int second = pair.server.get();
  EXPECT_FALSE(kernel_.polled_for(first).has_value());
  const timespec at_once{};
  std::array<pollfd, 2> both{pollfd{.fd = first, .events = POLLIN | POLLOUT, .revents = 0},
                             pollfd{.fd = second, .events = 0, .revents = 0}};
  EXPECT_EQ(kernel_.poll(both, &at_once), 1);
  EXPECT_EQ(kernel_.polled_for(first), POLLIN | POLLOUT);
  EXPECT_EQ(kernel_.polled_for(second), 0);
  EXPECT_EQ(kernel_.wakeups(), 1u);
  EXPECT_EQ(kernel_.events(), 1u);
  // Of the last one alone, one that fails included.
  const auto rule = kernel_.inject({.call = Call::poll, .error = ENOMEM});
  EXPECT_EQ(kernel_.poll(std::span(both).last(1), &at_once), -ENOMEM);
  EXPECT_EQ(kernel_.fired(rule), 1u);
  EXPECT_FALSE(kernel_.polled_for(first).has_value());
  EXPECT_EQ(kernel_.polled_for(second), 0);
  EXPECT_EQ(kernel_.poll({}, &at_once), 0);
  EXPECT_FALSE(kernel_.polled_for(second).has_value());
  EXPECT_EQ(kernel_.wakeups(), 1u);
}

TEST_F(FaultyKernelTest, leaves_a_poll_of_no_descriptors_alone) {
  const auto rule = kernel_.inject({.call = Call::poll, .every = 1, .error = ENOMEM});
  const timespec at_once{};
  EXPECT_EQ(kernel_.poll({}, &at_once), 0);
  EXPECT_EQ(kernel_.fired(rule), 0u);
  EXPECT_EQ(kernel_.calls(Call::poll), 0u);
}

TEST_F(FaultyKernelTest, counts_wakeups_and_events) {
  SocketPair pair = test::unix_pair(kernel_);
  Epoll epoll(kernel_);
  EXPECT_EQ(epoll.now(), 0u);
  EXPECT_EQ(kernel_.wakeups(), 0u) << "a wait that returns nothing wakes no one";

  ASSERT_EQ(epoll.add(pair.client.get(), EPOLLOUT), 0);
  ASSERT_EQ(epoll.add(pair.server.get(), EPOLLOUT), 0);
  std::array<epoll_event, 8> events{};
  EXPECT_EQ(kernel_.epoll_wait(epoll.fd(), events.data(), 8, 0), 2);
  EXPECT_EQ(test::wait_for(kernel_, pair.client.get(), POLLOUT), POLLOUT);

  EXPECT_EQ(kernel_.wakeups(), 2u);
  EXPECT_EQ(kernel_.events(), 3u);
}

TEST_F(FaultyKernelTest, a_hook_acts_right_before_the_call) {
  SocketPair pair = test::tcp_pair(kernel_);
  std::vector<int> asked;
  kernel_.before(Call::recv, [&](int fd) {
    asked.push_back(fd);
    test::reset_on_close(linux_kernel(), pair.client.get());
    pair.client.reset();
    EXPECT_NE(test::wait_for(linux_kernel(), fd, 0) & POLLERR, 0);
  });

  EXPECT_EQ(receive_bytes(pair.server.get(), 1), Results{-ECONNRESET});
  EXPECT_EQ(asked, std::vector<int>{pair.server.get()});
}

TEST_F(FaultyKernelTest, a_hook_can_be_replaced_and_removed) {
  std::string log;
  kernel_.before(Call::close, [&](int) { log += 'a'; });
  kernel_.close(-1);
  kernel_.before(Call::close, [&](int) { log += 'b'; });
  kernel_.close(-1);
  kernel_.before(Call::close, {});
  kernel_.close(-1);

  EXPECT_EQ(log, "ab");
}

TEST_F(FaultyKernelTest, a_hook_for_any_call_runs_before_all_but_not_before_its_own) {
  int runs = 0;
  kernel_.before(Call::any, [&](int) {
    ++runs;
    kernel_.close(-1);
  });
  kernel_.unlink("/no/such/file");
  kernel_.close(-1);

  EXPECT_EQ(runs, 2);
  EXPECT_EQ(kernel_.calls(Call::close), 3u);
}

TEST_F(FaultyKernelTest, time_can_be_moved_forward) {
  const TimePoint before = kernel_.now();
  kernel_.advance(std::chrono::hours(1));
  const TimePoint after = kernel_.now();

  EXPECT_GE(after - before, std::chrono::hours(1));
  EXPECT_LT(after, linux_kernel().now() + std::chrono::hours(2));
}

TEST_F(FaultyKernelTest, several_threads_may_call_and_inject) {
  constexpr std::uint64_t kEach = 1000;
  const auto call_often = [&] {
    for (std::uint64_t i = 0; i < kEach; ++i)
      kernel_.close(-1);
  };
  std::thread other(call_often);
  const auto rule = kernel_.inject({.call = Call::unlink, .every = 1, .error = EIO});
  call_often();
  EXPECT_EQ(kernel_.unlink("/no/such/file"), -EIO);
  other.join();

  EXPECT_EQ(kernel_.calls(Call::close), 2 * kEach);
  EXPECT_EQ(kernel_.fired(rule), 1u);
}

TEST(FaultyKernelDeathTest, a_fault_without_a_possible_effect_is_a_programming_error) {
  FaultyKernel kernel(linux_kernel());
  EXPECT_DEATH(kernel.inject({.call = Call::recv}), "either an errno value or a size");
  EXPECT_DEATH(kernel.inject({.call = Call::recv, .error = EIO, .shorten_to = 1}),
               "either an errno value or a size");
  EXPECT_DEATH(kernel.inject({.call = Call::recv, .shorten_to = 0}), "look like the end");
  EXPECT_DEATH(kernel.inject({.call = Call::accept4, .shorten_to = 1}), "cannot fall short");
  EXPECT_DEATH(kernel.inject({.operation = EPOLL_CTL_ADD, .error = EIO}), "only epoll_ctl");
}

}  // namespace
}  // namespace penstock

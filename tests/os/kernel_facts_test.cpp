// What the library builds on: facts of the Linux kernel that have bitten others, one test each. Each
// has a number, by which comments and documents name it. A failure here means that this kernel is
// different, and that the code which relies on the fact has to be looked at again.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <vector>

#include "support/sockets.h"

namespace penstock {
namespace {

using test::Epoll;
using test::Listener;
using test::Received;
using test::SocketPair;

constexpr std::uint32_t kEdge = EPOLLET;

/// The socket's pending error, which asking clears.
int take_socket_error(Kernel& kernel, int fd) {
  int error = -1;
  socklen_t size = sizeof error;
  EXPECT_EQ(kernel.getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size), 0);
  return error;
}

/// Lets no more descriptors be opened for as long as it lives.
class DescriptorsExhausted {
 public:
  DescriptorsExhausted() {
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before_), 0);
    const int lowest_free = ::dup(STDOUT_FILENO);
    EXPECT_GE(lowest_free, 0);
    ::close(lowest_free);
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(lowest_free);
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  }
  DescriptorsExhausted(const DescriptorsExhausted&) = delete;
  DescriptorsExhausted& operator=(const DescriptorsExhausted&) = delete;
  ~DescriptorsExhausted() { EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before_), 0); }

 private:
  rlimit before_{};
};

class KernelFacts : public testing::Test {
 protected:
  /// A pair whose server has received `text` and then a reset from the client.
  SocketPair pair_reset_behind(std::string_view text) {
    SocketPair pair = test::tcp_pair(kernel_);
    EXPECT_EQ(test::send_text(kernel_, pair.client.get(), text), std::ssize(text));
    EXPECT_TRUE(test::all_acknowledged(kernel_, pair.client.get()));
    test::reset_on_close(kernel_, pair.client.get());
    pair.client.reset();
    EXPECT_NE(test::wait_for(kernel_, pair.server.get(), 0) & POLLERR, 0);
    return pair;
  }

  /// A pair whose server has received `text` and then the end.
  SocketPair pair_finished_behind(std::string_view text) {
    SocketPair pair = test::tcp_pair(kernel_);
    EXPECT_EQ(test::send_text(kernel_, pair.client.get(), text), std::ssize(text));
    EXPECT_EQ(kernel_.shutdown(pair.client.get(), SHUT_WR), 0);
    EXPECT_NE(test::wait_for(kernel_, pair.server.get(), POLLRDHUP) & POLLRDHUP, 0);
    return pair;
  }

  int accept_from(const Listener& listener) {
    return kernel_.accept4(listener.fd.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  }

  Kernel& kernel_ = linux_kernel();
};

TEST_F(KernelFacts, K01_close_with_unread_data_resets_and_drops_what_was_not_received) {
  SocketPair pair = test::tcp_pair(kernel_);
  ASSERT_EQ(test::send_text(kernel_, pair.client.get(), "unread"), 6);
  test::wait_for(kernel_, pair.server.get(), POLLIN);
  const std::size_t sent = test::send_until_full(kernel_, pair.server.get());

  pair.server.reset();

  const Received received = test::receive_to_end(kernel_, pair.client.get());
  EXPECT_EQ(received.result, -ECONNRESET);
  EXPECT_LT(received.text.size(), sent);
}

TEST_F(KernelFacts, K01_close_with_nothing_unread_delivers_everything_and_then_the_end) {
  SocketPair pair = test::tcp_pair(kernel_);
  const std::size_t sent = test::send_until_full(kernel_, pair.server.get());

  pair.server.reset();

  const Received received = test::receive_to_end(kernel_, pair.client.get());
  EXPECT_EQ(received.result, 0);
  EXPECT_EQ(received.text.size(), sent);
}

TEST_F(KernelFacts, K02_a_reset_leaves_what_was_received_before_it_readable) {
  SocketPair pair = pair_reset_behind(std::string(5000, 'x'));
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.server.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP), 0);

  EXPECT_EQ(epoll.wait(), std::uint32_t{EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP});
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).result, 5000);
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).result, -ECONNRESET);
}

TEST_F(KernelFacts, K03_asking_for_the_socket_error_turns_a_later_reset_into_an_end) {
  SocketPair pair = pair_reset_behind(std::string(5000, 'x'));

  EXPECT_EQ(take_socket_error(kernel_, pair.server.get()), ECONNRESET);
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).result, 5000);
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).result, 0);
}

TEST_F(KernelFacts, K04_a_failed_connect_says_why_only_once) {
  const UniqueFd bound_only = test::tcp_socket(kernel_);
  const SocketAddress any_port = SocketAddress::parse("127.0.0.1:0").value();
  ASSERT_EQ(kernel_.bind(bound_only.get(), any_port.data(), any_port.size()), 0);
  const UniqueFd client =
      test::start_connect(kernel_, test::local_address(kernel_, bound_only.get()));
  test::wait_for(kernel_, client.get(), POLLOUT);

  EXPECT_EQ(take_socket_error(kernel_, client.get()), ECONNREFUSED);
  EXPECT_EQ(take_socket_error(kernel_, client.get()), 0);
}

TEST_F(KernelFacts, K05_data_and_end_arrive_in_one_event) {
  SocketPair pair = pair_finished_behind("hello");
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.server.get(), EPOLLIN | EPOLLOUT | EPOLLRDHUP), 0);

  EXPECT_EQ(epoll.wait(), std::uint32_t{EPOLLIN | EPOLLOUT | EPOLLRDHUP});
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).text, "hello");
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).result, 0);
}

TEST_F(KernelFacts, K06_hang_up_is_reported_even_to_an_empty_interest) {
  SocketPair pair = test::tcp_pair(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.server.get(), 0), 0);
  ASSERT_EQ(kernel_.shutdown(pair.server.get(), SHUT_WR), 0);
  EXPECT_EQ(epoll.now(), 0u);

  ASSERT_EQ(kernel_.shutdown(pair.client.get(), SHUT_WR), 0);

  EXPECT_EQ(epoll.wait(), std::uint32_t{EPOLLHUP});
}

TEST_F(KernelFacts, K07_level_triggering_spins_on_a_reset_nobody_reads) {
  SocketPair pair = pair_reset_behind("unread");
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.server.get(), 0), 0);

  for (int turn = 0; turn < 100; ++turn)
    ASSERT_NE(epoll.now(), 0u) << "turn " << turn;
}

TEST_F(KernelFacts, K07_level_triggering_spins_on_an_end_nobody_reads) {
  SocketPair pair = pair_finished_behind("unread");
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.server.get(), EPOLLRDHUP), 0);

  for (int turn = 0; turn < 100; ++turn)
    ASSERT_NE(epoll.now(), 0u) << "turn " << turn;
}

TEST_F(KernelFacts, K08_a_level_triggered_listener_spins_when_descriptors_run_out) {
  const Listener listener = test::listen_tcp(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(listener.fd.get(), EPOLLIN), 0);
  const UniqueFd client = test::start_connect(kernel_, listener.address);
  ASSERT_EQ(epoll.wait(), std::uint32_t{EPOLLIN});

  const DescriptorsExhausted exhausted;

  for (int turn = 0; turn < 100; ++turn) {
    ASSERT_EQ(epoll.now(), std::uint32_t{EPOLLIN}) << "turn " << turn;
    ASSERT_EQ(accept_from(listener), -EMFILE) << "turn " << turn;
  }
}

TEST_F(KernelFacts, K09_an_edge_triggered_listener_strands_what_it_could_not_accept) {
  const Listener listener = test::listen_tcp(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(listener.fd.get(), EPOLLIN | kEdge), 0);
  const UniqueFd client = test::start_connect(kernel_, listener.address);
  ASSERT_EQ(epoll.wait(), std::uint32_t{EPOLLIN});
  {
    const DescriptorsExhausted exhausted;
    ASSERT_EQ(accept_from(listener), -EMFILE);
  }

  EXPECT_EQ(epoll.now(), 0u) << "no second event, though a connection is waiting";
  const UniqueFd stranded(kernel_, accept_from(listener));
  EXPECT_TRUE(stranded);
}

TEST_F(KernelFacts, K10_accept_hands_out_connections_that_are_reset_already) {
  const Listener listener = test::listen_tcp(kernel_);
  UniqueFd client = test::start_connect(kernel_, listener.address);
  test::wait_for(kernel_, client.get(), POLLOUT);
  const SocketAddress client_address = test::local_address(kernel_, client.get());
  test::reset_on_close(kernel_, client.get());
  client.reset();
  test::wait_for(kernel_, listener.fd.get(), POLLIN);

  sockaddr_storage storage{};
  auto* peer = reinterpret_cast<sockaddr*>(&storage);
  socklen_t size = sizeof storage;
  const UniqueFd server(kernel_, kernel_.accept4(listener.fd.get(), peer, &size, SOCK_NONBLOCK));
  ASSERT_TRUE(server);
  EXPECT_EQ(SocketAddress(peer, size), client_address) << "accept4 still knows the peer";
  EXPECT_NE(test::wait_for(kernel_, server.get(), 0) & POLLERR, 0);
  size = sizeof storage;
  EXPECT_EQ(kernel_.getpeername(server.get(), peer, &size), -ENOTCONN);
  EXPECT_EQ(test::receive(kernel_, server.get()).result, -ECONNRESET);
  EXPECT_EQ(test::receive(kernel_, server.get()).result, 0);
}

TEST_F(KernelFacts, K11_the_number_of_a_closed_socket_is_reused_within_a_batch_of_events) {
  SocketPair pair = test::unix_pair(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.client.get(), EPOLLOUT), 0);
  ASSERT_EQ(epoll.add(pair.server.get(), EPOLLOUT), 0);
  std::array<epoll_event, 2> batch{};
  ASSERT_EQ(kernel_.epoll_wait(epoll.fd(), batch.data(), 2, 0), 2);

  // The handler of one event closes the other socket and opens a new one.
  const int closed = pair.client.get();
  pair.client.reset();
  const UniqueFd opened = test::tcp_socket(kernel_);

  EXPECT_EQ(opened.get(), closed);
  EXPECT_TRUE(std::ranges::any_of(batch, [&](const epoll_event& stale) {
    return stale.data.fd == opened.get();
  })) << "the stale event names the new socket";
}

TEST_F(KernelFacts, K12_closing_a_duplicated_descriptor_leaves_its_registration_behind) {
  SocketPair pair = test::unix_pair(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.client.get(), EPOLLOUT), 0);
  const UniqueFd duplicate(kernel_, ::dup(pair.client.get()));

  const int closed = pair.client.get();
  pair.client.reset();

  EXPECT_EQ(epoll.now(), std::uint32_t{EPOLLOUT});
  EXPECT_EQ(epoll.remove(closed), -EBADF);
}

TEST_F(KernelFacts, K13_an_unconnected_socket_looks_writable_and_hung_up) {
  const UniqueFd fd = test::tcp_socket(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(fd.get(), EPOLLIN | EPOLLOUT), 0);

  EXPECT_EQ(epoll.now(), std::uint32_t{EPOLLOUT | EPOLLHUP});
}

TEST_F(KernelFacts, K14_edge_triggering_keeps_silent_after_a_partial_read_until_changed) {
  SocketPair pair = test::tcp_pair(kernel_);
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.server.get(), EPOLLIN | kEdge), 0);
  ASSERT_EQ(test::send_text(kernel_, pair.client.get(), "0123456789"), 10);
  ASSERT_EQ(epoll.wait(), std::uint32_t{EPOLLIN});
  ASSERT_EQ(test::receive(kernel_, pair.server.get(), 5).text, "01234");
  EXPECT_EQ(epoll.now(), 0u) << "five bytes are left, and no event tells";

  ASSERT_EQ(epoll.change(pair.server.get(), EPOLLIN | kEdge), 0);
  EXPECT_EQ(epoll.now(), std::uint32_t{EPOLLIN}) << "EPOLL_CTL_MOD re-arms the edge";

  EXPECT_EQ(epoll.now(), 0u);
  ASSERT_EQ(test::send_text(kernel_, pair.client.get(), "more"), 4);
  EXPECT_EQ(epoll.wait(), std::uint32_t{EPOLLIN}) << "new bytes are a new edge";
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).text, "56789more");
}

TEST_F(KernelFacts, K18_the_backlog_admits_one_more_than_asked_and_the_others_wait) {
  constexpr int kBacklog = 4;
  const Listener listener = test::listen_tcp(kernel_, kBacklog);
  std::vector<UniqueFd> clients;
  for (int i = 0; i < kBacklog + 1; ++i) {
    clients.push_back(test::start_connect(kernel_, listener.address));
    EXPECT_EQ(test::wait_for(kernel_, clients.back().get(), POLLOUT), POLLOUT) << "client " << i;
  }

  const UniqueFd one_too_many = test::start_connect(kernel_, listener.address);

  std::array<pollfd, 1> poll{pollfd{.fd = one_too_many.get(), .events = POLLOUT, .revents = 0}};
  const timespec now{};
  EXPECT_EQ(kernel_.poll(poll, &now), 0) << "still connecting";
}

TEST_F(KernelFacts, K18_a_client_can_send_into_a_connection_that_is_never_accepted) {
  Listener listener = test::listen_tcp(kernel_);
  const UniqueFd client = test::start_connect(kernel_, listener.address);
  test::wait_for(kernel_, client.get(), POLLOUT);
  EXPECT_EQ(test::send_text(kernel_, client.get(), std::string(1000, 'x')), 1000);
  EXPECT_TRUE(test::all_acknowledged(kernel_, client.get()));

  listener.fd.reset();

  test::wait_for(kernel_, client.get(), POLLIN);
  EXPECT_EQ(test::receive(kernel_, client.get()).result, -ECONNRESET);
}

TEST_F(KernelFacts, K21_shutting_down_reading_does_not_stop_data) {
  SocketPair pair = test::tcp_pair(kernel_);
  ASSERT_EQ(kernel_.shutdown(pair.server.get(), SHUT_RD), 0);
  ASSERT_EQ(test::send_text(kernel_, pair.client.get(), "hi"), 2);
  ASSERT_TRUE(test::all_acknowledged(kernel_, pair.client.get()));

  EXPECT_EQ(test::receive(kernel_, pair.server.get()).text, "hi");
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).result, 0);
}

TEST_F(KernelFacts, K22_sending_to_a_dead_peer_answers_and_raises_no_signal) {
  SocketPair pair = pair_reset_behind("x");
  ASSERT_EQ(take_socket_error(kernel_, pair.server.get()), ECONNRESET);

  EXPECT_EQ(test::send_text(kernel_, pair.server.get(), "bytes"), -EPIPE);
  EXPECT_EQ(kernel_.send(pair.server.get(), "bytes", 5, 0), -EPIPE);
}

TEST_F(KernelFacts, K23_the_first_send_after_the_peer_closed_succeeds) {
  SocketPair pair = test::tcp_pair(kernel_);
  pair.client.reset();
  ASSERT_NE(test::wait_for(kernel_, pair.server.get(), POLLRDHUP) & POLLRDHUP, 0);

  EXPECT_EQ(test::send_text(kernel_, pair.server.get(), "first"), 5);
  EXPECT_NE(test::wait_for(kernel_, pair.server.get(), 0) & POLLERR, 0);
  EXPECT_EQ(test::send_text(kernel_, pair.server.get(), "second"), -EPIPE);
  EXPECT_EQ(test::send_text(kernel_, pair.server.get(), "third"), -EPIPE);
}

TEST_F(KernelFacts, K30_an_edge_that_told_of_data_and_end_does_not_tell_of_the_end_again) {
  SocketPair pair = pair_finished_behind("hello");
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.server.get(), EPOLLIN | EPOLLRDHUP | kEdge), 0);
  ASSERT_EQ(epoll.wait(), std::uint32_t{EPOLLIN | EPOLLRDHUP});
  ASSERT_EQ(test::receive(kernel_, pair.server.get()).text, "hello") << "a short read";

  EXPECT_EQ(epoll.now(), 0u) << "who stops at the short read never learns of the end";
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).result, 0);
}

TEST_F(KernelFacts, K30_bytes_behind_an_urgent_byte_are_stranded_without_an_event) {
  SocketPair pair = test::tcp_pair(kernel_);
  ASSERT_EQ(test::send_text(kernel_, pair.client.get(), "ab"), 2);
  ASSERT_EQ(kernel_.send(pair.client.get(), "!", 1, MSG_OOB), 1);
  ASSERT_EQ(test::send_text(kernel_, pair.client.get(), "cd"), 2);
  ASSERT_TRUE(test::all_acknowledged(kernel_, pair.client.get()));
  Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.server.get(), EPOLLIN | EPOLLPRI | kEdge), 0);
  EXPECT_EQ(epoll.wait(), std::uint32_t{EPOLLIN | EPOLLPRI}) << "PRI is the only warning";
  ASSERT_EQ(test::receive(kernel_, pair.server.get()).text, "ab") << "reading stops at the mark";

  EXPECT_EQ(epoll.now(), 0u);
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).text, "cd");
}

}  // namespace
}  // namespace penstock

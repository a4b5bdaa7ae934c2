// Listeners at the seam: accept, pause, resume, close, over every back-end.
#include <gtest/gtest.h>

#include <cerrno>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "io/io_world.h"

namespace penstock::test {
namespace {

struct NotingAcceptor final : AcceptHandler {
  void on_accepted(UniqueFd fd, const SocketAddress& peer) override {
    accepted.push_back(std::move(fd));
    peers.push_back(peer);
    if (on_accept) on_accept();
  }
  void on_accept_failed(int error) override {
    errors.push_back(error);
    if (on_error) on_error();
  }

  std::vector<UniqueFd> accepted;
  std::vector<SocketAddress> peers;
  std::vector<int> errors;
  std::function<void()> on_accept;
  std::function<void()> on_error;
};

class ListenerSeamTest : public IoTest {
 protected:
  void listen() {
    test::Listener made = listen_tcp(kernel, 1024);
    address = made.address;
    id = backend->listen(std::move(made.fd), acceptor).value();
  }
  /// Clients whose handshake is complete.
  void add_clients(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      clients.push_back(start_connect(kernel, address));
      wait_for(kernel, clients.back().get(), POLLOUT);
    }
  }

  NotingAcceptor acceptor;
  SocketAddress address;
  ListenerId id;
  std::vector<UniqueFd> clients;
};

PENSTOCK_ON_EVERY_READINESS_BACKEND(ListenerSeamTest);

TEST_P(ListenerSeamTest, connections_are_accepted_with_the_address_of_their_peer) {
  listen();
  add_clients(2);
  ASSERT_TRUE(poll_until([&] { return acceptor.accepted.size() == 2; }));
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(acceptor.peers[i], local_address(kernel, clients[i].get()));
  }
  ASSERT_EQ(send_text(kernel, acceptor.accepted[0].get(), "hi"), 2);
  wait_for(kernel, clients[0].get(), POLLIN);
  EXPECT_EQ(receive(kernel, clients[0].get()).text, "hi");
  EXPECT_EQ(receive(kernel, acceptor.accepted[0].get()).result, -EAGAIN) << "non-blocking";
}

TEST_P(ListenerSeamTest, one_poll_accepts_at_most_sixteen_and_all_get_their_turn) {
  listen();
  add_clients(50);
  std::size_t seen = 0;
  int polls = 0;
  ASSERT_TRUE(poll_until([&] {
    EXPECT_LE(acceptor.accepted.size() - seen, 16U);
    seen = acceptor.accepted.size();
    ++polls;
    return seen == 50;
  }));
  EXPECT_GE(polls, 4);
}

TEST_P(ListenerSeamTest,
       a_paused_listener_accepts_nothing_costs_no_wake_ups_and_resumes_with_who_waits) {
  listen();
  backend->pause_accepting(id);
  backend->pause_accepting(id);
  add_clients(3);
  poll(3);
  const std::uint64_t wakeups = kernel.wakeups();
  poll(5);
  EXPECT_EQ(kernel.wakeups(), wakeups);
  EXPECT_TRUE(acceptor.accepted.empty());
  backend->resume_accepting(id);
  backend->resume_accepting(id);
  ASSERT_TRUE(poll_until([&] { return acceptor.accepted.size() == 3; }));
}

TEST_P(ListenerSeamTest, pausing_inside_on_accepted_leaves_the_others_in_the_backlog) {
  listen();
  add_clients(5);
  acceptor.on_accept = [&] { backend->pause_accepting(id); };
  ASSERT_TRUE(poll_until([&] { return acceptor.accepted.size() == 1; }));
  poll(3);
  EXPECT_EQ(acceptor.accepted.size(), 1U);
  acceptor.on_accept = nullptr;
  backend->resume_accepting(id);
  ASSERT_TRUE(poll_until([&] { return acceptor.accepted.size() == 5; }));
}

// RE7, ACC8
TEST_P(ListenerSeamTest, closing_inside_on_accepted_ends_the_batch_and_the_port_refuses) {
  const std::size_t open = linux_kernel().open_descriptors();
  listen();
  add_clients(5);
  acceptor.on_accept = [&] {
    backend->close_listener(id);
    backend->close_listener(id);
  };
  ASSERT_TRUE(poll_until([&] { return acceptor.accepted.size() == 1; }));
  poll(3);
  EXPECT_EQ(acceptor.accepted.size(), 1U);
  const UniqueFd late = start_connect(kernel, address);
  EXPECT_NE(wait_for(kernel, late.get(), POLLOUT) & POLLERR, 0) << "the port still accepts";
  // 5 clients, 1 accepted, 1 late: the listener is gone.
  EXPECT_EQ(linux_kernel().open_descriptors(), open + 7);
}

TEST_P(ListenerSeamTest, closing_between_polls_is_at_once_and_its_event_is_nobodys) {
  listen();
  add_clients(1);
  backend->close_listener(id);
  poll(3);
  EXPECT_TRUE(acceptor.accepted.empty());
  EXPECT_EQ(receive_to_end(kernel, clients[0].get()).result, -ECONNRESET);  // K18
  backend->pause_accepting(id);
  backend->resume_accepting(id);
}

// ACC4: errors of a single connection are not reported, and the next one is served.
TEST_P(ListenerSeamTest, errors_of_one_connection_do_not_reach_the_handler) {
  listen();
  for (const int error : {ECONNABORTED, EPROTO, EPERM, ENETDOWN, EHOSTUNREACH}) {
    const std::size_t before = acceptor.accepted.size();
    const auto rule = kernel.inject({.call = Call::accept4, .error = error});
    add_clients(1);
    ASSERT_TRUE(poll_until([&] { return acceptor.accepted.size() == before + 1; }));
    EXPECT_EQ(kernel.fired(rule), 1U);
  }
  EXPECT_TRUE(acceptor.errors.empty());
}

// ACC2, K9: an edge that met EMFILE is not announced again by the kernel.
TEST_P(ListenerSeamTest, a_shortage_is_reported_and_nobody_is_stranded_after_the_pause) {
  listen();
  for (const int error : {EMFILE, ENFILE, ENOBUFS, ENOMEM}) {
    const std::size_t before = acceptor.accepted.size();
    const std::size_t errors = acceptor.errors.size();
    acceptor.on_error = [&] { backend->pause_accepting(id); };
    const auto rule = kernel.inject({.call = Call::accept4, .error = error});
    add_clients(2);
    ASSERT_TRUE(poll_until([&] { return acceptor.errors.size() == errors + 1; }));
    EXPECT_EQ(acceptor.errors.back(), error);
    EXPECT_EQ(kernel.fired(rule), 1U);
    poll(3);
    EXPECT_EQ(acceptor.errors.size(), errors + 1) << "asked again while paused";
    backend->resume_accepting(id);
    ASSERT_TRUE(poll_until([&] { return acceptor.accepted.size() == before + 2; }));
  }
}

TEST_P(ListenerSeamTest, a_shortage_without_a_pause_strands_nobody_either) {
  listen();
  const auto rule = kernel.inject({.call = Call::accept4, .error = EMFILE});
  add_clients(2);
  ASSERT_TRUE(poll_until([&] { return acceptor.accepted.size() == 2; }));
  EXPECT_EQ(kernel.fired(rule), 1U);
  EXPECT_EQ(acceptor.errors, std::vector<int>{EMFILE});
}

// ACC5, K10
TEST_P(ListenerSeamTest, a_client_that_resets_before_it_is_accepted_harms_nobody) {
  listen();
  add_clients(2);
  reset_on_close(kernel, clients[0].get());
  const SocketAddress vanished = local_address(kernel, clients[0].get());
  clients[0].reset();
  ASSERT_TRUE(poll_until([&] { return acceptor.accepted.size() == 2; }));
  EXPECT_EQ(acceptor.peers[0], vanished);
  EXPECT_TRUE(acceptor.errors.empty());
}

TEST_P(ListenerSeamTest, a_listener_the_kernel_refuses_to_register_is_closed) {
  PENSTOCK_ONLY_IF(registers_with_the_kernel(GetParam()), "poll registers nothing with the kernel");
  const std::size_t open = linux_kernel().open_descriptors();
  const auto rule = kernel.inject({.call = Call::epoll_ctl, .error = ENOMEM});
  test::Listener made = listen_tcp(kernel);
  const Result<ListenerId> listening = backend->listen(std::move(made.fd), acceptor);
  EXPECT_EQ(kernel.fired(rule), 1U);
  ASSERT_FALSE(listening.has_value());
  EXPECT_EQ(listening.error(), system_error(ENOMEM));
  EXPECT_EQ(linux_kernel().open_descriptors(), open);
}

}  // namespace
}  // namespace penstock::test

// The facade of the kernel seam: which interruptions it hides, and the flag it adds.
#include "penstock/os/kernel.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <array>
#include <string_view>

#include "penstock/os/forwarding_kernel.h"
#include "support/sockets.h"

namespace penstock {
namespace {

/// Answers EINTR to the next `interruptions` calls that can be interrupted, and counts these calls.
class InterruptedKernel final : public ForwardingKernel {
 public:
  using ForwardingKernel::ForwardingKernel;

  int interruptions = 0;
  int calls = 0;
  int flags = 0;  ///< Those of the last send or sendmsg.

 private:
  template <class Forward>
  auto interrupted(Forward forward) -> decltype(forward()) {
    ++calls;
    if (interruptions == 0) return forward();
    --interruptions;
    return -EINTR;
  }

  int raw_accept4(int fd, sockaddr* peer, socklen_t* size, int accept_flags) override {
    return interrupted([&] { return ForwardingKernel::raw_accept4(fd, peer, size, accept_flags); });
  }
  int raw_connect(int fd, const sockaddr* address, socklen_t size) override {
    return interrupted([&] { return ForwardingKernel::raw_connect(fd, address, size); });
  }
  ssize_t raw_recv(int fd, void* buffer, std::size_t size, int recv_flags) override {
    return interrupted([&] { return ForwardingKernel::raw_recv(fd, buffer, size, recv_flags); });
  }
  ssize_t raw_send(int fd, const void* bytes, std::size_t size, int send_flags) override {
    flags = send_flags;
    return interrupted([&] { return ForwardingKernel::raw_send(fd, bytes, size, send_flags); });
  }
  ssize_t raw_sendmsg(int fd, const msghdr* message, int send_flags) override {
    flags = send_flags;
    return interrupted([&] { return ForwardingKernel::raw_sendmsg(fd, message, send_flags); });
  }
  ssize_t raw_sendfile(int to, int from, off_t* offset, std::size_t size) override {
    return interrupted([&] { return ForwardingKernel::raw_sendfile(to, from, offset, size); });
  }
  ssize_t raw_splice(int from, int to, std::size_t size, unsigned splice_flags) override {
    return interrupted([&] { return ForwardingKernel::raw_splice(from, to, size, splice_flags); });
  }
  int raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) override {
    return interrupted(
        [&] { return ForwardingKernel::raw_epoll_wait(epoll_fd, events, capacity, timeout); });
  }
  int raw_poll(std::span<pollfd> descriptors, const timespec* timeout) override {
    return interrupted([&] { return ForwardingKernel::raw_poll(descriptors, timeout); });
  }
  ssize_t raw_read(int fd, void* buffer, std::size_t size) override {
    return interrupted([&] { return ForwardingKernel::raw_read(fd, buffer, size); });
  }
  ssize_t raw_write(int fd, const void* bytes, std::size_t size) override {
    return interrupted([&] { return ForwardingKernel::raw_write(fd, bytes, size); });
  }
  int raw_open(const char* path, int open_flags) override {
    return interrupted([&] { return ForwardingKernel::raw_open(path, open_flags); });
  }
  int raw_close(int fd) override {
    return interrupted([&] { return ForwardingKernel::raw_close(fd); });
  }
  int raw_entropy(std::span<std::byte> bytes) override {
    return interrupted([&] { return ForwardingKernel::raw_entropy(bytes); });
  }
};

class KernelTest : public testing::Test {
 protected:
  /// From now on: this many interruptions, and calls counted from zero.
  void interrupt(int times) {
    kernel_.interruptions = times;
    kernel_.calls = 0;
  }

  InterruptedKernel kernel_{linux_kernel()};
};

TEST_F(KernelTest, calls_that_move_bytes_are_retried_until_they_are_not_interrupted) {
  const test::SocketPair pair = test::unix_pair(linux_kernel());
  std::array<char, 8> bytes{};

  interrupt(3);
  EXPECT_EQ(kernel_.send(pair.client.get(), "ab", 2, 0), 2);
  EXPECT_EQ(kernel_.calls, 4);

  interrupt(3);
  EXPECT_EQ(test::send_text(kernel_, pair.client.get(), "cd"), 2);
  EXPECT_EQ(kernel_.calls, 4);

  interrupt(3);
  EXPECT_EQ(kernel_.write(pair.client.get(), "ef", 2), 2);
  EXPECT_EQ(kernel_.calls, 4);

  interrupt(3);
  EXPECT_EQ(kernel_.recv(pair.server.get(), bytes.data(), 3, 0), 3);
  EXPECT_EQ(kernel_.calls, 4);

  interrupt(3);
  EXPECT_EQ(kernel_.read(pair.server.get(), bytes.data(), bytes.size()), 3);
  EXPECT_EQ(kernel_.calls, 4);
  EXPECT_EQ(std::string_view(bytes.data(), 3), "def");
}

TEST_F(KernelTest, the_other_interruptible_calls_are_retried_too) {
  interrupt(2);
  std::array<std::byte, 16> random{};
  EXPECT_EQ(kernel_.entropy(random), 0);
  EXPECT_EQ(kernel_.calls, 3);

  interrupt(2);
  const UniqueFd file(linux_kernel(), kernel_.open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(file);
  EXPECT_EQ(kernel_.calls, 3);

  interrupt(2);
  EXPECT_LT(kernel_.sendfile(-1, -1, nullptr, 1), 0);
  EXPECT_EQ(kernel_.calls, 3);

  interrupt(2);
  EXPECT_LT(kernel_.splice(-1, -1, 1, 0), 0);
  EXPECT_EQ(kernel_.calls, 3);

  const test::Listener listener = test::listen_tcp(linux_kernel());
  interrupt(2);
  EXPECT_EQ(kernel_.accept4(listener.fd.get(), nullptr, nullptr, 0), -EAGAIN);
  EXPECT_EQ(kernel_.calls, 3);
}

TEST_F(KernelTest, an_interrupted_connect_goes_on_and_is_not_repeated) {
  const test::Listener listener = test::listen_tcp(linux_kernel());
  const UniqueFd fd = test::tcp_socket(linux_kernel());

  interrupt(1);
  EXPECT_EQ(kernel_.connect(fd.get(), listener.address.data(), listener.address.size()),
            -EINPROGRESS);
  EXPECT_EQ(kernel_.calls, 1);
}

TEST_F(KernelTest, an_interrupted_close_has_closed_and_is_not_repeated) {
  interrupt(1);
  EXPECT_EQ(kernel_.close(-1), 0);
  EXPECT_EQ(kernel_.calls, 1);
}

TEST_F(KernelTest, an_interrupted_wait_answers_no_events) {
  const test::Epoll epoll(linux_kernel());
  epoll_event event{};

  interrupt(1);
  EXPECT_EQ(kernel_.epoll_wait(epoll.fd(), &event, 1, -1), 0);
  EXPECT_EQ(kernel_.calls, 1);

  interrupt(1);
  EXPECT_EQ(kernel_.poll({}, nullptr), 0);
  EXPECT_EQ(kernel_.calls, 1);
}

TEST_F(KernelTest, sends_always_ask_for_no_signal) {
  const test::SocketPair pair = test::unix_pair(linux_kernel());

  EXPECT_EQ(kernel_.send(pair.client.get(), "a", 1, MSG_DONTWAIT), 1);
  EXPECT_EQ(kernel_.flags, MSG_NOSIGNAL | MSG_DONTWAIT);
  EXPECT_EQ(test::send_text(kernel_, pair.client.get(), "b"), 1);
  EXPECT_EQ(kernel_.flags, MSG_NOSIGNAL);
}

TEST_F(KernelTest, a_forwarding_kernel_answers_as_the_kernel_behind_it) {
  class Forwarder final : public ForwardingKernel {
   public:
    Forwarder() : ForwardingKernel(linux_kernel()) {}
  } kernel;

  test::SocketPair pair = test::tcp_pair(kernel);
  EXPECT_EQ(test::send_text(kernel, pair.client.get(), "through"), 7);
  test::wait_for(kernel, pair.server.get(), POLLIN);
  EXPECT_EQ(test::receive(kernel, pair.server.get()).text, "through");
  EXPECT_EQ(kernel.shutdown(-1, SHUT_WR), -EBADF);
  EXPECT_EQ(kernel.unlink("/no/such/file"), -ENOENT);
  EXPECT_EQ(kernel.descriptor_limit(), linux_kernel().descriptor_limit());
  EXPECT_EQ(kernel.memory_limit(), linux_kernel().memory_limit());
  EXPECT_EQ(kernel.open_descriptors(), linux_kernel().open_descriptors());
  EXPECT_GE(kernel.now(), TimePoint{});
}

}  // namespace
}  // namespace penstock

// TracingKernel before the real kernel: it tells what is asked for the traced descriptor, and changes nothing.
#include "app/trace_kernel.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <string>
#include <vector>

#include "penstock/os/unique_fd.h"

namespace penstock::app {
namespace {

struct Recorder final : WritePathObserver {
  void on_written(std::size_t requested, ssize_t result) noexcept override {
    told.push_back("write " + std::to_string(requested) + " " + std::to_string(result));
  }
  void on_armed() noexcept override { told.emplace_back("arm"); }
  void on_disarmed() noexcept override { told.emplace_back("disarm"); }
  void on_writable() noexcept override { told.emplace_back("writable"); }
  void on_finished() noexcept override { told.emplace_back("fin"); }

  std::vector<std::string> told;
};

using Told = std::vector<std::string>;

class TracingKernelTest : public testing::Test {
 protected:
  TracingKernelTest() {
    int ends[2] = {-1, -1};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    traced_ = UniqueFd(kernel_, ends[0]);
    other_ = UniqueFd(kernel_, ends[1]);
    epoll_ = UniqueFd(kernel_, kernel_.epoll_create(EPOLL_CLOEXEC));
    kernel_.trace(traced_.get());
  }

  int control(int operation, const UniqueFd& fd, std::uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = 1000 + static_cast<std::uint64_t>(fd.get());
    return kernel_.epoll_ctl(epoll_.get(), operation, fd.get(), &event);
  }
  int wait() { return kernel_.epoll_wait(epoll_.get(), events_.data(), 8, 0); }

  Recorder recorder_;
  TracingKernel kernel_{linux_kernel(), recorder_};
  UniqueFd traced_;
  UniqueFd other_;
  UniqueFd epoll_;
  std::array<epoll_event, 8> events_{};
};

TEST_F(TracingKernelTest, tells_what_was_requested_and_what_the_kernel_answered) {
  EXPECT_EQ(kernel_.send(traced_.get(), "hello", 5, 0), 5);
  std::string bytes = "ab";
  std::array<iovec, 2> pieces{iovec{bytes.data(), 2}, iovec{bytes.data(), 1}};
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  EXPECT_EQ(kernel_.sendmsg(traced_.get(), &message, 0), 3);
  EXPECT_EQ(recorder_.told, (Told{"write 5 5", "write 3 3"}));
}

TEST_F(TracingKernelTest, tells_a_refused_write_by_its_error) {
  other_.reset();
  EXPECT_EQ(kernel_.send(traced_.get(), "hello", 5, 0), -EPIPE);
  EXPECT_EQ(recorder_.told, (Told{"write 5 " + std::to_string(-EPIPE)}));
}

TEST_F(TracingKernelTest, tells_arming_and_disarming_once_each_by_level_and_by_edge) {
  for (const std::uint32_t trigger : {std::uint32_t{0}, std::uint32_t{EPOLLET}}) {
    recorder_.told.clear();
    ASSERT_EQ(control(EPOLL_CTL_ADD, traced_, EPOLLIN | trigger), 0);
    EXPECT_EQ(wait(), 0);
    EXPECT_EQ(recorder_.told, Told{});
    ASSERT_EQ(control(EPOLL_CTL_MOD, traced_, EPOLLIN | EPOLLOUT | trigger), 0);
    ASSERT_EQ(control(EPOLL_CTL_MOD, traced_, EPOLLOUT | trigger), 0);
    EXPECT_EQ(wait(), 1);
    ASSERT_EQ(control(EPOLL_CTL_MOD, traced_, EPOLLIN | trigger), 0);
    EXPECT_EQ(recorder_.told, (Told{"arm", "writable", "disarm"}));
    ASSERT_EQ(control(EPOLL_CTL_DEL, traced_, 0), 0);
  }
}

TEST_F(TracingKernelTest, counts_a_removal_from_the_poller_as_disarming) {
  ASSERT_EQ(control(EPOLL_CTL_ADD, traced_, EPOLLOUT), 0);
  ASSERT_EQ(control(EPOLL_CTL_DEL, traced_, 0), 0);
  EXPECT_EQ(recorder_.told, (Told{"arm", "disarm"}));
}

TEST_F(TracingKernelTest, does_not_tell_a_change_the_kernel_refused) {
  EXPECT_EQ(control(EPOLL_CTL_MOD, traced_, EPOLLOUT), -ENOENT);
  EXPECT_EQ(recorder_.told, Told{});
}

TEST_F(TracingKernelTest, is_silent_about_other_descriptors) {
  EXPECT_EQ(kernel_.send(other_.get(), "hello", 5, 0), 5);
  ASSERT_EQ(control(EPOLL_CTL_ADD, other_, EPOLLOUT), 0);
  EXPECT_EQ(wait(), 1);
  EXPECT_EQ(kernel_.shutdown(other_.get(), SHUT_WR), 0);
  EXPECT_EQ(recorder_.told, Told{});
}

TEST_F(TracingKernelTest, tells_the_fin_and_stops_when_the_descriptor_is_closed) {
  const int number = traced_.get();
  EXPECT_EQ(kernel_.shutdown(number, SHUT_RD), 0);
  EXPECT_EQ(kernel_.shutdown(number, SHUT_WR), 0);
  traced_.reset();
  EXPECT_EQ(kernel_.send(number, "hello", 5, 0), -EBADF);
  EXPECT_EQ(recorder_.told, (Told{"fin"}));
}

// With poll(2) the interest is what each wait carries.
class TracingPollTest : public TracingKernelTest {
 protected:
  /// A wait that does not wait, for the traced descriptor with these events beside the other one.
  int poll(short events) {
    std::array<pollfd, 2> both{pollfd{.fd = other_.get(), .events = POLLIN | POLLOUT, .revents = 0},
                               pollfd{.fd = traced_.get(), .events = events, .revents = 0}};
    const timespec at_once{};
    return kernel_.poll(both, &at_once);
  }
};

TEST_F(TracingPollTest, tells_arming_writability_and_disarming_by_what_each_poll_carries) {
  EXPECT_EQ(poll(POLLIN), 1);
  EXPECT_EQ(recorder_.told, Told{});
  EXPECT_EQ(poll(POLLIN | POLLOUT), 2);
  EXPECT_EQ(recorder_.told, (Told{"arm", "writable"}));
  EXPECT_EQ(poll(POLLOUT), 2);
  EXPECT_EQ(recorder_.told, (Told{"arm", "writable", "writable"}));
  EXPECT_EQ(poll(POLLIN), 1);
  EXPECT_EQ(recorder_.told, (Told{"arm", "writable", "writable", "disarm"}));
  EXPECT_EQ(poll(POLLIN), 1);
  EXPECT_EQ(recorder_.told.size(), 4u);
}

TEST_F(TracingPollTest, tells_no_writability_while_there_is_none) {
  const std::string block(65536, 'x');
  while (kernel_.send(traced_.get(), block.data(), block.size(), 0) > 0) {
  }
  recorder_.told.clear();
  EXPECT_EQ(poll(POLLOUT), 1) << "the other one is readable";
  EXPECT_EQ(recorder_.told, (Told{"arm"}));
  std::string received(1 << 20, ' ');
  while (linux_kernel().recv(other_.get(), received.data(), received.size(), 0) > 0) {
  }
  EXPECT_GE(poll(POLLOUT), 1);
  EXPECT_EQ(recorder_.told, (Told{"arm", "writable"}));
}

TEST_F(TracingPollTest, is_silent_about_polls_of_others) {
  std::array<pollfd, 1> alone{pollfd{.fd = other_.get(), .events = POLLOUT, .revents = 0}};
  const timespec at_once{};
  EXPECT_EQ(kernel_.poll(alone, &at_once), 1);
  EXPECT_EQ(kernel_.poll({}, &at_once), 0);
  EXPECT_EQ(recorder_.told, Told{});
}

TEST_F(TracingPollTest, tells_nothing_of_a_descriptor_that_is_closed) {
  EXPECT_EQ(poll(POLLOUT), 2);
  recorder_.told.clear();
  const int number = traced_.get();
  traced_.reset();
  std::array<pollfd, 1> gone{pollfd{.fd = number, .events = POLLOUT, .revents = 0}};
  const timespec at_once{};
  EXPECT_EQ(kernel_.poll(gone, &at_once), 1);
  EXPECT_EQ(gone[0].revents, POLLNVAL);
  EXPECT_EQ(recorder_.told, Told{});
}

// poll(2) ignores negative descriptors; -1 is also what an idle trace has.
TEST_F(TracingPollTest, ignores_negative_descriptors_while_nothing_is_traced) {
  kernel_.trace(-1);
  std::array<pollfd, 1> ignored{pollfd{.fd = -1, .events = POLLOUT, .revents = 0}};
  const timespec at_once{};
  EXPECT_EQ(kernel_.poll(ignored, &at_once), 0);
  EXPECT_EQ(recorder_.told, Told{});
}

}  // namespace
}  // namespace penstock::app

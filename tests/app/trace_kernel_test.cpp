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

}  // namespace
}  // namespace penstock::app

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "support/sockets.h"

namespace penstock {
namespace {

class LinuxKernelTest : public testing::Test {
 protected:
  Kernel& kernel_ = linux_kernel();
};

TEST_F(LinuxKernelTest, answers_failures_as_negative_errno) {
  std::array<char, 8> bytes{};
  msghdr message{};
  sockaddr_storage storage{};
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  socklen_t size = sizeof storage;
  epoll_event event{};

  EXPECT_EQ(kernel_.socket(-1, SOCK_STREAM, 0), -EAFNOSUPPORT);
  EXPECT_EQ(kernel_.bind(-1, address, size), -EBADF);
  EXPECT_EQ(kernel_.listen(-1, 1), -EBADF);
  EXPECT_EQ(kernel_.accept4(-1, nullptr, nullptr, 0), -EBADF);
  EXPECT_EQ(kernel_.connect(-1, address, size), -EBADF);
  EXPECT_EQ(kernel_.getsockopt(-1, SOL_SOCKET, SO_ERROR, bytes.data(), &size), -EBADF);
  EXPECT_EQ(kernel_.setsockopt(-1, SOL_SOCKET, SO_REUSEADDR, bytes.data(), 4), -EBADF);
  EXPECT_EQ(kernel_.getsockname(-1, address, &size), -EBADF);
  EXPECT_EQ(kernel_.getpeername(-1, address, &size), -EBADF);
  EXPECT_EQ(kernel_.shutdown(-1, SHUT_WR), -EBADF);
  EXPECT_EQ(kernel_.recv(-1, bytes.data(), bytes.size(), 0), -EBADF);
  EXPECT_EQ(kernel_.send(-1, bytes.data(), bytes.size(), 0), -EBADF);
  EXPECT_EQ(kernel_.sendmsg(-1, &message, 0), -EBADF);
  EXPECT_EQ(kernel_.sendfile(-1, -1, nullptr, 1), -EBADF);
  EXPECT_EQ(kernel_.splice(-1, -1, 1, 0), -EBADF);
  EXPECT_EQ(kernel_.unacknowledged_bytes(-1), -EBADF);
  EXPECT_EQ(kernel_.epoll_create(-1), -EINVAL);
  EXPECT_EQ(kernel_.epoll_ctl(-1, EPOLL_CTL_ADD, -1, &event), -EBADF);
  EXPECT_EQ(kernel_.epoll_wait(-1, &event, 1, 0), -EBADF);
  EXPECT_EQ(kernel_.eventfd(0, -1), -EINVAL);
  sigset_t none;
  sigemptyset(&none);
  EXPECT_EQ(kernel_.signalfd(-1, &none, -1), -EINVAL);
  EXPECT_EQ(kernel_.signal_mask(-1, &none, nullptr), -EINVAL);
  EXPECT_EQ(kernel_.read(-1, bytes.data(), bytes.size()), -EBADF);
  EXPECT_EQ(kernel_.write(-1, bytes.data(), bytes.size()), -EBADF);
  EXPECT_EQ(kernel_.open("/no/such/file", O_RDONLY), -ENOENT);
  EXPECT_EQ(kernel_.close(-1), -EBADF);
  EXPECT_EQ(kernel_.unlink("/no/such/file"), -ENOENT);
  FileStatus status;
  EXPECT_EQ(kernel_.file_status(-1, "", status), -EBADF);
  EXPECT_EQ(kernel_.make_nonblocking(-1), -EBADF);
}

TEST_F(LinuxKernelTest, tells_what_a_descriptor_is) {
  FileStatus status;
  const test::SocketPair pair = test::unix_pair(kernel_);
  ASSERT_EQ(kernel_.file_status(pair.client.get(), "", status), 0);
  EXPECT_TRUE(S_ISSOCK(status.mode));
  const UniqueFd folder(kernel_, kernel_.open("/", O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(kernel_.file_status(folder.get(), "", status), 0);
  EXPECT_TRUE(S_ISDIR(status.mode));
  const UniqueFd null(kernel_, kernel_.open("/dev/null", O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(kernel_.file_status(null.get(), "", status), 0);
  EXPECT_TRUE(S_ISCHR(status.mode));
  EXPECT_EQ(kernel_.file_status(-1, "", status), -EBADF);
  EXPECT_EQ(kernel_.file_status(1'000'000, "", status), -EBADF);
}

TEST_F(LinuxKernelTest, tells_what_is_at_a_path_and_not_what_it_points_to) {
  std::string folder = "/tmp/penstock-status-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const std::string file = folder + "/file";
  const std::string hard = folder + "/hard";
  const std::string symbolic = folder + "/symbolic";
  const std::string dangling = folder + "/dangling";
  UniqueFd(kernel_, kernel_.open(file.c_str(), O_CREAT | O_RDWR | O_CLOEXEC)).reset();
  ASSERT_EQ(::link(file.c_str(), hard.c_str()), 0);
  ASSERT_EQ(::symlink(file.c_str(), symbolic.c_str()), 0);
  ASSERT_EQ(::symlink("/no/such/file", dangling.c_str()), 0);

  FileStatus of_file;
  FileStatus of_hard;
  FileStatus of_symbolic;
  FileStatus other;
  EXPECT_EQ(kernel_.file_status(AT_FDCWD, file.c_str(), of_file), 0);
  EXPECT_TRUE(S_ISREG(of_file.mode));
  EXPECT_EQ(kernel_.file_status(AT_FDCWD, hard.c_str(), of_hard), 0);
  EXPECT_TRUE(of_file.is_same(of_hard));
  EXPECT_EQ(kernel_.file_status(AT_FDCWD, symbolic.c_str(), of_symbolic), 0);
  EXPECT_TRUE(S_ISLNK(of_symbolic.mode));
  EXPECT_FALSE(of_file.is_same(of_symbolic));
  EXPECT_EQ(kernel_.file_status(AT_FDCWD, dangling.c_str(), other), 0);
  EXPECT_TRUE(S_ISLNK(other.mode));
  EXPECT_EQ(kernel_.file_status(AT_FDCWD, "/no/such/file", other), -ENOENT);
  EXPECT_EQ(kernel_.file_status(AT_FDCWD, (file + "/x").c_str(), other), -ENOTDIR);

  for (const std::string& path : {file, hard, symbolic, dangling})
    EXPECT_EQ(kernel_.unlink(path.c_str()), 0);
  EXPECT_EQ(::rmdir(folder.c_str()), 0);
}

TEST_F(LinuxKernelTest, a_status_that_cannot_be_had_is_left_as_it_was) {
  FileStatus status{.mode = 1, .device = 2, .inode = 3};
  EXPECT_EQ(kernel_.file_status(AT_FDCWD, "/no/such/file", status), -ENOENT);
  EXPECT_TRUE(status.is_same({.mode = 1, .device = 2, .inode = 3}));
  EXPECT_EQ(status.mode, 1u);
}

TEST_F(LinuxKernelTest,
       makes_a_descriptor_nonblocking_and_close_on_exec_and_keeps_its_other_flags) {
  std::array<int, 2> pipe{-1, -1};
  ASSERT_EQ(::pipe(pipe.data()), 0);
  const UniqueFd reading(kernel_, pipe[0]);
  const UniqueFd writing(kernel_, pipe[1]);
  ASSERT_EQ(::fcntl(writing.get(), F_SETFL, O_APPEND), 0);
  const int before = ::fcntl(writing.get(), F_GETFL);
  ASSERT_EQ(before & O_NONBLOCK, 0);
  ASSERT_EQ(::fcntl(writing.get(), F_GETFD), 0);

  EXPECT_EQ(kernel_.make_nonblocking(writing.get()), 0);
  EXPECT_EQ(::fcntl(writing.get(), F_GETFL), before | O_NONBLOCK);
  EXPECT_EQ(::fcntl(writing.get(), F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(kernel_.make_nonblocking(writing.get()), 0);
  EXPECT_EQ(::fcntl(writing.get(), F_GETFL), before | O_NONBLOCK);

  EXPECT_EQ(::fcntl(reading.get(), F_GETFL) & O_NONBLOCK, 0) << "the other end is its own affair";
  EXPECT_EQ(kernel_.make_nonblocking(-1), -EBADF);
}

TEST_F(LinuxKernelTest, waits_answer_zero_when_the_time_is_up) {
  const test::SocketPair pair = test::unix_pair(kernel_);
  test::Epoll epoll(kernel_);
  ASSERT_EQ(epoll.add(pair.client.get(), EPOLLIN), 0);
  std::array<pollfd, 1> descriptors{
      pollfd{.fd = pair.client.get(), .events = POLLIN, .revents = 0}};
  const timespec a_millisecond{.tv_sec = 0, .tv_nsec = 1'000'000};
  epoll_event event{};

  EXPECT_EQ(kernel_.epoll_wait(epoll.fd(), &event, 1, 1), 0);
  EXPECT_EQ(kernel_.poll(descriptors, &a_millisecond), 0);
}

TEST_F(LinuxKernelTest, an_eventfd_carries_its_count) {
  const UniqueFd fd(kernel_, kernel_.eventfd(3, EFD_NONBLOCK | EFD_CLOEXEC));
  std::uint64_t count = 4;

  EXPECT_EQ(kernel_.write(fd.get(), &count, sizeof count), 8);
  EXPECT_EQ(kernel_.read(fd.get(), &count, sizeof count), 8);
  EXPECT_EQ(count, 7u);
  EXPECT_EQ(kernel_.read(fd.get(), &count, sizeof count), -EAGAIN);
}

TEST_F(LinuxKernelTest, a_signalfd_receives_a_masked_signal) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR2);
  sigset_t before;
  ASSERT_EQ(kernel_.signal_mask(SIG_BLOCK, &signals, &before), 0);
  const UniqueFd fd(kernel_, kernel_.signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC));

  ASSERT_EQ(::raise(SIGUSR2), 0);

  signalfd_siginfo received{};
  EXPECT_EQ(kernel_.read(fd.get(), &received, sizeof received), ssize_t{sizeof received});
  EXPECT_EQ(received.ssi_signo, static_cast<std::uint32_t>(SIGUSR2));
  EXPECT_EQ(kernel_.signal_mask(SIG_SETMASK, &before, nullptr), 0);
}

TEST_F(LinuxKernelTest, sendfile_and_splice_move_a_files_bytes) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::tmpfile(), &std::fclose);
  ASSERT_NE(file, nullptr);
  ASSERT_NE(std::fputs("from a file", file.get()), EOF);
  ASSERT_EQ(std::fflush(file.get()), 0);
  const int file_fd = ::fileno(file.get());
  const test::SocketPair pair = test::unix_pair(kernel_);

  off_t offset = 5;
  EXPECT_EQ(kernel_.sendfile(pair.client.get(), file_fd, &offset, 100), 6);
  EXPECT_EQ(offset, 11);
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).text, "a file");

  std::array<int, 2> pipe{-1, -1};
  ASSERT_EQ(::pipe(pipe.data()), 0);
  const UniqueFd reading(kernel_, pipe[0]);
  const UniqueFd writing(kernel_, pipe[1]);
  ASSERT_EQ(kernel_.write(writing.get(), "piped", 5), 5);
  EXPECT_EQ(kernel_.splice(reading.get(), pair.client.get(), 100, 0), 5);
  EXPECT_EQ(test::receive(kernel_, pair.server.get()).text, "piped");
}

TEST_F(LinuxKernelTest, tells_what_the_peer_has_not_acknowledged) {
  const test::SocketPair pair = test::tcp_pair(kernel_);

  EXPECT_EQ(kernel_.unacknowledged_bytes(pair.client.get()), 0);
  test::send_until_full(kernel_, pair.client.get());
  EXPECT_GT(kernel_.unacknowledged_bytes(pair.client.get()), 0);
}

TEST_F(LinuxKernelTest, time_does_not_go_back) {
  const TimePoint before = kernel_.now();
  EXPECT_GT(before, TimePoint{});
  EXPECT_GE(kernel_.now(), before);
}

TEST_F(LinuxKernelTest, entropy_fills_the_whole_span) {
  std::array<std::byte, 1024> first{};
  std::array<std::byte, 1024> second{};

  EXPECT_EQ(kernel_.entropy(first), 0);
  EXPECT_EQ(kernel_.entropy(second), 0);
  EXPECT_NE(std::memcmp(first.data(), second.data(), first.size()), 0);
  const std::array<std::byte, 32> zeros{};
  EXPECT_NE(std::memcmp(first.data() + first.size() - zeros.size(), zeros.data(), zeros.size()), 0);
  EXPECT_EQ(kernel_.entropy({}), 0);
}

TEST_F(LinuxKernelTest, counts_the_open_descriptors) {
  const std::size_t before = kernel_.open_descriptors();
  EXPECT_GE(before, 3u);
  {
    const test::SocketPair pair = test::unix_pair(kernel_);
    EXPECT_EQ(kernel_.open_descriptors(), before + 2);
  }
  EXPECT_EQ(kernel_.open_descriptors(), before);
}

TEST_F(LinuxKernelTest, the_descriptor_limit_is_the_soft_one) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);

  EXPECT_EQ(kernel_.descriptor_limit(), limit.rlim_cur);
}

TEST_F(LinuxKernelTest, the_memory_limit_is_at_most_the_memory_of_the_machine) {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long page_size = ::sysconf(_SC_PAGESIZE);

  EXPECT_GT(kernel_.memory_limit(), std::size_t{1} << 20);
  EXPECT_LE(kernel_.memory_limit(),
            static_cast<std::size_t>(pages) * static_cast<std::size_t>(page_size));
}

}  // namespace
}  // namespace penstock

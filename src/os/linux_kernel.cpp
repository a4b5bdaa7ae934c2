// The kernel seam over the real system calls. This file and no other names them.
#include <dirent.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "penstock/os/kernel.h"

namespace penstock {
namespace {

constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();

/// What the seam promises: the result, or -errno.
template <class Number>
Number answer(Number result) noexcept {
  return result >= 0 ? result : static_cast<Number>(-errno);
}

// In a process with more than one thread the C library's own recv, send and sendmsg are points of
// cancellation, which costs about 50 user instructions each, more than all else of the call. We
// cancel no threads. A sanitizer has to see the library's functions, to check the memory.
#if defined(__has_feature)
#define PENSTOCK_HAS_FEATURE(feature) __has_feature(feature)
#else
#define PENSTOCK_HAS_FEATURE(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    PENSTOCK_HAS_FEATURE(address_sanitizer) || PENSTOCK_HAS_FEATURE(thread_sanitizer)
ssize_t receive(int fd, void* buffer, std::size_t size, int flags) noexcept {
  return ::recv(fd, buffer, size, flags);
}
ssize_t send_bytes(int fd, const void* bytes, std::size_t size, int flags) noexcept {
  return ::send(fd, bytes, size, flags);
}
ssize_t send_message(int fd, const msghdr* message, int flags) noexcept {
  return ::sendmsg(fd, message, flags);
}
#else
ssize_t receive(int fd, void* buffer, std::size_t size, int flags) noexcept {
  return ::syscall(SYS_recvfrom, fd, buffer, size, flags, nullptr, nullptr);
}
ssize_t send_bytes(int fd, const void* bytes, std::size_t size, int flags) noexcept {
  return ::syscall(SYS_sendto, fd, bytes, size, flags, nullptr, 0);
}
ssize_t send_message(int fd, const msghdr* message, int flags) noexcept {
  return ::syscall(SYS_sendmsg, fd, message, flags);
}
#endif

/// The first `bytes.size()` bytes of a small file; empty when it cannot be read.
std::string_view read_file(const char* path, std::span<char> bytes) noexcept {
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  std::size_t size = 0;
  while (size < bytes.size()) {
    const ssize_t count = ::read(fd, bytes.data() + size, bytes.size() - size);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    size += static_cast<std::size_t>(count);
  }
  ::close(fd);
  return {bytes.data(), size};
}

/// The number a limit file begins with; nothing for "max" or a missing file.
std::optional<std::size_t> read_limit(const std::string& path) {
  std::array<char, 64> bytes;
  const std::string_view text = read_file(path.c_str(), bytes);
  std::size_t limit = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), limit);
  if (error != std::errc{}) return std::nullopt;
  return limit;
}

/// The lowest limit on the way from `group` up to the root of the hierarchy mounted at `mount`: a
/// group is bound by its ancestors too. Inside a container the path may name groups that are not
/// visible; the visible ones above still count.
std::size_t lowest_limit(const std::string& mount, std::string_view group, const char* file) {
  std::size_t lowest = kUnlimited;
  while (true) {
    const std::string path = mount + std::string(group) + '/' + file;
    lowest = std::min(lowest, read_limit(path).value_or(kUnlimited));
    const std::size_t slash = group.rfind('/');
    if (group.empty() || slash == std::string_view::npos) return lowest;
    group = group.substr(0, slash);
  }
}

/// The memory limit of this process's control group, of version 2 ("0::PATH") or 1 (cgroups(7)).
std::size_t cgroup_memory_limit() {
  std::array<char, 4096> bytes;
  std::string_view text = read_file("/proc/self/cgroup", bytes);
  std::size_t lowest = kUnlimited;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string_view::npos || second == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(first + 1, second - first - 1);
    const std::string_view group = line.substr(second + 1);
    if (controllers.empty()) {
      lowest = std::min(lowest, lowest_limit("/sys/fs/cgroup", group, "memory.max"));
    } else if (controllers == "memory") {
      lowest =
          std::min(lowest, lowest_limit("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes"));
    }
  }
  return lowest;
}

std::size_t physical_memory() noexcept {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long page_size = ::sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page_size <= 0) return kUnlimited;
  return static_cast<std::size_t>(pages) * static_cast<std::size_t>(page_size);
}

class LinuxKernel final : public Kernel {
 private:
  int raw_socket(int domain, int type, int protocol) override {
    return answer(::socket(domain, type, protocol));
  }
  int raw_bind(int fd, const sockaddr* address, socklen_t size) override {
    return answer(::bind(fd, address, size));
  }
  int raw_listen(int fd, int backlog) override { return answer(::listen(fd, backlog)); }
  int raw_accept4(int fd, sockaddr* peer, socklen_t* size, int flags) override {
    return answer(::accept4(fd, peer, size, flags));
  }
  int raw_connect(int fd, const sockaddr* address, socklen_t size) override {
    return answer(::connect(fd, address, size));
  }
  int raw_getsockopt(int fd, int level, int name, void* value, socklen_t* size) override {
    return answer(::getsockopt(fd, level, name, value, size));
  }
  int raw_setsockopt(int fd, int level, int name, const void* value, socklen_t size) override {
    return answer(::setsockopt(fd, level, name, value, size));
  }
  int raw_getsockname(int fd, sockaddr* address, socklen_t* size) override {
    return answer(::getsockname(fd, address, size));
  }
  int raw_getpeername(int fd, sockaddr* address, socklen_t* size) override {
    return answer(::getpeername(fd, address, size));
  }
  int raw_shutdown(int fd, int how) override { return answer(::shutdown(fd, how)); }
  ssize_t raw_recv(int fd, void* buffer, std::size_t size, int flags) override {
    return answer(receive(fd, buffer, size, flags));
  }
  ssize_t raw_send(int fd, const void* bytes, std::size_t size, int flags) override {
    return answer(send_bytes(fd, bytes, size, flags));
  }
  ssize_t raw_sendmsg(int fd, const msghdr* message, int flags) override {
    return answer(send_message(fd, message, flags));
  }
  ssize_t raw_sendfile(int to, int from, off_t* offset, std::size_t size) override {
    return answer(::sendfile(to, from, offset, size));
  }
  ssize_t raw_splice(int from, int to, std::size_t size, unsigned flags) override {
    return answer(::splice(from, nullptr, to, nullptr, size, flags));
  }
  int raw_unacknowledged_bytes(int fd) override {
    int bytes = 0;
    const int result = ::ioctl(fd, SIOCOUTQ, &bytes);
    return result < 0 ? -errno : bytes;
  }

  int raw_epoll_create(int flags) override { return answer(::epoll_create1(flags)); }
  int raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) override {
    return answer(::epoll_ctl(epoll_fd, operation, fd, event));
  }
  int raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) override {
    return answer(::epoll_wait(epoll_fd, events, capacity, timeout));
  }
  int raw_poll(std::span<pollfd> descriptors, const timespec* timeout) override {
    return answer(::ppoll(descriptors.data(), descriptors.size(), timeout, nullptr));
  }
  int raw_eventfd(unsigned initial, int flags) override {
    return answer(::eventfd(initial, flags));
  }

  int raw_signalfd(int fd, const sigset_t* mask, int flags) override {
    return answer(::signalfd(fd, mask, flags));
  }
  int raw_signal_mask(int how, const sigset_t* set, sigset_t* previous) override {
    return -::pthread_sigmask(how, set, previous);
  }

  ssize_t raw_read(int fd, void* buffer, std::size_t size) override {
    return answer(::read(fd, buffer, size));
  }
  ssize_t raw_write(int fd, const void* bytes, std::size_t size) override {
    return answer(::write(fd, bytes, size));
  }
  int raw_open(const char* path, int flags) override {
    constexpr mode_t kOwnerOnly = S_IRUSR | S_IWUSR;
    return answer(::open(path, flags, kOwnerOnly));
  }
  int raw_close(int fd) override { return answer(::close(fd)); }
  int raw_unlink(const char* path) override { return answer(::unlink(path)); }
  int raw_file_status(int fd, const char* path, FileStatus& status) override {
    struct stat found{};
    const int result = ::fstatat(fd, path, &found, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH);
    if (result < 0) return -errno;
    status = {.mode = found.st_mode, .device = found.st_dev, .inode = found.st_ino};
    return 0;
  }
  int raw_make_nonblocking(int fd) override {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) return -errno;
    if ((flags & O_NONBLOCK) == 0 && ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return -errno;
    return answer(::fcntl(fd, F_SETFD, FD_CLOEXEC));
  }

  TimePoint raw_now() override {
    timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return TimePoint(std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec));
  }
  int raw_entropy(std::span<std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t count = ::getrandom(bytes.data(), bytes.size(), 0);
      if (count < 0) return -errno;
      bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
    return 0;
  }
  std::size_t raw_descriptor_limit() override {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
      return kUnlimited;
    }
    return static_cast<std::size_t>(limit.rlim_cur);
  }
  std::size_t raw_open_descriptors() override {
    constexpr std::size_t kEstimate = 16;
    DIR* directory = ::opendir("/proc/self/fd");
    if (directory == nullptr) return kEstimate;
    std::size_t entries = 0;
    while (const dirent* entry = ::readdir(directory)) {
      if (entry->d_name[0] != '.') ++entries;
    }
    ::closedir(directory);
    return entries > 0 ? entries - 1 : 0;  // without the one that did the reading
  }
  std::size_t raw_memory_limit() override {
    return std::min(physical_memory(), cgroup_memory_limit());
  }
};

}  // namespace

Kernel& linux_kernel() noexcept {
  static LinuxKernel kernel;
  return kernel;
}

}  // namespace penstock

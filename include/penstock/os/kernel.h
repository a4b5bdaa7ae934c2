// Seam 1: every system call the library makes, by name. Nothing else in the library talks to the
// kernel; a check in the test run reads the symbols of each object file and fails on one that does.
//
// Rules of the seam
//   1. The virtual raw_* methods answer as the kernel does: a result >= 0, or -errno, EINTR
//      included. errno ends here.
//   2. Callers use the public methods. They retry EINTR where a retry is right: not for close (the
//      descriptor is gone either way), not for connect (the attempt goes on; it answers
//      -EINPROGRESS), and not for the two waits, which answer 0 events, so that the turn which
//      follows computes its time-out anew.
//   3. Sends never raise SIGPIPE: every one carries MSG_NOSIGNAL. sendfile and splice have no such
//      flag; loop threads block SIGPIPE.
//   4. Methods are thread-safe.
//   5. Helpers that only fill memory (htons, inet_pton, sigaddset) may be used above the seam.
// The io_uring back-end will join with one more port on this class (next entry, submit and wait,
// ready completions, buffer-ring operations, all on plain structs); see
// docs/decisions/0001-two-seams.md.
#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "penstock/base/clock.h"

namespace penstock {

/// What a file is (stat(2)).
struct FileStatus {
  mode_t mode = 0;   ///< Its kind and permissions; test with S_ISSOCK and the like.
  dev_t device = 0;  ///< Where it is.
  ino_t inode = 0;   ///< Which one it is there.

  /// The same file: same device and inode.
  bool is_same(const FileStatus& other) const noexcept {
    return device == other.device && inode == other.inode;
  }
};

/// The kernel as the library sees it. LinuxKernel is the real one; tests put a FaultyKernel before
/// it.
class Kernel {
 public:
  Kernel() = default;
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;
  virtual ~Kernel() = default;

  // -- Sockets. Each answers >= 0 or -errno, like the system call of its name (see its man page).
  //    --

  /// socket(2).
  int socket(int domain, int type, int protocol) { return raw_socket(domain, type, protocol); }
  /// bind(2).
  int bind(int fd, const sockaddr* address, socklen_t size) { return raw_bind(fd, address, size); }
  /// listen(2).
  int listen(int fd, int backlog) { return raw_listen(fd, backlog); }
  /// accept4(2), repeated after EINTR.
  int accept4(int fd, sockaddr* peer, socklen_t* size, int flags) {
    return retried([&] { return raw_accept4(fd, peer, size, flags); });
  }
  /// -EINPROGRESS also stands for EINTR: in both the attempt goes on and writability tells its end.
  int connect(int fd, const sockaddr* address, socklen_t size) {
    const int result = raw_connect(fd, address, size);
    return result == -EINTR ? -EINPROGRESS : result;
  }
  /// getsockopt(2).
  int getsockopt(int fd, int level, int name, void* value, socklen_t* size) {
    return raw_getsockopt(fd, level, name, value, size);
  }
  /// setsockopt(2).
  int setsockopt(int fd, int level, int name, const void* value, socklen_t size) {
    return raw_setsockopt(fd, level, name, value, size);
  }
  /// getsockname(2).
  int getsockname(int fd, sockaddr* address, socklen_t* size) {
    return raw_getsockname(fd, address, size);
  }
  /// getpeername(2).
  int getpeername(int fd, sockaddr* address, socklen_t* size) {
    return raw_getpeername(fd, address, size);
  }
  /// shutdown(2).
  int shutdown(int fd, int how) { return raw_shutdown(fd, how); }
  /// recv(2), repeated after EINTR.
  ssize_t recv(int fd, void* buffer, std::size_t size, int flags) {
    return retried([&] { return raw_recv(fd, buffer, size, flags); });
  }
  /// send(2) with MSG_NOSIGNAL, repeated after EINTR.
  ssize_t send(int fd, const void* bytes, std::size_t size, int flags) {
    return retried([&] { return raw_send(fd, bytes, size, flags | MSG_NOSIGNAL); });
  }
  /// sendmsg(2) with MSG_NOSIGNAL, repeated after EINTR.
  ssize_t sendmsg(int fd, const msghdr* message, int flags) {
    return retried([&] { return raw_sendmsg(fd, message, flags | MSG_NOSIGNAL); });
  }
  /// sendfile(2), repeated after EINTR.
  ssize_t sendfile(int to, int from, off_t* offset, std::size_t size) {
    return retried([&] { return raw_sendfile(to, from, offset, size); });
  }
  /// splice(2), repeated after EINTR.
  ssize_t splice(int from, int to, std::size_t size, unsigned flags) {
    return retried([&] { return raw_splice(from, to, size, flags); });
  }
  /// Bytes the peer has not acknowledged yet (ioctl SIOCOUTQ, tcp(7)), or -errno.
  int unacknowledged_bytes(int fd) { return raw_unacknowledged_bytes(fd); }

  // -- Waiting --

  /// epoll_create1(2).
  int epoll_create(int flags) { return raw_epoll_create(flags); }
  /// epoll_ctl(2).
  int epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) {
    return raw_epoll_ctl(epoll_fd, operation, fd, event);
  }
  /// timeout in milliseconds, -1 for none. A signal answers 0 events (rule 2).
  int epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) {
    const int result = raw_epoll_wait(epoll_fd, events, capacity, timeout);
    return result == -EINTR ? 0 : result;
  }
  /// timeout nullptr for none. A signal answers 0 events (rule 2).
  int poll(std::span<pollfd> descriptors, const timespec* timeout) {
    const int result = raw_poll(descriptors, timeout);
    return result == -EINTR ? 0 : result;
  }
  /// eventfd(2).
  int eventfd(unsigned initial, int flags) { return raw_eventfd(initial, flags); }

  // -- Signals --

  /// signalfd(2).
  int signalfd(int fd, const sigset_t* mask, int flags) { return raw_signalfd(fd, mask, flags); }
  /// pthread_sigmask(3) for the calling thread.
  int signal_mask(int how, const sigset_t* set, sigset_t* previous) {
    return raw_signal_mask(how, set, previous);
  }

  // -- Descriptors of any kind --

  /// read(2), repeated after EINTR.
  ssize_t read(int fd, void* buffer, std::size_t size) {
    return retried([&] { return raw_read(fd, buffer, size); });
  }
  /// write(2), repeated after EINTR.
  ssize_t write(int fd, const void* bytes, std::size_t size) {
    return retried([&] { return raw_write(fd, bytes, size); });
  }
  /// open(2), repeated after EINTR.
  int open(const char* path, int flags) {
    return retried([&] { return raw_open(path, flags); });
  }
  /// Never retried: after EINTR the descriptor is gone all the same (close(2)), so EINTR answers 0.
  int close(int fd) {
    const int result = raw_close(fd);
    return result == -EINTR ? 0 : result;
  }
  /// unlink(2).
  int unlink(const char* path) { return raw_unlink(path); }
  /// What is at `path`, without following a final symbolic link; with an empty path, what `fd` is.
  /// 0 or -errno.
  int file_status(int fd, const char* path, FileStatus& status) {
    return raw_file_status(fd, path, status);
  }
  /// Sets O_NONBLOCK and FD_CLOEXEC, for descriptors that somebody else opened. 0 or -errno.
  int make_nonblocking(int fd) { return raw_make_nonblocking(fd); }

  // -- The machine --

  /// CLOCK_MONOTONIC.
  TimePoint now() { return raw_now(); }
  /// Fills `bytes` with random bytes, or answers -errno.
  int entropy(std::span<std::byte> bytes) {
    return retried([&] { return raw_entropy(bytes); });
  }
  /// The soft RLIMIT_NOFILE: descriptors this process may have open at a time.
  std::size_t descriptor_limit() { return raw_descriptor_limit(); }
  /// Descriptors open right now; an estimate (16) where the system does not tell.
  std::size_t open_descriptors() { return raw_open_descriptors(); }
  /// Bytes of memory this process may use: the machine's, or its cgroup's limit if that is lower.
  std::size_t memory_limit() { return raw_memory_limit(); }

 protected:
  ///@{
  /// The call of that name as the kernel answers it, EINTR included (rule 1).
  virtual int raw_socket(int domain, int type, int protocol) = 0;
  virtual int raw_bind(int fd, const sockaddr* address, socklen_t size) = 0;
  virtual int raw_listen(int fd, int backlog) = 0;
  virtual int raw_accept4(int fd, sockaddr* peer, socklen_t* size, int flags) = 0;
  virtual int raw_connect(int fd, const sockaddr* address, socklen_t size) = 0;
  virtual int raw_getsockopt(int fd, int level, int name, void* value, socklen_t* size) = 0;
  virtual int raw_setsockopt(int fd, int level, int name, const void* value, socklen_t size) = 0;
  virtual int raw_getsockname(int fd, sockaddr* address, socklen_t* size) = 0;
  virtual int raw_getpeername(int fd, sockaddr* address, socklen_t* size) = 0;
  virtual int raw_shutdown(int fd, int how) = 0;
  virtual ssize_t raw_recv(int fd, void* buffer, std::size_t size, int flags) = 0;
  virtual ssize_t raw_send(int fd, const void* bytes, std::size_t size, int flags) = 0;
  virtual ssize_t raw_sendmsg(int fd, const msghdr* message, int flags) = 0;
  virtual ssize_t raw_sendfile(int to, int from, off_t* offset, std::size_t size) = 0;
  virtual ssize_t raw_splice(int from, int to, std::size_t size, unsigned flags) = 0;
  virtual int raw_unacknowledged_bytes(int fd) = 0;
  virtual int raw_epoll_create(int flags) = 0;
  virtual int raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) = 0;
  virtual int raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) = 0;
  virtual int raw_poll(std::span<pollfd> descriptors, const timespec* timeout) = 0;
  virtual int raw_eventfd(unsigned initial, int flags) = 0;
  virtual int raw_signalfd(int fd, const sigset_t* mask, int flags) = 0;
  virtual int raw_signal_mask(int how, const sigset_t* set, sigset_t* previous) = 0;
  virtual ssize_t raw_read(int fd, void* buffer, std::size_t size) = 0;
  virtual ssize_t raw_write(int fd, const void* bytes, std::size_t size) = 0;
  virtual int raw_open(const char* path, int flags) = 0;
  virtual int raw_close(int fd) = 0;
  virtual int raw_unlink(const char* path) = 0;
  virtual int raw_file_status(int fd, const char* path, FileStatus& status) = 0;
  virtual int raw_make_nonblocking(int fd) = 0;
  virtual TimePoint raw_now() = 0;
  virtual int raw_entropy(std::span<std::byte> bytes) = 0;
  virtual std::size_t raw_descriptor_limit() = 0;
  virtual std::size_t raw_open_descriptors() = 0;
  virtual std::size_t raw_memory_limit() = 0;
  ///@}

  /// Lets a wrapper such as ForwardingKernel call the raw methods of the kernel it stands before.
  friend class ForwardingKernel;

 private:
  template <class Call>
  static std::invoke_result_t<Call> retried(Call call) {
    auto result = call();
    while (result == -EINTR)
      result = call();
    return result;
  }
};

/// The real kernel; stateless, one for the process, thread-safe.
Kernel& linux_kernel() noexcept;

}  // namespace penstock

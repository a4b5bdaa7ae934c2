// A kernel that hands every call to another one: the base of kernels that watch or disturb.
// The wrapped kernel is borrowed and must outlive this one. As thread-safe as the wrapped kernel.
#pragma once

#include "penstock/os/kernel.h"

namespace penstock {

/// Override the raw methods of interest; call ForwardingKernel::raw_* from them to go on to the
/// wrapped kernel. Results pass unchanged, EINTR included.
class ForwardingKernel : public Kernel {
 public:
  /// Hands everything to `wrapped`, which outlives it.
  explicit ForwardingKernel(Kernel& wrapped) noexcept : wrapped_(wrapped) {}

 protected:
  /// The kernel behind this one.
  Kernel& wrapped() noexcept { return wrapped_; }

  int raw_socket(int domain, int type, int protocol) override;
  int raw_bind(int fd, const sockaddr* address, socklen_t size) override;
  int raw_listen(int fd, int backlog) override;
  int raw_accept4(int fd, sockaddr* peer, socklen_t* size, int flags) override;
  int raw_connect(int fd, const sockaddr* address, socklen_t size) override;
  int raw_getsockopt(int fd, int level, int name, void* value, socklen_t* size) override;
  int raw_setsockopt(int fd, int level, int name, const void* value, socklen_t size) override;
  int raw_getsockname(int fd, sockaddr* address, socklen_t* size) override;
  int raw_getpeername(int fd, sockaddr* address, socklen_t* size) override;
  int raw_shutdown(int fd, int how) override;
  ssize_t raw_recv(int fd, void* buffer, std::size_t size, int flags) override;
  ssize_t raw_send(int fd, const void* bytes, std::size_t size, int flags) override;
  ssize_t raw_sendmsg(int fd, const msghdr* message, int flags) override;
  ssize_t raw_sendfile(int to, int from, off_t* offset, std::size_t size) override;
  ssize_t raw_splice(int from, int to, std::size_t size, unsigned flags) override;
  int raw_unacknowledged_bytes(int fd) override;
  int raw_epoll_create(int flags) override;
  int raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) override;
  int raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) override;
  int raw_poll(std::span<pollfd> descriptors, const timespec* timeout) override;
  int raw_eventfd(unsigned initial, int flags) override;
  int raw_signalfd(int fd, const sigset_t* mask, int flags) override;
  int raw_signal_mask(int how, const sigset_t* set, sigset_t* previous) override;
  ssize_t raw_read(int fd, void* buffer, std::size_t size) override;
  ssize_t raw_write(int fd, const void* bytes, std::size_t size) override;
  int raw_open(const char* path, int flags) override;
  int raw_close(int fd) override;
  int raw_unlink(const char* path) override;
  int raw_file_status(int fd, const char* path, FileStatus& status) override;
  int raw_make_nonblocking(int fd) override;
  TimePoint raw_now() override;
  int raw_entropy(std::span<std::byte> bytes) override;
  std::size_t raw_descriptor_limit() override;
  std::size_t raw_open_descriptors() override;
  std::size_t raw_memory_limit() override;

 private:
  Kernel& wrapped_;
};

}  // namespace penstock

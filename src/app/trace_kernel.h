// A kernel that tells what one connection's write path asks of the real one.
// Owned by the trace; used on its loop's thread. It changes no call and no result.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "penstock/os/forwarding_kernel.h"

namespace penstock::app {

/// Told of each call after the kernel has answered, in order. Must not call back into the kernel.
class WritePathObserver {
 public:
  /// A send or sendmsg of `requested` bytes; `result` is what the kernel accepted, or -errno.
  virtual void on_written(std::size_t requested, ssize_t result) noexcept = 0;
  /// EPOLLOUT has joined the interest.
  virtual void on_armed() noexcept = 0;
  /// EPOLLOUT has left the interest.
  virtual void on_disarmed() noexcept = 0;
  /// A wait has answered EPOLLOUT.
  virtual void on_writable() noexcept = 0;
  /// The sending side has been shut down: FIN.
  virtual void on_finished() noexcept = 0;

 protected:
  ~WritePathObserver() = default;
};

/// Watches one descriptor at a time, by the calls that the epoll back-ends and poll make.
class TracingKernel final : public ForwardingKernel {
 public:
  /// Both are borrowed and outlive it.
  TracingKernel(Kernel& wrapped, WritePathObserver& observer) noexcept
      : ForwardingKernel(wrapped), observer_(observer) {}

  /// Reports calls on `fd`, whose interest has no EPOLLOUT yet, until it is closed.
  void trace(int fd) noexcept;

 protected:
  ssize_t raw_send(int fd, const void* bytes, std::size_t size, int flags) override;
  ssize_t raw_sendmsg(int fd, const msghdr* message, int flags) override;
  int raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) override;
  int raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) override;
  int raw_poll(std::span<pollfd> descriptors, const timespec* timeout) override;
  int raw_shutdown(int fd, int how) override;
  int raw_close(int fd) override;

 private:
  void set_armed(bool armed) noexcept;

  WritePathObserver& observer_;
  int fd_ = -1;
  bool armed_ = false;
  std::uint64_t token_ = 0;  // what epoll_wait names the descriptor by; known once armed
};

}  // namespace penstock::app

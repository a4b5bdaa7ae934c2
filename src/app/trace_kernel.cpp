#include "app/trace_kernel.h"

#include <algorithm>

namespace penstock::app {

void TracingKernel::trace(int fd) noexcept {
  fd_ = fd;
  armed_ = false;
}

ssize_t TracingKernel::raw_send(int fd, const void* bytes, std::size_t size, int flags) {
  const ssize_t result = ForwardingKernel::raw_send(fd, bytes, size, flags);
  if (fd == fd_) observer_.on_written(size, result);
  return result;
}

ssize_t TracingKernel::raw_sendmsg(int fd, const msghdr* message, int flags) {
  const ssize_t result = ForwardingKernel::raw_sendmsg(fd, message, flags);
  if (fd != fd_) return result;
  std::size_t size = 0;
  for (const iovec& piece : std::span(message->msg_iov, message->msg_iovlen))
    size += piece.iov_len;
  observer_.on_written(size, result);
  return result;
}

int TracingKernel::raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) {
  const int result = ForwardingKernel::raw_epoll_ctl(epoll_fd, operation, fd, event);
  if (fd != fd_ || result < 0) return result;
  if (operation == EPOLL_CTL_DEL) {
    set_armed(false);
  } else {
    token_ = event->data.u64;
    set_armed((event->events & EPOLLOUT) != 0);
  }
  return result;
}

int TracingKernel::raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) {
  const int count = ForwardingKernel::raw_epoll_wait(epoll_fd, events, capacity, timeout);
  for (int i = 0; i < count; ++i) {
    const bool traced = armed_ && events[i].data.u64 == token_;
    if (traced && (events[i].events & EPOLLOUT) != 0) observer_.on_writable();
  }
  return count;
}

// With poll the interest is what the next wait carries.
int TracingKernel::raw_poll(std::span<pollfd> descriptors, const timespec* timeout) {
  const auto traced = std::ranges::find(descriptors, fd_, &pollfd::fd);
  if (fd_ < 0 || traced == descriptors.end())
    return ForwardingKernel::raw_poll(descriptors, timeout);
  set_armed((traced->events & POLLOUT) != 0);
  const int count = ForwardingKernel::raw_poll(descriptors, timeout);
  if (count > 0 && armed_ && (traced->revents & POLLOUT) != 0) observer_.on_writable();
  return count;
}

int TracingKernel::raw_shutdown(int fd, int how) {
  const int result = ForwardingKernel::raw_shutdown(fd, how);
  if (fd == fd_ && result == 0 && how != SHUT_RD) observer_.on_finished();
  return result;
}

int TracingKernel::raw_close(int fd) {
  if (fd == fd_) trace(-1);
  return ForwardingKernel::raw_close(fd);
}

void TracingKernel::set_armed(bool armed) noexcept {
  if (armed == armed_) return;
  armed_ = armed;
  if (armed) {
    observer_.on_armed();
  } else {
    observer_.on_disarmed();
  }
}

}  // namespace penstock::app

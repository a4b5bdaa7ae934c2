#include "penstock/os/forwarding_kernel.h"

namespace penstock {

int ForwardingKernel::raw_socket(int domain, int type, int protocol) {
  return wrapped_.raw_socket(domain, type, protocol);
}

int ForwardingKernel::raw_bind(int fd, const sockaddr* address, socklen_t size) {
  return wrapped_.raw_bind(fd, address, size);
}

int ForwardingKernel::raw_listen(int fd, int backlog) { return wrapped_.raw_listen(fd, backlog); }

int ForwardingKernel::raw_accept4(int fd, sockaddr* peer, socklen_t* size, int flags) {
  return wrapped_.raw_accept4(fd, peer, size, flags);
}

int ForwardingKernel::raw_connect(int fd, const sockaddr* address, socklen_t size) {
  return wrapped_.raw_connect(fd, address, size);
}

int ForwardingKernel::raw_getsockopt(int fd, int level, int name, void* value, socklen_t* size) {
  return wrapped_.raw_getsockopt(fd, level, name, value, size);
}

int ForwardingKernel::raw_setsockopt(int fd, int level, int name, const void* value,
                                     socklen_t size) {
  return wrapped_.raw_setsockopt(fd, level, name, value, size);
}

int ForwardingKernel::raw_getsockname(int fd, sockaddr* address, socklen_t* size) {
  return wrapped_.raw_getsockname(fd, address, size);
}

int ForwardingKernel::raw_getpeername(int fd, sockaddr* address, socklen_t* size) {
  return wrapped_.raw_getpeername(fd, address, size);
}

int ForwardingKernel::raw_shutdown(int fd, int how) { return wrapped_.raw_shutdown(fd, how); }

ssize_t ForwardingKernel::raw_recv(int fd, void* buffer, std::size_t size, int flags) {
  return wrapped_.raw_recv(fd, buffer, size, flags);
}

ssize_t ForwardingKernel::raw_send(int fd, const void* bytes, std::size_t size, int flags) {
  return wrapped_.raw_send(fd, bytes, size, flags);
}

ssize_t ForwardingKernel::raw_sendmsg(int fd, const msghdr* message, int flags) {
  return wrapped_.raw_sendmsg(fd, message, flags);
}

ssize_t ForwardingKernel::raw_sendfile(int to, int from, off_t* offset, std::size_t size) {
  return wrapped_.raw_sendfile(to, from, offset, size);
}

ssize_t ForwardingKernel::raw_splice(int from, int to, std::size_t size, unsigned flags) {
  return wrapped_.raw_splice(from, to, size, flags);
}

int ForwardingKernel::raw_unacknowledged_bytes(int fd) {
  return wrapped_.raw_unacknowledged_bytes(fd);
}

int ForwardingKernel::raw_epoll_create(int flags) { return wrapped_.raw_epoll_create(flags); }

int ForwardingKernel::raw_epoll_ctl(int epoll_fd, int operation, int fd, epoll_event* event) {
  return wrapped_.raw_epoll_ctl(epoll_fd, operation, fd, event);
}

int ForwardingKernel::raw_epoll_wait(int epoll_fd, epoll_event* events, int capacity, int timeout) {
  return wrapped_.raw_epoll_wait(epoll_fd, events, capacity, timeout);
}

int ForwardingKernel::raw_poll(std::span<pollfd> descriptors, const timespec* timeout) {
  return wrapped_.raw_poll(descriptors, timeout);
}

int ForwardingKernel::raw_eventfd(unsigned initial, int flags) {
  return wrapped_.raw_eventfd(initial, flags);
}

int ForwardingKernel::raw_signalfd(int fd, const sigset_t* mask, int flags) {
  return wrapped_.raw_signalfd(fd, mask, flags);
}

int ForwardingKernel::raw_signal_mask(int how, const sigset_t* set, sigset_t* previous) {
  return wrapped_.raw_signal_mask(how, set, previous);
}

ssize_t ForwardingKernel::raw_read(int fd, void* buffer, std::size_t size) {
  return wrapped_.raw_read(fd, buffer, size);
}

ssize_t ForwardingKernel::raw_write(int fd, const void* bytes, std::size_t size) {
  return wrapped_.raw_write(fd, bytes, size);
}

int ForwardingKernel::raw_open(const char* path, int flags) {
  return wrapped_.raw_open(path, flags);
}

int ForwardingKernel::raw_close(int fd) { return wrapped_.raw_close(fd); }

int ForwardingKernel::raw_unlink(const char* path) { return wrapped_.raw_unlink(path); }

int ForwardingKernel::raw_file_status(int fd, const char* path, FileStatus& status) {
  return wrapped_.raw_file_status(fd, path, status);
}

int ForwardingKernel::raw_make_nonblocking(int fd) { return wrapped_.raw_make_nonblocking(fd); }

TimePoint ForwardingKernel::raw_now() { return wrapped_.raw_now(); }

int ForwardingKernel::raw_entropy(std::span<std::byte> bytes) {
  return wrapped_.raw_entropy(bytes);
}

std::size_t ForwardingKernel::raw_descriptor_limit() { return wrapped_.raw_descriptor_limit(); }

std::size_t ForwardingKernel::raw_open_descriptors() { return wrapped_.raw_open_descriptors(); }

std::size_t ForwardingKernel::raw_memory_limit() { return wrapped_.raw_memory_limit(); }

}  // namespace penstock

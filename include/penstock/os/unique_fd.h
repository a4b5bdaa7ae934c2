// Owner of one file descriptor. It remembers the kernel it came from, because closing is a system
// call.
#pragma once

#include <utility>

#include "penstock/os/kernel.h"

namespace penstock {

/// Closes its descriptor when destroyed. Move-only; empty when it holds none (-1).
class UniqueFd {
 public:
  UniqueFd() = default;
  /// Takes over `fd`; a negative one is none. `kernel`, which closes it, outlives this object.
  UniqueFd(Kernel& kernel, int fd) noexcept : kernel_(&kernel), fd_(fd) {}
  /// Takes over the descriptor; `other` is empty afterwards.
  UniqueFd(UniqueFd&& other) noexcept : kernel_(other.kernel_), fd_(std::exchange(other.fd_, -1)) {}
  /// Closes its own descriptor and takes over that of `other`, which is empty afterwards.
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      reset();
      kernel_ = other.kernel_;
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~UniqueFd() { reset(); }

  /// The descriptor, or -1. It stays owned.
  int get() const noexcept { return fd_; }
  /// Whether it holds a descriptor.
  explicit operator bool() const noexcept { return fd_ >= 0; }

  /// Gives the descriptor away; the caller closes it.
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

  /// Closes the descriptor, if there is one.
  void reset() noexcept {
    if (fd_ >= 0) kernel_->close(std::exchange(fd_, -1));
  }

 private:
  Kernel* kernel_ = nullptr;
  int fd_ = -1;
};

}  // namespace penstock

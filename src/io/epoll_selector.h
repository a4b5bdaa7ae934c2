// Selector over epoll(7): the interest set lives in the kernel, the event array here; it grows when
// it comes back full.
#pragma once

#include <memory>
#include <vector>

#include "io/selector.h"
#include "penstock/base/result.h"
#include "penstock/os/kernel.h"
#include "penstock/os/unique_fd.h"

namespace penstock {

class EpollSelector final : public Selector {
 public:
  static Result<std::unique_ptr<Selector>> create(Kernel& kernel);

  int add(int fd, std::uint32_t events, Token token) override;
  int change(int fd, std::uint32_t events, Token token) override;
  int remove(int fd) override;
  std::span<const epoll_event> wait(int timeout) override;
  std::size_t examined() const override { return answered_; }
  bool more_waiting() const override { return was_full_; }

 private:
  explicit EpollSelector(Kernel& kernel, UniqueFd epoll_fd);

  static constexpr std::size_t kEventsMin = 64;
  static constexpr std::size_t kEventsMax = 1024;

  Kernel& kernel_;
  UniqueFd epoll_fd_;
  std::vector<epoll_event> events_;
  std::size_t answered_ = 0;
  bool was_full_ = false;
};

}  // namespace penstock

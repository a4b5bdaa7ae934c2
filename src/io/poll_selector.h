// Selector over poll(2): the interest set lives here, as an array that each wait hands to the
// kernel. Its wait costs time for every descriptor, ready or not; it is for comparison, and for
// kernels that lack epoll. Level-triggered only.
#pragma once

#include <poll.h>

#include <vector>

#include "io/selector.h"
#include "penstock/os/kernel.h"

namespace penstock {

class PollSelector final : public Selector {
 public:
  explicit PollSelector(Kernel& kernel) noexcept : kernel_(kernel) {}

  int add(int fd, std::uint32_t events, Token token) override;
  int change(int fd, std::uint32_t events, Token token) override;
  int remove(int fd) override;
  std::span<const epoll_event> wait(int timeout) override;
  std::size_t examined() const override { return descriptors_.size(); }
  bool more_waiting() const override { return was_cut_; }

 private:
  static constexpr std::size_t kNowhere = SIZE_MAX;

  std::size_t place_of(int fd) const noexcept;
  void make_room();
  void drop(std::size_t place) noexcept;
  void pause(int error, int timeout);

  Kernel& kernel_;
  std::vector<pollfd> descriptors_;
  std::vector<std::uint64_t> tokens_;  // beside descriptors_
  std::vector<std::size_t> places_;    // by descriptor number, into both
  std::vector<epoll_event> events_;
  bool was_cut_ = false;  // the last wait() had no memory for all events
  bool refused_ = false;  // the last poll was
};

}  // namespace penstock

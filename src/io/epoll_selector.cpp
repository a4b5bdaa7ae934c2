#include "io/epoll_selector.h"

#include <algorithm>
#include <new>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/base/log.h"

namespace penstock {
namespace {

epoll_event make_event(std::uint32_t events, Token token) noexcept {
  epoll_event event{};
  event.events = events;
  event.data.u64 = token.packed();
  return event;
}

}  // namespace

EpollSelector::EpollSelector(Kernel& kernel, UniqueFd epoll_fd)
    : kernel_(kernel), epoll_fd_(std::move(epoll_fd)), events_(kEventsMin) {}

Result<std::unique_ptr<Selector>> EpollSelector::create(Kernel& kernel) {
  const int fd = kernel.epoll_create(EPOLL_CLOEXEC);
  if (fd < 0) return failure(fd);
  return std::unique_ptr<Selector>(new EpollSelector(kernel, UniqueFd(kernel, fd)));
}

int EpollSelector::add(int fd, std::uint32_t events, Token token) {
  epoll_event event = make_event(events, token);
  return kernel_.epoll_ctl(epoll_fd_.get(), EPOLL_CTL_ADD, fd, &event);
}

int EpollSelector::change(int fd, std::uint32_t events, Token token) {
  epoll_event event = make_event(events, token);
  return kernel_.epoll_ctl(epoll_fd_.get(), EPOLL_CTL_MOD, fd, &event);
}

int EpollSelector::remove(int fd) {
  return kernel_.epoll_ctl(epoll_fd_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

std::span<const epoll_event> EpollSelector::wait(int timeout) {
  if (was_full_ && events_.size() < kEventsMax) {
    try {
      events_.resize(events_.size() * 2);
    } catch (const std::bad_alloc&) {
      log(LogLevel::info, "no memory for larger batches of events; smaller ones do the same work");
    }
  }
  const int count = kernel_.epoll_wait(epoll_fd_.get(), events_.data(),
                                       static_cast<int>(events_.size()), timeout);
  PENSTOCK_ASSERT(count >= 0, "epoll_wait refuses its own descriptor or array");
  answered_ = static_cast<std::size_t>(count);
  was_full_ = answered_ == events_.size();
  return {events_.data(), answered_};
}

}  // namespace penstock

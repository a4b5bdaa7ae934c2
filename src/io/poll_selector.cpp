#include "io/poll_selector.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <string>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/base/log.h"
#include "penstock/base/result.h"

namespace penstock {
namespace {

static_assert(POLLIN == EPOLLIN && POLLOUT == EPOLLOUT && POLLPRI == EPOLLPRI &&
                  POLLERR == EPOLLERR && POLLHUP == EPOLLHUP && POLLRDHUP == EPOLLRDHUP,
              "poll and epoll name events by the same bits here");

// What epoll would not take, poll calls always ready: a watch of it would spin.
int check_watchable(Kernel& kernel, int fd) {
  FileStatus status;
  const int result = kernel.file_status(fd, "", status);
  if (result < 0) return result;
  return S_ISREG(status.mode) || S_ISDIR(status.mode) ? -EPERM : 0;
}

}  // namespace

std::size_t PollSelector::place_of(int fd) const noexcept {
  const auto number = static_cast<std::size_t>(fd);
  return fd >= 0 && number < places_.size() ? places_[number] : kNowhere;
}

int PollSelector::add(int fd, std::uint32_t events, Token token) {
  if (fd < 0) return -EBADF;
  if (place_of(fd) != kNowhere) return -EEXIST;
  if (token.kind == Token::Kind::watch) {
    const int watchable = check_watchable(kernel_, fd);
    if (watchable < 0) return watchable;
  }
  const auto number = static_cast<std::size_t>(fd);
  try {
    if (number >= places_.size())
      places_.resize(std::max(number + 1, 2 * places_.size()), kNowhere);
    make_room();
  } catch (const std::bad_alloc&) {
    return -ENOMEM;
  }
  descriptors_.push_back({.fd = fd, .events = static_cast<short>(events), .revents = 0});
  tokens_.push_back(token.packed());
  places_[number] = descriptors_.size() - 1;
  return 0;
}

// For one more in each array, so that adding cannot fail half-way.
void PollSelector::make_room() {
  const std::size_t size = descriptors_.size();
  if (size < std::min(descriptors_.capacity(), tokens_.capacity())) return;
  const std::size_t room = std::max<std::size_t>(64, 2 * size);
  descriptors_.reserve(room);
  tokens_.reserve(room);
}

int PollSelector::change(int fd, std::uint32_t events, Token token) {
  const std::size_t place = place_of(fd);
  if (place == kNowhere) return -ENOENT;
  descriptors_[place].events = static_cast<short>(events);
  tokens_[place] = token.packed();
  return 0;
}

int PollSelector::remove(int fd) {
  const std::size_t place = place_of(fd);
  if (place == kNowhere) return -ENOENT;
  drop(place);
  return 0;
}

// The last one takes its place.
void PollSelector::drop(std::size_t place) noexcept {
  places_[static_cast<std::size_t>(descriptors_[place].fd)] = kNowhere;
  if (place + 1 != descriptors_.size()) {
    descriptors_[place] = descriptors_.back();
    tokens_[place] = tokens_.back();
    places_[static_cast<std::size_t>(descriptors_[place].fd)] = place;
  }
  descriptors_.pop_back();
  tokens_.pop_back();
}

std::span<const epoll_event> PollSelector::wait(int timeout) {
  events_.clear();
  was_cut_ = false;
  const timespec limit{.tv_sec = timeout / 1000, .tv_nsec = timeout % 1000 * 1'000'000L};
  int left = kernel_.poll(descriptors_, timeout < 0 ? nullptr : &limit);
  if (left == -ENOMEM || left == -EINVAL) {
    pause(left, timeout);
    return events_;
  }
  PENSTOCK_ASSERT(left >= 0, "poll refuses its own descriptors");
  refused_ = false;
  // Only here: while a batch is dispatched, add() must not move it.
  try {
    events_.reserve(static_cast<std::size_t>(left));
  } catch (const std::bad_alloc&) {
    log(LogLevel::info, "no memory for larger batches of events; smaller ones do the same work");
  }
  was_cut_ = static_cast<std::size_t>(left) > events_.capacity();
  for (std::size_t place = 0; left > 0 && place < descriptors_.size();) {
    const auto happened = static_cast<unsigned short>(descriptors_[place].revents);
    if (happened == 0) {
      ++place;
      continue;
    }
    --left;
    if ((happened & POLLNVAL) != 0) {
      // Somebody closed it under us. It would be reported for ever; epoll forgets such a one too.
      log_composed(LogLevel::error, [fd = descriptors_[place].fd] {
        return "descriptor " + std::to_string(fd) +
               " was closed while it was watched; end the watch first";
      });
      drop(place);  // the one that takes its place is looked at next
      continue;
    }
    if (events_.size() == events_.capacity()) break;  // the next poll tells of the others
    epoll_event event{};
    event.events = happened;
    event.data.u64 = tokens_[place];
    events_.push_back(event);
    ++place;
  }
  return events_;
}

// The kernel lacks memory, or the limit on descriptors was lowered below what is open (poll(2)).
// Neither goes away by asking again at once.
void PollSelector::pause(int error, int timeout) {
  if (!std::exchange(refused_, true)) {
    log_composed(LogLevel::error, [error] {
      return "poll does not wait: " + system_error(error).message() +
             (error == -EINVAL ? "; raise the limit on descriptors again, or choose epoll" : "") +
             "; trying again every 10 ms";
    });
  }
  if (timeout == 0) return;
  constexpr int kPauseMax = 10;
  const int milliseconds = timeout < 0 ? kPauseMax : std::min(timeout, kPauseMax);
  const timespec limit{.tv_sec = 0, .tv_nsec = milliseconds * 1'000'000L};
  kernel_.poll({}, &limit);
}

}  // namespace penstock

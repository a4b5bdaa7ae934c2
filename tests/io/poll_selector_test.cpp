// PollSelector by itself: the set it hands to poll(2) is a model's (PAR5), and its verbs answer as
// epoll's do.
#include "io/poll_selector.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "io/epoll_selector.h"
#include "io/io_world.h"
#include "penstock/os/forwarding_kernel.h"
#include "support/captured_log.h"

namespace penstock::test {
namespace {

/// What the last poll was handed, and with what time-out.
class PollTap final : public ForwardingKernel {
 public:
  using ForwardingKernel::ForwardingKernel;
  std::vector<pollfd> handed;
  std::optional<timespec> timeout;
  std::size_t polls = 0;
  int answer = 0;  // in place of the kernel's, unless 0

 private:
  int raw_poll(std::span<pollfd> descriptors, const timespec* limit) override {
    ++polls;
    handed.assign(descriptors.begin(), descriptors.end());
    timeout = limit == nullptr ? std::nullopt : std::optional(*limit);
    if (answer != 0) return answer;
    return ForwardingKernel::raw_poll(descriptors, limit);
  }
};

using Set = std::map<int, std::pair<short, std::uint64_t>>;  // events and token, by descriptor

Token token(std::uint32_t slot) {
  return {.kind = Token::Kind::stream, .generation = slot * 3 + 1, .slot = slot};
}

class PollSelectorTest : public testing::Test {
 protected:
  UniqueFd event(unsigned count = 0) {
    return {linux_kernel(), linux_kernel().eventfd(count, EFD_NONBLOCK | EFD_CLOEXEC)};
  }
  /// Waits without waiting; the events by token.
  Set wait() {
    Set told;
    for (const epoll_event& each : selector.wait(0)) {
      EXPECT_TRUE(told.emplace(static_cast<int>(Token::unpacked(each.data.u64).slot),
                               std::pair{static_cast<short>(each.events), each.data.u64})
                      .second)
          << "told twice";
    }
    return told;
  }

  PollTap tap{linux_kernel()};
  PollSelector selector{tap};
};

// -- The set --

// PAR5: every sequence of up to five steps over three descriptors, each step being one of add,
// change (to one of two interests) and remove. The raw set is compared after each step.
TEST_F(PollSelectorTest, every_sequence_of_verbs_leaves_the_set_of_the_model) {
  // All are always readable and writable: whoever is asked for is told.
  const std::array<UniqueFd, 3> fds = {event(1), event(1), event(1)};
  constexpr std::array<std::uint32_t, 2> kEvents = {EPOLLIN, EPOLLIN | EPOLLOUT};
  constexpr int kVerbs = 4;  // add, change to one, change to the other, remove
  constexpr int kMoves = 3 * kVerbs;
  constexpr int kLength = 5;
  int sequences = 1;
  for (int i = 0; i < kLength; ++i)
    sequences *= kMoves;
  for (int sequence = 0; sequence < sequences; ++sequence) {
    PollSelector fresh(tap);
    Set model;
    std::uint32_t step = 0;
    for (int rest = sequence; step < kLength; rest /= kMoves) {
      const auto which = static_cast<std::size_t>(rest % kMoves / kVerbs);
      const int verb = rest % kVerbs;
      const int fd = fds[which].get();
      const bool known = model.contains(fd);
      const Token name = token(++step);
      if (verb == 0) {
        ASSERT_EQ(fresh.add(fd, kEvents[0], name), known ? -EEXIST : 0);
        if (!known) model[fd] = {static_cast<short>(kEvents[0]), name.packed()};
      } else if (verb == 3) {
        ASSERT_EQ(fresh.remove(fd), known ? 0 : -ENOENT);
        model.erase(fd);
      } else {
        const std::uint32_t events = kEvents[static_cast<std::size_t>(verb - 1)];
        ASSERT_EQ(fresh.change(fd, events, name), known ? 0 : -ENOENT);
        if (known) model[fd] = {static_cast<short>(events), name.packed()};
      }
    }
    // What poll is handed, and what comes back under which name.
    std::set<std::uint64_t> names;
    for (const epoll_event& each : fresh.wait(0)) {
      ASSERT_TRUE(names.insert(each.data.u64).second) << "sequence " << sequence;
    }
    ASSERT_EQ(tap.handed.size(), model.size()) << "sequence " << sequence;
    for (const pollfd& each : tap.handed) {
      ASSERT_TRUE(model.contains(each.fd)) << "sequence " << sequence;
      ASSERT_EQ(each.events, model[each.fd].first) << "sequence " << sequence;
      ASSERT_TRUE(names.contains(model[each.fd].second)) << "sequence " << sequence;
    }
    ASSERT_EQ(names.size(), model.size()) << "sequence " << sequence;
  }
}

// The same in lock-step with epoll: one event is told by both, or by neither.
TEST_F(PollSelectorTest, a_long_random_sequence_answers_as_epoll_does) {
  std::vector<UniqueFd> fds;
  for (unsigned i = 0; i < 20; ++i)
    fds.push_back(event(i % 3 == 0 ? 1 : 0));
  auto made = EpollSelector::create(linux_kernel());
  ASSERT_TRUE(made.has_value());
  Selector& epoll = **made;
  std::uint32_t dice = 4711;
  const auto roll = [&dice](std::uint32_t sides) {
    dice = dice * 1'664'525 + 1'013'904'223;
    return (dice >> 8) % sides;
  };
  for (std::uint32_t step = 0; step < 20'000; ++step) {
    const int fd = fds[roll(20)].get();
    const std::uint32_t events = std::array<std::uint32_t, 4>{
        0, EPOLLIN, EPOLLOUT, EPOLLIN | EPOLLOUT | EPOLLRDHUP}[roll(4)];
    switch (roll(3)) {
      case 0:
        ASSERT_EQ(selector.add(fd, events, token(step)), epoll.add(fd, events, token(step)));
        break;
      case 1:
        ASSERT_EQ(selector.change(fd, events, token(step)), epoll.change(fd, events, token(step)));
        break;
      default:
        ASSERT_EQ(selector.remove(fd), epoll.remove(fd));
    }
    if (roll(4) != 0) continue;
    std::set<std::pair<std::uint64_t, std::uint32_t>> ours;
    std::set<std::pair<std::uint64_t, std::uint32_t>> theirs;
    for (const epoll_event& each : selector.wait(0))
      ours.emplace(each.data.u64, each.events);
    for (const epoll_event& each : epoll.wait(0))
      theirs.emplace(each.data.u64, each.events);
    ASSERT_EQ(ours, theirs) << "step " << step;
  }
}

TEST_F(PollSelectorTest, a_set_of_hundreds_grows_shrinks_and_grows_again) {
  std::vector<UniqueFd> fds;
  for (std::uint32_t i = 0; i < 500; ++i)
    fds.push_back(event(1));
  for (int round = 0; round < 3; ++round) {
    for (std::uint32_t i = 0; i < fds.size(); ++i)
      ASSERT_EQ(selector.add(fds[i].get(), EPOLLIN, token(i)), 0);
    EXPECT_EQ(wait().size(), fds.size());
    EXPECT_FALSE(selector.more_waiting());
    // Every third from the front, the others from the back.
    for (std::size_t i = 0; i < fds.size(); i += 3)
      ASSERT_EQ(selector.remove(fds[i].get()), 0);
    const Set left = wait();
    EXPECT_EQ(left.size(), fds.size() - (fds.size() + 2) / 3);
    for (const auto& [slot, told] : left)
      EXPECT_NE(slot % 3, 0);
    for (std::size_t i = fds.size(); i-- > 0;)
      EXPECT_EQ(selector.remove(fds[i].get()), i % 3 == 0 ? -ENOENT : 0);
    EXPECT_TRUE(wait().empty());
    EXPECT_TRUE(tap.handed.empty());
  }
}

TEST_F(PollSelectorTest, a_descriptor_of_a_high_number_is_like_any_other) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const UniqueFd low = event(1);
  const int number = static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 1'000'000)) - 1;
  const UniqueFd high(linux_kernel(), ::fcntl(low.get(), F_DUPFD_CLOEXEC, number));
  ASSERT_EQ(high.get(), number);
  EXPECT_EQ(selector.remove(number), -ENOENT);
  EXPECT_EQ(selector.change(number, EPOLLIN, token(1)), -ENOENT);
  EXPECT_EQ(selector.add(number, EPOLLIN, token(1)), 0);
  EXPECT_EQ(selector.add(low.get(), EPOLLIN, token(2)), 0);
  EXPECT_EQ(wait().size(), 2u);
  EXPECT_EQ(selector.remove(number), 0);
  EXPECT_EQ(wait().size(), 1u);
}

// -- Answers --

TEST_F(PollSelectorTest, answers_what_epoll_answers_to_wrong_requests) {
  const UniqueFd fd = event();
  EXPECT_EQ(selector.change(fd.get(), EPOLLIN, token(1)), -ENOENT);
  EXPECT_EQ(selector.remove(fd.get()), -ENOENT);
  EXPECT_EQ(selector.add(fd.get(), EPOLLIN, token(1)), 0);
  EXPECT_EQ(selector.add(fd.get(), EPOLLIN, token(2)), -EEXIST);
  EXPECT_EQ(selector.remove(fd.get()), 0);
  EXPECT_EQ(selector.remove(fd.get()), -ENOENT);
  EXPECT_EQ(selector.add(-1, EPOLLIN, token(1)), -EBADF);
  const Token watch{.kind = Token::Kind::watch, .generation = 1, .slot = 1};
  int gone = -1;
  {
    const UniqueFd closed = event();
    gone = closed.get();
  }
  EXPECT_EQ(selector.add(gone, EPOLLIN, watch), -EBADF);
  wait();
  EXPECT_TRUE(tap.handed.empty()) << "what is refused is not watched";
}

TEST_F(PollSelectorTest, refuses_to_watch_what_is_always_ready) {
  const Token watch{.kind = Token::Kind::watch, .generation = 1, .slot = 1};
  const UniqueFd file(linux_kernel(), ::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  const UniqueFd folder(linux_kernel(), ::open("/", O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(file && folder);
  EXPECT_EQ(selector.add(file.get(), EPOLLIN, watch), -EPERM);
  EXPECT_EQ(selector.add(folder.get(), EPOLLIN, watch), -EPERM);
  wait();
  EXPECT_TRUE(tap.handed.empty());
}

TEST_F(PollSelectorTest, hands_the_time_out_on) {
  selector.wait(0);
  EXPECT_EQ(tap.timeout->tv_sec, 0);
  EXPECT_EQ(tap.timeout->tv_nsec, 0);
  tap.answer = -EINTR;  // so that nothing waits; a signal answers no events
  EXPECT_TRUE(selector.wait(2'500).empty());
  EXPECT_EQ(tap.timeout->tv_sec, 2);
  EXPECT_EQ(tap.timeout->tv_nsec, 500'000'000);
  EXPECT_TRUE(selector.wait(24 * 60 * 60 * 1000).empty());
  EXPECT_EQ(tap.timeout->tv_sec, 24 * 60 * 60);
  EXPECT_TRUE(selector.wait(-1).empty());
  EXPECT_FALSE(tap.timeout.has_value());
}

TEST_F(PollSelectorTest, a_poll_without_memory_answers_no_events_and_the_next_does) {
  const UniqueFd fd = event(1);
  ASSERT_EQ(selector.add(fd.get(), EPOLLIN, token(1)), 0);
  EXPECT_EQ(wait().size(), 1u);
  tap.answer = -ENOMEM;
  EXPECT_TRUE(selector.wait(0).empty());
  tap.answer = 0;
  EXPECT_EQ(wait().size(), 1u);
}

// ENOMEM may last; EINVAL is a limit on descriptors that was lowered below what is open (poll(2)).
// Asking again at once would spin, and ending the program for it would be worse.
TEST_F(PollSelectorTest, a_poll_that_keeps_being_refused_pauses_in_between_and_is_told_once) {
  for (const int error : {ENOMEM, EINVAL}) {
    SCOPED_TRACE(error);
    const CapturedLog log;
    PollTap refusing(linux_kernel());
    PollSelector waiting(refusing);
    const UniqueFd fd = event(1);
    ASSERT_EQ(waiting.add(fd.get(), EPOLLIN, token(1)), 0);
    refusing.answer = -error;
    const struct {
      int timeout;
      long pause_milliseconds;
    } cases[] = {{-1, 10}, {1000, 10}, {3, 3}};
    for (const auto& [timeout, pause] : cases) {
      const std::size_t polls = refusing.polls;
      EXPECT_TRUE(waiting.wait(timeout).empty());
      EXPECT_EQ(refusing.polls, polls + 2);
      EXPECT_TRUE(refusing.handed.empty()) << "a pause needs no descriptors, and no memory";
      ASSERT_TRUE(refusing.timeout.has_value());
      EXPECT_EQ(refusing.timeout->tv_nsec, pause * 1'000'000);
    }
    const std::size_t polls = refusing.polls;
    EXPECT_TRUE(waiting.wait(0).empty());
    EXPECT_EQ(refusing.polls, polls + 1) << "who does not wait is not kept waiting";
    EXPECT_EQ(log.lines().size(), 1U);
    refusing.answer = 0;
    EXPECT_EQ(waiting.wait(0).size(), 1U);
    refusing.answer = -error;
    EXPECT_TRUE(waiting.wait(0).empty());
    EXPECT_EQ(log.lines().size(), 2U) << "a new shortage is told anew";
  }
}

TEST_F(PollSelectorTest, tells_errors_and_hang_ups_without_interest) {
  SocketPair pair = unix_pair(linux_kernel());
  ASSERT_EQ(selector.add(pair.server.get(), 0, token(1)), 0);
  EXPECT_TRUE(wait().empty());
  pair.client.reset();
  const Set told = wait();
  ASSERT_EQ(told.size(), 1u);
  EXPECT_NE(told.at(1).first & POLLHUP, 0);
}

// -- Closed under it --

TEST_F(PollSelectorTest, a_descriptor_closed_under_it_is_told_in_the_log_once_and_forgotten) {
  const CapturedLog log;
  std::vector<UniqueFd> fds;
  for (std::uint32_t i = 0; i < 4; ++i) {
    fds.push_back(event(1));
    ASSERT_EQ(selector.add(fds.back().get(), EPOLLIN, token(i)), 0);
  }
  // In the middle, so that the last one takes its place while both are looked at.
  const int gone = fds[1].get();
  fds[1].reset();
  Set told = wait();
  EXPECT_EQ(told.size(), 3u) << "the others are told all the same";
  EXPECT_FALSE(told.contains(1));
  EXPECT_EQ(log.count("descriptor " + std::to_string(gone) + " was closed"), 1u);
  for (int i = 0; i < 5; ++i)
    EXPECT_EQ(wait().size(), 3u);
  EXPECT_EQ(tap.handed.size(), 3u);
  EXPECT_EQ(log.lines().size(), 1u);
  EXPECT_EQ(selector.remove(gone), -ENOENT);
  // Its number may be used again.
  const UniqueFd next = event(1);
  ASSERT_EQ(next.get(), gone);
  EXPECT_EQ(selector.add(next.get(), EPOLLIN, token(9)), 0);
  EXPECT_EQ(wait().size(), 4u);
}

TEST_F(PollSelectorTest, all_of_them_may_be_closed_under_it) {
  const CapturedLog log;
  {
    std::vector<UniqueFd> fds;
    for (std::uint32_t i = 0; i < 10; ++i) {
      fds.push_back(event(1));
      ASSERT_EQ(selector.add(fds.back().get(), EPOLLIN, token(i)), 0);
    }
  }
  EXPECT_TRUE(wait().empty());
  EXPECT_EQ(log.lines().size(), 10u);
  EXPECT_TRUE(wait().empty());
  EXPECT_TRUE(tap.handed.empty());
}

// -- In a back-end --

class PollBackendTest : public testing::TestWithParam<Backend> {
 protected:
  struct Noting final : WatchHandler {
    void on_ready(Readiness) override { ++calls; }
    int calls = 0;
  };
  FaultyKernel kernel{linux_kernel()};
  std::unique_ptr<IoBackend> backend = std::move(make_backend(GetParam(), kernel).value());
};

TEST_P(PollBackendTest, AWatchWhoseDescriptorIsClosedUnderItDoesNotSpin) {
  const CapturedLog log;
  Noting handler;
  UniqueFd fd(linux_kernel(), linux_kernel().eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));
  const WatchId id = backend->watch(fd.get(), Interest::readable, handler).value();
  backend->poll(TimePoint::min(), kernel.now());
  EXPECT_EQ(handler.calls, 1);
  fd.reset();
  for (int i = 0; i < 10; ++i)
    backend->poll(TimePoint::min(), kernel.now());
  EXPECT_EQ(handler.calls, 1);
  const std::uint64_t wakeups = backend->statistics().wakeups;
  backend->poll(TimePoint::min(), kernel.now());
  EXPECT_EQ(backend->statistics().wakeups, wakeups);
  EXPECT_EQ(log.lines().size(), GetParam() == Backend::poll ? 1u : 0u);
  backend->unwatch(id);
  EXPECT_EQ(log.lines().size(), GetParam() == Backend::poll ? 1u : 0u);
}

TEST_P(PollBackendTest, WhatCannotBeWatchedIsRefusedByTheSameErrors) {
  Noting handler;
  const UniqueFd file(linux_kernel(), ::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  const UniqueFd folder(linux_kernel(), ::open("/", O_RDONLY | O_CLOEXEC));
  const UniqueFd event(linux_kernel(), linux_kernel().eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC));
  int gone = -1;
  {
    const UniqueFd closed(linux_kernel(), linux_kernel().eventfd(0, EFD_CLOEXEC));
    gone = closed.get();
  }
  const auto error_of = [&](int fd) {
    const auto watched = backend->watch(fd, Interest::readable, handler);
    return watched ? std::error_code() : watched.error();
  };
  EXPECT_EQ(error_of(file.get()), system_error(EPERM));
  EXPECT_EQ(error_of(folder.get()), system_error(EPERM));
  EXPECT_EQ(error_of(gone), system_error(EBADF));
  EXPECT_EQ(error_of(-1), system_error(EBADF));
  EXPECT_EQ(error_of(event.get()), std::error_code());
  EXPECT_EQ(error_of(event.get()), system_error(EEXIST));
  backend->poll(TimePoint::min(), kernel.now());
  EXPECT_EQ(handler.calls, 1);
}

PENSTOCK_ON_EVERY_READINESS_BACKEND(PollBackendTest);

}  // namespace
}  // namespace penstock::test

// Every k-th system call failing, or falling short, in each reference script on each back-end: the fault matrix (2.15), cell by
// cell. A failure names its cell; PENSTOCK_FAULT_CELL=<cell> runs that one alone.

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "faults/scripts.h"
#include "faults/stage.h"
#include "support/captured_log.h"
#include "support/serving.h"
#include "support/world.h"

namespace penstock::test {
namespace {

/// What the library owes its user when a call fails.
enum class Policy : std::uint8_t {
  harmless,  ///< Nobody notices: all comes of it that comes of a clean run.
  breaks,    ///< One connection ends as reset, with that error; another is as in a clean run.
  told,  ///< The error is told, by whoever it concerns: on_close, on_connect_failed, error(), start(), a counter.
  told_or_harmless,  ///< One of these two: the call matters at some places only.
  refuses,           ///< As `harmless`, but a client that waited may be refused, and is counted.
  contained,         ///< Only what holds always; see check_invariants.
};

struct Row {
  Call call;
  const char* name;
  int operation;  // of epoll_ctl
  std::vector<int> errors;
  Policy policy;
};

const std::vector<Row>& matrix() {
  using enum Policy;
  // clang-format off
  static const std::vector<Row> rows = {
      {Call::accept4, "accept4", 0, {EINTR, EAGAIN, ENOBUFS, ENOMEM, ECONNABORTED, EPROTO, EPERM}, harmless},
      {Call::accept4, "accept4", 0, {EMFILE, ENFILE}, refuses},
      {Call::connect, "connect", 0, {EINTR, EINPROGRESS}, harmless},
      {Call::connect, "connect", 0, {EAGAIN}, told_or_harmless},  // Unix: tried again, without an end
      {Call::connect, "connect", 0, {ENOBUFS, ENOMEM, ENETUNREACH, EADDRNOTAVAIL, ECONNREFUSED, ECONNRESET, ETIMEDOUT, EMFILE, ENFILE, EACCES}, told},
      {Call::recv, "recv", 0, {EINTR, EAGAIN, ENOBUFS, ENOMEM}, harmless},
      {Call::recv, "recv", 0, {ECONNRESET, EPIPE, ECONNABORTED, ETIMEDOUT}, breaks},
      {Call::send, "send", 0, {EINTR, EAGAIN, ENOBUFS, ENOMEM}, harmless},
      {Call::send, "send", 0, {ECONNRESET, EPIPE}, breaks},
      {Call::sendmsg, "sendmsg", 0, {EINTR, EAGAIN, ENOBUFS, ENOMEM}, harmless},
      {Call::sendmsg, "sendmsg", 0, {ECONNRESET, EPIPE}, breaks},
      {Call::epoll_ctl, "epoll_ctl_add", EPOLL_CTL_ADD, {ENOMEM, ENOSPC}, told},
      {Call::epoll_ctl, "epoll_ctl_mod", EPOLL_CTL_MOD, {ENOMEM}, told_or_harmless},
      {Call::epoll_wait, "epoll_wait", 0, {EINTR}, harmless},
      {Call::poll, "poll", 0, {EINTR, ENOMEM}, harmless},
      {Call::eventfd, "eventfd", 0, {EMFILE, ENFILE, ENOMEM}, told},
      {Call::epoll_create, "epoll_create", 0, {EMFILE, ENFILE, ENOMEM}, told},
      {Call::read, "read", 0, {EINTR, EAGAIN}, harmless},
      {Call::write, "write", 0, {EINTR, EAGAIN}, harmless},
      {Call::close, "close", 0, {EINTR, EIO, ENOSPC}, harmless},
      {Call::socket, "socket", 0, {EMFILE, ENFILE, ENOBUFS, ENOMEM}, told},
      {Call::bind, "bind", 0, {EADDRINUSE, EACCES, ENOMEM}, told},
      {Call::listen, "listen", 0, {EADDRINUSE}, told},
      {Call::getsockopt, "getsockopt", 0, {ENOBUFS}, told},
      {Call::setsockopt, "setsockopt", 0, {ENOBUFS, ENOMEM}, told_or_harmless},
      {Call::getsockname, "getsockname", 0, {ENOBUFS}, told_or_harmless},
      {Call::getpeername, "getpeername", 0, {ENOTCONN}, harmless},
      {Call::getpeername, "getpeername", 0, {ENOBUFS}, told},
      {Call::shutdown, "shutdown", 0, {ENOTCONN, ENOBUFS}, contained},
      {Call::unacknowledged_bytes, "unacknowledged_bytes", 0, {EINVAL}, contained},
      {Call::open, "open", 0, {EINTR, EMFILE, ENFILE, ENOMEM}, harmless},
      {Call::file_status, "file_status", 0, {EACCES, ENOMEM}, told_or_harmless},
      {Call::unlink, "unlink", 0, {EACCES}, harmless},
  };
  // clang-format on
  return rows;
}

/// Calls that can fall short; those which move bytes to 1 byte, a wait to 1 event.
const std::vector<std::pair<Call, const char*>> kSizedCalls = {
    {Call::recv, "recv"},
    {Call::send, "send"},
    {Call::sendmsg, "sendmsg"},
    {Call::epoll_wait, "epoll_wait"},
};

/// Cells of which less can be asked than of their row.
struct Exception {
  std::string_view script;
  Call call;
  std::uint64_t first;  // the call, and all after it
};
constexpr Exception kExceptions[] = {
    // SO_LINGER before a reset: without it the peer sees FIN in place of RST. Linux does not refuse it.
    {"time_outs", Call::setsockopt, 8},
};

/// One disturbance of one script.
struct Cell {
  std::string name;
  Fault fault;
  Policy policy = Policy::harmless;
};

/// What a clean run does, for comparison.
struct Clean {
  std::vector<std::string> outcome;
  std::vector<std::uint64_t> counts;  // per row of the matrix
  std::map<Call, std::uint64_t> sized;
  std::uint64_t calls = 0;
  std::uint64_t wakeups = 0;
  std::uint64_t closes = 0;

  // The calls that both runs make, and the work of the busier one.
  void keep_common(const Clean& other) {
    for (std::size_t i = 0; i < counts.size(); ++i)
      counts[i] = std::min(counts[i], other.counts[i]);
    for (auto& [call, count] : sized)
      count = std::min(count, other.sized.at(call));
    calls = std::max(calls, other.calls);
    wakeups = std::max(wakeups, other.wakeups);
  }
};

std::uint64_t non_waits(const FaultyKernel& kernel) {
  return kernel.calls() - kernel.calls(Call::epoll_wait) - kernel.calls(Call::poll);
}

std::string together(const std::vector<std::string>& lines) {
  std::string all;
  for (const std::string& line : lines)
    all += "  " + line + "\n";
  return all;
}

using Parameter = std::tuple<std::size_t, Backend>;

class EverySystemCall : public testing::TestWithParam<Parameter> {
 protected:
  void SetUp() override {
    const char* chosen = std::getenv("PENSTOCK_FAULT_CELL");
    if (chosen != nullptr) chosen_ = chosen;
    clean_ = run_clean();
    // On a busy machine the kernel may take a large send in more parts than it mostly does: a call
    // counts as made when each of several runs makes it.
    for (int i = 0; i < 2; ++i)
      clean_.keep_common(run_clean());
  }
  void TearDown() override { RecordProperty("cells", std::to_string(cells_)); }

  const Script& script() const { return scripts()[std::get<0>(GetParam())]; }
  Backend backend() const { return std::get<1>(GetParam()); }

  Clean run_clean() const;
  void try_cell(const Cell& cell);
  /// Answers whether the fault has happened.
  bool run(const Cell& cell) const;
  void check_policy(const Cell& cell, const Stage& stage, const std::vector<std::string>& outcome,
                    std::uint64_t closes) const;
  void expect_recovery(std::vector<std::string> outcome) const;
  static std::string repeat(const Cell& cell);

  Clean clean_;
  std::string chosen_;
  std::size_t cells_ = 0;
  std::size_t cells_after_failure_ = 0;
};

// A run that was left unable to remove its Unix socket must not disturb the next.
void remove_unix_path() { linux_kernel().unlink(unix_path().c_str()); }

bool unix_path_exists() {
  FileStatus status;
  return linux_kernel().file_status(AT_FDCWD, unix_path().c_str(), status) == 0;
}

Clean EverySystemCall::run_clean() const {
  remove_unix_path();
  const CapturedLog log;
  Clean clean;
  const std::size_t descriptors = World::open_descriptors();
  Stage stage(backend());
  constexpr std::uint64_t kNever = 1'000'000'000;
  std::vector<FaultyKernel::Rule> counting;
  for (const Row& row : matrix()) {
    counting.push_back(stage.kernel.inject(
        {.call = row.call, .operation = row.operation, .first = kNever, .error = EIO}));
  }
  std::map<Call, FaultyKernel::Rule> sized;
  for (const auto& [call, name] : kSizedCalls)
    sized[call] = stage.kernel.inject({.call = call, .first = kNever, .shorten_to = 1});
  script().play(stage);
  stage.kernel.heal();
  for (const FaultyKernel::Rule rule : counting)
    clean.counts.push_back(stage.kernel.matched(rule));
  for (const auto& [call, rule] : sized)
    clean.sized[call] = stage.kernel.matched(rule);
  clean.calls = non_waits(stage.kernel);
  clean.wakeups = stage.kernel.wakeups();
  clean.closes = stage.kernel.calls(Call::close);
  clean.outcome = stage.outcome();
  check_invariants(stage, descriptors);
  return clean;
}

std::string EverySystemCall::repeat(const Cell& cell) {
  const testing::TestInfo& info = *testing::UnitTest::GetInstance()->current_test_info();
  return "PENSTOCK_FAULT_CELL=" + cell.name +
         " penstock_faults_test --gtest_filter=" + info.test_suite_name() + "." + info.name();
}

void EverySystemCall::try_cell(const Cell& cell) {
  if (!chosen_.empty() && chosen_ != cell.name) return;
  // One that fails everywhere need not be printed thousands of times.
  if (testing::Test::HasFailure() && ++cells_after_failure_ > 20) return;
  SCOPED_TRACE(testing::Message() << script().name << " on " << backend_word(backend()) << ", "
                                  << cell.name << "\n  " << repeat(cell));
  ++cells_;
  // How the kernel's own threads take turns may take a call away from a run, but not from every one.
  constexpr int kTries = 5;
  for (int i = 0; i < kTries; ++i) {
    if (run(cell)) return;
  }
  ADD_FAILURE() << "the fault has never happened";
}

bool EverySystemCall::run(const Cell& cell) const {
  remove_unix_path();
  const CapturedLog log;
  const std::size_t descriptors = World::open_descriptors();
  Stage stage(backend());
  const FaultyKernel::Rule rule = stage.kernel.inject(cell.fault);
  script().play(stage);
  stage.kernel.heal();
  const std::uint64_t fired = stage.kernel.fired(rule);
  const std::uint64_t calls = non_waits(stage.kernel);
  const std::uint64_t wakeups = stage.kernel.wakeups();
  const std::uint64_t closes = stage.kernel.calls(Call::close);
  const std::vector<std::string> outcome = stage.outcome();

  SCOPED_TRACE("it came to\n" + together(outcome) + "instead of\n" + together(clean_.outcome));
  if (fired > 0) check_policy(cell, stage, outcome, closes);
  // Bounded work: what a disturbance costs besides, at most.
  constexpr std::uint64_t kForAll = 100;
  constexpr std::uint64_t kForEach = 6;
  EXPECT_LE(calls, clean_.calls + kForAll + kForEach * fired) << "system calls, without waits";
  EXPECT_LE(wakeups, clean_.wakeups + kForAll + kForEach * fired) << "wake-ups";
  check_invariants(stage, descriptors);
  // Nothing can be done where unlink() itself fails, or nobody says whose file it is.
  const bool may_stay =
      cell.fault.call == Call::unlink ||
      (cell.fault.call == Call::file_status && !cell.name.starts_with("file_status:1:"));
  EXPECT_FALSE(unix_path_exists() && !may_stay) << "the file of the Unix socket is left behind";
  return fired > 0;
}

// Where a client has tried again, all else is as if nothing had happened.
void EverySystemCall::expect_recovery(std::vector<std::string> outcome) const {
  const std::size_t attempts = std::erase_if(outcome, [](const std::string& line) {
    return line.starts_with("attempt: ") && line.ends_with(", again");
  });
  if (attempts == 0) return;
  // A server of ours may have seen the failed attempt.
  std::erase_if(outcome,
                [](const std::string& line) { return line.starts_with("server: 0 bytes, reset"); });
  EXPECT_EQ(outcome, clean_.outcome);
}

void EverySystemCall::check_policy(const Cell& cell, const Stage& stage,
                                   const std::vector<std::string>& outcome,
                                   std::uint64_t closes) const {
  const int error = cell.fault.error;
  switch (cell.policy) {
    case Policy::harmless:
      EXPECT_EQ(outcome, clean_.outcome);
      EXPECT_TRUE(stage.told.empty());
      // Never retried: the number may belong to somebody else by then.
      if (cell.fault.call == Call::close) {
        EXPECT_EQ(closes, clean_.closes);
      }
      break;
    case Policy::breaks: {
      const auto [reason, timeout] =
          error == ETIMEDOUT ? std::pair(CloseReason::timeout, TimeoutKind::unacknowledged)
                             : std::pair(CloseReason::reset, TimeoutKind::none);
      // Where both ends are ours, the other one breaks too, and truly.
      const bool both_ours = script().name == "unix_request_reply";
      EXPECT_TRUE(stage.was_told(error)) << "nobody was told";
      EXPECT_TRUE(both_ours || stage.told.size() == 1) << "told more than once";
      for (const std::unique_ptr<Life>& life : stage.lives) {
        if (!life->report || !life->report->error) continue;
        if (life->report->error != system_error(error)) {
          EXPECT_TRUE(both_ours && (life->report->error == system_error(ECONNRESET) ||
                                    life->report->error == system_error(EPIPE)));
          continue;
        }
        EXPECT_EQ(life->report->reason, reason);
        EXPECT_EQ(life->report->timeout, timeout);
      }
      break;
    }
    case Policy::told:
      EXPECT_TRUE(stage.was_told(error)) << "nobody was told";
      EXPECT_LE(std::ranges::count(stage.told, system_error(error)), 1) << "told twice";
      expect_recovery(outcome);
      break;
    case Policy::told_or_harmless:
      EXPECT_TRUE(outcome == clean_.outcome || stage.was_told(error)) << "nobody was told";
      break;
    case Policy::refuses:
      EXPECT_TRUE(outcome == clean_.outcome || stage.statistics().refused_for_descriptors > 0);
      break;
    case Policy::contained:
      break;
  }
}

std::string every(std::uint64_t k) { return "every" + std::to_string(k); }

TEST_P(EverySystemCall, MakesWhatTheScriptPromisesWhenNothingFails) {
  EXPECT_EQ(clean_.outcome, script().outcome) << together(clean_.outcome);
}

// The matrix must know every call that is made.
TEST_P(EverySystemCall, IsInTheMatrix) {
  const CapturedLog log;
  Stage stage(backend());
  script().play(stage);
  for (std::size_t i = 1; i < kCallKinds; ++i) {
    if (stage.kernel.calls(Call{i}) == 0) continue;
    EXPECT_NE(std::ranges::find(matrix(), Call{i}, &Row::call), matrix().end())
        << "no row for call " << i;
  }
}

TEST_P(EverySystemCall, MayFailOnce) {
  for (std::size_t row = 0; row < matrix().size(); ++row) {
    const Row& its = matrix()[row];
    for (std::uint64_t k = 1; k <= clean_.counts[row]; ++k) {
      const bool excepted = std::ranges::any_of(kExceptions, [&](const Exception& exception) {
        return exception.script == script().name && exception.call == its.call &&
               k >= exception.first;
      });
      for (const int error : its.errors) {
        try_cell(
            {.name = std::string(its.name) + ":" + std::to_string(k) + ":" + error_word(error),
             .fault = {.call = its.call, .operation = its.operation, .first = k, .error = error},
             .policy = excepted ? Policy::contained : its.policy});
      }
    }
  }
}

TEST_P(EverySystemCall, MayFailAgainAndAgain) {
  for (std::size_t row = 0; row < matrix().size(); ++row) {
    const Row& its = matrix()[row];
    const Policy policy = its.policy == Policy::harmless ? Policy::harmless : Policy::contained;
    for (const std::uint64_t k : {2u, 3u, 5u}) {
      if (clean_.counts[row] < k) continue;
      for (const int error : its.errors) {
        try_cell(
            {.name = std::string(its.name) + ":" + every(k) + ":" + error_word(error),
             .fault = {.call = its.call, .operation = its.operation, .every = k, .error = error},
             .policy = policy});
      }
    }
  }
}

TEST_P(EverySystemCall, MayFallShort) {
  constexpr std::uint64_t kTimes = 3'000;  // of millions of bytes
  for (const auto& [call, name] : kSizedCalls) {
    for (const std::uint64_t k : {1u, 2u, 3u, 5u}) {
      if (clean_.sized.at(call) < k) continue;
      try_cell({.name = std::string(name) + ":" + every(k) + ":short",
                .fault = {.call = call, .every = k, .times = kTimes, .shorten_to = 1},
                .policy = Policy::harmless});
    }
  }
}

std::string test_name(const testing::TestParamInfo<Parameter>& info) {
  const auto& [script, backend] = info.param;
  return std::string(scripts()[script].name) + "_on_" + backend_word(backend);
}

INSTANTIATE_TEST_SUITE_P(Scripts, EverySystemCall,
                         testing::Combine(testing::Range(std::size_t{0}, scripts().size()),
                                          testing::ValuesIn(kBackends)),
                         test_name);

}  // namespace
}  // namespace penstock::test

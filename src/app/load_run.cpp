#include "app/load_run.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "app/command.h"
#include "app/load_report.h"

namespace penstock::app {
namespace {

// So many at a time do not overflow a server's backlog, which would cost each a second.
constexpr std::size_t kAttemptsMax = 256;
// How often --drain may pass while something still comes.
constexpr int kDrainsMax = 4;
// How finely a slow reader's pace is kept.
constexpr Duration kTick = std::chrono::milliseconds(10);
constexpr Duration kProgressPeriod = std::chrono::seconds(1);
// Before a lost connection is made anew: the first, doubled with each further loss in a row.
constexpr Duration kLossDelayMin = std::chrono::milliseconds(10);
constexpr std::size_t kLossDoublingsMax = 7;  // to 1.28 s
// Wrong bytes that are told as they come.
constexpr std::uint64_t kWrongToldMax = LoadErrors::kExamplesMax;

}  // namespace

LoadRun::LoadRun(const LoadOptions& options)
    : options_(options),
      loop_({.backend = options.backend}),
      context_{.loop = loop_, .options = options_, .pattern = pattern_, .statistics = statistics_} {
}

int LoadRun::run() {
  Result<void> done = prepare();
  if (done) done = loop_.run();
  if (!done) {
    print_error(fmt::format("the load could not start: {}", done.error().message()));
    return kFailure;
  }
  clear_progress();
  return report();
}

Result<void> LoadRun::prepare() {
  if (loop_.error()) return std::unexpected(loop_.error());
  for (const int number : {SIGINT, SIGTERM}) {
    const Result<void> set = loop_.on_signal(number, [this](int) { on_signal(); });
    if (!set) return set;
  }
  LoadOwner& owner = *this;
  connections_.reserve(options_.connections);
  for (std::size_t i = 0; i < options_.connections; ++i)
    connections_.push_back(std::make_unique<LoadConnection>(context_, owner));
  unretired_ = connections_.size();
  loop_.queue_in_loop([this] { start_one(*connections_.front()); });
  return {};
}

// The first connection is up: there is a server.
void LoadRun::begin() {
  phase_ = Phase::running;
  began_ = shown_at_ = loop_.read_clock();
  const auto length =
      std::chrono::duration_cast<Duration>(std::chrono::duration<double>(options_.seconds));
  loop_.run_at(add_clamped(began_, length), [this] { stop_sending(); });
  loop_.run_every(options_.slow_reader > 0 ? kTick : kProgressPeriod, [this] {
    const TimePoint now = loop_.read_clock();
    for (const auto& connection : connections_)
      connection->on_tick(now);
  });
  if (!options_.json && isatty(STDOUT_FILENO) == 1) {
    loop_.run_every(kProgressPeriod, [this] { show_progress(); });
  }
  for (std::size_t i = 1; i < connections_.size(); ++i)
    start_soon(*connections_[i]);
}

// -- Making connections ---------------------------------------------------------------------------

void LoadRun::start_soon(LoadConnection& connection) {
  waiting_.push_back(&connection);
  schedule_starts();
}

void LoadRun::start_later(LoadConnection& connection) {
  const std::size_t doublings = std::min(connection.failures - 1, kLossDoublingsMax);
  loop_.run_after(kLossDelayMin * (1 << doublings), [this, &connection] {
    if (phase_ == Phase::running) start_soon(connection);
  });
}

// In a later turn: a client that has just ended is not ready yet.
void LoadRun::schedule_starts() {
  if (starts_scheduled_ || waiting_.empty() || attempts_ >= kAttemptsMax) return;
  starts_scheduled_ = true;
  loop_.queue_in_loop([this] { start_waiting(); });
}

void LoadRun::start_waiting() {
  starts_scheduled_ = false;
  while (phase_ == Phase::running && !waiting_.empty() && attempts_ < kAttemptsMax) {
    LoadConnection& connection = *waiting_.front();
    waiting_.pop_front();
    start_one(connection);
  }
}

void LoadRun::start_one(LoadConnection& connection) {
  if (phase_ == Phase::over) return;
  ++attempts_;
  if (const Result<void> started = connection.start(); !started) {
    attempt_failed(connection, {.error = started.error()});
  }
}

void LoadRun::connection_up(LoadConnection&) {
  --attempts_;
  if (phase_ == Phase::opening) begin();
  schedule_starts();
}

void LoadRun::attempt_failed(LoadConnection& connection, const ConnectFailure& failure) {
  if (phase_ == Phase::over) return;
  statistics_.errors.count_connect_failure(failure.error);
  if (phase_ == Phase::opening) {
    no_connection_ = failure.error;
    end();
  } else if (!failure.retry_in) {
    --attempts_;
    retire(connection);
    schedule_starts();
  }
}

void LoadRun::connection_down(LoadConnection& connection, LoadEnding ending) {
  if (phase_ == Phase::over) return;
  if (phase_ == Phase::draining || ending == LoadEnding::wrong || !has_rounds_left(connection)) {
    retire(connection);
  } else if (ending == LoadEnding::lost) {
    start_later(connection);
  } else {
    start_soon(connection);
  }
}

bool LoadRun::has_rounds_left(const LoadConnection& connection) const noexcept {
  return options_.rounds == 0 || connection.messages < options_.rounds;
}

void LoadRun::wrong_byte_found(const WrongByte& byte) {
  if (statistics_.errors.wrong > kWrongToldMax) return;
  clear_progress();
  print_error("wrong byte: " + describe(byte));
}

// -- The end --------------------------------------------------------------------------------------

void LoadRun::retire(LoadConnection& connection) {
  if (connection.retired) return;
  connection.retired = true;
  if (--unretired_ == 0) end();
}

void LoadRun::on_signal() {
  if (interrupted_) {
    ended_at_once_ = true;
    end();
  } else {
    interrupted_ = true;
    if (phase_ == Phase::opening) {
      end();
    } else {
      stop_sending();
    }
  }
}

void LoadRun::stop_sending() {
  if (phase_ != Phase::running) return;
  note_elapsed();
  phase_ = Phase::draining;
  context_.sending = false;
  waiting_.clear();
  for (const auto& connection : connections_) {
    if (!connection->retired && !connection->stop_sending()) retire(*connection);
  }
  drain_ends_ = add_clamped(loop_.read_clock(), options_.drain * kDrainsMax);
  wait_for_owed();
}

// Many connections may be owed much: as long as bytes come, there is something to wait for.
void LoadRun::wait_for_owed() {
  drained_bytes_ = statistics_.total.bytes;
  loop_.run_after(options_.drain, [this] {
    if (phase_ != Phase::draining) return;
    if (statistics_.total.bytes != drained_bytes_ && loop_.read_clock() < drain_ends_) {
      wait_for_owed();
      return;
    }
    for (const auto& connection : connections_)
      connection->give_up();
    end();
  });
}

void LoadRun::note_elapsed() {
  statistics_.elapsed = loop_.read_clock() - began_;
  statistics_.in_time = statistics_.total;
}

void LoadRun::end() {
  if (phase_ == Phase::over) return;
  if (phase_ == Phase::running) note_elapsed();
  phase_ = Phase::over;
  for (const auto& connection : connections_)
    connection->abort();
  loop_.stop();
}

// -- What is said ---------------------------------------------------------------------------------

void LoadRun::show_progress() {
  if (phase_ != Phase::running) return;
  const TimePoint now = loop_.read_clock();
  const std::string line = progress_line(shown_, statistics_, now - shown_at_, now - began_);
  shown_ = statistics_.total;
  shown_at_ = now;
  fmt::print("\r{:<79}", line);
  std::fflush(stdout);
  progress_shown_ = true;
}

void LoadRun::clear_progress() {
  if (!progress_shown_) return;
  progress_shown_ = false;
  fmt::print("\r{:79}\r", "");
  std::fflush(stdout);
}

int LoadRun::report() {
  if (ended_at_once_) return kInterrupted;
  if (no_connection_) {
    print_error(
        describe_no_connection(options_.to, *no_connection_, LoadConnection::kConnectTimeout));
  } else if (statistics_.total.connections == 0) {
    print_error(fmt::format("interrupted before {} had answered; run it again", options_.to));
  }
  const LoadOutcome outcome{.backend = loop_.backend_name(), .interrupted = interrupted_};
  if (options_.json) {
    fmt::print("{}", json_report(options_, statistics_, outcome));
  } else if (statistics_.total.connections > 0) {
    fmt::print("{}", text_report(options_, statistics_, outcome));
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    print_error("the report could not be written to standard output");
    return kFailure;
  }
  return statistics_.succeeded() ? kSuccess : kFailure;
}

}  // namespace penstock::app

// A load from its first connection to its report: makes the connections, keeps time, hears signals.
// Owned by the command. One thread, one loop.
//
//   opening   one connection is tried alone: without a server, that is all that happens
//   running   all the others are made, at most 256 at a time; what ends is made anew
//   draining  nothing is sent; what is owed is waited for, as long as some of it comes, but not for
//             ever
//   over
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <system_error>
#include <vector>

#include "app/load_connection.h"
#include "app/load_options.h"
#include "app/load_pattern.h"
#include "app/load_statistics.h"
#include "penstock/loop/event_loop.h"

namespace penstock::app {

class LoadRun final : private LoadOwner {
 public:
  /// The options are without contradiction.
  explicit LoadRun(const LoadOptions& options);

  /// Runs to the end, prints the report, and answers the exit code.
  int run();

 private:
  enum class Phase : std::uint8_t { opening, running, draining, over };

  // LoadOwner
  void connection_up(LoadConnection& connection) override;
  void connection_down(LoadConnection& connection, LoadEnding ending) override;
  void attempt_failed(LoadConnection& connection, const ConnectFailure& failure) override;
  void wrong_byte_found(const WrongByte& byte) override;

  Result<void> prepare();
  void begin();
  void start_soon(LoadConnection& connection);
  void start_later(LoadConnection& connection);
  void schedule_starts();
  void start_waiting();
  void start_one(LoadConnection& connection);
  void retire(LoadConnection& connection);
  bool has_rounds_left(const LoadConnection& connection) const noexcept;
  void on_signal();
  void stop_sending();
  void wait_for_owed();
  void note_elapsed();
  void end();
  void show_progress();
  void clear_progress();
  int report();

  const LoadOptions options_;
  const LoadPattern pattern_;
  LoadStatistics statistics_;
  EventLoop loop_;
  LoadContext context_;
  Phase phase_ = Phase::opening;
  TimePoint began_{};
  std::size_t unretired_ = 0;
  std::deque<LoadConnection*> waiting_;  // to be started
  std::size_t attempts_ = 0;             // started, and neither up nor given up
  bool starts_scheduled_ = false;
  bool interrupted_ = false;
  bool ended_at_once_ = false;
  std::optional<std::error_code> no_connection_;  // why not even the first could be made
  TimePoint drain_ends_{};
  std::uint64_t drained_bytes_ = 0;  // back at the last look while draining
  LoadCounts shown_{};               // at the last line of progress
  TimePoint shown_at_{};
  bool progress_shown_ = false;
  std::vector<std::unique_ptr<LoadConnection>> connections_;  // last: they need all the rest
};

}  // namespace penstock::app

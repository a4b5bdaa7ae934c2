// What `penstock load` prints, as text. Functions of their arguments.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>

#include "app/load_options.h"
#include "app/load_statistics.h"
#include "penstock/base/clock.h"

namespace penstock::app {

/// How a run went.
struct LoadOutcome {
  std::string_view backend{};
  bool interrupted = false;  ///< A signal ended it before its time.
};

/// The report for people: several lines, each with its end.
std::string text_report(const LoadOptions& options, const LoadStatistics& statistics,
                        const LoadOutcome& outcome);
/// The same and more as one JSON object on one line, with its end.
std::string json_report(const LoadOptions& options, const LoadStatistics& statistics,
                        const LoadOutcome& outcome);
/// What happened between two looks, `passed` apart; without an end of line.
std::string progress_line(const LoadCounts& before, const LoadStatistics& now, Duration passed,
                          Duration since_start);

/// One sentence about one finding.
std::string describe(const WrongByte& byte);
std::string describe(const Truncation& truncation);
/// Why not even one connection could be made, and what to do.
std::string describe_no_connection(const std::string& to, std::error_code error,
                                   Duration connect_timeout);

/// "12.3 us", "4.56 ms", "7.89 s".
std::string format_duration(Duration duration);
/// "1,234,567".
std::string format_count(std::uint64_t count);

}  // namespace penstock::app

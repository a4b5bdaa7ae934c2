// Runs a small program of several threads in all its executions, or in many. A program is a
// rl::test_suite: before(), thread(index) for each, after(); RL_ASSERT says what must hold.
#pragma once

#include <sstream>
#include <string>

#include "model/model_std.h"

namespace penstock::test {

/// How thoroughly.
struct Search {
  /// sched_full: every execution. sched_bound: every one with at most `switches` switches of threads
  /// that could have gone on. sched_random: so many.
  rl::scheduler_type_e kind = rl::sched_full;
  unsigned switches = 2;
  rl::iteration_t executions = 100'000'000;
};

/// "SUCCESS", or what has happened ("DEADLOCK", "DATA RACE", …) and the execution that led to it.
template <class Program>
std::string search(Search how = {}) {
  rl::ostringstream said;  // allocates beside what is checked
  rl::test_params params;
  params.search_type = how.kind;
  params.context_bound = how.switches;
  params.iteration_count = how.executions;
  params.output_stream = &said;
  params.progress_stream = &said;
  rl::simulate<Program>(params);
  const std::string result = rl::test_result_str(params.test_result);
  if (params.test_result == rl::test_result_success) return result;
  return result + "\n" + std::string(said.view());
}

/// Weakens the memory orders in its scope.
class WeakenedScope {
 public:
  explicit WeakenedScope(Weakening how) noexcept { weakening = how; }
  WeakenedScope(const WeakenedScope&) = delete;
  WeakenedScope& operator=(const WeakenedScope&) = delete;
  ~WeakenedScope() { weakening = Weakening::none; }
};

/// What Relacy prints in place of a source line.
inline rl::debug_info step(const char* name) { return {name}; }

}  // namespace penstock::test

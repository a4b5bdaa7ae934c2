// The reference scripts: short lives of servers and clients that the fault tests disturb call by call. Each goes on as far as it
// can, whatever fails, and ends with all its connections closed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "faults/stage.h"

namespace penstock::test {

struct Script {
  std::string_view name;
  void (*play)(Stage& stage);
  std::vector<std::string> outcome;  ///< Of an undisturbed run.
};

/// In a fixed order; alive as long as the program.
const std::vector<Script>& scripts();
const Script& script_of(std::string_view name);

/// Where the Unix script listens.
std::string unix_path();

}  // namespace penstock::test

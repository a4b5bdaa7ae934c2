// What the subcommands of `penstock` share: how each joins the command line, and the exit codes.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <string>

#include "penstock/base/clock.h"
#include "penstock/io/io_backend.h"

namespace penstock::app {

/// Exit codes of every subcommand; printed by --help.
enum ExitCode : int {
  kSuccess = 0,
  kFailure = 1,       ///< It could not do its work: port taken or forbidden, wrong bytes.
  kUsage = 2,         ///< The command line, or PENSTOCK_BACKEND, asks for something that cannot be.
  kInterrupted = 130  ///< A second SIGINT or SIGTERM ended it at once.
};

inline constexpr const char* kExitCodes =
    "Exit codes: 0 done; 1 it could not be done; 2 wrong usage; 130 ended at once by a second "
    "signal.";

/// A subcommand that was chosen: runs it and answers the exit code.
using Action = std::function<int()>;

/// Each adds its subcommand to `app` and stores what to do in `action` if it is chosen.
void add_echo(CLI::App& app, Action& action);
void add_load(CLI::App& app, Action& action);
void add_trace(CLI::App& app, Action& action);

// -- Options with units. The text is checked when the command line is read. --

CLI::Option* add_bytes(CLI::App& app, const std::string& name, std::size_t& value,
                       const std::string& description);
CLI::Option* add_duration(CLI::App& app, const std::string& name, Duration& value,
                          const std::string& description);
CLI::Option* add_backend(CLI::App& app, Backend& value);

/// One line on standard error: "penstock: MESSAGE".
void print_error(const std::string& message);

/// Checks PENSTOCK_BACKEND where `backend` leaves the choice to it. False: it names no back-end,
/// and that has been said.
bool check_backend(Backend backend);

}  // namespace penstock::app

// The `penstock` command: reads the command line and runs the subcommand that was chosen.

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <exception>
#include <string>

#include "app/command.h"
#include "penstock/base/log.h"
#include "penstock/os/kernel.h"

namespace {

using namespace penstock;

void log_to_spdlog(LogLevel level, std::string_view line) noexcept {
  switch (level) {
    case LogLevel::trace:
      spdlog::trace("{}", line);
      break;
    case LogLevel::debug:
      spdlog::debug("{}", line);
      break;
    case LogLevel::info:
      spdlog::info("{}", line);
      break;
    case LogLevel::warning:
      spdlog::warn("{}", line);
      break;
    case LogLevel::error:
      spdlog::error("{}", line);
      break;
    case LogLevel::off:
      break;
  }
}

void set_up_log(LogLevel level) {
  spdlog::set_default_logger(spdlog::stderr_logger_mt("penstock"));
  spdlog::set_pattern("penstock: %l: %v");
  spdlog::set_level(spdlog::level::trace);  // Penstock's own level decides
  set_log_sink(&log_to_spdlog);
  set_log_level(level);
}

// The parser's own words, but for an unknown command, which it does not name.
std::string explain(const CLI::App& app, const CLI::ParseError& error, int argument_count,
                    char** arguments) {
  if (argument_count < 2) return "name a command: echo, load or trace";
  if (arguments[1][0] == '-' || !app.get_subcommands().empty()) return error.what();
  return fmt::format("'{}' is no command; the commands are echo, load and trace", arguments[1]);
}

// Output to a pipe that nobody reads any more must not end a server that serves.
void ignore_broken_pipes() {
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  linux_kernel().signal_mask(SIG_BLOCK, &pipe, nullptr);
}

int run(int argument_count, char** arguments) {
  CLI::App app(
      "TCP servers and tools built on Penstock: a send never blocks, never loses a byte, "
      "and never grows without bound.",
      "penstock");
  app.set_version_flag("--version", "penstock " PENSTOCK_VERSION);
  app.footer(app::kExitCodes);
  app.require_subcommand(1);
  app.fallthrough();
  LogLevel level = LogLevel::warning;
  app.add_option_function<std::string>(
         "--log-level",
         [&level](const std::string& name) {
           for (const LogLevel each : {LogLevel::trace, LogLevel::debug, LogLevel::info,
                                       LogLevel::warning, LogLevel::error, LogLevel::off}) {
             if (name == to_string(each)) {
               level = each;
               return;
             }
           }
           throw CLI::ValidationError(
               "--log-level",
               "'" + name +
                   "' is no level; the levels are trace, debug, info, warning, error, off");
         },
         "How much to say on standard error: trace, debug, info, warning, error, off")
      ->type_name("LEVEL")
      ->default_str("warning");

  app::Action action;
  app::add_echo(app, action);
  app::add_load(app, action);
  app::add_trace(app, action);
  for (CLI::App* subcommand : app.get_subcommands([](CLI::App*) { return true; })) {
    subcommand->set_version_flag("--version", "penstock " PENSTOCK_VERSION);
    if (subcommand->get_footer().empty()) subcommand->footer(app::kExitCodes);
  }

  try {
    app.parse(argument_count, arguments);
  } catch (const CLI::Success& asked) {  // --help, --version
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    app::print_error(explain(app, error, argument_count, arguments) + " (see penstock --help)");
    return app::kUsage;
  }
  set_up_log(level);
  ignore_broken_pipes();
  return action();
}

}  // namespace

int main(int argument_count, char** arguments) {
  try {
    return run(argument_count, arguments);
  } catch (const std::exception& exception) {
    penstock::app::print_error(std::string("unexpected failure: ") + exception.what());
    return penstock::app::kFailure;
  }
}

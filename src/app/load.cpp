// penstock load: a load generator for echo servers, which verifies every byte that comes back.

#include <memory>
#include <string>

#include "app/command.h"
#include "app/load_options.h"
#include "app/load_run.h"
#include "penstock/os/kernel.h"

namespace penstock::app {
namespace {

constexpr const char* kDescription = "Put load on an echo server and verify every byte it returns";

constexpr const char* kFooter =
    "Every connection keeps DEPTH messages of SIZE bytes under way. What comes back is compared\n"
    "with what was sent; the bytes follow from their position, so one lost, repeated or swapped\n"
    "shows as a wrong one. A message's latency is the time from its first byte's send until its\n"
    "last byte is back, read from the clock. Rates count what happened until sending stopped;\n"
    "then what is owed is waited for (--drain).\n"
    "\n"
    "--churn ends each connection with a reset once its echo is verified: nothing is under way "
    "any\n"
    "more, and an end by FIN would leave the local port in TIME_WAIT for a minute, so that the\n"
    "~28,000 ports of this machine would soon be the limit. --orderly does end by FIN and waits "
    "for\n"
    "the server's; when ports run out, attempts wait and are counted as failed.\n"
    "\n"
    "SIGINT or SIGTERM ends the load early, in order and with its report; a second one at once.\n"
    "\n"
    "Exit codes: 0 all that was sent came back; 1 something did not (a wrong byte, a truncated\n"
    "stream, a reset, a time-out, bytes missing at the end), or no connection could be made; 2\n"
    "wrong usage; 130 ended at once by a second signal. Failed attempts to connect, once a first\n"
    "connection has been made, are tried again, counted and reported, but are no failure: nothing\n"
    "that was sent is lost.";

int run_load(const LoadOptions& options) {
  if (!check_backend(options.backend)) return kUsage;
  Kernel& kernel = linux_kernel();
  const std::size_t limit = kernel.descriptor_limit();
  const std::size_t open = kernel.open_descriptors();
  const LoadMeans means{.descriptors = limit > open ? limit - open : 0,
                        .memory = kernel.memory_limit()};
  if (const std::string contradiction = find_contradiction(options, means);
      !contradiction.empty()) {
    print_error(contradiction);
    return kUsage;
  }
  return LoadRun(options).run();
}

}  // namespace

void add_load(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("load", kDescription);
  command->footer(kFooter);
  auto options = std::make_shared<LoadOptions>();
  command->add_option("--to", options->to, "The echo server")
      ->type_name("HOST:PORT|unix:PATH")
      ->required();
  command->add_option("--connections", options->connections, "Connections at a time")
      ->type_name("N")
      ->capture_default_str();
  const CLI::Option* size = add_bytes(*command, "--size", options->size,
                                      "Bytes of a message; with --half-close 8MiB if not given");
  command->add_option("--depth", options->depth, "Messages under way on each connection")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--seconds", options->seconds, "How long to send; 0.5 is half a second")
      ->type_name("S")
      ->capture_default_str();
  command->add_flag("--churn", options->churn,
                    "A new connection for each message; connections/s is the figure");
  command->add_flag("--orderly", options->orderly, "With --churn: end by FIN, not by a reset");
  command->add_flag("--half-close", options->half_close,
                    "Each connection sends one message and FIN, and must get all of it back and "
                    "then the end; then it is made anew");
  command
      ->add_option("--rounds", options->rounds,
                   "With --churn or --half-close: the load ends when each connection has got so "
                   "many messages back; 0: when the time is over")
      ->type_name("N")
      ->capture_default_str();
  CLI::Option* slow_reader = add_bytes(*command, "--slow-reader", options->slow_reader,
                                       "Each connection reads at most so many bytes a second");
  slow_reader->default_str("as fast as they come");
  add_duration(*command, "--timeout", options->timeout,
               "Give up a connection on which nothing has moved for so long; 0: never");
  add_duration(*command, "--drain", options->drain,
               "At the end, wait for what is owed until nothing has come for so long, in all four "
               "times as long");
  add_backend(*command, options->backend);
  command->add_flag("--json", options->json,
                    "Print the report as one JSON object, and nothing else");
  command->callback([options, size, slow_reader, &action] {
    if (options->half_close && size->count() == 0) options->size = LoadOptions::kHalfCloseSize;
    options->slow_reader_given = slow_reader->count() > 0;
    action = [options] { return run_load(*options); };
  });
}

}  // namespace penstock::app

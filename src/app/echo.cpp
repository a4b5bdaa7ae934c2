// penstock echo: answers every byte. Bounded: a client that does not read is not read either.

#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "app/command.h"
#include "app/units.h"
#include "penstock/penstock.h"

namespace penstock::app {
namespace {

int run_echo(TcpServerOptions options) {
  if (!check_backend(options.backend)) return kUsage;
  const std::string listen = options.listen;
  const std::size_t wanted = options.max_connections;

  TcpServer server(std::move(options));
  server.on_message([](TcpConnection& peer, InputBuffer& in) { peer.send(in.take()); });
  if (const Result<void> started = server.start(); !started) {
    const std::error_code error = started.error();
    if (error == make_error_code(Errc::too_many_connections)) {
      print_error(fmt::format("--max-connections {}: {} (it is {} here)", wanted, error.message(),
                              server.loop().kernel().descriptor_limit()));
      return kUsage;
    }
    print_error(describe_listen_error(listen, error));
    const bool usage = error == make_error_code(Errc::bad_address) ||
                       error == make_error_code(Errc::needs_resolver);
    return usage ? kUsage : kFailure;
  }
  server.on_listening([&server] {
    fmt::print("listening on {} (backend {})\n", server.address().to_string(),
               server.loop().backend_name());
    std::fflush(stdout);
  });
  const int code = server.run();
  const ServerStatistics statistics = server.statistics();
  fmt::print(
      "served {} connections, refused {}, received {} bytes, sent {} bytes, reset {} at the stop\n",
      statistics.accepted, statistics.refused_for_descriptors, statistics.bytes_received,
      statistics.bytes_sent, statistics.aborted_at_stop);
  std::fflush(stdout);
  return code;
}

}  // namespace

void add_echo(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("echo", "Answer every byte a client sends");
  auto options = std::make_shared<TcpServerOptions>();
  options->listen = "127.0.0.1:7000";
  command->add_option("--listen", options->listen, "Where to listen; port 0 takes any free one")
      ->type_name("HOST:PORT|unix:PATH|fd:N")
      ->capture_default_str();
  command->add_flag("--ipv6-only", options->ipv6_only, "On [::], leave IPv4 alone");
  command
      ->add_option("--loops", options->loops,
                   "Threads that serve connections; 0: one thread accepts and serves")
      ->type_name("N")
      ->check(CLI::Range(std::size_t{0}, std::size_t{256}))
      ->capture_default_str();
  add_backend(*command, options->backend);
  add_bytes(
      *command, "--high-water", options->limits.high_water,
      "Output queued for a client above which it is not read; reading goes on at a quarter of it");
  command
      ->add_option(
          "--max-connections", options->max_connections,
          "Clients at a time, more wait in the backlog; 0: nine tenths of the free descriptors")
      ->type_name("N")
      ->capture_default_str();
  add_duration(*command, "--idle-timeout", options->limits.idle_timeout,
               "Close a client that neither sends nor reads for so long; 0: never");
  add_duration(*command, "--stop-deadline", options->stop_deadline,
               "After SIGINT or SIGTERM, reset what has not ended by then");
  command->callback([options, &action] {
    action = [options] {
      options->limits.low_water = options->limits.high_water / 4;
      return run_echo(std::move(*options));
    };
  });
}

}  // namespace penstock::app

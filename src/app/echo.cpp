// penstock echo: answers every byte. Bounded: a client that does not read is not read either.

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

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
  const std::uint64_t refused_after_accept =
      statistics.refused_for_source + statistics.refused_at_start + statistics.refused_at_stop;
  fmt::print(
      "served {} connections, refused {}, received {} bytes, sent {} bytes, reset {} at the stop\n",
      statistics.accepted - refused_after_accept,
      statistics.refused_for_descriptors + refused_after_accept, statistics.bytes_received,
      statistics.bytes_sent, statistics.aborted_at_stop);
  std::fflush(stdout);
  return code;
}

using NamedBalance = std::pair<std::string_view, Balance>;

constexpr NamedBalance kBalances[] = {
    {"least-connections", Balance::least_connections},
    {"round-robin", Balance::round_robin},
    {"peer-hash", Balance::peer_hash},
};

void add_balance(CLI::App& command, Balance& value) {
  command
      .add_option_function<std::string>(
          "--balance",
          [&value](const std::string& text) {
            const auto* found = std::ranges::find(kBalances, text, &NamedBalance::first);
            if (found == std::ranges::end(kBalances)) {
              throw CLI::ValidationError(
                  "--balance",
                  fmt::format("'{}' is not one of least-connections, round-robin, peer-hash",
                              text));
            }
            value = found->second;
          },
          "Which of the --loops gets a client: least-connections, round-robin, peer-hash (all "
          "clients of a source the same one)")
      ->type_name("NAME")
      ->default_str("least-connections");
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
  command
      ->add_option(
          "--connections-per-source", options->connections_per_source_max,
          "Clients at a time from one IPv4 address or IPv6 /64, not counting the loopback; "
          "one more is reset; 0: no such limit")
      ->type_name("N")
      ->check(CLI::Range(std::size_t{0}, std::size_t{1'000'000'000}))
      ->capture_default_str();
  command
      ->add_option("--accept-rate", options->accepts_per_second_max,
                   "Clients accepted per second, more wait in the backlog; 0: as they come")
      ->type_name("N")
      ->check(CLI::Range(std::size_t{0}, std::size_t{1'000'000'000}))
      ->capture_default_str();
  add_balance(*command, options->balance);
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

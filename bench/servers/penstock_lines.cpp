// A line echo that strangers may talk to: a line comes back as it is, and "*N" is answered with a line of N bytes. Its limits
// come from the command line, for bench/slowloris.py.

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>

#include "penstock/penstock.h"

namespace {

using namespace penstock;

constexpr std::size_t kLineMax = 1024;
constexpr std::size_t kAnswerMax = std::size_t{16} * 1024 * 1024;

/// Reads lines; says how long one may be, and so that there are messages to wait for.
struct Lines {
  std::size_t message_max() const { return kLineMax; }

  void operator()(TcpConnection& peer, InputBuffer& in) const {
    while (const auto end = in.find('\n')) {
      if (*end >= kLineMax) return peer.close_with_protocol_error();
      const std::string_view line = in.text().substr(0, *end);
      if (!line.starts_with('*')) {
        peer.send(in.take(*end + 1));
        continue;
      }
      std::size_t size = 0;
      const auto [stop, error] = std::from_chars(line.data() + 1, line.data() + line.size(), size);
      if (error != std::errc{} || stop != line.data() + line.size() || size > kAnswerMax) {
        return peer.close_with_protocol_error();
      }
      in.consume(*end + 1);
      // A copy for each: memory that is shared would make the attack cheaper to bear than it is.
      std::string answer(size + 1, '*');
      answer.back() = '\n';
      peer.send(std::move(answer));
    }
    if (in.size() >= kLineMax) peer.close_with_protocol_error();
  }
};

int usage(const std::map<std::string_view, std::uint64_t>& numbers) {
  std::fprintf(stderr, "usage: penstock_lines [--listen HOST:PORT] [--backend NAME]");
  for (const auto& [name, value] : numbers)
    std::fprintf(stderr, " [%s N=%llu]", std::string(name).c_str(),
                 static_cast<unsigned long long>(value));
  std::fprintf(stderr, "\n");
  return 2;
}

}  // namespace

int main(int argument_count, char** arguments) {
  TcpServerOptions options;
  // Milliseconds, bytes, bytes per second; 0 is no limit, but for the memory (0: half of it).
  std::map<std::string_view, std::uint64_t> numbers = {
      {"--first-message-timeout", 10'000},
      {"--message-timeout", 30'000},
      {"--message-rate-min", 240},
      {"--message-rate-grace", 5'000},
      {"--write-stall-timeout", 30'000},
      {"--output-max", std::size_t{16} * 1024 * 1024},
      {"--memory-max", 0},
  };
  for (int i = 1; i < argument_count; i += 2) {
    const std::string_view name(arguments[i]);
    if (i + 1 == argument_count) return usage(numbers);
    const std::string_view value(arguments[i + 1]);
    const auto number = numbers.find(name);
    if (name == "--listen") {
      options.listen = value;
    } else if (const Result<Backend> backend = parse_backend(value);
               name == "--backend" && backend) {
      options.backend = *backend;
    } else if (number == numbers.end() ||
               std::from_chars(value.data(), value.data() + value.size(), number->second).ec !=
                   std::errc{}) {
      return usage(numbers);
    }
  }
  const auto time_of = [&](std::string_view name) -> Duration {
    return std::chrono::milliseconds(numbers.at(name));
  };
  options.memory_max = numbers.at("--memory-max");
  options.limits.output_max = numbers.at("--output-max");
  options.limits.first_message_timeout = time_of("--first-message-timeout");
  options.limits.message_timeout = time_of("--message-timeout");
  options.limits.message_rate_min = numbers.at("--message-rate-min");
  options.limits.message_rate_grace = time_of("--message-rate-grace");
  options.limits.write_stall_timeout = time_of("--write-stall-timeout");
  TcpServer server(std::move(options));
  server.on_message(Lines());
  server.on_listening([&server] {
    std::printf("listening on %s (backend %s)\n", server.address().to_string().c_str(),
                std::string(server.loop().backend_name()).c_str());
    std::fflush(stdout);
  });
  const int status = server.run();
  const ServerStatistics statistics = server.statistics();
  // Why connections ended, for the report.
  const auto& ends = statistics.ends;
  for (std::size_t i = 0; i < ends.reasons.size(); ++i) {
    if (ends.reasons[i] == 0) continue;
    std::printf("reason %s %llu\n", std::string(to_string(static_cast<CloseReason>(i))).c_str(),
                static_cast<unsigned long long>(ends.reasons[i]));
  }
  for (std::size_t i = 0; i < ends.timeouts.size(); ++i) {
    if (ends.timeouts[i] == 0 || static_cast<TimeoutKind>(i) == TimeoutKind::none) continue;
    std::printf("timeout %s %llu\n", std::string(to_string(static_cast<TimeoutKind>(i))).c_str(),
                static_cast<unsigned long long>(ends.timeouts[i]));
  }
  return status;
}

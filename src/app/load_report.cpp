#include "app/load_report.h"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <iterator>

#include "app/units.h"
#include "penstock/base/result.h"

namespace penstock::app {
namespace {

double per_second(std::uint64_t count, Duration elapsed) noexcept {
  const double seconds = std::chrono::duration<double>(elapsed).count();
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

double mebibytes(double bytes) noexcept { return bytes / (1024.0 * 1024.0); }

std::string_view name_of(LoadMode mode) noexcept {
  switch (mode) {
    case LoadMode::steady:
      return "steady";
    case LoadMode::churn:
      return "churn";
    case LoadMode::half_close:
      return "half-close";
  }
  return "unknown";
}

std::string format_rate(double rate) {
  return rate < 100 ? fmt::format("{:.1f}", rate) : format_count(static_cast<std::uint64_t>(rate));
}

std::string json_string(std::string_view text) {
  std::string quoted = "\"";
  for (const char each : text) {
    if (each == '"' || each == '\\') {
      quoted += '\\';
      quoted += each;
    } else if (static_cast<unsigned char>(each) < 0x20) {
      quoted += fmt::format("\\u{:04x}", static_cast<unsigned>(each));
    } else {
      quoted += each;
    }
  }
  return quoted + '"';
}

using Text = std::back_insert_iterator<std::string>;

void write_findings(Text out, const LoadErrors& errors) {
  if (errors.connect.empty() && !errors.any_loss()) {
    fmt::format_to(out, "errors       none\n");
    return;
  }
  for (const auto& [error, count] : errors.connect)
    fmt::format_to(out, "error        {} x could not connect: {}\n", format_count(count),
                   error.message());
  const auto line = [&](std::uint64_t count, std::string_view what) {
    if (count > 0) fmt::format_to(out, "error        {} x {}\n", format_count(count), what);
  };
  line(errors.resets, "reset by the other side");
  line(errors.timeouts, "timed out");
  line(errors.truncated, "truncated: the end came while bytes were owed");
  for (const Truncation& each : errors.first_truncated)
    fmt::format_to(out, "             {}\n", describe(each));
  line(errors.missing, fmt::format("missing: {} bytes had not come back at the end",
                                   format_count(errors.missing_bytes)));
  line(errors.wrong, "wrong byte");
  for (const WrongByte& each : errors.first_wrong)
    fmt::format_to(out, "             {}\n", describe(each));
  line(errors.other, "ended by a limit of this side");
}

std::string json_errors(const LoadErrors& errors) {
  std::string text = R"({"connect":{)";
  const Text out(text);
  std::string_view comma;
  for (const auto& [error, count] : errors.connect) {
    fmt::format_to(out, "{}{}:{}", comma, json_string(error.message()), count);
    comma = ",";
  }
  fmt::format_to(
      out,
      R"(}},"connect_failures":{},"resets":{},"timeouts":{},"truncated":{},"missing":{},)"
      R"("missing_bytes":{},"wrong_bytes":{},"other":{},"first_truncated":[)",
      errors.connect_failures(), errors.resets, errors.timeouts, errors.truncated, errors.missing,
      errors.missing_bytes, errors.wrong, errors.other);
  comma = "";
  for (const Truncation& each : errors.first_truncated) {
    fmt::format_to(out, R"({}{{"connection":{},"received":{},"expected":{}}})", comma,
                   each.connection, each.received, each.expected);
    comma = ",";
  }
  fmt::format_to(out, R"(],"first_wrong_bytes":[)");
  comma = "";
  for (const WrongByte& each : errors.first_wrong) {
    const std::string expected =
        each.expected ? fmt::format("{}", std::to_integer<int>(*each.expected)) : "null";
    fmt::format_to(out, R"({}{{"connection":{},"offset":{},"expected":{},"got":{}}})", comma,
                   each.connection, each.offset, expected, std::to_integer<int>(each.got));
    comma = ",";
  }
  return text + "]}";
}

}  // namespace

std::string text_report(const LoadOptions& options, const LoadStatistics& statistics,
                        const LoadOutcome& outcome) {
  const LoadCounts& counts = statistics.in_time;
  const Duration elapsed = statistics.elapsed;
  const LatencyHistogram& latency = statistics.latency;
  const auto percentile = [&](double fraction) {
    return format_duration(latency.percentile(fraction));
  };
  std::string text;
  const Text out(text);
  fmt::format_to(out, "load         {} for {}{}: {} connections, {} B x {}, {}, backend {}\n",
                 options.to, format_duration(elapsed), outcome.interrupted ? " (interrupted)" : "",
                 options.connections, options.size, options.depth, name_of(options.mode()),
                 outcome.backend);
  fmt::format_to(out, "messages     {}/s, {} in time, {} in all\n",
                 format_rate(per_second(counts.messages, elapsed)), format_count(counts.messages),
                 format_count(statistics.total.messages));
  fmt::format_to(out, "bytes        {:.1f} MiB/s each way, {} in time\n",
                 mebibytes(per_second(counts.bytes, elapsed)), format_bytes(counts.bytes));
  fmt::format_to(out, "latency      p50 {}, p90 {}, p99 {}, p99.9 {}, max {}\n", percentile(0.5),
                 percentile(0.9), percentile(0.99), percentile(0.999),
                 format_duration(latency.max()));
  fmt::format_to(out, "connections  {} made", format_count(statistics.total.connections));
  if (options.mode() != LoadMode::steady) {
    fmt::format_to(out, ", {}/s", format_rate(per_second(counts.connections, elapsed)));
  }
  fmt::format_to(out, "\n");
  write_findings(out, statistics.errors);
  return text;
}

std::string json_report(const LoadOptions& options, const LoadStatistics& statistics,
                        const LoadOutcome& outcome) {
  const LoadCounts& counts = statistics.in_time;
  const Duration elapsed = statistics.elapsed;
  const LatencyHistogram& latency = statistics.latency;
  const auto percentile = [&](double fraction) { return latency.percentile(fraction).count(); };
  std::string text;
  const Text out(text);
  fmt::format_to(out,
                 R"({{"to":{},"backend":{},"mode":{},"connections":{},"size":{},"depth":{},)"
                 R"("slow_reader":{},"rounds":{},)",
                 json_string(options.to), json_string(outcome.backend),
                 json_string(name_of(options.mode())), options.connections, options.size,
                 options.depth, options.slow_reader, options.rounds);
  fmt::format_to(out,
                 R"("seconds":{:.6f},"interrupted":{},"succeeded":{},"messages":{},)"
                 R"("messages_in_time":{},"messages_per_second":{:.3f},"bytes":{},)"
                 R"("bytes_in_time":{},"mebibytes_per_second":{:.6f},"connections_made":{},)"
                 R"("connections_per_second":{:.3f},)",
                 std::chrono::duration<double>(elapsed).count(), outcome.interrupted,
                 statistics.succeeded(), statistics.total.messages, counts.messages,
                 per_second(counts.messages, elapsed), statistics.total.bytes, counts.bytes,
                 mebibytes(per_second(counts.bytes, elapsed)), statistics.total.connections,
                 per_second(counts.connections, elapsed));
  fmt::format_to(out,
                 R"("latency_nanoseconds":{{"count":{},"mean":{},"p50":{},"p90":{},"p99":{},)"
                 R"("p99_9":{},"max":{}}},"errors":{}}})",
                 latency.count(), latency.mean().count(), percentile(0.5), percentile(0.9),
                 percentile(0.99), percentile(0.999), latency.max().count(),
                 json_errors(statistics.errors));
  return text + '\n';
}

std::string progress_line(const LoadCounts& before, const LoadStatistics& now, Duration passed,
                          Duration since_start) {
  const LoadErrors& errors = now.errors;
  const std::uint64_t lost = errors.resets + errors.timeouts + errors.truncated + errors.missing +
                             errors.wrong + errors.other;
  return fmt::format(
      "{:5.0f} s  {}/s  {:.1f} MiB/s  {} connections made  {} lost  {} failed to connect",
      std::chrono::duration<double>(since_start).count(),
      format_rate(per_second(now.total.messages - before.messages, passed)),
      mebibytes(per_second(now.total.bytes - before.bytes, passed)),
      format_count(now.total.connections), format_count(lost),
      format_count(errors.connect_failures()));
}

std::string describe(const WrongByte& byte) {
  if (!byte.expected) {
    return fmt::format(
        "connection {}: byte 0x{:02x} came back at offset {}, where nothing was sent",
        byte.connection, std::to_integer<unsigned>(byte.got), byte.offset);
  }
  return fmt::format("connection {}: offset {}: expected 0x{:02x}, got 0x{:02x}", byte.connection,
                     byte.offset, std::to_integer<unsigned>(*byte.expected),
                     std::to_integer<unsigned>(byte.got));
}

std::string describe(const Truncation& truncation) {
  return fmt::format("connection {}: {} of {} bytes came back", truncation.connection,
                     truncation.received, truncation.expected);
}

std::string describe_no_connection(const std::string& to, std::error_code error,
                                   Duration connect_timeout) {
  const std::string start = fmt::format(
      "start a server there (penstock echo --listen {}), or name another with --to", to);
  if (error == system_error(ECONNREFUSED) || error == make_error_code(Errc::self_connected)) {
    return fmt::format("nobody listens at {}: {}", to, start);
  }
  if (error == system_error(ENOENT)) return fmt::format("there is no {}: {}", to, start);
  if (error == system_error(ETIMEDOUT)) {
    return fmt::format("{} does not answer within {}: check the address, the server and firewalls",
                       to, format_duration(connect_timeout));
  }
  if (error == system_error(EADDRNOTAVAIL)) {
    return fmt::format(
        "no local port is left to connect to {}: wait a minute for ports in TIME_WAIT, or raise "
        "net.ipv4.ip_local_port_range",
        to);
  }
  return fmt::format("cannot connect to {}: {}; check that a server should be there", to,
                     error.message());
}

std::string format_duration(Duration duration) {
  const double microseconds = std::chrono::duration<double, std::micro>(duration).count();
  if (microseconds < 1000) return fmt::format("{:.1f} us", microseconds);
  if (microseconds < 1e6) return fmt::format("{:.2f} ms", microseconds / 1e3);
  return fmt::format("{:.2f} s", microseconds / 1e6);
}

std::string format_count(std::uint64_t count) {
  std::string digits = fmt::format("{}", count);
  for (std::size_t from_end = 3; from_end < digits.size(); from_end += 4)
    digits.insert(digits.size() - from_end, 1, ',');
  return digits;
}

}  // namespace penstock::app

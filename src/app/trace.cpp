// penstock trace: one large send to a slow reader in the same process, told event by event as the kernel sees it.
// It ends when the reader has the end of the stream; SIGINT ends it at once.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "app/command.h"
#include "app/trace_kernel.h"
#include "app/trace_payload.h"
#include "app/trace_reader.h"
#include "app/trace_report.h"
#include "penstock/penstock.h"

namespace penstock::app {
namespace {

struct TraceOptions {
  std::size_t bytes = std::size_t{10} * 1024 * 1024;
  Backend backend = Backend::automatic;
  SlowReaderOptions reader{.rate = std::size_t{20} * 1024 * 1024};
  bool json = false;
};

TraceFormat choose_format(const TraceOptions& options) {
  if (options.json) return TraceFormat::json;
  const char* no_color = std::getenv("NO_COLOR");  // https://no-color.org
  const bool unwanted = no_color != nullptr && *no_color != '\0';
  return !unwanted && isatty(STDOUT_FILENO) == 1 ? TraceFormat::coloured_text : TraceFormat::text;
}

TraceOffer describe(const std::string& payload) {
  Fnv1a hash;
  hash.add(std::as_bytes(std::span(payload)));
  return {.bytes = payload.size(), .hash = hash.value()};
}

// The payload fits under the cap, and no limit of time cuts a slow reader off.
TcpServerOptions server_options(std::size_t bytes) {
  ConnectionLimits limits;
  limits.output_max = std::max(limits.output_max, bytes + std::size_t{64} * 1024);
  limits.idle_timeout = Duration::zero();
  limits.write_stall_timeout = Duration::zero();
  limits.half_close_timeout = Duration::zero();
  return {.listen = "127.0.0.1:0", .limits = limits};
}

class Trace {
 public:
  Trace(const TraceOptions& options, std::string payload)
      : options_(options),
        payload_(std::move(payload)),
        report_(linux_kernel(), describe(payload_), choose_format(options)),
        kernel_(linux_kernel(), report_),
        loop_({.backend = options.backend, .kernel = &kernel_}),
        reader_(loop_, options.reader, [this] { end(); }),
        server_(loop_, server_options(payload_.size())) {}

  int run();

 private:
  Result<void> start();
  void set_callbacks();
  void offer(TcpConnection& connection);
  void end();
  int conclude();
  // A stranger may have found the port.
  bool is_readers(const TcpConnection& connection) const {
    return connection.peer_address() == reader_.address();
  }

  const TraceOptions options_;
  std::string payload_;
  TraceReport report_;
  TracingKernel kernel_;
  EventLoop loop_;
  SlowReader reader_;
  TcpServer server_;
  std::string
      server_end_;  // why the server ended the connection, if it came before the reader's end
};

int Trace::run() {
  Result<void> done = start();
  if (done) done = loop_.run();
  if (done) return conclude();
  print_error(fmt::format("the trace could not start: {}", done.error().message()));
  return kFailure;
}

Result<void> Trace::start() {
  set_callbacks();
  Result<void> done = server_.start();
  if (done) done = reader_.connect(server_.address());
  if (done) report_.start(loop_.backend_name(), options_.reader.rate, reader_.receive_buffer());
  return done;
}

void Trace::set_callbacks() {
  server_.on_connect([this](TcpConnection& connection) { offer(connection); });
  server_.on_high_water(
      [this](TcpConnection& connection) { report_.high_water(connection.queued_bytes()); });
  server_.on_low_water(
      [this](TcpConnection& connection) { report_.low_water(connection.queued_bytes()); });
  server_.on_write_complete([this](TcpConnection& connection) {
    report_.complete();
    connection.finish();
  });
  server_.on_close([this](TcpConnection& connection, const CloseReport& report) {
    if (is_readers(connection)) server_end_ = to_string(report.reason);
  });
}

void Trace::offer(TcpConnection& connection) {
  if (!is_readers(connection)) {
    connection.abort();
    return;
  }
  kernel_.trace(connection.descriptor());
  connection.send(std::move(payload_));  // the kernel reads the string's own memory
}

// Whatever the server does, the reader learns of it.
void Trace::end() {
  report_.reader_ended(reader_);
  loop_.stop();
}

int Trace::conclude() {
  report_.summary(reader_);
  if (const std::string discrepancy = report_.discrepancy(reader_); !discrepancy.empty()) {
    print_error(
        fmt::format("the transfer does not add up: {}{}", discrepancy,
                    server_end_.empty() ? "" : "; the server's side ended with " + server_end_));
    return kFailure;
  }
  if (std::ferror(stdout) != 0) {
    print_error("the trace could not be written to standard output");
    return kFailure;
  }
  return kSuccess;
}

int run_trace(const TraceOptions& options) {
  if (!check_backend(options.backend)) return kUsage;
  if (options.bytes == 0) {
    print_error("--bytes 0: there is nothing to trace; send at least one byte");
    return kUsage;
  }
  // The loop's memory budget is half of the machine's.
  const std::size_t most = linux_kernel().memory_limit() / 4;
  if (options.bytes > most) {
    print_error(
        fmt::format("--bytes {}: at most {} here, a quarter of the memory", options.bytes, most));
    return kUsage;
  }
  return Trace(options, make_payload(options.bytes)).run();
}

}  // namespace

void add_trace(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("trace", "Show the write path at work: one large send to a slow reader");
  auto options = std::make_shared<TraceOptions>();
  add_bytes(*command, "--bytes", options->bytes, "Size of the one send, at least 1");
  add_backend(*command, options->backend);
  add_bytes(*command, "--receive-buffer", options->reader.receive_buffer,
            "The reader's SO_RCVBUF; the kernel doubles it and keeps it within its own limits");
  add_bytes(*command, "--reader-rate", options->reader.rate,
            "Bytes a second the reader takes; 0: as fast as it can");
  command->add_flag("--json", options->json, "One JSON object a line; the last one is the summary");
  command->callback([options, &action] { action = [options] { return run_trace(*options); }; });
}

}  // namespace penstock::app

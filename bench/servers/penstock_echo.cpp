// Echo served by the library on one loop, with a choice of how the loop divides its time between connections and of what its handler
// costs: what the benchmark of fairness compares. Otherwise as `penstock echo --loops 0`.

#include <time.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <string>
#include <string_view>

#include "penstock/penstock.h"

namespace {

using namespace penstock;

bool read_number(std::string_view text, std::int64_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size() && number >= 0;
}

std::int64_t nanoseconds_now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

// What a handler does that computes for each KiB it is given.
void compute(std::int64_t nanoseconds) {
  const std::int64_t end = nanoseconds_now() + nanoseconds;
  while (nanoseconds_now() < end) {
  }
}

}  // namespace

int main(int argument_count, char** arguments) {
  EventLoopOptions loop_options;
  TcpServerOptions options;
  std::int64_t compute_per_kibibyte = 0;
  bool undivided = false;
  for (int i = 1; i < argument_count; i += 2) {
    const std::string_view name(arguments[i]);
    const std::string_view value(i + 1 < argument_count ? arguments[i + 1] : "");
    const Result<Backend> backend = parse_backend(value);
    if (name == "--listen" && !value.empty()) {
      options.listen = value;
    } else if (name == "--backend" && backend) {
      loop_options.backend = *backend;
    } else if (name == "--divided" && (value == "no" || value == "yes")) {
      undivided = value == "no";
    } else if (name != "--compute" || !read_number(value, compute_per_kibibyte)) {
      std::fprintf(stderr,
                   "usage: penstock_echo [--listen HOST:PORT] [--backend NAME] [--divided yes|no]\n"
                   "                     [--compute NANOSECONDS_PER_KIBIBYTE]\n");
      return 2;
    }
  }
  if (undivided) loop_options.io = {.turn_bytes = 0, .turn_time = Duration::zero()};
  EventLoop loop(std::move(loop_options));
  TcpServer server(loop, std::move(options));
  server.on_message([compute_per_kibibyte](TcpConnection& peer, InputBuffer& in) {
    if (compute_per_kibibyte > 0)
      compute(compute_per_kibibyte * static_cast<std::int64_t>(in.size()) / 1024);
    peer.send(in.take());
  });
  server.on_stopped([&loop] { loop.stop(); });
  if (const Result<void> started = server.start(); !started) {
    std::fprintf(stderr, "penstock_echo: %s\n", started.error().message().c_str());
    return 1;
  }
  if (const Result<void> taken = loop.on_signal(SIGTERM, [&server](int) { server.stop(); });
      !taken) {
    std::fprintf(stderr, "penstock_echo: %s\n", taken.error().message().c_str());
    return 1;
  }
  std::printf("listening on %s (backend %s)\n", server.address().to_string().c_str(),
              std::string(loop.backend_name()).c_str());
  std::fflush(stdout);
  return loop.run() ? 0 : 1;
}

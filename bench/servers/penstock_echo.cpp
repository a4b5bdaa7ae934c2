// Echo served by the library, with a choice of how loops divide their time between connections and of what the handler costs: what the
// benchmark of fairness compares, and what count.py counts on several loops. Otherwise as `penstock echo`.

#include <time.h>

#include <charconv>
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
  TcpServerOptions options;
  std::int64_t compute_per_kibibyte = 0;
  std::int64_t loops = 0;
  bool undivided = false;
  for (int i = 1; i < argument_count; i += 2) {
    const std::string_view name(arguments[i]);
    const std::string_view value(i + 1 < argument_count ? arguments[i + 1] : "");
    const Result<Backend> backend = parse_backend(value);
    if (name == "--listen" && !value.empty()) {
      options.listen = value;
    } else if (name == "--backend" && backend) {
      options.backend = *backend;
    } else if (name == "--divided" && (value == "no" || value == "yes")) {
      undivided = value == "no";
    } else if (name == "--loops" && read_number(value, loops) && loops <= 64) {
      options.loops = static_cast<std::size_t>(loops);
    } else if (name != "--compute" || !read_number(value, compute_per_kibibyte)) {
      std::fprintf(
          stderr,
          "usage: penstock_echo [--listen HOST:PORT] [--backend NAME] [--loops N]\n"
          "                     [--divided yes|no] [--compute NANOSECONDS_PER_KIBIBYTE]\n");
      return 2;
    }
  }
  if (undivided) options.io = {.turn_bytes = 0, .turn_time = Duration::zero()};
  TcpServer server(std::move(options));
  server.on_message([compute_per_kibibyte](TcpConnection& peer, InputBuffer& in) {
    if (compute_per_kibibyte > 0)
      compute(compute_per_kibibyte * static_cast<std::int64_t>(in.size()) / 1024);
    peer.send(in.take());
  });
  server.on_listening([&server] {
    std::printf("listening on %s (backend %s)\n", server.address().to_string().c_str(),
                std::string(server.loop().backend_name()).c_str());
    std::fflush(stdout);
  });
  return server.run();
}

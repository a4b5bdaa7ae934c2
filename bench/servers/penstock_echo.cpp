// Echo served by the library on one loop, with a choice of how the loop divides its time between connections: what the benchmark of
// fairness compares. Otherwise as `penstock echo --loops 0`.

#include <charconv>
#include <csignal>
#include <cstdio>
#include <string>
#include <string_view>

#include "penstock/penstock.h"

namespace {

using namespace penstock;

bool read_size(std::string_view text, std::size_t& size) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), size);
  return error == std::errc{} && end == text.data() + text.size();
}

}  // namespace

int main(int argument_count, char** arguments) {
  EventLoopOptions loop_options;
  TcpServerOptions options;
  for (int i = 1; i < argument_count; i += 2) {
    const std::string_view name(arguments[i]);
    const std::string_view value(i + 1 < argument_count ? arguments[i + 1] : "");
    const Result<Backend> backend = parse_backend(value);
    if (name == "--listen" && !value.empty()) {
      options.listen = value;
    } else if (name == "--backend" && backend) {
      loop_options.backend = *backend;
    } else if (name != "--turn-bytes" || !read_size(value, loop_options.io.turn_bytes)) {
      std::fprintf(stderr,
                   "usage: penstock_echo [--listen HOST:PORT] [--backend NAME] [--turn-bytes N]\n");
      return 2;
    }
  }
  EventLoop loop(std::move(loop_options));
  TcpServer server(loop, std::move(options));
  server.on_message([](TcpConnection& peer, InputBuffer& in) { peer.send(in.take()); });
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

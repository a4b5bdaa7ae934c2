// Prime factors: a line "91" is answered by "91 = 7 * 13". Large numbers take a while, and nobody
// else has to wait for that.
//
//   build/release/bin/examples/prime_factors 127.0.0.1:7004     then: nc 127.0.0.1 7004
//
// Shown here: long computations on a pool of workers (offload), with the answers of each connection
// in the order of its lines. While one is computed its connection is not read, so nobody can have
// more than one number under way; the loop goes on serving the others.
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <penstock/penstock.h>

namespace {

// By trial division: up to two thousand million divisions for a number of 64 bits.
std::string factors_of(std::uint64_t number) {
  std::string line = std::to_string(number) + " =";
  std::string_view between = " ";
  const auto add = [&](std::uint64_t factor) {
    line += between;
    line += std::to_string(factor);
    between = " * ";
  };
  std::uint64_t left = number;
  for (std::uint64_t factor = 2; factor <= left / factor; factor += factor == 2 ? 1 : 2) {
    while (left % factor == 0 && left > factor) {
      add(factor);
      left /= factor;
    }
  }
  add(left);
  return line + "\n";
}

std::string answer(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), number);
  if (error != std::errc{} || end != line.data() + line.size() || number < 2) {
    return "error: write a number from 2 to 18446744073709551615\n";
  }
  return factors_of(number);
}

}  // namespace

int main(int argc, char** argv) {
  penstock::WorkerPool pool;  // a thread for each processor
  if (const penstock::Result<void> started = pool.start(); !started) {
    std::fprintf(stderr, "no workers: %s\n", started.error().message().c_str());
    return 1;
  }
  penstock::ConnectionLimits limits;
  limits.input_max = 1024;  // no line is longer
  penstock::TcpServer server({.listen = argc > 1 ? argv[1] : "127.0.0.1:7004", .limits = limits});
  server.on_message([&pool](penstock::TcpConnection& peer, penstock::InputBuffer& in) {
    // Paused while a line is computed: what is left of the input is offered again.
    while (peer.wants_input()) {
      const auto end = in.find('\n');
      if (!end) return;
      const penstock::PostResult taken = penstock::offload(
          pool, peer, [line = std::string(in.text().substr(0, *end))] { return answer(line); },
          [](penstock::TcpConnection& to, std::string reply) { to.send(std::move(reply)); },
          {.order = penstock::OffloadOrder::per_connection});
      if (taken != penstock::PostResult::posted) return;
      in.consume(*end + 1);
    }
  });
  server.on_listening([&server] {
    std::printf("listening on %s\n", server.address().to_string().c_str());
    std::fflush(stdout);
  });
  return server.run();
}

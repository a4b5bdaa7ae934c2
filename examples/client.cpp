// A client that stays connected: lines from standard input go to the server, what the server sends
// goes to standard output, and a lost connection is made again.
//
//   build/release/bin/examples/client 127.0.0.1:7001
//
// Shown here: a TcpClient, a watched descriptor and signals on one loop; reading standard input only
// as fast as the server takes it.
#include <signal.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <span>
#include <string>

#include <penstock/penstock.h>

int main(int argc, char** argv) {
  penstock::EventLoop loop;
  penstock::TcpClient client(loop, {.connect_to = argc > 1 ? argv[1] : "127.0.0.1:7001",
                                    .attempts_max = 0,  // never give up
                                    .reconnect = true,
                                    .limits = {.idle_timeout = std::chrono::seconds(0)}});
  penstock::WatchId input{};
  bool input_ended = false;
  const auto read_input = [&](bool wanted) {
    if (input_ended) return;
    const auto changed =
        loop.change_watch(input, wanted ? penstock::Interest::readable : penstock::Interest::none);
    if (!changed) std::fprintf(stderr, "standard input: %s\n", changed.error().message().c_str());
  };

  const auto watched = loop.watch(STDIN_FILENO, penstock::Interest::none, [&](penstock::Readiness) {
    std::array<std::byte, 4096> bytes;
    const ssize_t count = read(STDIN_FILENO, bytes.data(), bytes.size());
    if (count < 0) return;  // EINTR: the watch tells again
    penstock::TcpConnection* connection = client.connection();
    if (count == 0) {
      read_input(false);
      input_ended = true;
      if (connection != nullptr) connection->finish();
    } else if (connection != nullptr) {
      connection->send(std::span(bytes).first(static_cast<std::size_t>(count)));
    }
  });
  if (!watched) {
    std::fprintf(stderr, "standard input: %s; use a terminal or a pipe\n",
                 watched.error().message().c_str());
    return 1;
  }
  input = *watched;

  client.on_connect([&](penstock::TcpConnection& server) {
    std::fprintf(stderr, "connected to %s\n", server.peer_address().to_string().c_str());
    read_input(true);
  });
  client.on_message([](penstock::TcpConnection&, penstock::InputBuffer& in) {
    std::fwrite(in.peek().data(), 1, in.size(), stdout);
    std::fflush(stdout);
    in.consume(in.size());
  });
  client.on_high_water([&](penstock::TcpConnection&) { read_input(false); });
  client.on_low_water([&](penstock::TcpConnection&) { read_input(true); });
  client.on_close([&](penstock::TcpConnection&, const penstock::CloseReport& report) {
    std::fprintf(stderr, "disconnected: %s\n", std::string(to_string(report.reason)).c_str());
    read_input(false);
    if (input_ended) loop.stop();
  });
  client.on_connect_failed([](const penstock::ConnectFailure& failure) {
    std::fprintf(stderr, "cannot connect: %s\n", failure.error.message().c_str());
  });

  for (const int number : {SIGINT, SIGTERM}) {
    if (const auto taken = loop.on_signal(number, [&](int) { loop.stop(); }); !taken) return 1;
  }
  if (const auto started = client.start(); !started) {
    std::fprintf(stderr, "%s\n", started.error().message().c_str());
    return 2;
  }
  return loop.run() ? 0 : 1;
}

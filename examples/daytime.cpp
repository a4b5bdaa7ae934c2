// The daytime protocol (RFC 867) over a Unix socket: the date and time as a line, and the end.
//
//   build/release/bin/examples/daytime unix:/tmp/daytime     then: nc -U /tmp/daytime
#include <array>
#include <cstdio>
#include <ctime>

#include <penstock/penstock.h>

int main(int argc, char** argv) {
  penstock::TcpServer server({.listen = argc > 1 ? argv[1] : "unix:/tmp/penstock-daytime"});
  server.on_connect([](penstock::TcpConnection& peer) {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    std::array<char, 64> line{};
    const std::size_t size =
        std::strftime(line.data(), line.size(), "%A, %B %d, %Y %H:%M:%S-UTC\r\n", &utc);
    peer.send(std::string_view(line.data(), size));
    peer.close();
  });
  server.on_listening([&server] {
    std::printf("listening on %s\n", server.address().to_string().c_str());
    std::fflush(stdout);
  });
  return server.run();
}

// The time protocol (RFC 868): 4 bytes, the seconds since 1900 in network byte order, and the end.
//
//   build/release/bin/examples/time_server 127.0.0.1:7037     then: nc 127.0.0.1 7037 | xxd
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>

#include <penstock/penstock.h>

int main(int argc, char** argv) {
  penstock::TcpServer server({.listen = argc > 1 ? argv[1] : "127.0.0.1:7037"});
  server.on_connect([](penstock::TcpConnection& peer) {
    constexpr std::uint64_t kFrom1900To1970 = 2'208'988'800;
    const auto since_1970 = std::chrono::duration_cast<std::chrono::seconds>(
        std::chrono::system_clock::now().time_since_epoch());
    const auto seconds = static_cast<std::uint32_t>(static_cast<std::uint64_t>(since_1970.count()) +
                                                    kFrom1900To1970);
    const std::array<std::byte, 4> bytes{
        static_cast<std::byte>(seconds >> 24), static_cast<std::byte>(seconds >> 16),
        static_cast<std::byte>(seconds >> 8), static_cast<std::byte>(seconds)};
    peer.send(bytes);
    peer.close();  // flushes first
  });
  server.on_listening([&server] {
    std::printf("listening on %s\n", server.address().to_string().c_str());
    std::fflush(stdout);
  });
  return server.run();
}

#include <penstock/penstock.h>

int main() {
  penstock::TcpServer server({.listen = "127.0.0.1:7000"});
  server.on_message(
      [](penstock::TcpConnection& peer, penstock::InputBuffer& in) { peer.send(in.take()); });
  return server.run();  // until SIGINT or SIGTERM, then drains; non-zero if it cannot listen
}

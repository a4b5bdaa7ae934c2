// The server around a session that asio's two programs have in common: accept, start, accept again.
#ifndef PENSTOCK_BENCH_ASIO_PEER_H
#define PENSTOCK_BENCH_ASIO_PEER_H

#include <asio.hpp>

#include <memory>
#include <utility>

#include "peer.h"

/// Session: made from a connected socket, kept alive by its own handlers, begun by start().
template <typename Session>
class AsioServer {
 public:
  explicit AsioServer(asio::io_context& context) : acceptor_(context) {
    using asio::ip::tcp;
    const tcp::endpoint endpoint(asio::ip::address_v4::loopback(), 0);
    acceptor_.open(endpoint.protocol());
    acceptor_.set_option(tcp::acceptor::reuse_address(true));
    acceptor_.bind(endpoint);
    acceptor_.listen(kListenBacklog);
    accept();
  }

  [[nodiscard]] unsigned short port() const { return acceptor_.local_endpoint().port(); }

 private:
  // As in the library's echo example, a failed accept is tried again.
  void accept() {
    acceptor_.async_accept([this](std::error_code error, asio::ip::tcp::socket socket) {
      if (!error) {
        std::error_code ignored;
        socket.set_option(asio::ip::tcp::no_delay(true), ignored);
        std::make_shared<Session>(std::move(socket))->start();
      }
      accept();
    });
  }

  asio::ip::tcp::acceptor acceptor_;
};

/// Serves until SIGTERM or SIGINT.
template <typename Session>
int serve() {
  prepare_process();
  asio::io_context context(1);
  AsioServer<Session> server(context);
  asio::signal_set stop_signals(context, SIGTERM, SIGINT);
  stop_signals.async_wait([&context](std::error_code, int) { context.stop(); });
  sockaddr_in address = any_local_port();
  address.sin_port = htons(server.port());
  print_listening(&address, "asio");
  context.run();
  return 0;
}

#endif

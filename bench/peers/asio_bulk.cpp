// Bulk with standalone asio and callbacks: read a request, async_write the reply straight from the
// shared payload, read the next. The protocol is that of ../limit/epoll_bulk.c.

#include <array>
#include <vector>

#include "../pattern.h"
#include "asio_peer.h"

namespace {

const std::vector<unsigned char>& payload() {
  static const std::vector<unsigned char> bytes = [] {
    std::vector<unsigned char> filled(PENSTOCK_BENCH_BULK_PAYLOAD_BYTES);
    fill_pattern(filled.data(), filled.size(), 0);
    return filled;
  }();
  return bytes;
}

class Session : public std::enable_shared_from_this<Session> {
 public:
  explicit Session(asio::ip::tcp::socket socket) : socket_(std::move(socket)) {}

  void start() { read(); }

 private:
  void read() {
    asio::async_read(socket_, asio::buffer(request_),
                     [self = shared_from_this()](std::error_code error, std::size_t) {
                       if (!error) self->answer(read_request(self->request_.data()));
                     });
  }

  void answer(std::uint64_t wanted_bytes) {
    if (wanted_bytes > payload().size()) return;
    asio::async_write(socket_, asio::buffer(payload().data(), wanted_bytes),
                      [self = shared_from_this()](std::error_code error, std::size_t) {
                        if (!error) self->read();
                      });
  }

  asio::ip::tcp::socket socket_;
  std::array<unsigned char, kRequestBytes> request_;
};

}  // namespace

int main() {
  payload();
  return serve<Session>();
}

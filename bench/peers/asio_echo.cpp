// Echo with standalone asio and callbacks, as its echo example teaches: a session that owns its
// buffer reads, writes all of what it read, and only then reads again. So a client that does not
// read costs no more than that buffer. The example's buffer has 1 KiB, this one 64 KiB like the
// others.

#include <array>

#include "asio_peer.h"

namespace {

class Session : public std::enable_shared_from_this<Session> {
 public:
  explicit Session(asio::ip::tcp::socket socket) : socket_(std::move(socket)) {}

  void start() { read(); }

 private:
  void read() {
    socket_.async_read_some(asio::buffer(data_),
                            [self = shared_from_this()](std::error_code error, std::size_t bytes) {
                              if (!error) self->write(bytes);
                            });
  }

  void write(std::size_t bytes) {
    asio::async_write(socket_, asio::buffer(data_, bytes),
                      [self = shared_from_this()](std::error_code error, std::size_t) {
                        if (!error) self->read();
                      });
  }

  asio::ip::tcp::socket socket_;
  std::array<char, kReadBytesMax> data_;
};

}  // namespace

int main() { return serve<Session>(); }

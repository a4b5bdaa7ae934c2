// Sends a file to whoever connects, in pieces: a slow reader costs one piece of memory, however
// large the file is.
//
//   build/release/bin/examples/file_sender FILE 127.0.0.1:7002     then: nc 127.0.0.1 7002 > copy
//
// The next piece is read when the kernel has taken the last one (on_write_complete). Reading the
// file blocks the loop for as long as the disk needs; a server for many readers of cold files would
// read in a thread of its own and send through the handle.
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>

#include <penstock/penstock.h>

namespace {

constexpr std::size_t kPiece = std::size_t{256} * 1024;

void send_piece(penstock::TcpConnection& peer) {
  auto& file = peer.context<std::ifstream>();
  if (!file.is_open()) return;  // all of it has gone
  std::string piece(kPiece, '\0');
  file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
  if (file.bad()) {
    peer.abort();  // better broken than short: the reader must not take this for the end
    return;
  }
  piece.resize(static_cast<std::size_t>(file.gcount()));
  const bool last = piece.size() < kPiece;
  peer.send(std::move(piece));
  if (last) {
    file.close();
    peer.close();  // behind the last byte
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s FILE [HOST:PORT]\n", argv[0]);
    return 2;
  }
  const std::string path = argv[1];
  if (!std::ifstream(path, std::ios::binary)) {
    std::fprintf(stderr, "%s: cannot be read\n", path.c_str());
    return 1;
  }
  penstock::TcpServer server({.listen = argc > 2 ? argv[2] : "127.0.0.1:7002"});
  server.on_connect([path](penstock::TcpConnection& peer) {
    if (!peer.emplace_context<std::ifstream>(path, std::ios::binary)) {
      peer.abort();
      return;
    }
    send_piece(peer);
  });
  server.on_write_complete([](penstock::TcpConnection& peer) { send_piece(peer); });
  server.on_listening([&server] {
    std::printf("listening on %s\n", server.address().to_string().c_str());
    std::fflush(stdout);
  });
  return server.run();
}

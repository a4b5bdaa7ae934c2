// The bulk benchmark served by the library: an 8-byte big-endian request N is answered with N bytes of the pattern of
// ../pattern.h, as one send. The protocol and its limits are those of ../limit/epoll_bulk.c.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "../pattern.h"
#include "penstock/penstock.h"

namespace {

using namespace penstock;

SharedBytes make_payload(std::size_t size) {
  std::string bytes(size, '\0');
  fill_pattern(reinterpret_cast<unsigned char*>(bytes.data()), bytes.size(), 0);
  return SharedBytes(std::move(bytes));
}

void answer(TcpConnection& peer, InputBuffer& in, const SharedBytes& whole) {
  while (const auto wanted = in.read_u64()) {
    if (*wanted > whole.size()) {
      peer.close_with_protocol_error();
      return;
    }
    if (*wanted == whole.size()) {
      peer.send(whole);
    } else {
      peer.send(whole.bytes().first(*wanted));
    }
  }
}

}  // namespace

int main(int argument_count, char** arguments) {
  TcpServerOptions options;  // loops = 0: one thread, like every server it is compared with
  for (int i = 1; i + 1 < argument_count; i += 2) {
    const std::string_view name(arguments[i]);
    const std::string_view value(arguments[i + 1]);
    if (name == "--listen") {
      options.listen = value;
    } else if (const Result<Backend> backend = parse_backend(value);
               name == "--backend" && backend) {
      options.backend = *backend;
    } else {
      std::fprintf(stderr, "usage: penstock_bulk --listen HOST:PORT --backend NAME\n");
      return 2;
    }
  }
  // Requests that are under way together are answered together.
  options.limits.output_max = std::size_t{64} * 1024 * 1024;
  TcpServer server(std::move(options));
  server.on_message([whole = make_payload(PENSTOCK_BENCH_BULK_PAYLOAD_BYTES)](
                        TcpConnection& peer, InputBuffer& in) { answer(peer, in, whole); });
  server.on_listening([&server] {
    std::printf("listening on %s (backend %s)\n", server.address().to_string().c_str(),
                std::string(server.loop().backend_name()).c_str());
    std::fflush(stdout);
  });
  return server.run();
}

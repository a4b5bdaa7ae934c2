#include "penstock/tcp/adopt.h"

#include <cerrno>
#include <utility>

#include "penstock/tcp/connection_table.h"
#include "tcp/stream_socket.h"

namespace penstock {

Result<ConnectionHandle> adopt_connection(EventLoop& loop, UniqueFd fd, BehaviourPtr behaviour) {
  if (loop.error()) return std::unexpected(loop.error());
  loop.assert_here();
  Kernel& kernel = loop.kernel();
  int type = 0;
  socklen_t size = sizeof type;
  const int asked = kernel.getsockopt(fd.get(), SOL_SOCKET, SO_TYPE, &type, &size);
  if (asked < 0) return failure(asked);
  if (type != SOCK_STREAM) return failure(EPROTOTYPE);
  const Result<SocketAddress> peer = peer_address(kernel, fd.get());
  if (!peer) return std::unexpected(peer.error());
  const int set = kernel.make_nonblocking(fd.get());
  if (set < 0) return failure(set);
  return ConnectionTable::of(loop).adopt(std::move(fd), *peer, std::move(behaviour), nullptr);
}

}  // namespace penstock

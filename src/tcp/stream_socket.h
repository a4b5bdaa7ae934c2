// Sockets as servers and clients want them.
#pragma once

#include "penstock/base/clock.h"
#include "penstock/base/result.h"
#include "penstock/os/kernel.h"
#include "penstock/os/socket_address.h"
#include "penstock/os/unique_fd.h"

namespace penstock {

/// A non-blocking, close-on-exec stream socket of the family, with our options.
Result<UniqueFd> make_stream_socket(Kernel& kernel, int family, Duration user_timeout);

/// Sets what every TCP socket of ours has: TCP_NODELAY, keep-alive after 60 s, every 10 s, 6 times,
/// and TCP_USER_TIMEOUT (zero leaves the kernel's). Sockets that a listener accepts inherit all of
/// it (Linux). Does nothing for other families. 0 or -errno.
int set_tcp_options(Kernel& kernel, int fd, int family, Duration user_timeout);

/// setsockopt of an int. 0 or -errno.
int set_option(Kernel& kernel, int fd, int level, int name, int value);

/// The address a socket is bound to, or -errno as a failure.
Result<SocketAddress> bound_address(Kernel& kernel, int fd);

/// The address of a connected socket's peer, or -errno as a failure.
Result<SocketAddress> peer_address(Kernel& kernel, int fd);

}  // namespace penstock

// Making a connection of a descriptor that somebody else connected: socketpair(2), inherited, or
// detached from another loop.
#pragma once

#include "penstock/base/result.h"
#include "penstock/loop/event_loop.h"
#include "penstock/os/unique_fd.h"
#include "penstock/tcp/behaviour.h"
#include "penstock/tcp/connection_handle.h"

namespace penstock {

/// Takes over a connected stream socket (TCP or Unix) and runs on_connect, before this returns. It is made non-blocking
/// and close-on-exec; its options are left as they are. On the loop's thread, or while the loop does
/// not run. Errors, with the descriptor closed and no callback run: ENOTSOCK, EPROTOTYPE (no stream
/// socket), ENOTCONN, and what the kernel says.
[[nodiscard]] Result<ConnectionHandle> adopt_connection(EventLoop& loop, UniqueFd fd,
                                                        BehaviourPtr behaviour);

}  // namespace penstock

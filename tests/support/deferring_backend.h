// A back-end that behaves as a completion kernel (io_uring) would, over any other one: the stream
// seam allows all of it, and a connection that passes the conformance suite on this one will fit
// io_uring. What it does that a readiness back-end never does:
//
//   - A send is taken in a later poll, from the lent memory, and nothing before. The memory is
//     compared with what it held when it was lent.
//   - offer() takes nothing.
//   - Received bytes are delivered in a later poll, from memory that is filled with junk and freed
//     when the handler returns; also after stop_receive, if they were taken before.
//   - on_closed comes some polls later; until then the memory lent to a send must stay.
#pragma once

#include <memory>

#include "penstock/io/io_backend.h"

namespace penstock::test {

/// Over level-triggered epoll. A factory for set_custom_backend().
Result<std::unique_ptr<IoBackend>> make_deferring_backend(Kernel& kernel);

}  // namespace penstock::test

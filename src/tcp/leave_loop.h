// How an object of the program's leaves the loop it lives on: in its destructor.
#pragma once

#include <time.h>

#include "penstock/base/assert.h"
#include "penstock/base/counted.h"
#include "penstock/loop/event_loop.h"
#include "penstock/loop/mailbox.h"

namespace penstock {

/// Abandons the core (which resets its connections) on its loop. Inside the loop that is all: the
/// notify step reports. Elsewhere this waits until all is reported. Core has abandon(), is_gone()
/// and live(), the last two thread-safe.
template <class Core>
void leave_loop(EventLoop& loop, const CountedPtr<Core>& core) {
  if (loop.in_loop()) {
    core->abandon();
    return;
  }
  if (loop.running()) {
    const PostResult posted = Mailbox::post(loop.id(), [core] { core->abandon(); });
    PENSTOCK_ASSERT(posted == PostResult::posted, "servers and clients cannot outlive their loop");
    const timespec look_again{.tv_sec = 0, .tv_nsec = 5'000'000};
    while (!core->is_gone() && loop.running())
      loop.kernel().poll({}, &look_again);
    if (core->is_gone()) return;
    // Its run() has ended without another turn: the rest is done here.
  }
  core->abandon();
  while (core->live() > 0)
    loop.step();
}

}  // namespace penstock

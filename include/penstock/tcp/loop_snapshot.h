// Everything that is counted on one loop, at one moment.
#pragma once

#include <cstddef>

#include "penstock/base/latency_histogram.h"
#include "penstock/loop/event_loop.h"
#include "penstock/tcp/connection_table.h"

namespace penstock {

/// A copy; about 10 KiB. Subtract two of them to see what happened in between.
struct LoopSnapshot {
  LoopStatistics loop{};               ///< Turns, tasks, timers, wake-ups, short and blocked sends.
  ConnectionStatistics connections{};  ///< Opened, ended and why, bytes, stale drops.
  std::size_t live = 0;                ///< Connections now.
  std::size_t queued_bytes = 0;        ///< Accepted for sending and not taken by the kernel yet.
  std::size_t memory_used = 0;         ///< Charged to the memory budget by this loop's queues.
  LatencyHistogram lag{};              ///< See EventLoop::lag().
};

/// Takes the account of a loop. On its thread, or while it does not run: from elsewhere, post a task.
/// Costs a look at each connection (for queued_bytes); counting itself is always on.
inline LoopSnapshot take_snapshot(EventLoop& loop) {
  ConnectionTable& table = ConnectionTable::of(loop);
  return {
      .loop = loop.statistics(),
      .connections = table.statistics(),
      .live = table.size(),
      .queued_bytes = table.queued_bytes(),
      .memory_used = loop.memory().used(),
      .lag = loop.lag(),
  };
}

}  // namespace penstock

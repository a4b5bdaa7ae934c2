// Event loops on threads of their own, one each. Owner: whoever made it; start() and stop() from
// one thread.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "penstock/loop/event_loop.h"

namespace penstock {

/// How the loops of a group are made.
struct LoopGroupOptions {
  /// Threads, each with one loop; at least 1.
  std::size_t loops = 1;
  /// How each loop is made. An empty memory budget: one for the group, half of the machine's
  /// memory.
  EventLoopOptions loop{};
  /// Runs in each thread before its loop turns, with the loop's index: for names, affinity,
  /// thread-locals. May throw: that is logged, and the loop runs all the same.
  std::move_only_function<void(std::size_t index, EventLoop& loop)> on_thread_start{};
};

/// Several loops, each turned by a thread of its own from start() to stop().
class LoopGroup {
 public:
  /// Starts nothing yet.
  explicit LoopGroup(LoopGroupOptions options);
  LoopGroup(const LoopGroup&) = delete;
  LoopGroup& operator=(const LoopGroup&) = delete;
  /// Stops, if need be. Not from one of its loops.
  ~LoopGroup();

  /// Makes the loops and starts their threads, in which all signals are blocked. Error: what making
  /// a loop answers, or EAGAIN when the system has no threads left; nothing runs then.
  [[nodiscard]] Result<void> start();

  /// Stops the loops, waits for their threads, destroys the loops (which resets the connections
  /// that are left). Not from one of its loops. Idempotent.
  void stop();

  /// Loops that run; 0 before start() and after stop().
  std::size_t size() const noexcept { return loops_.size(); }
  /// The loop of that index, less than size(). It lives until stop().
  EventLoop& loop(std::size_t index) noexcept { return *loops_[index]; }

 private:
  void run(std::size_t index) noexcept;

  LoopGroupOptions options_;
  std::vector<std::unique_ptr<EventLoop>> loops_;
  std::vector<std::thread> threads_;
};

}  // namespace penstock

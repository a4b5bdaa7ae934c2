// Threads for long computations, so that no loop has to wait for one: a bounded queue of tasks and
// workers that take them in order. Owner: the program, for any number of servers and loops; it is
// stopped before it goes. Not for work that waits (for a socket, a timer): that is what loops do.
//
// Rules
//   1. A task that was taken runs once, or is destroyed unrun by a stop() that drops; the count says
//      how many. Nothing is taken after stop() has begun.
//   2. Nobody ever waits for room: a post is refused, or its task stands in the waiting list, which
//      is only as long as its users let it (offload() lets each connection have one task there).
//   3. No task runs and none is destroyed under the lock. A worker sleeps only while the queue is
//      empty, and stop() wakes all.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include "penstock/base/bounded_log.h"
#include "penstock/base/result.h"
#include "penstock/loop/mailbox.h"

namespace penstock {

class Kernel;

/// How a pool is made.
struct WorkerPoolOptions {
  /// Workers; 0: as many as there are processors this process may use, counted at start().
  std::size_t threads = 0;
  /// Tasks that may be queued, those that run not included; at least 1.
  std::size_t queue_max = 1024;
  /// Runs in each worker before its first task, with the worker's index: for names, affinity,
  /// priorities. May throw: that is logged, and the worker works all the same.
  std::move_only_function<void(std::size_t index)> on_thread_start{};
  /// The kernel, for blocking signals and for the time of log lines; nullptr is the real one. It
  /// outlives the pool.
  Kernel* kernel = nullptr;
};

/// What a stop() does with tasks that have not begun.
enum class WorkerStop : std::uint8_t {
  finish,  ///< Runs them.
  drop,    ///< Destroys them unrun.
};

/// What became of a task that may wait for room.
enum class [[nodiscard]] Admission : std::uint8_t {
  posted,   ///< It is queued.
  waiting,  ///< It waits for room in the queue, behind those that waited before.
  closed,   ///< The pool has been stopped; nothing has been taken.
};

/// A pool's account: a snapshot, consistent in itself.
struct WorkerPoolStatistics {
  std::uint64_t run = 0;         ///< Tasks that have run to their end, those that threw included.
  std::uint64_t threw = 0;       ///< Tasks that threw.
  std::uint64_t refused = 0;     ///< Posts answered `full`.
  std::uint64_t waited = 0;      ///< Tasks that had to wait for room.
  std::uint64_t dropped = 0;     ///< Tasks that a stop destroyed unrun.
  std::size_t running = 0;       ///< Tasks that run now.
  std::size_t queued = 0;        ///< Tasks in the queue now.
  std::size_t waiting = 0;       ///< Tasks that wait for room now.
  std::size_t queued_peak = 0;   ///< The most there were in the queue at a time.
  std::size_t waiting_peak = 0;  ///< The most that waited for room at a time.
};

/// Workers from start() to stop(); it has one life. start(), stop() and the destructor are for one
/// thread, which is none of its workers.
class WorkerPool {
 public:
  /// Starts nothing yet. Tasks may be posted from now on, and run once start() has been called.
  explicit WorkerPool(WorkerPoolOptions options = {});
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;
  /// stop(WorkerStop::drop), if need be. Asserts that no worker of its own does it.
  ~WorkerPool();

  /// Starts the workers, with all signals blocked. Errors: already_started, stopped, and EAGAIN when
  /// the system has no threads left; then none works, and start() may be tried again.
  [[nodiscard]] Result<void> start();

  /// Takes no more tasks, finishes or drops those that have not begun, waits for those that run, and
  /// ends the workers. Answers how many it dropped (all that are left, if the pool was never
  /// started). Asserts that no worker of its own calls it. Idempotent.
  std::size_t stop(WorkerStop how = WorkerStop::finish);

  /// Workers; 0 before start() and after stop().
  std::size_t size() const noexcept { return threads_.size(); }

  // -- Thread-safe --

  /// Queues the task. `full`: queue_max are queued; `closed`: the pool has been stopped. When
  /// refused, `task` is left as it was. A task that throws is logged and counted.
  PostResult try_post(Task&& task);

  /// Queues the task, or has it wait for room; refused only when the pool has been stopped, and
  /// `task` and `admitted` are then left as they were. `admitted`, which may be empty, is used for a
  /// task that waits: it is called once, on any thread, after the task has left the waiting list, to
  /// be queued or (by a stop) to be destroyed unrun. It must be short; it may come before this call
  /// has returned. Who calls this bounds how many wait.
  Admission post_or_wait(Task&& task, Task&& admitted);

  /// Its account so far.
  WorkerPoolStatistics statistics() const;

  /// The pool that the calling thread works for, or nullptr.
  static WorkerPool* current() noexcept;

 private:
  // Made where it is posted, which may throw; it then moves from list to list.
  struct Entry {
    Task task{};
    Task admitted{};  // of one that waits
  };

  void work(std::size_t index) noexcept;
  void run(Task& task) noexcept;
  Kernel& kernel() const noexcept;
  void enqueue(Task&& task);
  void note_queued() noexcept;
  Task admit_next() noexcept;
  void end_threads();

  WorkerPoolOptions options_;
  std::vector<std::thread> threads_;
  mutable std::mutex mutex_;
  std::condition_variable work_or_end_;
  BoundedLog exception_log_;
  // Under the mutex:
  std::list<Entry> queue_;       // at most queue_max
  std::list<Entry> waiting_;     // not empty only while the queue is full
  bool stopped_ = false;         // nothing is taken any more; workers end when the queue is empty
  bool start_failed_ = false;    // workers end at once
  WorkerPoolStatistics counts_;  // but for `queued` and `waiting`
};

}  // namespace penstock

// The event loop: one per thread, everything of a connection happens on it. A turn of it is one
// function (turn()):
//
//   1 run posted tasks        one exchange of the mailbox, at most 1,024 a turn
//   2 fire due timers         at most 1,024 a turn; due before the last poll began
//   3 flush                   sends made outside their connection's handler, merged
//   4 poll                    wait, dispatch handlers
//   5 notify                  write-complete, water marks, on_close; what they add waits for the
//   next turn
//   6 bury                    the closed
//
// It does not sleep while anything is due. The loop refuses to be turned from inside itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "penstock/base/bounded_log.h"
#include "penstock/base/clock.h"
#include "penstock/base/counted.h"
#include "penstock/base/latency_histogram.h"
#include "penstock/base/result.h"
#include "penstock/bytes/memory_budget.h"
#include "penstock/io/io_backend.h"
#include "penstock/loop/mailbox.h"
#include "penstock/loop/timer_queue.h"

namespace penstock {

class SignalWatcher;

/// How a loop is made. The defaults are right for most programs.
struct EventLoopOptions {
  /// Which back-end; `automatic` is PENSTOCK_BACKEND's choice, or epoll.
  Backend backend = Backend::automatic;
  /// The kernel it talks to; nullptr is the real one. Outlives the loop.
  Kernel* kernel = nullptr;
  /// How it divides its time between connections.
  IoOptions io{};
  /// Bound on the bytes that handles, of any thread, may have under way to this loop's connections.
  std::size_t posted_bytes_max = std::size_t{64} * 1024 * 1024;
  /// Bound on the memory of all connections' queues, shared with other loops; empty: half of the
  /// machine's (or cgroup's) memory, for this loop alone.
  CountedPtr<MemoryBudget> memory_budget{};
};

/// Names a timer of one loop; 0 names none.
struct TimerId {
  /// Never used twice by a loop.
  std::uint64_t value = 0;

  /// Whether both name the same timer, of one loop.
  friend bool operator==(const TimerId&, const TimerId&) = default;
};

/// Counters of a loop since its start. Read on the loop's thread.
struct LoopStatistics {
  std::uint64_t turns = 0;            ///< Turns made.
  std::uint64_t tasks_run = 0;        ///< Tasks run, those that threw included.
  std::uint64_t timers_fired = 0;     ///< Timers fired, those of connections included.
  std::uint64_t exceptions = 0;       ///< User callbacks of any kind that threw.
  std::uint64_t wakeups_written = 0;  ///< Posts that had to wake the loop.
  IoStatistics io{};                  ///< Its back-end's.
};

/// A part of an upper floor that lives in a loop and takes part in its turns (the connections do).
class LoopService {
 public:
  LoopService() = default;
  LoopService(const LoopService&) = delete;
  LoopService& operator=(const LoopService&) = delete;
  virtual ~LoopService() = default;

  virtual void flush() = 0;   ///< Step 3 of the turn.
  virtual void notify() = 0;  ///< Step 5.
  virtual void bury() = 0;    ///< Step 6.
  /// Whether the loop must not sleep: flush() or notify() has something to do.
  virtual bool busy() const = 0;
  /// The loop is being destroyed: start to end everything. Turns follow until idle().
  virtual void shut_down() = 0;
  /// Whether everything has ended, so that the loop may go.
  virtual bool idle() const = 0;
};

/// Turns on one thread at a time and serves everything that was made on it. A program owns it; what
/// stands under "Thread-safe" may be called from anywhere.
class EventLoop {
 public:
  /// Makes a loop. If that fails, the object exists and error() says why; start() of a server on
  /// it, and run(), answer that error.
  explicit EventLoop(EventLoopOptions options = {});
  /// Makes a loop or says why not.
  [[nodiscard]] static Result<std::unique_ptr<EventLoop>> create(EventLoopOptions options = {});
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;
  /// Not while it runs. Resets the connections that are left and reports them, drops tasks and
  /// timers.
  ~EventLoop();

  /// Why the loop cannot work; no error if it can. Without looking here first, only run(), watch(),
  /// on_signal(), posting and the destructor may be used.
  std::error_code error() const noexcept { return error_; }

  // -- Thread-safe --

  /// The loop that is being turned by the calling thread, or nullptr.
  static EventLoop* current() noexcept;
  /// Whether the caller is inside a turn of this loop.
  bool in_loop() const noexcept { return current() == this; }
  /// Its name for handles and posts, valid for ever.
  LoopId id() const noexcept { return mailbox_ != nullptr ? mailbox_->id() : LoopId{}; }

  /// Ends run() after the current turn; if it does not run, the next run() ends after one turn.
  void stop() noexcept;
  /// Runs the task: at once when in the loop, else as queue_in_loop.
  void run_in_loop(Task task);
  /// Runs the task in a later turn, after those queued before. If the loop is being destroyed the
  /// task is destroyed unrun.
  void queue_in_loop(Task task);

  /// Runs the task once at `when`, never early. A timer fires after the first poll that began at or
  /// behind its time, so what had arrived by then is dispatched first; one that is due already
  /// takes a turn or two.
  TimerId run_at(TimePoint when, Task task);
  /// Runs the task once, `delay` from now; negative counts as zero.
  TimerId run_after(Duration delay, Task task);
  /// Runs the task every `period` (at least 1 ns), first after one period. Periods missed by a late
  /// loop are skipped, not made up.
  TimerId run_every(Duration period, Task task);
  /// Cancels a timer; one that has fired, or was cancelled, is ignored. On the loop it takes effect
  /// at once: the task does not run any more. From another thread a task that is due right now may
  /// still run.
  void cancel(TimerId id);

  // -- On the loop's thread, or while it does not run --

  /// Turns until stop(). Answers error() if the loop could not be made.
  [[nodiscard]] Result<void> run();
  /// One turn, which waits at most `longest_wait` (Duration::max(): without end). For programs and
  /// tests that own the outer loop.
  void step(Duration longest_wait = Duration::zero());

  /// The time of the turn: when its events were received. Costs nothing.
  TimePoint now() const noexcept { return backend_->now(); }
  /// A time up to which everything that had arrived has been dispatched: when the last poll began,
  /// at the latest. Timers fire by it, so that a process that stood still does not take data that
  /// waits in the kernel for silence.
  TimePoint polled_until() const noexcept { return polled_until_; }
  /// The clock, read now.
  TimePoint read_clock() { return kernel_.now(); }

  /// Called with what happened on a watched descriptor.
  using WatchCallback = std::move_only_function<void(Readiness)>;
  /// Watches any descriptor epoll takes, by level: it is called each turn as long as the condition
  /// holds. The descriptor stays the caller's; unwatch before closing it. Errors: EEXIST when
  /// watched already, EPERM for a regular file, and what epoll_ctl says.
  [[nodiscard]] Result<WatchId> watch(int fd, Interest interest, WatchCallback callback);
  /// Waits for something else on the descriptor. Errors: ENOENT when the id is unknown, and what
  /// epoll_ctl says.
  [[nodiscard]] Result<void> change_watch(WatchId id, Interest interest);
  /// The callback does not run again; it is destroyed at the end of the turn. Unknown ids are
  /// ignored.
  void unwatch(WatchId id);

  /// Takes over a signal: blocks it in the calling thread, and calls back in the loop whenever it
  /// comes. Blocked in other threads too it comes here for certain; so set this up before starting
  /// threads. The mask is restored when the last callback of this loop goes. One callback per
  /// signal; nullptr takes it back.
  [[nodiscard]] Result<void> on_signal(int signal_number,
                                       std::move_only_function<void(int)> callback);

  /// The name of its back-end, for instance "epoll".
  std::string_view backend_name() const noexcept { return backend_->name(); }
  /// Its counters so far. Not for a loop that could not be made.
  LoopStatistics statistics() const;
  /// How long the loop was away from its wait, each turn: what an event may have had to wait for,
  /// beside the events before it.
  const LatencyHistogram& lag() const noexcept { return lag_; }

  // -- For the floors above --

  ///@{
  /// What the loop is made of; borrowed, and used on the loop's thread. Not for a loop that could not
  /// be made.
  IoBackend& backend() noexcept { return *backend_; }
  Kernel& kernel() noexcept { return kernel_; }
  BudgetLease& memory() noexcept { return memory_; }
  TimerQueue& timers() noexcept { return timers_; }
  Mailbox& mailbox() noexcept { return *mailbox_; }
  ///@}
  /// Asserts that the caller may touch the loop's objects: it is in the loop, or the loop does not
  /// run.
  void assert_here() const noexcept;
  /// Whether some thread is inside run() or step().
  bool running() const noexcept { return running_.load(std::memory_order_acquire); }
  /// Counts and logs what a user callback threw; call inside a catch block.
  void report_exception(const char* where) noexcept;
  /// The service of type T, made on first use as T(EventLoop&).
  template <class T>
  T& service() {
    static const char key = 0;
    for (const auto& [its_key, service] : services_) {
      if (its_key == &key) return static_cast<T&>(*service);
    }
    services_.emplace_back(&key, std::make_unique<T>(*this));
    return static_cast<T&>(*services_.back().second);
  }

 private:
  struct UserTimer;
  struct UserWatch;

  static constexpr std::size_t kTasksPerTurn = 1024;
  static constexpr std::size_t kTimersPerTurn = 1024;
  static constexpr int kFullTurnsMax = 32;

  // What escapes a turn (no memory for the loop itself) ends the program.
  void turn(Duration longest_wait) noexcept;
  // By index: a callback may bring a new service to life.
  template <class Visit>
  void for_each_service(Visit visit) {
    std::size_t next = 0;
    while (next < services_.size())
      visit(*services_[next++].second);
  }
  void run_tasks();
  bool anything_due();
  TimerId add_timer(TimePoint when, Duration period, Task task);
  void add_timer_here(TimerId id, TimePoint when, Duration period, Task task);
  void fire(UserTimer& timer);
  void cancel_here(TimerId id);
  void drop_ended_watches() noexcept;

  Kernel& kernel_;
  std::error_code error_;
  std::unique_ptr<IoBackend> backend_;
  Mailbox* mailbox_ = nullptr;
  BudgetLease memory_;
  TimerQueue timers_;
  std::vector<Mailbox::Item> tasks_;  // taken from the mailbox, run from next_task_ on
  std::size_t next_task_ = 0;
  std::unordered_map<std::uint64_t, std::unique_ptr<UserTimer>> user_timers_;
  UserTimer* firing_timer_ = nullptr;
  std::vector<std::uint64_t> cancelled_under_way_;  // before the mailbox brought them
  std::atomic<std::size_t> timers_under_way_{0};
  std::unordered_map<std::uint64_t, std::unique_ptr<UserWatch>> user_watches_;
  std::vector<std::unique_ptr<UserWatch>> ended_watches_;  // destroyed at the end of the turn
  std::unique_ptr<SignalWatcher> signals_;
  std::vector<std::pair<const void*, std::unique_ptr<LoopService>>> services_;
  BoundedLog exception_log_;
  LoopStatistics statistics_;
  LatencyHistogram lag_;
  TimePoint polled_until_ = TimePoint::min();
  TimePoint round_began_ = TimePoint::min();  // when the first poll since then did
  bool behind_ = false;                       // it could not be moved since
  int full_turns_ = 0;                        // turns with a full batch, likewise
  std::atomic<std::uint64_t> last_timer_id_{0};
  std::atomic<bool> stop_requested_{false};
  std::atomic<bool> running_{false};
};

}  // namespace penstock

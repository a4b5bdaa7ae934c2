// How other threads reach a loop: a queue of tasks behind a mutex, and a wake-up only for a loop
// that sleeps. Mailboxes live in a table as long as the process does and are used again under a new
// generation, so a LoopId is inert, never dangling, after its loop is gone.
//
// Rules
//   1. Tasks of one producer run in the order posted. Each runs once or is destroyed unrun when the
//      loop goes.
//   2. No task runs and none is destroyed under the lock. The wake-up is written under it, so that it
//      cannot meet a loop that is being destroyed.
//   3. No wake-up is lost: the loop declares that it sleeps before it looks for mail once more, a
//      producer leaves mail before it looks for a sleeper; both orders are sequentially consistent.
#pragma once

#include <atomic>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "penstock/base/counted.h"
#include "penstock/base/result.h"
#include "penstock/bytes/memory_budget.h"

namespace penstock {

class IoBackend;

/// Work for a loop. A task that throws is logged and counted.
using Task = std::move_only_function<void()>;

/// Names an event loop for ever; generation 0 names none.
struct LoopId {
  std::uint32_t slot = 0;        ///< Index of the mailbox.
  std::uint32_t generation = 0;  ///< Which of the loops that have used it.

  /// An order for use as a key; it means nothing else.
  friend auto operator<=>(const LoopId&, const LoopId&) = default;
};

/// What became of a post to a loop or to a worker pool.
enum class [[nodiscard]] PostResult : std::uint8_t {
  posted,  ///< It will run, or be destroyed when the loop (or the pool) goes.
  full,    ///< The bound (on posted bytes, on queued tasks) is reached; nothing has been taken.
  closed,  ///< The loop is gone, or the pool has been stopped; nothing has been taken.
};

/// The mail of one loop. Made by open(), never destroyed; the loop borrows it until retire().
class Mailbox {
 public:
  /// Loops that can exist at a time.
  static constexpr std::size_t kLoopsMax = 1024;

  /// A task and the bytes it is charged with.
  struct Item {
    Task task;           ///< Not empty.
    std::size_t charge;  ///< Bytes; 0 for a task that is not bounded.
  };

  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // -- Thread-safe --

  /// Posts to the loop of that name. A task with a charge is refused over the bound; one without
  /// never is. When refused, `task` is left as it was.
  static PostResult post(LoopId id, Task&& task, std::size_t charge = 0);
  PostResult post(Task&& task, std::size_t charge = 0) {
    return post(id_, std::move(task), charge);
  }

  /// The memory budget of the loop of that name; empty when the loop is gone.
  static CountedPtr<MemoryBudget> budget_of(LoopId id);

  // -- For the owning loop --

  /// A mailbox for a new loop; `backend` is what wakes it. Error: out_of_loops.
  static Result<Mailbox*> open(IoBackend& backend, std::size_t charge_max,
                               CountedPtr<MemoryBudget> budget = {});
  /// Refuses what comes from now on and hands over what has not run. The name stays the loop's.
  std::vector<Item> close();
  /// The loop is gone: the mailbox may serve another one. The last call.
  void retire();

  /// The name of the loop it serves.
  LoopId id() const noexcept { return id_; }
  /// Whether there may be mail. Cheap; no lock.
  bool has_mail() const noexcept { return has_mail_.load(std::memory_order_acquire); }
  /// Exchanges all mail for the empty vector `items`. done() follows before the next take().
  void take(std::vector<Item>& items);
  /// What was taken has been dealt with: its charge is free again. Cheap when there was none.
  void done() noexcept;
  /// Declares that the loop is about to sleep. False: there is mail, do not.
  [[nodiscard]] bool prepare_to_sleep() noexcept;
  /// Declares that it no longer does.
  void awake() noexcept;
  /// Wake-ups written so far.
  std::uint64_t wakeups_written() const noexcept {
    return wakeups_written_.load(std::memory_order_relaxed);
  }

 private:
  Mailbox() = default;

  PostResult push(LoopId id, Task&& task, std::size_t charge);
  void wake(LoopId id) noexcept;

  std::mutex mutex_;
  // Under the mutex:
  LoopId id_;
  IoBackend* backend_ = nullptr;  // nullptr: closed
  std::vector<Item> items_;
  std::size_t charged_ = 0;  // of items_ and of those taken last
  std::size_t charge_max_ = 0;
  CountedPtr<MemoryBudget> budget_;
  std::size_t taken_charge_ = 0;  // the loop's own
  // Read without it:
  std::atomic<bool> has_mail_{false};
  std::atomic<bool> sleeping_{false};
  std::atomic<std::uint64_t> wakeups_written_{0};
};

}  // namespace penstock

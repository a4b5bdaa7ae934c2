// Timers of one loop, ordered by deadline. They are embedded in what they time and never allocated.
// Owner: one loop; single-threaded. It does not read the clock, and does not clamp: compute
// deadlines with add_clamped().
//
// Rules
//   1. Timers fire in the order of their deadlines; equal deadlines in the order of their
//   scheduling.
//   2. fire_due() fires only what was scheduled before it began. A timer that schedules itself
//   without
//      delay fires once a turn. For this, a deadline before `now` that is set while
//      fire_due(now) runs counts as `now`.
//   3. A timer is no longer scheduled when its callback runs. The callback may schedule and cancel
//   any
//      timer and destroy any, its own included. What it cancels does not fire, due or not.
//   4. A callback that throws ends fire_due(); the other timers stay as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "penstock/base/clock.h"

namespace penstock {

class TimerQueue;

/// One timer: a member of what it times. It cancels itself when destroyed; neither copied nor
/// moved.
class Timer {
 public:
  /// What a timer calls, with the context it was made with.
  using Callback = void (*)(void* context);

  /// Will call callback(context) each time it fires.
  Timer(Callback callback, void* context) noexcept : callback_(callback), context_(context) {}
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() { cancel(); }

  /// A timer that calls a method: `Timer timer_ = Timer::calling<&Thing::on_idle>(*this);`
  template <auto kMethod, class Owner>
  static Timer calling(Owner& owner) noexcept {
    return Timer([](void* context) { (static_cast<Owner*>(context)->*kMethod)(); }, &owner);
  }

  /// Whether it is waiting in a queue.
  bool scheduled() const noexcept { return queue_ != nullptr; }

  /// When it is to fire; kNever when not scheduled.
  TimePoint deadline() const noexcept;

  /// Leaves its queue; does nothing when in none. Never allocates.
  void cancel() noexcept;

 private:
  friend class TimerQueue;

  TimerQueue* queue_ = nullptr;  // Not null exactly while scheduled.
  std::size_t index_ = 0;        // Its entry in the queue's heap.
  Callback callback_;
  void* context_;
};

/// The loop's timers.
class TimerQueue {
 public:
  TimerQueue() = default;
  TimerQueue(const TimerQueue&) = delete;
  TimerQueue& operator=(const TimerQueue&) = delete;
  /// Timers still scheduled are let go, unharmed. Must not run inside fire_due().
  ~TimerQueue();

  /// Sets the timer to fire at `deadline`, in place of an earlier setting in this queue. Throws
  /// std::bad_alloc, with nothing changed, when the timer was not scheduled and the heap has to
  /// grow.
  void schedule(Timer& timer, TimePoint deadline);

  /// Makes room for one more timer, so that schedule() does not allocate: whoever has a timer holds
  /// a TimerPlace as long. Throws std::bad_alloc, with nothing changed.
  void add_place() {
    if (places_ >= heap_.capacity()) heap_.reserve(places_ < 32 ? 64 : 2 * places_);
    ++places_;
  }
  /// Takes back one add_place().
  void remove_place() noexcept { --places_; }

  /// Takes back the setting of a timer of this queue; does nothing when it is not scheduled. Never
  /// allocates.
  void cancel(Timer& timer) noexcept;

  /// The earliest deadline; kNever when there is none.
  TimePoint next_deadline() const noexcept {
    return heap_.empty() ? kNever : heap_.front().deadline;
  }

  /// Timers scheduled.
  std::size_t size() const noexcept { return heap_.size(); }

  /// Fires what is due at `now` (deadline <= now), at most `limit` timers, and returns how many it
  /// fired. Must not run inside itself.
  std::size_t fire_due(TimePoint now, std::size_t limit) {
    if (heap_.empty() || heap_.front().deadline > now) return 0;
    return fire_due_entries(now, limit);
  }

 private:
  friend class Timer;

  struct Entry {
    TimePoint deadline;
    std::uint64_t sequence;  // Counts schedule() calls: the order of equal deadlines.
    Timer* timer;

    bool before(const Entry& other) const noexcept {
      return deadline != other.deadline ? deadline < other.deadline : sequence < other.sequence;
    }
  };

  // Four children: a level fewer to climb for each two of a binary heap, and the four lie side by
  // side.
  static constexpr std::size_t kChildren = 4;

  std::size_t fire_due_entries(TimePoint now, std::size_t limit);
  void remove_at(std::size_t index) noexcept;
  void put(std::size_t index, const Entry& entry) noexcept;
  void sift_up(std::size_t index, const Entry& entry) noexcept;
  void sift_down(std::size_t index, const Entry& entry) noexcept;

  std::vector<Entry> heap_;
  std::size_t places_ = 0;
  std::uint64_t next_sequence_ = 0;
  TimePoint firing_now_ = TimePoint::min();  // The `now` of fire_due() while it runs.
  bool firing_ = false;
};

/// Room for one timer in a queue, which outlives it: with it, scheduling that timer cannot fail.
class TimerPlace {
 public:
  /// Makes the room. Throws std::bad_alloc, with nothing changed.
  explicit TimerPlace(TimerQueue& queue) : queue_(queue) { queue_.add_place(); }
  TimerPlace(const TimerPlace&) = delete;
  TimerPlace& operator=(const TimerPlace&) = delete;
  ~TimerPlace() { queue_.remove_place(); }

 private:
  TimerQueue& queue_;
};

inline TimePoint Timer::deadline() const noexcept {
  return queue_ == nullptr ? kNever : queue_->heap_[index_].deadline;
}

inline void Timer::cancel() noexcept {
  if (queue_ != nullptr) queue_->cancel(*this);
}

}  // namespace penstock

#include "penstock/loop/timer_queue.h"

#include <algorithm>

#include "penstock/base/assert.h"

namespace penstock {

TimerQueue::~TimerQueue() {
  PENSTOCK_ASSERT(!firing_, "a timer's callback destroys its queue");
  for (const Entry& entry : heap_)
    entry.timer->queue_ = nullptr;
}

void TimerQueue::schedule(Timer& timer, TimePoint deadline) {
  // A time that has passed counts as the turn's: the new entry stands behind all that were due
  // before it, and fire_due() may stop at the first entry that is younger than itself.
  if (deadline < firing_now_) deadline = firing_now_;
  const Entry entry{deadline, next_sequence_, &timer};
  if (timer.queue_ == nullptr) {
    heap_.push_back(entry);  // Throws before anything is changed.
    timer.queue_ = this;
    sift_up(heap_.size() - 1, entry);
  } else {
    PENSTOCK_ASSERT(timer.queue_ == this, "the timer waits in another queue");
    const std::size_t index = timer.index_;
    if (entry.before(heap_[index])) {
      sift_up(index, entry);
    } else {
      sift_down(index, entry);
    }
  }
  ++next_sequence_;
}

void TimerQueue::cancel(Timer& timer) noexcept {
  if (timer.queue_ == nullptr) return;
  PENSTOCK_ASSERT(timer.queue_ == this, "the timer waits in another queue");
  remove_at(timer.index_);
}

std::size_t TimerQueue::fire_due_entries(TimePoint now, std::size_t limit) {
  PENSTOCK_ASSERT(!firing_, "a timer's callback fires timers");
  struct Firing {
    TimerQueue& queue;
    Firing(TimerQueue& timers, TimePoint time) noexcept : queue(timers) {
      queue.firing_ = true;
      queue.firing_now_ = time;
    }
    ~Firing() {
      queue.firing_ = false;
      queue.firing_now_ = TimePoint::min();
    }
  };
  const Firing firing(*this, now);
  const std::uint64_t first_too_young = next_sequence_;
  std::size_t fired = 0;
  while (fired < limit && !heap_.empty()) {
    const Entry& first = heap_.front();
    if (first.deadline > now || first.sequence >= first_too_young) break;
    const Timer::Callback callback = first.timer->callback_;
    void* const context = first.timer->context_;
    remove_at(0);
    ++fired;
    callback(context);  // The timer may be gone from here on.
  }
  return fired;
}

void TimerQueue::remove_at(std::size_t index) noexcept {
  heap_[index].timer->queue_ = nullptr;
  const Entry last = heap_.back();
  heap_.pop_back();
  if (index == heap_.size()) return;
  if (index > 0 && last.before(heap_[(index - 1) / kChildren])) {
    sift_up(index, last);
  } else {
    sift_down(index, last);
  }
}

void TimerQueue::put(std::size_t index, const Entry& entry) noexcept {
  heap_[index] = entry;
  entry.timer->index_ = index;
}

void TimerQueue::sift_up(std::size_t index, const Entry& entry) noexcept {
  while (index > 0) {
    const std::size_t parent = (index - 1) / kChildren;
    if (!entry.before(heap_[parent])) break;
    put(index, heap_[parent]);
    index = parent;
  }
  put(index, entry);
}

void TimerQueue::sift_down(std::size_t index, const Entry& entry) noexcept {
  for (;;) {
    const std::size_t first = index * kChildren + 1;
    if (first >= heap_.size()) break;
    const std::size_t end = std::min(first + kChildren, heap_.size());
    std::size_t least = first;
    for (std::size_t child = first + 1; child < end; ++child) {
      if (heap_[child].before(heap_[least])) least = child;
    }
    if (!heap_[least].before(entry)) break;
    put(index, heap_[least]);
    index = least;
  }
  put(index, entry);
}

}  // namespace penstock

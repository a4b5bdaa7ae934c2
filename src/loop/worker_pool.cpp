#include "penstock/loop/worker_pool.h"

#include <signal.h>

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/base/log.h"
#include "penstock/os/kernel.h"

namespace penstock {
namespace {

thread_local WorkerPool* current_pool = nullptr;

}  // namespace

WorkerPool::WorkerPool(WorkerPoolOptions options) : options_(std::move(options)) {
  options_.queue_max = std::max<std::size_t>(options_.queue_max, 1);
}

WorkerPool::~WorkerPool() { stop(WorkerStop::drop); }

WorkerPool* WorkerPool::current() noexcept { return current_pool; }

Result<void> WorkerPool::start() {
  if (!threads_.empty()) return failure(Errc::already_started);
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return failure(Errc::stopped);
    start_failed_ = false;
  }
  std::size_t wanted = options_.threads;
  if (wanted == 0) wanted = std::max(std::thread::hardware_concurrency(), 1U);

  // A thread starts with its maker's mask: signals are for whoever asked for them.
  sigset_t all;
  sigset_t previous;
  sigfillset(&all);
  kernel().signal_mask(SIG_SETMASK, &all, &previous);
  std::error_code error;
  try {
    threads_.reserve(wanted);
    for (std::size_t index = 0; index < wanted; ++index) {
      threads_.emplace_back([this, index] { work(index); });
    }
  } catch (const std::system_error& refused) {
    error = refused.code();
  }
  kernel().signal_mask(SIG_SETMASK, &previous, nullptr);
  if (!error) return {};
  {
    const std::lock_guard lock(mutex_);
    start_failed_ = true;
  }
  end_threads();
  return std::unexpected(error);
}

std::size_t WorkerPool::stop(WorkerStop how) {
  PENSTOCK_ASSERT(current_pool != this,
                  "a worker pool cannot be stopped by one of its own workers");
  std::list<Entry> unrun;
  std::list<Entry> unadmitted;
  std::size_t dropped = 0;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    if (how == WorkerStop::drop || threads_.empty()) {
      unrun.swap(queue_);
      unadmitted.swap(waiting_);
      dropped = unrun.size() + unadmitted.size();
      counts_.dropped += dropped;
    }
  }
  if (dropped > 0) {
    log_composed(LogLevel::info, [dropped] {
      return "a worker pool was stopped with " + std::to_string(dropped) + " tasks unrun";
    });
  }
  unrun.clear();
  for (Entry& waiter : unadmitted) {
    waiter.task = nullptr;
    if (waiter.admitted) run(waiter.admitted);
  }
  end_threads();
  return dropped;
}

void WorkerPool::end_threads() {
  work_or_end_.notify_all();
  for (std::thread& thread : threads_)
    thread.join();
  threads_.clear();
}

PostResult WorkerPool::try_post(Task&& task) {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return PostResult::closed;
    if (queue_.size() >= options_.queue_max) {
      ++counts_.refused;
      return PostResult::full;
    }
    enqueue(std::move(task));
  }
  work_or_end_.notify_one();
  return PostResult::posted;
}

Admission WorkerPool::post_or_wait(Task&& task, Task&& admitted) {
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return Admission::closed;
    if (queue_.size() >= options_.queue_max) {
      Entry& waiter = waiting_.emplace_back();
      waiter.task = std::move(task);
      waiter.admitted = std::move(admitted);
      ++counts_.waited;
      counts_.waiting_peak = std::max(counts_.waiting_peak, waiting_.size());
      return Admission::waiting;
    }
    enqueue(std::move(task));
  }
  work_or_end_.notify_one();
  return Admission::posted;
}

// Under the lock. Throws, if at all, before it moves.
void WorkerPool::enqueue(Task&& task) {
  queue_.emplace_back().task = std::move(task);
  note_queued();
}

// Under the lock.
void WorkerPool::note_queued() noexcept {
  counts_.queued_peak = std::max(counts_.queued_peak, queue_.size());
}

// Under the lock, when a task has left the queue: the one that has waited longest takes the place,
// without a look for memory. Answers what is to be called for that, or nothing.
Task WorkerPool::admit_next() noexcept {
  if (waiting_.empty()) return {};
  queue_.splice(queue_.end(), waiting_, waiting_.begin());
  note_queued();
  return std::exchange(queue_.back().admitted, {});
}

void WorkerPool::work(std::size_t index) noexcept {
  current_pool = this;
  if (options_.on_thread_start) {
    try {
      options_.on_thread_start(index);
    } catch (...) {
      log_composed(LogLevel::error,
                   [] { return describe_exception("worker's thread-start hook"); });
    }
  }
  std::unique_lock lock(mutex_);
  while (true) {
    work_or_end_.wait(lock, [this] { return !queue_.empty() || stopped_ || start_failed_; });
    if (queue_.empty() || start_failed_) return;
    Task task = std::move(queue_.front().task);
    queue_.pop_front();
    const bool lets_one_in = !waiting_.empty();
    Task admitted = admit_next();
    ++counts_.running;
    lock.unlock();
    if (lets_one_in) work_or_end_.notify_one();  // there is a task that nobody else was woken for
    if (admitted) {
      run(admitted);
      admitted = nullptr;
    }
    run(task);
    task = nullptr;
    lock.lock();
    --counts_.running;
    ++counts_.run;
  }
}

Kernel& WorkerPool::kernel() const noexcept {
  return options_.kernel != nullptr ? *options_.kernel : linux_kernel();
}

void WorkerPool::run(Task& task) noexcept {
  try {
    task();
  } catch (...) {
    exception_log_.log(LogLevel::error, kernel().now(),
                       [] { return describe_exception("worker's task"); });
    const std::lock_guard lock(mutex_);
    ++counts_.threw;
  }
}

WorkerPoolStatistics WorkerPool::statistics() const {
  const std::lock_guard lock(mutex_);
  WorkerPoolStatistics counts = counts_;
  counts.queued = queue_.size();
  counts.waiting = waiting_.size();
  return counts;
}

}  // namespace penstock

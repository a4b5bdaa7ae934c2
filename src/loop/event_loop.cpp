#include "penstock/loop/event_loop.h"

#include <algorithm>
#include <string>

#include "loop/signal_watcher.h"
#include "penstock/base/assert.h"
#include "penstock/base/log.h"

namespace penstock {
namespace {

thread_local EventLoop* current_loop = nullptr;

// Marks a loop as the one being turned. Many loops may take turns on one thread (a simulation does),
// and one may be turned inside a turn of another (a callback that destroys one); never inside its own.
class TurnScope {
 public:
  explicit TurnScope(EventLoop& loop) noexcept : outer_(std::exchange(current_loop, &loop)) {}
  TurnScope(const TurnScope&) = delete;
  TurnScope& operator=(const TurnScope&) = delete;
  ~TurnScope() { current_loop = outer_; }

 private:
  EventLoop* outer_;
};

CountedPtr<MemoryBudget> budget_or_default(CountedPtr<MemoryBudget> budget, Kernel& kernel) {
  if (budget) return budget;
  return make_counted<MemoryBudget>(kernel.memory_limit() / 2);
}

std::uint64_t key_of(WatchId id) noexcept { return (std::uint64_t{id.generation} << 32) | id.slot; }

}  // namespace

struct EventLoop::UserTimer {
  UserTimer(EventLoop& its_loop, TimerId its_id, TimePoint when, Duration its_period, Task its_task)
      : loop(its_loop), id(its_id), due(when), period(its_period), task(std::move(its_task)) {}

  void on_timer() { loop.fire(*this); }

  EventLoop& loop;
  TimerId id;
  TimePoint due;
  Duration period;  // zero: once
  Task task;
  bool cancelled = false;
  TimerPlace place{loop.timers_};
  Timer timer = Timer::calling<&UserTimer::on_timer>(*this);
};

struct EventLoop::UserWatch final : WatchHandler {
  UserWatch(EventLoop& its_loop, WatchCallback its_callback) noexcept
      : loop(its_loop), callback(std::move(its_callback)) {}

  void on_ready(Readiness readiness) override {
    try {
      callback(readiness);
    } catch (...) {
      loop.report_exception("watch callback");
    }
  }

  EventLoop& loop;
  WatchCallback callback;
};

EventLoop::EventLoop(EventLoopOptions options)
    : kernel_(options.kernel != nullptr ? *options.kernel : linux_kernel()),
      memory_(budget_or_default(std::move(options.memory_budget), kernel_)) {
  Result<std::unique_ptr<IoBackend>> backend = make_backend(options.backend, kernel_, options.io);
  if (!backend) {
    error_ = backend.error();
    return;
  }
  Result<Mailbox*> mailbox = Mailbox::open(**backend, options.posted_bytes_max, memory_.budget());
  if (!mailbox) {
    error_ = mailbox.error();
    return;
  }
  backend_ = std::move(*backend);
  mailbox_ = *mailbox;
}

Result<std::unique_ptr<EventLoop>> EventLoop::create(EventLoopOptions options) {
  auto loop = std::make_unique<EventLoop>(std::move(options));
  if (loop->error()) return std::unexpected(loop->error());
  return loop;
}

EventLoop::~EventLoop() {
  if (error_) return;
  PENSTOCK_ASSERT(!running(), "a loop cannot be destroyed while it runs");
  std::vector<Mailbox::Item> unrun = mailbox_->close();  // the name stays ours until the end
  const std::size_t dropped = unrun.size() + tasks_.size() - next_task_;
  if (dropped > 0) {
    log_composed(LogLevel::info, [dropped] {
      return "an event loop went with " + std::to_string(dropped) + " tasks unrun";
    });
  }
  unrun.clear();
  tasks_.clear();
  next_task_ = 0;
  mailbox_->done();
  while (!user_timers_.empty())
    user_timers_.extract(user_timers_.begin());
  // Each turn ends what it can; a connection needs two. The bound is for a callback that makes new
  // ones for ever.
  constexpr int kTurnsMax = 1000;
  const auto all_idle = [this] {
    return std::ranges::all_of(services_, [](const auto& entry) { return entry.second->idle(); });
  };
  for (int turns = 0; !all_idle(); ++turns) {
    PENSTOCK_ASSERT(turns < kTurnsMax, "connections keep being made while their loop is destroyed");
    for_each_service([](LoopService& service) { service.shut_down(); });
    step();
  }
  services_.clear();
  signals_.reset();
  while (!user_watches_.empty()) {
    const auto watch = user_watches_.extract(user_watches_.begin());
    backend_->unwatch(WatchId{SlotId{.slot = static_cast<std::uint32_t>(watch.key()),
                                     .generation = static_cast<std::uint32_t>(watch.key() >> 32)}});
  }
  drop_ended_watches();
  mailbox_->retire();
}

// One by one: what a callback holds may end watches too.
void EventLoop::drop_ended_watches() noexcept {
  while (!ended_watches_.empty()) {
    const std::unique_ptr<UserWatch> last = std::move(ended_watches_.back());
    ended_watches_.pop_back();
  }
}

EventLoop* EventLoop::current() noexcept { return current_loop; }

void EventLoop::assert_here() const noexcept {
  PENSTOCK_ASSERT(in_loop() || !running(),
                  "used outside its loop's thread: post a task or use a handle");
}

// -- Running --------------------------------------------------------------------------------------

Result<void> EventLoop::run() {
  if (error_) return std::unexpected(error_);
  PENSTOCK_ASSERT(!running_.exchange(true), "the loop runs already");
  do {
    turn(Duration::max());
  } while (!stop_requested_.exchange(false));
  running_.store(false, std::memory_order_release);
  return {};
}

void EventLoop::step(Duration longest_wait) {
  PENSTOCK_ASSERT(!error_, "the loop could not be made; see error()");
  PENSTOCK_ASSERT(!running_.exchange(true), "the loop runs already");
  // A stop() is for the next run(); here it must not keep the turn from waiting.
  const bool stop_requested = stop_requested_.exchange(false);
  turn(longest_wait);
  if (stop_requested) stop_requested_.store(true);
  running_.store(false, std::memory_order_release);
}

void EventLoop::stop() noexcept {
  if (error_) return;
  stop_requested_.store(true);
  if (!in_loop()) queue_in_loop([] {});  // wakes it
}

void EventLoop::turn(Duration longest_wait) noexcept {
  const TurnScope scope(*this);
  ++statistics_.turns;

  run_tasks();                                                                  // 1
  statistics_.timers_fired += timers_.fire_due(polled_until_, kTimersPerTurn);  // 2
  for_each_service([](LoopService& service) { service.flush(); });              // 3

  TimePoint deadline = TimePoint::min();
  if (longest_wait > Duration::zero() && !anything_due() && mailbox_->prepare_to_sleep()) {
    deadline = timers_.next_deadline();
    if (longest_wait != Duration::max()) {
      deadline = std::min(deadline, add_clamped(read_clock(), longest_wait));
    }
  }
  const TimePoint polled = now();
  const TimePoint time = read_clock();
  lag_.record(time - polled);
  backend_->poll(deadline, time);  // 4
  mailbox_->awake();
  // A full batch may have left somebody unheard, and whoever is busy waits for a turn: all that had
  // arrived when the first of these polls began has been dispatched when there is nobody left. What
  // has come since may wait for a turn of its own. A round ends; batches may be full for ever, and
  // their bound keeps timers going.
  if (!behind_) round_began_ = polled;
  const bool full = backend_->more_waiting();
  if (full) ++full_turns_;
  behind_ = backend_->round_under_way() || (full && full_turns_ < kFullTurnsMax);
  if (!behind_) {
    polled_until_ = round_began_;
    full_turns_ = 0;
  }

  for_each_service([](LoopService& service) { service.notify(); });  // 5
  for_each_service([](LoopService& service) { service.bury(); });    // 6
  drop_ended_watches();
}

bool EventLoop::anything_due() {
  if (next_task_ < tasks_.size() || stop_requested_.load(std::memory_order_relaxed)) return true;
  for (const auto& [key, service] : services_) {
    if (service->busy()) return true;
  }
  return false;
}

void EventLoop::run_tasks() {
  if (next_task_ == tasks_.size()) {
    if (!mailbox_->has_mail()) return;
    tasks_.clear();
    next_task_ = 0;
    mailbox_->take(tasks_);
  }
  const std::size_t end = std::min(tasks_.size(), next_task_ + kTasksPerTurn);
  while (next_task_ < end) {
    // Moved out, so that what the task holds is released as soon as it has run.
    Task task = std::move(tasks_[next_task_++].task);
    ++statistics_.tasks_run;
    try {
      task();
    } catch (...) {
      report_exception("task");
    }
  }
  if (next_task_ == tasks_.size()) mailbox_->done();
}

void EventLoop::run_in_loop(Task task) {
  if (!in_loop()) {
    queue_in_loop(std::move(task));
    return;
  }
  try {
    task();
  } catch (...) {
    report_exception("task");
  }
}

void EventLoop::queue_in_loop(Task task) {
  if (mailbox_ != nullptr) static_cast<void>(mailbox_->post(std::move(task)));
}

void EventLoop::report_exception(const char* where) noexcept {
  ++statistics_.exceptions;
  exception_log_.log(LogLevel::error, now(), [where] { return describe_exception(where); });
}

LoopStatistics EventLoop::statistics() const {
  PENSTOCK_ASSERT(!error_, "the loop could not be made; see error()");
  LoopStatistics statistics = statistics_;
  statistics.wakeups_written = mailbox_->wakeups_written();
  statistics.io = backend_->statistics();
  return statistics;
}

// -- Timers ---------------------------------------------------------------------------------------

TimerId EventLoop::run_at(TimePoint when, Task task) {
  return add_timer(when, Duration::zero(), std::move(task));
}

TimerId EventLoop::run_after(Duration delay, Task task) {
  return run_at(add_clamped(read_clock(), delay), std::move(task));
}

TimerId EventLoop::run_every(Duration period, Task task) {
  period = std::max(period, Duration(1));
  return add_timer(add_clamped(read_clock(), period), period, std::move(task));
}

void EventLoop::cancel(TimerId id) {
  run_in_loop([this, id] { cancel_here(id); });
}

TimerId EventLoop::add_timer(TimePoint when, Duration period, Task task) {
  const TimerId id{last_timer_id_.fetch_add(1, std::memory_order_relaxed) + 1};
  if (in_loop()) {
    add_timer_here(id, when, period, std::move(task));
    return id;
  }
  timers_under_way_.fetch_add(1);
  queue_in_loop([this, id, when, period, task = std::move(task)]() mutable {
    timers_under_way_.fetch_sub(1);
    if (std::ranges::find(cancelled_under_way_, id.value) == cancelled_under_way_.end())
      add_timer_here(id, when, period, std::move(task));
  });
  return id;
}

void EventLoop::add_timer_here(TimerId id, TimePoint when, Duration period, Task task) {
  auto timer = std::make_unique<UserTimer>(*this, id, when, period, std::move(task));
  UserTimer& added = *timer;
  user_timers_.emplace(id.value, std::move(timer));
  timers_.schedule(added.timer, when);
}

void EventLoop::cancel_here(TimerId id) {
  if (firing_timer_ != nullptr && firing_timer_->id == id) {
    firing_timer_->cancelled = true;  // it lives until its task returns
    return;
  }
  // Out of the table before it is destroyed: what its task holds may cancel timers too.
  if (const auto cancelled = user_timers_.extract(id.value)) return;
  if (timers_under_way_.load() == 0) return;
  // It may still be in the mailbox, before the task that takes the note back.
  cancelled_under_way_.push_back(id.value);
  queue_in_loop([this, id] { std::erase(cancelled_under_way_, id.value); });
}

void EventLoop::fire(UserTimer& timer) {
  firing_timer_ = &timer;
  try {
    timer.task();
  } catch (...) {
    report_exception("timer");
  }
  firing_timer_ = nullptr;
  if (timer.period == Duration::zero() || timer.cancelled) {
    const auto over = user_timers_.extract(timer.id.value);
    return;
  }
  timer.due = add_clamped(timer.due, timer.period);
  if (timer.due <= now()) timer.due = add_clamped(now(), timer.period);
  timers_.schedule(timer.timer, timer.due);
}

// -- Watches and signals --------------------------------------------------------------------------

Result<WatchId> EventLoop::watch(int fd, Interest interest, WatchCallback callback) {
  if (error_) return std::unexpected(error_);
  assert_here();
  auto watch = std::make_unique<UserWatch>(*this, std::move(callback));
  // So that unwatch() need not allocate.
  ended_watches_.reserve(ended_watches_.size() + user_watches_.size() + 1);
  const Result<WatchId> id = backend_->watch(fd, interest, *watch);
  if (!id) return id;
  try {
    user_watches_.emplace(key_of(*id), std::move(watch));
  } catch (...) {
    backend_->unwatch(*id);
    throw;
  }
  return id;
}

Result<void> EventLoop::change_watch(WatchId id, Interest interest) {
  assert_here();
  return backend_->change_watch(id, interest);
}

void EventLoop::unwatch(WatchId id) {
  assert_here();
  backend_->unwatch(id);
  const auto found = user_watches_.find(key_of(id));
  if (found == user_watches_.end()) return;
  ended_watches_.push_back(std::move(found->second));
  user_watches_.erase(found);
}

Result<void> EventLoop::on_signal(int signal_number, std::move_only_function<void(int)> callback) {
  if (error_) return std::unexpected(error_);
  assert_here();
  if (!signals_) signals_ = std::make_unique<SignalWatcher>(*this);
  return signals_->set(signal_number, std::move(callback));
}

}  // namespace penstock

#include "penstock/loop/loop_group.h"

#include <signal.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "penstock/base/assert.h"

namespace penstock {

LoopGroup::LoopGroup(LoopGroupOptions options) : options_(std::move(options)) {}

LoopGroup::~LoopGroup() { stop(); }

Result<void> LoopGroup::start() {
  if (!loops_.empty()) return failure(Errc::already_started);
  Kernel& kernel = options_.loop.kernel != nullptr ? *options_.loop.kernel : linux_kernel();
  if (!options_.loop.memory_budget) {
    options_.loop.memory_budget = make_counted<MemoryBudget>(kernel.memory_limit() / 2);
  }
  const std::size_t wanted = std::max<std::size_t>(options_.loops, 1);
  for (std::size_t index = 0; index < wanted; ++index) {
    Result<std::unique_ptr<EventLoop>> loop = EventLoop::create(options_.loop);
    if (!loop) {
      loops_.clear();
      return std::unexpected(loop.error());
    }
    loops_.push_back(std::move(*loop));
  }

  // A thread starts with its maker's mask: signals are for whoever asked for them, not for these
  // loops.
  sigset_t all;
  sigset_t previous;
  sigfillset(&all);
  kernel.signal_mask(SIG_SETMASK, &all, &previous);
  std::error_code error;
  try {
    threads_.reserve(wanted);
    for (std::size_t index = 0; index < wanted; ++index) {
      threads_.emplace_back([this, index] { run(index); });
    }
  } catch (const std::system_error& refused) {
    error = refused.code();
  }
  kernel.signal_mask(SIG_SETMASK, &previous, nullptr);
  if (!error) return {};
  stop();
  return std::unexpected(error);
}

void LoopGroup::run(std::size_t index) noexcept {
  EventLoop& loop = *loops_[index];
  if (options_.on_thread_start) {
    try {
      options_.on_thread_start(index, loop);
    } catch (...) {
      loop.report_exception("thread-start hook");
    }
  }
  const Result<void> ran = loop.run();
  PENSTOCK_ASSERT(ran.has_value(), "a loop that was made must run");
}

void LoopGroup::stop() {
  for (const std::unique_ptr<EventLoop>& loop : loops_) {
    PENSTOCK_ASSERT(!loop->in_loop(), "a loop group cannot be stopped by one of its own loops");
    loop->stop();
  }
  for (std::thread& thread : threads_)
    thread.join();
  threads_.clear();
  loops_.clear();
}

}  // namespace penstock

#include "loop/signal_watcher.h"

#include <sys/signalfd.h>

#include <cerrno>
#include <utility>

#include "penstock/loop/event_loop.h"

namespace penstock {

SignalWatcher::~SignalWatcher() { close(); }

Result<void> SignalWatcher::set(int signal_number, Callback callback) {
  sigset_t wanted;
  sigemptyset(&wanted);
  for (const auto& [number, entry] : callbacks_) {
    if (number != signal_number) sigaddset(&wanted, number);
  }
  if (callback && sigaddset(&wanted, signal_number) != 0) return failure(EINVAL);
  const bool last_goes = !callback && sigisemptyset(&wanted) != 0;
  if (last_goes) {
    close();
  } else if (const Result<void> applied = apply(wanted); !applied) {
    return applied;
  }
  std::unique_ptr<Entry>& entry = callbacks_[signal_number];
  if (entry && entry->running) ended_ = std::move(entry);  // it lives until it returns
  entry = callback ? std::make_unique<Entry>(Entry{.callback = std::move(callback)}) : nullptr;
  if (!entry) callbacks_.erase(signal_number);
  return {};
}

Result<void> SignalWatcher::apply(const sigset_t& wanted) {
  Kernel& kernel = loop_.kernel();
  const bool first = !fd_;
  const int fd = kernel.signalfd(fd_.get(), &wanted, SFD_NONBLOCK | SFD_CLOEXEC);
  if (fd < 0) return failure(fd);
  if (first) {
    fd_ = UniqueFd(kernel, fd);
    kernel.signal_mask(SIG_BLOCK, nullptr, &previous_mask_);
    const Result<WatchId> watch =
        loop_.watch(fd, Interest::readable, [this](Readiness) { drain(); });
    if (!watch) {
      fd_.reset();
      return std::unexpected(watch.error());
    }
    watch_ = *watch;
  }
  // What is wanted no longer goes back to how it was.
  sigset_t mask = previous_mask_;
  for (int number = 1; number < NSIG; ++number) {
    if (sigismember(&wanted, number) == 1) sigaddset(&mask, number);
  }
  kernel.signal_mask(SIG_SETMASK, &mask, nullptr);
  return {};
}

void SignalWatcher::drain() {
  for (;;) {
    signalfd_siginfo info{};
    const ssize_t size = loop_.kernel().read(fd_.get(), &info, sizeof info);
    if (size != static_cast<ssize_t>(sizeof info)) return;
    const int number = static_cast<int>(info.ssi_signo);
    const auto found = callbacks_.find(number);
    if (found == callbacks_.end()) continue;
    Entry& entry = *found->second;
    entry.running = true;
    try {
      entry.callback(number);
    } catch (...) {
      loop_.report_exception("signal callback");
    }
    entry.running = false;
    ended_.reset();
    if (!fd_) return;
  }
}

void SignalWatcher::close() {
  if (!fd_) return;
  loop_.unwatch(watch_);
  fd_.reset();
  loop_.kernel().signal_mask(SIG_SETMASK, &previous_mask_, nullptr);
}

}  // namespace penstock

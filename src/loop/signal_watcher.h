// Signals as events of one loop, through signalfd(2). Owned by its loop; loop's thread.
#pragma once

#include <signal.h>

#include <functional>
#include <map>
#include <memory>

#include "penstock/base/result.h"
#include "penstock/io/io_backend.h"
#include "penstock/os/unique_fd.h"

namespace penstock {

class EventLoop;

class SignalWatcher {
 public:
  using Callback = std::move_only_function<void(int)>;

  explicit SignalWatcher(EventLoop& loop) noexcept : loop_(loop) {}
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;
  /// Restores the calling thread's mask as it was before the first callback.
  ~SignalWatcher();

  /// Sets, replaces or (an empty callback) removes the callback of a signal.
  Result<void> set(int signal_number, Callback callback);

 private:
  Result<void> apply(const sigset_t& wanted);
  void drain();
  void close();

  EventLoop& loop_;
  UniqueFd fd_;
  WatchId watch_;
  sigset_t previous_mask_{};
  struct Entry {
    Callback callback;
    bool running = false;
  };
  std::map<int, std::unique_ptr<Entry>> callbacks_;
  std::unique_ptr<Entry> ended_;  // the one that runs, if it was replaced or removed meanwhile
};

}  // namespace penstock

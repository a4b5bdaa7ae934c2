// An event loop that runs in a thread of its own, for tests of what other threads may do.
#pragma once

#include <thread>
#include <utility>

#include "penstock/loop/event_loop.h"
#include "penstock/loop/mailbox_hooks.h"
#include "support/sockets.h"

namespace penstock::test {

class LoopThread {
 public:
  explicit LoopThread(EventLoopOptions options = {})
      : loop(std::move(options)), thread_([this] { static_cast<void>(loop.run()); }) {
    eventually([this] { return loop.running(); });
  }
  LoopThread(const LoopThread&) = delete;
  LoopThread& operator=(const LoopThread&) = delete;
  ~LoopThread() { stop(); }

  /// Stops the loop and waits for its thread. Idempotent.
  void stop() {
    if (!thread_.joinable()) return;
    loop.stop();
    thread_.join();
  }

  EventLoop loop;

 private:
  std::thread thread_;
};

/// Sets the mailbox hook for its lifetime.
class HookScope {
 public:
  explicit HookScope(mailbox_hooks::Hook hook) { mailbox_hooks::hook.store(hook); }
  HookScope(const HookScope&) = delete;
  HookScope& operator=(const HookScope&) = delete;
  ~HookScope() { mailbox_hooks::hook.store(nullptr); }
};

}  // namespace penstock::test

// A back-end that can only be woken, for tests of what wakes it.
#pragma once

#include <cerrno>
#include <string_view>

#include "penstock/io/io_backend.h"

namespace penstock::test {

/// Has no streams, listeners or watches, and never waits. Derived classes say what wake() does.
class WakeOnlyBackend : public IoBackend {
 public:
  WakeOnlyBackend() : IoBackend(TimePoint{}) {}
  std::string_view name() const override { return "wake-only"; }
  Result<Stream*> attach(UniqueFd, StreamKind, StreamHandler&) override { return failure(ENOSYS); }
  Result<Stream*> connect(UniqueFd&, const SocketAddress&, StreamHandler&) override {
    return failure(ENOSYS);
  }
  Result<ListenerId> listen(UniqueFd, AcceptHandler&) override { return failure(ENOSYS); }
  void pause_accepting(ListenerId) override {}
  void resume_accepting(ListenerId) override {}
  void close_listener(ListenerId) override {}
  Result<WatchId> watch(int, Interest, WatchHandler&) override { return failure(ENOSYS); }
  Result<void> change_watch(WatchId, Interest) override { return failure(ENOSYS); }
  void unwatch(WatchId) override {}
  void poll(TimePoint, TimePoint) override {}
  bool more_waiting() const override { return false; }
  bool round_under_way() const override { return false; }
  const IoStatistics& statistics() const override { return statistics_; }

 private:
  IoStatistics statistics_;
};

}  // namespace penstock::test

// The back-end over a selector: epoll by level or by edge, poll. Owned by its loop; all but wake()
// on the loop's thread.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "io/readiness_stream.h"
#include "io/selector.h"
#include "penstock/base/intrusive_list.h"
#include "penstock/base/slot_table.h"
#include "penstock/io/io_backend.h"

namespace penstock {

struct ListenerWorkTag;

class ReadinessBackend final : public IoBackend {
 public:
  /// `name` outlives the back-end (a literal). Error: what eventfd and the selector answer.
  static Result<std::unique_ptr<IoBackend>> create(Kernel& kernel,
                                                   std::unique_ptr<Selector> selector,
                                                   Trigger trigger, std::string_view name,
                                                   IoOptions options);
  ~ReadinessBackend() override;

  std::string_view name() const override { return name_; }
  Result<Stream*> attach(UniqueFd fd, StreamKind kind, StreamHandler& handler) override;
  Result<Stream*> connect(UniqueFd& fd, const SocketAddress& peer, StreamHandler& handler) override;
  Result<ListenerId> listen(UniqueFd fd, AcceptHandler& handler) override;
  void pause_accepting(ListenerId id) override;
  void resume_accepting(ListenerId id) override;
  void close_listener(ListenerId id) override;
  Result<WatchId> watch(int fd, Interest interest, WatchHandler& handler) override;
  Result<void> change_watch(WatchId id, Interest interest) override;
  void unwatch(WatchId id) override;
  void poll(TimePoint deadline, TimePoint called_at) override;
  void wake() override;
  bool more_waiting() const override { return selector_->more_waiting(); }
  bool round_under_way() const override { return !round_.empty(); }
  const IoStatistics& statistics() const override { return statistics_; }

 private:
  static constexpr int kAcceptsPerTurn = 16;
  static constexpr std::size_t kScratchSize = 64 * 1024;
  // To be moved, or to be spent, between two waits for each descriptor that a wait costs time for.
  static constexpr std::size_t kBytesPerExamined = 32 * 1024;
  static constexpr Duration kTimePerExamined = std::chrono::microseconds(10);
  static constexpr int kTimedTurns = 16;

  struct Listener : ListLink<ListenerWorkTag> {
    Listener(SlotId its_id, UniqueFd its_fd, AcceptHandler& its_handler) noexcept
        : id(its_id), fd(std::move(its_fd)), handler(&its_handler) {}
    SlotId id;
    UniqueFd fd;
    AcceptHandler* handler;
    bool paused = false;
  };

  struct Watch {
    Watch(SlotId its_id, int its_fd, WatchHandler& its_handler) noexcept
        : id(its_id), fd(its_fd), handler(&its_handler) {}
    SlotId id;
    int fd;
    WatchHandler* handler;
    Interest interest = Interest::none;
  };

  ReadinessBackend(Kernel& kernel, std::unique_ptr<Selector> selector, Trigger trigger,
                   std::string_view name, UniqueFd wake_fd, IoOptions options);

  int wait_milliseconds(TimePoint deadline, TimePoint called_at);
  void decide_on_timing(Duration last_turn) noexcept;
  void dispatch(std::uint32_t events, Token token);
  void accept_from(SlotId id);
  void serve_ready(StreamWorkList& streams, IntrusiveList<Listener, ListenerWorkTag>& listeners);
  TurnRoom room_of_turn() const noexcept;
  void serve_busy();
  void serve_retries();
  void bury();
  std::uint32_t accept_events() const noexcept;
  int apply_interest(Watch& watch, Interest interest);

  Kernel& kernel_;
  std::unique_ptr<Selector> selector_;
  std::string_view name_;
  UniqueFd wake_fd_;
  std::vector<std::byte> scratch_;
  IoStatistics statistics_;
  ReadinessContext context_;
  int timed_turns_left_ = 0;
  std::size_t last_events_ = 0;
  StreamWorkList round_;  // busy streams whose turn has come; they go before context_.busy
  SlotTable<ReadinessStream> streams_;
  SlotTable<Listener> listeners_;
  SlotTable<Watch> watches_;
  IntrusiveList<Listener, ListenerWorkTag> ready_listeners_;
};

}  // namespace penstock

// Connection attempts of one loop. An attempt ends in a connected descriptor or in an error, which
// its owner hears once, in the notify step of a turn, unless it has cancelled. Owner: the loop (a
// LoopService); loop's thread. It refuses to try again: that is the client's decision.
#pragma once

#include <cstdint>
#include <system_error>

#include "penstock/base/intrusive_list.h"
#include "penstock/base/slot_table.h"
#include "penstock/io/io_backend.h"
#include "penstock/loop/event_loop.h"
#include "penstock/os/socket_address.h"
#include "penstock/os/unique_fd.h"

namespace penstock {

/// Hears how an attempt ended. Outlives it, or cancels it.
class ConnectOwner {
 public:
  virtual void connect_succeeded(UniqueFd fd) = 0;
  virtual void connect_failed(std::error_code error) = 0;

 protected:
  ~ConnectOwner() = default;
};

/// What to connect.
struct ConnectRequest {
  SocketAddress to{};
  SocketAddress from{};     ///< Local address to bind; empty: the kernel chooses.
  Duration timeout{};       ///< Zero: as long as the kernel tries.
  Duration user_timeout{};  ///< TCP_USER_TIMEOUT.
};

class Connector final : public LoopService {
 public:
  explicit Connector(EventLoop& loop) : loop_(loop) {}
  static Connector& of(EventLoop& loop) { return loop.service<Connector>(); }

  /// Begins an attempt. Errors are told as the others are. May throw std::bad_alloc.
  SlotId start(const ConnectRequest& request, ConnectOwner& owner);
  /// Ends it; its owner is not told any more. Unknown ids are ignored.
  void cancel(SlotId id) noexcept;

  // -- LoopService --
  void flush() override {}
  void notify() override;
  void bury() override;
  bool busy() const override { return !due_.empty(); }
  void shut_down() override;
  bool idle() const override { return attempts_.size() == 0; }

 private:
  struct DueTag;

  class Attempt final : private StreamHandler, public ListLink<DueTag> {
   public:
    Attempt(SlotId id, Connector& connector, const ConnectRequest& request, ConnectOwner& owner);

    SlotId id() const noexcept { return id_; }
    void begin();
    void cancel() noexcept;
    void tell();

   private:
    static constexpr Duration kBacklogDelayMin = std::chrono::milliseconds(10);
    static constexpr Duration kBacklogDelayMax = std::chrono::milliseconds(200);

    void on_connected() override;
    void on_received(std::span<const std::byte>) override;
    void on_peer_finished() override {}
    void on_sent(std::size_t) override {}
    void on_failed(int error) override;
    void on_closed() override;
    void on_detached(UniqueFd fd) override;

    Result<void> make_socket();
    void try_connect();
    bool connected_to_itself() const;
    void fail(std::error_code error);
    void ready();
    void on_timer();

    Connector& connector_;
    ConnectOwner* owner_;  // nullptr: cancelled, or told
    SlotId id_;
    ConnectRequest request_;
    UniqueFd fd_;               // before the stream and after it
    Stream* stream_ = nullptr;  // while the kernel tries
    std::error_code error_;
    TimePoint give_up_at_ = kNever;
    Duration backlog_delay_ = kBacklogDelayMin;
    TimerPlace timer_place_;
    Timer timer_ = Timer::calling<&Attempt::on_timer>(*this);
  };

  EventLoop& loop_;
  SlotTable<Attempt> attempts_;
  IntrusiveList<Attempt, DueTag> due_;
  IntrusiveList<Attempt, DueTag> told_;
};

}  // namespace penstock

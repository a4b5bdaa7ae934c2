// Long computations for a connection: a message is taken on the loop, computed with on a worker, and
// answered on the loop again. offload() does it; Offloads keeps the account, one for each loop.
// Owner of Offloads: the loop (a LoopService); loop's thread.
//
// Rules
//   1. Each computation that was taken is answered once on the connection's loop: by the reply or, if
//      it threw or was never run, by the failure callback. If the connection has ended by then the
//      answer is dropped and counted; if the loop is gone, destroyed.
//   2. Until it is answered the connection is held: a peer that has finished, and an orderly stop,
//      wait for the answer.
//   3. The loop never waits. A connection that may have no more under way is not read until it may:
//      one computation of it waits for room in the pool, or kOffloadsPerConnectionMax (for
//      per_connection: one) are under way. So what is under way is bounded by the number of
//      connections.
//   4. Everything may go in any order while computations are under way: connection, server, loop,
//      pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <unordered_map>
#include <utility>

#include "penstock/base/slot_table.h"
#include "penstock/loop/event_loop.h"
#include "penstock/loop/mailbox.h"
#include "penstock/loop/worker_pool.h"
#include "penstock/tcp/connection.h"

namespace penstock {

/// Computations that one connection may have under way. Above, it is not read until half of them
/// have been answered.
inline constexpr std::size_t kOffloadsPerConnectionMax = 64;

/// In which order the answers of one connection come.
enum class OffloadOrder : std::uint8_t {
  any,             ///< As they are ready; many at a time.
  per_connection,  ///< As their messages came: one at a time, reading is paused meanwhile.
};

/// Why there is no result.
enum class OffloadFailure : std::uint8_t {
  threw,    ///< The computation threw; the pool has logged it.
  dropped,  ///< The pool was stopped before it ran.
};

/// How a computation is offloaded.
struct OffloadOptions {
  /// In which order.
  OffloadOrder order = OffloadOrder::any;
  /// Runs on the connection's loop in place of the reply. Empty: the connection is reset and reported
  /// as `local`, with Errc::callback_threw or Errc::stopped. Expected errors are no failures: let
  /// the result say them.
  std::move_only_function<void(TcpConnection& peer, OffloadFailure failure)> on_failed{};
};

/// Counters of a loop's computations since its start.
struct OffloadStatistics {
  std::uint64_t begun = 0;         ///< Taken by offload().
  std::uint64_t waited = 0;        ///< Of these, had to wait for room in their pool.
  std::uint64_t replied = 0;       ///< Reply called.
  std::uint64_t failed = 0;        ///< Threw, or dropped by their pool.
  std::uint64_t late = 0;          ///< Answered after their connection had ended.
  std::size_t under_way = 0;       ///< Not yet answered.
  std::size_t under_way_peak = 0;  ///< The most there were at a time.
};

/// The computations of one loop's connections. Loop's thread.
class Offloads final : public LoopService {
 public:
  /// What a worker hands back: to be called with the connection.
  using Answer = std::move_only_function<void(TcpConnection&)>;
  /// What a worker runs.
  using Work = std::move_only_function<Answer()>;

  /// Use of() instead: a loop has one account.
  explicit Offloads(EventLoop& loop) : loop_(loop) {}

  /// The account of a loop.
  static Offloads& of(EventLoop& loop) { return loop.service<Offloads>(); }

  /// Its counters so far.
  const OffloadStatistics& statistics() const noexcept { return statistics_; }

  // -- For offload() --

  /// Whether begin() may follow (`posted`); as offload() answers. If it is `full` reading is paused.
  PostResult admit(TcpConnection& peer, OffloadOrder order);
  /// Begins what admit() has admitted. Throws std::bad_alloc: nothing has begun, or its failure is told.
  void begin(WorkerPool& pool, TcpConnection& peer, Work work, OffloadOptions options);

  // -- LoopService; its tasks come by the mailbox, and a turn asks nothing more of it. --
  void flush() override {}
  void notify() override {}
  void bury() override {}
  bool busy() const override { return false; }
  void shut_down() override {}
  bool idle() const override { return true; }

 private:
  class Job;
  struct Outcome;
  // What a connection has under way; it stands in the table as long as there is anything.
  struct Account {
    std::uint16_t under_way = 0;
    std::uint16_t resume_at = 0;  // reading goes on when no more are under way, and none waits
    bool one_by_one = false;      // what is under way is to be answered before anything new begins
    bool waiting = false;         // one of them, for room in its pool
    bool paused = false;
  };

  static void pause(Account& account, TcpConnection& peer);
  void settle(SlotId id, Outcome& outcome);
  void admitted(SlotId id);
  void answer(TcpConnection& peer, Outcome& outcome);
  void go_on(SlotId id, TcpConnection* peer);

  EventLoop& loop_;
  std::unordered_map<std::uint64_t, Account> accounts_;
  OffloadStatistics statistics_;
};

/// Runs `compute()` on a worker of the pool and then `reply(peer, its result)` on the connection's
/// loop (`reply(peer)`, if there is no result). Call it on that loop, for instance in on_message; a
/// reply may call it again. The connection may be gone meanwhile: capture no reference to it, and
/// nothing that the loop's thread changes. `compute` and `reply` are moved or copied in, and may be
/// destroyed on any thread. A reply that throws ends its connection, as other callbacks do.
///
/// `full`: the connection may have no more under way, and it is not read until it may; nothing has
/// been taken. Stop taking messages then: what is left of the input is offered again. wants_input()
/// has said so before. `closed`: the connection has ended; nothing has been taken. A pool that has
/// been stopped is a failure like others, told later. Throws std::bad_alloc.
template <class Compute, class Reply>
PostResult offload(WorkerPool& pool, TcpConnection& peer, Compute&& compute, Reply&& reply,
                   OffloadOptions options = {}) {
  Offloads& offloads = Offloads::of(peer.loop());
  const PostResult admitted = offloads.admit(peer, options.order);
  if (admitted != PostResult::posted) return admitted;
  auto work = [compute = std::decay_t<Compute>(std::forward<Compute>(compute)),
               reply =
                   std::decay_t<Reply>(std::forward<Reply>(reply))]() mutable -> Offloads::Answer {
    if constexpr (std::is_void_v<std::invoke_result_t<std::decay_t<Compute>&>>) {
      compute();
      return [reply = std::move(reply)](TcpConnection& to) mutable { reply(to); };
    } else {
      return [result = compute(), reply = std::move(reply)](TcpConnection& to) mutable {
        reply(to, std::move(result));
      };
    }
  };
  offloads.begin(pool, peer, std::move(work), std::move(options));
  return PostResult::posted;
}

}  // namespace penstock

#include "penstock/tcp/offload.h"

#include <algorithm>
#include <memory>
#include <system_error>

#include "penstock/base/assert.h"
#include "penstock/tcp/connection_table.h"

namespace penstock {
namespace {

constexpr std::uint64_t key_of(SlotId id) noexcept {
  return (std::uint64_t{id.generation} << 32) | id.slot;
}

constexpr std::size_t most_of(bool one_by_one) noexcept {
  return one_by_one ? 1 : kOffloadsPerConnectionMax;
}

}  // namespace

// What comes back from the pool: the answer or, if that is empty, a failure.
struct Offloads::Outcome {
  Answer answer;
  OffloadFailure failure = OffloadFailure::dropped;
  std::move_only_function<void(TcpConnection&, OffloadFailure)> on_failed;
};

// One computation, on its way through a pool. Once armed it reports to its loop exactly once: at the
// latest when it is destroyed. Without a charge, so that a loop cannot refuse it; what is under way
// is bounded by the accounts.
class Offloads::Job {
 public:
  Job(LoopId loop, SlotId connection, Work work, OffloadOptions& options)
      : loop_(loop), connection_(connection), work_(std::move(work)) {
    outcome_.on_failed = std::move(options.on_failed);
  }
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  ~Job() {
    if (armed_) report();
  }

  void arm() noexcept { armed_ = true; }

  void run() {
    outcome_.failure = OffloadFailure::threw;
    outcome_.answer = work_();
  }

 private:
  void report() noexcept {
    static_cast<void>(
        Mailbox::post(loop_, [id = connection_, outcome = std::move(outcome_)]() mutable {
          of(*EventLoop::current()).settle(id, outcome);
        }));
  }

  LoopId loop_;
  SlotId connection_;
  Work work_;
  Outcome outcome_;
  bool armed_ = false;
};

PostResult Offloads::admit(TcpConnection& peer, OffloadOrder order) {
  loop_.assert_here();
  if (!peer.is_open()) return PostResult::closed;
  const auto found = accounts_.find(key_of(peer.id()));
  if (found == accounts_.end()) return PostResult::posted;
  Account& account = found->second;
  const bool one_by_one = account.one_by_one || order == OffloadOrder::per_connection;
  if (!account.waiting && account.under_way < most_of(one_by_one)) return PostResult::posted;
  if (one_by_one) account.resume_at = 0;
  pause(account, peer);
  return PostResult::full;
}

void Offloads::pause(Account& account, TcpConnection& peer) {
  if (account.paused) return;
  account.paused = true;
  peer.pause_reading();
}

void Offloads::begin(WorkerPool& pool, TcpConnection& peer, Work work, OffloadOptions options) {
  const SlotId id = peer.id();
  const LoopId loop = loop_.id();
  const bool one_by_one = options.order == OffloadOrder::per_connection;
  auto job = std::make_unique<Job>(loop, id, std::move(work), options);
  Account& account = accounts_[key_of(id)];
  account.one_by_one = one_by_one;
  ++account.under_way;
  ++statistics_.begun;
  ++statistics_.under_way;
  statistics_.under_way_peak = std::max(statistics_.under_way_peak, statistics_.under_way);
  peer.hold();
  job->arm();
  // From here on the job tells us what became of it, whatever happens.
  Task task = [job = std::move(job)] { job->run(); };
  // Without memory for this the connection would stay paused for ever; as report() does, it aborts.
  Task admitted = [loop, id]() noexcept {
    static_cast<void>(Mailbox::post(loop, [id] { of(*EventLoop::current()).admitted(id); }));
  };
  const Admission admission = pool.post_or_wait(std::move(task), std::move(admitted));
  if (admission == Admission::waiting) {
    account.waiting = true;
    ++statistics_.waited;
  }
  // An orderly stop waits for the answers, so there must be a last one.
  const std::size_t most = most_of(one_by_one || peer.ends_when_released());
  if (!account.waiting && account.under_way < most) return;
  account.resume_at = static_cast<std::uint16_t>(most / 2);
  pause(account, peer);
}

// On the loop, as a task.
void Offloads::settle(SlotId id, Outcome& outcome) {
  const auto place = accounts_.find(key_of(id));
  PENSTOCK_ASSERT(place != accounts_.end() && place->second.under_way > 0,
                  "a computation is answered once");
  --place->second.under_way;
  --statistics_.under_way;
  TcpConnection* peer = ConnectionTable::of(loop_).find(id);
  if (!outcome.answer) ++statistics_.failed;
  if (peer != nullptr && peer->is_open()) {
    answer(*peer, outcome);
  } else {
    ++statistics_.late;
  }
  go_on(id, peer);
  if (peer != nullptr) peer->release();
}

void Offloads::answer(TcpConnection& peer, Outcome& outcome) {
  try {
    if (outcome.answer) {
      ++statistics_.replied;
      outcome.answer(peer);
    } else if (outcome.on_failed) {
      outcome.on_failed(peer, outcome.failure);
    } else {
      peer.abort_with(make_error_code(
          outcome.failure == OffloadFailure::threw ? Errc::callback_threw : Errc::stopped));
    }
  } catch (...) {
    loop_.report_exception("reply to a computation");
    peer.abort_with(make_error_code(Errc::callback_threw));
  }
}

// On the loop, as a task: the one that waited has left the waiting list of its pool.
void Offloads::admitted(SlotId id) {
  const auto place = accounts_.find(key_of(id));
  PENSTOCK_ASSERT(place != accounts_.end() && place->second.waiting,
                  "a computation that waits is admitted once");
  place->second.waiting = false;
  go_on(id, ConnectionTable::of(loop_).find(id));
}

// Reading goes on if it may; an account with nothing in it goes.
void Offloads::go_on(SlotId id, TcpConnection* peer) {
  const auto place = accounts_.find(key_of(id));
  Account& account = place->second;
  if (account.waiting || account.under_way > account.resume_at) return;
  if (account.paused) {
    account.paused = false;
    if (peer != nullptr) peer->resume_reading();
  }
  if (account.under_way == 0) accounts_.erase(place);
}

}  // namespace penstock

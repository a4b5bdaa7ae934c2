#include "tcp/server_core.h"

#include <algorithm>
#include <cerrno>
#include <new>
#include <string>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/base/log.h"
#include "penstock/tcp/connection_table.h"

namespace penstock {

ServerCore::ServerCore(EventLoop& accept_loop, const std::vector<EventLoop*>& loops,
                       BehaviourPtr behaviour, const ServerPolicy& policy, const SourceHash& hash)
    : accept_loop_(accept_loop),
      accept_loop_id_(accept_loop.id()),
      behaviour_(std::move(behaviour)),
      policy_(policy),
      hash_(hash),
      listener_(accept_loop, *this) {
  if (policy_.connections_per_source_max > 0) {
    sources_.emplace(hash_, policy_.connections_per_source_max, policy_.max_connections);
  }
  for (EventLoop* loop : loops)
    shares_.push_back(std::make_unique<Share>(*this, *loop));
}

ServerCore::~ServerCore() {
  PENSTOCK_ASSERT(!listener_.is_open(), "abandon() comes before the end");
}

Result<void> ServerCore::listen(const ListenPlace& place, const ListenerOptions& options) {
  deadline_place_.emplace(accept_loop_.timers());
  if (place.inherited_fd >= 0) {
    return listener_.adopt(UniqueFd(accept_loop_.kernel(), place.inherited_fd), options);
  }
  return listener_.open(place.address, options);
}

// -- Accepting ------------------------------------------------------------------------------------

struct ServerCore::Handover {
  Handover(ServerCore& its_core, Share& its_share, UniqueFd its_fd, const SocketAddress& its_peer)
      : core(&its_core), share(&its_share), fd(std::move(its_fd)), peer(its_peer) {}
  Handover(Handover&& other) noexcept
      : core(std::move(other.core)),
        share(std::exchange(other.share, nullptr)),
        fd(std::move(other.fd)),
        peer(other.peer) {}
  Handover& operator=(Handover&&) = delete;
  ~Handover() {
    if (share == nullptr) return;
    fd.reset();  // first: its descriptor is what a paused listener waits for
    core->connection_gone(*share, peer);
  }

  void operator()() {
    if (core->stopping_) {
      core->refused_at_stop_.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    core->adopt(*std::exchange(share, nullptr), std::move(fd), peer);
  }

  CountedPtr<ServerCore> core;
  Share* share;
  UniqueFd fd;
  SocketAddress peer;
};

void ServerCore::connection_accepted(UniqueFd fd, const SocketAddress& peer) {
  if (stopping_) {
    refused_at_stop_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  const std::optional<PeerSource> source = source_of(peer);
  if (const Admission admission = admit(source); admission != Admission::served) {
    refuse(std::move(fd), *source, admission);
    return;
  }
  Share& share = next_share(source);
  share.live.fetch_add(1);
  live_.fetch_add(1);
  if (&share.loop == &accept_loop_) {
    adopt(share, std::move(fd), peer);
  } else {
    // If that fails the handover closes and uncounts the connection.
    hand_over(share, std::move(fd), peer);
  }
  if (live_.load() < policy_.max_connections) return;
  listener_.pause();
  wants_room_.store(true);
  if (live_.load() < policy_.max_connections)
    room_again();  // one has ended before it could see the wish
}

void ServerCore::hand_over(Share& share, UniqueFd fd, const SocketAddress& peer) {
  try {
    Handover handover(*this, share, std::move(fd), peer);
    const PostResult posted = Mailbox::post(share.loop_id, Task(std::move(handover)));
    if (posted != PostResult::posted) refused_at_stop_.fetch_add(1, std::memory_order_relaxed);
  } catch (const std::bad_alloc&) {
    refused_at_start_.fetch_add(1, std::memory_order_relaxed);
    start_log_.log(LogLevel::warning, accept_loop_.now(), [] {
      return std::string("a connection was closed at once: no memory to hand it over");
    });
  }
}

// The loopback is the machine itself and whoever has a way into it already: a proxy, a tunnel, a
// monitor.
ServerCore::Admission ServerCore::admit(const std::optional<PeerSource>& source) noexcept {
  if (!sources_ || !source || source->loopback) return Admission::served;
  try {
    return sources_->enter(*source) ? Admission::served : Admission::over_limit;
  } catch (const std::bad_alloc&) {
    return Admission::no_memory;
  }
}

// Reset, not finished: who comes too often must not leave us a TIME_WAIT each time.
void ServerCore::refuse(UniqueFd fd, const PeerSource& source, Admission why) noexcept {
  const linger reset{.l_onoff = 1, .l_linger = 0};
  accept_loop_.kernel().setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  fd.reset();
  if (why == Admission::no_memory) {
    refused_at_start_.fetch_add(1, std::memory_order_relaxed);
    start_log_.log(LogLevel::warning, accept_loop_.now(), [] {
      return std::string("a connection was closed at once: no memory to count it");
    });
    return;
  }
  refused_for_source_.fetch_add(1, std::memory_order_relaxed);
  source_log_.log(LogLevel::warning, accept_loop_.now(), [&] {
    return "a connection was refused: " + source.to_string() + " has " +
           std::to_string(policy_.connections_per_source_max) + " already";
  });
}

ServerCore::Share& ServerCore::next_share(const std::optional<PeerSource>& source) noexcept {
  switch (policy_.balance) {
    case Balance::round_robin:
      return *shares_[next_share_++ % shares_.size()];
    case Balance::peer_hash:
      return source ? *shares_[hash_(*source) % shares_.size()] : emptiest_share();
    case Balance::least_connections:
      break;
  }
  return emptiest_share();
}

ServerCore::Share& ServerCore::emptiest_share() noexcept {
  return **std::ranges::min_element(shares_, [](const auto& left, const auto& right) {
    return left->live.load(std::memory_order_relaxed) < right->live.load(std::memory_order_relaxed);
  });
}

void ServerCore::adopt(Share& share, UniqueFd fd, const SocketAddress& peer) {
  const std::size_t started = share.started;
  Result<ConnectionHandle> adopted = failure(ENOMEM);
  try {
    adopted = ConnectionTable::of(share.loop).adopt(std::move(fd), peer, behaviour_, &share);
  } catch (const std::bad_alloc&) {
    fd.reset();  // no memory for the table itself
  }
  if (adopted) return;
  start_log_.log(LogLevel::warning, share.loop.now(),
                 [&] { return "a connection was closed at once: " + adopted.error().message(); });
  refused_at_start_.fetch_add(1, std::memory_order_relaxed);
  if (share.started == started) connection_gone(share, peer);  // else it has ended like any other
}

// Any thread.
void ServerCore::connection_gone(Share& share, const SocketAddress& peer) noexcept {
  if (sources_) {
    const std::optional<PeerSource> source = source_of(peer);
    if (source && !source->loopback) sources_->leave(*source);
  }
  share.live.fetch_sub(1);
  const std::size_t left = live_.fetch_sub(1) - 1;
  ended_.fetch_add(1, std::memory_order_relaxed);
  if ((wants_room_.load() || listener_.starved()) && !room_posted_.exchange(true)) {
    on_accept_loop([](ServerCore& core) { core.room_again(); });
  }
  if (left == 0 && wants_end_.load()) {
    on_accept_loop([](ServerCore& core) { core.check_stopped(); });
  }
}

void ServerCore::room_again() {
  room_posted_.store(false);
  listener_.retry_now();
  if (live_.load() >= policy_.max_connections) return;
  wants_room_.store(false);
  listener_.resume();
}

// -- Stopping -------------------------------------------------------------------------------------

void ServerCore::stop(Duration deadline) {
  accept_loop_.assert_here();
  if (!stopping_.exchange(true)) {
    listener_.close();
    // Connections still under way to their loops are closed when they arrive.
    if (deadline > Duration::zero()) for_each_share([](Share& share) { share.close_all(); });
  }
  if (deadline <= Duration::zero()) {
    abort_left();
  } else if (live() > 0) {
    const TimePoint end = add_clamped(accept_loop_.read_clock(), deadline);
    if (end < deadline_timer_.deadline()) accept_loop_.timers().schedule(deadline_timer_, end);
  }
  wants_end_.store(true);
  check_stopped();
}

void ServerCore::abort_left() {
  deadline_timer_.cancel();
  if (live() == 0) return;
  log_composed(LogLevel::warning, [this] {
    return "stop: resetting the connections that are left (" + std::to_string(live()) + ")";
  });
  for_each_share([](Share& share) { share.core.aborted_at_stop_.fetch_add(share.abort_all()); });
}

void ServerCore::abandon() {
  accept_loop_.assert_here();
  stopping_ = true;
  stopped_ = nullptr;
  listener_.close();
  deadline_timer_.cancel();
  deadline_place_.reset();
  for_each_share([](Share& share) { share.abort_all(); });
  abandoned_.store(true);
}

void ServerCore::on_stopped(std::move_only_function<void()> stopped) {
  stopped_ = std::move(stopped);
  check_stopped();
}

void ServerCore::check_stopped() {
  if (live() > 0 || !stopping_) return;
  deadline_timer_.cancel();
  if (stopped_) std::exchange(stopped_, nullptr)();
}

// Runs the action on each share's loop: here and now where that is this loop (or it stands still).
template <class Action>
void ServerCore::for_each_share(Action action) {
  for (const std::unique_ptr<Share>& share : shares_) {
    if (share->loop_id == accept_loop_id_) {
      action(*share);
    } else {
      static_cast<void>(Mailbox::post(
          share->loop_id,
          [core = CountedPtr<ServerCore>(this), &share = *share, action] { action(share); }));
    }
  }
}

template <class Action>
void ServerCore::on_accept_loop(Action action) {
  if (EventLoop::current() == &accept_loop_) {
    action(*this);
    return;
  }
  static_cast<void>(Mailbox::post(
      accept_loop_id_, [core = CountedPtr<ServerCore>(this), action] { action(*core); }));
}

// -- A loop's share -------------------------------------------------------------------------------

void ServerCore::Share::connection_started(TcpConnection& connection) noexcept {
  ++started;
  if (!keep_alive) keep_alive = CountedPtr<ServerCore>(&core);
  connections.push_back(connection);
}

void ServerCore::Share::connection_ended(TcpConnection& connection) noexcept {
  static_cast<ListLink<OwnerTag>&>(connection).unlink();
  core.bytes_received_.fetch_add(connection.bytes_received(), std::memory_order_relaxed);
  core.bytes_sent_.fetch_add(connection.bytes_sent(), std::memory_order_relaxed);
  core.ended_for_[static_cast<std::size_t>(connection.close_reason())].fetch_add(
      1, std::memory_order_relaxed);
  core.timed_out_[static_cast<std::size_t>(connection.close_timeout())].fetch_add(
      1, std::memory_order_relaxed);
  // Perhaps the last share in the core, and so in this object: it goes at the end.
  CountedPtr<ServerCore> last;
  if (connections.empty()) last = std::move(keep_alive);
  core.connection_gone(*this, connection.peer_address());
}

void ServerCore::Share::close_all() noexcept {
  for (TcpConnection* each = connections.front(); each != nullptr; each = connections.next(*each)) {
    each->close_for_stop();
  }
}

std::size_t ServerCore::Share::abort_all() noexcept {
  std::size_t aborted = 0;
  for (TcpConnection* each = connections.front(); each != nullptr; each = connections.next(*each)) {
    if (each->descriptor() < 0) continue;  // it has ended already and waits to be reported
    each->abort();
    ++aborted;
  }
  return aborted;
}

ServerStatistics ServerCore::statistics() const {
  const ListenerStatistics listener = listener_.statistics();
  EndCounts ends;
  for (std::size_t i = 0; i < ended_for_.size(); ++i)
    ends.reasons[i] = ended_for_[i].load(std::memory_order_relaxed);
  for (std::size_t i = 0; i < timed_out_.size(); ++i)
    ends.timeouts[i] = timed_out_[i].load(std::memory_order_relaxed);
  return {
      .accepted = listener.accepted,
      .refused_for_descriptors = listener.refused_for_descriptors,
      .refused_for_source = refused_for_source_.load(std::memory_order_relaxed),
      .refused_at_start = refused_at_start_.load(std::memory_order_relaxed),
      .refused_at_stop = refused_at_stop_.load(std::memory_order_relaxed),
      .accept_errors = listener.accept_errors,
      .accept_rate_pauses = listener.rate_pauses,
      .sources = sources_ ? sources_->size() : 0,
      .live = live_.load(std::memory_order_relaxed),
      .ended = ended_.load(std::memory_order_relaxed),
      .bytes_received = bytes_received_.load(std::memory_order_relaxed),
      .bytes_sent = bytes_sent_.load(std::memory_order_relaxed),
      .aborted_at_stop = aborted_at_stop_.load(std::memory_order_relaxed),
      .ends = ends,
  };
}

}  // namespace penstock

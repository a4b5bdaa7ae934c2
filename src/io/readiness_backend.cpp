#include "io/readiness_backend.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/base/log.h"

namespace penstock {
namespace {

std::uint32_t watch_events(Interest interest) noexcept {
  switch (interest) {
    case Interest::none:
      return 0;
    case Interest::readable:
      return EPOLLIN | EPOLLRDHUP;
    case Interest::writable:
      return EPOLLOUT;
    case Interest::both:
      return EPOLLIN | EPOLLRDHUP | EPOLLOUT;
  }
  return 0;
}

constexpr std::uint32_t kKnownEvents =
    EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI;

// Errors of a connection that died in the backlog, or of the network under it: the next one may be
// well (accept(2)).
bool concerns_one_connection(int error) noexcept {
  switch (error) {
    case ECONNABORTED:
    case EPROTO:
    case EPERM:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case EOPNOTSUPP:
    case ENETUNREACH:
      return true;
    default:
      return false;
  }
}

ListenerId listener_id(SlotId id) noexcept { return ListenerId{id}; }
WatchId watch_id(SlotId id) noexcept { return WatchId{id}; }

}  // namespace

ReadinessBackend::ReadinessBackend(Kernel& kernel, std::unique_ptr<Selector> selector,
                                   Trigger trigger, std::string_view name, UniqueFd wake_fd,
                                   IoOptions options)
    : IoBackend(kernel.now()),
      kernel_(kernel),
      selector_(std::move(selector)),
      name_(name),
      wake_fd_(std::move(wake_fd)),
      scratch_(kScratchSize),
      context_{.kernel = kernel_,
               .selector = *selector_,
               .statistics = statistics_,
               .trigger = trigger,
               .scratch = scratch_,
               .budget = {.bytes = options.turn_bytes == 0 ? SIZE_MAX : options.turn_bytes,
                          .time = options.turn_time <= Duration::zero() ? Duration::max()
                                                                        : options.turn_time}} {}

Result<std::unique_ptr<IoBackend>> ReadinessBackend::create(Kernel& kernel,
                                                            std::unique_ptr<Selector> selector,
                                                            Trigger trigger, std::string_view name,
                                                            IoOptions options) {
  const int fd = kernel.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0) return failure(fd);
  UniqueFd wake_fd(kernel, fd);
  const int added = selector->add(fd, EPOLLIN, Token{});
  if (added < 0) return failure(added);
  return std::unique_ptr<IoBackend>(new ReadinessBackend(kernel, std::move(selector), trigger, name,
                                                         std::move(wake_fd), options));
}

ReadinessBackend::~ReadinessBackend() {
  PENSTOCK_ASSERT(streams_.size() == 0,
                  "streams must be closed and reported before their back-end dies");
}

// -- Streams --------------------------------------------------------------------------------------

Result<Stream*> ReadinessBackend::attach(UniqueFd fd, StreamKind kind, StreamHandler& handler) {
  ReadinessStream& stream = streams_.emplace(context_, fd.get(), kind, handler);
  const int result = stream.register_attached();
  if (result < 0) {
    streams_.erase(stream.id());
    return failure(result);
  }
  static_cast<void>(fd.release());
  return &stream;
}

Result<Stream*> ReadinessBackend::connect(UniqueFd& fd, const SocketAddress& peer,
                                          StreamHandler& handler) {
  // Registered after connect(): an unconnected socket reports OUT and HUP (K13).
  const int connected = kernel_.connect(fd.get(), peer.data(), peer.size());
  if (connected < 0 && connected != -EINPROGRESS) return failure(connected);
  const StreamKind kind = peer.is_ip() ? StreamKind::tcp : StreamKind::other;
  ReadinessStream& stream = streams_.emplace(context_, fd.get(), kind, handler);
  const int result = stream.register_connecting(connected == 0);
  if (result < 0) {
    streams_.erase(stream.id());
    return failure(result);
  }
  static_cast<void>(fd.release());
  return &stream;
}

// -- Listeners ------------------------------------------------------------------------------------

std::uint32_t ReadinessBackend::accept_events() const noexcept {
  return context_.trigger == Trigger::edge ? EPOLLIN | EPOLLET : std::uint32_t{EPOLLIN};
}

Result<ListenerId> ReadinessBackend::listen(UniqueFd fd, AcceptHandler& handler) {
  Listener& listener = listeners_.emplace(std::move(fd), handler);
  const int result = selector_->add(listener.fd.get(), accept_events(),
                                    Token::of(Token::Kind::listener, listener.id));
  if (result < 0) {
    listeners_.erase(listener.id);
    return failure(result);
  }
  return listener_id(listener.id);
}

void ReadinessBackend::pause_accepting(ListenerId id) {
  Listener* listener = listeners_.find(id);
  if (listener == nullptr || listener->paused) return;
  listener->paused = true;
  listener->unlink();
  selector_->change(listener->fd.get(), 0, Token::of(Token::Kind::listener, id));
}

void ReadinessBackend::resume_accepting(ListenerId id) {
  Listener* listener = listeners_.find(id);
  if (listener == nullptr || !listener->paused) return;
  listener->paused = false;
  // The change also re-arms an edge, so connections that wait are announced (K9, K14).
  selector_->change(listener->fd.get(), accept_events(), Token::of(Token::Kind::listener, id));
}

void ReadinessBackend::close_listener(ListenerId id) {
  Listener* listener = listeners_.find(id);
  if (listener == nullptr) return;
  selector_->remove(listener->fd.get());
  listeners_.erase(id);
}

void ReadinessBackend::accept_from(SlotId id) {
  const TimePoint end = context_.budget.time == Duration::max()
                            ? kNever
                            : add_clamped(kernel_.now(), room_of_turn().time / 4);
  for (int accepted = 0; accepted < kAcceptsPerTurn; ++accepted) {
    // Looked up each time: the handler may have closed or paused the listener.
    Listener* listener = listeners_.find(id);
    if (listener == nullptr || listener->paused) return;
    sockaddr_storage storage{};
    socklen_t size = sizeof storage;
    auto* address = reinterpret_cast<sockaddr*>(&storage);
    const int result =
        kernel_.accept4(listener->fd.get(), address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (result >= 0) {
      listener->handler->on_accepted(UniqueFd(kernel_, result), SocketAddress(address, size));
      if (end != kNever && kernel_.now() >= end) break;
      continue;
    }
    if (result == -EAGAIN) return;
    if (concerns_one_connection(-result)) continue;
    listener->handler->on_accept_failed(-result);
    break;
  }
  // There may be more; an edge will not say so again.
  Listener* listener = listeners_.find(id);
  if (listener == nullptr || listener->paused || context_.trigger == Trigger::level) return;
  if (!listener->linked()) ready_listeners_.push_back(*listener);
}

// -- Watches --------------------------------------------------------------------------------------

Result<WatchId> ReadinessBackend::watch(int fd, Interest interest, WatchHandler& handler) {
  Watch& watch = watches_.emplace(fd, handler);
  const int result = apply_interest(watch, interest);
  if (result < 0) {
    watches_.erase(watch.id);
    return failure(result);
  }
  return watch_id(watch.id);
}

Result<void> ReadinessBackend::change_watch(WatchId id, Interest interest) {
  Watch* watch = watches_.find(id);
  if (watch == nullptr) return failure(ENOENT);
  const int result = apply_interest(*watch, interest);
  if (result < 0) return failure(result);
  return {};
}

// A watch without interest is not registered: HUP and ERR cannot be masked.
int ReadinessBackend::apply_interest(Watch& watch, Interest interest) {
  if (interest == watch.interest) return 0;
  const Token token = Token::of(Token::Kind::watch, watch.id);
  int result = 0;
  if (interest == Interest::none) {
    result = selector_->remove(watch.fd);
  } else if (watch.interest == Interest::none) {
    result = selector_->add(watch.fd, watch_events(interest), token);
  } else {
    result = selector_->change(watch.fd, watch_events(interest), token);
  }
  if (result == 0) watch.interest = interest;
  return result;
}

void ReadinessBackend::unwatch(WatchId id) {
  Watch* watch = watches_.find(id);
  if (watch == nullptr) return;
  static_cast<void>(apply_interest(*watch, Interest::none));
  watches_.erase(id);
}

// -- A poll ---------------------------------------------------------------------------------------

int ReadinessBackend::wait_milliseconds(TimePoint deadline, TimePoint called_at) {
  if (!context_.ready.empty() || !context_.dying.empty() || !ready_listeners_.empty()) return 0;
  if (!context_.busy.empty() || !round_.empty()) return 0;
  for (ReadinessStream* stream = context_.retrying.front(); stream != nullptr;
       stream = context_.retrying.next(*stream)) {
    deadline = std::min(deadline, stream->retry_at());
  }
  if (deadline == kNever) return -1;
  if (deadline <= now_) return 0;
  // Rounded up: waking early would only mean waiting once more.
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - called_at).count();
  constexpr std::int64_t kDay = 24 * 60 * 60 * 1000;
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, kDay));
}

// A clock reading for each event is worth it only where somebody may be taking long: after a turn
// that did.
void ReadinessBackend::decide_on_timing(Duration last_turn) noexcept {
  const Duration usual = kTimePerExamined * static_cast<Duration::rep>(last_events_);
  if (last_turn > std::max(context_.budget.time / 4, usual)) {
    timed_turns_left_ = kTimedTurns;
  } else if (timed_turns_left_ > 0) {
    --timed_turns_left_;
  }
  context_.timed = timed_turns_left_ > 0;
}

void ReadinessBackend::poll(TimePoint deadline, TimePoint called_at) {
  decide_on_timing(called_at - now_);
  const int milliseconds = wait_milliseconds(deadline, called_at);
  // What is ready already has its turn in this poll; what becomes ready meanwhile, in the next one.
  StreamWorkList streams;
  while (ReadinessStream* stream = context_.ready.pop_front()) {
    // It may have been listed before it was known to be busy.
    (stream->busy() ? context_.busy : streams).push_back(*stream);
  }
  IntrusiveList<Listener, ListenerWorkTag> listeners;
  listeners.splice_back(ready_listeners_);

  const std::span<const epoll_event> events = selector_->wait(milliseconds);
  now_ = kernel_.now();
  context_.moved_bytes = context_.received_bytes = 0;
  context_.clock = now_;
  last_events_ = events.size();
  ++statistics_.waits;
  if (!events.empty()) {
    ++statistics_.wakeups;
    statistics_.events += events.size();
  }
  for (const epoll_event& event : events)
    dispatch(event.events, Token::unpacked(event.data.u64));
  // Taken here, so that nobody is served twice in a poll.
  if (round_.empty()) round_.splice_back(context_.busy);
  serve_ready(streams, listeners);
  if (!round_.empty()) serve_busy();
  if (!context_.retrying.empty()) serve_retries();
  if (!context_.dying.empty()) bury();
}

void ReadinessBackend::dispatch(std::uint32_t events, Token token) {
  if ((events & ~kKnownEvents) != 0) [[unlikely]] {
    if (statistics_.unknown_events++ == 0) {
      log_composed(LogLevel::warning, [events] {
        return "an event of an unknown kind came: " + std::to_string(events & ~kKnownEvents);
      });
    }
  }
  switch (token.kind) {
    case Token::Kind::stream: {
      ReadinessStream* stream = streams_.find_slot(token.slot);
      if (stream == nullptr || !token.names(stream->id()) || stream->closed()) break;
      stream->on_event(events);
      return;
    }
    case Token::Kind::listener: {
      Listener* listener = listeners_.find_slot(token.slot);
      if (listener == nullptr || !token.names(listener->id)) break;
      if (!listener->linked()) accept_from(listener->id);
      context_.read_clock();
      return;
    }
    case Token::Kind::watch: {
      Watch* watch = watches_.find_slot(token.slot);
      if (watch == nullptr || !token.names(watch->id) || watch->interest == Interest::none) break;
      const bool failed = (events & (EPOLLERR | EPOLLHUP)) != 0;
      watch->handler->on_ready({
          .readable = (events & (EPOLLIN | EPOLLRDHUP)) != 0 || failed,
          .writable = (events & EPOLLOUT) != 0 || failed,
          .failed = failed,
      });
      context_.read_clock();
      return;
    }
    case Token::Kind::wake: {
      std::uint64_t count = 0;
      kernel_.read(wake_fd_.get(), &count, sizeof count);
      return;
    }
  }
  ++statistics_.stale_events;
}

void ReadinessBackend::serve_ready(StreamWorkList& streams,
                                   IntrusiveList<Listener, ListenerWorkTag>& listeners) {
  while (Listener* listener = listeners.pop_front()) {
    accept_from(listener->id);
    context_.read_clock();
  }
  while (ReadinessStream* stream = streams.pop_front())
    stream->on_ready();
}

// The look at the selector must stay cheap beside the work, so there is more work where it finds
// more.
TurnRoom ReadinessBackend::room_of_turn() const noexcept {
  const std::size_t looked_at = selector_->examined();
  return {.bytes = std::max(context_.budget.bytes, kBytesPerExamined * looked_at),
          .time = std::max(context_.budget.time,
                           kTimePerExamined * static_cast<Duration::rep>(looked_at))};
}

// Behind all others, and only so many that what has become ready meanwhile need not wait for them
// all: the rest has its turn after another look at the selector. How many follows from what they
// cost the last time; one always.
void ReadinessBackend::serve_busy() {
  const TurnRoom whole = room_of_turn();
  const Duration time_of_one = context_.budget.time;
  TurnRoom room{.bytes = SIZE_MAX, .time = time_of_one};
  do {
    ReadinessStream* next = round_.pop_front();
    context_.receive_max = next->receivable(room);  // it may have more than the last time
    next->on_ready();
    const Duration spent = context_.clock - now_;
    room.bytes = whole.bytes - std::min(whole.bytes, context_.moved_bytes);
    room.time = std::min(time_of_one, whole.time - std::min(whole.time, spent));
  } while (!round_.empty() && round_.front()->fits(room));
  context_.receive_max = kReadBudgetBytes;
}

void ReadinessBackend::serve_retries() {
  StreamRetryList round;
  round.splice_back(context_.retrying);
  while (ReadinessStream* stream = round.pop_front()) {
    context_.retrying.push_back(*stream);
    stream->on_retry(now_);
  }
}

void ReadinessBackend::bury() {
  StreamWorkList round;
  round.splice_back(context_.dying);
  while (ReadinessStream* stream = round.pop_front()) {
    StreamHandler& handler = stream->handler();
    UniqueFd detached(kernel_, stream->take_detached());
    streams_.erase(stream->id());
    if (detached) {
      handler.on_detached(std::move(detached));
    } else {
      handler.on_closed();
    }
  }
}

void ReadinessBackend::wake() {
  const std::uint64_t one = 1;
  // EAGAIN: the counter is full, so the loop is awake already.
  const ssize_t written = kernel_.write(wake_fd_.get(), &one, sizeof one);
  PENSTOCK_ASSERT(written == static_cast<ssize_t>(sizeof one) || written == -EAGAIN,
                  "the wake-up descriptor is gone");
}

}  // namespace penstock

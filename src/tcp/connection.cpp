#include "penstock/tcp/connection.h"

#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <new>

#include "penstock/base/assert.h"
#include "penstock/tcp/behaviour.h"
#include "penstock/tcp/connection_group.h"
#include "penstock/tcp/connection_table.h"
#include "tcp/stream_socket.h"

namespace penstock {
namespace {

// From this size on a payload goes to the kernel at once and uncopied; below it, copying is cheaper
// than a system call of its own.
constexpr std::size_t kLargePayload = 4096;
// Small payloads that have gathered to this leave without waiting for the handler to return.
constexpr std::size_t kFlushBytes = std::size_t{64} * 1024;
// Pieces of one gathered send; the stream seam takes no more.
constexpr std::size_t kGatherMax = 64;
// Below this size sharing a payload costs more than copying it.
constexpr std::size_t kSharedPayload = 256;

// Hardened builds clear automatic variables; clearing this one would cost more than all else in a
// small echo.
#define PENSTOCK_UNINITIALIZED __attribute__((uninitialized))
using Pieces = std::array<iovec, kGatherMax>;

constexpr Duration kNone = Duration::zero();

// When a limit of time ends; kNever where there is none.
TimePoint end_of(TimePoint since, Duration limit) noexcept {
  return limit > kNone ? add_clamped(since, limit) : kNever;
}

}  // namespace

std::string_view to_string(CloseReason reason) noexcept {
  switch (reason) {
    case CloseReason::eof:
      return "eof";
    case CloseReason::reset:
      return "reset";
    case CloseReason::truncated:
      return "truncated";
    case CloseReason::timeout:
      return "timeout";
    case CloseReason::overflow:
      return "overflow";
    case CloseReason::protocol:
      return "protocol";
    case CloseReason::local:
      return "local";
    case CloseReason::detached:
      return "detached";
  }
  return "unknown";
}

std::string_view to_string(TimeoutKind kind) noexcept {
  switch (kind) {
    case TimeoutKind::none:
      return "none";
    case TimeoutKind::idle:
      return "idle";
    case TimeoutKind::write_stall:
      return "write_stall";
    case TimeoutKind::half_close:
      return "half_close";
    case TimeoutKind::unacknowledged:
      return "unacknowledged";
    case TimeoutKind::first_message:
      return "first_message";
    case TimeoutKind::slow_message:
      return "slow_message";
    case TimeoutKind::heartbeat:
      return "heartbeat";
  }
  return "unknown";
}

struct TcpConnection::Detachment {
  DetachCallback taker;
  UniqueFd fd{};  // once the stream has given it up
};

// What waits behind output_. While it is not empty output_ is not either, but inside of pump().
struct TcpConnection::Backlog {
  MessageQueue messages{};
  std::optional<SlowConsumer> policy{};  // in place of the limits'
  std::size_t bytes_max = 0;             // with it
};

inline const ConnectionCallbacks& TcpConnection::callbacks() const noexcept {
  return behaviour_->callbacks;
}
inline const ConnectionLimits& TcpConnection::limits() const noexcept { return behaviour_->limits; }

TcpConnection::TcpConnection(SlotId id, ConnectionTable& table, BehaviourPtr behaviour,
                             ConnectionOwner* owner, const SocketAddress& peer)
    : loop_(&table.loop()),
      table_(&table),
      behaviour_(std::move(behaviour)),
      last_activity_(loop_->now()),
      last_received_(last_activity_),
      id_(id),
      listening_since_(last_activity_),
      last_heartbeat_(last_activity_),
      opened_at_(last_activity_),
      timer_place_(loop_->timers()),
      timer_(Timer::calling<&TcpConnection::on_timer>(*this)),
      owner_(owner),
      peer_(peer) {}

TcpConnection::~TcpConnection() {
  PENSTOCK_ASSERT(stream_ == nullptr, "a connection cannot die before its stream");
}

Result<void> TcpConnection::start(UniqueFd fd) {
  const StreamKind kind = peer_.is_ip() ? StreamKind::tcp : StreamKind::other;
  Result<Stream*> stream = loop_->backend().attach(std::move(fd), kind, *this);
  if (!stream) return std::unexpected(stream.error());
  stream_ = *stream;
  arm_timer();
  if (callbacks().on_connect) {
    in_handler_ = true;
    run_callback([this] { callbacks().on_connect(*this); });
    after_handler();
  }
  return {};
}

// -- Sending --------------------------------------------------------------------------------------

bool TcpConnection::can_send() const noexcept {
  return phase_ == Phase::open && !finish_requested_ && !output_broken_;
}

// Sets memory aside for what is about to be queued, or refuses it: `charge` over the connection's
// cap, or `owned` (less what other queues hold too) over the loops' budget.
bool TcpConnection::reserve(std::size_t charge, std::size_t owned) noexcept {
  const std::size_t cap = limits().output_max;
  const std::size_t held = output_.charge() + backlog_charge();
  if (cap != 0 && (charge > cap || held > cap - charge)) {
    note_full(Errc::output_limit);
    return false;
  }
  if (loop_->memory().charge(owned)) return true;
  note_full(Errc::memory_limit);
  return false;
}

template <class Append>
SendOutcome TcpConnection::enqueue(std::size_t charge, std::size_t owned, Append append) {
  if (!reserve(charge, owned)) return SendOutcome::full;
  try {
    append();
  } catch (...) {
    loop_->memory().discharge(owned);
    throw;
  }
  return accepted();
}

SendOutcome TcpConnection::accepted() {
  const std::size_t queued = queued_bytes();
  if (!send_pending_) {
    if (queued >= kFlushBytes) {
      pump();
    } else if (!in_handler_) {
      mark_dirty();
    }
  } else if (above_high_ || queued > limits().high_water) {
    update_flow();  // down, too: others may have been dropped for it
  }
  return above_or_below();
}

SendOutcome TcpConnection::above_or_below() const noexcept {
  return above_high_ ? SendOutcome::accepted_above_high_water : SendOutcome::accepted;
}

SendOutcome TcpConnection::try_send(std::span<const std::byte> payload) {
  loop_->assert_here();
  if (!can_send()) return SendOutcome::closed;
  if (payload.size() >= kLargePayload || has_backlog()) return try_send_parts({.body = payload});
  const std::size_t charge = output_.charge_of_copy(payload.size());
  return enqueue(charge, charge, [&] { output_.append_copy(table_->pool(), payload); });
}

SendOutcome TcpConnection::try_send(const MessageParts& message) {
  loop_->assert_here();
  return can_send() ? try_send_parts(message) : SendOutcome::closed;
}

SendOutcome TcpConnection::try_send_parts(MessageParts message) {
  const std::size_t size = message.size();
  if (has_backlog()) {
    if (size == 0) return above_or_below();
    std::string whole;
    whole.reserve(size);
    for (const std::span<const std::byte> piece : {message.head, message.body, message.tail})
      whole.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    return wait_in_line(whole);
  }
  if (size >= kLargePayload && !send_pending_) return send_at_once(message);
  const std::size_t charge = output_.charge_of_copy(size);
  return enqueue(charge, charge, [&] { output_.append_parts(table_->pool(), message); });
}

// The caller's bytes go to the kernel behind what is queued; what is not taken is copied. Whether
// the payload is accepted must not depend on how much the kernel happens to take, so it is measured
// as if nothing were taken.
SendOutcome TcpConnection::send_at_once(MessageParts message) {
  const std::size_t charge = output_.charge_of_copy(message.size());
  if (!reserve(charge, charge)) return SendOutcome::full;
  const std::size_t charged = output_.owned_charge() + charge;

  PENSTOCK_UNINITIALIZED Pieces pieces;
  constexpr std::size_t kParts = 3;
  std::size_t used = output_.front(std::span(pieces).first(kGatherMax - kParts));
  std::size_t gathered = 0;
  for (std::size_t i = 0; i < used; ++i)
    gathered += pieces[i].iov_len;
  if (gathered == output_.bytes()) {
    for (const std::span<const std::byte> part : {message.head, message.body, message.tail}) {
      if (part.empty()) continue;
      pieces[used++] = {.iov_base = const_cast<std::byte*>(part.data()), .iov_len = part.size()};
    }
    const SendResult result = stream_->offer(std::span(pieces).first(used));
    const std::size_t of_queue = std::min(result.taken, gathered);
    output_.consume(table_->pool(), of_queue);
    message.drop_front(result.taken - of_queue);
    note_sent(result.taken);
    if (result.error != 0) {
      loop_->memory().discharge(charged - output_.owned_charge());
      output_broken_ = true;
      discard_output();
      update_flow();
      return SendOutcome::closed;
    }
  }
  try {
    output_.append_parts(table_->pool(), message);
  } catch (const std::bad_alloc&) {
    // A part may have left already: going on would leave a gap.
    loop_->memory().discharge(charged - output_.owned_charge());
    conclude_overflow(system_error(ENOMEM), Release::reset);
    return SendOutcome::closed;
  }
  loop_->memory().discharge(charged - output_.owned_charge());
  pump();
  return above_or_below();
}

template <class Payload>
SendOutcome TcpConnection::try_send_owned(Payload& payload) {
  loop_->assert_here();
  if (!can_send()) return SendOutcome::closed;
  constexpr bool kShared = std::is_same_v<Payload, SharedBytes>;
  if (has_backlog()) {
    if (payload.empty()) return above_or_below();
    return wait_in_line(payload);
  }
  if constexpr (kShared) {
    if (payload.size() < kSharedPayload) return try_send(payload.bytes());
  } else {
    if (payload.size() < kLargePayload) return try_send(std::as_bytes(std::span(payload)));
  }
  const std::size_t charge = OutputQueue::charge_of(payload);
  std::size_t owned = charge;
  if constexpr (kShared) {
    owned = OutputQueue::owned_charge_of(payload);
    if (!charge_shared(payload)) return SendOutcome::full;
  }
  const bool large = payload.size() >= kLargePayload;
  const SendOutcome outcome = enqueue(charge, owned, [&] {
    if constexpr (kShared) {
      output_.append(table_->pool(), std::move(payload));
    } else {
      output_.append(std::move(payload));
    }
  });
  if (outcome == SendOutcome::full || !large || send_pending_ || output_.empty()) return outcome;
  pump();
  return above_or_below();
}

SendOutcome TcpConnection::try_send(std::string&& payload) { return try_send_owned(payload); }
SendOutcome TcpConnection::try_send(std::vector<std::byte>&& payload) {
  return try_send_owned(payload);
}
SendOutcome TcpConnection::try_send(SharedBytes payload) { return try_send_owned(payload); }

void TcpConnection::send(std::span<const std::byte> payload) {
  send_or_end([&] { return try_send(payload); });
}
void TcpConnection::send(std::string&& payload) {
  send_or_end([&] { return try_send_owned(payload); });
}
void TcpConnection::send(std::vector<std::byte>&& payload) {
  send_or_end([&] { return try_send_owned(payload); });
}
void TcpConnection::send(SharedBytes payload) {
  send_or_end([&] { return try_send_owned(payload); });
}

void TcpConnection::send(const MessageParts& message) {
  send_or_end([&] { return try_send(message); });
}

// What cannot be accepted ends the connection: the next send must not close the gap.
template <class TrySend>
void TcpConnection::send_or_end(TrySend try_it) {
  std::error_code limit;
  try {
    if (try_it() != SendOutcome::full) return;
    limit = refused_for_;
  } catch (const std::bad_alloc&) {
    limit = system_error(ENOMEM);
  }
  conclude_overflow(limit, Release::reset);
}

// The sender waits for room; on_low_water tells it once output has drained. One that nothing queued
// stands in the way of does not wait, but another may that has not been told yet.
void TcpConnection::note_full(Errc limit) noexcept {
  if (!output_.empty()) answered_full_ = true;
  refused_for_ = limit;
}

void TcpConnection::mark_dirty() {
  if (!ListLink<DirtyTag>::linked()) table_->mark_dirty(*this);
}

void TcpConnection::flush() {
  if (phase_ == Phase::closed) return;
  if (!output_.empty()) {
    if (!send_pending_) pump();
  } else {
    finish_if_drained();
    detach_if_drained();
  }
}

void TcpConnection::note_sent(std::size_t bytes) noexcept {
  if (bytes == 0) return;
  bytes_sent_ += bytes;
  table_->counters().bytes_sent += bytes;
  last_activity_ = loop_->now();
}

// The kernel has taken `bytes` from the front of the queue.
void TcpConnection::take(std::size_t bytes) noexcept {
  if (bytes == 0) return;
  note_sent(bytes);
  const std::size_t held = output_.owned_charge();
  output_.consume(table_->pool(), bytes);
  loop_->memory().discharge(held - output_.owned_charge());
}

// Lends the front of the queue to the stream until it takes no more.
void TcpConnection::pump() {
  ListLink<DirtyTag>::unlink();
  while (!send_pending_) {
    if (backlog_) stage_backlog();
    if (output_.empty()) break;
    PENSTOCK_UNINITIALIZED Pieces pieces;
    const std::size_t used = output_.front(pieces);
    const SendResult result = stream_->send(std::span(pieces).first(used));
    take(result.taken);
    if (result.error != 0) {
      output_broken_ = true;
      discard_output();
      update_flow();
      return;
    }
    send_pending_ = result.pending;
  }
  if (output_.empty()) {
    output_drained();
  } else if (stall_since_ == kNever) {
    stall_since_ = loop_->now();
    stall_sampled_at_ = stall_since_;
    stall_bytes_sent_ = bytes_sent_;
    arm_timer();
  }
  update_flow();
}

void TcpConnection::output_drained() {
  end_stall();
  if (answered_full_) schedule_notify();
  if (callbacks().on_write_complete || next_behaviour_) {
    write_complete_due_ = true;
    schedule_notify();
  }
  if (finish_requested_) finish_if_drained();
  if (detachment_) detach_if_drained();
}

void TcpConnection::end_stall() {
  if (stall_since_ == kNever) return;
  stall_since_ = kNever;
  arm_timer();
}

void TcpConnection::on_sent(std::size_t bytes) {
  send_pending_ = false;
  take(bytes);
  pump();
}

// Nobody is lent any of it: the stream has failed or is gone.
void TcpConnection::discard_output() {
  ListLink<DirtyTag>::unlink();
  send_pending_ = false;
  end_stall();
  if (output_.empty()) return;
  output_discarded_ += queued_bytes();
  if (backlog_) discard_backlog();
  write_complete_due_ = false;
  const std::size_t held = output_.owned_charge();
  output_.clear(table_->pool());
  loop_->memory().discharge(held);
}

// -- Messages that wait ---------------------------------------------------------------------------

TcpConnection::Backlog& TcpConnection::backlog() {
  if (!backlog_) backlog_ = std::make_unique<Backlog>();
  return *backlog_;
}

bool TcpConnection::backlog_is_empty() const noexcept { return backlog_->messages.empty(); }

std::size_t TcpConnection::backlog_bytes() const noexcept {
  return backlog_ ? backlog_->messages.bytes() : 0;
}

std::size_t TcpConnection::backlog_charge() const noexcept {
  return backlog_ ? backlog_->messages.charge() : 0;
}

void TcpConnection::set_slow_consumer(SlowConsumer policy, std::size_t backlog_max) {
  loop_->assert_here();
  backlog().policy = policy;
  backlog_->bytes_max = backlog_max;
}

SendOutcome TcpConnection::send_message(SharedBytes message, const MessageOptions& options) {
  loop_->assert_here();
  if (!can_send()) return SendOutcome::closed;
  if (message.empty()) return above_or_below();
  const SlowConsumer policy =
      backlog_ && backlog_->policy ? *backlog_->policy : limits().slow_consumer;
  const bool somebody_waits = answered_full_;
  SendOutcome outcome = SendOutcome::full;
  try {
    outcome = send_pending_ ? join_backlog(std::move(message), options) : try_send_owned(message);
  } catch (const std::bad_alloc&) {
    note_full(Errc::memory_limit);
  }
  if (outcome != SendOutcome::full) return outcome;
  outcome = refuse_message(policy, options.lane);
  // Who sends what may be dropped does not wait for room, but others may.
  if (outcome == SendOutcome::dropped) answered_full_ = somebody_waits;
  return outcome;
}

bool TcpConnection::charge_shared(const SharedBytes& payload) noexcept {
  if (payload.charge_once(loop_->memory().budget())) return true;
  note_full(Errc::memory_limit);
  return false;
}

// The messages that wait come first; this payload, which is not empty, is never dropped.
template <class Payload>
SendOutcome TcpConnection::wait_in_line(Payload& payload) {
  constexpr bool kShared = std::is_same_v<Payload, SharedBytes>;
  std::size_t owned = MessageQueue::kMessageCharge;
  std::size_t charge = owned;
  if constexpr (kShared) {
    if (!charge_shared(payload)) return SendOutcome::full;
    charge += payload.charge();
  } else {
    charge += SharedBytes::charge_of(payload);
    owned = charge;
  }
  return enqueue(charge, owned, [&] {
    MessageNode* message = table_->pool().acquire_message();
    try {
      message->hold(SharedBytes(std::move(payload)), kShared ? Sharing::together : Sharing::alone);
    } catch (...) {
      table_->pool().release_message(message);
      throw;
    }
    backlog_->messages.push(message, Lane::normal);
  });
}

// The kernel takes nothing at present.
SendOutcome TcpConnection::join_backlog(SharedBytes&& message, MessageOptions options) {
  MessageQueue& messages = backlog().messages;
  const SlowConsumer policy = backlog_->policy.value_or(limits().slow_consumer);
  if (!charge_shared(message)) return SendOutcome::full;
  const std::size_t charge = MessageQueue::kMessageCharge + message.charge();
  if (options.lane == Lane::normal) {
    if (policy != SlowConsumer::keep_latest) options.key.reset();
    // If it is larger than the one it replaces and there is no room, that one may have to go as
    // others do; it then joins at the end.
    const std::size_t in_place = options.key ? messages.charge_of(*options.key) : 0;
    if (charge > in_place && !has_room(charge - in_place) && !make_room(charge, policy)) {
      note_full(Errc::output_limit);
      return SendOutcome::full;
    }
    if (options.key && messages.replace(*options.key, message)) {
      count_dropped(1);
      update_flow();
      return above_or_below();
    }
  }
  return enqueue(charge, MessageQueue::kMessageCharge, [&] {
    MessageNode* node = table_->pool().acquire_message();
    node->hold(std::move(message), Sharing::together);
    if (options.lane == Lane::control) {
      messages.push(node, Lane::control);
      return;
    }
    try {
      messages.push_droppable(node, options.key);
    } catch (...) {
      table_->pool().release_message(node);
      throw;
    }
  });
}

// How much may wait now, under the backlog's own bound and the hard cap.
std::size_t TcpConnection::backlog_room() const noexcept {
  const std::size_t backlog_max = backlog_->policy ? backlog_->bytes_max : limits().backlog_max;
  const std::size_t cap = limits().output_max;
  const std::size_t under_cap = cap == 0 ? SIZE_MAX : cap - std::min(cap, output_.charge());
  return std::min(backlog_max, under_cap);
}

bool TcpConnection::has_room(std::size_t charge) const noexcept {
  const std::size_t room = backlog_room();
  const std::size_t held = backlog_->messages.charge();
  return held <= room && charge <= room - held;
}

// For `charge` more. Only some policies can do something.
bool TcpConnection::make_room(std::size_t charge, SlowConsumer policy) {
  MessageQueue& messages = backlog_->messages;
  const bool may_drop = policy == SlowConsumer::drop_oldest || policy == SlowConsumer::keep_latest;
  // One that would not fit beside what cannot be dropped is not worth the others.
  const std::size_t room = backlog_room();
  const std::size_t kept = messages.charge() - messages.droppable_charge();
  if (may_drop && kept <= room && charge <= room - kept) {
    const std::uint64_t dropped = messages.dropped();
    const std::size_t held = messages.owned_charge();
    while (!has_room(charge) && messages.drop_oldest(table_->pool())) {
    }
    loop_->memory().discharge(held - messages.owned_charge());
    count_dropped(messages.dropped() - dropped);
  }
  return has_room(charge);
}

// There is no room for a message, and none could be made.
SendOutcome TcpConnection::refuse_message(SlowConsumer policy, Lane lane) {
  count_dropped(1);
  if (policy == SlowConsumer::disconnect) {
    conclude_overflow(refused_for_, Release::reset);
    return SendOutcome::closed;
  }
  update_flow();  // others may have been dropped, and then there was no memory
  const bool told = policy == SlowConsumer::reject || lane == Lane::control;
  return told ? SendOutcome::full : SendOutcome::dropped;
}

void TcpConnection::count_dropped(std::uint64_t messages) noexcept {
  messages_dropped_ += messages;
  table_->counters().messages_dropped += messages;
}

// What the kernel may take now can no longer be dropped or overtaken, so it is no more than one
// gathered send.
void TcpConnection::stage_backlog() noexcept {
  while (output_.bytes() < kFlushBytes) {
    MessageNode* message = backlog_->messages.pop();
    if (message == nullptr) return;
    if (!copy_small(message)) output_.append(message);
  }
}

// Small messages leave together, as small sends do: one at a time they would soon be all the pieces
// that one gathered send takes. False: there is no room or no memory for a copy, and nothing has
// been done.
bool TcpConnection::copy_small(MessageNode* message) noexcept {
  const std::size_t size = message->size();
  if (size >= kSharedPayload) return false;
  const std::size_t charge = output_.charge_of_copy(size);
  const std::size_t owned = message->charge - message->shared_charge;
  const std::size_t cap = limits().output_max;
  if (charge > owned) {  // a new block, for more than this one
    const std::size_t held = output_.charge() + backlog_charge() + charge;
    if (cap != 0 && held > cap) return false;
    if (!loop_->memory().charge(charge - owned)) return false;
  }
  try {
    output_.append_copy(table_->pool(), std::span(message->begin, size));
  } catch (const std::bad_alloc&) {
    if (charge > owned) loop_->memory().discharge(charge - owned);
    return false;
  }
  if (charge < owned) loop_->memory().discharge(owned - charge);
  table_->pool().release_message(message);
  return true;
}

void TcpConnection::discard_backlog() noexcept {
  MessageQueue& messages = backlog_->messages;
  loop_->memory().discharge(messages.owned_charge());
  messages.clear(table_->pool());
}

// -- Reading --------------------------------------------------------------------------------------

bool TcpConnection::may_deliver() const noexcept {
  return phase_ == Phase::open && !detachment_ && (pauses_ == 0 || pause_overridden_);
}

void TcpConnection::on_received(std::span<const std::byte> bytes) {
  bytes_received_ += bytes.size();
  table_->counters().bytes_received += bytes.size();
  last_activity_ = last_received_ = loop_->now();
  if (phase_ == Phase::draining) {
    input_discarded_ += bytes.size();
    if (finished_) drained_ += bytes.size();
    if (limits().drain_max != 0 && drained_ > limits().drain_max) {
      conclude(reason_, Release::orderly);
    }
    return;
  }
  try {
    input_.lend(bytes);
  } catch (const std::bad_alloc&) {
    input_discarded_ += bytes.size();
    conclude_overflow(system_error(ENOMEM), Release::orderly);
    return;
  }
  if (may_deliver()) {
    deliver_input();
  } else {
    keep_input();
  }
}

void TcpConnection::deliver_input() {
  begin_event();
  offer_input_ = false;
  const std::size_t offered = input_.size();
  in_handler_ = true;
  run_callback([this] {
    if (callbacks().on_message) {
      callbacks().on_message(*this, input_);
    } else {
      input_discarded_ += input_.size();
      input_.consume(input_.size());
    }
  });
  if (keep_input()) {
    note_messages(offered);
    offer_what_is_left(offered);
  }
  after_handler();
}

// Where one message ends and the next begins is told by what the callback consumes.
void TcpConnection::note_messages(std::size_t offered) {
  const std::size_t left = input_.size();
  if (left < offered) first_message_came_ = true;
  if (left == 0) {
    message_since_ = kNever;
  } else if (left < offered || message_since_ == kNever) {
    message_since_ = loop_->now();
    arm_timer();
  }
}

// What the callback left becomes our own. False: the connection has ended.
bool TcpConnection::keep_input() {
  const bool leaving = detachment_ && reason_ == CloseReason::detached;  // with what is unread
  if (phase_ != Phase::open && !leaving) {
    drop_input();
    return false;
  }
  try {
    input_.keep_rest();
  } catch (const std::bad_alloc&) {
    drop_input();
    conclude_overflow(system_error(ENOMEM), Release::orderly);
    return false;
  }
  return settle_input();
}

// Offered again without new bytes only if that can change something: some of it was consumed, or
// another behaviour will see it. At the limit nothing more is read; what is kept is offered each
// turn, as long as some is consumed.
void TcpConnection::offer_what_is_left(std::size_t offered) {
  const std::size_t left = input_.size();
  if (left == offered) offer_input_ = false;
  if (next_behaviour_ && left > 0) offer_input();
  const bool full = limits().input_max != 0 && left >= limits().input_max;
  const bool held_back = pauses_ > 0 || above_high_;  // then it is offered when that ends
  if (full && !held_back) {
    if (left == offered) {
      conclude_overflow(Errc::input_limit, Release::orderly);
      return;
    }
    offer_input();
  }
  if (full != input_full_) {
    input_full_ = full;
    apply_reading();
  }
}

void TcpConnection::offer_input() {
  offer_input_ = true;
  schedule_notify();
}

// Charges or discharges what input_ has grown or shrunk by. False: over budget, and the connection
// has ended.
bool TcpConnection::settle_input() noexcept {
  const std::size_t held = input_.charge();
  if (held == input_charged_) return true;
  if (held < input_charged_) {
    loop_->memory().discharge(input_charged_ - held);
  } else if (!loop_->memory().charge(held - input_charged_)) {
    drop_input();
    conclude_overflow(Errc::memory_limit, Release::orderly);
    return false;
  }
  input_charged_ = held;
  return true;
}

void TcpConnection::drop_input() noexcept {
  input_discarded_ += input_.size();
  input_.discard();
  loop_->memory().discharge(std::exchange(input_charged_, 0));
}

// Kept input that is still to be offered comes before the end.
bool TcpConnection::input_is_held_back() const noexcept {
  return !input_.empty() && (offer_input_ || above_high_);
}

void TcpConnection::on_peer_finished() {
  last_activity_ = loop_->now();
  if (phase_ == Phase::open && (!may_deliver() || input_is_held_back())) {
    input_end_due_ = true;
    apply_reading();
    return;
  }
  end_input();
}

void TcpConnection::end_input() {
  input_ended_ = true;
  receiving_ = false;
  if (broken_) {
    conclude(CloseReason::reset, Release::orderly);
    return;
  }
  if (phase_ == Phase::open) {
    begin_event();
    if (callbacks().on_peer_finished) {
      in_handler_ = true;
      run_callback([this] { callbacks().on_peer_finished(*this); });
      after_handler();
    } else {
      finish_if_allowed();
    }
    arm_timer();
  }
  conclude_if_finished();
}

void TcpConnection::pause_reading() {
  loop_->assert_here();
  PENSTOCK_ASSERT(pauses_ < UINT16_MAX, "too many pauses without a resume");
  ++pauses_;
  apply_reading();
}

void TcpConnection::resume_reading() {
  loop_->assert_here();
  PENSTOCK_ASSERT(pauses_ > 0, "resume_reading() without pause_reading()");
  if (--pauses_ > 0 || phase_ != Phase::open) return;
  last_activity_ = loop_->now();  // the silence was ours
  if (!input_.empty() || input_end_due_) offer_input();
  apply_reading();
  arm_timer();
}

// The water marks follow the queue; hysteresis lies between them.
void TcpConnection::update_flow() {
  if (phase_ == Phase::closed) return;
  const std::size_t queued = queued_bytes();
  if (!above_high_ && queued > limits().high_water) {
    above_high_ = true;
    passed_high_ = true;
  } else if (above_high_ && queued <= std::min(limits().low_water, limits().high_water)) {
    above_high_ = false;
    // Its callback may have stopped because of the mark.
    if (phase_ == Phase::open && !input_.empty()) offer_input();
  } else {
    return;
  }
  if (callbacks().on_high_water || callbacks().on_low_water || next_behaviour_) schedule_notify();
  apply_reading();
}

void TcpConnection::apply_reading() {
  const bool open_and_free = phase_ == Phase::open && !input_full_ && !detachment_ &&
                             (pause_overridden_ || (pauses_ == 0 && !above_high_));
  const bool wanted =
      (open_and_free || phase_ == Phase::draining) && !input_ended_ && !input_end_due_;
  if (wanted == receiving_ || stream_ == nullptr) return;
  receiving_ = wanted;
  if (wanted) {
    // Until now it was not the peer that kept silent.
    listening_since_ = last_heartbeat_ = loop_->now();
    if (message_since_ != kNever) message_since_ = loop_->now();
    stream_->start_receive();
    arm_timer();
  } else {
    stream_->stop_receive();
  }
}

// -- Ending ---------------------------------------------------------------------------------------

void TcpConnection::finish() {
  loop_->assert_here();
  if (phase_ == Phase::closed || finish_requested_) return;
  finish_requested_ = true;
  if (output_.empty()) {
    finish_if_drained();
  } else if (!in_handler_ && !send_pending_) {
    mark_dirty();
  }
}

void TcpConnection::finish_if_allowed() {
  if (input_ended_ && holds_ == 0 && !callbacks().on_peer_finished) finish();
}

// FIN goes behind the last byte.
void TcpConnection::finish_if_drained() {
  if (!finish_requested_ || finished_ || phase_ == Phase::closed) return;
  if (!output_.empty() || send_pending_ || output_broken_) return;
  finished_ = true;
  last_activity_ = loop_->now();
  if (!input_ended_) stream_->finish();  // else closing says it
  if (phase_ == Phase::draining) {
    start_drain();
  } else {
    arm_timer();
  }
  conclude_if_finished();
}

// From FIN on, close() waits within limits for the peer's own.
void TcpConnection::start_drain() {
  drain_started_ = last_activity_ = loop_->now();
  arm_timer();
}

void TcpConnection::conclude_if_finished() {
  if (!finished_ || !input_ended_ || phase_ == Phase::closed) return;
  if (phase_ == Phase::draining) {
    conclude(reason_, Release::orderly);
  } else {
    conclude(input_.empty() ? CloseReason::eof : CloseReason::truncated, Release::orderly);
  }
}

void TcpConnection::close() {
  loop_->assert_here();
  if (phase_ != Phase::open) return;
  phase_ = Phase::draining;
  reason_ = CloseReason::local;
  if (!in_handler_) drop_input();  // else when the handler returns: it may be looking at it
  if (input_end_due_) {
    input_end_due_ = false;
    input_ended_ = true;
  }
  if (broken_) {
    conclude(CloseReason::reset, Release::orderly);
    return;
  }
  apply_reading();
  if (finished_) start_drain();  // FIN went out before
  finish();
}

void TcpConnection::close_with_protocol_error(std::error_code why) {
  if (phase_ != Phase::open) return;
  close();
  if (reason_ != CloseReason::local) return;
  reason_ = CloseReason::protocol;
  error_ = why;
}

void TcpConnection::close_for_stop() {
  if (phase_ == Phase::open && holds_ > 0) {
    close_when_released_ = true;
    return;
  }
  const bool all_sent = output_.empty() && !send_pending_ && !output_broken_;
  if (phase_ == Phase::open && all_sent && quiet()) {
    conclude(CloseReason::local, Release::orderly);
  } else {
    close();
  }
}

// Whether the peer has all we sent and has sent nothing that waits: closing cannot cost it a byte.
bool TcpConnection::quiet() const {
  Kernel& kernel = loop_->kernel();
  std::byte next{};
  return kernel.unacknowledged_bytes(stream_->descriptor()) == 0 &&
         kernel.recv(stream_->descriptor(), &next, 1, MSG_PEEK | MSG_DONTWAIT) == -EAGAIN;
}

void TcpConnection::abort() {
  loop_->assert_here();
  conclude(CloseReason::local, Release::reset);
}

void TcpConnection::abort_with(std::error_code why) {
  loop_->assert_here();
  if (phase_ != Phase::closed) error_ = why;
  abort();
}

void TcpConnection::hold() {
  loop_->assert_here();
  PENSTOCK_ASSERT(holds_ < UINT16_MAX, "too many holds without a release");
  ++holds_;
}

void TcpConnection::release() {
  loop_->assert_here();
  PENSTOCK_ASSERT(holds_ > 0, "release() without hold()");
  if (--holds_ > 0 || phase_ == Phase::closed) return;
  last_activity_ = loop_->now();  // the reply that was computed counts as activity
  if (close_when_released_) {
    close();
    return;
  }
  finish_if_allowed();
  arm_timer();
}

// The last step that the connection decides; the stream answers with on_closed.
void TcpConnection::conclude(CloseReason reason, Release how) {
  if (phase_ == Phase::closed) return;
  phase_ = Phase::closed;
  reason_ = reason;
  receiving_ = false;
  timer_.cancel();
  ListLink<DirtyTag>::unlink();
  if (how == Release::reset) {
    stream_->abort();
  } else {
    stream_->close();
  }
}

void TcpConnection::conclude_timeout(TimeoutKind kind, Release how) {
  if (phase_ == Phase::closed) return;
  timeout_ = kind;
  conclude(CloseReason::timeout, how);
}

void TcpConnection::conclude_overflow(std::error_code limit, Release how) {
  if (phase_ != Phase::closed) {
    error_ = limit;
    conclude(CloseReason::overflow, how);
  } else if (reason_ == CloseReason::detached && stream_ != nullptr) {
    // On its way out, and input is lost: that must not go on as if nothing were.
    error_ = limit;
    reason_ = CloseReason::overflow;
    stream_->close();
  }
}

void TcpConnection::on_connected() {
  PENSTOCK_ASSERT(false, "an attached stream is connected already");
}

void TcpConnection::on_failed(int error) {
  broken_ = true;
  output_broken_ = true;
  broken_at_ = loop_->now();
  error_ = system_error(error);
  discard_output();
  if (error == ETIMEDOUT) {
    conclude_timeout(TimeoutKind::unacknowledged, Release::orderly);
  } else if (detachment_) {
    conclude(CloseReason::reset, Release::orderly);
  } else if (phase_ == Phase::draining || input_ended_) {
    conclude(reason_ == CloseReason::protocol ? CloseReason::protocol : CloseReason::reset,
             Release::orderly);
  } else {
    update_flow();  // nothing is queued any more: only the user can keep reading paused
    arm_timer();
  }
}

// -- Leaving the loop without an end --------------------------------------------------------------

void TcpConnection::detach(DetachCallback taker) {
  loop_->assert_here();
  if (phase_ != Phase::open || detachment_) return;
  if (broken_) {  // nothing is left to hand over, and nobody would read it to its end
    conclude(CloseReason::reset, Release::orderly);
    return;
  }
  detachment_ = std::make_unique<Detachment>(std::move(taker));
  apply_reading();
  if (!in_handler_) flush();  // else when it returns
}

void TcpConnection::detach_if_drained() {
  if (!detachment_ || phase_ != Phase::open) return;
  if (broken_ || output_broken_) return;  // on_failed ends it
  if (!output_.empty() || send_pending_ || (finish_requested_ && !finished_)) return;
  phase_ = Phase::closed;
  reason_ = CloseReason::detached;
  receiving_ = false;
  timer_.cancel();
  ListLink<DirtyTag>::unlink();
  stream_->detach();
}

void TcpConnection::on_detached(UniqueFd fd) {
  detachment_->fd = std::move(fd);
  stream_ = nullptr;
  stream_gone_ = true;
  schedule_notify();
}

void TcpConnection::on_closed() {
  stream_ = nullptr;
  stream_gone_ = true;
  discard_output();
  drop_input();
  schedule_notify();
}

// -- Events ---------------------------------------------------------------------------------------

void TcpConnection::begin_event() {
  if (!next_behaviour_) return;
  behaviour_ = std::exchange(next_behaviour_, BehaviourPtr());
  update_flow();
  arm_timer();
}

void TcpConnection::set_behaviour(BehaviourPtr behaviour) {
  loop_->assert_here();
  next_behaviour_ = std::move(behaviour);
  if (!in_handler_ && !input_.empty()) offer_input();
}

template <class Call>
void TcpConnection::run_callback(Call call) {
  try {
    call();
  } catch (...) {
    loop_->report_exception("connection callback");
    abort_with(make_error_code(Errc::callback_threw));
  }
}

void TcpConnection::after_handler() {
  in_handler_ = false;
  flush();
}

void TcpConnection::schedule_notify() {
  if (!reported_ && !ListLink<NotifyTag>::linked()) table_->schedule_notify(*this);
}

bool TcpConnection::notify() {
  begin_event();
  if (phase_ == Phase::open) notify_water_marks();
  // Once per drain: what was sent since then has a drain of its own to come.
  if (std::exchange(write_complete_due_, false) && output_.empty() &&
      callbacks().on_write_complete) {
    run_callback([this] { callbacks().on_write_complete(*this); });
  }
  if (std::exchange(offer_input_, false)) {
    if (may_deliver() && !input_.empty()) deliver_input();
    if (may_deliver() && !input_is_held_back() && std::exchange(input_end_due_, false)) end_input();
  }
  if (stream_gone_ && !reported_) {
    report_end();
    return true;
  }
  return false;
}

// Strictly alternating, but that low water is also told to whom a send was refused. A mark that was passed and left behind in one turn is told all the same: a
// sender may have been told to wait for it.
void TcpConnection::notify_water_marks() {
  const bool rose = std::exchange(passed_high_, false) && !notified_above_high_;
  if (rose) {
    notified_above_high_ = true;
    if (callbacks().on_high_water) {
      run_callback([this] { callbacks().on_high_water(*this); });
    }
  }
  const bool fell = notified_above_high_ && !above_high_;
  const bool room_again = answered_full_ && output_.empty();
  if (phase_ == Phase::open && (fell || room_again)) {
    notified_above_high_ = false;
    answered_full_ = false;
    if (callbacks().on_low_water) {
      run_callback([this] { callbacks().on_low_water(*this); });
    }
  }
}

void TcpConnection::report_end() {
  reported_ = true;
  const CloseReport report{
      .reason = reason_,
      .timeout = timeout_,
      .error = error_,
      .bytes_received = bytes_received_,
      .bytes_sent = bytes_sent_,
      .bytes_discarded = output_discarded_,
      .input_discarded = input_discarded_,
      .messages_dropped = messages_dropped_,
      .duration = loop_->now() - opened_at_,
  };
  if (detachment_ && detachment_->fd) {
    run_callback([this] { detachment_->taker(std::move(detachment_->fd), input_.take_string()); });
    drop_input();
  }
  if (callbacks().on_close) run_callback([&] { callbacks().on_close(*this, report); });
  while (GroupMember* place = groups_.front())
    place->leave();
  context_.reset();
  detachment_.reset();
}

// -- Limits of time -------------------------------------------------------------------------------

// One timer serves all limits. It is brought forward when a nearer limit comes into force, and else
// left alone: when it fires, the limit that applies now is computed from the last event.
void TcpConnection::arm_timer() {
  const TimePoint limit = next_limit();
  if (limit < timer_.deadline()) loop_->timers().schedule(timer_, limit);
}

void TcpConnection::on_timer() {
  begin_event();
  // By what has been dispatched, not by the clock: input that waits in the kernel is no silence.
  const TimePoint now = loop_->polled_until();
  if (next_limit() <= now) enforce_limit(now);
  arm_timer();
}

TimePoint TcpConnection::next_limit() const noexcept {
  return std::min({silence_limit(), message_limit(), heartbeat_limit()});
}

// The end of the limit that the present state is under; kNever for none.
TimePoint TcpConnection::silence_limit() const noexcept {
  if (phase_ == Phase::closed) return kNever;
  if (stall_since_ != kNever) {
    const Duration limit = limits().write_stall_timeout;
    return std::min(end_of(stall_since_, limit), end_of(stall_sampled_at_, limit / 4));
  }
  if (phase_ == Phase::draining) {
    if (!finished_) return kNever;
    return std::min(end_of(last_activity_, limits().drain_idle_timeout),
                    end_of(drain_started_, limits().drain_timeout));
  }
  if (broken_) return end_of(broken_at_, limits().broken_pause_timeout);
  if (holds_ > 0 || (pauses_ > 0 && !input_ended_)) return kNever;
  const bool half_closed = finished_ || input_ended_;
  return end_of(last_activity_, half_closed ? limits().half_close_timeout : limits().idle_timeout);
}

TimePoint TcpConnection::first_message_limit() const noexcept {
  if (first_message_came_) return kNever;
  return end_of(listening_since_, limits().first_message_timeout.value_or(kNone));
}

// Of a first message, or of the one that has begun. The rate is that of the whole message: what has
// come of it suffices until the time at which it would be too slow.
TimePoint TcpConnection::message_limit() const noexcept {
  if (phase_ != Phase::open || !receiving_) return kNever;
  TimePoint limit = first_message_limit();
  if (message_since_ == kNever) return limit;
  limit = std::min(limit, end_of(message_since_, limits().message_timeout.value_or(kNone)));
  const std::size_t rate = limits().message_rate_min.value_or(0);
  if (rate > 0) {
    const auto enough_for = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(
        static_cast<double>(input_.size()) / static_cast<double>(rate)));
    limit = std::min(
        limit, add_clamped(message_since_, std::max(enough_for, limits().message_rate_grace)));
  }
  return limit;
}

TimePoint TcpConnection::heartbeat_limit() const noexcept {
  if (!receiving_ || !can_send()) return kNever;
  return end_of(std::max(last_received_, last_heartbeat_), limits().heartbeat_interval);
}

void TcpConnection::enforce_limit(TimePoint now) {
  if (silence_limit() <= now) enforce_silence(now);
  if (message_limit() <= now && message_since_ != kNever && more_waits()) {
    message_since_ = listening_since_ = loop_->now();  // it is we who are slow
  } else if (message_limit() <= now) {
    const bool first = first_message_limit() <= now;
    conclude_timeout(first ? TimeoutKind::first_message : TimeoutKind::slow_message,
                     Release::reset);
  }
  if (heartbeat_limit() <= now) beat(now);
}

// Whether more of a message than a dribble is in the kernel already.
bool TcpConnection::more_waits() const {
  std::array<std::byte, 1024> next;
  const ssize_t size = loop_->kernel().recv(stream_->descriptor(), next.data(), next.size(),
                                            MSG_PEEK | MSG_DONTWAIT);
  return size == static_cast<ssize_t>(next.size());
}

void TcpConnection::beat(TimePoint now) {
  if (last_received_ > last_heartbeat_) heartbeats_unanswered_ = 0;
  if (heartbeats_unanswered_ >= std::max(1U, limits().heartbeats_missed_max)) {
    conclude_timeout(TimeoutKind::heartbeat, Release::reset);
    return;
  }
  ++heartbeats_unanswered_;
  last_heartbeat_ = now;
  if (callbacks().on_heartbeat) run_callback([this] { callbacks().on_heartbeat(*this); });
}

void TcpConnection::enforce_silence(TimePoint now) {
  if (stall_since_ != kNever) {
    enforce_write_stall(now);
  } else if (phase_ == Phase::draining) {
    const Duration whole = limits().drain_timeout;
    const bool over = whole > Duration::zero() && add_clamped(drain_started_, whole) <= now;
    if (!over && peer_takes_output()) {
      last_activity_ = now;
    } else {
      conclude(reason_, Release::orderly);
    }
  } else if (broken_) {
    enforce_broken_pause(now);
  } else if (finished_ || input_ended_) {
    if (peer_takes_output()) {
      last_activity_ = now;
    } else {
      conclude_timeout(TimeoutKind::half_close, Release::orderly);
    }
  } else if (peer_takes_output()) {
    last_activity_ = now;
  } else {
    conclude_timeout(TimeoutKind::idle, Release::orderly);
  }
}

// A slow reader makes progress long before the kernel asks for more output, so what the peer has
// not acknowledged is sampled, four times per limit.
void TcpConnection::enforce_write_stall(TimePoint now) {
  const bool progress = peer_takes_output() || bytes_sent_ != stall_bytes_sent_;
  if (progress) stall_since_ = now;
  stall_sampled_at_ = now;
  stall_bytes_sent_ = bytes_sent_;
  if (add_clamped(stall_since_, limits().write_stall_timeout) <= now) {
    conclude_timeout(TimeoutKind::write_stall, Release::reset);
  }
}

// Samples what the peer has acknowledged. True: some output is under way, and more of it has
// arrived than at the last sample.
bool TcpConnection::peer_takes_output() {
  const int under_way = loop_->kernel().unacknowledged_bytes(stream_->descriptor());
  if (under_way <= 0) return false;
  const std::int64_t before = acknowledged_;
  acknowledged_ = static_cast<std::int64_t>(bytes_sent_) - under_way;
  return acknowledged_ > before;
}

// First what is left of the input is delivered although reading is paused; then patience ends.
void TcpConnection::enforce_broken_pause(TimePoint now) {
  if (receiving_ || pause_overridden_) {
    conclude(CloseReason::reset, Release::orderly);
    return;
  }
  pause_overridden_ = true;
  broken_at_ = now;
  if (!input_.empty() || input_end_due_) offer_input();
  apply_reading();
}

// -- What it is -----------------------------------------------------------------------------------

Result<void> TcpConnection::set_raw_option(int level, int name, const void* value,
                                           std::size_t size) {
  loop_->assert_here();
  if (descriptor() < 0) return failure(ENOTCONN);
  const int set =
      loop_->kernel().setsockopt(descriptor(), level, name, value, static_cast<socklen_t>(size));
  if (set < 0) return failure(set);
  return {};
}

Result<void> TcpConnection::read_raw_option(int level, int name, void* value,
                                            std::size_t size) const {
  loop_->assert_here();
  if (descriptor() < 0) return failure(ENOTCONN);
  auto room = static_cast<socklen_t>(size);
  const int read = loop_->kernel().getsockopt(descriptor(), level, name, value, &room);
  if (read < 0) return failure(read);
  return {};
}

void TcpConnection::join(GroupMember& place) noexcept { groups_.push_back(place); }

Result<tcp_info> TcpConnection::info() const { return option<tcp_info>(IPPROTO_TCP, TCP_INFO); }

ConnectionHandle TcpConnection::handle() const noexcept { return {loop_->id(), id_}; }

SocketAddress TcpConnection::local_address() const {
  if (descriptor() < 0) return {};
  return bound_address(loop_->kernel(), descriptor()).value_or(SocketAddress());
}

}  // namespace penstock

#include "io/readiness_stream.h"

#include <algorithm>
#include <utility>

#include "penstock/base/assert.h"

namespace penstock {
namespace {

constexpr std::uint32_t kEndEvents = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI;
constexpr std::uint32_t kInputEvents = EPOLLIN | kEndEvents;
constexpr std::uint32_t kBrokenEvents = EPOLLHUP | EPOLLERR;

bool is_shortage(ssize_t result) noexcept { return result == -ENOBUFS || result == -ENOMEM; }

}  // namespace

// Level: what is wanted now. The end of the input (RDHUP) is wanted only together with input, or a
// paused stream would spin (K7). Edge: all input events once and for all; an edge costs nothing
// while it is not wanted.
std::uint32_t ReadinessStream::wanted_events() const noexcept {
  const bool room_wanted = (blocked_ && !send_starved_) || in_on_sent_ || connecting_;
  const std::uint32_t output = room_wanted ? std::uint32_t{EPOLLOUT} : 0;
  if (edge()) return EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET | output;
  const bool input_wanted = receiving_ && !input_ended_ && !receive_starved_ && !connecting_;
  return (input_wanted ? EPOLLIN | EPOLLRDHUP : 0) | output;
}

int ReadinessStream::register_attached() {
  const std::uint32_t events = wanted_events();
  const int result = context_.selector.add(fd_, events, Token::of(Token::Kind::stream, id_));
  if (result == 0) {
    registered_ = true;
    armed_events_ = events;
  }
  return result;
}

int ReadinessStream::register_connecting(bool done_already) {
  connecting_ = true;
  if (done_already) make_ready();
  return register_attached();
}

void ReadinessStream::update_interest() {
  if (!registered_) return;
  const std::uint32_t events = wanted_events();
  if (events == armed_events_) return;
  const int result = context_.selector.change(fd_, events, Token::of(Token::Kind::stream, id_));
  PENSTOCK_ASSERT(result == 0 || result == -ENOMEM, "the selector does not know its descriptor");
  if (result == 0) {
    armed_events_ = events;
    return;
  }
  // MOD can lack memory only for wake-up sources, which we do not use; should it, the stream cannot
  // go on. What is armed now would repeat itself for ever, so it leaves; what has arrived is read.
  leave_selector();
  if (send_error_ == 0) send_error_ = -result;
  readable_ = true;
  read_to_end_ = true;
  make_ready();
}

void ReadinessStream::leave_selector() noexcept {
  if (!registered_) return;
  context_.selector.remove(fd_);
  registered_ = false;
  armed_events_ = 0;
}

// It left with HUP or ERR, and yet there is no end to read: events have to tell.
void ReadinessStream::return_to_selector() {
  const int result = register_attached();
  if (result == 0) return;
  report_failure(-result);
  if (!closed()) end_input();
}

void ReadinessStream::make_ready() {
  if (ListLink<StreamWorkTag>::linked()) return;
  (busy() ? context_.busy : context_.ready).push_back(*this);
}

void ReadinessStream::start_receive() {
  if (closed() || receiving_) return;
  receiving_ = true;
  if (connecting_ || input_ended_) return;
  update_interest();
  if (readable_ && (edge() || !registered_)) make_ready();
}

void ReadinessStream::stop_receive() {
  if (closed() || !receiving_) return;
  receiving_ = false;
  update_interest();
}

// -- Sending --------------------------------------------------------------------------------------

SendResult ReadinessStream::send(std::span<const iovec> front) {
  SendResult result = transmit(front);
  result.pending = blocked_;
  return result;
}

SendResult ReadinessStream::offer(std::span<const iovec> front) { return transmit(front); }

// One call to the kernel: what it does not take now it will not take a moment later either.
SendResult ReadinessStream::transmit(std::span<const iovec> front) {
  PENSTOCK_ASSERT(!connecting_, "nothing can be sent before on_connected");
  if (closed() || send_error_ != 0 || failed_) return {.error = EPIPE};
  if (blocked_ || front.empty()) return {};

  std::size_t size = 0;
  for (const iovec& piece : front)
    size += piece.iov_len;
  ssize_t sent = 0;
  if (front.size() == 1) {
    sent = context_.kernel.send(fd_, front[0].iov_base, front[0].iov_len, 0);
  } else {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(front.data());  // sendmsg only reads it
    message.msg_iovlen = front.size();
    sent = context_.kernel.sendmsg(fd_, &message, 0);
  }

  if (sent >= 0) {
    const auto taken = static_cast<std::size_t>(sent);
    PENSTOCK_ASSERT(taken <= size, "the kernel took more than it was given");
    context_.moved_bytes += taken;
    retry_delay_ = Duration::zero();
    if (taken < size) {
      ++context_.statistics.short_sends;
      blocked_ = true;
      update_interest();
    }
    return {.taken = taken};
  }
  if (sent == -EAGAIN) {
    ++context_.statistics.blocked_sends;
    blocked_ = true;
    update_interest();
    return {};
  }
  if (is_shortage(sent)) {
    ++context_.statistics.blocked_sends;
    blocked_ = true;
    send_starved_ = true;
    update_interest();
    retry_later();
    return {};
  }
  // Broken. What has arrived is still read; the next poll() reports the failure (rule 1).
  send_error_ = static_cast<int>(-sent);
  readable_ = true;
  read_to_end_ = true;
  make_ready();
  return {.error = send_error_};
}

void ReadinessStream::notify_writable() {
  blocked_ = false;
  in_on_sent_ = true;  // keeps the interest armed while the owner sends again
  handler_.on_sent(0);
  in_on_sent_ = false;
  if (!closed()) update_interest();
}

void ReadinessStream::finish() {
  if (closed()) return;
  PENSTOCK_ASSERT(!blocked_, "a FIN would overtake what is pending");
  // ENOTCONN: the peer has reset the connection; reading tells.
  context_.kernel.shutdown(fd_, SHUT_WR);
}

// -- Receiving ------------------------------------------------------------------------------------

// The events of a busy stream wait behind those of the others; a selector by level may repeat them
// meanwhile.
void ReadinessStream::on_event(std::uint32_t events) {
  if (busy()) {
    deferred_events_ |= events;
    make_ready();
  } else {
    serve(events);
  }
}

void ReadinessStream::on_ready() {
  if (send_error_ != 0 && !failed_ && !connecting_) {
    report_failure(send_error_);
    context_.read_clock();
    if (closed()) return;
  }
  std::uint32_t events = std::exchange(deferred_events_, 0);
  // Input that no event announces any more.
  if (readable_ && (events == 0 || edge() || !registered_)) events |= EPOLLIN;
  serve(events);
}

void ReadinessStream::serve(std::uint32_t events) {
  const std::size_t moved_before = context_.moved_bytes;
  const std::size_t received_before = context_.received_bytes;
  const TimePoint began = context_.clock;
  take_events(events);
  const std::size_t received = context_.received_bytes - received_before;
  // Halved, not forgotten: a flood has a short read now and then.
  recently_moved_ = std::max(context_.moved_bytes - moved_before, recently_moved_ / 2);
  recently_received_ = std::max(received, recently_received_ / 2);
  recently_held_ /= 2;
  if (context_.timed) {
    note_time(began, received);
  } else {
    nanoseconds_per_byte_ = 0;  // turns are short: nobody takes long
  }
}

void ReadinessStream::note_time(TimePoint began, std::size_t received) noexcept {
  context_.read_clock();
  const Duration light = context_.budget.time / 4;
  const Duration held = context_.clock - began;
  // What a piece cost holds for the next one: the rest of a message may cost nothing.
  if (received >= kSmallMessages || (received > 0 && held > light)) {
    nanoseconds_per_byte_ = static_cast<float>(held.count()) / static_cast<float>(received);
  }
  recently_held_ =
      std::max(std::min(held / kStallMax, context_.budget.time) * kStallMax, recently_held_);
}

std::size_t ReadinessStream::receivable(TurnRoom room) const noexcept {
  double size = static_cast<double>(std::min(room.bytes, kReadBudgetBytes));
  if (recently_received_ > 0) {
    const std::size_t moved = std::max(recently_moved_, recently_received_);
    size = std::min(size, static_cast<double>(room.bytes) *
                              static_cast<double>(recently_received_) / static_cast<double>(moved));
  }
  if (nanoseconds_per_byte_ > 0)
    size = std::min(
        size, static_cast<double>(room.time.count()) / static_cast<double>(nanoseconds_per_byte_));
  return std::max(static_cast<std::size_t>(size), kSmallMessages);
}

void ReadinessStream::take_events(std::uint32_t events) {
  if (connecting_) {
    finish_connect(events);
    return;
  }
  if ((events & kInputEvents) != 0) {
    readable_ = true;
    if ((events & kEndEvents) != 0) read_to_end_ = true;
    // One that waits on the ready list has its turn there, not twice.
    if (receiving_ && !receive_starved_ && !ListLink<StreamWorkTag>::linked()) receive();
    if (closed()) return;
  }
  if ((events & (EPOLLOUT | kBrokenEvents)) != 0 && blocked_ && !send_starved_) {
    notify_writable();
    if (closed()) return;
  }
  // HUP and ERR cannot be masked. While nobody reads, level triggering would repeat them for ever,
  // so the stream leaves the selector; what has arrived is read without further events once it is
  // wanted.
  if ((events & kBrokenEvents) != 0 && (!receiving_ || input_ended_ || receive_starved_)) {
    if (!edge()) leave_selector();
    if ((events & EPOLLERR) != 0) report_failure(send_error_ != 0 ? send_error_ : ECONNRESET);
  }
}

void ReadinessStream::receive() {
  std::size_t received = 0;
  for (int call = 1; !input_ended_; ++call) {
    const std::size_t asked = std::min(context_.scratch.size(), context_.receive_max - received);
    const ssize_t result = context_.kernel.recv(fd_, context_.scratch.data(), asked, 0);
    if (result > 0) {
      const auto size = static_cast<std::size_t>(result);
      received += size;
      context_.moved_bytes += size;
      context_.received_bytes += size;
      retry_delay_ = Duration::zero();
      const bool drained = size < asked && !read_to_end_;
      if (drained) readable_ = false;
      handler_.on_received(context_.scratch.first(size));
      if (closed() || !receiving_ || drained) return;
      const bool more_later = received >= context_.receive_max || call >= kReadBudgetCalls;
      if (!more_later && (edge() || read_to_end_)) continue;
      // A level-triggered selector tells again by itself.
      if (edge() || !registered_) make_ready();
      return;
    }
    if (result == 0) {
      // A send may have consumed the socket's error: then this is no clean end.
      if (send_error_ != 0) report_failure(send_error_);
      if (!closed()) end_input();
      return;
    }
    if (result == -EAGAIN) {
      readable_ = false;
      read_to_end_ = reads_to_end_;
      if (send_error_ != 0) {
        // What had arrived has been read, and a connection that cannot send is over.
        report_failure(send_error_);
        if (!closed()) end_input();
      } else if (!registered_) {
        return_to_selector();
      }
      return;
    }
    if (is_shortage(result)) {
      receive_starved_ = true;
      update_interest();
      retry_later();
      return;
    }
    report_failure(static_cast<int>(-result));
    if (!closed()) end_input();
    return;
  }
}

void ReadinessStream::end_input() {
  if (input_ended_) return;
  input_ended_ = true;
  readable_ = false;
  update_interest();
  handler_.on_peer_finished();
}

void ReadinessStream::report_failure(int error) {
  if (failed_) return;
  failed_ = true;
  blocked_ = false;
  handler_.on_failed(error);
}

void ReadinessStream::finish_connect(std::uint32_t events) {
  int error = 0;
  socklen_t size = sizeof error;
  const int result = context_.kernel.getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size);
  if (result < 0) error = -result;
  if (error == 0) {
    // An event without an outcome proves nothing: only a peer does (N7).
    sockaddr_storage peer{};
    socklen_t peer_size = sizeof peer;
    const int named =
        context_.kernel.getpeername(fd_, reinterpret_cast<sockaddr*>(&peer), &peer_size);
    if (named == -ENOTCONN && (events & kBrokenEvents) == 0) return;
    if (named < 0) error = -named;
  }
  if (error != 0) {
    leave_selector();
    report_failure(error);
    return;
  }
  connecting_ = false;
  update_interest();
  handler_.on_connected();
}

// -- Shortage of kernel memory --------------------------------------------------------------------

void ReadinessStream::retry_later() {
  retry_delay_ = std::clamp(retry_delay_ * 2, kRetryDelayMin, kRetryDelayMax);
  retry_at_ = add_clamped(context_.kernel.now(), retry_delay_);
  if (!ListLink<StreamRetryTag>::linked()) context_.retrying.push_back(*this);
}

void ReadinessStream::on_retry(TimePoint now) {
  if (retry_at_ > now) return;
  ListLink<StreamRetryTag>::unlink();
  retry_at_ = kNever;
  if (std::exchange(receive_starved_, false)) {
    update_interest();
    if (receiving_) receive();
    if (closed()) return;
  }
  if (std::exchange(send_starved_, false) && blocked_) notify_writable();
}

// -- Closing --------------------------------------------------------------------------------------

void ReadinessStream::close() {
  if (detached_fd_ >= 0) context_.kernel.close(std::exchange(detached_fd_, -1));
  if (closed()) return;
  leave_selector();  // before the close: a duplicate of the descriptor would keep the registration alive (K12)
  context_.kernel.close(std::exchange(fd_, -1));
  leave_lists();
  context_.dying.push_back(*this);
}

void ReadinessStream::leave_lists() noexcept {
  ListLink<StreamRetryTag>::unlink();
  ListLink<StreamWorkTag>::unlink();
}

void ReadinessStream::abort() {
  const int fd = detached_fd_ >= 0 ? detached_fd_ : fd_;
  if (fd < 0) return;
  const linger reset{.l_onoff = 1, .l_linger = 0};
  context_.kernel.setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  close();
}

void ReadinessStream::detach() {
  if (closed()) return;
  PENSTOCK_ASSERT(!blocked_, "what is pending goes first");
  leave_selector();
  detached_fd_ = std::exchange(fd_, -1);
  leave_lists();
  context_.dying.push_back(*this);
}

}  // namespace penstock

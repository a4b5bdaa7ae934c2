// Seam 2: one connection over every way the kernel can move bytes.
//
//   Receiving is pushed: the back-end owns the memory, the handler borrows it for one call.
//   Sending is pulled:   the connection owns a queue of immovable blocks and lends its front.
//   A readiness event is a completion of zero bytes.
//
// Rules of the seam
//   1. Handlers run only inside IoBackend::poll, on the loop's thread.
//   2. Received bytes are valid during on_received only.
//   3. After send() answers pending, no further send() or offer() until on_sent, and the bytes lent
//      stay where they are until on_sent, on_failed or on_closed. A back-end that has
//      bytes in flight calls on_failed only when they have come to rest.
//   4. stop_receive is a request: bytes the back-end has taken already may still arrive.
//   5. on_closed is the last call, exactly once, after close() or abort(); only then may the
//      handler die.
//   6. The input ends with on_peer_finished, once, after the last byte. on_failed says that the
//      connection is broken; it comes at most once, before or after the last byte, and the input
//      that had arrived is still delivered, while receiving is on, up to on_peer_finished. An
//      on_peer_finished without on_failed is a clean FIN.
//   7. A shortage of kernel memory (ENOBUFS, ENOMEM) is the back-end's to retry: 10 ms, doubling to
//      1 s.
//   8. detach() gives the descriptor back, still connected, with on_detached in place of on_closed.
//      Input the back-end has taken by then is delivered before; nothing may be pending.
//   9. A back-end never runs a handler for a stream, listener or watch that has been closed, even
//      when the kernel names it once more (stale event) or its descriptor number is in use again.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "penstock/base/clock.h"
#include "penstock/base/result.h"
#include "penstock/base/slot_table.h"
#include "penstock/os/kernel.h"
#include "penstock/os/socket_address.h"
#include "penstock/os/unique_fd.h"

namespace penstock {

/// What a stream tells its owner. The owner outlives the stream: it dies after on_closed, not
/// before.
class StreamHandler {
 public:
  /// A connect() has succeeded. Never called for an attached stream.
  virtual void on_connected() = 0;
  /// Bytes have arrived; at least one. They are lent for this call only.
  virtual void on_received(std::span<const std::byte> bytes) = 0;
  /// No further input will come (rule 6).
  virtual void on_peer_finished() = 0;
  /// The pending send has made progress: `bytes` of it have left. 0: the kernel has room, send
  /// again.
  virtual void on_sent(std::size_t bytes) = 0;
  /// The connection is broken (rule 6), or a connect() has failed. `error` is an errno value.
  virtual void on_failed(int error) = 0;
  /// The stream is gone (rule 5).
  virtual void on_closed() = 0;
  /// The stream is gone and the connection goes on as `fd` (rule 8).
  virtual void on_detached(UniqueFd fd) = 0;

 protected:
  ~StreamHandler() = default;
};

/// What a descriptor is, where that decides how it can be read.
enum class StreamKind : std::uint8_t {
  tcp,    ///< A read that falls short has taken all there is.
  other,  ///< It may have stopped early (Unix sockets do, at descriptors being passed; unix(7)).
};

/// Answer to send() and offer().
struct SendResult {
  std::size_t taken = 0;  ///< Bytes that have left, from the front.
  bool pending = false;   ///< on_sent will follow; send nothing until then.
  int error = 0;  ///< errno value: nothing more can be sent, on_failed will follow from poll().
};

/// One connection as the back-end sees it. Owned by the back-end; used on the loop's thread.
/// Receives from the start.
class Stream {
 public:
  /// Asks for on_received and on_peer_finished, after stop_receive. Idempotent.
  virtual void start_receive() = 0;
  /// Asks for no more of them (rule 4). Idempotent.
  virtual void stop_receive() = 0;
  /// Sends the bytes at `front`, at most 64 entries, which stay put until they are reported gone
  /// (rule 3).
  virtual SendResult send(std::span<const iovec> front) = 0;
  /// Like send, for bytes that are lent during this call only: what is not taken at once the caller
  /// keeps, and follows up with send(). Never answers pending with bytes in flight; a back-end that
  /// cannot take bytes at once takes none.
  virtual SendResult offer(std::span<const iovec> front) = 0;
  /// FIN: no more will be sent. Everything given to send() goes first. Idempotent.
  virtual void finish() = 0;
  /// Releases the connection; the kernel still delivers what it has taken, unless input is left
  /// unread (then it resets).
  virtual void close() = 0;
  /// Releases the connection with a reset (RST).
  virtual void abort() = 0;
  /// Gives the connection back (rule 8). Only while no send is pending. A close() or abort() that
  /// comes before on_detached prevails.
  virtual void detach() = 0;
  /// The descriptor, for socket options and TCP_INFO; -1 after close, abort or detach.
  virtual int descriptor() const = 0;

 protected:
  ~Stream() = default;
};

/// What a listener tells its owner.
class AcceptHandler {
 public:
  /// A connection has been accepted: nonblocking and close-on-exec. `peer` is what accept4 said.
  virtual void on_accepted(UniqueFd fd, const SocketAddress& peer) = 0;
  /// accept4 failed with `error` (errno value) and accepting goes on unless the handler pauses it.
  /// Errors of a single connection that died in the backlog are not reported.
  virtual void on_accept_failed(int error) = 0;

 protected:
  ~AcceptHandler() = default;
};

/// What one waits for on a descriptor.
enum class Interest : std::uint8_t { none = 0, readable = 1, writable = 2, both = 3 };

/// What happened on a watched descriptor.
struct Readiness {
  bool readable = false;  ///< A read would not block (data, end or error).
  bool writable = false;  ///< A write would not block.
  bool failed = false;    ///< ERR or HUP.
};

/// Receives the events of one watched descriptor.
class WatchHandler {
 public:
  /// Something happened on the descriptor; called each turn as long as the condition holds.
  virtual void on_ready(Readiness readiness) = 0;

 protected:
  ~WatchHandler() = default;
};

/// Names of a listener and of a watch within their back-end.
struct ListenerId : SlotId {};
struct WatchId : SlotId {};

/// Counters of a back-end since its start.
struct IoStatistics {
  std::uint64_t waits = 0;           ///< Times poll() asked the kernel.
  std::uint64_t wakeups = 0;         ///< Times it answered with at least one event.
  std::uint64_t events = 0;          ///< Events it answered.
  std::uint64_t unknown_events = 0;  ///< Events with bits that nobody knows; the first is logged.
  std::uint64_t stale_events =
      0;  ///< Events for something closed earlier in the same batch, skipped.
  std::uint64_t short_sends = 0;    ///< Sends of which the kernel took a part.
  std::uint64_t blocked_sends = 0;  ///< Sends of which it took nothing (EAGAIN, no memory).
};

/// One loop's way to the kernel.
class IoBackend {
 public:
  IoBackend(const IoBackend&) = delete;
  IoBackend& operator=(const IoBackend&) = delete;
  /// All streams have been closed and reported; listeners and watches are dropped.
  virtual ~IoBackend() = default;

  /// Its name, for instance "epoll": the one by which it is chosen, but for a custom one.
  virtual std::string_view name() const = 0;

  /// Takes over a connected, nonblocking socket. On error the descriptor is closed.
  virtual Result<Stream*> attach(UniqueFd fd, StreamKind kind, StreamHandler& handler) = 0;
  /// Starts a connection attempt on an unconnected, nonblocking socket; on_connected or on_failed
  /// tells its end. On error no handler runs and the descriptor is left as it was, for another try
  /// (EAGAIN: the backlog of a Unix socket is full).
  virtual Result<Stream*> connect(UniqueFd& fd, const SocketAddress& peer,
                                  StreamHandler& handler) = 0;

  /// Accepts on a listening, nonblocking socket, at most 16 connections per turn.
  virtual Result<ListenerId> listen(UniqueFd fd, AcceptHandler& handler) = 0;
  /// Leaves new connections in the backlog, without a wake-up for them. Idempotent.
  virtual void pause_accepting(ListenerId id) = 0;
  /// Accepts again, those that wait first. Idempotent.
  virtual void resume_accepting(ListenerId id) = 0;
  /// Closes the listener: its port refuses within this turn, its handler is not called again.
  /// Unknown ids are ignored.
  virtual void close_listener(ListenerId id) = 0;

  /// Watches any descriptor epoll takes (socket, pipe, eventfd, timerfd, signalfd), level-triggered
  /// on every back-end. The descriptor stays the caller's and must be unwatched before it is
  /// closed. A descriptor can be watched once.
  virtual Result<WatchId> watch(int fd, Interest interest, WatchHandler& handler) = 0;
  /// Changes the interest. A watch with Interest::none costs no wake-ups, whatever happens on its
  /// descriptor.
  virtual Result<void> change_watch(WatchId id, Interest interest) = 0;
  /// Ends the watch; its handler is not called again. Unknown ids are ignored.
  virtual void unwatch(WatchId id) = 0;

  /// Waits for events until `deadline` (kNever: without end; one that has passed: not at all), and
  /// runs the handlers. `called_at` is what the clock says at the call.
  virtual void poll(TimePoint deadline, TimePoint called_at) = 0;

  /// The time at which the last wait ended: when the input that handlers see was received.
  TimePoint now() const noexcept { return now_; }

  /// Thread-safe. Ends the current or else the next poll() early.
  virtual void wake() = 0;

  /// Whether the last poll() may have left events with the kernel, its batch being full.
  virtual bool more_waiting() const = 0;

  /// Whether a round of polls is under way: somebody whose input had come when it began has not had
  /// a turn yet. A round ends, whatever comes meanwhile. Limits of time wait for that.
  virtual bool round_under_way() const = 0;

  /// Its counters; read on the loop's thread.
  virtual const IoStatistics& statistics() const = 0;

 protected:
  /// `now` is what now() answers until the first wait has ended.
  explicit IoBackend(TimePoint now) noexcept : now_(now) {}

  /// What now() answers; poll() sets it when a wait ends.
  TimePoint now_;
};

/// The back-ends there are.
enum class Backend : std::uint8_t {
  automatic,   ///< PENSTOCK_BACKEND's choice, or epoll.
  epoll,       ///< epoll(7), level-triggered.
  epoll_edge,  ///< epoll(7), edge-triggered.
  poll,        ///< poll(2): every wait costs time for every connection.
  custom,      ///< What set_custom_backend() makes.
};

/// "auto", "epoll", "epoll-et", "poll"; "custom" where there is one. Error: unknown_backend.
Result<Backend> parse_backend(std::string_view name);
/// The name parse_backend() reads.
std::string_view to_string(Backend backend) noexcept;

/// What `automatic` stands for: PENSTOCK_BACKEND if it is set and not empty (an unknown name is an
/// error), else epoll. An explicit choice is answered as it is.
Result<Backend> resolve_backend(Backend backend);

/// Makes a back-end of the program's own. Its errors are those of the loop that wanted it.
using BackendFactory = Result<std::unique_ptr<IoBackend>> (*)(Kernel& kernel);
/// Says what makes Backend::custom, in place of any before; nullptr for nothing. Thread-safe.
void set_custom_backend(BackendFactory factory) noexcept;

/// How a back-end divides its time. Busy connections wait behind all others and share a budget of
/// bytes and one of time; once either is used up the kernel is asked again who else is ready. So they
/// are about the most that a quiet connection waits for.
struct IoOptions {
  /// Bytes that busy connections may move in a turn, received and sent together. A connection is
  /// busy if it moved more than 16 KiB when it was served last, and for a few times more. One busy
  /// connection is served in any case (with at most 64 KiB of input), and so many that a wait has
  /// something to show for its time: 32 KiB for each connection it finds ready (with poll(2): looks
  /// at). 0: no bound, and nobody is busy for what they move.
  std::size_t turn_bytes = std::size_t{128} * 1024;

  /// The same as time: a connection is busy as well if serving it took more than a quarter of this.
  /// What its callbacks cost for each byte is remembered, and it is given no more input in a turn
  /// than fits (1 KiB at least, so that small messages stay whole). A callback that takes longer for
  /// one message cannot be interrupted: offload() takes such work off the loop. A listener accepts
  /// for a quarter of this, and no more than 16. Not below 10 µs for each connection that a wait
  /// finds ready (with poll(2): looks at). Zero or less: no bound, and no clock is read for it.
  Duration turn_time = std::chrono::microseconds(100);
};

/// Makes a back-end on `kernel`, which outlives it. A custom one gets no options. Errors:
/// unknown_backend; what epoll_create and eventfd say.
Result<std::unique_ptr<IoBackend>> make_backend(Backend backend, Kernel& kernel,
                                                IoOptions options = {});

}  // namespace penstock

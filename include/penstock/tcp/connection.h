// A TCP connection, the same for every back-end: a state machine between the stream seam and the
// user's callbacks. Owned by its loop's ConnectionTable; loop's thread only (cross with handle()).
// User code sees it inside callbacks as TcpConnection&; it may close it, never delete it, and must
// not keep the reference beyond on_close.
//
//   Open -> (half closed in | half closed out) -> draining -> closed
//
// Rules
//   1. send() never runs user code and never blocks. Small payloads leave merged, when the handler
//      returns or before the loop waits (or when 64 KiB have gathered). A large one goes at once,
//      behind what is queued.
//   2. What is accepted leaves in order, whole, once, or is reported in on_close as discarded.
//   3. Whether to read is recomputed from state: not while the user has paused, nor while output is
//      above the high-water mark. The water-mark callbacks only notify.
//   4. A message (send_message) is sent whole or not at all: until it is its turn it can be dropped,
//      replaced or overtaken, as the policy and its lane say, and is counted. Everything else leaves
//      in order with the messages of the normal lane, and is never dropped.
//   5. on_close comes exactly once, in the notify step of a turn, and is the last.
#pragma once

#include <netinet/tcp.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "penstock/base/clock.h"
#include "penstock/base/counted.h"
#include "penstock/base/intrusive_list.h"
#include "penstock/base/result.h"
#include "penstock/base/slot_table.h"
#include "penstock/bytes/input_buffer.h"
#include "penstock/bytes/message_queue.h"
#include "penstock/bytes/output_queue.h"
#include "penstock/bytes/shared_bytes.h"
#include "penstock/io/io_backend.h"
#include "penstock/loop/event_loop.h"
#include "penstock/loop/timer_queue.h"
#include "penstock/os/socket_address.h"
#include "penstock/tcp/close_report.h"
#include "penstock/tcp/connection_handle.h"

namespace penstock {

class ConnectionTable;
class TcpConnection;
struct Behaviour;
struct GroupMember;
struct GroupsTag;
struct ConnectionCallbacks;
struct ConnectionLimits;

/// Callbacks and limits shared by many connections; see tcp/behaviour.h.
using BehaviourPtr = CountedPtr<const Behaviour>;

/// What became of a try_send.
enum class SendOutcome : std::uint8_t {
  accepted,                   ///< It will leave, in order.
  accepted_above_high_water,  ///< The same; but output is above the high-water mark: wait for on_low_water.
  full,     ///< Refused over the hard cap or the memory budget; nothing has been taken.
  dropped,  ///< Of send_message: dropped, and counted, as the SlowConsumer policy says.
  closed,   ///< Refused: this side has finished, or the connection has ended.
};

/// Who made a connection and wants to know when it is gone (a server does). Outlives the
/// connection.
class ConnectionOwner {
 public:
  /// Before on_connect.
  virtual void connection_started(TcpConnection& connection) noexcept = 0;
  /// Behind on_close; the connection is about to be destroyed. On its loop.
  virtual void connection_ended(TcpConnection& connection) noexcept = 0;

 protected:
  ~ConnectionOwner() = default;
};

struct DirtyTag;
struct NotifyTag;
struct OwnerTag;

/// One connection, lent to callbacks as TcpConnection&. Loop's thread only.
class TcpConnection final : private StreamHandler,
                            public ListLink<DirtyTag>,
                            public ListLink<NotifyTag>,
                            public ListLink<OwnerTag> {
 public:
  // -- Sending. Any payload may be empty; that does nothing. --

  /// Sends a copy of the bytes; large ones are copied only as far as the kernel does not take them
  /// at once. If they are refused over the hard cap, the connection ends with `overflow`: never
  /// silently short. On a connection that has ended or finished, it is dropped.
  void send(std::span<const std::byte> payload);
  void send(std::string_view payload) { send(std::as_bytes(std::span(payload))); }
  void send(const char* text) { send(std::string_view(text)); }
  void send(std::nullptr_t) = delete;
  /// Sends the object's own memory: a large payload is never copied.
  void send(std::string&& payload);
  void send(std::vector<std::byte>&& payload);
  void send(SharedBytes payload);

  /// Sends the pieces one behind the other, as one: all of them are accepted, or nothing is.
  void send(const MessageParts& message);

  /// Like send, but a refusal is answered and the payload left as it was. After `full` on_low_water
  /// tells when output has drained; if nothing is queued, the payload is larger than output_max (it
  /// will never fit) or the loops' memory budget is exhausted (try again by a timer).
  [[nodiscard]] SendOutcome try_send(std::span<const std::byte> payload);
  [[nodiscard]] SendOutcome try_send(std::string_view payload) {
    return try_send(std::as_bytes(std::span(payload)));
  }
  [[nodiscard]] SendOutcome try_send(const char* text) { return try_send(std::string_view(text)); }
  [[nodiscard]] SendOutcome try_send(std::string&& payload);
  [[nodiscard]] SendOutcome try_send(std::vector<std::byte>&& payload);
  [[nodiscard]] SendOutcome try_send(SharedBytes payload);
  [[nodiscard]] SendOutcome try_send(const MessageParts& message);

  /// Sends a whole message that need not arrive if the peer does not keep up. While the kernel takes
  /// output it is as try_send(SharedBytes); what cannot leave at once waits in lanes, as one, subject
  /// to the SlowConsumer policy. Every other send on the connection counts as a message in the normal
  /// lane that is never dropped. Under `disconnect`, a message that finds no room ends the connection
  /// and is answered with `closed`. Runs no user code and, but for the connection's end, answers
  /// everything: dropped and refused messages are counted in the report.
  [[nodiscard]] SendOutcome send_message(SharedBytes message, const MessageOptions& options = {});

  /// Another policy than ConnectionLimits says, from the next send_message() on. `backlog_max` as
  /// there.
  void set_slow_consumer(SlowConsumer policy, std::size_t backlog_max);
  /// Messages dropped or refused so far.
  std::uint64_t messages_dropped() const noexcept { return messages_dropped_; }

  /// Whether a send would be accepted at all: neither side has ended it, and finish() has not been
  /// called.
  bool can_send() const noexcept;

  /// Bytes accepted and not yet taken by the kernel.
  std::size_t queued_bytes() const noexcept { return output_.bytes() + backlog_bytes(); }

  // -- Ending. All idempotent, in any order; none runs user code. --

  /// Sends FIN behind the last queued byte. Input still comes, until the peer finishes too.
  void finish();
  /// Finishes, and drops what the peer still sends, within the drain limits, so that it loses
  /// nothing of our output. No more on_message.
  void close();
  /// Ends at once with a reset (RST). What was queued is discarded and reported.
  void abort();
  /// abort(), reported with `why` as the error.
  void abort_with(std::error_code why);
  /// close(), because the peer broke the rules of the protocol above: reported as `protocol`, with
  /// `why` as the error.
  void close_with_protocol_error(std::error_code why = {});
  /// What an orderly stop of a server does: close(), but at once when the peer has acknowledged
  /// everything and nothing waits to be read, and only after the last release().
  void close_for_stop();

  /// Whether neither close(), abort() nor an error has ended it.
  bool is_open() const noexcept { return phase_ == Phase::open; }

  // -- Reading --

  /// Stops on_message until resume_reading() has been called as often. Input that arrives
  /// stays in the kernel; what a completion back-end has taken by then is kept and delivered on
  /// resume. Counted.
  void pause_reading();
  /// Takes back one pause_reading(); with the last one reading goes on.
  void resume_reading();
  /// Whether it is read right now: not paused by the user, by its own output or by input that is kept
  /// up to the limit; not at the end of its input, and not while it is being detached.
  bool is_reading() const noexcept { return receiving_; }

  /// Whether a callback that finds several messages in its input should go on to the next one: not
  /// when reading has been paused, output is above the high-water mark, another behaviour is to take
  /// over, or the connection is ending. What it leaves is offered again when that is over.
  bool wants_input() const noexcept { return may_deliver() && !above_high_ && !next_behaviour_; }

  /// Keeps the connection open after the peer has finished, for a reply still being computed: no
  /// automatic finish(), no idle and no half-close limit. release() takes it back. Counted.
  void hold();
  /// Takes back one hold().
  void release();

  // -- What it is --

  /// For other threads, and for keeping.
  ConnectionHandle handle() const noexcept;
  /// The loop it lives on.
  EventLoop& loop() const noexcept { return *loop_; }
  /// The other end, as accept4 told it.
  const SocketAddress& peer_address() const noexcept { return peer_; }
  /// The local end; asks the kernel. Empty when the connection has ended.
  SocketAddress local_address() const;
  /// The descriptor, for socket options and TCP_INFO; -1 when the connection has ended. Do not
  /// read, write or close it.
  int descriptor() const noexcept { return stream_ != nullptr ? stream_->descriptor() : -1; }
  /// When the input of this callback was received.
  TimePoint receive_time() const noexcept { return loop_->now(); }
  /// Bytes taken from the kernel since the start.
  std::uint64_t bytes_received() const noexcept { return bytes_received_; }
  /// Bytes taken by the kernel since the start.
  std::uint64_t bytes_sent() const noexcept { return bytes_sent_; }

  /// Gives it other callbacks and limits, from its next event on (protocol upgrade).
  void set_behaviour(BehaviourPtr behaviour);

  /// Receives the descriptor of a detached connection, non-blocking and connected, and the input
  /// that had been received and not consumed.
  using DetachCallback = std::move_only_function<void(UniqueFd fd, std::string unread)>;
  /// Takes the connection out of the loop without ending it: no more on_message from now on; when
  /// its output has gone (what is sent until then goes too, and FIN after a finish()), `taker` is
  /// called and then on_close, with `detached`. If it ends before that, `taker` is not called; one
  /// that throws has closed the descriptor. Does nothing unless the connection is open and not yet
  /// being detached. A server no longer counts it. To make it a connection again, see
  /// adopt_connection().
  void detach(DetachCallback taker);

  // -- Socket options; see socket(7), tcp(7). ENOTCONN when the connection has ended. --

  /// setsockopt(2) of an option whose value is a T (mostly int).
  template <class T>
  Result<void> set_option(int level, int name, const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return set_raw_option(level, name, &value, sizeof value);
  }
  /// getsockopt(2), likewise.
  template <class T>
  Result<T> option(int level, int name) const {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    if (const auto read = read_raw_option(level, name, &value, sizeof value); !read) {
      return std::unexpected(read.error());
    }
    return value;
  }
  /// What the kernel knows of the connection: round-trip time, congestion window, retransmissions
  /// (TCP_INFO, tcp(7)). EOPNOTSUPP or ENOPROTOOPT on a Unix socket.
  Result<tcp_info> info() const;

  /// Makes the connection's own state, in place of any before; destroyed after on_close. Costs
  /// nothing when not used.
  template <class T, class... Arguments>
  T& emplace_context(Arguments&&... arguments) {
    auto holder = std::make_unique<ContextOf<T>>(std::forward<Arguments>(arguments)...);
    T& value = holder->value;
    context_ = std::move(holder);
    return value;
  }
  /// The state made by emplace_context<T>; asserts that there is one of this type.
  template <class T>
  T& context() const {
    PENSTOCK_ASSERT(context_ != nullptr && context_->type() == typeid(T),
                    "no context of this type; see emplace_context");
    return static_cast<ContextOf<T>&>(*context_).value;
  }
  /// Whether emplace_context() has been called.
  bool has_context() const noexcept { return context_ != nullptr; }

  /// Whether an orderly stop waits for the last release(). Whoever holds it should not begin
  /// anything new.
  bool ends_when_released() const noexcept { return close_when_released_; }

  // -- For ConnectionTable and owners --

  /// Connected to nothing before start(). `table` outlives it; `owner` may be nullptr. Throws
  /// std::bad_alloc.
  TcpConnection(SlotId id, ConnectionTable& table, BehaviourPtr behaviour, ConnectionOwner* owner,
                const SocketAddress& peer);
  TcpConnection(const TcpConnection&) = delete;
  TcpConnection& operator=(const TcpConnection&) = delete;
  ~TcpConnection();

  /// Its name in the table.
  SlotId id() const noexcept { return id_; }
  /// Who wants to know when it is gone; may be nullptr.
  ConnectionOwner* owner() const noexcept { return owner_; }
  /// Remembers a place in a ConnectionGroup, to give it up when the connection ends.
  void join(GroupMember& place) noexcept;
  /// How it ended; valid once it has.
  CloseReason close_reason() const noexcept { return reason_; }
  /// Which limit ended it; valid once it has.
  TimeoutKind close_timeout() const noexcept { return timeout_; }
  /// When it began.
  TimePoint opened_at() const noexcept { return opened_at_; }

 private:
  friend class ConnectionTable;

  enum class Phase : std::uint8_t { open, draining, closed };
  enum class Release : std::uint8_t { orderly, reset };

  struct Context {
    Context() = default;
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;
    virtual ~Context() = default;
    virtual const std::type_info& type() const noexcept = 0;
  };
  template <class T>
  struct ContextOf final : Context {
    template <class... Arguments>
    explicit ContextOf(Arguments&&... arguments) : value(std::forward<Arguments>(arguments)...) {}
    const std::type_info& type() const noexcept override { return typeid(T); }
    T value;
  };

  // For ConnectionTable

  // Takes over the socket and announces the connection. Error: the connection cannot be; erase it.
  Result<void> start(UniqueFd fd);
  void flush();
  // Runs what is due in the notify step. Answers whether the connection is over and may be erased.
  bool notify();

  // StreamHandler
  void on_connected() override;
  void on_received(std::span<const std::byte> bytes) override;
  void on_peer_finished() override;
  void on_sent(std::size_t bytes) override;
  void on_failed(int error) override;
  void on_closed() override;
  void on_detached(UniqueFd fd) override;

  // Sending
  bool reserve(std::size_t charge, std::size_t owned) noexcept;
  template <class Append>
  SendOutcome enqueue(std::size_t charge, std::size_t owned, Append append);
  template <class Payload>
  SendOutcome try_send_owned(Payload& payload);
  SendOutcome try_send_parts(MessageParts message);
  SendOutcome send_at_once(MessageParts message);
  SendOutcome accepted();
  SendOutcome above_or_below() const noexcept;

  // Messages that wait
  struct Backlog;
  Backlog& backlog();
  bool has_backlog() const noexcept { return backlog_ != nullptr && !backlog_is_empty(); }
  bool backlog_is_empty() const noexcept;
  std::size_t backlog_bytes() const noexcept;
  std::size_t backlog_charge() const noexcept;
  template <class Payload>
  SendOutcome wait_in_line(Payload& payload);
  SendOutcome join_backlog(SharedBytes&& message, MessageOptions options);
  SendOutcome refuse_message(SlowConsumer policy, Lane lane);
  std::size_t backlog_room() const noexcept;
  bool has_room(std::size_t charge) const noexcept;
  bool make_room(std::size_t charge, SlowConsumer policy);
  bool charge_shared(const SharedBytes& payload) noexcept;
  void count_dropped(std::uint64_t messages) noexcept;
  void stage_backlog() noexcept;
  bool copy_small(MessageNode* message) noexcept;
  void discard_backlog() noexcept;
  template <class TrySend>
  void send_or_end(TrySend try_it);
  void pump();
  void take(std::size_t bytes) noexcept;
  void note_sent(std::size_t bytes) noexcept;
  void output_drained();
  void end_stall();
  void discard_output();
  void mark_dirty();
  void note_full(Errc limit) noexcept;

  // Reading
  void deliver_input();
  bool keep_input();
  void offer_what_is_left(std::size_t offered);
  void offer_input();
  bool settle_input() noexcept;
  void drop_input() noexcept;
  void note_messages(std::size_t offered);
  void end_input();
  void update_flow();
  void apply_reading();
  bool may_deliver() const noexcept;
  bool input_is_held_back() const noexcept;

  // Events and ends
  void begin_event();
  template <class Call>
  void run_callback(Call call);
  void after_handler();
  void schedule_notify();
  void notify_water_marks();
  void report_end();
  void finish_if_allowed();
  void finish_if_drained();
  void start_drain();
  void conclude_if_finished();
  void conclude(CloseReason reason, Release how);
  void conclude_timeout(TimeoutKind kind, Release how);
  void conclude_overflow(std::error_code limit, Release how);
  void detach_if_drained();
  Result<void> set_raw_option(int level, int name, const void* value, std::size_t size);
  Result<void> read_raw_option(int level, int name, void* value, std::size_t size) const;

  // Limits of time
  void on_timer();
  void arm_timer();
  TimePoint next_limit() const noexcept;
  TimePoint silence_limit() const noexcept;
  TimePoint first_message_limit() const noexcept;
  TimePoint message_limit() const noexcept;
  TimePoint heartbeat_limit() const noexcept;
  void enforce_limit(TimePoint now);
  void enforce_silence(TimePoint now);
  void beat(TimePoint now);
  void enforce_write_stall(TimePoint now);
  void enforce_broken_pause(TimePoint now);
  bool peer_takes_output();
  bool quiet() const;
  bool more_waits() const;

  const ConnectionCallbacks& callbacks() const noexcept;
  const ConnectionLimits& limits() const noexcept;

  // Hot: touched by every message.
  Stream* stream_ = nullptr;
  EventLoop* loop_;
  ConnectionTable* table_;
  BehaviourPtr behaviour_;
  OutputQueue output_;
  InputBuffer input_;
  std::uint64_t bytes_received_ = 0;
  std::uint64_t bytes_sent_ = 0;
  TimePoint last_activity_;  // of the peer, or of the kernel taking output
  TimePoint last_received_;  // of the peer alone
  std::unique_ptr<Backlog> backlog_;
  SlotId id_;
  std::uint16_t pauses_ = 0;
  std::uint16_t holds_ = 0;
  Phase phase_ = Phase::open;
  bool in_handler_ = false;    // the user's code is running; sends wait until it returns
  bool send_pending_ = false;  // the stream owes an on_sent
  bool receiving_ = true;      // what the stream has been told
  bool above_high_ =
      false;  // output passed the high-water mark and has not come down to the low one
  bool answered_full_ = false;  // somebody waits for output to drain
  bool passed_high_ = false;    // it has risen above since on_high_water was last considered
  bool notified_above_high_ = false;
  bool finish_requested_ = false;
  bool close_when_released_ = false;  // an orderly stop waits for a reply being computed
  bool finished_ = false;             // FIN is out
  bool input_ended_ = false;          // no more input will come
  bool input_end_due_ = false;        // it ended while paused; to be dealt with on resume
  bool broken_ = false;               // on_failed has come
  bool output_broken_ = false;        // the kernel takes no more
  bool pause_overridden_ = false;     // broken_pause_timeout has passed
  bool stream_gone_ = false;          // on_closed has come
  bool input_full_ = false;           // as much is kept as may be
  bool offer_input_ = false;          // kept input is to be offered again
  bool write_complete_due_ = false;
  bool first_message_came_ = false;  // some input has been consumed
  bool reported_ = false;            // on_close has run, or is running

  // Cold.
  CloseReason reason_ = CloseReason::local;
  TimeoutKind timeout_ = TimeoutKind::none;
  Errc refused_for_ = Errc::output_limit;  // which limit the last `full` was about
  std::int64_t acknowledged_ = 0;          // bytes the peer had acknowledged at the last sample
  std::error_code error_;
  std::uint64_t stall_bytes_sent_ = 0;
  std::uint64_t output_discarded_ = 0;
  std::uint64_t input_discarded_ = 0;
  std::size_t input_charged_ = 0;  // of input_'s memory, to the loop's budget
  std::uint64_t drained_ = 0;
  std::uint64_t messages_dropped_ = 0;
  unsigned heartbeats_unanswered_ = 0;
  TimePoint listening_since_;         // for a first message
  TimePoint message_since_ = kNever;  // a message has begun; kNever: none is incomplete
  TimePoint last_heartbeat_;
  TimePoint stall_since_ = kNever;  // kNever: output is not pending
  TimePoint stall_sampled_at_ = kNever;
  TimePoint broken_at_ = kNever;
  TimePoint drain_started_ = kNever;
  TimePoint opened_at_;
  TimerPlace timer_place_;
  Timer timer_;
  BehaviourPtr next_behaviour_;
  std::unique_ptr<Context> context_;
  IntrusiveList<GroupMember, GroupsTag> groups_;
  struct Detachment;
  std::unique_ptr<Detachment> detachment_;  // from detach() on
  ConnectionOwner* owner_;
  SocketAddress peer_;
};

}  // namespace penstock

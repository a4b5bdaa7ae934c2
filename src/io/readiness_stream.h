// A stream over readiness: recv when the selector says so, send until the kernel takes no more.
// Owned by its ReadinessBackend, in a slot; loop's thread. It never reads SO_ERROR once connected:
// that would turn a reset into a clean end (reliability K3).
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "io/selector.h"
#include "penstock/base/clock.h"
#include "penstock/base/intrusive_list.h"
#include "penstock/io/io_backend.h"

namespace penstock {

/// How events are triggered: level (as long as it is so) or edge (when it becomes so).
enum class Trigger : std::uint8_t { level, edge };

class ReadinessStream;

struct StreamWorkTag;
struct StreamRetryTag;
using StreamWorkList = IntrusiveList<ReadinessStream, StreamWorkTag>;
using StreamRetryList = IntrusiveList<ReadinessStream, StreamRetryTag>;

/// What a stream receives in a turn at most, in bytes.
inline constexpr std::size_t kReadBudgetBytes = std::size_t{64} * 1024;

/// What may still be spent in a turn.
struct TurnRoom {
  std::size_t bytes;  ///< To be moved: received and sent.
  Duration time;
};

/// What the streams of one back-end share.
struct ReadinessContext {
  /// Whoever is served next is charged with the time from here on.
  void read_clock() noexcept {
    if (timed) clock = kernel.now();
  }

  Kernel& kernel;
  Selector& selector;
  IoStatistics& statistics;
  Trigger trigger;
  std::span<std::byte> scratch;                // what recv fills; lent to one handler at a time
  TurnRoom budget;                             // of the busy together; the largest values: none
  bool timed = false;                          // whether `clock` is kept
  TimePoint clock = TimePoint();               // the end of what was served last
  std::size_t moved_bytes = 0;                 // received and sent, by all, since the last wait
  std::size_t received_bytes = 0;              // received, likewise
  std::size_t receive_max = kReadBudgetBytes;  // what the stream that is served may receive
  StreamWorkList ready{};                      // to be served by the next poll() without an event
  StreamWorkList busy{};       // the same, for those that move much: behind all others
  StreamWorkList dying{};      // closed; on_closed is due at the end of poll()
  StreamRetryList retrying{};  // wait for the kernel to find memory
};

class ReadinessStream final : public Stream,
                              public ListLink<StreamWorkTag>,
                              public ListLink<StreamRetryTag> {
 public:
  ReadinessStream(SlotId id, ReadinessContext& context, int fd, StreamKind kind,
                  StreamHandler& handler) noexcept
      : context_(context),
        handler_(handler),
        id_(id),
        fd_(fd),
        reads_to_end_(kind == StreamKind::other && context.trigger == Trigger::edge),
        read_to_end_(reads_to_end_) {}

  // -- Stream --
  void start_receive() override;
  void stop_receive() override;
  SendResult send(std::span<const iovec> front) override;
  SendResult offer(std::span<const iovec> front) override;
  void finish() override;
  void close() override;
  void abort() override;
  void detach() override;
  int descriptor() const override { return fd_; }

  // -- For the back-end --

  /// Registers an attached (connected) stream, or one whose connect() is under way. 0 or -errno.
  int register_attached();
  int register_connecting(bool done_already);

  /// Serves an event, or puts it off until on_ready() if the stream is busy.
  void on_event(std::uint32_t events);
  /// Serves a place on the list of the ready or of the busy.
  void on_ready();
  void on_retry(TimePoint now);

  SlotId id() const noexcept { return id_; }
  StreamHandler& handler() noexcept { return handler_; }
  bool closed() const noexcept { return fd_ < 0; }
  /// Whether it moved much or took long of late, and so waits behind the others.
  bool busy() const noexcept {
    return (recently_moved_ > kLightBytes && context_.budget.bytes != SIZE_MAX) ||
           recently_held_ > context_.budget.time / 4;
  }
  /// Whether `room` suffices if it costs as much as it did of late: what it cost when it was served
  /// last, or half of what it cost before that if this is more.
  bool fits(TurnRoom room) const noexcept {
    return std::max(recently_moved_, kSmallMessages) <= room.bytes && recently_held_ <= room.time;
  }
  /// How much of its input fits into `room`: bytes by the same measure, time by what the last piece of
  /// some size cost. Enough for small messages in any case.
  std::size_t receivable(TurnRoom room) const noexcept;
  TimePoint retry_at() const noexcept { return retry_at_; }
  /// The descriptor of a detached stream that is to be buried, or -1; once.
  int take_detached() noexcept { return std::exchange(detached_fd_, -1); }

 private:
  static constexpr int kReadBudgetCalls = 4;
  static constexpr std::size_t kLightBytes = 16 * 1024;  // received and sent; above that: busy
  static constexpr std::size_t kSmallMessages = 1024;    // given in one piece, whatever they cost
  static constexpr int kStallMax =
      16;  // in turns' time; what took longer is a stall of the machine
  static constexpr Duration kRetryDelayMin = std::chrono::milliseconds(10);
  static constexpr Duration kRetryDelayMax = std::chrono::seconds(1);

  bool edge() const noexcept { return context_.trigger == Trigger::edge; }
  std::uint32_t wanted_events() const noexcept;
  void update_interest();
  void leave_selector() noexcept;
  void leave_lists() noexcept;
  void return_to_selector();
  void make_ready();
  void serve(std::uint32_t events);
  void note_time(TimePoint began, std::size_t received) noexcept;
  void take_events(std::uint32_t events);
  void receive();
  void notify_writable();
  void end_input();
  void report_failure(int error);
  void finish_connect(std::uint32_t events);
  void retry_later();
  SendResult transmit(std::span<const iovec> front);

  // Hot: read for every event.
  ReadinessContext& context_;
  StreamHandler& handler_;
  SlotId id_;
  int fd_;
  std::uint32_t armed_events_ = 0;
  std::uint32_t deferred_events_ = 0;  // came while it was busy
  std::size_t recently_moved_ = 0;
  std::size_t recently_received_ = 0;  // of these
  Duration recently_held_ = Duration::zero();
  float nanoseconds_per_byte_ = 0;  // of input, in its handler
  int send_error_ = 0;              // to be reported by the next poll()
  bool registered_ = false;         // the selector knows the descriptor
  bool connecting_ = false;
  bool receiving_ = true;    // the owner wants input
  bool readable_ = false;    // there may be input that no further event will announce
  const bool reads_to_end_;  // always: a short read never proves anything here
  bool read_to_end_;         // so it is now: the last event named an end, an error or urgent data
  bool blocked_ = false;     // the kernel took less than all; on_sent is due
  bool in_on_sent_ = false;
  bool input_ended_ = false;   // on_peer_finished has been called
  bool failed_ = false;        // on_failed has been called
  bool send_starved_ = false;  // the kernel has no memory to send
  bool receive_starved_ = false;

  // Cold.
  int detached_fd_ = -1;
  TimePoint retry_at_ = kNever;
  Duration retry_delay_ = Duration::zero();
};

}  // namespace penstock

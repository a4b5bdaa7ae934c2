#include "support/deferring_backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <list>
#include <utility>
#include <vector>

#include "penstock/base/assert.h"
#include "support/untimed.h"

namespace penstock::test {
namespace {

constexpr int kPollsUntilClosed = 2;
constexpr std::size_t kComparedMax = std::size_t{256} * 1024;  // of each send, from its front

class DeferringStream final : public Stream, private StreamHandler {
 public:
  explicit DeferringStream(StreamHandler& handler) noexcept : handler_(handler) {}

  void set_inner(Stream* inner) noexcept { inner_ = inner; }
  StreamHandler& inner_handler() noexcept { return *this; }

  // -- Stream --
  void start_receive() override {
    if (!over_) inner_->start_receive();
  }
  void stop_receive() override {
    if (!over_) inner_->stop_receive();
  }
  SendResult send(std::span<const iovec> front) override;
  SendResult offer(std::span<const iovec>) override {
    PENSTOCK_ASSERT(!pending_, "rule 3: nothing is sent while a send is pending");
    return broken_ ? SendResult{.error = EPIPE} : SendResult{};
  }
  void finish() override {
    PENSTOCK_ASSERT(!pending_, "a FIN would overtake what is pending");
    if (!over_) inner_->finish();
  }
  void close() override { leave(&Stream::close); }
  void abort() override { leave(&Stream::abort); }
  void detach() override;
  int descriptor() const override { return over_ ? -1 : inner_->descriptor(); }

  // -- For the back-end --
  bool busy() const noexcept {
    return !due_.empty() || (pending_ && !blocked_) || polls_until_closed_ >= 0;
  }
  /// Does what was due when this poll began. Answers whether the stream is gone.
  bool serve(bool& progressed);
  void prepare() noexcept {
    due_now_ = due_.size();
    send_now_ = pending_ && !blocked_;
  }

 private:
  enum class Kind : std::uint8_t { connected, received, finished, failed };
  struct Event {
    Kind kind;
    std::unique_ptr<std::byte[]> bytes{};
    std::size_t size = 0;
    int error = 0;
  };

  // -- StreamHandler, called by the inner stream --
  void on_connected() override { due_.push_back({.kind = Kind::connected}); }
  void on_received(std::span<const std::byte> bytes) override {
    auto copy = std::make_unique<std::byte[]>(bytes.size());
    std::ranges::copy(bytes, copy.get());
    due_.push_back({.kind = Kind::received, .bytes = std::move(copy), .size = bytes.size()});
  }
  void on_peer_finished() override { due_.push_back({.kind = Kind::finished}); }
  void on_failed(int error) override { due_.push_back({.kind = Kind::failed, .error = error}); }
  void on_sent(std::size_t) override { blocked_ = false; }
  void on_closed() override { inner_gone_ = true; }
  void on_detached(UniqueFd fd) override {
    inner_gone_ = true;
    detached_ = std::move(fd);
  }

  void leave(void (Stream::*how)());
  void deliver(Event event);
  void transmit();
  void check_lent() const;

  StreamHandler& handler_;
  Stream* inner_ = nullptr;
  std::deque<Event> due_;
  std::size_t due_now_ = 0;
  bool send_now_ = false;
  std::vector<iovec> lent_;      // what a pending send names
  std::vector<std::byte> copy_;  // and what that held
  bool pending_ = false;         // the owner waits for on_sent
  bool blocked_ = false;         // the inner stream will tell when there is room
  bool broken_ = false;          // on_failed has been delivered
  bool over_ = false;            // close, abort or detach
  bool detaching_ = false;
  bool inner_gone_ = false;
  UniqueFd detached_;
  int polls_until_closed_ = -1;
};

class DeferringBackend final : public IoBackend {
 public:
  explicit DeferringBackend(std::unique_ptr<IoBackend> inner) noexcept
      : IoBackend(inner->now()), inner_(std::move(inner)) {}

  std::string_view name() const override { return "deferring"; }

  Result<Stream*> attach(UniqueFd fd, StreamKind kind, StreamHandler& handler) override {
    DeferringStream& stream = streams_.emplace_back(handler);
    const Result<Stream*> inner = inner_->attach(std::move(fd), kind, stream.inner_handler());
    return joined(stream, inner);
  }
  Result<Stream*> connect(UniqueFd& fd, const SocketAddress& peer,
                          StreamHandler& handler) override {
    DeferringStream& stream = streams_.emplace_back(handler);
    const Result<Stream*> inner = inner_->connect(fd, peer, stream.inner_handler());
    return joined(stream, inner);
  }

  Result<ListenerId> listen(UniqueFd fd, AcceptHandler& handler) override {
    return inner_->listen(std::move(fd), handler);
  }
  void pause_accepting(ListenerId id) override { inner_->pause_accepting(id); }
  void resume_accepting(ListenerId id) override { inner_->resume_accepting(id); }
  void close_listener(ListenerId id) override { inner_->close_listener(id); }
  Result<WatchId> watch(int fd, Interest interest, WatchHandler& handler) override {
    return inner_->watch(fd, interest, handler);
  }
  Result<void> change_watch(WatchId id, Interest interest) override {
    return inner_->change_watch(id, interest);
  }
  void unwatch(WatchId id) override { inner_->unwatch(id); }

  void poll(TimePoint deadline, TimePoint called_at) override {
    const bool due = std::ranges::any_of(streams_, &DeferringStream::busy);
    for (DeferringStream& stream : streams_)
      stream.prepare();
    inner_->poll(due ? TimePoint::min() : deadline, called_at);
    now_ = inner_->now();
    for (auto stream = streams_.begin(); stream != streams_.end();) {
      // A handler may make new streams; they join at the end and have nothing due.
      bool progressed = false;
      const bool gone = stream->serve(progressed);
      work_done_ += progressed ? 1 : 0;
      stream = gone ? streams_.erase(stream) : std::next(stream);
    }
  }

  void wake() override { inner_->wake(); }
  bool more_waiting() const override {
    return inner_->more_waiting() || std::ranges::any_of(streams_, &DeferringStream::busy);
  }
  bool round_under_way() const override { return inner_->round_under_way(); }
  // What was done without an event counts as one, so that nobody takes the loop for idle.
  const IoStatistics& statistics() const override {
    statistics_ = inner_->statistics();
    statistics_.events += work_done_;
    return statistics_;
  }

 private:
  Result<Stream*> joined(DeferringStream& stream, const Result<Stream*>& inner) {
    if (!inner) {
      streams_.pop_back();
      return inner;
    }
    stream.set_inner(*inner);
    return &stream;
  }

  std::list<DeferringStream> streams_;
  std::uint64_t work_done_ = 0;
  mutable IoStatistics statistics_;
  std::unique_ptr<IoBackend> inner_;  // dies first: its streams call ours
};

SendResult DeferringStream::send(std::span<const iovec> front) {
  PENSTOCK_ASSERT(!pending_, "rule 3: nothing is sent while a send is pending");
  if (over_ || broken_) return {.error = EPIPE};
  if (front.empty()) return {};
  lent_.assign(front.begin(), front.end());
  copy_.clear();
  for (const iovec& piece : front) {
    const auto* bytes = static_cast<const std::byte*>(piece.iov_base);
    const std::size_t compared = std::min(piece.iov_len, kComparedMax - copy_.size());
    copy_.insert(copy_.end(), bytes, bytes + compared);
  }
  pending_ = true;
  return {.pending = true};
}

// A growing output vector, or one that is freed too early, shows here (or to AddressSanitizer).
void DeferringStream::check_lent() const {
  std::size_t offset = 0;
  for (const iovec& piece : lent_) {
    const std::size_t compared = std::min(piece.iov_len, copy_.size() - offset);
    EXPECT_EQ(std::memcmp(piece.iov_base, copy_.data() + offset, compared), 0)
        << "memory lent to a send has changed before it was reported gone";
    offset += compared;
  }
}

void DeferringStream::transmit() {
  check_lent();
  const SendResult result = inner_->send(lent_);
  blocked_ = result.pending;
  if (result.error != 0) {
    blocked_ = true;  // on_failed follows
    return;
  }
  if (result.taken == 0) return;
  pending_ = false;
  lent_.clear();
  // The inner stream may still owe an event; the next send waits for it.
  handler_.on_sent(result.taken);
}

bool DeferringStream::serve(bool& progressed) {
  if (send_now_ && pending_ && !blocked_ && !over_ && !broken_) {
    progressed = true;
    transmit();
  }
  for (std::size_t i = 0; i < due_now_ && !due_.empty(); ++i) {
    progressed = true;
    Event event = std::move(due_.front());
    due_.pop_front();
    deliver(std::move(event));
  }
  if (!over_ || !inner_gone_) return false;
  if (detached_ && !due_.empty()) return false;  // input comes before
  if (polls_until_closed_ < 0) {
    polls_until_closed_ = kPollsUntilClosed;
    return false;
  }
  progressed = true;
  if (--polls_until_closed_ > 0) return false;
  if (pending_) check_lent();
  if (detached_) {
    handler_.on_detached(std::move(detached_));
  } else {
    handler_.on_closed();
  }
  return true;
}

void DeferringStream::deliver(Event event) {
  if (over_ && !detaching_) return;
  switch (event.kind) {
    case Kind::connected:
      handler_.on_connected();
      return;
    case Kind::received:
      handler_.on_received({event.bytes.get(), event.size});
      std::memset(event.bytes.get(), 0xDB, event.size);
      return;
    case Kind::finished:
      handler_.on_peer_finished();
      return;
    case Kind::failed:
      broken_ = true;
      if (pending_) check_lent();
      pending_ = false;
      lent_.clear();
      handler_.on_failed(event.error);
      return;
  }
}

void DeferringStream::leave(void (Stream::*how)()) {
  detaching_ = false;
  if (detached_) {  // it was on its way out: close() prevails
    detached_.reset();
    return;
  }
  if (inner_gone_) return;
  over_ = true;
  (inner_->*how)();
}

void DeferringStream::detach() {
  if (over_) return;
  PENSTOCK_ASSERT(!pending_, "what is pending goes first");
  over_ = true;
  detaching_ = true;
  inner_->detach();
}

}  // namespace

Result<std::unique_ptr<IoBackend>> make_deferring_backend(Kernel& kernel) {
  // What it sees of a stream is not what its handlers cost.
  Result<std::unique_ptr<IoBackend>> inner = make_backend(Backend::epoll, kernel, kUntimed);
  if (!inner) return inner;
  return std::make_unique<DeferringBackend>(std::move(*inner));
}

}  // namespace penstock::test

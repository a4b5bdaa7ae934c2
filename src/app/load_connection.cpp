#include "app/load_connection.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace penstock::app {
namespace {

// Output this side holds at most, but for one run more, and what it sends in one go, so that no
// connection keeps the others waiting. A window that is not larger is sent in one go, always.
constexpr std::size_t kQueuedMax = std::size_t{256} * 1024;

TcpClientOptions client_options(const LoadOptions& options) {
  ConnectionLimits limits;
  // Reading must not wait for our own output; see the top of load_connection.h.
  limits.high_water = std::numeric_limits<std::size_t>::max();
  limits.idle_timeout = options.timeout;
  limits.write_stall_timeout = options.timeout;
  limits.half_close_timeout = options.timeout;
  return {.connect_to = options.to,
          .connect_timeout = LoadConnection::kConnectTimeout,
          .attempts_max = 0,
          .retry_delay_min = std::chrono::milliseconds(20),
          .retry_delay_max = std::chrono::seconds(1),
          .limits = limits};
}

}  // namespace

LoadConnection::LoadConnection(LoadContext& context, LoadOwner& owner)
    : context_(context),
      owner_(owner),
      window_(context.options.size, context.options.depth,
              context.options.messages_per_connection()),
      pace_(context.options.slow_reader),
      client_(context.loop, client_options(context.options)) {
  set_callbacks();
}

void LoadConnection::set_callbacks() {
  client_.on_connect([this](TcpConnection& connection) { on_connect(connection); });
  client_.on_message(
      [this](TcpConnection& connection, InputBuffer& in) { on_message(connection, in.take()); });
  client_.on_peer_finished([this](TcpConnection& connection) { on_peer_finished(connection); });
  client_.on_close([this](TcpConnection&, const CloseReport& report) { on_close(report); });
  client_.on_connect_failed(
      [this](const ConnectFailure& failure) { owner_.attempt_failed(*this, failure); });
  if (context_.options.size > kQueuedMax / context_.options.depth) {
    client_.on_write_complete([this](TcpConnection& connection) { fill(connection); });
  }
}

// -- The life of one connection -------------------------------------------------------------------

void LoadConnection::on_connect(TcpConnection& connection) {
  serial_ = ++context_.statistics.total.connections;
  // Neighbours begin far apart, and 65,521 connections in a row nowhere twice.
  start_ = serial_ * 40'503 % LoadPattern::kPeriod;
  window_.reset();
  pace_ = LoadPace(context_.options.slow_reader);
  stage_ = Stage::talking;
  reading_paused_ = refused_ = false;
  owner_.connection_up(*this);
  go_on(connection);
}

void LoadConnection::on_message(TcpConnection& connection, std::span<const std::byte> bytes) {
  if (stage_ != Stage::talking && stage_ != Stage::finishing) return;
  if (!verify(bytes)) {
    settle(connection, LoadEnding::wrong);
    return;
  }
  // The clock itself, not the turn's: a turn may serve thousands.
  const TimePoint now = context_.loop.read_clock();
  LoadStatistics& statistics = context_.statistics;
  statistics.total.bytes += bytes.size();
  window_.note_received(bytes.size(), now, [&](Duration taken) {
    statistics.latency.record(taken);
    ++statistics.total.messages;
    ++messages;
    failures = 0;
  });
  if (pace_.limited()) keep_pace(connection, bytes.size(), now);
  go_on(connection);
}

// Sends what may be sent, or ends what is at its end.
void LoadConnection::go_on(TcpConnection& connection) {
  if (stage_ != Stage::talking) return;
  const LoadMode mode = context_.options.mode();
  if (mode == LoadMode::half_close) {
    fill(connection);
    return;  // it ends with the other side's FIN
  }
  const bool over = mode == LoadMode::churn && window_.all_back();
  if (over && !context_.options.orderly) {
    settle(connection, LoadEnding::done);
  } else if (over || (!context_.sending && window_.owed() == 0)) {
    stage_ = Stage::finishing;
    connection.finish();
  } else {
    fill(connection);
  }
}

// As much as the window, our own bound and the connection take; on_write_complete goes on.
void LoadConnection::fill(TcpConnection& connection) {
  if (stage_ != Stage::talking || !context_.sending) return;
  refused_ = false;
  TimePoint now{};
  std::size_t gone = 0;
  while (window_.sendable() > 0) {
    if (gone >= kQueuedMax || connection.queued_bytes() >= kQueuedMax) return;
    const auto size =
        static_cast<std::size_t>(std::min<std::uint64_t>(window_.sendable(), LoadPattern::kRunMax));
    if (now == TimePoint{}) now = context_.loop.read_clock();
    const SendOutcome outcome =
        connection.try_send(context_.pattern.run(start_ + window_.sent(), size));
    if (outcome == SendOutcome::full) refused_ = true;  // out of memory for now
    if (outcome == SendOutcome::full || outcome == SendOutcome::closed) return;
    window_.note_sent(size, now);
    gone += size;
  }
  if (context_.options.mode() == LoadMode::half_close) connection.finish();
}

bool LoadConnection::verify(std::span<const std::byte> bytes) {
  const std::uint64_t offset = window_.received();
  const std::uint64_t position = start_ + offset;
  const auto owed = static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), window_.owed()));
  if (const auto wrong = context_.pattern.first_wrong(position, bytes.first(owed))) {
    return found_wrong({.connection = serial_,
                        .offset = offset + *wrong,
                        .expected = context_.pattern.at(position + *wrong),
                        .got = bytes[*wrong]});
  }
  if (owed == bytes.size()) return true;
  return found_wrong({.connection = serial_,
                      .offset = offset + owed,
                      .expected = std::nullopt,
                      .got = bytes[owed]});
}

bool LoadConnection::found_wrong(WrongByte byte) {
  context_.statistics.errors.count(byte);
  owner_.wrong_byte_found(byte);
  return false;
}

// What should come back: of a half-close all of it, unless it was stopped on the way.
std::uint64_t LoadConnection::expected() const noexcept {
  const bool whole = context_.options.mode() == LoadMode::half_close && context_.sending;
  return whole ? std::uint64_t{context_.options.size} : window_.sent();
}

void LoadConnection::on_peer_finished(TcpConnection& connection) {
  if (stage_ == Stage::settled) return;
  if (stage_ == Stage::finishing ||
      (context_.options.mode() == LoadMode::half_close && window_.received() == expected())) {
    stage_ = Stage::settled;
    ending_ = LoadEnding::done;
    connection.finish();
    return;
  }
  context_.statistics.errors.count(
      Truncation{.connection = serial_, .received = window_.received(), .expected = expected()});
  settle(connection, LoadEnding::lost);
}

// Whatever is to be known of this connection is; it ends by a reset, which leaves no TIME_WAIT.
void LoadConnection::settle(TcpConnection& connection, LoadEnding ending) {
  stage_ = Stage::settled;
  ending_ = ending;
  connection.abort();
}

void LoadConnection::on_close(const CloseReport& report) {
  if (stage_ != Stage::settled) {
    ending_ = LoadEnding::lost;
    LoadErrors& errors = context_.statistics.errors;
    if (report.reason == CloseReason::reset) {
      ++errors.resets;
    } else if (report.reason == CloseReason::timeout) {
      ++errors.timeouts;
    } else {
      ++errors.other;
    }
  }
  stage_ = Stage::away;
  if (ending_ == LoadEnding::lost) ++failures;
  owner_.connection_down(*this, ending_);
}

// -- The pace -------------------------------------------------------------------------------------

void LoadConnection::keep_pace(TcpConnection& connection, std::size_t bytes, TimePoint now) {
  // In the end what is owed is read as fast as it comes.
  if (pace_.spend(bytes, now) || reading_paused_ || !context_.sending) return;
  reading_paused_ = true;
  connection.pause_reading();
}

void LoadConnection::on_tick(TimePoint now) {
  TcpConnection* connection = client_.connection();
  if (connection == nullptr || stage_ == Stage::settled) return;
  if (reading_paused_ && pace_.may_read(now)) {
    reading_paused_ = false;
    connection->resume_reading();
  }
  if (refused_) go_on(*connection);
}

// -- The end --------------------------------------------------------------------------------------

bool LoadConnection::stop_sending() {
  TcpConnection* connection = client_.connection();
  if (connection == nullptr) {
    client_.stop();
    return false;
  }
  if (std::exchange(reading_paused_, false)) connection->resume_reading();
  if (context_.options.mode() == LoadMode::half_close) {
    connection->finish();  // behind what has been sent; that much is owed
  } else {
    go_on(*connection);
  }
  return true;
}

void LoadConnection::give_up() {
  TcpConnection* connection = client_.connection();
  if (connection == nullptr) return;
  const bool end_owed = stage_ == Stage::talking && context_.options.mode() == LoadMode::half_close;
  if (window_.owed() > 0 || end_owed) {
    if (stage_ != Stage::settled) {
      ++context_.statistics.errors.missing;
      context_.statistics.errors.missing_bytes += window_.owed();
    }
  }
  settle(*connection, LoadEnding::done);
}

void LoadConnection::abort() {
  client_.stop();
  if (TcpConnection* connection = client_.connection()) settle(*connection, LoadEnding::done);
}

}  // namespace penstock::app

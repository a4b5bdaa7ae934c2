#include "faults/stage.h"

#include <algorithm>
#include <cstring>

#include "bytes/failing_allocation.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

constexpr std::size_t kBudgetBytes = std::size_t{64} * 1024 * 1024;
constexpr std::size_t kSpareLives = 8;
constexpr std::size_t kSpareBytes = std::size_t{64} * 1024;
constexpr int kIdleTurnsMax = 600;
constexpr std::uint64_t kTurnsMax = 100'000;
// What passes in a turn without an event: little first, for those who wait for memory or descriptors, then more, for the limits of
// time.
constexpr Duration kShortPause = std::chrono::milliseconds(5);
constexpr Duration kLongPause = std::chrono::milliseconds(50);
constexpr int kShortPauses = 20;

std::string end_word(const std::optional<int>& end) {
  if (!end) return "open";
  return *end == 0 ? "fin" : error_word(*end);
}

}  // namespace

std::string error_word(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : std::to_string(error);
}

std::string error_word(std::error_code error) {
  return error.category() == std::system_category() ? error_word(error.value()) : error.message();
}

// -- Raw peers ------------------------------------------------------------------------------------

void Peer::send(std::string_view text) const {
  while (!text.empty()) {
    const ssize_t sent = linux_kernel().send(fd.get(), text.data(), text.size(), 0);
    if (sent < 0) {
      EXPECT_TRUE(sent == -EPIPE || sent == -ECONNRESET) << "send answered " << sent;
      return;
    }
    text.remove_prefix(static_cast<std::size_t>(sent));
  }
}

void Peer::read(std::optional<std::size_t> most) {
  static std::vector<char> scratch(std::size_t{256} * 1024);
  while (fd && !end) {
    const ssize_t got =
        linux_kernel().recv(fd.get(), scratch.data(), most.value_or(scratch.size()), 0);
    if (got == -EAGAIN) return;
    if (got > 0) {
      received.append(scratch.data(), static_cast<std::size_t>(got));
    } else {
      end = static_cast<int>(-got);
    }
    if (most) return;
  }
}

// -- Making ---------------------------------------------------------------------------------------

Stage::Stage(Backend backend, Play play) : backend_(backend), play_(play) {
  for (std::size_t i = 0; i < kSpareLives; ++i) {
    spare_.push_back(std::make_unique<Life>());
    if (play_ == Play::real) spare_.back()->received.reserve(kSpareBytes);
  }
  lives.reserve(kSpareLives);
  told.reserve(64);
  notes.reserve(64);
}

Stage::~Stage() {
  client.reset();
  server.reset();
  loop.reset();
}

bool Stage::make_loop() {
  loop = std::make_unique<EventLoop>(
      EventLoopOptions{.backend = backend_,
                       .kernel = play_ == Play::real ? nullptr : &kernel,
                       .io = kUntimed,
                       .memory_budget = make_counted<MemoryBudget>(kBudgetBytes)});
  if (!loop->error()) return true;
  told.push_back(loop->error());
  notes.push_back("loop: " + error_word(loop->error()));
  return false;
}

bool Stage::serve(TcpServerOptions options, Part part, std::function<void()> on_stopped) {
  server = std::make_unique<TcpServer>(*loop, std::move(options));
  if (on_stopped) server->on_stopped(std::move(on_stopped));
  keep(*server, "server", std::move(part));
  const Result<void> started = server->start();
  if (started) return true;
  server.reset();
  told.push_back(started.error());
  notes.push_back("server: " + error_word(started.error()));
  return false;
}

void Stage::connect(TcpClientOptions options, Part part) {
  client = std::make_unique<TcpClient>(*loop, std::move(options));
  keep(*client, "client", std::move(part));
  client->on_connect_failed([this](const ConnectFailure& failure) {
    told.push_back(failure.error);
    notes.push_back("attempt: " + error_word(failure.error) +
                    (failure.retry_in ? ", again" : ", given up"));
  });
  in_loop([this] { EXPECT_TRUE(client->start().has_value()); });
}

template <class Owner>
void Stage::keep(Owner& owner, const char* side, Part part) {
  owner.on_connect([this, side, act = std::move(part.on_connect)](TcpConnection& connection) {
    began(connection, side);
    if (act) act(connection);
  });
  owner.on_message(
      [this, act = std::move(part.on_message)](TcpConnection& connection, InputBuffer& in) {
        Life* life = life_of(connection);
        const std::string_view text = in.text();
        if (life != nullptr) life->received += text;
        in.consume(text.size());
        if (act) act(connection, text);
      });
  if (part.on_peer_finished) {
    owner.on_peer_finished(
        [this, act = std::move(part.on_peer_finished)](TcpConnection& connection) {
          life_of(connection);
          act(connection);
        });
  }
  const auto seen = [this](TcpConnection& connection) { life_of(connection); };
  owner.on_write_complete(seen);
  owner.on_high_water(seen);
  owner.on_low_water(seen);
  owner.on_close(
      [this](TcpConnection& connection, const CloseReport& report) { ended(connection, report); });
}

Life* Stage::life_of(const TcpConnection& connection) {
  for (const std::unique_ptr<Life>& life : lives) {
    if (life->connection == &connection) return life.get();
  }
  ADD_FAILURE() << "a callback outside of the connection's life";
  return nullptr;
}

void Stage::began(TcpConnection& connection, const char* side) {
  for (const std::unique_ptr<Life>& life : lives)
    EXPECT_NE(life->connection, &connection) << "on_connect twice";
  ASSERT_FALSE(spare_.empty()) << "more connections than any script makes";
  lives.push_back(std::move(spare_.back()));
  spare_.pop_back();
  lives.back()->side = side;
  lives.back()->connection = &connection;
}

void Stage::ended(TcpConnection& connection, const CloseReport& report) {
  Life* life = life_of(connection);  // none: on_close twice, or without on_connect
  if (life == nullptr) return;
  life->connection = nullptr;
  life->report = report;
  if (report.error) told.push_back(report.error);
}

void Stage::retire_server() {
  if (server) last_statistics_ = server->statistics();
  server.reset();
}

// -- Turning --------------------------------------------------------------------------------------

void Stage::step(Duration longest_wait) {
  ++turns_;
  if (!allocation_to_fail_) {
    loop->step(longest_wait);
    return;
  }
  const std::size_t before = allocations();
  const FailingAllocation failing(*allocation_to_fail_);
  loop->step(longest_wait);
  if (failing.happened()) {
    allocation_failed_ = true;
    allocation_to_fail_.reset();
  } else {
    *allocation_to_fail_ -= allocations() - before;
  }
}

void Stage::turn() {
  const std::uint64_t events = loop->statistics().io.events;
  step(std::chrono::milliseconds(1));
  if (loop->statistics().io.events != events) {
    idle_turns_ = 0;
    return;
  }
  ++idle_turns_;
  kernel.advance(idle_turns_ <= kShortPauses ? kShortPause : kLongPause);
}

bool Stage::until(std::string_view what, const std::function<bool()>& condition) {
  idle_turns_ = 0;
  while (!condition()) {
    if (idle_turns_ > kIdleTurnsMax || turns_ > kTurnsMax) {
      notes.push_back("waited in vain until " + std::string(what));
      return false;
    }
    turn();
  }
  return true;
}

void Stage::until_quiet() {
  constexpr int kQuietTurns = 8;
  until("nothing happens any more", [this] { return idle_turns_ >= kQuietTurns; });
}

void Stage::pass(Duration time) {
  kernel.advance(time);
  for (int i = 0; i < 4; ++i)
    step(Duration::zero());
}

void Stage::in_loop(std::function<void()> action) {
  loop->queue_in_loop(std::move(action));
  step(Duration::zero());
}

void Stage::until_all_closed() {
  until("all connections have ended", [this] { return live() == 0; });
}

std::size_t Stage::live() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(lives, [](const auto& life) { return life->connection != nullptr; }));
}

Peer Stage::connect_peer(std::optional<int> receive_buffer) {
  const SocketAddress address = server->address();
  Peer peer{.fd = UniqueFd(linux_kernel(),
                           linux_kernel().socket(address.family(),
                                                 SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0))};
  if (receive_buffer) {
    linux_kernel().setsockopt(peer.fd.get(), SOL_SOCKET, SO_RCVBUF, &*receive_buffer,
                              sizeof *receive_buffer);
  }
  const int begun = linux_kernel().connect(peer.fd.get(), address.data(), address.size());
  EXPECT_TRUE(begun == 0 || begun == -EINPROGRESS) << "connect answered " << begun;
  wait_for(linux_kernel(), peer.fd.get(), POLLOUT);
  return peer;
}

// -- What came of it ------------------------------------------------------------------------------

void Stage::note_peer(const Peer& peer, Amount amount) {
  EXPECT_TRUE(std::string_view(to_peer).starts_with(peer.received))
      << "the raw peer, from byte " << first_difference(to_peer, peer.received) << " on";
  const std::string bytes =
      amount == Amount::told ? std::to_string(peer.received.size()) : std::string("some");
  peers_.push_back("peer: " + bytes + " bytes, " + end_word(peer.end));
}

std::vector<std::string> Stage::outcome() const {
  std::vector<std::string> lines = notes;
  lines.insert(lines.end(), peers_.begin(), peers_.end());
  for (const std::unique_ptr<Life>& life : lives) {
    std::string line =
        std::string(life->side) + ": " + std::to_string(life->received.size()) + " bytes, ";
    if (!life->report) {
      line += "open";
    } else if (life->report->reason == CloseReason::timeout) {
      line += to_string(life->report->timeout);
    } else {
      line += to_string(life->report->reason);
    }
    if (life->report && life->report->error) line += " " + error_word(life->report->error);
    lines.push_back(std::move(line));
  }
  std::ranges::sort(lines);
  return lines;
}

bool Stage::was_told(int error) const {
  if (std::ranges::find(told, system_error(error)) != told.end()) return true;
  const ServerStatistics counted = statistics();
  return counted.refused_at_start + counted.refused_for_descriptors + counted.accept_errors > 0;
}

void Stage::expect_prefixes() const {
  for (const std::unique_ptr<Life>& life : lives) {
    const std::string& sent = std::string_view(life->side) == "server" ? to_server : to_client;
    EXPECT_TRUE(std::string_view(sent).starts_with(life->received))
        << "the " << life->side << ", from byte " << first_difference(sent, life->received)
        << " on";
  }
}

// -- What holds whatever fails ---------------------------------------------------------------------

namespace {

// By the script's server where it is still there, else by a new one.
void expect_fresh_connection_served(Stage& stage) {
  if (stage.server == nullptr) {
    ASSERT_TRUE(stage.serve({}, {})) << "no fresh server can be started";
  }
  const std::size_t before = stage.lives.size();
  {
    const Peer fresh = stage.connect_peer();
    EXPECT_TRUE(
        stage.until("a fresh client is served", [&] { return stage.lives.size() == before + 1; }));
    fresh.finish();
  }
  EXPECT_TRUE(stage.until("the fresh client's connection ends", [&] { return stage.live() == 0; }));
}

}  // namespace

void check_invariants(Stage& stage, std::size_t descriptors) {
  stage.expect_prefixes();
  if (!stage.loop->error()) {
    EXPECT_EQ(stage.live(), 0u) << "on_close is missing";
    expect_fresh_connection_served(stage);
    EXPECT_EQ(stage.loop->memory().used(), 0u) << "memory is still charged";
    for (const std::string& note : stage.notes)
      EXPECT_FALSE(note.starts_with("waited in vain")) << note;
    stage.client.reset();
    stage.server.reset();
    stage.turn();
    const std::size_t own = stage.loop->backend_name() == "poll" ? 1 : 2;
    EXPECT_EQ(World::open_descriptors(), descriptors + own) << "before the loop goes";
  }
  stage.loop.reset();
  EXPECT_EQ(World::open_descriptors(), descriptors);
}

}  // namespace penstock::test

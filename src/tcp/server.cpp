#include "penstock/tcp/server.h"

#include <signal.h>

#include <algorithm>
#include <charconv>
#include <string_view>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/base/log.h"
#include "tcp/leave_loop.h"
#include "tcp/server_core.h"

namespace penstock {
namespace {

std::unique_ptr<EventLoop> make_loop(const TcpServerOptions& options) {
  EventLoopOptions loop{.backend = options.backend,
                        .kernel = options.kernel,
                        .io = options.io,
                        .posted_bytes_max = options.posted_bytes_max};
  if (options.memory_max != 0) loop.memory_budget = make_counted<MemoryBudget>(options.memory_max);
  return std::make_unique<EventLoop>(std::move(loop));
}

// How many connections fit: explicit limits must, the default leaves a tenth of the free
// descriptors alone.
Result<std::size_t> connections_that_fit(std::size_t wanted, Kernel& kernel) {
  const std::size_t limit = kernel.descriptor_limit();
  constexpr std::size_t kOwn = 2;  // the listener and its reserve
  const std::size_t open = kernel.open_descriptors() + kOwn;
  const std::size_t free = limit > open ? limit - open : 0;
  if (wanted == 0) return std::max<std::size_t>(1, free / 10 * 9 + free % 10 * 9 / 10);
  if (wanted > free) return failure(Errc::too_many_connections);
  return wanted;
}

// A stranger who never completes a frame must not hold a connection for ever.
void limit_messages(ConnectionLimits& limits) {
  if (!limits.first_message_timeout) limits.first_message_timeout = std::chrono::seconds(10);
  if (!limits.message_timeout) limits.message_timeout = std::chrono::seconds(30);
  if (!limits.message_rate_min) limits.message_rate_min = 240;
}

// "fd:N", or an address.
Result<ListenPlace> parse_listen(std::string_view text) {
  constexpr std::string_view kInherited = "fd:";
  if (text.starts_with(kInherited)) {
    const std::string_view digits = text.substr(kInherited.size());
    int fd = -1;
    const char* end = digits.data() + digits.size();
    const auto [stop, error] = std::from_chars(digits.data(), end, fd);
    if (error != std::errc{} || stop != end || fd < 0) return failure(Errc::bad_address);
    return ListenPlace{.inherited_fd = fd};
  }
  const Result<SocketAddress> address = SocketAddress::parse(text);
  if (!address) return std::unexpected(address.error());
  return ListenPlace{.address = *address};
}

// With a secret key where the addresses of strangers are hashed. Without entropy there is none, and
// a server that only looked protected would be worse than one that does not start.
Result<SourceHash> source_hash(const TcpServerOptions& options, Kernel& kernel) {
  const bool used = options.connections_per_source_max > 0 || options.balance == Balance::peer_hash;
  return used ? SourceHash::make(kernel) : SourceHash(HashKey{});
}

}  // namespace

TcpServer::TcpServer(TcpServerOptions options)
    : own_loop_(make_loop(options)),
      loop_(own_loop_.get()),
      options_(std::move(options)),
      stop_deadline_(options_.stop_deadline) {}

TcpServer::TcpServer(EventLoop& loop, TcpServerOptions options)
    : loop_(&loop), options_(std::move(options)), stop_deadline_(options_.stop_deadline) {}

TcpServer::~TcpServer() {
  if (!core_) return;
  if (own_loop_) {
    PENSTOCK_ASSERT(!own_loop_->running(),
                    "a server cannot be destroyed by its own loop, or while it runs");
    core_->abandon();
    group_.reset();     // joins the threads; their loops reset and report what they have
    own_loop_.reset();  // the same for the first
    return;
  }
  leave_loop(*loop_, core_);
}

Result<void> TcpServer::start() {
  if (loop_->error()) return std::unexpected(loop_->error());
  if (core_) return failure(Errc::already_started);
  loop_->assert_here();
  const Result<ListenPlace> place = parse_listen(options_.listen);
  if (!place) return std::unexpected(place.error());
  const Result<void> listening = start_loops_and_listen(*place);
  if (!listening) {
    if (core_) core_->abandon();
    core_ = {};
    group_.reset();
    return listening;
  }
  if (on_stopped_) core_->on_stopped([this] { on_stopped_(); });
  std::optional<Duration> early_stop;
  {
    const std::lock_guard lock(mutex_);
    started_core_ = core_;
    early_stop = early_stop_;
  }
  if (early_stop) core_->stop(*early_stop);
  return {};
}

Result<void> TcpServer::start_loops_and_listen(const ListenPlace& place) {
  if (own_loop_ && options_.loops > 0) {
    group_ = std::make_unique<LoopGroup>(
        LoopGroupOptions{.loops = options_.loops,
                         .loop = {.backend = options_.backend,
                                  .kernel = options_.kernel,
                                  .io = options_.io,
                                  .posted_bytes_max = options_.posted_bytes_max,
                                  .memory_budget = loop_->memory().budget()},
                         .on_thread_start = [this](std::size_t index, EventLoop& loop) {
                           if (options_.on_thread_start) options_.on_thread_start(index, loop);
                         }});
    if (const Result<void> started = group_->start(); !started) return started;
  }
  const std::vector<EventLoop*> loops = serving_loops();
  const Result<std::size_t> max = connections_that_fit(options_.max_connections, loop_->kernel());
  if (!max) return std::unexpected(max.error());
  if (reads_frames()) limit_messages(options_.limits);
  const Result<SourceHash> hash = source_hash(options_, loop_->kernel());
  if (!hash) return std::unexpected(hash.error());
  core_ = make_counted<ServerCore>(
      *loop_, loops, behaviour(options_.limits),
      ServerPolicy{.balance = options_.balance,
                   .max_connections = *max,
                   .connections_per_source_max = options_.connections_per_source_max},
      *hash);
  return core_->listen(place, {.backlog = options_.backlog,
                               .user_timeout = options_.limits.write_stall_timeout,
                               .ipv6_only = options_.ipv6_only,
                               .accepts_per_second_max = options_.accepts_per_second_max});
}

int TcpServer::run() {
  PENSTOCK_ASSERT(own_loop_ != nullptr,
                  "run() is for a server with loops of its own; run the loop instead");
  const auto fail = [this](std::error_code error) {
    log(LogLevel::error, describe_listen_error(options_.listen, error));
    return 1;
  };
  if (loop_->error()) return fail(loop_->error());
  if (std::exchange(ran_, true)) return fail(make_error_code(Errc::stopped));

  int signals = 0;
  const auto on_signal = [this, &signals](int) {
    stop(++signals == 1 ? stop_deadline_ : Duration::zero());
  };
  Result<void> result;
  for (const int number : {SIGINT, SIGTERM}) {
    if (result) result = loop_->on_signal(number, on_signal);
  }
  if (result && !core_) result = start();
  if (result) {
    core_->on_stopped([this] {
      if (on_stopped_) on_stopped_();
      loop_->stop();
    });
    if (on_listening_) on_listening_();
    result = loop_->run();
  }
  for (const int number : {SIGINT, SIGTERM}) {
    static_cast<void>(loop_->on_signal(number, nullptr));
  }
  if (group_) group_->stop();
  if (!result) return fail(result.error());
  return signals > 1 ? 130 : 0;
}

void TcpServer::stop(Duration deadline) {
  CountedPtr<ServerCore> core = started_core();
  if (!core) {
    const std::lock_guard lock(mutex_);
    early_stop_ = std::min(deadline, early_stop_.value_or(deadline));
    core = started_core_;  // it may have started meanwhile
    if (!core) return;
  }
  if (loop_->in_loop()) {
    core->stop(deadline);
  } else {
    static_cast<void>(Mailbox::post(loop_->id(), [core, deadline] { core->stop(deadline); }));
  }
}

CountedPtr<ServerCore> TcpServer::started_core() const {
  const std::lock_guard lock(mutex_);
  return started_core_;
}

SocketAddress TcpServer::address() const { return core_ ? core_->address() : SocketAddress(); }

std::vector<EventLoop*> TcpServer::serving_loops() {
  if (!group_) return {loop_};
  std::vector<EventLoop*> loops;
  loops.reserve(group_->size());
  for (std::size_t i = 0; i < group_->size(); ++i)
    loops.push_back(&group_->loop(i));
  return loops;
}

std::size_t TcpServer::max_connections() const noexcept {
  return core_ ? core_->max_connections() : 0;
}

ServerStatistics TcpServer::statistics() const {
  const CountedPtr<ServerCore> core = started_core();
  return core ? core->statistics() : ServerStatistics{};
}

}  // namespace penstock

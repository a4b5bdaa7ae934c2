#include "penstock/tcp/connection_group.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>
#include <vector>

#include "penstock/base/assert.h"
#include "penstock/loop/event_loop.h"
#include "penstock/tcp/connection.h"
#include "penstock/tcp/connection_table.h"

namespace penstock {
namespace {

// What a posted message costs beyond its payload: the task and its place in the mailbox.
constexpr std::size_t kPostCharge = 128;

// One for all loops it goes to.
struct Outgoing : Counted<Outgoing> {
  Outgoing(SharedBytes&& its_bytes, const MessageOptions& its_options) noexcept
      : bytes(std::move(its_bytes)), options(its_options) {}
  const SharedBytes bytes;
  const MessageOptions options;
};

// Whether there is memory for the payload; it is charged once, for all that will hold it.
bool charge_payload(const SharedBytes& message, LoopId loop) {
  const CountedPtr<MemoryBudget> budget = Mailbox::budget_of(loop);
  return !budget || message.charge_once(budget);
}

// Posts the task that `make` makes, or counts the loop as full. Other loops may have got theirs, so a
// lack of memory is an answer too.
template <class Make>
void post(BroadcastResult& result, const SharedBytes& message, LoopId loop, Make make) {
  PostResult posted = PostResult::full;
  try {
    if (charge_payload(message, loop)) posted = Mailbox::post(loop, Task(make()), kPostCharge);
  } catch (const std::bad_alloc&) {
    posted = PostResult::full;
  }
  if (posted == PostResult::posted) ++result.loops_posted;
  if (posted == PostResult::full) ++result.loops_full;
}

// For a count that one thread changes and others read.
void add_one(std::atomic<std::uint64_t>& counter) noexcept {
  counter.store(counter.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

}  // namespace

// -- Any set of connections -----------------------------------------------------------------------

namespace {

struct Targets : Counted<Targets> {
  explicit Targets(CountedPtr<const Outgoing> its_message) noexcept
      : message(std::move(its_message)) {}
  const CountedPtr<const Outgoing> message;
  std::vector<SlotId> connections{};  // those of each loop side by side
};

void deliver(const Targets& targets, std::uint32_t first, std::uint32_t end) {
  ConnectionTable& table = ConnectionTable::of(*EventLoop::current());
  for (std::uint32_t i = first; i < end; ++i) {
    TcpConnection* connection = table.find(targets.connections[i]);
    const Outgoing& message = *targets.message;
    if (connection == nullptr || !connection->can_send()) {
      ++table.counters().stale_drops;
    } else {
      static_cast<void>(connection->send_message(message.bytes, message.options));  // counted there
    }
  }
}

}  // namespace

BroadcastResult broadcast(std::span<const ConnectionHandle> connections, SharedBytes message,
                          const MessageOptions& options) {
  PENSTOCK_ASSERT(connections.size() <= UINT32_MAX, "too many connections for one broadcast");
  BroadcastResult result;
  if (message.empty()) return result;
  std::vector<ConnectionHandle> sorted(connections.begin(), connections.end());
  std::ranges::sort(sorted);
  const auto targets =
      make_counted<Targets>(CountedPtr<const Outgoing>(new Outgoing(std::move(message), options)));
  targets->connections.reserve(sorted.size());
  for (const ConnectionHandle& handle : sorted)
    targets->connections.push_back(handle.connection_);
  std::uint32_t first = 0;
  while (first < sorted.size()) {
    const LoopId loop = sorted[first].loop_;
    std::uint32_t end = first + 1;
    while (end < sorted.size() && sorted[end].loop_ == loop)
      ++end;
    post(result, targets->message->bytes, loop,
         [&] { return [targets, first, end] { deliver(*targets, first, end); }; });
    first = end;
  }
  return result;
}

// -- A group --------------------------------------------------------------------------------------

// The members on one loop. All but `size` and the counters belong to that loop; it lives as long as
// the group, members, or messages under way need it.
struct ConnectionGroup::Shard : Counted<Shard> {
  explicit Shard(LoopId its_loop) noexcept : loop(its_loop) {}

  void deliver(const Outgoing& message) {
    for (GroupMember* each = members.front(); each != nullptr; each = members.next(*each)) {
      switch (each->connection.send_message(message.bytes, message.options)) {
        case SendOutcome::accepted:
        case SendOutcome::accepted_above_high_water:
          add_one(accepted);
          break;
        case SendOutcome::dropped:
          add_one(dropped);
          break;
        case SendOutcome::full:
          add_one(refused);
          break;
        case SendOutcome::closed:
          add_one(closed);
          break;
      }
    }
  }

  void note_size() noexcept { size.store(places.size(), std::memory_order_relaxed); }

  void clear() noexcept {
    members_alive = {};
    while (GroupMember* member = members.front())
      places.erase(&member->connection);
    note_size();
  }

  const LoopId loop;
  std::unordered_map<const TcpConnection*, GroupMember> places;
  IntrusiveList<GroupMember, GroupMember> members;
  CountedPtr<Shard> members_alive;  // this, while there are members
  std::atomic<std::size_t> size{0};
  std::atomic<std::uint64_t> accepted{0};
  std::atomic<std::uint64_t> dropped{0};
  std::atomic<std::uint64_t> refused{0};
  std::atomic<std::uint64_t> closed{0};
};

// All parts of a group. The list is replaced, never changed, so that a sender reads it unlocked.
struct ConnectionGroup::Shards : Counted<Shards> {
  struct List : Counted<List> {
    std::vector<CountedPtr<Shard>> all;
  };

  CountedPtr<const List> list() const noexcept {
    const std::lock_guard lock(mutex);
    return current;
  }

  Shard* find(LoopId loop) const noexcept {
    const std::lock_guard lock(mutex);
    for (const CountedPtr<Shard>& shard : current->all) {
      if (shard->loop == loop) return shard.get();
    }
    return nullptr;
  }

  // A loop's part is made by that loop alone, so nobody else makes the same.
  Shard& make(LoopId loop) {
    auto longer = make_counted<List>();
    const auto shard = make_counted<Shard>(loop);
    const std::lock_guard lock(mutex);
    for (const CountedPtr<Shard>& each : current->all) {
      // Those of loops that are gone go too: nothing can reach them any more.
      if (Mailbox::budget_of(each->loop)) longer->all.push_back(each);
    }
    longer->all.push_back(shard);
    current = CountedPtr<const List>(longer.get());
    return *shard;
  }

  mutable std::mutex mutex;
  CountedPtr<const List> current = make_counted<const List>();
};

ConnectionGroup::ConnectionGroup() : shards_(make_counted<Shards>()) {}

ConnectionGroup::~ConnectionGroup() {
  for (const CountedPtr<Shard>& shard : shards_->list()->all) {
    try {
      // A loop that is gone has taken its members with it.
      static_cast<void>(Mailbox::post(shard->loop, [shard] { shard->clear(); }));
    } catch (const std::bad_alloc&) {
      continue;  // its members keep their places, which nothing is sent to, until they end
    }
  }
}

ConnectionGroup::Shard* ConnectionGroup::shard_here(
    const TcpConnection& connection) const noexcept {
  connection.loop().assert_here();
  return shards_->find(connection.loop().id());
}

void ConnectionGroup::add(TcpConnection& connection) {
  Shard* shard = shard_here(connection);
  if (connection.descriptor() < 0) return;
  if (shard == nullptr) shard = &shards_->make(connection.loop().id());
  shard->places.try_emplace(&connection, *shard, connection);
  if (!shard->members_alive) shard->members_alive = CountedPtr<Shard>(shard);
  shard->note_size();
}

void ConnectionGroup::remove(TcpConnection& connection) noexcept {
  Shard* shard = shard_here(connection);
  if (shard == nullptr) return;
  const auto found = shard->places.find(&connection);
  if (found != shard->places.end()) found->second.leave();
}

bool ConnectionGroup::contains(const TcpConnection& connection) const noexcept {
  const Shard* shard = shard_here(connection);
  return shard != nullptr && shard->places.contains(&connection);
}

BroadcastResult ConnectionGroup::send(SharedBytes message, const MessageOptions& options) const {
  BroadcastResult result;
  if (message.empty()) return result;
  const CountedPtr<const Shards::List> list = shards_->list();
  const CountedPtr<const Outgoing> outgoing(new Outgoing(std::move(message), options));
  for (const CountedPtr<Shard>& shard : list->all) {
    if (shard->size.load(std::memory_order_relaxed) == 0) continue;
    post(result, outgoing->bytes, shard->loop,
         [&] { return [shard, outgoing] { shard->deliver(*outgoing); }; });
  }
  return result;
}

std::size_t ConnectionGroup::size() const noexcept {
  std::size_t size = 0;
  for (const CountedPtr<Shard>& shard : shards_->list()->all)
    size += shard->size.load(std::memory_order_relaxed);
  return size;
}

GroupStatistics ConnectionGroup::statistics() const noexcept {
  GroupStatistics sum;
  for (const CountedPtr<Shard>& shard : shards_->list()->all) {
    sum.accepted += shard->accepted.load(std::memory_order_relaxed);
    sum.dropped += shard->dropped.load(std::memory_order_relaxed);
    sum.refused += shard->refused.load(std::memory_order_relaxed);
    sum.closed += shard->closed.load(std::memory_order_relaxed);
  }
  return sum;
}

// -- A place --------------------------------------------------------------------------------------

GroupMember::GroupMember(ConnectionGroup::Shard& its_shard, TcpConnection& its_connection) noexcept
    : shard(its_shard), connection(its_connection) {
  shard.members.push_back(*this);
  connection.join(*this);
}

void GroupMember::leave() noexcept {
  ConnectionGroup::Shard& its_shard = shard;
  its_shard.places.erase(&connection);
  its_shard.note_size();
  // Perhaps the last share in it.
  if (its_shard.places.empty()) const auto last = std::move(its_shard.members_alive);
}

}  // namespace penstock

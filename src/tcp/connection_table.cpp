#include "penstock/tcp/connection_table.h"

#include <new>
#include <utility>

#include "penstock/tcp/behaviour.h"

namespace penstock {

Result<ConnectionHandle> ConnectionTable::adopt(UniqueFd fd, const SocketAddress& peer,
                                                BehaviourPtr behaviour, ConnectionOwner* owner) {
  loop_.assert_here();
  TcpConnection* connection = nullptr;
  Result<void> started;
  try {
    connection = &connections_.emplace(*this, std::move(behaviour), owner, peer);
    if (owner != nullptr) owner->connection_started(*connection);
    started = connection->start(std::move(fd));
  } catch (const std::bad_alloc&) {
    started = failure(ENOMEM);
  }
  if (started) {
    ++statistics_.opened;
    return connection->handle();
  }
  ++statistics_.refused;
  if (connection != nullptr) {
    if (owner != nullptr) owner->connection_ended(*connection);
    connections_.erase(connection->id());
  }
  return std::unexpected(started.error());
}

TcpConnection* ConnectionTable::find(SlotId id) noexcept {
  TcpConnection* connection = connections_.find(id);
  return connection != nullptr && connection->descriptor() >= 0 ? connection : nullptr;
}

void ConnectionTable::flush() {
  while (TcpConnection* connection = dirty_.pop_front())
    connection->flush();
}

// What callbacks add waits for the next turn: they cannot keep the loop here.
void ConnectionTable::notify() {
  IntrusiveList<TcpConnection, NotifyTag> round;
  round.splice_back(due_);
  while (TcpConnection* connection = round.pop_front()) {
    if (connection->notify()) over_.push_back(*connection);
  }
}

void ConnectionTable::bury() {
  while (TcpConnection* connection = over_.pop_front()) {
    ++statistics_.closed;
    statistics_.ends.count(connection->close_reason(), connection->close_timeout());
    if (connection->owner() != nullptr) connection->owner()->connection_ended(*connection);
    connections_.erase(connection->id());
  }
}

std::size_t ConnectionTable::queued_bytes() {
  std::size_t bytes = 0;
  connections_.for_each(
      [&](SlotId, TcpConnection& connection) { bytes += connection.queued_bytes(); });
  return bytes;
}

void ConnectionTable::shut_down() {
  connections_.for_each([](SlotId, TcpConnection& connection) { connection.abort(); });
}

}  // namespace penstock

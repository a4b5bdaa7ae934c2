#include "penstock/tcp/connection_handle.h"

#include <cstddef>
#include <memory>
#include <utility>

#include "penstock/loop/event_loop.h"
#include "penstock/tcp/connection.h"
#include "penstock/tcp/connection_table.h"

namespace penstock {
namespace {

// What a posted operation costs beyond its payload: the task and its place in the mailbox.
constexpr std::size_t kPostOverhead = 128;

// Runs on the connection's loop, as a task.
template <class Visit>
void visit_connection(SlotId id, Visit& visit) {
  ConnectionTable& table = ConnectionTable::of(*EventLoop::current());
  if (TcpConnection* connection = table.find(id); connection != nullptr) {
    visit(*connection);
  } else {
    ++table.counters().stale_drops;
  }
}

}  // namespace

PostResult ConnectionHandle::post(std::move_only_function<void(TcpConnection&)> visit) const {
  return Mailbox::post(
      loop_,
      [id = connection_, visit = std::move(visit)]() mutable { visit_connection(id, visit); },
      kPostOverhead);
}

// The task owns the payload by pointer, so that it can be taken back out when the mailbox refuses.
template <class Payload>
PostResult ConnectionHandle::post_payload(Payload& payload) const {
  const std::size_t charge = payload.size() + kPostOverhead;
  auto owned = std::make_unique<Payload>(std::move(payload));
  Payload& posted = *owned;
  Task task = [id = connection_, owned = std::move(owned)] {
    auto send = [&](TcpConnection& connection) { connection.send(std::move(*owned)); };
    visit_connection(id, send);
  };
  const PostResult result = Mailbox::post(loop_, std::move(task), charge);
  if (result != PostResult::posted) payload = std::move(posted);
  return result;
}

PostResult ConnectionHandle::send(std::string&& payload) const { return post_payload(payload); }
PostResult ConnectionHandle::send(std::vector<std::byte>&& payload) const {
  return post_payload(payload);
}
PostResult ConnectionHandle::send(SharedBytes payload) const { return post_payload(payload); }
PostResult ConnectionHandle::send(std::string_view payload) const {
  return send(std::string(payload));
}
PostResult ConnectionHandle::send(std::span<const std::byte> payload) const {
  return send(std::vector<std::byte>(payload.begin(), payload.end()));
}

PostResult ConnectionHandle::finish() const {
  return post([](TcpConnection& connection) { connection.finish(); });
}
PostResult ConnectionHandle::close() const {
  return post([](TcpConnection& connection) { connection.close(); });
}
PostResult ConnectionHandle::abort() const {
  return post([](TcpConnection& connection) { connection.abort(); });
}

}  // namespace penstock

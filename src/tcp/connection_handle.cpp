#include "penstock/tcp/connection_handle.h"

#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

#include "penstock/loop/event_loop.h"
#include "penstock/tcp/connection.h"
#include "penstock/tcp/connection_table.h"

namespace penstock {
namespace {

// What a posted operation costs beyond its payload: the task and its place in the mailbox.
constexpr std::size_t kPostOverhead = 128;

// Runs on the connection's loop, as a task. `visit` answers false if it came too late.
template <class Visit>
void visit_connection(SlotId id, Visit& visit) {
  ConnectionTable& table = ConnectionTable::of(*EventLoop::current());
  TcpConnection* connection = table.find(id);
  if (connection == nullptr || !visit(*connection)) ++table.counters().stale_drops;
}

}  // namespace

PostResult ConnectionHandle::post(std::move_only_function<void(TcpConnection&)> visit) const {
  return post_charged(std::move(visit), kPostOverhead);
}

PostResult ConnectionHandle::post_charged(std::move_only_function<void(TcpConnection&)> visit,
                                          std::size_t charge) const {
  return Mailbox::post(
      loop_,
      [id = connection_, visit = std::move(visit)]() mutable {
        auto run = [&](TcpConnection& connection) {
          visit(connection);
          return true;
        };
        visit_connection(id, run);
      },
      charge);
}

// The task owns the payload by pointer, so that it can be taken back out when the mailbox refuses.
template <class Payload, class Send>
PostResult ConnectionHandle::post_payload(Payload& payload, Send send) const {
  std::size_t charge = kPostOverhead;
  if constexpr (std::is_same_v<Payload, SharedBytes>) {
    const CountedPtr<MemoryBudget> budget = Mailbox::budget_of(loop_);
    if (!budget) return PostResult::closed;
    if (!payload.charge_once(budget)) return PostResult::full;
  } else {
    charge += payload.size();
  }
  auto owned = std::make_unique<Payload>(std::move(payload));
  Payload& posted = *owned;
  Task task = [id = connection_, owned = std::move(owned), send] {
    auto visit = [&](TcpConnection& connection) {
      if (!connection.can_send()) return false;
      send(connection, std::move(*owned));
      return true;
    };
    visit_connection(id, visit);
  };
  const PostResult result = Mailbox::post(loop_, std::move(task), charge);
  if (result != PostResult::posted) payload = std::move(posted);
  return result;
}

namespace {

constexpr auto kPlainSend = [](TcpConnection& connection, auto&& payload) {
  connection.send(std::forward<decltype(payload)>(payload));
};

}  // namespace

PostResult ConnectionHandle::send(std::string&& payload) const {
  return post_payload(payload, kPlainSend);
}
PostResult ConnectionHandle::send(std::vector<std::byte>&& payload) const {
  return post_payload(payload, kPlainSend);
}
PostResult ConnectionHandle::send(SharedBytes payload) const {
  return post_payload(payload, kPlainSend);
}
PostResult ConnectionHandle::send_message(SharedBytes message,
                                          const MessageOptions& options) const {
  return post_payload(message, [options](TcpConnection& connection, SharedBytes&& payload) {
    static_cast<void>(connection.send_message(std::move(payload), options));  // counted there
  });
}
PostResult ConnectionHandle::send(std::string_view payload) const {
  return send(std::string(payload));
}
PostResult ConnectionHandle::send(std::span<const std::byte> payload) const {
  return send(std::vector<std::byte>(payload.begin(), payload.end()));
}

// Without a charge: a loop that is full can still be told to let go.
PostResult ConnectionHandle::finish() const {
  return post_charged([](TcpConnection& connection) { connection.finish(); }, 0);
}
PostResult ConnectionHandle::close() const {
  return post_charged([](TcpConnection& connection) { connection.close(); }, 0);
}
PostResult ConnectionHandle::abort() const {
  return post_charged([](TcpConnection& connection) { connection.abort(); }, 0);
}

}  // namespace penstock

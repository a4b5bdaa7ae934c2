// Sending one message to many connections, on whichever loops they live: the bytes are shared, not
// copied, and each loop gets one task. Each connection takes the message as its own send_message()
// does, so one that does not keep up holds up nobody and costs what its SlowConsumer policy allows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "penstock/base/counted.h"
#include "penstock/base/intrusive_list.h"
#include "penstock/bytes/message_queue.h"
#include "penstock/bytes/shared_bytes.h"
#include "penstock/tcp/connection_handle.h"

namespace penstock {

class TcpConnection;
struct GroupMember;
struct GroupsTag;

/// What became of a broadcast, by loops.
struct BroadcastResult {
  std::size_t loops_posted = 0;  ///< It is under way to the connections on that many loops.
  /// So many were at their bound on posted bytes, or memory or its budget is exhausted: none of
  /// their connections gets it.
  std::size_t loops_full = 0;
};

/// Sends a message to each of these connections, at most 2^32 - 1. Thread-safe. Those that are gone
/// are counted (ConnectionStatistics::stale_drops). Messages of one thread reach a connection in the
/// order sent, those through handles and groups included. Throws std::bad_alloc, with nothing sent.
BroadcastResult broadcast(std::span<const ConnectionHandle> connections, SharedBytes message,
                          const MessageOptions& options = {});

/// What happened to the messages of a group, summed over its connections. While messages are under
/// way the sums may belong to different moments.
struct GroupStatistics {
  std::uint64_t accepted = 0;  ///< Accepted for sending.
  std::uint64_t dropped =
      0;  ///< Dropped at once by a policy; what is dropped later is counted by its connection.
  std::uint64_t refused = 0;  ///< Refused under SlowConsumer::reject, or of the control lane.
  std::uint64_t closed =
      0;  ///< Found its connection ending, or ended it (SlowConsumer::disconnect).
};

/// A set of connections that get the same messages: a room, a topic. A connection that ends leaves
/// by itself. Owner: the program; it may go before its connections or after them.
class ConnectionGroup {
 public:
  /// Without members. Throws std::bad_alloc.
  ConnectionGroup();
  ConnectionGroup(const ConnectionGroup&) = delete;
  ConnectionGroup& operator=(const ConnectionGroup&) = delete;
  /// Messages under way still arrive. Not while another thread uses the group.
  ~ConnectionGroup();

  // -- On the connection's loop --

  /// Adds a connection; one that is a member already stays one, and one that has ended does not
  /// become one. Costs about 150 bytes for each connection and group. Throws std::bad_alloc.
  void add(TcpConnection& connection);
  /// Takes it out; what has been sent before and is still under way to its loop does not reach it.
  void remove(TcpConnection& connection) noexcept;
  /// Whether it is a member.
  bool contains(const TcpConnection& connection) const noexcept;

  // -- Thread-safe --

  /// Sends the message to all that are members when it reaches their loop, in a later turn; not to
  /// loops on which nobody is a member now. Messages of one thread reach a connection in the order
  /// sent. Throws std::bad_alloc, with nothing sent.
  BroadcastResult send(SharedBytes message, const MessageOptions& options = {}) const;
  /// How many connections are members, about.
  std::size_t size() const noexcept;
  /// Its account so far, of the loops that still exist.
  GroupStatistics statistics() const noexcept;

 private:
  friend struct GroupMember;
  struct Shard;
  struct Shards;

  Shard* shard_here(const TcpConnection& connection) const noexcept;

  CountedPtr<Shards> shards_;
};

/// A connection's place in a group. Belongs to the group's part on the connection's loop; the
/// connection knows its places and gives them up when it ends.
struct GroupMember : ListLink<GroupMember>, ListLink<GroupsTag> {
  /// Joins both lists.
  GroupMember(ConnectionGroup::Shard& its_shard, TcpConnection& its_connection) noexcept;

  /// Leaves the group: destroys this object.
  void leave() noexcept;

  ConnectionGroup::Shard& shard;  ///< The part of the group, which outlives this object.
  TcpConnection& connection;      ///< Who it is.
};

}  // namespace penstock

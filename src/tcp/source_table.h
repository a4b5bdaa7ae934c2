// Who a peer is when peers are counted, and how many connections each has now. A source is an IPv4
// address, or the /64 of an IPv6 one: a customer gets a /64, so single IPv6 addresses cost nothing.
// Owner: a server's core. It holds what lives and nothing else: a source without connections leaves
// no trace, so a million addresses that come and go cost no more than those that are there at once.
#pragma once

#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "base/keyed_hash.h"
#include "penstock/base/result.h"
#include "penstock/os/kernel.h"
#include "penstock/os/socket_address.h"

namespace penstock {

/// A source: a host, or what stands for one. IPv4 inside IPv6 (::ffff:10.0.0.1) is IPv4.
struct PeerSource {
  std::uint64_t network = 0;       ///< 32 bits of IPv4, or the upper 64 of IPv6, in host order.
  sa_family_t family = AF_UNSPEC;  ///< AF_INET or AF_INET6.
  bool loopback = false;           ///< 127.0.0.0/8 or ::1.

  friend bool operator==(const PeerSource&, const PeerSource&) = default;

  /// "10.0.0.1", "2001:db8::/64".
  std::string to_string() const;
};

/// The source of a peer; none for a Unix socket, or an address that is empty.
std::optional<PeerSource> source_of(const SocketAddress& peer) noexcept;

/// Hashes sources so that nobody outside can choose addresses that collide.
class SourceHash {
 public:
  explicit SourceHash(const HashKey& key) noexcept : key_(key) {}
  /// A hash with a key of its own. Error: what the kernel says of its entropy.
  static Result<SourceHash> make(Kernel& kernel);

  std::size_t operator()(const PeerSource& source) const noexcept {
    return keyed_hash(key_, source.network, source.family);
  }

 private:
  HashKey key_;
};

/// Live connections by source. Thread-safe: connections end on the threads of their loops. Its lock
/// is held for one look-up, per connection and not per message, and no user code runs under it.
class SourceTable {
 public:
  /// At most `connections_max` (1 or more) of one source. Makes room for `sources_max` of them, so
  /// that it never has to be rebuilt.
  SourceTable(SourceHash hash, std::size_t connections_max, std::size_t sources_max)
      : connections_max_(connections_max), connections_(sources_max, hash) {}

  /// Counts one more connection of the source; false, and it is not counted, when that has as many as it
  /// may. Throws std::bad_alloc, with nothing changed.
  bool enter(const PeerSource& source);
  /// One that was counted has ended.
  void leave(const PeerSource& source) noexcept;
  /// Sources that have connections.
  std::size_t size() const noexcept;

 private:
  const std::size_t connections_max_;
  mutable std::mutex mutex_;
  std::unordered_map<PeerSource, std::size_t, SourceHash> connections_;
};

}  // namespace penstock

#include "tcp/source_table.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <array>
#include <cstring>
#include <span>

#include "penstock/base/assert.h"

namespace penstock {
namespace {

constexpr std::size_t kIpv4InIpv6 = 12;  // where the IPv4 address stands in ::ffff:a.b.c.d

PeerSource ipv4_source(std::uint32_t address) noexcept {
  return {.network = address, .family = AF_INET, .loopback = address >> 24 == IN_LOOPBACKNET};
}

std::uint64_t number_of(std::span<const std::uint8_t> bytes) noexcept {
  std::uint64_t number = 0;
  for (const std::uint8_t byte : bytes)
    number = number << 8 | byte;
  return number;
}

}  // namespace

std::optional<PeerSource> source_of(const SocketAddress& peer) noexcept {
  if (peer.family() == AF_INET && peer.size() >= sizeof(sockaddr_in)) {
    sockaddr_in address{};
    std::memcpy(&address, peer.data(), sizeof address);
    return ipv4_source(ntohl(address.sin_addr.s_addr));
  }
  if (peer.family() == AF_INET6 && peer.size() >= sizeof(sockaddr_in6)) {
    sockaddr_in6 address{};
    std::memcpy(&address, peer.data(), sizeof address);
    const std::span<const std::uint8_t> bytes(address.sin6_addr.s6_addr);
    if (IN6_IS_ADDR_V4MAPPED(&address.sin6_addr)) {
      return ipv4_source(static_cast<std::uint32_t>(number_of(bytes.subspan(kIpv4InIpv6))));
    }
    return PeerSource{.network = number_of(bytes.first(8)),
                      .family = AF_INET6,
                      .loopback = IN6_IS_ADDR_LOOPBACK(&address.sin6_addr) != 0};
  }
  return std::nullopt;
}

std::string PeerSource::to_string() const {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (family == AF_INET) {
    in_addr address{.s_addr = htonl(static_cast<std::uint32_t>(network))};
    return ::inet_ntop(AF_INET, &address, text.data(), text.size());
  }
  in6_addr address{};
  for (std::size_t i = 0; i < 8; ++i)
    address.s6_addr[i] = static_cast<std::uint8_t>(network >> (56 - 8 * i));
  return std::string(::inet_ntop(AF_INET6, &address, text.data(), text.size())) + "/64";
}

Result<SourceHash> SourceHash::make(Kernel& kernel) {
  HashKey key{};
  const int result = kernel.entropy(std::as_writable_bytes(std::span(key)));
  if (result < 0) return failure(result);
  return SourceHash(key);
}

bool SourceTable::enter(const PeerSource& source) {
  const std::scoped_lock lock(mutex_);
  std::size_t& connections = connections_.try_emplace(source, 0).first->second;
  if (connections >= connections_max_) return false;
  ++connections;
  return true;
}

void SourceTable::leave(const PeerSource& source) noexcept {
  const std::scoped_lock lock(mutex_);
  const auto found = connections_.find(source);
  PENSTOCK_ASSERT(found != connections_.end(), "it was never counted");
  if (--found->second == 0) connections_.erase(found);
}

std::size_t SourceTable::size() const noexcept {
  const std::scoped_lock lock(mutex_);
  return connections_.size();
}

}  // namespace penstock

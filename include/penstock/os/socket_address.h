// A socket address as a value: IPv4, IPv6 or Unix. No system call and no name lookup happens here.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "penstock/base/result.h"

namespace penstock {

/// Address of an end of a connection; empty (AF_UNSPEC) by default.
class SocketAddress {
 public:
  SocketAddress() = default;

  /// From the kernel's form; `size` bytes at `address` are copied, at most
  /// sizeof(sockaddr_storage).
  SocketAddress(const sockaddr* address, socklen_t size) noexcept;

  /// Reads "127.0.0.1:80", "[::1]:80", "localhost:80", ":80" and "*:80" (every IPv4 address),
  /// "unix:PATH", "unix:@NAME" (abstract). Errors: bad_address; needs_resolver for any other host
  /// name.
  static Result<SocketAddress> parse(std::string_view text);

  /// AF_INET, AF_INET6, AF_UNIX, or AF_UNSPEC when empty.
  int family() const noexcept { return storage_.ss_family; }
  /// Whether it is an IPv4 or IPv6 address.
  bool is_ip() const noexcept { return family() == AF_INET || family() == AF_INET6; }
  /// Whether it names a Unix socket.
  bool is_unix() const noexcept { return family() == AF_UNIX; }
  /// The port in host order; 0 for what has none.
  std::uint16_t port() const noexcept;
  /// The path of a Unix socket ("@name" when abstract, "" when unnamed); "" for others.
  std::string path() const;

  /// The kernel's form, size() bytes of it; valid as long as this object.
  const sockaddr* data() const noexcept { return reinterpret_cast<const sockaddr*>(&storage_); }
  /// Bytes of the kernel's form that are in use.
  socklen_t size() const noexcept { return size_; }

  /// The form parse() reads; "unspecified" when empty.
  std::string to_string() const;

  /// Same family, address and port (or path).
  friend bool operator==(const SocketAddress& left, const SocketAddress& right) noexcept;

 private:
  sockaddr_storage storage_{};
  socklen_t size_ = 0;
};

}  // namespace penstock

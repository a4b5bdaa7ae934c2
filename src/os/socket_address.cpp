#include "penstock/os/socket_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <optional>

namespace penstock {
namespace {

constexpr std::size_t kUnixPathOffset = offsetof(sockaddr_un, sun_path);
constexpr std::size_t kUnixPathSizeMax = sizeof(sockaddr_un::sun_path) - 1;  // and a zero byte

/// The storage as one of its concrete forms. A copy, because an object has one type.
template <class Address>
Address read_as(const sockaddr* storage) noexcept {
  Address address;
  std::memcpy(&address, storage, sizeof address);
  return address;
}

template <class Address>
SocketAddress make_address(const Address& address, std::size_t size = sizeof(Address)) noexcept {
  sockaddr_storage storage{};
  std::memcpy(&storage, &address, sizeof address);
  return {reinterpret_cast<const sockaddr*>(&storage), static_cast<socklen_t>(size)};
}

/// A decimal number made of digits alone.
template <class Number>
std::optional<Number> parse_number(std::string_view digits) noexcept {
  Number number = 0;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, number);
  if (error != std::errc{} || stop != end) return std::nullopt;
  return number;
}

bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }

bool is_host_character(char c) noexcept {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '.' ||
         c == '_';
}

/// Whether a resolver could be asked for it. A name whose last label is a number is a misspelt
/// IPv4 address instead.
bool is_host_name(std::string_view host) noexcept {
  constexpr std::size_t kHostNameSizeMax = 253;
  if (host.empty() || host.size() > kHostNameSizeMax) return false;
  if (!std::ranges::all_of(host, is_host_character)) return false;
  const std::string_view last_label = host.substr(host.rfind('.') + 1);
  return !std::ranges::all_of(last_label, is_digit);
}

/// inet_pton(3) for text that is not zero-terminated.
template <class Binary>
bool parse_numeric_host(int family, std::string_view host, Binary& binary) noexcept {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (host.size() >= text.size() || host.contains('\0')) return false;
  std::ranges::copy(host, text.begin());
  return ::inet_pton(family, text.data(), &binary) == 1;
}

Result<SocketAddress> parse_unix(std::string_view path) {
  const bool abstract = path.starts_with('@');
  if (path.empty() || path == "@" || path.size() > kUnixPathSizeMax) {
    return failure(Errc::bad_address);
  }
  if (!abstract && path.contains('\0')) return failure(Errc::bad_address);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::ranges::copy(path, address.sun_path);
  if (abstract) address.sun_path[0] = '\0';
  // The size tells where an abstract name ends; a path ends with its zero byte.
  const std::size_t path_size = abstract ? path.size() : path.size() + 1;
  return make_address(address, kUnixPathOffset + path_size);
}

Result<SocketAddress> parse_ipv6(std::string_view host, std::uint16_t port) {
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(port);
  if (const std::size_t percent = host.find('%'); percent != std::string_view::npos) {
    const auto scope = parse_number<std::uint32_t>(host.substr(percent + 1));
    if (!scope) return failure(Errc::bad_address);
    address.sin6_scope_id = *scope;
    host = host.substr(0, percent);
  }
  if (!parse_numeric_host(AF_INET6, host, address.sin6_addr)) return failure(Errc::bad_address);
  return make_address(address);
}

Result<SocketAddress> parse_ipv4(std::string_view host, std::uint16_t port) {
  if (host.empty() || host == "*") host = "0.0.0.0";
  if (host == "localhost") host = "127.0.0.1";
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (parse_numeric_host(AF_INET, host, address.sin_addr)) return make_address(address);
  return failure(is_host_name(host) ? Errc::needs_resolver : Errc::bad_address);
}

/// The name in a Unix address of `size` bytes: a path, an abstract name with its leading zero byte,
/// or nothing when it is unnamed (unix(7)).
std::string_view unix_name(const sockaddr_un& address, socklen_t size) noexcept {
  if (size <= kUnixPathOffset) return {};
  const std::size_t room = std::min<std::size_t>(size - kUnixPathOffset, sizeof address.sun_path);
  const std::string_view bytes(address.sun_path, room);
  return bytes.front() == '\0' ? bytes : bytes.substr(0, bytes.find('\0'));
}

std::string format_host(int family, const void* binary) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  ::inet_ntop(family, binary, text.data(), text.size());
  return text.data();
}

}  // namespace

SocketAddress::SocketAddress(const sockaddr* address, socklen_t size) noexcept
    : size_(std::min<socklen_t>(size, sizeof storage_)) {
  if (size_ < sizeof(sa_family_t)) size_ = 0;
  if (size_ > 0) std::memcpy(&storage_, address, size_);
}

Result<SocketAddress> SocketAddress::parse(std::string_view text) {
  constexpr std::string_view kUnixPrefix = "unix:";
  if (text.starts_with(kUnixPrefix)) return parse_unix(text.substr(kUnixPrefix.size()));

  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return failure(Errc::bad_address);
  const auto port = parse_number<std::uint16_t>(text.substr(colon + 1));
  if (!port) return failure(Errc::bad_address);
  const std::string_view host = text.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) {
    return parse_ipv6(host.substr(1, host.size() - 2), *port);
  }
  return parse_ipv4(host, *port);
}

std::uint16_t SocketAddress::port() const noexcept {
  if (family() == AF_INET) return ntohs(read_as<sockaddr_in>(data()).sin_port);
  if (family() == AF_INET6) return ntohs(read_as<sockaddr_in6>(data()).sin6_port);
  return 0;
}

std::string SocketAddress::path() const {
  if (!is_unix()) return {};
  const auto address = read_as<sockaddr_un>(data());
  const std::string_view name = unix_name(address, size_);
  if (name.starts_with('\0')) return '@' + std::string(name.substr(1));
  // A file whose name begins with @ must not be taken for an abstract name.
  return (name.starts_with('@') ? "./" : "") + std::string(name);
}

std::string SocketAddress::to_string() const {
  switch (family()) {
    case AF_INET: {
      const auto address = read_as<sockaddr_in>(data());
      return format_host(AF_INET, &address.sin_addr) + ':' + std::to_string(port());
    }
    case AF_INET6: {
      const auto address = read_as<sockaddr_in6>(data());
      const std::string scope =
          address.sin6_scope_id != 0 ? '%' + std::to_string(address.sin6_scope_id) : "";
      return '[' + format_host(AF_INET6, &address.sin6_addr) + scope +
             "]:" + std::to_string(port());
    }
    case AF_UNIX:
      return "unix:" + path();
    case AF_UNSPEC:
      return "unspecified";
    default:
      return "family " + std::to_string(family());
  }
}

bool operator==(const SocketAddress& left, const SocketAddress& right) noexcept {
  if (left.family() != right.family()) return false;
  switch (left.family()) {
    case AF_UNSPEC:
      return true;
    case AF_INET: {
      const auto a = read_as<sockaddr_in>(left.data());
      const auto b = read_as<sockaddr_in>(right.data());
      return a.sin_port == b.sin_port && a.sin_addr.s_addr == b.sin_addr.s_addr;
    }
    case AF_INET6: {
      const auto a = read_as<sockaddr_in6>(left.data());
      const auto b = read_as<sockaddr_in6>(right.data());
      return a.sin6_port == b.sin6_port && a.sin6_scope_id == b.sin6_scope_id &&
             std::memcmp(&a.sin6_addr, &b.sin6_addr, sizeof a.sin6_addr) == 0;
    }
    case AF_UNIX: {
      const auto a = read_as<sockaddr_un>(left.data());
      const auto b = read_as<sockaddr_un>(right.data());
      return unix_name(a, left.size()) == unix_name(b, right.size());
    }
    default:
      return left.size() == right.size() &&
             std::memcmp(left.data(), right.data(), left.size()) == 0;
  }
}

}  // namespace penstock

#include "penstock/os/socket_address.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <rapidcheck.h>
#include <sys/un.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <string>

namespace penstock {
namespace {

struct Case {
  std::string text;
  std::string printed;
  int family;
  std::uint16_t port;
};

const Case kReadable[] = {
    {"127.0.0.1:80", "127.0.0.1:80", AF_INET, 80},
    {"0.0.0.0:0", "0.0.0.0:0", AF_INET, 0},
    {"255.255.255.255:65535", "255.255.255.255:65535", AF_INET, 65535},
    {"localhost:7000", "127.0.0.1:7000", AF_INET, 7000},
    {":80", "0.0.0.0:80", AF_INET, 80},
    {"*:80", "0.0.0.0:80", AF_INET, 80},
    {"127.0.0.1:0080", "127.0.0.1:80", AF_INET, 80},
    {"[::1]:80", "[::1]:80", AF_INET6, 80},
    {"[::]:0", "[::]:0", AF_INET6, 0},
    {"[2001:DB8:0:0::1]:443", "[2001:db8::1]:443", AF_INET6, 443},
    {"[::ffff:10.0.0.1]:1", "[::ffff:10.0.0.1]:1", AF_INET6, 1},
    {"[fe80::1%2]:80", "[fe80::1%2]:80", AF_INET6, 80},
    {"[fe80::1%4294967295]:80", "[fe80::1%4294967295]:80", AF_INET6, 80},
    {"unix:/run/penstock.sock", "unix:/run/penstock.sock", AF_UNIX, 0},
    {"unix:relative", "unix:relative", AF_UNIX, 0},
    {"unix:./@file", "unix:./@file", AF_UNIX, 0},
    {"unix:@abstract", "unix:@abstract", AF_UNIX, 0},
    {"unix:@[::1]:80", "unix:@[::1]:80", AF_UNIX, 0},
};

struct Reject {
  std::string text;
  Errc error;
};

const Reject kUnreadable[] = {
    {"", Errc::bad_address},
    {"127.0.0.1", Errc::bad_address},
    {"80", Errc::bad_address},
    {"127.0.0.1:", Errc::bad_address},
    {"127.0.0.1:-1", Errc::bad_address},
    {"127.0.0.1:+1", Errc::bad_address},
    {"127.0.0.1: 1", Errc::bad_address},
    {"127.0.0.1:1 ", Errc::bad_address},
    {"127.0.0.1:0x50", Errc::bad_address},
    {"127.0.0.1:http", Errc::bad_address},
    {"127.0.0.1:65536", Errc::bad_address},
    {"127.0.0.1:99999999999999999999", Errc::bad_address},
    {" 127.0.0.1:80", Errc::bad_address},
    {"127.0.0.1 :80", Errc::bad_address},
    {"127.0.0:80", Errc::bad_address},
    {"127.0.0.1.1:80", Errc::bad_address},
    {"256.0.0.1:80", Errc::bad_address},
    {"1:80", Errc::bad_address},
    {std::string("127.0.0.1\0.evil:80", 18), Errc::bad_address},
    {std::string("127.0.0.1:80\0", 13), Errc::bad_address},
    {"::1:80", Errc::bad_address},
    {"[::1]", Errc::bad_address},
    {"[::1]80", Errc::bad_address},
    {"[::1:80", Errc::bad_address},
    {"::1]:80", Errc::bad_address},
    {"[]:80", Errc::bad_address},
    {"[]", Errc::bad_address},
    {"[:80", Errc::bad_address},
    {"[127.0.0.1]:80", Errc::bad_address},
    {"[localhost]:80", Errc::bad_address},
    {"[1:2:3:4:5:6:7:8:9]:80", Errc::bad_address},
    {"[fe80::1%eth0]:80", Errc::bad_address},
    {"[fe80::1%]:80", Errc::bad_address},
    {"[fe80::1%-1]:80", Errc::bad_address},
    {"[fe80::1%4294967296]:80", Errc::bad_address},
    {"unix:", Errc::bad_address},
    {"unix:@", Errc::bad_address},
    {std::string("unix:a\0b", 8), Errc::bad_address},
    {"unix:" + std::string(108, 'x'), Errc::bad_address},
    {"unix:@" + std::string(107, 'x'), Errc::bad_address},
    {"a b:80", Errc::bad_address},
    {"caf\xc3\xa9:80", Errc::bad_address},
    {"http://example.org:80", Errc::bad_address},
    {std::string(254, 'x') + ":80", Errc::bad_address},
    {"example.org:80", Errc::needs_resolver},
    {"my-host_1:80", Errc::needs_resolver},
    {"1password.example:80", Errc::needs_resolver},
    {std::string(253, 'x') + ":80", Errc::needs_resolver},
};

TEST(SocketAddress, reads_and_prints_the_documented_forms) {
  for (const Case& known : kReadable) {
    const Result<SocketAddress> address = SocketAddress::parse(known.text);
    ASSERT_TRUE(address.has_value()) << known.text << ": " << address.error().message();
    EXPECT_EQ(address->to_string(), known.printed);
    EXPECT_EQ(address->family(), known.family) << known.text;
    EXPECT_EQ(address->port(), known.port) << known.text;
    EXPECT_EQ(address->is_ip(), known.family != AF_UNIX) << known.text;
    EXPECT_EQ(address->is_unix(), known.family == AF_UNIX) << known.text;
    EXPECT_EQ(SocketAddress::parse(known.printed).value(), *address) << known.text;
  }
}

TEST(SocketAddress, rejects_everything_else_and_says_why) {
  for (const Reject& known : kUnreadable) {
    const Result<SocketAddress> address = SocketAddress::parse(known.text);
    ASSERT_FALSE(address.has_value()) << known.text << " was read as " << address->to_string();
    EXPECT_EQ(address.error(), make_error_code(known.error)) << known.text;
  }
}

TEST(SocketAddress, the_default_is_unspecified) {
  const SocketAddress address;
  EXPECT_EQ(address.family(), AF_UNSPEC);
  EXPECT_EQ(address.size(), 0u);
  EXPECT_EQ(address.port(), 0);
  EXPECT_EQ(address.path(), "");
  EXPECT_EQ(address.to_string(), "unspecified");
  EXPECT_EQ(address, SocketAddress());
}

TEST(SocketAddress, a_size_from_the_kernel_never_reads_beyond_the_storage) {
  std::array<std::byte, sizeof(sockaddr_storage)> bytes{};
  const sa_family_t family = AF_UNIX;
  std::memcpy(bytes.data(), &family, sizeof family);
  std::memset(bytes.data() + sizeof family, 'x', bytes.size() - sizeof family);
  const auto* data = reinterpret_cast<const sockaddr*>(bytes.data());

  for (socklen_t size = 0; size <= bytes.size(); ++size) {
    const SocketAddress address(data, size);
    EXPECT_LE(address.path().size(), sizeof(sockaddr_un::sun_path)) << size;
  }
  EXPECT_EQ(SocketAddress(data, 1), SocketAddress()) << "too short to have a family";
  EXPECT_EQ(SocketAddress(nullptr, 0), SocketAddress());
}

TEST(SocketAddress, an_unnamed_unix_socket_has_an_empty_path) {
  sockaddr unnamed{};
  unnamed.sa_family = AF_UNIX;
  const SocketAddress address(&unnamed, sizeof(sa_family_t));
  EXPECT_TRUE(address.is_unix());
  EXPECT_EQ(address.path(), "");
  EXPECT_EQ(address.to_string(), "unix:");
}

TEST(SocketAddress, a_path_ends_at_its_zero_byte_and_an_abstract_name_does_not) {
  sockaddr_un storage{};
  storage.sun_family = AF_UNIX;
  std::memcpy(storage.sun_path, "a\0b", 3);
  const auto* data = reinterpret_cast<const sockaddr*>(&storage);
  EXPECT_EQ(SocketAddress(data, sizeof storage), SocketAddress::parse("unix:a").value());

  std::memcpy(storage.sun_path, "\0a\0b", 4);
  const socklen_t size = offsetof(sockaddr_un, sun_path) + 4;
  EXPECT_EQ(SocketAddress(data, size).path(), std::string("@a\0b", 4));
}

TEST(SocketAddress, a_file_named_like_an_abstract_socket_is_told_apart) {
  sockaddr_un storage{};
  storage.sun_family = AF_UNIX;
  std::memcpy(storage.sun_path, "@name", 6);
  const SocketAddress file(reinterpret_cast<const sockaddr*>(&storage),
                           offsetof(sockaddr_un, sun_path) + 6);
  EXPECT_EQ(file.path(), "./@name");
  EXPECT_NE(file, SocketAddress::parse("unix:@name").value());
}

TEST(SocketAddress, the_longest_unix_names_fit) {
  for (const std::string& text :
       {"unix:" + std::string(107, 'x'), "unix:@" + std::string(106, 'x')}) {
    const Result<SocketAddress> address = SocketAddress::parse(text);
    ASSERT_TRUE(address.has_value()) << text;
    EXPECT_EQ(address->to_string(), text);
    EXPECT_LE(address->size(), sizeof(sockaddr_un));
  }
}

TEST(SocketAddress, addresses_differ_by_family_host_port_scope_and_name) {
  const char* const kDifferent[] = {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.2:1", "[::1]:1",
                                    "[::1]:2",     "[::2]:1",     "[::1%1]:1",   "unix:a",
                                    "unix:b",      "unix:@a",     "unix:@aa",    "unix:aa"};
  for (const char* left : kDifferent) {
    for (const char* right : kDifferent) {
      const bool same = left == right;
      EXPECT_EQ(SocketAddress::parse(left).value() == SocketAddress::parse(right).value(), same)
          << left << " and " << right;
    }
  }
}

TEST(SocketAddress, every_ipv4_address_survives_printing_and_reading) {
  EXPECT_TRUE(rc::check([](std::uint32_t host, std::uint16_t port) {
    sockaddr_in raw{};
    raw.sin_family = AF_INET;
    raw.sin_port = port;
    raw.sin_addr.s_addr = host;
    const SocketAddress address(reinterpret_cast<const sockaddr*>(&raw), sizeof raw);
    RC_ASSERT(SocketAddress::parse(address.to_string()).value() == address);
  }));
}

TEST(SocketAddress, every_ipv6_address_survives_printing_and_reading) {
  EXPECT_TRUE(rc::check(
      [](const std::array<std::uint8_t, 16>& host, std::uint16_t port, std::uint32_t scope) {
        sockaddr_in6 raw{};
        raw.sin6_family = AF_INET6;
        raw.sin6_port = port;
        raw.sin6_scope_id = scope;
        std::memcpy(&raw.sin6_addr, host.data(), host.size());
        const SocketAddress address(reinterpret_cast<const sockaddr*>(&raw), sizeof raw);
        RC_ASSERT(SocketAddress::parse(address.to_string()).value() == address);
      }));
}

TEST(SocketAddress, what_is_read_from_any_text_is_read_again_from_its_print) {
  // Characters of addresses, so that some of the texts are addresses.
  const auto text = rc::gen::container<std::string>(
      rc::gen::elementOf(std::string("0123456789abcdef:.[]%@*unix/-\0 ", 31)));
  EXPECT_TRUE(rc::check([&] {
    for (const std::string& prefix : {std::string(), std::string("unix:"), std::string("[")}) {
      const Result<SocketAddress> address = SocketAddress::parse(prefix + *text);
      if (!address) continue;
      const Result<SocketAddress> again = SocketAddress::parse(address->to_string());
      RC_ASSERT(again.has_value());
      RC_ASSERT(*again == *address);
    }
  }));
}

}  // namespace
}  // namespace penstock

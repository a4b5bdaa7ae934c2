#include "tcp/source_table.h"

#include <gtest/gtest.h>
#include <netinet/in.h>

#include <algorithm>
#include <deque>
#include <unordered_set>

#include "support/pretended_peers.h"

namespace penstock::test {
namespace {

std::string source_text(const std::string& address) {
  const std::optional<PeerSource> source = source_of(address_of(address));
  return source ? source->to_string() + (source->loopback ? " loopback" : "") : "none";
}

TEST(PeerSourceTest, is_the_address_or_the_64_of_an_ipv6_one) {
  EXPECT_EQ(source_text("10.1.2.3:80"), "10.1.2.3");
  EXPECT_EQ(source_text("255.255.255.255:80"), "255.255.255.255");
  EXPECT_EQ(source_text("[2001:db8:1:2:3:4:5:6]:80"), "2001:db8:1:2::/64");
  EXPECT_EQ(source_text("[::ffff:10.1.2.3]:80"), "10.1.2.3");
  EXPECT_EQ(source_text("127.0.0.1:80"), "127.0.0.1 loopback");
  EXPECT_EQ(source_text("127.255.0.1:80"), "127.255.0.1 loopback");
  EXPECT_EQ(source_text("128.0.0.1:80"), "128.0.0.1");
  EXPECT_EQ(source_text("[::ffff:127.0.0.1]:80"), "127.0.0.1 loopback");
  EXPECT_EQ(source_text("[::1]:80"), "::/64 loopback");
  EXPECT_EQ(source_text("[::2]:80"), "::/64");
  EXPECT_EQ(source_text("unix:@name"), "none");
  EXPECT_EQ(source_of(SocketAddress()), std::nullopt);
  EXPECT_EQ(source_of(address_of("10.0.0.1:1")), source_of(address_of("10.0.0.1:2")));
  EXPECT_NE(source_of(address_of("[::1]:1")), source_of(address_of("[::2]:1")));
}

TEST(PeerSourceTest, an_address_that_is_cut_short_has_none) {
  const sockaddr_in6 address{.sin6_family = AF_INET6};
  EXPECT_EQ(source_of(SocketAddress(reinterpret_cast<const sockaddr*>(&address), 8)), std::nullopt);
}

// S10
TEST(SourceTableTest, it_holds_what_lives_and_nothing_else) {
  constexpr std::uint64_t kSources = 1'000'000;
  constexpr std::size_t kAtATime = 1'000;
  SourceTable table(SourceHash(HashKey{1, 2}), 1, kAtATime);
  std::deque<PeerSource> live;
  for (std::uint64_t i = 0; i < kSources; ++i) {
    live.push_back({.network = i << 16, .family = AF_INET6});
    ASSERT_TRUE(table.enter(live.back()));
    ASSERT_FALSE(table.enter(live.back())) << "what is refused is not counted";
    if (live.size() < kAtATime) continue;
    ASSERT_EQ(table.size(), kAtATime);
    table.leave(live.front());
    live.pop_front();
  }
  for (const PeerSource& source : live)
    table.leave(source);
  EXPECT_EQ(table.size(), 0u);
}

TEST(SourceTableTest, the_families_do_not_meet) {
  SourceTable table(SourceHash(HashKey{}), 1, 10);
  EXPECT_TRUE(table.enter({.network = 7, .family = AF_INET}));
  EXPECT_TRUE(table.enter({.network = 7, .family = AF_INET6}));
  EXPECT_FALSE(table.enter({.network = 7, .family = AF_INET}));
}

// S10: whoever owns a network chooses its addresses. Neither neighbours nor multiples of a power of
// two, nor what collides under another key, fill one bucket.
TEST(SourceTableTest, chosen_addresses_do_not_collide) {
  constexpr std::size_t kSources = 100'000;
  const auto longest_bucket = [](const HashKey& key, const std::vector<std::uint64_t>& networks) {
    std::unordered_set<PeerSource, SourceHash> set(kSources, SourceHash(key));
    for (const std::uint64_t network : networks)
      set.insert({.network = network, .family = AF_INET6});
    std::size_t longest = 0;
    for (std::size_t i = 0; i < set.bucket_count(); ++i)
      longest = std::max(longest, set.bucket_size(i));
    return longest;
  };
  const HashKey key = {0x0123456789abcdef, 0xfedcba9876543210};
  for (const unsigned shift : {0U, 8U, 16U, 32U}) {
    std::vector<std::uint64_t> networks;
    for (std::uint64_t i = 0; i < kSources; ++i)
      networks.push_back(i << shift);
    EXPECT_LE(longest_bucket(key, networks), 12u) << "shift " << shift;
  }
  // Those that meet in a few buckets under a key that was found out.
  std::vector<std::uint64_t> meeting;
  for (std::uint64_t i = 0; meeting.size() < 1'000; ++i) {
    if (keyed_hash({1, 1}, i, AF_INET6) % 1'024 == 0) meeting.push_back(i);
  }
  EXPECT_LE(longest_bucket(key, meeting), 5u);
}

TEST(SourceTableTest, a_hash_draws_a_key_of_its_own) {
  PretendedPeers kernel;
  const PeerSource source{.network = 1, .family = AF_INET};
  const auto drawn = [&](unsigned char value) {
    kernel.dice = value;
    return SourceHash::make(kernel).value()(source);
  };
  EXPECT_EQ(drawn(1), drawn(1));
  EXPECT_NE(drawn(1), drawn(2));
}

}  // namespace
}  // namespace penstock::test

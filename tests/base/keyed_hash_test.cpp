#include "base/keyed_hash.h"

#include <gtest/gtest.h>

#include <set>

namespace penstock {
namespace {

// The key 00 01 .. 0f and the message 00 01 .. 0f, as the designers' test vectors have it.
TEST(KeyedHashTest, it_is_siphash_2_4) {
  EXPECT_EQ(
      keyed_hash({0x0706050403020100, 0x0f0e0d0c0b0a0908}, 0x0706050403020100, 0x0f0e0d0c0b0a0908),
      0x3f2acc7f57c29bdbU);
}

TEST(KeyedHashTest, every_part_of_key_and_message_matters) {
  const std::set<std::uint64_t> all = {keyed_hash({0, 0}, 0, 0), keyed_hash({1, 0}, 0, 0),
                                       keyed_hash({0, 1}, 0, 0), keyed_hash({0, 0}, 1, 0),
                                       keyed_hash({0, 0}, 0, 1)};
  EXPECT_EQ(all.size(), 5u);
}

}  // namespace
}  // namespace penstock

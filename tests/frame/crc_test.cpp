// F14: the library's checksums are what the definition says, bit by bit, in whatever pieces. That
// they are zlib's too is tested by a Python client of the packet server (tests/clients).

#include "penstock/frame/crc.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <array>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "support/frame_feed.h"

namespace penstock::test {
namespace {

// The definition: reflected, all ones at the beginning, inverted at the end.
std::uint32_t by_definition(std::uint32_t polynomial, std::span<const std::byte> bytes,
                            std::uint32_t before = 0) {
  std::uint32_t remainder = ~before;
  for (const std::byte byte : bytes) {
    remainder ^= std::to_integer<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit)
      remainder = (remainder & 1) != 0 ? remainder >> 1 ^ polynomial : remainder >> 1;
  }
  return ~remainder;
}
constexpr std::uint32_t kCrc32 = 0xEDB88320;   // 0x04C11DB7 reflected
constexpr std::uint32_t kCrc32c = 0x82F63B78;  // 0x1EDC6F41 reflected

// F14. The check values of the catalogue of parametrised CRC algorithms, and RFC 3720, B.4.
TEST(Crc, HasThePublishedValues) {
  EXPECT_EQ(crc32(bytes_of("123456789")), 0xCBF43926u);
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xE3069283u);
  EXPECT_EQ(crc32({}), 0u);
  EXPECT_EQ(crc32c({}), 0u);
  EXPECT_EQ(crc32c(bytes_of(std::string(32, '\0'))), 0x8A9136AAu);
  EXPECT_EQ(crc32c(bytes_of(std::string(32, '\xFF'))), 0x62A8AB43u);
}

// F14. Implementations change their way at 8, 16, 64 ... bytes and with the alignment.
TEST(Crc, IsTheDefinitionAtEveryLengthAndAlignment) {
  std::mt19937 random(14);
  std::vector<std::byte> bytes(2200);
  for (std::byte& byte : bytes)
    byte = static_cast<std::byte>(random());
  for (std::size_t begin = 0; begin < 17; ++begin) {
    std::uint32_t wanted = 0;
    std::uint32_t wanted_c = 0;
    for (std::size_t size = 0; begin + size < bytes.size(); ++size) {
      const auto part = std::span(bytes).subspan(begin, size);
      ASSERT_EQ(crc32(part), wanted) << begin << ", " << size;
      ASSERT_EQ(crc32c(part), wanted_c) << begin << ", " << size;
      const auto next = std::span(bytes).subspan(begin + size, 1);
      wanted = by_definition(kCrc32, next, wanted);
      wanted_c = by_definition(kCrc32c, next, wanted_c);
    }
  }
}

// The third way, for many inputs: a table of what the definition says for each byte.
class ByTable {
 public:
  explicit ByTable(std::uint32_t polynomial) {
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      const auto one = static_cast<std::byte>(byte);
      steps_[byte] = ~by_definition(polynomial, std::span(&one, 1), ~0U);
    }
  }
  std::uint32_t operator()(std::span<const std::byte> bytes, std::uint32_t before) const {
    std::uint32_t remainder = ~before;
    for (const std::byte byte : bytes)
      remainder =
          remainder >> 8 ^ steps_[(remainder ^ std::to_integer<std::uint32_t>(byte)) & 0xFF];
    return ~remainder;
  }

 private:
  std::array<std::uint32_t, 256> steps_{};
};

// F14. Each input is another place, length and checksum of what came before; `make soak` takes 10^8.
TEST(Crc, IsThatOfATableForManyInputs) {
  const char* wanted = std::getenv("PENSTOCK_TEST_CRC_INPUTS");
  const std::size_t inputs = wanted == nullptr ? 200'000 : std::strtoul(wanted, nullptr, 10);
  ASSERT_GT(inputs, 0u);
  const ByTable table(kCrc32);
  const ByTable table_c(kCrc32c);
  std::mt19937 random(14);
  std::vector<std::byte> bytes(4096);
  for (std::byte& byte : bytes)
    byte = static_cast<std::byte>(random());
  std::uint32_t before = 0;
  std::uint32_t before_c = 0;
  for (std::size_t input = 0; input < inputs; ++input) {
    const auto dice = static_cast<std::uint32_t>(random());
    const std::size_t size = dice % 32 == 0 ? dice / 32 % 1024 : dice / 32 % 24;
    const auto part = std::span(bytes).subspan(dice / 1024 % (bytes.size() - size), size);
    const std::uint32_t sum = crc32(part, before);
    const std::uint32_t sum_c = crc32c(part, before_c);
    ASSERT_EQ(sum, table(part, before)) << "input " << input;
    ASSERT_EQ(sum_c, table_c(part, before_c)) << "input " << input;
    before = sum ^ dice;  // of an empty part it is `before` again
    before_c = sum_c ^ dice;
  }
}

// F14
TEST(Crc, OfPiecesIsThatOfTheWhole) {
  const bool same = rc::check("any cut, any bytes before", [] {
    const auto text = *rc::gen::arbitrary<std::string>();
    const auto before = *rc::gen::arbitrary<std::uint32_t>();
    const auto cut = *rc::gen::inRange<std::size_t>(0, text.size() + 1);
    const auto whole = bytes_of(text);
    RC_ASSERT(crc32(whole, before) == by_definition(kCrc32, whole, before));
    RC_ASSERT(crc32c(whole, before) == by_definition(kCrc32c, whole, before));
    RC_ASSERT(crc32(whole.subspan(cut), crc32(whole.first(cut), before)) == crc32(whole, before));
    RC_ASSERT(crc32c(whole.subspan(cut), crc32c(whole.first(cut), before)) ==
              crc32c(whole, before));
  });
  EXPECT_TRUE(same);
}

}  // namespace
}  // namespace penstock::test

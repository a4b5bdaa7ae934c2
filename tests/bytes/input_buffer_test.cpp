#include "penstock/bytes/input_buffer.h"

#include <cstdint>
#include <new>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "failing_allocation.h"
#include "gtest/gtest.h"
#include "rapidcheck.h"
#include "rapidcheck/gtest.h"

namespace penstock {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string text_of(std::span<const std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

/// One receive as a backend does it: the memory is gone once the rest has been kept.
template <class Callback>
void receive(InputBuffer& in, std::string_view text, Callback callback) {
  const std::vector<char> scratch(text.begin(), text.end());
  in.lend(std::as_bytes(std::span(scratch)));
  callback(in);
  in.keep_rest();
}

void receive(InputBuffer& in, std::string_view text) {
  receive(in, text, [](InputBuffer&) {});
}

constexpr std::string_view kAlphabet = "abcdefghijklmnopqrstuvwx";

TEST(InputBuffer, without_input_is_empty_and_owns_nothing) {
  InputBuffer in;
  EXPECT_TRUE(in.empty());
  EXPECT_EQ(in.size(), 0U);
  EXPECT_EQ(in.text(), "");
  EXPECT_EQ(in.take().size(), 0U);
  EXPECT_EQ(in.find('x'), std::nullopt);
  EXPECT_EQ(in.read_u8(), std::nullopt);
  in.lend({});
  in.keep_rest();
  EXPECT_EQ(in.charge(), 0U);
}

TEST(InputBuffer, lends_received_bytes_without_copying_them) {
  InputBuffer in;
  const std::string received = "hello";
  in.lend(bytes_of(received));
  EXPECT_EQ(static_cast<const void*>(in.peek().data()), received.data());
  EXPECT_EQ(in.charge(), 0U);
  EXPECT_EQ(in.kept(), 0U);
  in.consume(5);
  in.keep_rest();
  EXPECT_EQ(in.charge(), 0U);
}

TEST(InputBuffer, keeps_unread_bytes_and_offers_them_in_front_of_the_next) {
  InputBuffer in;
  receive(in, "GET / HT", [](InputBuffer& input) { input.consume(4); });
  EXPECT_EQ(in.text(), "/ HT");
  EXPECT_EQ(in.kept(), 4U);
  EXPECT_GT(in.charge(), 0U);
  receive(in, "TP\r\n", [](InputBuffer& input) { EXPECT_EQ(input.text(), "/ HTTP\r\n"); });
  EXPECT_EQ(in.kept(), 8U);
}

TEST(InputBuffer, frees_its_storage_as_soon_as_all_is_read) {
  InputBuffer in;
  receive(in, "abc");
  EXPECT_GT(in.charge(), 0U);
  receive(in, "def", [](InputBuffer& input) { input.consume(6); });
  EXPECT_TRUE(in.empty());
  EXPECT_EQ(in.charge(), 0U);
  receive(in, "ghi", [](InputBuffer& input) { EXPECT_EQ(input.text(), "ghi"); });
}

TEST(InputBuffer, bytes_taken_stay_valid_until_the_rest_is_kept) {
  InputBuffer in;
  receive(in, "abc");
  receive(in, "defgh", [](InputBuffer& input) {
    const std::span<const std::byte> first = input.take(2);
    const std::span<const std::byte> all = input.take();
    EXPECT_TRUE(input.empty());
    EXPECT_EQ(text_of(first), "ab");
    EXPECT_EQ(text_of(all), "cdefgh");
  });
  EXPECT_EQ(in.charge(), 0U);
}

TEST(InputBuffer, can_be_read_again_without_new_bytes) {
  InputBuffer in;
  receive(in, "abcdef");
  EXPECT_EQ(text_of(in.take(3)), "abc");
  in.keep_rest();
  EXPECT_EQ(in.text(), "def");
  EXPECT_EQ(text_of(in.take()), "def");
  in.keep_rest();
  EXPECT_EQ(in.charge(), 0U);
}

TEST(InputBuffer, discard_drops_a_view_and_kept_bytes_alike) {
  InputBuffer in;
  in.lend(bytes_of("abc"));
  in.discard();
  EXPECT_TRUE(in.empty());
  receive(in, "abc");
  in.discard();
  EXPECT_TRUE(in.empty());
  EXPECT_EQ(in.charge(), 0U);
  receive(in, "x");
  EXPECT_EQ(in.text(), "x");
}

TEST(InputBuffer, reads_numbers_in_both_byte_orders) {
  using namespace std::string_view_literals;
  InputBuffer in;
  receive(in, "\x01\x02\x03\x04\x05\x06\x07\xf8"sv, [](InputBuffer& input) {
    EXPECT_EQ(input.peek_u8(), 0x01U);
    EXPECT_EQ(input.peek_u16(), 0x0102U);
    EXPECT_EQ(input.peek_u32(), 0x01020304U);
    EXPECT_EQ(input.peek_u64(), 0x01020304050607f8U);
    EXPECT_EQ(input.peek_u16_le(), 0x0201U);
    EXPECT_EQ(input.peek_u32_le(), 0x04030201U);
    EXPECT_EQ(input.peek_u64_le(), 0xf807060504030201U);
    EXPECT_EQ(input.size(), 8U);
    EXPECT_EQ(input.read_u8(), 0x01U);
    EXPECT_EQ(input.read_u16(), 0x0203U);
    EXPECT_EQ(input.read_u32_le(), 0x07060504U);
    EXPECT_EQ(input.read_u16(), std::nullopt);
    EXPECT_EQ(input.read_u8(), 0xf8U);
    EXPECT_EQ(input.read_u8(), std::nullopt);
  });
  receive(
      in,
      "\x01\x02\x03\x04\x05\x06\x07\xf8\x01\x02\x03\x04\x01\x02\x01\x02\x03\x04\x05\x06\x07\xf8"sv,
      [](InputBuffer& input) {
        EXPECT_EQ(input.read_u64(), 0x01020304050607f8U);
        EXPECT_EQ(input.read_u32(), 0x01020304U);
        EXPECT_EQ(input.read_u16_le(), 0x0201U);
        EXPECT_EQ(input.read_u64_le(), 0xf807060504030201U);
      });
}

TEST(InputBuffer, too_few_bytes_for_a_number_are_left_where_they_are) {
  InputBuffer in;
  receive(in, "abc");
  EXPECT_EQ(in.peek_u32(), std::nullopt);
  EXPECT_EQ(in.read_u32(), std::nullopt);
  EXPECT_EQ(in.read_u64_le(), std::nullopt);
  EXPECT_EQ(in.text(), "abc");
}

TEST(InputBuffer, finds_bytes_and_text_from_an_offset) {
  InputBuffer in;
  receive(in, "xxab\r\ncd\r\n");
  in.consume(2);
  EXPECT_EQ(in.find('b'), 1U);
  EXPECT_EQ(in.find(std::byte{'c'}), 4U);
  EXPECT_EQ(in.find("\r\n"), 2U);
  EXPECT_EQ(in.find("\r\n", 3), 6U);
  EXPECT_EQ(in.find('x'), std::nullopt);
  EXPECT_EQ(in.find("\n\n"), std::nullopt);
  EXPECT_EQ(in.find('a', 1000), std::nullopt);
  EXPECT_EQ(in.find("a", 1000), std::nullopt);
}

TEST(InputBuffer, finds_a_byte_with_the_highest_bit_set) {
  InputBuffer in;
  receive(in, "ab\xff");
  EXPECT_EQ(in.find(std::byte{0xff}), 2U);
}

TEST(InputBuffer, copies_into_a_string) {
  InputBuffer in;
  receive(in, "hello world");
  EXPECT_EQ(in.take_string(6), "hello ");
  EXPECT_EQ(in.take_string(), "world");
  EXPECT_EQ(in.take_string(), "");
}

TEST(InputBufferDeathTest, no_more_can_be_consumed_than_there_is) {
  InputBuffer in;
  receive(in, "abc");
  EXPECT_DEATH(in.consume(4), "more consumed");
  EXPECT_DEATH(static_cast<void>(in.take(4)), "more consumed");
  EXPECT_DEATH(static_cast<void>(in.take_string(4)), "more taken");
}

TEST(InputBufferDeathTest, the_rest_is_kept_between_two_lent_views) {
  InputBuffer in;
  in.lend(bytes_of("abc"));
  EXPECT_DEATH(in.lend(bytes_of("def")), "keep_rest");
  in.discard();
}

TEST(InputBuffer, without_memory_new_bytes_are_refused_and_old_ones_unharmed) {
  InputBuffer in;
  receive(in, "old");
  const std::string large(10'000, 'n');
  {
    const test::FailingAllocation failing;
    EXPECT_THROW(in.lend(bytes_of(large)), std::bad_alloc);
    EXPECT_TRUE(failing.happened());
  }
  EXPECT_EQ(in.text(), "old");
  receive(in, large);
  EXPECT_EQ(in.text(), "old" + large);
}

TEST(InputBuffer, without_memory_a_view_cannot_be_kept_but_is_still_there) {
  InputBuffer in;
  in.lend(bytes_of("abc"));
  {
    const test::FailingAllocation failing;
    EXPECT_THROW(in.keep_rest(), std::bad_alloc);
    EXPECT_TRUE(failing.happened());
  }
  EXPECT_EQ(in.text(), "abc");
  EXPECT_EQ(in.charge(), 0U);
  in.discard();
  EXPECT_TRUE(in.empty());
}

TEST(InputBuffer, without_memory_to_shrink_keeps_the_large_storage) {
  InputBuffer in;
  receive(in, std::string(100'000, 'x'));
  const std::size_t charge = in.charge();
  in.consume(99'000);
  {
    const test::FailingAllocation failing;
    in.keep_rest();
    EXPECT_TRUE(failing.happened());
  }
  EXPECT_EQ(in.charge(), charge);
  EXPECT_EQ(in.text(), std::string(1000, 'x'));
  in.keep_rest();
  EXPECT_LE(in.charge(), 2 * in.size() + 4096);
}

TEST(InputBuffer, a_large_message_in_small_pieces_is_moved_a_bounded_number_of_times) {
  InputBuffer in;
  const std::string piece(1000, 'p');
  const std::size_t before = test::allocations();
  for (int i = 0; i < 1000; ++i) {
    in.lend(bytes_of(piece));
    in.keep_rest();
  }
  EXPECT_EQ(in.size(), 1'000'000U);
  EXPECT_LT(test::allocations() - before, 25U);  // log 1.5 of 1,000, and a few.
}

TEST(InputBuffer, a_long_backlog_read_in_small_steps_is_moved_a_bounded_number_of_times) {
  InputBuffer in;
  receive(in, std::string(1'000'000, 'b'));
  const std::size_t before = test::allocations();
  for (int i = 0; i < 1000; ++i) {
    in.consume(900);
    in.lend(bytes_of("0123456789"));
    in.keep_rest();
    ASSERT_LE(in.charge(), 2 * in.size() + 4096);
  }
  EXPECT_EQ(in.size(), 110'000U);
  EXPECT_LT(test::allocations() - before, 25U);
}

TEST(InputBuffer, every_split_into_up_to_four_pieces_gives_the_same_bytes_in_order) {
  std::mt19937 random(20);
  for (std::size_t a = 0; a <= kAlphabet.size(); ++a) {
    for (std::size_t b = a; b <= kAlphabet.size(); ++b) {
      for (std::size_t c = b; c <= kAlphabet.size(); ++c) {
        for (int pattern = 0; pattern < 4; ++pattern) {
          InputBuffer in;
          std::string seen;
          const auto read_some = [&](InputBuffer& input) {
            seen += text_of(input.take(random() % (input.size() + 1)));
          };
          receive(in, kAlphabet.substr(0, a), read_some);
          receive(in, kAlphabet.substr(a, b - a), read_some);
          receive(in, kAlphabet.substr(b, c - b), read_some);
          receive(in, kAlphabet.substr(c), read_some);
          ASSERT_EQ(seen + std::string(in.text()), kAlphabet);
          ASSERT_EQ(in.kept(), in.size());
        }
      }
    }
  }
}

TEST(InputBuffer, every_split_of_twelve_bytes_gives_the_same_bytes_in_order) {
  const std::string_view stream = kAlphabet.substr(0, 12);
  for (std::uint32_t cuts = 0; cuts < 1U << 11U; ++cuts) {
    InputBuffer in;
    std::string seen;
    std::size_t begin = 0;
    for (std::size_t end = 1; end <= stream.size(); ++end) {
      if (end < stream.size() && (cuts >> (end - 1) & 1U) == 0) continue;
      receive(in, stream.substr(begin, end - begin), [&](InputBuffer& input) {
        // A codec of three-byte frames.
        while (input.size() >= 3)
          seen += text_of(input.take(3));
      });
      ASSERT_LT(in.kept(), 3U);
      begin = end;
    }
    ASSERT_EQ(seen, stream) << "cuts " << cuts;
  }
}

RC_GTEST_PROP(InputBuffer, behaves_like_a_string_whatever_is_lent_and_consumed,
              (const std::vector<std::pair<std::uint16_t, std::uint16_t>>& steps)) {
  InputBuffer in;
  std::string model;
  std::uint8_t next = 0;
  for (const auto& [arrived, consumed] : steps) {
    std::string piece(arrived % 20'000U, '\0');
    for (char& byte : piece)
      byte = static_cast<char>(next++);
    model += piece;
    receive(in, piece, [&, wanted = consumed](InputBuffer& input) {
      RC_ASSERT(input.text() == model);
      const std::size_t n = wanted % (input.size() + 1);
      RC_ASSERT(text_of(input.take(n)) == model.substr(0, n));
      model.erase(0, n);
    });
    RC_ASSERT(in.text() == model);
    RC_ASSERT(in.kept() == model.size());
    RC_ASSERT(in.charge() <= 2 * model.size() + 4096);
    RC_ASSERT((in.charge() == 0) == model.empty());
  }
}

}  // namespace
}  // namespace penstock

// Lines and other delimited frames (F2, F5, F6, F12), beside splits_test.cpp.

#include "penstock/frame/delimiter_codec.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <string>
#include <string_view>
#include <vector>

#include "support/frame_feed.h"

namespace penstock::test {
namespace {

using namespace std::string_literals;

template <FrameCodec Codec>
Decoded<std::string_view> decode(const Codec& codec, std::string_view text) {
  std::size_t progress = 0;
  return codec.decode(bytes_of(text), progress);
}

// F12
TEST(LineCodecTest, EndsALineAtEitherEndAndKeepsEveryOtherByte) {
  struct Case {
    std::string text;
    std::string line;
    std::size_t size;
  };
  for (const Case& each : {Case{"\n", "", 1}, Case{"\r\n", "", 2}, Case{"a\nb\n", "a", 2},
                           Case{"a\r\n", "a", 3}, Case{"\r\r\n", "\r", 3}, Case{"\ra\n", "\ra", 3},
                           Case{"a\rb\r\nc", "a\rb", 5}, Case{"\0\xFF\n"s, "\0\xFF"s, 3}}) {
    const auto found = decode(LineCodec(), each.text);
    ASSERT_EQ(found.status, DecodeStatus::complete) << each.text;
    EXPECT_EQ(found.frame, each.line);
    EXPECT_EQ(found.size, each.size);
  }
  for (const std::string_view text : {"", "a", "\r", "a\r", "\ra"}) {
    EXPECT_EQ(decode(LineCodec(), text).status, DecodeStatus::incomplete) << text;
  }
}

// F5, F6, F12
TEST(LineCodecTest, CountsTheLineAndNotItsEnd) {
  const LineCodec codec({.line_max = 3});
  EXPECT_EQ(codec.frame_max(), 5u);
  EXPECT_EQ(decode(codec, "abc\n").frame, "abc");
  EXPECT_EQ(decode(codec, "abc\r\n").frame, "abc");
  EXPECT_EQ(decode(codec, "ab\r\r\n").frame, "ab\r");
  for (const std::string_view text : {"abcd\n", "abcd\r\n", "abc\r\r\n", "abcde", "abcdefgh\n"}) {
    const auto found = decode(codec, text);
    EXPECT_EQ(found.status, DecodeStatus::refused) << text;
    EXPECT_EQ(found.error, FrameError::too_long);
  }
  EXPECT_EQ(decode(codec, "abc\r").status, DecodeStatus::incomplete);
  const LineCodec only_empty({.line_max = 0});
  EXPECT_EQ(decode(only_empty, "\r\n").status, DecodeStatus::complete);
  EXPECT_EQ(decode(only_empty, "a\n").error, FrameError::too_long);
}

TEST(LineCodecTest, WritesTheEndThatItIsToldTo) {
  EXPECT_EQ(LineCodec().encode("abc")->to_string(), "abc\n");
  EXPECT_EQ(LineCodec({.end = LineEnd::crlf}).encode("abc")->to_string(), "abc\r\n");
  EXPECT_EQ(LineCodec().encode("")->to_string(), "\n");
}

TEST(LineCodecTest, SendsNoLineThatWouldNotComeBack) {
  EXPECT_EQ(LineCodec().encode("a\nb").error(), FrameError::has_delimiter);
  EXPECT_EQ(LineCodec().encode("a\r").error(), FrameError::has_delimiter);
  EXPECT_EQ(LineCodec({.end = LineEnd::crlf}).encode("a\r")->to_string(), "a\r\r\n");
  EXPECT_EQ(LineCodec({.line_max = 3}).encode("abcd").error(), FrameError::too_long);
}

TEST(LineCodecTest, GivesBackWhateverItSends) {
  const bool same = rc::check("lines", [] {
    const auto line = *rc::gen::container<std::string>(
        rc::gen::oneOf(rc::gen::element('\r', '\n', 'a'), rc::gen::arbitrary<char>()));
    for (const LineEnd end : {LineEnd::lf, LineEnd::crlf}) {
      const LineCodec codec({.line_max = 20, .end = end});
      if (codec.encode(line)) RC_ASSERT(round_trip(codec, line).empty());
    }
  });
  EXPECT_TRUE(same);
}

// F12
TEST(DelimiterCodecTest, EndsAFrameAtTheFirstOccurrence) {
  const DelimiterCodec codec({.delimiter = "\r\n\r\n"});
  EXPECT_EQ(decode(codec, "a: b\r\n\r\nrest").frame, "a: b");
  EXPECT_EQ(decode(codec, "\r\n\r\n").frame, "");
  EXPECT_EQ(decode(codec, "\n\r\n\r\n").frame, "\n");
  EXPECT_EQ(decode(codec, "a\r\n\r").status, DecodeStatus::incomplete);
  const DelimiterCodec zero({.delimiter = std::string_view("\0", 1)});
  EXPECT_EQ(decode(zero, "ab\0c"s).frame, "ab");
}

// F5, F6
TEST(DelimiterCodecTest, CountsTheContentAndNotTheDelimiter) {
  const DelimiterCodec codec({.delimiter = "||", .content_max = 3});
  EXPECT_EQ(codec.frame_max(), 5u);
  EXPECT_EQ(decode(codec, "abc||").frame, "abc");
  EXPECT_EQ(decode(codec, "abc|").status, DecodeStatus::incomplete);
  EXPECT_EQ(decode(codec, "abcd||").error, FrameError::too_long);
  EXPECT_EQ(decode(codec, "abcd|").error, FrameError::too_long);
}

TEST(DelimiterCodecTest, SendsNoContentInWhichOrWithWhichItsDelimiterIsFoundTooEarly) {
  const DelimiterCodec codec({.delimiter = "abab"});
  EXPECT_EQ(codec.encode("x")->to_string(), "xabab");
  EXPECT_EQ(codec.encode("aba")->to_string(), "abaabab");
  for (const std::string_view content : {"abab", "xababx", "ab", "xab"}) {
    EXPECT_EQ(codec.encode(content).error(), FrameError::has_delimiter) << content;
  }
  EXPECT_EQ(DelimiterCodec({.delimiter = "aa"}).encode("xa").error(), FrameError::has_delimiter);
}

TEST(DelimiterCodecTest, SendsExactlyWhatComesBack) {
  const bool same = rc::check("letters a and b", [] {
    const auto letters = rc::gen::container<std::string>(rc::gen::element('a', 'b'));
    const auto delimiter = *rc::gen::suchThat(
        rc::gen::resize(6, letters), [](const std::string& text) { return !text.empty(); });
    const auto content = *rc::gen::resize(12, letters);
    const DelimiterCodec codec({.delimiter = delimiter, .content_max = 12});
    // The content comes back if the delimiter is found behind it and not before.
    const bool comes_back = (content + delimiter).find(delimiter) == content.size();
    RC_ASSERT(codec.encode(content).has_value() == comes_back);
    if (comes_back) RC_ASSERT(round_trip(codec, content).empty());
  });
  EXPECT_TRUE(same);
}

// F2. What a look must not read again is made poisonous: with a delimiter in it, a second search
// would find one.
template <FrameCodec Codec>
void search_each_byte_once(const Codec& codec, std::string_view delimiter, std::size_t overlap) {
  const std::size_t size = codec.frame_max();
  std::string input(size - delimiter.size(), 'x');
  input += delimiter;
  std::string seen;  // as much as has arrived, poisoned
  std::size_t progress = 0;
  std::size_t touched = 0;
  for (std::size_t arrived = 0; arrived < size; ++arrived) {
    seen += input[arrived];
    const std::size_t before = progress;
    const auto found = codec.decode(bytes_of(seen), progress);
    touched += seen.size() - before;
    if (arrived + 1 < size) {
      ASSERT_EQ(found.status, DecodeStatus::incomplete) << "searched again what it had searched";
      for (std::size_t i = before; i < progress; ++i)
        seen[i] = delimiter[i % delimiter.size()];
    } else {
      ASSERT_EQ(found.status, DecodeStatus::complete);
      EXPECT_EQ(found.size, size);
    }
  }
  EXPECT_LE(touched, size * (1 + overlap));
}

// F2
TEST(LineCodecTest, AMaximalLineInSingleBytesIsSearchedOnce) {
  search_each_byte_once(LineCodec({.line_max = 64 * 1024}), "\r\n", 0);
}

// F2
TEST(DelimiterCodecTest, AMaximalFrameInSingleBytesIsSearchedOnce) {
  search_each_byte_once(DelimiterCodec({.delimiter = "<>", .content_max = 64 * 1024}), "<>", 1);
  search_each_byte_once(DelimiterCodec({.delimiter = "<--->", .content_max = 64 * 1024}), "<--->",
                        4);
}

// F2: a firehose of short lines in one piece; what is behind the first line is not looked at.
TEST(LineCodecTest, LooksNoFurtherThanTheLongestFrame) {
  const LineCodec codec({.line_max = 10});
  std::string text(1000, 'x');
  text[500] = '\n';
  std::size_t progress = 0;
  EXPECT_EQ(codec.decode(bytes_of(text), progress).status, DecodeStatus::refused);
  EXPECT_LE(progress, codec.frame_max());
}

TEST(DelimiterCodecDeathTest, RefusesSenselessOptions) {
  EXPECT_DEATH(DelimiterCodec({.delimiter = ""}), "1 to 32 bytes");
  EXPECT_DEATH(DelimiterCodec({.delimiter = "123456789012345678901234567890123"}), "1 to 32 bytes");
  EXPECT_DEATH(DelimiterCodec({.delimiter = "x", .content_max = ~std::size_t{0}}), "content_max");
  EXPECT_DEATH(LineCodec({.line_max = ~std::size_t{0}}), "line_max");
}

}  // namespace
}  // namespace penstock::test

// Frames with a length field, packets among them (F2, F4 to F8, F13), beside splits_test.cpp.

#include "penstock/frame/length_field_codec.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "penstock/frame/crc.h"
#include "penstock/frame/packet_codec.h"
#include "support/frame_feed.h"

namespace penstock::test {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;

template <FrameCodec Codec>
Decoded<typename Codec::Frame> decode(const Codec& codec, std::string_view text) {
  std::size_t progress = 0;
  return codec.decode(bytes_of(text), progress);
}
template <FrameCodec Codec>
FrameError refusal(const Codec& codec, std::string_view text) {
  const auto found = decode(codec, text);
  EXPECT_EQ(found.status, DecodeStatus::refused);
  return found.error;
}
// A number in network order.
std::string number(std::uint64_t value, std::size_t width) {
  std::string text;
  for (std::size_t i = width; i-- > 0;)
    text += static_cast<char>(value >> (8 * i));
  return text;
}
std::size_t width_of(LengthField field) { return static_cast<std::size_t>(field); }
constexpr LengthField kFixed[] = {LengthField::u8, LengthField::u16, LengthField::u24,
                                  LengthField::u32, LengthField::u64};

// -- The layouts of other frameworks' documentation --

TEST(LengthFieldCodecTest, TwoBytesAtTheBeginning) {
  const LengthFieldCodec codec({.field = LengthField::u16});
  const auto found = decode(codec, "\0\xCHELLO, WORLD"sv);
  ASSERT_EQ(found.status, DecodeStatus::complete);
  EXPECT_EQ(text_of(found.frame.header), "\0\xC"s);
  EXPECT_EQ(text_of(found.frame.body), "HELLO, WORLD");
  EXPECT_EQ(text_of(found.frame.header_and_body()), "\0\xCHELLO, WORLD"s);
  EXPECT_EQ(found.size, 14u);
}

TEST(LengthFieldCodecTest, TheLengthCountsTheWholeFrame) {
  const LengthFieldCodec codec({.field = LengthField::u16, .counts = LengthCounts::whole});
  EXPECT_EQ(text_of(decode(codec, "\0\xEHELLO, WORLD"s).frame.body), "HELLO, WORLD");
}

TEST(LengthFieldCodecTest, TheLengthStandsInTheMiddleOfTheHeader) {
  const LengthFieldCodec behind({.field = LengthField::u32, .before = 2});
  EXPECT_EQ(text_of(decode(behind, "\xCA\xFE\0\0\0\5HELLO"s).frame.body), "HELLO");
  const LengthFieldCodec middle(
      {.field = LengthField::u16, .before = 1, .behind = 1, .counts = LengthCounts::body});
  const auto found = decode(middle, "\xCA\0\5\xFEHELLO"sv);
  EXPECT_EQ(text_of(found.frame.header), "\xCA\0\5\xFE"s);
  EXPECT_EQ(text_of(found.frame.body), "HELLO");
  // The same, with a length that counts what is behind it, and one that an adjustment corrects.
  const LengthFieldCodec rest({.field = LengthField::u16, .before = 1, .behind = 1});
  EXPECT_EQ(text_of(decode(rest, "\xCA\0\6\xFEHELLO"s).frame.body), "HELLO");
  const LengthFieldCodec whole(
      {.field = LengthField::u16, .before = 1, .behind = 1, .adjustment = -3});
  EXPECT_EQ(text_of(decode(whole, "\xCA\0\x9\xFEHELLO"s).frame.body), "HELLO");
}

TEST(LengthFieldCodecTest, EitherByteOrder) {
  for (const LengthField field : kFixed) {
    const LengthFieldCodec big({.field = field});
    const LengthFieldCodec little({.field = field, .byte_order = std::endian::little});
    const std::string length = number(3, width_of(field));
    EXPECT_EQ(text_of(decode(big, length + "abc").frame.body), "abc");
    EXPECT_EQ(
        text_of(decode(little, std::string(length.rbegin(), length.rend()) + "abc").frame.body),
        "abc");
  }
}

// -- Limits of the length --

// F4
TEST(LengthFieldCodecTest, ALengthOfNothingIsAnEmptyFrame) {
  for (const LengthField field : kFixed) {
    const LengthFieldCodec codec({.field = field});
    const auto found = decode(codec, number(0, width_of(field)));
    ASSERT_EQ(found.status, DecodeStatus::complete);
    EXPECT_TRUE(found.frame.body.empty());
    EXPECT_EQ(found.size, width_of(field));
  }
  // Where the length counts itself, 0 is less than there is.
  const LengthFieldCodec whole({.counts = LengthCounts::whole});
  EXPECT_EQ(refusal(whole, number(0, 4)), FrameError::bad_length);
  EXPECT_EQ(refusal(whole, number(3, 4)), FrameError::bad_length);
  EXPECT_EQ(decode(whole, number(4, 4)).status, DecodeStatus::complete);
}

// F5, F6: judged by the header alone.
TEST(LengthFieldCodecTest, TheLongestFrameIsTakenAndOneMoreIsRefusedByItsHeader) {
  for (const LengthField field :
       {LengthField::u16, LengthField::u24, LengthField::u32, LengthField::u64}) {
    for (const LengthCounts counts :
         {LengthCounts::rest, LengthCounts::body, LengthCounts::whole}) {
      const std::size_t width = width_of(field);
      const LengthFieldCodec codec(
          {.field = field, .behind = 2, .counts = counts, .frame_max = 100});
      EXPECT_EQ(codec.frame_max(), 100u);
      const std::size_t longest = counts == LengthCounts::whole  ? 100
                                  : counts == LengthCounts::rest ? 100 - width
                                                                 : 100 - width - 2;
      EXPECT_EQ(decode(codec, number(longest, width)).status, DecodeStatus::incomplete);
      const auto found = decode(codec, number(longest, width) + std::string(100 - width, 'x'));
      EXPECT_EQ(found.status, DecodeStatus::complete);
      EXPECT_EQ(found.size, 100u);
      EXPECT_EQ(refusal(codec, number(longest + 1, width)), FrameError::too_long);
    }
  }
}

TEST(LengthFieldCodecTest, NoFrameIsLongerThanItsLengthCanTell) {
  EXPECT_EQ(LengthFieldCodec({.field = LengthField::u8}).frame_max(), 256u);
  EXPECT_EQ(LengthFieldCodec({.field = LengthField::u16}).frame_max(), 65537u);
  EXPECT_EQ(
      LengthFieldCodec({.field = LengthField::u16, .counts = LengthCounts::whole}).frame_max(),
      65535u);
  EXPECT_EQ(LengthFieldCodec().frame_max(), std::size_t{1} << 20);
  EXPECT_EQ(LengthFieldCodec({.field = LengthField::u8, .adjustment = 10}).frame_max(), 266u);
}

// F7, S6: with each way to count, and adjustments that would make sums overflow.
TEST(LengthFieldCodecTest, LengthsAtTheEdgesOfEveryTypeAreRefused) {
  constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();
  for (const LengthCounts counts : {LengthCounts::rest, LengthCounts::body, LengthCounts::whole}) {
    for (const std::int64_t adjustment :
         {std::int64_t{0}, std::int64_t{1000}, std::int64_t{-1000}}) {
      const LengthFieldCodec u32(
          {.before = 3, .behind = 4, .counts = counts, .adjustment = adjustment});
      const LengthFieldCodec u64({.field = LengthField::u64,
                                  .byte_order = std::endian::big,
                                  .before = 3,
                                  .behind = 4,
                                  .counts = counts,
                                  .adjustment = adjustment});
      for (const std::uint64_t length : {0xFFFFFFFFul, 0xFFFFFFFEul, 0xFFFFFFF0ul}) {
        EXPECT_EQ(refusal(u32, "abc" + number(length, 4)), FrameError::too_long);
      }
      for (const std::uint64_t length :
           {std::uint64_t{1} << 32, std::uint64_t{1} << 62, (std::uint64_t{1} << 63) - 1,
            std::uint64_t{1} << 63, (std::uint64_t{1} << 63) + 1, kMax - 15, kMax - 1, kMax}) {
        EXPECT_EQ(refusal(u64, "abc" + number(length, 8)), FrameError::too_long) << length;
      }
    }
  }
  const LengthFieldCodec plain;
  for (const std::uint64_t length : {0x7FFFFFFFul, 0x80000000ul, 0x100001ul}) {
    EXPECT_EQ(refusal(plain, number(length, 4)), FrameError::too_long);
  }
  // An adjustment that makes a large number small is no overflow.
  const LengthFieldCodec shifted({.adjustment = -(std::int64_t{1} << 31)});
  EXPECT_EQ(refusal(shifted, number(0x7FFFFFFF, 4)), FrameError::bad_length);
  EXPECT_EQ(text_of(decode(shifted, number(0x80000003, 4) + "abc").frame.body), "abc");
}

// F7: against arithmetic that cannot overflow.
TEST(LengthFieldCodecTest, AnyLengthIsJudgedAsByArithmeticWithoutLimits) {
  const bool same = rc::check("options and lengths", [] {
    const auto field =
        *rc::gen::elementOf(std::vector<LengthField>(std::begin(kFixed), std::end(kFixed)));
    const std::size_t width = width_of(field);
    const auto before = *rc::gen::inRange<std::size_t>(0, 33);
    const auto behind = *rc::gen::inRange<std::size_t>(0, 17);
    const auto counts =
        *rc::gen::element(LengthCounts::rest, LengthCounts::body, LengthCounts::whole);
    const auto adjustment = *rc::gen::inRange<std::int64_t>(-120, 100);
    const std::size_t frame_max = 300;
    const LengthFieldCodec codec({.field = field,
                                  .before = before,
                                  .behind = behind,
                                  .counts = counts,
                                  .adjustment = adjustment,
                                  .frame_max = frame_max});
    const auto bits = *rc::gen::inRange<std::size_t>(0, 8 * width + 1);
    std::uint64_t length = *rc::gen::arbitrary<std::uint64_t>();
    length = bits == 0 ? 0 : length >> (64 - bits);
    // long double has 64 bits of mantissa: sums with small numbers are exact enough to compare.
    auto body = static_cast<long double>(length) + static_cast<long double>(adjustment);
    if (counts == LengthCounts::rest) body -= static_cast<long double>(behind);
    if (counts == LengthCounts::whole) body -= static_cast<long double>(before + width + behind);
    const long double whole = body + static_cast<long double>(before + width + behind);

    const auto found = decode(codec, std::string(before, 'b') + number(length, width));
    if (whole > static_cast<long double>(frame_max)) {
      RC_ASSERT(found.status == DecodeStatus::refused && found.error == FrameError::too_long);
    } else if (body < 0) {
      RC_ASSERT(found.status == DecodeStatus::refused && found.error == FrameError::bad_length);
    } else if (body == 0 && behind == 0) {
      RC_ASSERT(found.status == DecodeStatus::complete);
    } else {
      RC_ASSERT(found.status == DecodeStatus::incomplete);
      const auto size = static_cast<std::size_t>(whole);
      const std::string wire = std::string(before, 'b') + number(length, width) +
                               std::string(size - before - width, 'x');
      const auto all = decode(codec, wire);
      RC_ASSERT(all.status == DecodeStatus::complete && all.size == size);
      RC_ASSERT(round_trip(codec, all.frame).empty());
    }
  });
  EXPECT_TRUE(same);
}

// F8, S6
TEST(LengthFieldCodecTest, AnAnnouncedLengthCostsNoMemory) {
  const LengthFieldCodec codec({.frame_max = 32 << 20});
  FrameFeed<LengthFieldCodec> feed(codec);
  feed.feed(bytes_of(number(16 << 20, 4)));
  feed.feed(bytes_of("hello"));
  EXPECT_EQ(feed.violation(), "");
  EXPECT_FALSE(feed.log().error);
  EXPECT_LT(feed.charge_max(), 4096u);
}

// F2. Once the length is known, nothing is looked at until the frame is whole: what has been seen is
// made to say something else, and the answer does not change.
template <FrameCodec Codec>
void look_at_the_header_only(const Codec& codec, const std::string& wire, std::size_t header) {
  std::size_t progress = 0;
  std::size_t touched = 0;
  std::string seen;
  for (std::size_t arrived = 1; arrived < wire.size(); ++arrived) {
    seen += arrived <= header ? wire[arrived - 1] : '\xEE';
    if (arrived == header + 1) seen.assign(arrived, '\xEE');
    const bool skipped = arrived < progress;
    ASSERT_EQ(codec.decode(bytes_of(seen), progress).status, DecodeStatus::incomplete) << arrived;
    if (!skipped) touched += arrived;
  }
  EXPECT_LE(touched, header * (header + 1)) << "header bytes, once for each piece of the header";
  EXPECT_EQ(codec.decode(bytes_of(wire), progress).status, DecodeStatus::complete);
}

// F2
TEST(LengthFieldCodecTest, AMaximalFrameInSingleBytesIsLookedAtOnce) {
  const LengthFieldCodec crc({.field = LengthField::u32,
                              .magic = "MAGI",
                              .before = 4,
                              .checksum = Checksum::crc32c,
                              .checksum_place = ChecksumPlace::whole_trailer});
  const std::string body(crc.frame_max() - 12, 'b');
  look_at_the_header_only(crc, crc.encode({.body = bytes_of(body)})->to_string(), 8);
  const LengthFieldCodec varint({.field = LengthField::varint});
  look_at_the_header_only(
      varint, varint.encode({.body = bytes_of(std::string(100'000, 'v'))})->to_string(), 3);
}

// -- Varints --

// F13
TEST(LengthFieldCodecTest, AVarintIsReadAndWrittenAsProtocolBuffersDo) {
  const LengthFieldCodec codec({.field = LengthField::varint});
  for (const std::size_t size : {0u, 1u, 127u, 128u, 300u, 16383u, 16384u, 1'000'000u}) {
    const std::string body(size, 'v');
    const std::string wire = codec.encode({.body = bytes_of(body)})->to_string();
    const auto found = decode(codec, wire);
    ASSERT_EQ(found.status, DecodeStatus::complete) << size;
    EXPECT_EQ(found.frame.body.size(), size);
  }
  // 300 is the example of the specification.
  EXPECT_EQ(text_of(codec.encode({.body = bytes_of(std::string(300, 'v'))})->head()), "\xAC\x02");
}

// F13
TEST(LengthFieldCodecTest, AVarintThatIsNotTheShortestOrTooLargeIsRefused) {
  const LengthFieldCodec codec({.field = LengthField::varint});
  const std::string nine(9, '\xFF');
  EXPECT_EQ(refusal(codec, "\x80\0"s), FrameError::bad_varint);
  EXPECT_EQ(refusal(codec, "\xFF\x80\0"s), FrameError::bad_varint);
  EXPECT_EQ(refusal(codec, nine + "\xFF"), FrameError::bad_varint) << "an eleventh byte";
  EXPECT_EQ(refusal(codec, nine + "\x02"), FrameError::bad_varint) << "65 bits";
  EXPECT_EQ(refusal(codec, std::string(9, '\x80') + "\0"s), FrameError::bad_varint);
  EXPECT_EQ(refusal(codec, nine + "\x01"), FrameError::too_long) << "64 bits, all ones";
  EXPECT_EQ(refusal(codec, std::string(9, '\x80') + "\x01"), FrameError::too_long) << "2^63";
  EXPECT_EQ(decode(codec, nine).status, DecodeStatus::incomplete);
}

TEST(LengthFieldCodecTest, AVarintMayCountItself) {
  const LengthFieldCodec codec({.field = LengthField::varint, .counts = LengthCounts::whole});
  for (std::size_t size = 0; size < 20'000; ++size) {
    const std::string body(size, 'v');
    const auto encoded = codec.encode({.body = bytes_of(body)});
    ASSERT_TRUE(encoded.has_value()) << size;
    const auto found = decode(codec, encoded->to_string());
    ASSERT_EQ(found.status, DecodeStatus::complete) << size;
    ASSERT_EQ(found.frame.body.size(), size);
    ASSERT_EQ(found.size, encoded->size());
    if (size > 200) size += 97;
  }
}

// -- Magic and checksum --

// F9
TEST(LengthFieldCodecTest, AWrongMagicIsRefusedAtTheFirstByteThatDiffers) {
  const LengthFieldCodec codec({.field = LengthField::u8, .magic = "PSTK", .before = 6});
  EXPECT_EQ(decode(codec, "P").status, DecodeStatus::incomplete);
  EXPECT_EQ(refusal(codec, "X"), FrameError::bad_magic);
  EXPECT_EQ(refusal(codec, "PSTk"), FrameError::bad_magic);
  EXPECT_EQ(text_of(decode(codec, "PSTKab\2hi").frame.body), "hi");
}

// F9
TEST(LengthFieldCodecTest, EveryChangedByteThatAChecksumCoversIsFound) {
  for (const Checksum checksum : {Checksum::crc32, Checksum::crc32c}) {
    for (const ChecksumPlace place :
         {ChecksumPlace::header, ChecksumPlace::trailer, ChecksumPlace::whole_trailer}) {
      const LengthFieldCodec codec({.field = LengthField::u8,
                                    .before = 1,
                                    .behind = 6,
                                    .counts = LengthCounts::body,
                                    .checksum = checksum,
                                    .checksum_place = place,
                                    .checksum_at = place == ChecksumPlace::header ? 1u : 0u});
      const std::string wire =
          codec.encode({.header = bytes_of("h123456"), .body = bytes_of("body")})->to_string();
      ASSERT_EQ(decode(codec, wire).status, DecodeStatus::complete);
      for (std::size_t at = 0; at < wire.size(); ++at) {
        if (at == 1) continue;  // the length
        std::string changed = wire;
        changed[at] = static_cast<char>(changed[at] ^ 0x20);
        const bool in_header = at < 8;
        const bool is_sum = place == ChecksumPlace::header ? at >= 3 && at < 7 : at >= 12;
        const bool covered = !in_header || is_sum || place == ChecksumPlace::whole_trailer;
        EXPECT_EQ(decode(codec, changed).status,
                  covered ? DecodeStatus::refused : DecodeStatus::complete)
            << at;
        if (covered) {
          EXPECT_EQ(decode(codec, changed).error, FrameError::bad_checksum);
        }
      }
    }
  }
}

TEST(LengthFieldCodecTest, TheChecksumIsWrittenInTheByteOrderOfTheLength) {
  LengthFieldOptions options{
      .field = LengthField::u8, .counts = LengthCounts::body, .checksum = Checksum::crc32};
  const std::string sum = number(crc32(bytes_of("hi")), 4);
  EXPECT_EQ(LengthFieldCodec(options).encode({.body = bytes_of("hi")})->to_string(), "\2hi" + sum);
  options.byte_order = std::endian::little;
  EXPECT_EQ(LengthFieldCodec(options).encode({.body = bytes_of("hi")})->to_string(),
            "\2hi" + std::string(sum.rbegin(), sum.rend()));
}

// -- Encoding --

TEST(LengthFieldCodecTest, AHeaderIsGivenWithOrWithoutTheLengthBetween) {
  const LengthFieldCodec codec({.field = LengthField::u8, .magic = "M", .before = 2, .behind = 1});
  const auto wire = [&](std::string_view header) {
    return codec.encode({.header = bytes_of(header), .body = bytes_of("hi")});
  };
  EXPECT_EQ(wire("")->to_string(), "M\0\3\0hi"s);
  EXPECT_EQ(wire("xab")->to_string(), "Ma\3bhi") << "the codec writes the magic bytes";
  EXPECT_EQ(wire("xa?b")->to_string(), "Ma\3bhi");
  EXPECT_EQ(wire("xa").error(), FrameError::wrong_size);
}

TEST(LengthFieldCodecTest, ABodyThatNoLengthTellsIsNotSent) {
  const LengthFieldCodec small({.field = LengthField::u8, .frame_max = 20});
  EXPECT_TRUE(small.encode({.body = bytes_of(std::string(19, 'b'))}).has_value());
  EXPECT_EQ(small.encode({.body = bytes_of(std::string(20, 'b'))}).error(), FrameError::too_long);
  const LengthFieldCodec u8({.field = LengthField::u8});
  EXPECT_EQ(u8.encode({.body = bytes_of(std::string(256, 'b'))}).error(), FrameError::too_long);
  const LengthFieldCodec at_least_four({.field = LengthField::u8, .adjustment = 4});
  EXPECT_EQ(at_least_four.encode({.body = bytes_of("abc")}).error(), FrameError::wrong_size);
  EXPECT_EQ(at_least_four.encode({.body = bytes_of("abcd")})->to_string(), "\0abcd"s);
}

TEST(LengthFieldCodecTest, TheBodyIsLentAndNotCopied) {
  const std::string body(1000, 'b');
  const auto encoded = LengthFieldCodec().encode({.body = bytes_of(body)});
  ASSERT_TRUE(encoded.has_value());
  EXPECT_EQ(static_cast<const void*>(encoded->body().data()), body.data());
}

TEST(LengthFieldCodecDeathTest, RefusesSenselessOptions) {
  using Options = LengthFieldOptions;
  const auto make = [](const Options& options) { LengthFieldCodec codec(options); };
  EXPECT_DEATH(make({.before = 33}), "at most 32");
  EXPECT_DEATH(make({.behind = 17}), "at most 16");
  EXPECT_DEATH(make({.magic = "PSTK", .before = 3}), "magic bytes");
  EXPECT_DEATH(make({.frame_max = 3}), "no room for the header");
  EXPECT_DEATH(make({.field = LengthField::varint, .frame_max = 9}), "no room for the header");
  EXPECT_DEATH(make({.frame_max = (std::size_t{1} << 40) + 1}), "at most 2");
  EXPECT_DEATH(make({.adjustment = (std::int64_t{1} << 31) + 1}), "within");
  EXPECT_DEATH(make({.adjustment = std::int64_t{1} << 31}), "every length");
  EXPECT_DEATH(make({.field = LengthField::u8, .adjustment = -256}), "no length");
  EXPECT_DEATH(make({.behind = 4,
                     .checksum = Checksum::crc32,
                     .checksum_place = ChecksumPlace::header,
                     .checksum_at = 1}),
               "four of the bytes");
  EXPECT_DEATH(make({.checksum = Checksum::crc32, .checksum_at = 1}),
               "for a checksum in the header");
}

// -- Packets --

// R22. The bytes are those of Python's struct and zlib.
TEST(PacketCodecTest, IsLengthCodeAndChecksumInNetworkOrder) {
  const std::string wire = "\x00\x0D\x00\x07\x36\x10\xA6\x86hello"s;
  EXPECT_EQ(PacketCodec().encode({.code = 7, .body = bytes_of("hello")})->to_string(), wire);
  const std::string more = wire + "more";
  const auto found = decode(PacketCodec(), more);
  ASSERT_EQ(found.status, DecodeStatus::complete);
  EXPECT_EQ(found.frame.code, 7);
  EXPECT_EQ(text_of(found.frame.body), "hello");
  EXPECT_EQ(found.size, wire.size());
}

// R22, F4
TEST(PacketCodecTest, AnEmptyBodyIsAPacketOfEightBytes) {
  EXPECT_EQ(PacketCodec().encode({.code = 0xABCD})->to_string(), "\0\x8\xAB\xCD\0\0\0\0"s);
  EXPECT_EQ(decode(PacketCodec(), "\0\x8\xAB\xCD\0\0\0\0"s).frame.code, 0xABCD);
}

// R22, R23
TEST(PacketCodecTest, EveryWrongHeaderHasItsReason) {
  for (const std::uint64_t length : {0u, 1u, 7u}) {
    EXPECT_EQ(refusal(PacketCodec(), number(length, 2)), FrameError::bad_length) << length;
  }
  EXPECT_EQ(refusal(PacketCodec({.packet_max = 100}), number(101, 2)), FrameError::too_long);
  EXPECT_EQ(refusal(PacketCodec(), "\0\x9\0\1\0\0\0\0x"s), FrameError::bad_checksum);
  EXPECT_EQ(decode(PacketCodec(), number(65535, 2)).status, DecodeStatus::incomplete);
  const std::string body(65527, 'b');
  EXPECT_EQ(PacketCodec().encode({.body = bytes_of(body)})->size(), 65535u);
  EXPECT_EQ(PacketCodec().encode({.body = bytes_of(body + "b")}).error(), FrameError::too_long);
}

TEST(PacketCodecTest, GivesBackWhateverItSends) {
  const bool same = rc::check("packets", [] {
    const auto body = *rc::gen::arbitrary<std::string>();
    const auto code = *rc::gen::arbitrary<std::uint16_t>();
    RC_ASSERT(round_trip(PacketCodec(), Packet{.code = code, .body = bytes_of(body)}).empty());
  });
  EXPECT_TRUE(same);
}

TEST(PacketCodecDeathTest, RefusesSenselessOptions) {
  EXPECT_DEATH(PacketCodec({.packet_max = 7}), "8 to 65,535");
  EXPECT_DEATH(PacketCodec({.packet_max = 65536}), "8 to 65,535");
}

}  // namespace
}  // namespace penstock::test

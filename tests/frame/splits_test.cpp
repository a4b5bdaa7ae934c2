// Where the bytes of a stream are cut changes nothing (F1): the same frames, the same error at the
// same offset. In four ways:
//   - Every split of 13 bytes (4,096), one by one, through an input buffer.
//   - Every split of whole streams of up to 26 bytes (33,554,432), through an input buffer too. Two
//     splits that leave codec and buffer in the same state go on alike, so one of them is followed;
//     how many each stands for is counted, and the sum must be all. (Nothing so short makes the buffer
//     grow or shrink; the random splits of long streams do.)
//   - Every split of longer streams and of damaged ones, by the states of the codec alone.
//   - Random splits of long streams.
//
// `make soak` raises the 13 bytes to 24 (PENSTOCK_TEST_SPLIT_BYTES): a minute in a build that does not
// optimise, many with sanitizers.

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cstdlib>
#include <functional>
#include <map>
#include <ostream>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "penstock/frame/delimiter_codec.h"
#include "penstock/frame/fixed_size_codec.h"
#include "penstock/frame/length_field_codec.h"
#include "penstock/frame/packet_codec.h"
#include "support/frame_feed.h"

namespace penstock::test {
namespace {

using namespace std::string_literals;

std::size_t split_bytes() {
  const char* wanted = std::getenv("PENSTOCK_TEST_SPLIT_BYTES");
  return wanted == nullptr ? 13 : std::strtoul(wanted, nullptr, 10);
}

/// One stream, fed by calling `next_piece(fed so far)` for the size of each piece.
struct Outcome {
  FrameLog log;
  Violation violation;
};
using Cutter = std::function<std::size_t(std::size_t fed)>;

template <FrameCodec Codec>
Outcome feed_cut(const Codec& codec, std::string_view stream, const Cutter& piece_at) {
  FrameFeed<Codec> feed(codec);
  for (std::size_t fed = 0; fed < stream.size();) {
    const std::size_t piece = piece_at(fed);
    feed.feed(bytes_of(stream.substr(fed, piece)));
    fed += piece;
  }
  return {feed.log(), feed.violation()};
}

/// All that decides how a codec and its input buffer go on: how much has arrived, where the next
/// frame begins, what the codec remembers; how much memory the buffer owns, and how much in front of
/// the unread bytes. (What is in that memory follows: it is the stream.)
struct ReaderState {
  std::size_t arrived;
  std::size_t begin;
  std::size_t remembered;
  std::size_t capacity;
  std::size_t consumed;
  auto operator<=>(const ReaderState&) const = default;
};

/// Feeds a stream piece by piece and knows the state that this leads to.
template <FrameCodec Codec>
class WatchedFeed {
 public:
  WatchedFeed(const Codec& codec, std::string_view stream) : feed_(codec), stream_(stream) {}

  void feed(std::size_t piece) {
    feed_.feed(bytes_of(stream_.substr(arrived_, piece)));
    arrived_ += piece;
    // Memory that is new has its unread bytes at its beginning.
    const std::byte* const unread = feed_.unread().peek().data();
    const std::size_t capacity = feed_.unread().charge();
    if (capacity != capacity_ || unread < storage_ || unread >= storage_ + capacity)
      storage_ = unread;
    capacity_ = capacity;
  }
  ReaderState state() const {
    const InputBuffer& unread = feed_.unread();
    if (feed_.log().error) return {.arrived = arrived_, .begin = feed_.log().offset()};
    return {
        .arrived = arrived_,
        .begin = arrived_ - unread.size(),
        .remembered = unread.progress(),
        .capacity = capacity_,
        .consumed = capacity_ == 0 ? 0 : static_cast<std::size_t>(unread.peek().data() - storage_)};
  }
  const FrameLog& log() const { return feed_.log(); }
  const Violation& violation() const { return feed_.violation(); }

 private:
  FrameFeed<Codec> feed_;
  std::string_view stream_;
  std::size_t arrived_ = 0;
  const std::byte* storage_ = nullptr;
  std::size_t capacity_ = 0;
};

/// What a search of all splits found.
struct AllSplits {
  Violation violation;
  std::uint64_t splits =
      0;  ///< How many have been followed, in person or by one in the same state.
  std::size_t states = 0;
};

/// Every split through the input buffer.
template <FrameCodec Codec>
AllSplits follow_all_readers(const Codec& codec, std::string_view stream) {
  const FrameLog whole = feed_whole(codec, bytes_of(stream));
  struct Way {
    std::vector<std::size_t> pieces;  // one split that leads there
    std::uint64_t splits = 0;         // how many do
  };
  // In the order of what has arrived, so that all that lead to a state come before it.
  std::map<ReaderState, Way> open;
  open[ReaderState{}].splits = 1;
  AllSplits found;
  while (!open.empty()) {
    const auto [state, way] = *open.begin();
    open.erase(open.begin());
    ++found.states;
    if (state.arrived == stream.size()) {
      found.splits += way.splits;
      continue;
    }
    for (std::size_t piece = 1; piece <= stream.size() - state.arrived; ++piece) {
      WatchedFeed<Codec> feed(codec, stream);
      for (const std::size_t before : way.pieces)
        feed.feed(before);
      if (feed.state() != state) {
        found.violation = "a split does not lead to the same state twice";
        return found;
      }
      feed.feed(piece);
      found.violation = feed.violation();
      if (!feed.log().is_beginning_of(whole)) found.violation = "not as in one piece";
      const bool over = state.arrived + piece == stream.size();
      if (over && feed.log() != whole) found.violation = "not all that comes in one piece";
      if (!found.violation.empty()) return found;
      Way& next = open[feed.state()];
      next.splits += way.splits;
      if (next.pieces.empty()) {
        next.pieces = way.pieces;
        next.pieces.push_back(piece);
      }
    }
  }
  return found;
}

/// Where a reader can be: how much has arrived, where the next frame begins, what it remembers.
using State = std::tuple<std::size_t, std::size_t, std::size_t>;

/// Follows each state that any split leads to. A codec is a function of input and progress, so this
/// is every split, without counting them one by one. Answers what is not as in the whole.
template <FrameCodec Codec>
Violation follow_all_splits(const Codec& codec, std::string_view stream) {
  const FrameLog whole = feed_whole(codec, bytes_of(stream));
  std::map<std::size_t, FrameLog::Entry> wanted;
  for (const FrameLog::Entry& entry : whole.frames)
    wanted.emplace(entry.offset, entry);

  std::set<State> known{State{0, 0, 0}};
  std::vector<State> open{State{0, 0, 0}};
  bool end_reached = false;
  while (!open.empty()) {
    const auto [arrived, begin, remembered] = open.back();
    open.pop_back();
    for (std::size_t next = arrived + 1; next <= stream.size(); ++next) {
      std::size_t offset = begin;
      std::size_t progress = remembered;
      while (true) {
        const auto decoded =
            codec.decode(bytes_of(stream.substr(0, next)).subspan(offset), progress);
        if (decoded.status == DecodeStatus::refused) {
          if (whole.error != decoded.error || whole.offset() != offset) return "another refusal";
          end_reached = true;
          break;
        }
        if (decoded.status == DecodeStatus::incomplete) {
          if (next == stream.size()) {
            if (whole.error || whole.offset() != offset) return "not as far as in one piece";
            end_reached = true;
          } else if (const State state{next, offset, progress}; known.insert(state).second) {
            open.push_back(state);
          }
          break;
        }
        const auto entry = wanted.find(offset);
        if (entry == wanted.end()) return "a frame where there is none";
        if (entry->second.size != decoded.size || entry->second.frame != describe(decoded.frame)) {
          return "another frame";
        }
        offset += decoded.size;
        progress = 0;
      }
    }
  }
  return end_reached || stream.empty() ? "" : "the end was never reached";
}

/// A codec and a stream for it, whatever its type.
struct Kind {
  std::string name;
  std::string stream;
  std::string wanted;  ///< The frames and the error, as text.
  std::function<Outcome(std::string_view stream, const Cutter&)> feed;
  std::function<Violation(std::string_view stream)> follow;
  std::function<AllSplits(std::string_view stream)> follow_readers;
};

void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }

template <FrameCodec Codec>
Kind kind(std::string name, const Codec& codec, std::string stream, std::string wanted) {
  return {
      .name = std::move(name),
      .stream = std::move(stream),
      .wanted = std::move(wanted),
      .feed = [codec](std::string_view text,
                      const Cutter& piece) { return feed_cut(codec, text, piece); },
      .follow = [codec](std::string_view text) { return follow_all_splits(codec, text); },
      .follow_readers = [codec](std::string_view text) { return follow_all_readers(codec, text); }};
}

std::string frames_as_text(const FrameLog& log) {
  std::string text;
  for (const FrameLog::Entry& entry : log.frames)
    text += "[" + entry.frame + "]";
  if (log.error) text += std::string(to_string(*log.error)) + "@" + std::to_string(log.offset());
  return text;
}

/// A packet of the wire, from the codec that is tested elsewhere against another implementation.
std::string packet(std::uint16_t code, std::string_view body) {
  return PacketCodec().encode({.code = code, .body = bytes_of(body)})->to_string();
}
template <FrameCodec Codec>
std::string sealed(const Codec& codec, std::string_view body) {
  return codec.encode({.body = bytes_of(body)})->to_string();
}

std::vector<Kind> kinds() {
  const LineCodec lines({.line_max = 6});
  const DelimiterCodec tag({.delimiter = "--|", .content_max = 6});
  const DelimiterCodec repeating({.delimiter = "aab", .content_max = 9});
  const LengthFieldCodec u8({.field = LengthField::u8, .frame_max = 16});
  const LengthFieldCodec u16_le(
      {.field = LengthField::u16, .byte_order = std::endian::little, .frame_max = 100});
  const LengthFieldCodec u24({.field = LengthField::u24});
  const LengthFieldCodec u32;
  const LengthFieldCodec u64({.field = LengthField::u64});
  const LengthFieldCodec varint({.field = LengthField::varint});
  const LengthFieldCodec whole({.field = LengthField::u16,
                                .before = 1,
                                .behind = 2,
                                .counts = LengthCounts::whole,
                                .frame_max = 64});
  const LengthFieldCodec counted_varint(
      {.field = LengthField::varint, .counts = LengthCounts::whole});
  const LengthFieldCodec magic_crc({.field = LengthField::u8,
                                    .magic = "PS",
                                    .before = 2,
                                    .counts = LengthCounts::body,
                                    .checksum = Checksum::crc32c,
                                    .checksum_place = ChecksumPlace::whole_trailer,
                                    .frame_max = 30});
  const PacketCodec packets({.packet_max = 40});
  const std::string damaged = [&] {
    std::string bytes = packet(7, "hello");
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    return bytes;
  }();
  const std::string sealed_hi = sealed(magic_crc, "hi");
  const std::string sealed_empty = sealed(magic_crc, "");
  return {
      kind("Lines", lines, "ab\n\r\n\n\rc\r\r\n", "[ab][][][\rc\r]"),
      kind("LinesOfAllEnds", lines, "123456\n123456\r\n\n1\r2\nabc", "[123456][123456][][1\r2]"),
      kind("LineTooLong", lines, "ok\n1234567\n", "[ok]too_long@3"),
      kind("LineTooLongWithoutAnEnd", lines, "\n12345\r7890", "[]too_long@1"),
      kind("LineTooLongByItsReturn", lines, "12345\r\r\r\n1", "too_long@0"),
      kind("Delimited", tag, "a--|--|b-|", "[a][]"),
      kind("DelimitedLonger", tag, "---|-|--|abcdef--|12--|--|", "[-][-|][abcdef][12][]"),
      kind("DelimitedTooLong", tag, "a--|1234567--|", "[a]too_long@4"),
      kind("DelimitedByARepetition", repeating, "aaabaabxaaaab", "[a][][xaa]"),
      kind("FixedSize", FixedSizeCodec(3), "abcdefghijk", "[abc][def][ghi]"),
      kind("FixedSizeOne", FixedSizeCodec(1), "abc", "[a][b][c]"),
      kind("LengthU8", u8, "\2ab\0\1c\4def"s, "[\2|ab][\0|][\1|c]"s),
      kind("LengthU8AtItsLimit", u8, "\xF" + std::string(15, 'x') + "\x10",
           "[\xF|xxxxxxxxxxxxxxx]too_long@16"),
      kind("LengthU16LittleEndian", u16_le, "\3\0abc\0\0\1\0d\x63\0"s,
           "[\3\0|abc][\0\0|][\1\0|d]too_long@10"s),
      kind("LengthU24", u24, "\0\0\2hi\0\0\0\x10\0\1\0"s, "[\0\0\2|hi][\0\0\0|]too_long@8"s),
      kind("LengthU32", u32, "\0\0\0\2hi\0\0\0\0\0\0\0"s, "[\0\0\0\2|hi][\0\0\0\0|]"s),
      kind("LengthU32TooLong", u32, "\0\0\0\1x\x80\0\0\0abcd"s, "[\0\0\0\1|x]too_long@5"s),
      kind("LengthU64", u64, "\0\0\0\0\0\0\0\1x\x80\0\0\0\0\0\0\0yz"s,
           "[\0\0\0\0\0\0\0\1|x]too_long@9"s),
      kind("LengthVarint", varint, "\2ab\0\1c"s, "[\2|ab][\0|][\1|c]"s),
      kind("LengthVarintOverlong", varint, "\1a\x80\0bcd"s, "[\1|a]bad_varint@2"s),
      kind("LengthVarintTooLarge", varint, "\1a\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\1"s,
           "[\1|a]too_long@2"s),
      kind("LengthVarintOfElevenBytes", varint, "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\1"s,
           "bad_varint@0"s),
      kind("LengthOfTheWhole", whole, "v\0\5fgv\0\7fghi"s, "[v\0\5fg|][v\0\7fg|hi]"s),
      kind("LengthOfTheWholeTooSmall", whole, "v\0\5fgv\0\4fghi"s, "[v\0\5fg|]bad_length@5"s),
      kind("LengthVarintOfTheWhole", counted_varint, "\1\3ab\0x"s, "[\1|][\3|ab]bad_length@4"s),
      kind("MagicAndChecksum", magic_crc, sealed_hi, "[PS\2|hi]"),
      kind("MagicAndChecksumTwice", magic_crc, sealed_hi + sealed_empty + "PS",
           "[PS\2|hi][PS\0|]"s),
      kind("MagicWrong", magic_crc, sealed_empty + "PXYZ", "[PS\0|]bad_magic@7"s),
      kind("ChecksumWrong", magic_crc, sealed_empty + "PS\1xabcd"s, "[PS\0|]bad_checksum@7"s),
      kind("Packet", packets, packet(7, "hello"), "[7|hello]"),
      kind("Packets", packets, packet(7, "hello") + packet(65535, "abc"), "[7|hello][65535|abc]"),
      kind("PacketDamaged", packets, damaged, "bad_checksum@0"),
      kind("PacketTooShort", packets, packet(1, "x") + "\0\7"s, "[1|x]bad_length@9"),
      kind("PacketTooLong", packets, packet(1, "x") + "\0\x29\0"s, "[1|x]too_long@9"),
  };
}

class Splits : public testing::TestWithParam<Kind> {};

TEST_P(Splits, OneWholePieceGivesWhatTheStreamHolds) {
  const Kind& kind = GetParam();
  const Outcome whole = kind.feed(kind.stream, [&](std::size_t) { return kind.stream.size(); });
  EXPECT_EQ(whole.violation, "");
  EXPECT_EQ(frames_as_text(whole.log), kind.wanted);
}

// F1
TEST_P(Splits, EverySplitGivesTheSameFramesAndTheSameErrorAtTheSameOffset) {
  const Kind& kind = GetParam();
  const std::string stream = kind.stream.substr(0, split_bytes());
  ASSERT_LE(stream.size(), 26u);
  const Outcome whole = kind.feed(stream, [&](std::size_t) { return stream.size(); });
  const std::size_t splits = std::size_t{1} << (stream.size() - 1);
  for (std::size_t split = 0; split < splits; ++split) {
    // Bit i cuts behind byte i.
    const Outcome cut = kind.feed(stream, [&](std::size_t fed) {
      std::size_t piece = 1;
      while (fed + piece < stream.size() && (split >> (fed + piece - 1) & 1) == 0)
        ++piece;
      return piece;
    });
    ASSERT_EQ(cut.violation, "") << "split " << split;
    ASSERT_EQ(cut.log, whole.log) << "split " << split << ": " << frames_as_text(cut.log);
  }
}

// F1
TEST_P(Splits, EverySplitOfTheWholeStreamThroughAnInputBufferGivesTheSame) {
  const std::string& stream = GetParam().stream;
  const AllSplits found = GetParam().follow_readers(stream);
  EXPECT_EQ(found.violation, "");
  EXPECT_EQ(found.splits, std::uint64_t{1} << (stream.size() - 1)) << found.states << " states";
}

// F1
TEST_P(Splits, EveryStateThatASplitLeadsToGoesOnAsTheWhole) {
  const Kind& kind = GetParam();
  EXPECT_EQ(kind.follow(kind.stream), "");
  std::string again;
  for (int i = 0; i < 6; ++i)
    again += kind.stream;
  EXPECT_EQ(kind.follow(again), "");
}

// F1, S7: damaged streams too. Whatever comes, a split changes nothing.
TEST_P(Splits, EveryStateOfADamagedStreamGoesOnAsTheWhole) {
  const Kind& kind = GetParam();
  for (std::size_t at = 0; at < kind.stream.size(); ++at) {
    for (const int change : {0x01, 0x02, 0x10, 0x80, 0xFF}) {
      std::string damaged = kind.stream;
      damaged[at] = static_cast<char>(damaged[at] ^ change);
      ASSERT_EQ(kind.follow(damaged), "") << "byte " << at << " changed by " << change;
    }
    ASSERT_EQ(kind.follow(kind.stream.substr(at)), "") << "without the first " << at;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Splits, testing::ValuesIn(kinds()),
                         [](const auto& its) { return its.param.name; });

/// Pieces of random sizes, the same for one list of numbers.
Cutter cutter(std::size_t size, const std::vector<std::uint8_t>& sizes) {
  return [size, &sizes, next = std::size_t{0}](std::size_t fed) mutable {
    const std::size_t piece = sizes.empty() ? size : std::size_t{1} + sizes[next++ % sizes.size()];
    return std::min(piece, size - fed);
  };
}

// F1, S6, S7
TEST(SplitsOfRandomBytes, GiveTheSameAndTakeNoMemoryBeyondWhatCame) {
  for (const Kind& kind : kinds()) {
    const bool same = rc::check(kind.name, [&] {
      // Bytes of the stream itself are likelier to be understood than others.
      const auto stream = *rc::gen::container<std::string>(rc::gen::oneOf(
          rc::gen::elementOf(kind.stream), rc::gen::element('\0', '\1', '\n', '\r', '\xFF'),
          rc::gen::arbitrary<char>()));
      const auto sizes = *rc::gen::arbitrary<std::vector<std::uint8_t>>();
      const Outcome whole = kind.feed(stream, [&](std::size_t) { return stream.size(); });
      const Outcome cut = kind.feed(stream, cutter(stream.size(), sizes));
      RC_ASSERT(whole.violation.empty());
      RC_ASSERT(cut.violation.empty());
      RC_ASSERT(cut.log == whole.log);
      RC_ASSERT(kind.follow(stream).empty());
    });
    EXPECT_TRUE(same);
  }
}

// F1
TEST(SplitsOfLongFrames, GiveTheSame) {
  const bool same = rc::check("packets of any length, in any pieces", [] {
    const auto bodies = *rc::gen::container<std::vector<std::string>>(
        rc::gen::resize(300, rc::gen::arbitrary<std::string>()));
    std::string stream;
    std::string wanted;
    std::uint16_t code = 0;
    for (const std::string& body : bodies) {
      stream += packet(++code, body);
      wanted += "[" + std::to_string(code) + "|" + body + "]";
    }
    const auto sizes = *rc::gen::arbitrary<std::vector<std::uint8_t>>();
    const Outcome cut = feed_cut(PacketCodec(), stream, cutter(stream.size(), sizes));
    RC_ASSERT(cut.violation.empty());
    RC_ASSERT(frames_as_text(cut.log) == wanted);
  });
  EXPECT_TRUE(same);
}

}  // namespace
}  // namespace penstock::test

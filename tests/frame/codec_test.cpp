// What all codecs share: errors, encoded frames, frames of fixed size.

#include "penstock/frame/codec.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <system_error>

#include "penstock/frame/fixed_size_codec.h"
#include "penstock/frame/length_field_codec.h"
#include "support/frame_feed.h"

namespace penstock::test {
namespace {

// F9
TEST(FrameErrorTest, EachHasAnErrorCodeANameAndAMessageOfItsOwn) {
  std::set<std::string> names;
  std::set<std::string> messages;
  constexpr int kLast = static_cast<int>(FrameError::wrong_size);
  for (int value = 1; value <= kLast; ++value) {
    const auto error = static_cast<FrameError>(value);
    const std::error_code code = error;
    EXPECT_EQ(code.category().name(), std::string("penstock.frame"));
    EXPECT_EQ(code, error);
    names.insert(std::string(to_string(error)));
    messages.insert(code.message());
  }
  EXPECT_EQ(names.size(), std::size_t{kLast});
  EXPECT_EQ(messages.size(), std::size_t{kLast});
  EXPECT_NE(std::error_code(FrameError::bad_magic), make_error_code(Errc::unknown_backend));
  EXPECT_EQ(std::error_code(99, frame_category()).message(), "unknown error 99");
  EXPECT_EQ(to_string(FrameError{99}), "?");
}

TEST(EncodedFrameTest, IsHeadBodyAndTailInThisOrder) {
  EncodedFrame frame(bytes_of("body"));
  EXPECT_EQ(frame.to_string(), "body");
  frame.add_head(bytes_of("he"));
  frame.add_tail(bytes_of("ta"));
  frame.add_head(bytes_of("ad "));
  frame.add_tail(bytes_of("il"));
  EXPECT_EQ(frame.to_string(), "head bodytail");
  EXPECT_EQ(frame.size(), 13u);
}

TEST(EncodedFrameDeathTest, HasRoomForSoMuchAndNoMore) {
  EncodedFrame frame({});
  frame.add_head(bytes_of(std::string(EncodedFrame::kHeadMax, 'h')));
  EXPECT_DEATH(frame.add_head(bytes_of("h")), "before or behind");
  frame.add_tail(bytes_of(std::string(EncodedFrame::kTailMax, 't')));
  EXPECT_DEATH(frame.add_tail(bytes_of("t")), "before or behind");
}

TEST(FixedSizeCodecTest, SendsFramesOfItsSizeOnly) {
  const FixedSizeCodec codec(3);
  EXPECT_EQ(codec.frame_max(), 3u);
  EXPECT_EQ(codec.encode(bytes_of("abc"))->to_string(), "abc");
  EXPECT_EQ(codec.encode(bytes_of("ab")).error(), FrameError::wrong_size);
  EXPECT_EQ(codec.encode(bytes_of("abcd")).error(), FrameError::wrong_size);
  EXPECT_DEATH(FixedSizeCodec(0), "at least one byte");
}

TEST(SharedFrameTest, IsTheFrameOrWhyThereIsNone) {
  const LengthFieldCodec codec({.field = LengthField::u8});
  const Result<SharedBytes> shared = shared_frame(codec, {.body = bytes_of("hi")});
  ASSERT_TRUE(shared.has_value());
  EXPECT_EQ(text_of(shared->bytes()), "\2hi");
  const Result<SharedBytes> refused =
      shared_frame(codec, {.body = bytes_of(std::string(300, 'x'))});
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error(), FrameError::too_long);
}

}  // namespace
}  // namespace penstock::test

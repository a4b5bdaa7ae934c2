// SlowReader against servers that send what they should and what they should not.
#include "app/trace_reader.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "app/trace_payload.h"
#include "penstock/tcp/server.h"

namespace penstock::app {
namespace {

constexpr std::size_t kSize = 300'000;

std::uint64_t hash_of(const std::string& payload) {
  Fnv1a hash;
  hash.add(std::as_bytes(std::span(payload)));
  return hash.value();
}

class SlowReaderTest : public testing::TestWithParam<std::size_t> {
 protected:
  // One reader, to whom the server sends `payload` and then FIN.
  void transfer(const std::string& payload) {
    server_.on_connect([&payload](TcpConnection& connection) {
      connection.send(payload);
      connection.finish();
    });
    ASSERT_TRUE(server_.start());
    ASSERT_TRUE(reader_.connect(server_.address()));
    ASSERT_TRUE(loop_.run());
    EXPECT_FALSE(reader_.error());
    EXPECT_EQ(ends_, 1);
  }

  int ends_ = 0;
  EventLoop loop_;
  TcpServer server_{loop_};
  SlowReader reader_{loop_, {.receive_buffer = 32768, .rate = GetParam()}, [this] {
                       ++ends_;
                       loop_.stop();
                     }};
};

TEST_P(SlowReaderTest, finds_the_payload_whole_and_in_order) {
  const std::string payload = make_payload(kSize);
  transfer(payload);
  EXPECT_EQ(reader_.received(), kSize);
  EXPECT_EQ(reader_.hash(), hash_of(payload));
  EXPECT_EQ(reader_.first_wrong_offset(), std::nullopt);
}

TEST_P(SlowReaderTest, names_the_first_byte_that_differs) {
  std::string payload = make_payload(kSize);
  for (const std::size_t offset : {std::size_t{123'456}, std::size_t{200'000}})
    payload[offset] ^= 1;
  transfer(payload);
  EXPECT_EQ(reader_.received(), kSize);
  EXPECT_EQ(reader_.first_wrong_offset(), 123'456U);
  EXPECT_NE(reader_.hash(), hash_of(make_payload(kSize)));
}

TEST_P(SlowReaderTest, notices_a_block_that_comes_twice) {
  std::string payload = make_payload(kSize);
  payload.replace(131'072, 65'536, payload.substr(65'536, 65'536));
  transfer(payload);
  ASSERT_TRUE(reader_.first_wrong_offset());
  EXPECT_GE(*reader_.first_wrong_offset(), 131'072U);
  EXPECT_LT(*reader_.first_wrong_offset(), 196'608U);
}

TEST_P(SlowReaderTest, takes_a_stream_cut_short_to_its_end) {
  transfer(make_payload(kSize - 1));
  EXPECT_EQ(reader_.received(), kSize - 1);
  EXPECT_EQ(reader_.first_wrong_offset(), std::nullopt);
}

INSTANTIATE_TEST_SUITE_P(Rates, SlowReaderTest, testing::Values(0U, 20U << 20U),
                         [](const auto& rate) {
                           return rate.param == 0 ? "as_fast_as_it_can" : "at_a_rate";
                         });

TEST(SlowReader, ends_with_the_error_when_nobody_listens) {
  EventLoop loop;
  SocketAddress address;
  {
    TcpServer server(loop);
    ASSERT_TRUE(server.start());
    address = server.address();
  }
  SlowReader reader(loop, {}, [&loop] { loop.stop(); });
  const Result<void> connected = reader.connect(address);
  if (connected) {
    ASSERT_TRUE(loop.run());
    EXPECT_EQ(reader.error(), std::errc::connection_refused);
  } else {
    EXPECT_EQ(connected.error(), std::errc::connection_refused);
  }
}

TEST(Fnv1a, has_the_published_values) {
  EXPECT_EQ(hash_of(""), 0xCBF29CE484222325U);
  EXPECT_EQ(hash_of("a"), 0xAF63DC4C8601EC8CU);
  EXPECT_EQ(hash_of("foobar"), 0x85944171F73967E8U);
}

}  // namespace
}  // namespace penstock::app

// Random and mutated bytes for a server that reads frames (scenario S7), on every back-end. What it
// must make of them is known: the codec alone, fed with all of them at once, tells. Each run is the
// same; PENSTOCK_TEST_SEED=n plays another one.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "penstock/frame/delimiter_codec.h"
#include "penstock/frame/frames.h"
#include "penstock/frame/length_field_codec.h"
#include "penstock/frame/packet_codec.h"
#include "penstock/tcp/server.h"
#include "support/frame_feed.h"
#include "support/heap.h"
#include "support/serving.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::seconds;

constexpr std::size_t kKiB = 1024;
constexpr int kRounds = 120;
constexpr int kWarmUpRounds = 40;

std::uint32_t seed() {
  const char* const text = std::getenv("PENSTOCK_TEST_SEED");
  return text == nullptr ? 1 : static_cast<std::uint32_t>(std::strtoul(text, nullptr, 10));
}

class HostileBytes : public ConformanceTest {
 protected:
  std::size_t below(std::size_t bound) {
    return std::uniform_int_distribution<std::size_t>(0, bound - 1)(random_);
  }
  char any_byte() { return static_cast<char>(below(256)); }

  std::string random_bytes() {
    std::string bytes(below(4 * kKiB), '\0');
    std::ranges::generate(bytes, [this] { return any_byte(); });
    return bytes;
  }
  /// Some frames, and up to four changes: a byte, a lost or doubled run, a cut.
  std::string mutated(const std::vector<std::string>& frames) {
    std::string bytes;
    for (std::size_t i = 1 + below(12); i > 0; --i)
      bytes += frames[below(frames.size())];
    for (std::size_t changes = below(5); changes > 0 && !bytes.empty(); --changes) {
      const std::size_t at = below(bytes.size());
      const std::size_t size = 1 + below(8);
      switch (below(5)) {
        case 0:
          bytes[at] = any_byte();
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
          break;
        case 2:
          bytes.erase(at, size);
          break;
        case 3:
          bytes.insert(at, bytes.substr(at, size));
          break;
        default:
          bytes.resize(at);
      }
    }
    return bytes;
  }

  /// Reads, while the loop turns, until there are `size` bytes or the end.
  Received read(int fd, std::size_t size) {
    Received all{.result = -EAGAIN, .text = {}};
    EXPECT_TRUE(world.run_until([&] {
      const Received piece = receive(linux_kernel(), fd);
      all.text += piece.text;
      all.result = piece.result;
      return all.text.size() >= size || (piece.result <= 0 && piece.result != -EAGAIN);
    }));
    return all;
  }

  /// Sends the bytes in pieces, with a FIN behind them; the answer, to its end.
  Received attack(const SocketAddress& address, std::string_view bytes) {
    const UniqueFd client = connect_to(address);
    while (!bytes.empty()) {
      const std::size_t size = std::min(bytes.size(), 1 + below(700));
      EXPECT_EQ(send_text(linux_kernel(), client.get(), bytes.substr(0, size)),
                static_cast<ssize_t>(size));
      bytes.remove_prefix(size);
      if (below(2) == 0) world.turn();
    }
    EXPECT_EQ(linux_kernel().shutdown(client.get(), SHUT_WR), 0);
    return read(client.get(), std::string::npos);
  }

  /// Each round's connection gets what the codec says and ends as it says; one good client is served
  /// as ever; and nothing piles up. `frames` are valid, none longer than 4 KiB.
  template <FrameCodec Codec>
  void expect_served(const Codec& codec, const std::vector<std::string>& frames) {
    SCOPED_TRACE("once more: PENSTOCK_TEST_SEED=" + std::to_string(seed()));
    random_.seed(seed());
    Ledger ledger;  // first: the server tells it the end of the good one
    TcpServer server(world.loop, {.listen = "127.0.0.1:0"});
    ledger.keep(server);
    server.on_message(
        penstock::frames(codec, [](TcpConnection& peer, const typename Codec::Frame& frame) {
          peer.send(describe(frame) + "\n");
        }));
    ASSERT_TRUE(server.start().has_value());
    const UniqueFd good = connect_to(server.address());
    const std::string good_answer =
        feed_whole(codec, bytes_of(frames[0])).frames.at(0).frame + "\n";
    std::size_t refused = 0;
    std::size_t heap = 0;
    for (int round = 0; round < kRounds; ++round) {
      SCOPED_TRACE(round);
      const std::string bytes = below(3) == 0 ? random_bytes() : mutated(frames);
      const FrameLog expected = feed_whole(codec, bytes_of(bytes));
      std::string answer;
      for (const FrameLog::Entry& entry : expected.frames)
        answer += entry.frame + "\n";

      const Received got = attack(server.address(), bytes);
      EXPECT_EQ(got.result, 0);
      EXPECT_EQ(got.text, answer);
      ASSERT_TRUE(world.run_until([&] { return ledger.reports.size() == std::size_t(round) + 1; }));
      const CloseReport& report = ledger.reports.back();
      if (expected.error) {
        ++refused;
        EXPECT_EQ(report.reason, CloseReason::protocol);
        EXPECT_EQ(report.error, *expected.error);
      } else {
        EXPECT_EQ(report.reason,
                  expected.offset() == bytes.size() ? CloseReason::eof : CloseReason::truncated);
      }
      EXPECT_EQ(report.bytes_sent, answer.size());

      ASSERT_GT(send_text(linux_kernel(), good.get(), frames[0]), 0);
      EXPECT_EQ(read(good.get(), good_answer.size()).text, good_answer);
      EXPECT_EQ(world.loop.memory().used(), 0U);
      if (round == kWarmUpRounds) heap = heap_bytes();
    }
    EXPECT_GT(refused, 0U) << "nothing was refused: these bytes were not hostile";
    EXPECT_LT(heap_bytes(), heap + 256 * kKiB);
    EXPECT_EQ(ledger.live.size(), 1U) << "the good one";
  }

 private:
  std::mt19937 random_;
};

std::vector<std::string> encoded(const auto& codec, const auto& frames) {
  std::vector<std::string> all;
  for (const auto& frame : frames)
    all.push_back(codec.encode(frame)->to_string());
  return all;
}

// S7
TEST_P(HostileBytes, PacketsThatAreRandomOrMutatedEndTheirOwnConnectionOnly) {
  const std::string large(3'000, 'p');
  expect_served(PacketCodec({.packet_max = 4 * kKiB}),
                encoded(PacketCodec(), std::vector<Packet>{{.code = 7, .body = bytes_of("seven")},
                                                           {.code = 8, .body = {}},
                                                           {.code = 9, .body = bytes_of(large)}}));
}

// S7
TEST_P(HostileBytes, LinesThatAreRandomOrMutatedEndTheirOwnConnectionOnly) {
  expect_served(LineCodec({.line_max = 200}),
                {"hello\n", "\n", "with an end of two\r\n", std::string(199, 'l') + "\n"});
}

// S6, S7
TEST_P(HostileBytes, VarintsAndChecksumsThatAreRandomOrMutatedEndTheirOwnConnectionOnly) {
  const LengthFieldCodec codec({.field = LengthField::varint,
                                .magic = "PS",
                                .before = 2,
                                .checksum = Checksum::crc32c,
                                .frame_max = 4 * kKiB});
  const std::string large(3'000, 'v');
  expect_served(codec, encoded(codec, std::vector<LengthFieldFrame>{{.body = bytes_of("seven")},
                                                                    {.body = {}},
                                                                    {.body = bytes_of(large)}}));
}

PENSTOCK_ON_EVERY_BACKEND(HostileBytes);

}  // namespace
}  // namespace penstock::test

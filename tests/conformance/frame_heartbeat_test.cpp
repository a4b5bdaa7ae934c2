// Heartbeats of frames (R19), on every back-end: which are sent, which are answered, and which the
// handler does not see. When heartbeats are due is in message_limits_test.cpp.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "penstock/frame/delimiter_codec.h"
#include "penstock/frame/fixed_size_codec.h"
#include "penstock/frame/frames.h"
#include "penstock/frame/heartbeat.h"
#include "penstock/frame/length_field_codec.h"
#include "penstock/frame/packet_codec.h"
#include "penstock/tcp/client.h"
#include "penstock/tcp/server.h"
#include "support/frame_feed.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using std::chrono::seconds;

constexpr std::size_t kKiB = 1024;
constexpr HeartbeatFrames<std::string_view> kLines{.ping = "PING", .pong = "PONG"};

class FrameHeartbeats : public ConformanceTest {
 protected:
  static ConnectionLimits limits(unsigned missed_max) {
    ConnectionLimits limits;
    limits.idle_timeout = seconds(0);
    limits.first_message_timeout = seconds(0);
    limits.write_stall_timeout = seconds(0);
    limits.heartbeat_interval = seconds(20);
    limits.heartbeats_missed_max = missed_max;
    return limits;
  }
  /// A connection whose handler writes down what it gets.
  template <FrameCodec Codec>
  World::Link connect(const Codec& codec, const HeartbeatFrames<typename Codec::Frame>& heartbeats,
                      unsigned missed_max = 3) {
    const FrameHeartbeat heartbeat(codec, heartbeats);
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    auto reader =
        frames(codec, heartbeat.around([this](TcpConnection&, typename Codec::Frame frame) {
          seen.push_back(describe(frame));
        }));
    callbacks.message_max = reader.message_max();
    callbacks.on_message = std::move(reader);
    callbacks.on_heartbeat = heartbeat.pings();
    return world.connect(record, std::move(callbacks), limits(missed_max));
  }
  /// The client sends the text, and what comes back is there.
  std::string answer(const World::Link& link, std::string_view text) {
    deliver(link, text);
    world.settle();
    return receive_available(link);
  }

  std::vector<std::string> seen;
};

using Seen = std::vector<std::string>;

TEST_P(FrameHeartbeats, APingComesAfterSilenceAndItsPongKeepsTheConnection) {
  World::Link link = connect(LineCodec(), kLines, 1);
  for (int round = 0; round < 10; ++round) {
    pass(world, seconds(19));
    EXPECT_EQ(receive_available(link), "");
    pass(world, seconds(2));
    world.settle();
    EXPECT_EQ(receive_available(link), "PING\n");
    EXPECT_EQ(answer(link, "PONG\n"), "") << "a pong needs no answer";
  }
  EXPECT_EQ(link.record->closes, 0);
  EXPECT_EQ(seen, Seen());
}

TEST_P(FrameHeartbeats, WithoutAPongTheConnectionEndsAndIsCounted) {
  World::Link link = connect(LineCodec(), kLines, 2);
  for (int i = 0; i < 3; ++i)
    pass(world, seconds(21));
  ASSERT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
  EXPECT_EQ(link.record->report->reason, CloseReason::timeout);
  EXPECT_EQ(link.record->report->timeout, TimeoutKind::heartbeat);
  const Received all = receive_to_end(linux_kernel(), link.client.get());
  EXPECT_EQ(all.result, -ECONNRESET);
}

TEST_P(FrameHeartbeats, PingsAreAnsweredAndTheHandlerGetsEverythingElseInOrder) {
  World::Link link = connect(LineCodec(), kLines);
  EXPECT_EQ(answer(link, "one\nPING\ntwo\nPONG\nPI"), "PONG\n");
  EXPECT_EQ(answer(link, "NG\nPINGS\nPIN\n\n"), "PONG\n");
  EXPECT_EQ(seen, (Seen{"one", "two", "PINGS", "PIN", ""}));
}

TEST_P(FrameHeartbeats, FramesOfEveryKindAreRecognisedByTheirContent) {
  const PacketCodec packets;
  const auto packet = [&](std::uint16_t code, std::string_view body) {
    return packets.encode({.code = code, .body = bytes_of(body)})->to_string();
  };
  World::Link link = connect(packets, {.ping = {.code = 1}, .pong = {.code = 2}});
  EXPECT_EQ(answer(link, packet(1, "") + packet(1, "body") + packet(2, "") + packet(3, "")),
            packet(2, ""));
  EXPECT_EQ(seen, (Seen{"1|body", "3|"}));

  seen.clear();
  World::Link fixed = connect(FixedSizeCodec(2), {.ping = bytes_of("pi"), .pong = bytes_of("po")});
  EXPECT_EQ(answer(fixed, "pipopapi"), "popo");
  EXPECT_EQ(seen, Seen{"pa"});

  seen.clear();
  // | u16 length | u8 kind | body |
  const LengthFieldCodec codec(
      {.field = LengthField::u16, .behind = 1, .counts = LengthCounts::body});
  World::Link field = connect(codec, {.ping = {.header = bytes_of("\1"), .body = bytes_of("x")},
                                      .pong = {.header = bytes_of("\2"), .body = {}}});
  using namespace std::string_literals;
  EXPECT_EQ(answer(field, "\0\1\1x\0\1\1y\0\1\2x\0\0\2"s), "\0\0\2"s);
  EXPECT_EQ(seen, (Seen{"\0\1\1|y"s, "\0\1\2|x"s}));
}

TEST_P(FrameHeartbeats, APongPassesTheMessagesThatWaitButIsNeverInsideOne) {
  World::Link link = connect(LineCodec(), kLines);
  shrink_buffers(link);
  const std::string line = std::string(kKiB - 1, 'm') + "\n";
  link.connection->send(std::string(150 * kKiB, 'f') + "\n");  // below the mark: it is still read
  world.settle();
  ASSERT_GT(link.connection->queued_bytes(), 0U);
  for (int i = 0; i < 90; ++i)
    EXPECT_EQ(link.connection->send_message(SharedBytes::copy_of(line)), SendOutcome::accepted);
  deliver(link, "PING\n");
  world.settle();
  link.connection->finish();
  const std::string all = collect_to_end(world, link).text;
  const std::size_t at = all.find("PONG\n");
  ASSERT_NE(at, std::string::npos);
  EXPECT_EQ(all.size(), 150 * kKiB + 1 + 90 * kKiB + 5);
  EXPECT_EQ(all[at - 1], '\n');
  EXPECT_LE(at, all.size() - 5 - line.size()) << "behind all that waited";
}

// B2
TEST_P(FrameHeartbeats, APeerThatPingsAndDoesNotReadIsStoppedAtTheHighWaterMark) {
  World::Link link = connect(LineCodec(), kLines);
  shrink_buffers(link);
  std::string pings;
  for (int i = 0; i < 4'000; ++i)
    pings += "PING\n";
  std::size_t sent = 0;
  for (int quiet = 0; quiet < 3;) {
    const std::string_view rest = std::string_view(pings).substr(sent % pings.size());
    const ssize_t count = send_text(linux_kernel(), link.client.get(), rest);
    quiet = count > 0 ? 0 : quiet + 1;
    sent += count > 0 ? static_cast<std::size_t>(count) : 0;
    world.settle();
    ASSERT_LT(sent, std::size_t{64} * 1024 * kKiB) << "it is never stopped";
    ASSERT_LE(link.connection->queued_bytes(), ConnectionLimits().high_water + 4 * kKiB);
  }
  EXPECT_FALSE(link.connection->is_reading());
  const std::size_t whole = sent / 5 * 5;
  EXPECT_EQ(collect(world, link, whole).size(), whole) << "as many pongs as pings";
  EXPECT_EQ(link.record->closes, 0);
  EXPECT_EQ(seen, Seen());
}

TEST_P(FrameHeartbeats, TwoSidesWithHeartbeatsKeepEachOtherAndDoNotAnswerForEver) {
  const PacketCodec packets;
  const FrameHeartbeat heartbeat(packets, {.ping = {.code = 1}, .pong = {.code = 2}});
  int frames_seen = 0;
  int closes = 0;
  const auto set_up = [&](auto& side) {
    side.on_heartbeat(heartbeat.pings());
    side.on_message(
        frames(packets, heartbeat.around([&](TcpConnection&, const Packet&) { ++frames_seen; })));
    side.on_close([&](TcpConnection&, const CloseReport&) { ++closes; });
  };
  TcpServer server(world.loop, {.listen = "127.0.0.1:0", .limits = limits(1)});
  set_up(server);
  ASSERT_TRUE(server.start().has_value());
  TcpClient client(world.loop, {.connect_to = server.address().to_string(), .limits = limits(1)});
  set_up(client);
  ASSERT_TRUE(client.start().has_value());
  ASSERT_TRUE(world.run_until([&] { return server.statistics().live == 1; }));
  world.settle();
  constexpr std::uint64_t kMinutes = 20;
  const std::uint64_t before = send_calls(world);
  for (std::uint64_t i = 0; i < kMinutes * 12; ++i) {
    pass(world, seconds(5));
    world.settle();
  }
  EXPECT_EQ(closes, 0);
  EXPECT_EQ(frames_seen, 0);
  // At most a ping and a pong of each side in each interval.
  EXPECT_LE(send_calls(world) - before, kMinutes * 3 * 4);
  EXPECT_GE(send_calls(world) - before, kMinutes * 2);
}

PENSTOCK_ON_EVERY_BACKEND(FrameHeartbeats);

TEST(FrameHeartbeatDeathTest, AHeartbeatThatCannotBeOneIsAProgrammerError) {
  EXPECT_DEATH(FrameHeartbeat(LineCodec(), {.ping = "a\nb", .pong = "c"}), "cannot write");
  EXPECT_DEATH(FrameHeartbeat(LineCodec(), {.ping = "same", .pong = "same"}), "differ");
}

}  // namespace
}  // namespace penstock::test

// Handlers by message code (R22, F9), on every back-end.

#include "penstock/frame/router.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "penstock/frame/frames.h"
#include "support/frame_feed.h"
#include "support/serving.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using namespace std::string_literals;

std::string packet(std::uint16_t code, std::string_view body) {
  return PacketCodec().encode({.code = code, .body = bytes_of(body)})->to_string();
}

/// A message of one digit.
struct Digit {
  int value = 0;

  static Result<Digit> decode(std::span<const std::byte> body) {
    const std::string text = text_of(body);
    if (text.size() != 1) return std::unexpected(make_error_code(FrameError::bad_content));
    if (text < "0" || text > "9") return failure(EDOM);
    return Digit{text[0] - '0'};
  }
};

/// One that has no decode() of its own.
struct Text {
  std::string_view text;
};

}  // namespace
}  // namespace penstock::test

template <>
struct penstock::MessageDecoder<penstock::test::Text> {
  static Result<penstock::test::Text> decode(std::span<const std::byte> body) {
    return penstock::test::Text{{reinterpret_cast<const char*>(body.data()), body.size()}};
  }
};

namespace penstock::test {
namespace {

class Router : public ConformanceTest {
 protected:
  Router() {
    router.on(1, [this](TcpConnection&, std::span<const std::byte> body) {
      seen.push_back("raw " + text_of(body));
    });
    router.on<Digit>(2, [this](TcpConnection&, const Digit& digit) {
      seen.push_back("digit " + std::to_string(digit.value));
    });
    router.on<Text>(65535, [this](TcpConnection& peer, const Text& text) {
      seen.push_back("text " + std::string(text.text));
      if (text.text == "close") peer.close();
    });
  }
  World::Link connect() {
    auto record = std::make_shared<Record>();
    ConnectionCallbacks callbacks = World::recording(record);
    callbacks.on_message = frames(PacketCodec(), router.handler());
    return world.connect(record, std::move(callbacks));
  }
  /// The report of a connection that sends this.
  CloseReport end_of(std::string_view bytes) {
    World::Link link = connect();
    deliver(link, bytes);
    collect_to_end(world, link);
    link.client.reset();
    EXPECT_TRUE(world.run_until([&] { return link.record->closes == 1; }));
    return link.record->report.value_or(CloseReport{});
  }

  MessageRouter router;
  std::vector<std::string> seen;
};

using Seen = std::vector<std::string>;

// R22
TEST_P(Router, EachPacketGoesToTheHandlerOfItsCode) {
  World::Link link = connect();
  deliver(link, packet(2, "7") + packet(1, "raw") + packet(65535, "text") + packet(1, ""));
  world.settle();
  EXPECT_EQ(seen, (Seen{"digit 7", "raw raw", "text text", "raw "}));
  EXPECT_EQ(router.received(1), 2u);
  EXPECT_EQ(router.received(2), 1u);
  EXPECT_EQ(router.received(65535), 1u);
  EXPECT_EQ(router.received(3), 0u);
  EXPECT_EQ(router.unknown(), 0u);
  EXPECT_EQ(link.record->closes, 0);
}

// R22, F9
TEST_P(Router, ACodeWithoutAHandlerEndsTheConnectionAndIsCounted) {
  const CloseReport report = end_of(packet(1, "a") + packet(0, "b") + packet(1, "c"));
  EXPECT_EQ(report.reason, CloseReason::protocol);
  EXPECT_EQ(report.error, FrameError::unknown_code);
  EXPECT_EQ(seen, Seen{"raw a"});
  EXPECT_EQ(router.unknown(), 1u);
  EXPECT_EQ(router.received(0), 0u) << "counted with the unknown ones";
}

// R22
TEST_P(Router, ACallbackMayTakeThePacketsOfOtherCodes) {
  router.on_unknown([this](TcpConnection&, const Packet& each) {
    seen.push_back("unknown " + std::to_string(each.code) + " " + text_of(each.body));
  });
  World::Link link = connect();
  deliver(link, packet(1, "a") + packet(3, "b") + packet(1, "c"));
  world.settle();
  EXPECT_EQ(seen, (Seen{"raw a", "unknown 3 b", "raw c"}));
  EXPECT_EQ(router.unknown(), 1u);
  EXPECT_EQ(link.record->closes, 0);
}

// F9
TEST_P(Router, ABodyThatItsTypeRefusesEndsTheConnectionWithThatError) {
  CloseReport report = end_of(packet(2, "1") + packet(2, "12") + packet(2, "3"));
  EXPECT_EQ(report.reason, CloseReason::protocol);
  EXPECT_EQ(report.error, FrameError::bad_content);
  report = end_of(packet(2, "x"));
  EXPECT_EQ(report.error, system_error(EDOM));
  EXPECT_EQ(seen, Seen{"digit 1"});
  EXPECT_EQ(router.received(2), 3u);
  EXPECT_EQ(router.refused(2), 2u);
  EXPECT_EQ(router.refused(1), 0u);
}

// F16
TEST_P(Router, NoHandlerRunsBehindOneThatCloses) {
  end_of(packet(65535, "close") + packet(1, "a"));
  EXPECT_EQ(seen, Seen{"text close"});
  EXPECT_EQ(router.received(1), 0u);
}

// The counts of all loops add up, read by a thread that is none of them, while they count.
TEST_P(Router, OneRouterServesTheLoopsOfAServerAndAddsUpTheirCounts) {
  constexpr std::uint64_t kClients = 6;
  constexpr std::uint64_t kRounds = 200;
  MessageRouter shared;
  shared.on(1, [](TcpConnection& peer, std::span<const std::byte> body) {
    EXPECT_TRUE(send_frame(peer, PacketCodec(), {.code = 1, .body = body}).has_value());
  });
  shared.on<Digit>(2, [](TcpConnection&, const Digit&) {});
  TcpServer server({.loops = 2, .backend = GetParam()});
  server.on_message(frames(PacketCodec(), shared.handler()));
  ASSERT_TRUE(server.start().has_value());
  std::vector<RawClient> clients;
  for (std::uint64_t i = 0; i < kClients; ++i)
    clients.emplace_back(connect_to(server.address()));
  const std::string request = packet(2, "5") + packet(1, "echo");
  const std::size_t reply = packet(1, "echo").size();
  std::uint64_t last = 0;
  for (std::uint64_t round = 1; round <= kRounds; ++round) {
    for (RawClient& client : clients)
      ASSERT_EQ(send_text(linux_kernel(), client.fd.get(), request),
                static_cast<ssize_t>(request.size()));
    for (RawClient& client : clients) {
      ASSERT_TRUE(eventually([&] {
        server.loop().step();  // which accepts
        client.read_some();
        EXPECT_GE(shared.received(1), last) << "a count went back";
        last = shared.received(1);
        return client.bytes == round * reply;
      }));
    }
  }
  EXPECT_EQ(shared.received(1), kClients * kRounds);
  EXPECT_EQ(shared.received(2), kClients * kRounds);
}

PENSTOCK_ON_EVERY_BACKEND(Router);

TEST(MessageRouterDeathTest, RefusesSenselessRegistrations) {
  MessageRouter router;
  router.on(1, [](TcpConnection&, std::span<const std::byte>) {});
  EXPECT_DEATH(router.on(1, [](TcpConnection&, std::span<const std::byte>) {}), "handler already");
  static_cast<void>(router.handler());
  EXPECT_DEATH(router.on(2, [](TcpConnection&, std::span<const std::byte>) {}), "before handler");
  EXPECT_DEATH(router.on_unknown([](TcpConnection&, const Packet&) {}), "before handler");
}

}  // namespace
}  // namespace penstock::test

// Frames of a connection (scenarios F3, F6, F9 to F11, F16, S6, B2), on every back-end. What a codec
// makes of bytes, whatever the connection, is in tests/frame/.

#include "penstock/frame/frames.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "penstock/frame/delimiter_codec.h"
#include "penstock/frame/length_field_codec.h"
#include "penstock/frame/packet_codec.h"
#include "support/captured_log.h"
#include "support/frame_feed.h"
#include "support/serving.h"
#include "support/traffic.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;

constexpr std::size_t kKiB = 1024;
constexpr std::size_t kMiB = 1024 * kKiB;
constexpr std::size_t kNowhere = std::string_view::npos;

std::string packet(std::uint16_t code, std::string_view body) {
  return PacketCodec().encode({.code = code, .body = bytes_of(body)})->to_string();
}
std::string damaged(std::string bytes, std::size_t at) {
  bytes[at] = static_cast<char>(bytes[at] ^ 0x40);
  return bytes;
}

class Frames : public ConformanceTest {
 protected:
  /// The callbacks of recording(), with on_message from frames().
  template <FrameCodec Codec, class Handler>
  static ConnectionCallbacks reading(const std::shared_ptr<Record>& record, const Codec& codec,
                                     Handler handler) {
    ConnectionCallbacks callbacks = World::recording(record);
    auto reader = frames(codec, std::move(handler));
    callbacks.message_max = reader.message_max();
    callbacks.on_message = std::move(reader);
    return callbacks;
  }
  template <FrameCodec Codec, class Handler>
  World::Link connect(const Codec& codec, Handler handler, ConnectionLimits limits = {}) {
    auto record = std::make_shared<Record>();
    return world.connect(record, reading(record, codec, std::move(handler)), limits);
  }
  /// Writes down each frame.
  template <FrameCodec Codec>
  World::Link connect(const Codec& codec, ConnectionLimits limits = {}) {
    return connect(
        codec,
        [this](TcpConnection&, const typename Codec::Frame& frame) {
          seen.push_back(describe(frame));
        },
        limits);
  }
  bool ended(const World::Link& link) {
    return world.run_until([&] { return link.record->closes == 1; });
  }

  std::vector<std::string> seen;
};

using Seen = std::vector<std::string>;

// F3
TEST_P(Frames, SeveralFramesAndThePartOfOneInASingleReadAreDeliveredInOrder) {
  World::Link link = connect(PacketCodec());
  const std::string all = packet(1, "one") + packet(2, "") + packet(3, "three") + packet(4, "four");
  deliver(link, std::string_view(all).substr(0, all.size() - 2));
  world.settle();
  EXPECT_EQ(seen, (Seen{"1|one", "2|", "3|three"}));
  deliver(link, std::string_view(all).substr(all.size() - 2));
  world.settle();
  EXPECT_EQ(seen, (Seen{"1|one", "2|", "3|three", "4|four"}));
  EXPECT_EQ(link.record->closes, 0);
}

// F3
TEST_P(Frames, AFrameThatComesByteByByteIsDeliveredOnceItIsWhole) {
  World::Link link = connect(LineCodec());
  for (const char byte : "hello\r"s) {
    deliver(link, std::string(1, byte));
    world.settle();
    EXPECT_EQ(seen, Seen());
  }
  deliver(link, "\n");
  world.settle();
  EXPECT_EQ(seen, Seen{"hello"});
}

// F11
TEST_P(Frames, APauseHoldsTheFramesBehindUntilReadingIsResumed) {
  for (std::size_t pause_at = 1; pause_at <= 5; ++pause_at) {
    seen.clear();
    World::Link link = connect(LineCodec(), [&](TcpConnection& peer, std::string_view line) {
      seen.emplace_back(line);
      if (seen.size() == pause_at) peer.pause_reading();
    });
    deliver(link, "1\n2\n3\n4\n5\npart");
    world.settle();
    EXPECT_EQ(seen.size(), pause_at);
    deliver(link, "ial\n7\n");
    world.settle();
    EXPECT_EQ(seen.size(), pause_at);
    link.connection->resume_reading();
    world.settle();
    EXPECT_EQ(seen, (Seen{"1", "2", "3", "4", "5", "partial", "7"}));
    EXPECT_EQ(link.record->closes, 0);
  }
}

// F11
TEST_P(Frames, PausingAtEachFrameDeliversOneForEachResume) {
  World::Link link = connect(LineCodec(), [&](TcpConnection& peer, std::string_view line) {
    seen.emplace_back(line);
    peer.pause_reading();
  });
  deliver(link, "1\n2\n3\n4\n");
  send_fin(link);
  for (std::size_t wanted = 1; wanted <= 4; ++wanted) {
    world.settle();
    EXPECT_EQ(seen.size(), wanted);
    EXPECT_EQ(link.record->closes, 0);
    link.connection->resume_reading();
  }
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(seen, (Seen{"1", "2", "3", "4"}));
  EXPECT_EQ(link.record->report->reason, CloseReason::eof);
}

// F11
TEST_P(Frames, APauseThatIsTakenBackInTheHandlerChangesNothing) {
  World::Link link = connect(LineCodec(), [&](TcpConnection& peer, std::string_view line) {
    seen.emplace_back(line);
    peer.pause_reading();
    peer.resume_reading();
  });
  deliver(link, "1\n2\n3\n");
  world.settle();
  EXPECT_EQ(seen, (Seen{"1", "2", "3"}));
}

// F16
TEST_P(Frames, NoFrameFollowsAnEndInTheHandler) {
  const CapturedLog log;  // what is thrown is logged
  struct Ending {
    std::string name;
    std::function<void(TcpConnection&)> end;
    CloseReason reason;
    std::error_code error;
  };
  const Ending endings[] = {
      {"close", [](TcpConnection& peer) { peer.close(); }, CloseReason::local, {}},
      {"abort", [](TcpConnection& peer) { peer.abort(); }, CloseReason::local, {}},
      {"protocol error",
       [](TcpConnection& peer) { peer.close_with_protocol_error(FrameError::bad_content); },
       CloseReason::protocol, FrameError::bad_content},
      {"throw", [](TcpConnection&) { throw std::runtime_error("on purpose"); }, CloseReason::local,
       Errc::callback_threw},
      {"detach",
       [](TcpConnection& peer) { peer.detach([](const UniqueFd&, const std::string&) {}); },
       CloseReason::detached,
       {}},
  };
  for (const Ending& ending : endings) {
    for (std::size_t end_at = 1; end_at <= 4; ++end_at) {
      seen.clear();
      World::Link link = connect(LineCodec(), [&](TcpConnection& peer, std::string_view line) {
        seen.emplace_back(line);
        if (seen.size() == end_at) ending.end(peer);
      });
      deliver(link, "1\n2\n3\n4\npart");
      world.settle();
      link.client.reset();
      ASSERT_TRUE(ended(link)) << ending.name;
      EXPECT_EQ(seen.size(), end_at) << ending.name;
      EXPECT_EQ(link.record->report->reason, ending.reason) << ending.name;
      EXPECT_EQ(link.record->report->error, ending.error) << ending.name;
      // Lines of two bytes, and the part of one.
      const std::uint64_t left = ending.reason == CloseReason::detached ? 0 : 2 * (4 - end_at) + 4;
      EXPECT_EQ(link.record->report->input_discarded, left) << ending.name;
    }
  }
}

// F16
TEST_P(Frames, NoFrameFollowsTheDestructionOfTheServerInTheHandler) {
  Ledger ledger;
  auto server = std::make_unique<TcpServer>(world.loop);
  ledger.keep(*server);
  server->on_message(frames(LineCodec(), [&](TcpConnection&, std::string_view line) {
    seen.emplace_back(line);
    if (seen.size() == 2) server.reset();
  }));
  ASSERT_TRUE(server->start().has_value());
  RawClient client(connect_to(server->address()));
  ASSERT_EQ(send_text(linux_kernel(), client.fd.get(), "1\n2\n3\n4\n"), 8);
  ASSERT_TRUE(world.run_until([&] { return ledger.closes == 1; }));
  EXPECT_EQ(seen, (Seen{"1", "2"}));
}

// F16: the other half.
TEST_P(Frames, FinishingInTheHandlerEndsTheOutputAndNotTheInput) {
  World::Link link = connect(LineCodec(), [&](TcpConnection& peer, std::string_view line) {
    seen.emplace_back(line);
    peer.finish();
  });
  deliver(link, "1\n2\n3\n");
  world.settle();
  EXPECT_EQ(seen, (Seen{"1", "2", "3"}));
}

// F9, S6
TEST_P(Frames, WhatACodecRefusesEndsTheConnectionWithItsReason) {
  struct Case {
    FrameError error;
    std::string good;
    std::string bad;
    std::function<World::Link()> connect;
  };
  const LengthFieldCodec magic({.field = LengthField::u8, .magic = "PS", .before = 2});
  const LengthFieldCodec varint({.field = LengthField::varint});
  const std::string fine = packet(7, "fine");
  const std::vector<Case> cases = {
      {FrameError::bad_magic, "PS\1x", "PT\1x", [&] { return connect(magic); }},
      {FrameError::bad_varint, "\1x", "\x80\0x"s, [&] { return connect(varint); }},
      {FrameError::bad_length, fine, "\0\7\0\1\0\0\0\0"s, [&] { return connect(PacketCodec()); }},
      {FrameError::bad_checksum, fine, damaged(fine, 9), [&] { return connect(PacketCodec()); }},
      {FrameError::too_long, fine, "\0\x65"s,
       [&] { return connect(PacketCodec({.packet_max = 100})); }},
      {FrameError::too_long, "12\n", "12345678",
       [&] { return connect(LineCodec({.line_max = 4})); }},
  };
  for (const Case& each : cases) {
    seen.clear();
    World::Link link = each.connect();
    // Nothing behind it is looked at, however right it looks.
    deliver(link, each.good + each.bad + each.good);
    const Received rest = collect_to_end(world, link);
    EXPECT_EQ(rest.result, 0) << "an orderly end, so that replies are not lost";
    link.client.reset();
    ASSERT_TRUE(ended(link)) << to_string(each.error);
    EXPECT_EQ(seen.size(), 1u) << to_string(each.error);
    EXPECT_EQ(link.record->report->reason, CloseReason::protocol);
    EXPECT_EQ(link.record->report->error, each.error) << link.record->report->error.message();
    EXPECT_EQ(link.record->report->input_discarded, each.bad.size() + each.good.size());
  }
}

// F9: the replies to the frames before it arrive.
TEST_P(Frames, TheRepliesToTheFramesBeforeARefusedOneArrive) {
  World::Link link = connect(PacketCodec(), [](TcpConnection& peer, const Packet& request) {
    EXPECT_TRUE(send_frame(peer, PacketCodec(), request).has_value());
  });
  const std::string fine = packet(1, "one") + packet(2, std::string(50'000, 'b'));
  deliver(link, fine + damaged(packet(3, "three"), 10) + packet(4, "four"));
  const Received answer = collect_to_end(world, link);
  EXPECT_EQ(first_difference(answer.text, fine), kNowhere);
  EXPECT_EQ(answer.result, 0);
}

// F6, F7, F8, S6
TEST_P(Frames, AnAnnouncedLengthBeyondTheLimitIsRefusedBeforeAnyOfItHasCome) {
  for (const std::string_view header :
       {"\0\x10\0\1"sv, "\xFF\xFF\xFF\xFF"sv, "\x80\0\0\0"sv, "\x7F\xFF\xFF\xFF"sv}) {
    World::Link link = connect(LengthFieldCodec());
    deliver(link, header);
    collect_to_end(world, link);
    link.client.reset();
    ASSERT_TRUE(ended(link));
    EXPECT_EQ(link.record->report->error, FrameError::too_long);
    EXPECT_EQ(link.record->report->bytes_received, header.size());
  }
}

// F8, S6, P4
TEST_P(Frames, AnAnnouncedLengthWithinTheLimitCostsNoMemoryBeforeItComes) {
  World::Link link = connect(LengthFieldCodec({.frame_max = 32 * kMiB}));
  deliver(link, "\1\0\0\0hello"s);  // 16 MiB
  world.settle();
  EXPECT_EQ(link.record->closes, 0);
  EXPECT_LT(world.loop.memory().used(), 4 * kKiB + 2 * 9);
}

// F10
TEST_P(Frames, AnEndInsideOfAFrameIsTruncatedAndAtItsBoundaryEof) {
  const std::string all = packet(1, "hello") + packet(2, "") + packet(3, "x");
  const std::vector<std::size_t> boundaries = {0, 13, 21, 30};
  ASSERT_EQ(all.size(), boundaries.back());
  for (std::size_t size = 0; size <= all.size(); ++size) {
    seen.clear();
    World::Link link = connect(PacketCodec());
    deliver(link, std::string_view(all).substr(0, size));
    send_fin(link);
    ASSERT_TRUE(ended(link));
    const auto whole = std::ranges::upper_bound(boundaries, size) - boundaries.begin() - 1;
    EXPECT_EQ(seen.size(), static_cast<std::size_t>(whole));
    const std::size_t left = size - boundaries[static_cast<std::size_t>(whole)];
    EXPECT_EQ(link.record->report->reason, left == 0 ? CloseReason::eof : CloseReason::truncated)
        << size;
    EXPECT_EQ(link.record->report->input_discarded, left);
  }
}

// F10
TEST_P(Frames, ALastLineWithoutAnEndIsTruncated) {
  World::Link link = connect(LineCodec());
  deliver(link, "one\r\ntwo\r");
  send_fin(link);
  ASSERT_TRUE(ended(link));
  EXPECT_EQ(seen, Seen{"one"});
  EXPECT_EQ(link.record->report->reason, CloseReason::truncated);
}

// RE6
TEST_P(Frames, ABehaviourThatIsReplacedBetweenTwoFramesReadsTheNextOne) {
  auto record = std::make_shared<Record>();
  const BehaviourPtr packets =
      make_behaviour(reading(record, PacketCodec(), [&](TcpConnection&, const Packet& each) {
        seen.push_back(describe(each));
      }));
  World::Link link = world.connect(
      record, reading(record, LineCodec(), [&](TcpConnection& peer, std::string_view line) {
        seen.emplace_back(line);
        if (line == "upgrade") peer.set_behaviour(packets);
      }));
  // "\n" is in the packets, so that who reads on as before finds a line.
  deliver(link, "hello\nupgrade\n" + packet(10, "a\nb") + packet(11, "c\n"));
  world.settle();
  EXPECT_EQ(seen, (Seen{"hello", "upgrade", "10|a\nb", "11|c\n"}));
  EXPECT_EQ(record->closes, 0);
}

// F5
TEST_P(Frames, AFrameOfAMebibyteInSmallSegmentsPasses) {
  const std::string body = pattern(kMiB - 4);
  std::string received;
  World::Link link = connect(
      LengthFieldCodec(),
      [&](TcpConnection&, const LengthFieldFrame& frame) { received = text_of(frame.body); });
  const std::string wire = LengthFieldCodec().encode({.body = bytes_of(body)})->to_string();
  ASSERT_EQ(wire.size(), kMiB);
  for (std::size_t at = 0; at < wire.size(); at += 3000) {
    feed(world, link, std::string_view(wire).substr(at, 3000));
    world.turn();
  }
  ASSERT_TRUE(world.run_until([&] { return !received.empty() || link.record->closes != 0; }));
  EXPECT_EQ(link.record->closes, 0);
  EXPECT_EQ(first_difference(received, body), kNowhere);
  world.settle();
  EXPECT_EQ(world.loop.memory().used(), 0u);
}

// B2, R24
TEST_P(Frames, AHandlerWhoseRepliesAreNotReadStopsAtTheHighWaterMarkAndGoesOnLater) {
  constexpr std::size_t kReply = 50'000;
  constexpr std::size_t kRequests = 100;
  ConnectionLimits limits;
  World::Link link = connect(
      PacketCodec(),
      [&](TcpConnection& peer, const Packet& request) {
        seen.push_back(std::to_string(request.code));
        const std::string body = pattern(kReply);
        EXPECT_TRUE(
            send_frame(peer, PacketCodec(), {.code = request.code, .body = bytes_of(body)}));
      },
      limits);
  shrink_buffers(link);
  std::string requests;
  std::string wanted;
  for (std::uint16_t code = 1; code <= kRequests; ++code) {
    requests += packet(code, "please");
    wanted += packet(code, pattern(kReply));
  }
  deliver(link, requests);
  world.settle();
  EXPECT_LT(seen.size(), kRequests);
  EXPECT_LE(link.connection->queued_bytes(), limits.high_water + kReply + PacketCodec::kHeaderSize);
  EXPECT_EQ(link.record->count("high"), 1u);
  const std::size_t handled = seen.size();
  world.settle();
  EXPECT_EQ(seen.size(), handled) << "goes on although nothing is read";
  EXPECT_EQ(first_difference(collect(world, link, wanted.size()), wanted), kNowhere);
  EXPECT_EQ(seen.size(), kRequests);
  EXPECT_EQ(link.record->closes, 0);
}

// -- Sending --

TEST_P(Frames, RepliesToTheFramesOfOneReadLeaveTogether) {
  World::Link link = connect(PacketCodec(), [&](TcpConnection& peer, const Packet& request) {
    EXPECT_TRUE(send_frame(peer, PacketCodec(), request).has_value());
  });
  std::string requests;
  for (std::uint16_t code = 0; code < 16; ++code)
    requests += packet(code, "ping");
  const std::uint64_t before = send_calls(world);
  deliver(link, requests);
  EXPECT_EQ(collect(world, link, requests.size()), requests);
  EXPECT_EQ(send_calls(world), before + 1);
}

TEST_P(Frames, ALargeBodyIsSentFromWhereItIs) {
  World::Link link = connect(PacketCodec());
  const std::string body = pattern(60'000);
  bool lent = false;
  world.tap.on_send = [&](int, std::span<const iovec> pieces) {
    for (const iovec& piece : pieces)
      lent = lent || piece.iov_base == body.data();
  };
  EXPECT_TRUE(send_frame(*link.connection, PacketCodec(), {.code = 9, .body = bytes_of(body)}));
  // One that completes later owns what it sends, for the body is lent only until the call returns.
  if (acts_at_once(GetParam())) {
    EXPECT_TRUE(lent);
  }
  EXPECT_EQ(first_difference(collect(world, link, body.size() + 8), packet(9, body)), kNowhere);
}

TEST_P(Frames, WhatACodecCannotWriteIsAnErrorAndNothingIsSent) {
  World::Link link = connect(LineCodec());
  const Result<void> sent = send_frame(*link.connection, LineCodec(), "two\nlines");
  ASSERT_FALSE(sent.has_value());
  EXPECT_EQ(sent.error(), FrameError::has_delimiter);
  const auto tried = try_send_frame(*link.connection, LineCodec({.line_max = 3}), "1234");
  ASSERT_FALSE(tried.has_value());
  EXPECT_EQ(tried.error(), FrameError::too_long);
  EXPECT_EQ(link.connection->queued_bytes(), 0u);
  EXPECT_TRUE(link.connection->is_open());
  EXPECT_TRUE(send_frame(*link.connection, LineCodec(), "line").has_value());
  EXPECT_EQ(collect(world, link, 5), "line\n");
}

TEST_P(Frames, AFrameThatFindsNoRoomIsRefusedWhole) {
  ConnectionLimits limits;
  limits.output_max = 256 * kKiB;
  World::Link link = connect(LengthFieldCodec(), limits);
  shrink_buffers(link);
  const std::string body = pattern(30'000);
  std::string wanted;
  std::size_t refusals = 0;
  for (int i = 0; i < 100; ++i) {
    const Result<SendOutcome> outcome =
        try_send_frame(*link.connection, LengthFieldCodec(), {.body = bytes_of(body)});
    ASSERT_TRUE(outcome.has_value());
    if (*outcome == SendOutcome::full) {
      ++refusals;
    } else {
      wanted += LengthFieldCodec().encode({.body = bytes_of(body)})->to_string();
    }
  }
  EXPECT_GT(refusals, 0u);
  link.connection->finish();
  EXPECT_EQ(first_difference(collect_to_end(world, link).text, wanted), kNowhere);
  link.connection->abort();
  EXPECT_EQ(*try_send_frame(*link.connection, LengthFieldCodec(), {.body = bytes_of("late")}),
            SendOutcome::closed);
}

TEST_P(Frames, AFrameIsEncodedOnceForManyConnections) {
  std::vector<World::Link> links;
  for (int i = 0; i < 3; ++i)
    links.push_back(connect(PacketCodec()));
  const std::string body = pattern(10'000);
  const Result<SharedBytes> shared =
      shared_frame(PacketCodec(), {.code = 5, .body = bytes_of(body)});
  ASSERT_TRUE(shared.has_value());
  for (const World::Link& link : links)
    link.connection->send(*shared);
  for (const World::Link& link : links)
    EXPECT_EQ(collect(world, link, body.size() + 8), packet(5, body));
}

PENSTOCK_ON_EVERY_BACKEND(Frames);

}  // namespace
}  // namespace penstock::test

// A connection that reads packets for a router, through a real socket and a real loop, in pieces of
// any size. What the handlers are called with, what is counted and how the connection ends must be
// what the codec alone says of the whole stream.

#include <sys/socket.h>

#include <optional>
#include <vector>

#include "frame_oracle.h"
#include "penstock/frame/frames.h"
#include "penstock/frame/packet_codec.h"
#include "penstock/frame/router.h"
#include "penstock/loop/event_loop.h"
#include "penstock/os/kernel.h"
#include "penstock/tcp/adopt.h"
#include "penstock/tcp/behaviour.h"

namespace {

using namespace penstock;

constexpr std::uint16_t kRaw = 1;
constexpr std::uint16_t kEven = 2;

/// A message of an even number of bytes.
struct Even {
  std::size_t size = 0;
  static Result<Even> decode(std::span<const std::byte> body) {
    if (body.size() % 2 != 0) return std::unexpected(make_error_code(FrameError::bad_content));
    return Even{body.size()};
  }
};

/// One for all runs; `seen` and `report` are of the present one.
struct Server {
  Server() {
    router.on(kRaw, [this](TcpConnection& peer, std::span<const std::byte> body) {
      seen.push_back("raw " + test::text_of(body));
      fuzz::expect(send_frame(peer, PacketCodec(), {.code = kRaw, .body = body}).has_value(),
                   "what came cannot be sent");
    });
    router.on<Even>(kEven, [this](TcpConnection&, const Even& even) {
      seen.push_back("even " + std::to_string(even.size));
    });
    ConnectionCallbacks callbacks;
    auto reader = frames(PacketCodec(), router.handler());
    callbacks.message_max = reader.message_max();
    callbacks.on_message = std::move(reader);
    callbacks.on_close = [this](TcpConnection&, const CloseReport& its_report) {
      report = its_report;
    };
    behaviour = make_behaviour(std::move(callbacks));
  }

  EventLoop loop;
  MessageRouter router;
  BehaviourPtr behaviour;
  std::vector<std::string> seen;
  std::optional<CloseReport> report;
};

/// What the codec says should come of it.
struct Wanted {
  std::vector<std::string> seen;
  std::uint64_t raw = 0;
  std::uint64_t even = 0;
  std::uint64_t refused = 0;
  std::uint64_t unknown = 0;
  CloseReason reason = CloseReason::eof;
  std::error_code error{};
};

Wanted judge(std::string_view stream) {
  Wanted wanted;
  std::span<const std::byte> left = test::bytes_of(stream);
  const auto refuse = [&](FrameError error) {
    wanted.reason = CloseReason::protocol;
    wanted.error = error;
    return wanted;
  };
  while (!left.empty()) {
    std::size_t progress = 0;
    const Decoded<Packet> next = PacketCodec().decode(left, progress);
    if (next.status == DecodeStatus::refused) return refuse(next.error);
    if (next.status == DecodeStatus::incomplete) {
      wanted.reason = CloseReason::truncated;
      return wanted;
    }
    left = left.subspan(next.size);
    if (next.frame.code == kRaw) {
      ++wanted.raw;
      wanted.seen.push_back("raw " + test::text_of(next.frame.body));
    } else if (next.frame.code == kEven) {
      ++wanted.even;
      if (next.frame.body.size() % 2 != 0) {
        ++wanted.refused;
        return refuse(FrameError::bad_content);
      }
      wanted.seen.push_back("even " + std::to_string(next.frame.body.size()));
    } else {
      ++wanted.unknown;
      return refuse(FrameError::unknown_code);
    }
  }
  return wanted;
}

void run(Server& server, std::string_view stream, std::string_view sizes) {
  int ends[2];
  fuzz::expect(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0,
               "no sockets");
  UniqueFd client(linux_kernel(), ends[0]);
  fuzz::expect(adopt_connection(server.loop, UniqueFd(linux_kernel(), ends[1]), server.behaviour)
                   .has_value(),
               "no connection");
  for (std::size_t fed = 0, next = 0; fed < stream.size() && !server.report; ++next) {
    const std::size_t wanted =
        sizes.empty() ? stream.size()
                      : std::size_t{1} + static_cast<std::uint8_t>(sizes[next % sizes.size()]);
    const std::string_view piece = stream.substr(fed, wanted);
    // It fails when the connection has been closed for what came before.
    if (::send(client.get(), piece.data(), piece.size(), MSG_NOSIGNAL) < 0) break;
    fed += piece.size();
    server.loop.step();
  }
  ::shutdown(client.get(), SHUT_WR);
  constexpr int kStepsMax = 1000;
  for (int step = 0; !server.report && step < kStepsMax; ++step)
    server.loop.step();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Server server;
  fuzz::Choices choices(data, size);
  const std::string_view sizes = fuzz::piece_sizes(choices);
  std::string stream;
  if (choices.below(4) == 0) {
    stream = choices.rest();
  } else {
    stream = fuzz::written_stream(choices, [](fuzz::Choices& from) {
      const auto code = static_cast<std::uint16_t>(from.below(4));
      const std::string_view body = from.take(from.byte());
      return PacketCodec().encode({.code = code, .body = test::bytes_of(body)})->to_string();
    });
  }
  server.seen.clear();
  server.report.reset();
  const MessageRouter& router = server.router;
  const std::uint64_t raw = router.received(kRaw);
  const std::uint64_t even = router.received(kEven);
  const std::uint64_t refused = router.refused(kEven);
  const std::uint64_t unknown = router.unknown();
  run(server, stream, sizes);

  const Wanted wanted = judge(stream);
  fuzz::expect(server.report.has_value(), "the connection has not ended");
  fuzz::expect(server.report->reason == wanted.reason, "it ended for another reason");
  fuzz::expect(server.report->error == wanted.error, "it ended with another error");
  fuzz::expect(server.seen == wanted.seen, "the handlers saw something else");
  fuzz::expect(router.received(kRaw) - raw == wanted.raw, "miscounted");
  fuzz::expect(router.received(kEven) - even == wanted.even, "miscounted");
  fuzz::expect(router.refused(kEven) - refused == wanted.refused, "miscounted refusals");
  fuzz::expect(router.unknown() - unknown == wanted.unknown, "miscounted unknown codes");
  return 0;
}

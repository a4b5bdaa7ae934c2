#include "faults/scripts.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "support/traffic.h"

namespace penstock::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::size_t kSmall = 100;    // leaves merged
constexpr std::size_t kLarge = 6'000;  // leaves at once
constexpr std::size_t kReply = 9'000;
constexpr std::size_t kHuge = 1'000'000;  // many times what the kernel takes at once
constexpr std::size_t kQueued = 300'000;  // more than the kernel takes at once
constexpr int kSmallBuffer = 32'768;
constexpr int kHugeBuffer = 65'536;
constexpr std::size_t kSip = 32'768;  // what a slow reader reads at a time

// Made once: it takes longer than a run.
std::string text_of(std::size_t size) {
  static const std::string all = pattern(kHuge);
  return all.substr(0, size);
}

ConnectionLimits limits() {
  ConnectionLimits limits;
  limits.half_close_timeout = seconds(3);
  limits.drain_idle_timeout = seconds(3);
  limits.drain_timeout = seconds(6);
  limits.broken_pause_timeout = seconds(3);
  return limits;
}

void shrink_send_buffer(const TcpConnection& connection, int size = kSmallBuffer) {
  linux_kernel().setsockopt(connection.descriptor(), SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
}

// A client that sees its connection accepted, has two requests echoed, a small one and a large one, and finishes.
void accept_echo_close(Stage& stage) {
  const std::string text = text_of(kSmall + kLarge);
  stage.to_server = stage.to_peer = text;
  if (!stage.make_loop()) return;
  if (!stage.serve({.limits = limits()},
                   {.on_message = [](TcpConnection& connection, std::string_view request) {
                     connection.send(request);
                   }})) {
    return;
  }
  Peer peer = stage.connect_peer();
  const auto echoed = [&](std::size_t size) {
    return stage.until("the echo has come", [&, size] {
      peer.read();
      return peer.end || peer.received.size() >= size;
    });
  };
  peer.send(std::string_view(text).substr(0, kSmall));
  echoed(kSmall);
  stage.loop->backend().wake();
  stage.turn();
  peer.send(std::string_view(text).substr(kSmall));
  echoed(text.size());
  peer.finish();
  stage.until("the peer sees the end", [&] {
    peer.read();
    return peer.end.has_value();
  });
  stage.note_peer(peer);
  peer.fd.reset();
  stage.until_all_closed();
}

TcpClientOptions client_options(std::string address) {
  return {.connect_to = std::move(address),
          .connect_timeout = seconds(5),
          .attempts_max = 4,
          .retry_delay_min = milliseconds(10),
          .retry_delay_max = milliseconds(20),
          .limits = limits()};
}

// What every client of these scripts does once it is connected.
Part requests(const std::string& text) {
  return {.on_connect = [&text](TcpConnection& connection) {
    connection.send(std::string_view(text).substr(0, kSmall));
    connection.send(std::string_view(text).substr(kSmall));
    connection.finish();
  }};
}

// A client connects, sends, half-closes, reads the reply and ends. The server is a raw one.
void connect_request_reply(Stage& stage) {
  stage.to_peer = text_of(kSmall + kLarge);
  stage.to_client = text_of(kReply);
  if (!stage.make_loop()) return;
  const Listener listener = listen_tcp(linux_kernel());
  stage.connect(client_options(listener.address.to_string()), requests(stage.to_peer));
  Peer peer;
  bool replied = false;
  const auto serve = [&] {
    // An attempt that fails late leaves a connection behind; the one that counts is the last.
    const int fd =
        linux_kernel().accept4(listener.fd.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      peer = Peer{.fd = UniqueFd(linux_kernel(), fd)};
      replied = false;
    }
    peer.read();
    if (peer.fd && peer.end == 0 && !std::exchange(replied, true)) {
      peer.send(stage.to_client);
      peer.finish();
    }
    const ClientState state = stage.client->state();
    return state == ClientState::idle || state == ClientState::stopped;
  };
  stage.until("the client has done all it will do", serve);
  stage.until_all_closed();
  serve();
  stage.note_peer(peer);
  stage.client.reset();
}

// A server sends much to a client that reads slowly, through small kernel buffers.
void large_send_to_slow_reader(Stage& stage) {
  stage.to_peer = text_of(kHuge);
  if (!stage.make_loop()) return;
  if (!stage.serve({.limits = limits()}, {.on_connect = [&stage](TcpConnection& connection) {
                     shrink_send_buffer(connection, kHugeBuffer);
                     connection.send(std::string(stage.to_peer));
                     connection.finish();
                   }})) {
    return;
  }
  Peer peer = stage.connect_peer(kHugeBuffer);
  stage.until("the reader has it all", [&] {
    peer.read(2 * kSip);
    return peer.end.has_value();
  });
  stage.note_peer(peer);
  peer.fd.reset();
  stage.until_all_closed();
}

// Two clients; the server is stopped in order while it has output queued for both.
void orderly_stop(Stage& stage) {
  stage.to_peer = text_of(kQueued);
  if (!stage.make_loop()) return;
  bool stopped = false;
  const auto send = [&stage](TcpConnection& connection) {
    shrink_send_buffer(connection);
    connection.send(stage.to_peer);
  };
  if (!stage.serve({.limits = limits()}, {.on_connect = send}, [&] { stopped = true; })) return;
  Peer peers[2];
  for (Peer& peer : peers) {
    const ServerStatistics before = stage.server->statistics();
    peer = stage.connect_peer(kSmallBuffer);
    stage.until("the client is served or refused", [&] {
      const ServerStatistics now = stage.server->statistics();
      return now.accepted + now.refused_for_descriptors >
             before.accepted + before.refused_for_descriptors;
    });
  }
  stage.in_loop([&] { stage.server->stop(std::chrono::minutes(5)); });
  stage.until("the server has stopped", [&] {
    for (Peer& peer : peers) {
      peer.read(kSip);
      if (peer.end) peer.fd.reset();
    }
    return stopped;
  });
  stage.notes.emplace_back(stopped ? "stopped" : "not stopped");
  for (Peer& peer : peers) {
    peer.read();
    stage.note_peer(peer);
  }
  stage.until_all_closed();
  stage.retire_server();
}

// A client connects, sends, half-closes, reads the reply and ends; both ends are the library's, over a Unix socket.
void unix_request_reply(Stage& stage) {
  stage.to_server = text_of(kSmall + kLarge);
  stage.to_client = text_of(kReply);
  if (!stage.make_loop()) return;
  const std::string address = "unix:" + unix_path();
  if (!stage.serve({.listen = address, .limits = limits()},
                   {.on_peer_finished = [&stage](TcpConnection& connection) {
                     connection.send(stage.to_client);
                     connection.finish();
                   }})) {
    return;
  }
  stage.connect(client_options(address), requests(stage.to_server));
  stage.until("the client has done all it will do", [&] {
    const ClientState state = stage.client->state();
    return state == ClientState::idle || state == ClientState::stopped;
  });
  stage.until_all_closed();
  stage.client.reset();
  stage.retire_server();
  stage.turn();
}

// One client stays silent, one asks for much and reads nothing; both end by time.
void time_outs(Stage& stage) {
  stage.to_peer = text_of(kQueued);
  stage.to_server = "?";  // one byte: it cannot come in parts
  if (!stage.make_loop()) return;
  if (!stage.serve(
          {.limits = limits()},
          {.on_connect = [](TcpConnection& connection) { shrink_send_buffer(connection); },
           .on_message = [&stage](TcpConnection& connection,
                                  std::string_view) { connection.send(stage.to_peer); }})) {
    return;
  }
  const auto pass_until_over = [&](Duration time, std::size_t count) {
    for (int i = 0; i < 8; ++i) {
      if (stage.server->statistics().ended >= count) return;
      stage.pass(time);
    }
    stage.notes.emplace_back("the time-out did not come");
  };
  const auto served = [&](std::size_t count) {
    return stage.until("the client is served or refused", [&, count] {
      const ServerStatistics now = stage.server->statistics();
      return now.accepted + now.refused_for_descriptors >= count;
    });
  };
  const auto gone = [&](std::size_t count) {
    return stage.server->statistics().ended + stage.server->statistics().refused_for_descriptors >=
           count;
  };
  Peer silent = stage.connect_peer();
  served(1);
  if (!gone(1)) pass_until_over(seconds(40), 1);
  silent.read();
  stage.note_peer(silent);

  Peer greedy = stage.connect_peer(kSmallBuffer);
  served(2);
  greedy.send(stage.to_server);
  stage.until("it has asked", [&] {
    return gone(2) || (!stage.lives.empty() && stage.lives.back()->received == stage.to_server);
  });
  stage.until_quiet();
  if (!gone(2)) pass_until_over(seconds(10), stage.server->statistics().ended + 1);
  greedy.read();
  stage.note_peer(greedy, Stage::Amount::untold);
  silent.fd.reset();
  greedy.fd.reset();
  stage.until_all_closed();
}

}  // namespace

std::string unix_path() {
  return testing::TempDir() + "penstock-faults-" + std::to_string(::getpid());
}

const std::vector<Script>& scripts() {
  static const std::vector<Script> all = {
      {"accept_echo_close",
       &accept_echo_close,
       {"peer: 6100 bytes, fin", "server: 6100 bytes, eof"}},
      {"connect_request_reply",
       &connect_request_reply,
       {"client: 9000 bytes, eof", "peer: 6100 bytes, fin"}},
      {"large_send_to_slow_reader",
       &large_send_to_slow_reader,
       {"peer: 1000000 bytes, fin", "server: 0 bytes, eof"}},
      {"orderly_stop",
       &orderly_stop,
       {"peer: 300000 bytes, fin", "peer: 300000 bytes, fin", "server: 0 bytes, local",
        "server: 0 bytes, local", "stopped"}},
      {"unix_request_reply",
       &unix_request_reply,
       {"client: 9000 bytes, eof", "server: 6100 bytes, eof"}},
      {"time_outs",
       &time_outs,
       {"peer: 0 bytes, fin", "peer: some bytes, ECONNRESET", "server: 0 bytes, idle",
        "server: 1 bytes, write_stall"}},
  };
  return all;
}

const Script& script_of(std::string_view name) {
  return *std::ranges::find(scripts(), name, &Script::name);
}

}  // namespace penstock::test

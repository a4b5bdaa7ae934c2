// A game server's front door: packets of length, code and checksum, a handler for each code.
//
//   build/release/bin/examples/packet_server 127.0.0.1:7004
//
// Header, in network byte order: u16 length of the whole packet, u16 code, u32 CRC-32 of the body.
//
//   code 1  register  u8 length, name, u8 length, password   -> 101 u8: 0 done, 1 the name is taken
//   code 2  login     the same                               -> 102 u8: 0 done, 1 wrong, 2 already in
//   code 3  ping      any bytes, only after a login          -> 103 the same bytes
//
// Shown here: MessageRouter with messages of types that read themselves, and may refuse; the state of a
// connection; why a connection ended, which the server prints. Whoever sends what is no packet, a
// code that nobody handles, or a ping before its login, is closed with that reason.
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>

#include <penstock/penstock.h>

namespace {

enum Code : std::uint16_t { register_account = 1, login = 2, ping = 3 };
constexpr std::uint16_t kReply = 100;  // added to the code of the request

// What register and login carry.
struct Credentials {
  std::string_view name;
  std::string_view password;

  static penstock::Result<Credentials> decode(std::span<const std::byte> body) {
    Credentials read;
    if (!take_text(body, read.name) || !take_text(body, read.password) || !body.empty()) {
      return std::unexpected(make_error_code(penstock::FrameError::bad_content));
    }
    return read;
  }

 private:
  static bool take_text(std::span<const std::byte>& body, std::string_view& text) {
    if (body.empty()) return false;
    const auto size = std::to_integer<std::size_t>(body[0]);
    if (body.size() - 1 < size) return false;
    text = {reinterpret_cast<const char*>(body.data()) + 1, size};
    body = body.subspan(1 + size);
    return true;
  }
};

struct Player {
  bool is_in = false;
};

void reply(penstock::TcpConnection& peer, Code to, std::span<const std::byte> body) {
  const penstock::Packet packet{.code = static_cast<std::uint16_t>(kReply + to), .body = body};
  // Every body that came as a packet fits into one.
  if (!send_frame(peer, penstock::PacketCodec(), packet)) peer.abort();
}

void reply(penstock::TcpConnection& peer, Code to, std::uint8_t result) {
  reply(peer, to, std::as_bytes(std::span(&result, 1)));
}

class Accounts {
 public:
  void add(penstock::TcpConnection& peer, const Credentials& wanted) {
    const bool added = passwords_.try_emplace(std::string(wanted.name), wanted.password).second;
    reply(peer, register_account, added ? 0 : 1);
  }

  void let_in(penstock::TcpConnection& peer, const Credentials& given) const {
    auto& player = peer.context<Player>();
    const auto known = passwords_.find(std::string(given.name));
    const bool right = known != passwords_.end() && known->second == given.password;
    reply(peer, login, player.is_in ? 2 : right ? 0 : 1);
    player.is_in = player.is_in || right;
  }

 private:
  std::unordered_map<std::string, std::string> passwords_;
};

}  // namespace

int main(int argc, char** argv) {
  Accounts accounts;  // one loop serves everybody, so it needs no lock
  penstock::MessageRouter router;
  router.on<Credentials>(register_account,
                         [&accounts](penstock::TcpConnection& peer, const Credentials& wanted) {
                           accounts.add(peer, wanted);
                         });
  router.on<Credentials>(login,
                         [&accounts](penstock::TcpConnection& peer, const Credentials& given) {
                           accounts.let_in(peer, given);
                         });
  router.on(ping, [](penstock::TcpConnection& peer, std::span<const std::byte> body) {
    if (peer.context<Player>().is_in) {
      reply(peer, ping, body);
    } else {
      peer.close_with_protocol_error(std::make_error_code(std::errc::permission_denied));
    }
  });

  penstock::TcpServer server({.listen = argc > 1 ? argv[1] : "127.0.0.1:7004"});
  server.on_connect([](penstock::TcpConnection& peer) { peer.emplace_context<Player>(); });
  server.on_message(frames(penstock::PacketCodec(), router.handler()));
  server.on_close([](penstock::TcpConnection&, const penstock::CloseReport& report) {
    std::printf("closed: %s%s%s\n", std::string(to_string(report.reason)).c_str(),
                report.error ? ": " : "", report.error ? report.error.message().c_str() : "");
    std::fflush(stdout);
  });
  server.on_listening([&server] {
    std::printf("listening on %s\n", server.address().to_string().c_str());
    std::fflush(stdout);
  });
  const int status = server.run();
  std::printf("register %llu, login %llu, ping %llu, other codes %llu\n",
              static_cast<unsigned long long>(router.received(register_account)),
              static_cast<unsigned long long>(router.received(login)),
              static_cast<unsigned long long>(router.received(ping)),
              static_cast<unsigned long long>(router.unknown()));
  return status;
}

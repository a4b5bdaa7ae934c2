// A chat room: what one client writes, line by line, all others read.
//
//   build/release/bin/examples/chat 127.0.0.1:7001     then: nc 127.0.0.1 7001, twice
//
// Shown here: one payload for many connections without copying it (SharedBytes), the state of a
// connection (emplace_context), and what to do with a reader that is too slow: it misses old lines, and
// nobody waits for it (SlowConsumer). Where all members get all messages, on any loops, a
// ConnectionGroup is the room; here the speaker does not hear himself.
#include <cstdio>
#include <string>
#include <unordered_set>

#include <penstock/penstock.h>

namespace {

struct Member {
  std::string name;
};

class Room {
 public:
  void join(penstock::TcpConnection& peer) {
    peer.emplace_context<Member>("guest" + std::to_string(++guests_));
    peer.send("you are " + peer.context<Member>().name + "\n");
    say(peer.context<Member>().name + " has come\n");
    members_.insert(&peer);
  }

  void leave(penstock::TcpConnection& peer) {
    if (members_.erase(&peer) == 1) say(peer.context<Member>().name + " has gone\n");
  }

  void say(const std::string& line, const penstock::TcpConnection* except = nullptr) {
    const penstock::SharedBytes shared{std::string(line)};
    for (penstock::TcpConnection* member : members_) {
      if (member != except) static_cast<void>(member->send_message(shared));
    }
  }

 private:
  std::unordered_set<penstock::TcpConnection*> members_;
  int guests_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  penstock::ConnectionLimits limits;
  limits.slow_consumer = penstock::SlowConsumer::drop_oldest;
  penstock::TcpServer server({.listen = argc > 1 ? argv[1] : "127.0.0.1:7001", .limits = limits});
  Room room;  // one loop serves everybody, so it needs no lock
  server.on_connect([&room](penstock::TcpConnection& peer) { room.join(peer); });
  server.on_message([&room](penstock::TcpConnection& peer, penstock::InputBuffer& in) {
    while (const auto end = in.find('\n')) {
      room.say(peer.context<Member>().name + ": " + in.take_string(*end + 1), &peer);
    }
  });
  server.on_close(
      [&room](penstock::TcpConnection& peer, const penstock::CloseReport&) { room.leave(peer); });
  server.on_listening([&server] {
    std::printf("listening on %s\n", server.address().to_string().c_str());
    std::fflush(stdout);
  });
  return server.run();
}

#include "support/traffic.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace penstock::test {
namespace {

void set_option(int fd, int level, int name, int value) {
  EXPECT_EQ(linux_kernel().setsockopt(fd, level, name, &value, sizeof value), 0);
}

}  // namespace

std::string pattern(std::size_t size) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) {
    text[i] = static_cast<char>('!' + (i ^ (i >> 7) ^ (i >> 13) ^ (i >> 19)) % 90);
  }
  return text;
}

std::size_t first_difference(std::string_view left, std::string_view right) {
  if (left == right) return std::string_view::npos;
  const auto [at, other] = std::ranges::mismatch(left, right);
  return static_cast<std::size_t>(at - left.begin());
}

void shrink_buffers(const World::Link& link) {
  constexpr int kSmall = 32768;
  set_option(link.connection->descriptor(), SOL_SOCKET, SO_SNDBUF, kSmall);
  set_option(link.connection->descriptor(), IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(link.client.get(), SOL_SOCKET, SO_RCVBUF, kSmall);
}

std::string receive_available(const World::Link& link) {
  std::string text;
  while (true) {
    Received some = receive(linux_kernel(), link.client.get());
    if (some.result <= 0) return text;
    text += some.text;
  }
}

std::string collect(World& world, const World::Link& link, std::size_t size) {
  std::string text;
  EXPECT_TRUE(world.run_until([&] {
    if (text.size() >= size) return true;
    Received some = receive(linux_kernel(), link.client.get(), size - text.size());
    text += some.text;
    return text.size() >= size || (some.result <= 0 && some.result != -EAGAIN);
  }));
  return text;
}

Received collect_to_end(World& world, const World::Link& link) {
  Received all{.result = -EAGAIN, .text = {}};
  EXPECT_TRUE(world.run_until([&] {
    Received some = receive(linux_kernel(), link.client.get(), std::size_t{256} * 1024);
    all.text += some.text;
    all.result = some.result;
    return some.result <= 0 && some.result != -EAGAIN;
  }));
  return all;
}

void feed(World& world, const World::Link& link, std::string_view text) {
  constexpr std::size_t kChunk = std::size_t{256} * 1024;
  EXPECT_TRUE(world.run_until([&] {
    while (!text.empty()) {
      const ssize_t sent = send_text(linux_kernel(), link.client.get(), text.substr(0, kChunk));
      if (sent < 0) break;
      text.remove_prefix(static_cast<std::size_t>(sent));
    }
    return text.empty();
  }));
}

void deliver(const World::Link& link, std::string_view text) {
  ASSERT_EQ(send_text(linux_kernel(), link.client.get(), text), static_cast<ssize_t>(text.size()));
  ASSERT_TRUE(all_acknowledged(linux_kernel(), link.client.get()));
}

void send_fin(const World::Link& link) {
  EXPECT_EQ(linux_kernel().shutdown(link.client.get(), SHUT_WR), 0);
}

void send_reset(World::Link& link) {
  reset_on_close(linux_kernel(), link.client.get());
  link.client.reset();
}

void pass(World& world, Duration time) {
  world.kernel.advance(time);
  world.turn(4);
}

std::uint64_t send_calls(const World& world) {
  return world.kernel.calls(Call::send) + world.kernel.calls(Call::sendmsg);
}

std::optional<std::uint32_t> armed_events(const World& world, int fd) {
  if (const auto polled = world.kernel.polled_for(fd)) return static_cast<std::uint32_t>(*polled);
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fdinfo")) {
    std::ifstream file(entry.path());
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::string tfd;
      std::string events;
      int watched = -1;
      std::uint32_t mask = 0;
      if (words >> tfd >> watched >> events >> std::hex >> mask && tfd == "tfd:" && watched == fd) {
        return mask;
      }
    }
  }
  return std::nullopt;
}

}  // namespace penstock::test

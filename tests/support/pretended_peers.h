// A kernel that says of each accepted connection that it comes from elsewhere: tests reach a server
// by the loopback only, and what protects against bad peers lets the loopback alone. It may also
// stop the clock and load the dice.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <functional>
#include <optional>
#include <string>

#include "penstock/os/forwarding_kernel.h"
#include "penstock/os/socket_address.h"

namespace penstock::test {

/// Set it up before the loops run; `who` is asked on the accepting thread.
class PretendedPeers final : public ForwardingKernel {
 public:
  PretendedPeers() : ForwardingKernel(linux_kernel()) {}

  /// Where the connection comes from that is accepted as the number-th (from 0); when empty, what
  /// the kernel says.
  std::function<SocketAddress(std::size_t number)> who;
  /// When set: the value of each byte of entropy.
  std::optional<unsigned char> dice;
  /// When set: what the clock says.
  std::optional<TimePoint> still;

  /// Stops the clock.
  void stand_still() { still = linux_kernel().now(); }
  /// Connections it has named.
  std::size_t named() const noexcept { return named_.load(); }

 private:
  int raw_accept4(int fd, sockaddr* peer, socklen_t* size, int flags) override {
    const int result = ForwardingKernel::raw_accept4(fd, peer, size, flags);
    if (result < 0 || peer == nullptr || !who) return result;
    const SocketAddress address = who(named_++);
    std::memcpy(peer, address.data(), address.size());
    *size = address.size();
    return result;
  }
  int raw_entropy(std::span<std::byte> bytes) override {
    if (!dice) return ForwardingKernel::raw_entropy(bytes);
    std::ranges::fill(bytes, std::byte{*dice});
    return 0;
  }
  TimePoint raw_now() override { return still ? *still : ForwardingKernel::raw_now(); }

  std::atomic<std::size_t> named_{0};
};

/// An address from its text.
inline SocketAddress address_of(const std::string& text) {
  return SocketAddress::parse(text).value();
}

/// The number-th address of 10.0.0.0/8, from a port that changes.
inline SocketAddress tenth_address(std::size_t number) {
  return address_of("10." + std::to_string(number >> 16 & 255) + '.' +
                    std::to_string(number >> 8 & 255) + '.' + std::to_string(number & 255) + ':' +
                    std::to_string(1024 + number % 60'000));
}

}  // namespace penstock::test

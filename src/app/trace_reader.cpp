#include "app/trace_reader.h"

#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <utility>

namespace penstock::app {
namespace {

constexpr std::size_t kBufferSize = std::size_t{64} * 1024;
constexpr Duration kPeriod = std::chrono::milliseconds(10);
// One period's reading, however fast the rate and late the loop.
constexpr std::size_t kReadAtOnceMax = std::size_t{64} * 1024 * 1024;

}  // namespace

SlowReader::SlowReader(EventLoop& loop, SlowReaderOptions options,
                       std::move_only_function<void()> on_end)
    : loop_(loop),
      kernel_(linux_kernel()),
      options_(options),
      on_end_(std::move(on_end)),
      buffer_(kBufferSize) {}

Result<void> SlowReader::connect(const SocketAddress& server) {
  if (const Result<void> opened = open(server); !opened) return opened;
  return start_reading();
}

Result<void> SlowReader::open(const SocketAddress& server) {
  const int fd = kernel_.socket(server.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return failure(fd);
  fd_ = UniqueFd(kernel_, fd);

  // Before connect(), which announces the window (tcp(7)).
  const int wanted = static_cast<int>(std::min<std::size_t>(options_.receive_buffer, INT_MAX));
  int result = kernel_.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &wanted, sizeof wanted);
  if (result < 0) return failure(result);
  socklen_t size = sizeof receive_buffer_;
  result = kernel_.getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer_, &size);
  if (result < 0) return failure(result);

  result = kernel_.connect(fd, server.data(), server.size());
  if (result < 0 && result != -EINPROGRESS) return failure(result);
  sockaddr_storage own{};
  socklen_t own_size = sizeof own;
  result = kernel_.getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_size);
  if (result < 0) return failure(result);
  address_ = SocketAddress(reinterpret_cast<const sockaddr*>(&own), own_size);
  return {};
}

// Timer and watch end in close(), so that neither outlives this.
Result<void> SlowReader::start_reading() {
  start_ = kernel_.now();
  if (options_.rate > 0) {
    timer_ = loop_.run_every(kPeriod, [this] { read_what_is_due(); });
    return {};
  }
  const Result<WatchId> watch =
      loop_.watch(fd_.get(), Interest::readable, [this](Readiness) { read(buffer_.size()); });
  if (!watch) return std::unexpected(watch.error());
  watch_ = *watch;
  return {};
}

void SlowReader::read_what_is_due() {
  const std::chrono::duration<double> elapsed = kernel_.now() - start_;
  const double due =
      static_cast<double>(options_.rate) * elapsed.count() - static_cast<double>(received_);
  const double most = std::clamp(due, 0.0, static_cast<double>(kReadAtOnceMax));
  read(static_cast<std::size_t>(most));
}

void SlowReader::read(std::size_t most) {
  while (most > 0) {
    const ssize_t result =
        kernel_.recv(fd_.get(), buffer_.data(), std::min(most, buffer_.size()), 0);
    if (result == -EAGAIN) return;
    if (result <= 0) {
      end(static_cast<int>(-result));
      return;
    }
    const auto size = static_cast<std::size_t>(result);
    check(std::span(buffer_).first(size));
    most -= size;
  }
}

void SlowReader::check(std::span<const std::byte> bytes) noexcept {
  hash_.add(bytes);
  for (std::size_t i = 0; i < bytes.size() && !first_wrong_; ++i) {
    if (bytes[i] != payload_byte(received_ + i)) first_wrong_ = received_ + i;
  }
  received_ += bytes.size();
}

void SlowReader::end(int error) {
  if (error != 0) error_ = system_error(error);
  close();
  on_end_();
}

void SlowReader::close() noexcept {
  if (watch_) loop_.unwatch(*std::exchange(watch_, std::nullopt));
  loop_.cancel(std::exchange(timer_, TimerId{}));
  fd_.reset();
}

}  // namespace penstock::app

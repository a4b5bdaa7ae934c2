// For comparison only. The design of the well-known reactor libraries in C++ and of the books about
// them: each loop has a vector of functors behind a mutex. Whoever is in another thread adds one and
// writes to the loop's eventfd, each time; the loop reads the eventfd, swaps the vector and runs
// what was in it. A functor sends at once if nothing is queued, keeps what the kernel does not take,
// and waits for EPOLLOUT. Functors are std::function, so what they hold is copied or shared.

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "design.h"

namespace designs {
namespace {

class FunctorLoop final : public Design {
 public:
  explicit FunctorLoop(std::vector<int> descriptors) {
    epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    insist(epoll_ >= 0 && wake_ >= 0, "epoll_create1, eventfd");
    watch(EPOLL_CTL_ADD, wake_, EPOLLIN, nullptr);
    for (const int descriptor : descriptors) {
      connections_.push_back(std::make_shared<Connection>(descriptor));
      watch(EPOLL_CTL_ADD, descriptor, 0, connections_.back().get());
    }
    thread_ = std::thread([this] { run(); });
  }

  ~FunctorLoop() override {
    ending_ = true;
    wake();
    thread_.join();
    for (const std::shared_ptr<Connection>& connection : connections_)
      ::close(connection->fd);
    ::close(wake_);
    ::close(epoll_);
  }

  void send(std::size_t connection, std::string message) override {
    {
      const std::lock_guard lock(mutex_);
      functors_.emplace_back([this, to = connections_[connection], message = std::move(message)] {
        send_in_loop(*to, message);
      });
    }
    wake();
  }

  std::uint64_t wakeups() const override { return wakeups_.load(); }

 private:
  struct Connection {
    explicit Connection(int its_fd) : fd(its_fd) {}
    int fd;
    std::string queued{};
  };

  void wake() {
    const std::uint64_t one = 1;
    wakeups_.fetch_add(1, std::memory_order_relaxed);
    insist(::write(wake_, &one, sizeof one) == sizeof one, "write to an eventfd");
  }

  void watch(int operation, int descriptor, std::uint32_t events, Connection* connection) {
    epoll_event event{};
    event.events = events;
    event.data.ptr = connection;
    insist(::epoll_ctl(epoll_, operation, descriptor, &event) == 0, "epoll_ctl");
  }

  void run() {
    std::array<epoll_event, 64> events{};
    while (!ending_) {
      const int count = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
      insist(count >= 0 || errno == EINTR, "epoll_wait");
      for (int i = 0; i < count; ++i) {
        auto* connection = static_cast<Connection*>(events[static_cast<std::size_t>(i)].data.ptr);
        if (connection != nullptr) {
          send_queued(*connection);
          continue;
        }
        std::uint64_t value = 0;
        insist(::read(wake_, &value, sizeof value) == sizeof value, "read of an eventfd");
      }
      std::vector<std::function<void()>> functors;
      {
        const std::lock_guard lock(mutex_);
        functors.swap(functors_);
      }
      for (const std::function<void()>& functor : functors)
        functor();
    }
  }

  void send_in_loop(Connection& connection, const std::string& message) {
    std::size_t sent = 0;
    if (connection.queued.empty()) {
      const ssize_t taken = ::send(connection.fd, message.data(), message.size(), MSG_NOSIGNAL);
      if (taken < 0 && errno != EAGAIN) return;  // the peer has gone
      if (taken > 0) sent = static_cast<std::size_t>(taken);
      if (sent == message.size()) return;
      watch(EPOLL_CTL_MOD, connection.fd, EPOLLOUT, &connection);
    }
    connection.queued.append(message, sent);
  }

  void send_queued(Connection& connection) {
    const ssize_t taken =
        ::send(connection.fd, connection.queued.data(), connection.queued.size(), MSG_NOSIGNAL);
    if (taken < 0 && errno == EAGAIN) return;
    connection.queued.erase(0,
                            taken < 0 ? connection.queued.size() : static_cast<std::size_t>(taken));
    if (connection.queued.empty()) watch(EPOLL_CTL_MOD, connection.fd, 0, &connection);
  }

  std::mutex mutex_;
  std::vector<std::function<void()>> functors_;
  std::vector<std::shared_ptr<Connection>> connections_;
  int epoll_ = -1;
  int wake_ = -1;
  std::atomic<bool> ending_{false};
  std::atomic<std::uint64_t> wakeups_{0};
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Design> make_functor_loop(std::vector<int> descriptors) {
  return std::make_unique<FunctorLoop>(std::move(descriptors));
}

}  // namespace designs

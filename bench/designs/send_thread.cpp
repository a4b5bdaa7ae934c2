// For comparison only. The design of many Chinese textbooks on game servers: whoever wants to send
// locks a list, adds its message and posts a counting semaphore; a thread of its own waits for the
// semaphore, locks the list and walks it, sending each message on its connection. A message that the
// kernel takes only in part, or not at all, waits for EPOLLOUT in another thread; meanwhile the
// messages behind it for the same connection stay in the list, and those of others go on.
//
// Its lock is held while it sends, as taught: producers wait for system calls. With many messages
// of a connection that does not read, each walk passes over all of them.

#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <list>
#include <mutex>
#include <thread>
#include <utility>

#include "design.h"

namespace designs {
namespace {

class SendThread final : public Design {
 public:
  explicit SendThread(std::vector<int> descriptors) {
    ::sem_init(&messages_, 0, 0);
    epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    stop_ = ::eventfd(0, EFD_CLOEXEC);
    insist(epoll_ >= 0 && stop_ >= 0, "epoll_create1, eventfd");
    epoll_event stop{};
    stop.events = EPOLLIN;
    stop.data.u64 = descriptors.size();
    insist(::epoll_ctl(epoll_, EPOLL_CTL_ADD, stop_, &stop) == 0, "epoll_ctl");
    for (std::size_t index = 0; index < descriptors.size(); ++index) {
      epoll_event nothing_yet{};
      nothing_yet.data.u64 = index;
      insist(::epoll_ctl(epoll_, EPOLL_CTL_ADD, descriptors[index], &nothing_yet) == 0,
             "epoll_ctl");
      connections_.emplace_back(descriptors[index]);
    }
    sender_ = std::thread([this] { send_messages(); });
    poller_ = std::thread([this] { watch_for_room(); });
  }

  ~SendThread() override {
    ending_ = true;
    ::sem_post(&messages_);
    const std::uint64_t one = 1;
    insist(::write(stop_, &one, sizeof one) == sizeof one, "write to an eventfd");
    sender_.join();
    poller_.join();
    for (const Connection& connection : connections_)
      ::close(connection.fd);
    ::close(stop_);
    ::close(epoll_);
    ::sem_destroy(&messages_);
  }

  void send(std::size_t connection, std::string message) override {
    {
      const std::lock_guard lock(mutex_);
      list_.push_back({connection, std::move(message)});
    }
    ::sem_post(&messages_);
  }

  std::uint64_t wakeups() const override { return wakeups_.load(); }

 private:
  struct Connection {
    explicit Connection(int its_fd) : fd(its_fd) {}
    int fd;
    // Under the mutex: what the kernel did not take, for the thread that waits for room.
    std::string rest{};
    std::size_t sent = 0;
    bool waiting_for_room = false;
  };
  struct Message {
    std::size_t connection;
    std::string bytes;
  };

  void send_messages() {
    while (true) {
      if (::sem_trywait(&messages_) != 0) {
        while (::sem_wait(&messages_) != 0)
          insist(errno == EINTR, "sem_wait");
        wakeups_.fetch_add(1);
      }
      if (ending_) return;
      const std::lock_guard lock(mutex_);
      for (auto message = list_.begin(); message != list_.end();) {
        Connection& connection = connections_[message->connection];
        if (connection.waiting_for_room) {
          ++message;
          continue;
        }
        connection.rest = std::move(message->bytes);
        connection.sent = 0;
        message = list_.erase(message);
        send_rest(connection);
        if (connection.waiting_for_room) watch(connection, EPOLLOUT);
      }
    }
  }

  static void send_rest(Connection& connection) {
    while (connection.sent < connection.rest.size()) {
      const ssize_t taken = ::send(connection.fd, connection.rest.data() + connection.sent,
                                   connection.rest.size() - connection.sent, MSG_NOSIGNAL);
      if (taken < 0 && errno == EAGAIN) {
        connection.waiting_for_room = true;
        return;
      }
      if (taken < 0) break;  // the peer has gone; so does the message
      connection.sent += static_cast<std::size_t>(taken);
    }
    connection.waiting_for_room = false;
  }

  void watch(Connection& connection, std::uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = static_cast<std::uint64_t>(&connection - connections_.data());
    insist(::epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd, &event) == 0, "epoll_ctl");
  }

  void watch_for_room() {
    std::array<epoll_event, 64> events{};
    while (true) {
      const int count = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
      insist(count >= 0 || errno == EINTR, "epoll_wait");
      for (int i = 0; i < count; ++i) {
        const std::size_t index = events[static_cast<std::size_t>(i)].data.u64;
        if (index == connections_.size()) return;
        const std::lock_guard lock(mutex_);
        Connection& connection = connections_[index];
        if (!connection.waiting_for_room) {
          watch(connection, 0);
          continue;
        }
        send_rest(connection);
        if (connection.waiting_for_room) continue;
        watch(connection, 0);
        ::sem_post(&messages_);  // those behind it may go on
      }
    }
  }

  std::mutex mutex_;
  std::list<Message> list_;
  std::vector<Connection> connections_;
  sem_t messages_{};
  int epoll_ = -1;
  int stop_ = -1;
  std::atomic<bool> ending_{false};
  std::atomic<std::uint64_t> wakeups_{0};
  std::thread sender_;
  std::thread poller_;
};

}  // namespace

std::unique_ptr<Design> make_send_thread(std::vector<int> descriptors) {
  return std::make_unique<SendThread>(std::move(descriptors));
}

}  // namespace designs

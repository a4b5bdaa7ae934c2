// Penstock's way: ConnectionHandle::send to connections of one loop in a thread of its own. The task
// goes to the loop's mailbox, and the loop is woken only if it sleeps.

#include <thread>
#include <utility>

#include "design.h"
#include "penstock/penstock.h"

namespace designs {
namespace {

class Handles final : public Design {
 public:
  explicit Handles(const std::vector<int>& descriptors) {
    insist(!loop_.error(), "making an event loop");
    penstock::ConnectionCallbacks callbacks;
    callbacks.on_message = [](penstock::TcpConnection&, penstock::InputBuffer& in) {
      in.consume(in.size());
    };
    const penstock::BehaviourPtr behaviour = penstock::make_behaviour(std::move(callbacks), {});
    for (const int descriptor : descriptors) {
      const penstock::Result<penstock::ConnectionHandle> handle = penstock::adopt_connection(
          loop_, penstock::UniqueFd(penstock::linux_kernel(), descriptor), behaviour);
      insist(handle.has_value(), "adopting a connection");
      handles_.push_back(*handle);
    }
    thread_ = std::thread([this] { insist(loop_.run().has_value(), "running an event loop"); });
  }

  ~Handles() override {
    loop_.stop();
    thread_.join();
  }

  void send(std::size_t connection, std::string message) override {
    insist(handles_[connection].send(std::move(message)) == penstock::PostResult::posted,
           "a send through a handle");
  }

  std::uint64_t wakeups() const override { return loop_.mailbox().wakeups_written(); }

 private:
  mutable penstock::EventLoop loop_;
  std::vector<penstock::ConnectionHandle> handles_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Design> make_handles(std::vector<int> descriptors) {
  return std::make_unique<Handles>(descriptors);
}

}  // namespace designs

// What the programs of this folder have in common: a way to send messages from many threads to
// connections that one thread serves. For comparison only: the two designs that are taught most, as
// they are taught, beside Penstock's. None of this is part of the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace designs {

/// One way to do it. Made with the server's ends of all connections (non-blocking, connected), which
/// it owns and closes.
class Design {
 public:
  Design() = default;
  Design(const Design&) = delete;
  Design& operator=(const Design&) = delete;
  virtual ~Design() = default;

  /// Any thread: has the message sent on the connection of that index, behind those that this thread
  /// has sent there before.
  virtual void send(std::size_t connection, std::string message) = 0;
  /// How often a sleeping thread had to be woken so far.
  virtual std::uint64_t wakeups() const = 0;
};

/// A guarded list, a counting semaphore, and a thread that sends.
std::unique_ptr<Design> make_send_thread(std::vector<int> descriptors);
/// A guarded vector of functors for each loop, and an eventfd written for every send.
std::unique_ptr<Design> make_functor_loop(std::vector<int> descriptors);
/// ConnectionHandle::send.
std::unique_ptr<Design> make_handles(std::vector<int> descriptors);

/// Ends the program when a system call that cannot fail has failed.
void insist(bool fine, const char* what);

}  // namespace designs

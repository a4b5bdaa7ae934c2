#include "penstock/base/result.h"

#include <string>

namespace penstock {
namespace {

class PenstockCategory final : public std::error_category {
 public:
  const char* name() const noexcept override { return "penstock"; }
  std::string message(int value) const override {
    switch (static_cast<Errc>(value)) {
      case Errc::unknown_backend:
        return "unknown backend; the known ones are auto, epoll, epoll-et, poll";
      case Errc::bad_address:
        return "not an address; write HOST:PORT, [IPV6]:PORT (port 0 to 65535), "
               "unix:PATH, unix:@NAME; to listen also fd:N";
      case Errc::needs_resolver:
        return "host names other than localhost are not resolved yet; write a numeric address";
      case Errc::too_many_connections:
        return "the connection limit does not fit under the descriptor limit; lower it or raise "
               "the limit with ulimit -n";
      case Errc::already_started:
        return "already started";
      case Errc::stopped:
        return "already stopped; make a new one";
      case Errc::callback_threw:
        return "a callback threw an exception";
      case Errc::out_of_loops:
        return "too many event loops at a time";
      case Errc::self_connected:
        return "the attempt connected to itself: nobody listens at that port";
      case Errc::output_limit:
        return "the output limit of a connection was reached; see ConnectionLimits::output_max";
      case Errc::input_limit:
        return "the input limit of a connection was reached; see ConnectionLimits::input_max";
      case Errc::memory_limit:
        return "the memory budget of the loops is exhausted; see memory_max";
      case Errc::unstable_connection:
        return "connections keep ending soon after they are made";
      case Errc::not_listening:
        return "not a listening stream socket; pass a descriptor on which listen() has been called";
    }
    return "unknown error " + std::to_string(value);
  }
};

}  // namespace

const std::error_category& penstock_category() noexcept {
  static const PenstockCategory category;
  return category;
}

}  // namespace penstock

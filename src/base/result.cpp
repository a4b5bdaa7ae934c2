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
        return "unknown backend; the known ones are auto, epoll, epoll-et";
      case Errc::bad_address:
        return "not an address; write HOST:PORT or [IPV6]:PORT, with a port from 0 to 65535";
      case Errc::needs_resolver:
        return "host names other than localhost are not resolved yet; write a numeric address";
      case Errc::too_many_connections:
        return "the connection limit does not fit under the descriptor limit; lower it or raise "
               "the limit with ulimit -n";
      case Errc::already_started:
        return "already started";
      case Errc::stopped:
        return "already stopped; make a new one";
      case Errc::loop_gone:
        return "the event loop is gone";
      case Errc::callback_threw:
        return "a callback threw an exception";
      case Errc::out_of_loops:
        return "too many event loops at a time";
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

// Which back-ends there are, and how one is chosen.

#include <atomic>
#include <cstdlib>

#include "io/epoll_selector.h"
#include "io/poll_selector.h"
#include "io/readiness_backend.h"
#include "penstock/io/io_backend.h"

namespace penstock {

namespace {

std::atomic<BackendFactory> custom_backend{nullptr};

bool is_known(Backend backend) noexcept {
  return backend != Backend::custom || custom_backend.load() != nullptr;
}

}  // namespace

void set_custom_backend(BackendFactory factory) noexcept { custom_backend.store(factory); }

Result<Backend> parse_backend(std::string_view name) {
  for (const Backend backend :
       {Backend::automatic, Backend::epoll, Backend::epoll_edge, Backend::poll, Backend::custom}) {
    if (name == to_string(backend) && is_known(backend)) return backend;
  }
  return failure(Errc::unknown_backend);
}

std::string_view to_string(Backend backend) noexcept {
  switch (backend) {
    case Backend::automatic:
      return "auto";
    case Backend::epoll:
      return "epoll";
    case Backend::epoll_edge:
      return "epoll-et";
    case Backend::poll:
      return "poll";
    case Backend::custom:
      return "custom";
  }
  return "unknown";
}

Result<Backend> resolve_backend(Backend backend) {
  if (backend != Backend::automatic) return backend;
  const char* chosen = std::getenv("PENSTOCK_BACKEND");
  if (chosen == nullptr || *chosen == '\0') return Backend::epoll;
  const Result<Backend> named = parse_backend(chosen);
  if (named && *named == Backend::automatic) return Backend::epoll;
  return named;
}

Result<std::unique_ptr<IoBackend>> make_backend(Backend backend, Kernel& kernel,
                                                IoOptions options) {
  const Result<Backend> resolved = resolve_backend(backend);
  if (!resolved) return std::unexpected(resolved.error());
  if (*resolved == Backend::custom) {
    const BackendFactory factory = custom_backend.load();
    if (factory == nullptr) return failure(Errc::unknown_backend);
    return factory(kernel);
  }
  Result<std::unique_ptr<Selector>> selector = *resolved == Backend::poll
                                                   ? std::make_unique<PollSelector>(kernel)
                                                   : EpollSelector::create(kernel);
  if (!selector) return std::unexpected(selector.error());
  const Trigger trigger = *resolved == Backend::epoll_edge ? Trigger::edge : Trigger::level;
  return ReadinessBackend::create(kernel, std::move(*selector), trigger, to_string(*resolved),
                                  options);
}

}  // namespace penstock

#include "penstock/bytes/shared_bytes.h"

#include <type_traits>
#include <utility>

namespace penstock {

template <class Container>
struct SharedBytes::HoldingPayload final : Payload {
  // A constructor's body runs after the allocation, so one that fails leaves the argument unmoved.
  explicit HoldingPayload(Container&& container) noexcept : container_(std::move(container)) {
    static_assert(std::is_nothrow_move_constructible_v<Container>);
    bytes = std::as_bytes(std::span(container_.data(), container_.size()));
    charge = charge_of(container_);
  }

 private:
  Container container_;
};

template <class Container>
CountedPtr<const SharedBytes::Payload> SharedBytes::hold(Container& container) {
  if (container.empty()) return {};
  return CountedPtr<const Payload>(new HoldingPayload<Container>(std::move(container)));
}

SharedBytes::SharedBytes(std::string&& payload) : payload_(hold(payload)) {}

SharedBytes::SharedBytes(std::vector<std::byte>&& payload) : payload_(hold(payload)) {}

std::size_t SharedBytes::charge_of(const std::string& payload) noexcept {
  return payload.empty() ? 0 : sizeof(HoldingPayload<std::string>) + payload.capacity();
}

std::size_t SharedBytes::charge_of(const std::vector<std::byte>& payload) noexcept {
  return payload.empty() ? 0 : sizeof(HoldingPayload<std::vector<std::byte>>) + payload.capacity();
}

SharedBytes SharedBytes::copy_of(std::span<const std::byte> bytes) {
  return SharedBytes(std::vector<std::byte>(bytes.begin(), bytes.end()));
}

}  // namespace penstock

// A payload that many connections, on many loops, queue without copying it: the means of a
// broadcast. Owner: whoever holds a copy; the bytes go when the last copy goes. Thread-safe as a
// shared_ptr to const is: the bytes never change, the count is atomic, one SharedBytes object
// belongs to one thread at a time. It refuses to be written to.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "penstock/base/counted.h"
#include "penstock/bytes/memory_budget.h"

namespace penstock {

/// Immutable counted bytes. Copying costs one atomic increment; an empty one holds no memory.
class SharedBytes {
 public:
  /// No bytes.
  SharedBytes() = default;
  /// Takes over the string's memory. Throws std::bad_alloc, with `payload` left as it was.
  explicit SharedBytes(std::string&& payload);
  /// Takes over the vector's memory. Throws std::bad_alloc, with `payload` left as it was.
  explicit SharedBytes(std::vector<std::byte>&& payload);
  /// Copies the bytes, once. Throws std::bad_alloc.
  static SharedBytes copy_of(std::span<const std::byte> bytes);
  static SharedBytes copy_of(std::string_view text) {
    return copy_of(std::as_bytes(std::span(text)));
  }

  /// The bytes; valid while any copy of this object lives.
  std::span<const std::byte> bytes() const noexcept {
    return payload_ ? payload_->bytes : std::span<const std::byte>();
  }
  /// How many bytes there are.
  std::size_t size() const noexcept { return bytes().size(); }
  /// Whether there are none.
  bool empty() const noexcept { return size() == 0; }

  /// Memory held by the payload, unused capacity included; 0 when empty.
  std::size_t charge() const noexcept { return payload_ ? payload_->charge : 0; }

  ///@{
  /// What charge() of such a payload will be, once it has been taken over.
  static std::size_t charge_of(const std::string& payload) noexcept;
  static std::size_t charge_of(const std::vector<std::byte>& payload) noexcept;
  ///@}

  /// Charges the payload to `budget`, once in its life however many queues hold it; it is released
  /// with the payload. False: it does not fit. Thread-safe.
  [[nodiscard]] bool charge_once(const CountedPtr<MemoryBudget>& budget) const noexcept {
    return !payload_ || payload_->charge_once(budget);
  }

 private:
  struct Payload : Counted<Payload> {
    virtual ~Payload() {
      if (budget_) budget_->release(charge);
    }

    bool charge_once(const CountedPtr<MemoryBudget>& budget) const noexcept {
      if (charged_.load(std::memory_order_acquire)) return true;
      const std::lock_guard lock(mutex_);
      if (charged_.load(std::memory_order_relaxed)) return true;
      if (!budget->acquire(charge)) return false;
      budget_ = budget;
      charged_.store(true, std::memory_order_release);
      return true;
    }

    std::span<const std::byte> bytes;
    std::size_t charge = 0;

   private:
    mutable std::mutex mutex_;  // guards budget_ until charged_ is set
    mutable std::atomic<bool> charged_{false};
    mutable CountedPtr<MemoryBudget> budget_;
  };
  template <class Container>
  struct HoldingPayload;

  template <class Container>
  static CountedPtr<const Payload> hold(Container& container);

  CountedPtr<const Payload> payload_;
};

}  // namespace penstock

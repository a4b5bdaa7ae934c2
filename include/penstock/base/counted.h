// Intrusive reference counting for the few objects that several loops share: behaviour, shared
// payloads, server cores. The count is atomic, so a CountedPtr may be copied and dropped on any
// thread; the object itself is as thread-safe as its class says. Per-message paths borrow (T&) and
// do not touch the count.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

namespace penstock {

/// Base of a counted class: `class Thing final : public Counted<Thing>`. Destroyed when the last
/// CountedPtr goes.
template <class Derived>
class Counted {
 public:
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 protected:
  Counted() = default;
  ~Counted() = default;

 private:
  template <class T>
  friend class CountedPtr;

  void add_share() const noexcept { count_.fetch_add(1, std::memory_order_relaxed); }
  void drop_share() const noexcept {
    if (count_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      delete static_cast<const Derived*>(this);
    }
  }

  mutable std::atomic<std::uint32_t> count_{0};
};

/// A counted reference; may be empty.
template <class T>
class CountedPtr {
 public:
  CountedPtr() = default;
  /// Takes a share in `object`, which was made with new.
  explicit CountedPtr(T* object) noexcept : object_(object) {
    if (object_ != nullptr) object_->add_share();
  }
  /// Takes a share of its own.
  CountedPtr(const CountedPtr& other) noexcept : CountedPtr(other.object_) {}
  /// Takes over the share; `other` is empty afterwards.
  CountedPtr(CountedPtr&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  /// Gives up its own share for that of `other`.
  CountedPtr& operator=(CountedPtr other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  /// Gives up its share; the last one destroys the object.
  ~CountedPtr() {
    if (object_ != nullptr) object_->drop_share();
  }

  /// Whether it refers to an object.
  explicit operator bool() const noexcept { return object_ != nullptr; }
  /// The object, or nullptr when empty; it lives as long as any share.
  T* get() const noexcept { return object_; }
  ///@{
  /// The object; not when empty.
  T& operator*() const noexcept { return *object_; }
  T* operator->() const noexcept { return object_; }
  ///@}

 private:
  T* object_ = nullptr;
};

/// Makes a counted object.
template <class T, class... Arguments>
CountedPtr<T> make_counted(Arguments&&... arguments) {
  return CountedPtr<T>(new T(std::forward<Arguments>(arguments)...));
}

}  // namespace penstock

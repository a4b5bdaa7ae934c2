#include "penstock/bytes/input_buffer.h"

#include <new>

namespace penstock {

namespace {

// Half as much again for what comes next, so that appending copies each byte a bounded number of
// times. It leaves keep_rest() free to shrink at twice the size: at least a quarter of what was
// held must be consumed before that copies again.
constexpr std::size_t capacity_for(std::size_t size) noexcept {
  constexpr std::size_t kLeastRoom = 256;
  return size + (size / 2 > kLeastRoom ? size / 2 : kLeastRoom);
}

constexpr std::size_t kSlack = 4096;

std::byte* allocate(std::size_t capacity) {
  return static_cast<std::byte*>(::operator new(capacity));
}

}  // namespace

void InputBuffer::append_to_storage(std::span<const std::byte> received) {
  if (received.empty()) return;
  const std::size_t held = size();
  const std::size_t needed = held + received.size();
  const auto consumed = static_cast<std::size_t>(begin_ - storage_);
  if (capacity_ - consumed < needed) {
    if (capacity_ >= needed && consumed >= held) {
      // Moving costs no more than consuming those bytes did.
      std::memcpy(storage_, begin_, held);
    } else {
      const std::size_t capacity = capacity_for(needed);
      std::byte* const storage = allocate(capacity);
      std::memcpy(storage, begin_, held);
      free_storage();
      storage_ = storage;
      capacity_ = capacity;
    }
    begin_ = storage_;
    end_ = begin_ + held;
  }
  std::memcpy(storage_ + (end_ - storage_), received.data(), received.size());
  end_ += received.size();
}

void InputBuffer::keep_rest_in_storage() {
  const std::size_t held = size();
  if (held == 0) {
    discard();
    return;
  }
  const bool lent = storage_ == nullptr;
  if (!lent && capacity_ <= 2 * held + kSlack) return;
  const std::size_t capacity = capacity_for(held);
  // A view has to be copied; storage that is too large only should be.
  void* const memory = lent ? ::operator new(capacity) : ::operator new(capacity, std::nothrow);
  if (memory == nullptr) return;
  auto* const storage = static_cast<std::byte*>(memory);
  std::memcpy(storage, begin_, held);
  if (!lent) free_storage();
  storage_ = storage;
  capacity_ = capacity;
  begin_ = storage;
  end_ = storage + held;
}

void InputBuffer::free_storage() noexcept {
  ::operator delete(storage_);
  storage_ = nullptr;
  capacity_ = 0;
}

}  // namespace penstock

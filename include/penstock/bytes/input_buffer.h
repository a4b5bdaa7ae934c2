// What a message callback sees of the received bytes: one contiguous run of all that is unread.
// Owner: one connection; single-threaded. Mostly it is a view of memory that the backend lends for
// one call; what the callback leaves unread is kept in storage of its own and offered again, in
// front of what comes next. It refuses to limit itself: the connection compares size() with its
// limit.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "penstock/base/assert.h"

namespace penstock {

/// The unread input of a connection.
///
/// Spans and string views it hands out, those of consumed bytes included, are valid until the
/// callback returns; copy what must live longer. Reading never copies and, but for take_string(),
/// never throws.
class InputBuffer {
 public:
  InputBuffer() = default;
  InputBuffer(const InputBuffer&) = delete;
  InputBuffer& operator=(const InputBuffer&) = delete;
  ~InputBuffer() {
    if (storage_ != nullptr) free_storage();
  }

  // ---- For users -------------------------------------------------------------------------------

  /// Unread bytes.
  std::size_t size() const noexcept { return static_cast<std::size_t>(end_ - begin_); }
  /// Whether there is no unread byte.
  bool empty() const noexcept { return begin_ == end_; }

  /// All unread bytes, not consumed.
  std::span<const std::byte> peek() const noexcept { return {begin_, size()}; }

  /// All unread bytes as text, not consumed.
  std::string_view text() const noexcept { return {reinterpret_cast<const char*>(begin_), size()}; }

  /// Drops the first `n` bytes; n <= size().
  void consume(std::size_t n) noexcept {
    PENSTOCK_ASSERT(n <= size(), "more consumed than there is");
    begin_ += n;
    progress_ = 0;
  }

  /// Consumes and returns all bytes.
  std::span<const std::byte> take() noexcept {
    const std::span<const std::byte> all = peek();
    consume(size());
    return all;
  }

  /// Consumes and returns the first `n` bytes; n <= size().
  std::span<const std::byte> take(std::size_t n) noexcept {
    const std::span<const std::byte> first(begin_, n);
    consume(n);
    return first;
  }

  /// Consumes all bytes, or the first n <= size() of them, and returns a copy. Throws
  /// std::bad_alloc, with nothing consumed.
  std::string take_string() { return take_string(size()); }
  std::string take_string(std::size_t n) {
    PENSTOCK_ASSERT(n <= size(), "more taken than there is");
    std::string copy(text().substr(0, n));
    consume(n);
    return copy;
  }

  /// Offset of the first such byte at or behind offset `from`, or nothing. An offset beyond the end
  /// finds nothing.
  std::optional<std::size_t> find(char wanted, std::size_t from = 0) const noexcept {
    return offset_of(text().find(wanted, from));
  }
  std::optional<std::size_t> find(std::byte wanted, std::size_t from = 0) const noexcept {
    return find(static_cast<char>(wanted), from);
  }
  /// Offset of the first occurrence that begins at or behind offset `from`, or nothing. To find a
  /// long delimiter without searching twice, start at the size of the last attempt less
  /// wanted.size() - 1.
  std::optional<std::size_t> find(std::string_view wanted, std::size_t from = 0) const noexcept {
    return offset_of(text().find(wanted, from));
  }

  ///@{
  /// The unsigned integer that the first bytes are in network byte order (big-endian), or by the
  /// names that end in `_le` in little-endian order; nothing when there are too few bytes. `peek_`
  /// leaves the bytes, `read_` consumes them.
  std::optional<std::uint8_t> peek_u8() const noexcept { return peek_as<std::uint8_t, kNetwork>(); }
  std::optional<std::uint16_t> peek_u16() const noexcept {
    return peek_as<std::uint16_t, kNetwork>();
  }
  std::optional<std::uint32_t> peek_u32() const noexcept {
    return peek_as<std::uint32_t, kNetwork>();
  }
  std::optional<std::uint64_t> peek_u64() const noexcept {
    return peek_as<std::uint64_t, kNetwork>();
  }
  std::optional<std::uint16_t> peek_u16_le() const noexcept {
    return peek_as<std::uint16_t, kLittle>();
  }
  std::optional<std::uint32_t> peek_u32_le() const noexcept {
    return peek_as<std::uint32_t, kLittle>();
  }
  std::optional<std::uint64_t> peek_u64_le() const noexcept {
    return peek_as<std::uint64_t, kLittle>();
  }
  std::optional<std::uint8_t> read_u8() noexcept { return read_as<std::uint8_t, kNetwork>(); }
  std::optional<std::uint16_t> read_u16() noexcept { return read_as<std::uint16_t, kNetwork>(); }
  std::optional<std::uint32_t> read_u32() noexcept { return read_as<std::uint32_t, kNetwork>(); }
  std::optional<std::uint64_t> read_u64() noexcept { return read_as<std::uint64_t, kNetwork>(); }
  std::optional<std::uint16_t> read_u16_le() noexcept { return read_as<std::uint16_t, kLittle>(); }
  std::optional<std::uint32_t> read_u32_le() noexcept { return read_as<std::uint32_t, kLittle>(); }
  std::optional<std::uint64_t> read_u64_le() noexcept { return read_as<std::uint64_t, kLittle>(); }
  ///@}

  ///@{
  /// A number that a reader leaves itself for its next look at the same unread bytes, so that it
  /// need not look at all of them again: how far it has searched in vain, say. 0 at first, and again
  /// after anything has been consumed.
  std::size_t progress() const noexcept { return progress_; }
  void set_progress(std::size_t progress) noexcept { progress_ = progress; }
  ///@}

  // ---- For the connection ----------------------------------------------------------------------
  // Its cycle: lend(), the callback, keep_rest(). The callback may also be run again over what is
  // kept, without a lend(); keep_rest() follows all the same.

  /// Adds received bytes behind the unread ones: as a view when nothing is kept, by copying
  /// otherwise. The lent memory must stay valid until keep_rest() or discard(), and one of them
  /// must come before the next lend(). Throws std::bad_alloc, with the old bytes unharmed and
  /// nothing added.
  void lend(std::span<const std::byte> received) {
    if (storage_ != nullptr) {
      append_to_storage(received);
      return;
    }
    PENSTOCK_ASSERT(end_ == nullptr, "keep_rest() comes between two lend()");
    begin_ = received.data();
    end_ = begin_ + received.size();
  }

  /// After the callback: moves what is unread of a lent view into storage of our own; frees the
  /// storage when nothing is unread. Ends the validity of every span handed out. Afterwards
  /// charge() is at most 2 * size() + 4 KiB. Throws std::bad_alloc when a view cannot be copied:
  /// the unread bytes are then still those of the view; discard() is what remains.
  void keep_rest() {
    if (storage_ == nullptr && begin_ == end_) {
      begin_ = end_ = nullptr;
      return;
    }
    keep_rest_in_storage();
  }

  /// Drops all bytes and frees the storage. Ends the validity of every span handed out.
  void discard() noexcept {
    if (storage_ != nullptr) free_storage();
    begin_ = end_ = nullptr;
    progress_ = 0;
  }

  /// Unread bytes that are in our own storage.
  std::size_t kept() const noexcept { return storage_ == nullptr ? 0 : size(); }

  /// Memory owned; 0 while only a view is held.
  std::size_t charge() const noexcept { return capacity_; }

 private:
  static constexpr std::endian kNetwork = std::endian::big;
  static constexpr std::endian kLittle = std::endian::little;

  static std::optional<std::size_t> offset_of(std::size_t position) noexcept {
    if (position == std::string_view::npos) return std::nullopt;
    return position;
  }

  template <class Unsigned, std::endian kOrder>
  std::optional<Unsigned> peek_as() const noexcept {
    if (size() < sizeof(Unsigned)) return std::nullopt;
    Unsigned value;
    std::memcpy(&value, begin_, sizeof value);
    if constexpr (kOrder != std::endian::native) value = std::byteswap(value);
    return value;
  }

  template <class Unsigned, std::endian kOrder>
  std::optional<Unsigned> read_as() noexcept {
    const std::optional<Unsigned> value = peek_as<Unsigned, kOrder>();
    if (value) consume(sizeof(Unsigned));
    return value;
  }

  void append_to_storage(std::span<const std::byte> received);
  void keep_rest_in_storage();
  void free_storage() noexcept;

  // The unread bytes. With storage_ they are in it, without it they are lent.
  const std::byte* begin_ = nullptr;
  const std::byte* end_ = nullptr;
  std::byte* storage_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t progress_ = 0;
};

static_assert(sizeof(InputBuffer) <= 48, "every connection has one");

}  // namespace penstock

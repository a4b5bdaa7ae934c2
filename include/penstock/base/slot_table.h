// A pool of objects with stable addresses, named by slot and generation. Owner: one loop;
// single-threaded. A slot is recycled under a new generation, so an old name finds nothing.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "penstock/base/assert.h"

namespace penstock {

/// Name of an object in a SlotTable. Generation 0 names nothing.
struct SlotId {
  std::uint32_t slot = 0;        ///< Index in the table.
  std::uint32_t generation = 0;  ///< Which of the slot's tenants.

  /// An order for use as a key; it means nothing else.
  friend auto operator<=>(const SlotId&, const SlotId&) = default;
};

/// Objects live in chunks that never move; lookup is two loads and a comparison.
template <class T>
class SlotTable {
 public:
  SlotTable() = default;
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;
  ~SlotTable() {
    for_each([this](SlotId id, T&) { erase(id); });
  }

  /// Constructs T(id, arguments...) in a free slot. Throws std::bad_alloc, and what T's constructor
  /// throws, with nothing changed.
  template <class... Arguments>
  T& emplace(Arguments&&... arguments) {
    if (free_.empty()) grow();
    const std::uint32_t slot = free_.back();
    Cell& cell = cell_at(slot);
    const std::uint32_t generation = next_generation(cell.generation);
    T* object = ::new (static_cast<void*>(cell.storage))
        T(SlotId{slot, generation}, std::forward<Arguments>(arguments)...);
    free_.pop_back();
    cell.generation = generation;
    cell.live = true;
    ++size_;
    return *object;
  }

  /// The object of that name, or nullptr when it is gone.
  T* find(SlotId id) noexcept {
    if (id.slot >= capacity()) return nullptr;
    Cell& cell = cell_at(id.slot);
    if (!cell.live || cell.generation != id.generation) return nullptr;
    return cell.object();
  }

  /// The object that lives in the slot now, whatever its generation, or nullptr.
  T* find_slot(std::uint32_t slot) noexcept {
    if (slot >= capacity()) return nullptr;
    Cell& cell = cell_at(slot);
    return cell.live ? cell.object() : nullptr;
  }

  /// Destroys the object of that name, which must exist. Never allocates.
  void erase(SlotId id) noexcept {
    T* object = find(id);
    PENSTOCK_ASSERT(object != nullptr, "no such object");
    object->~T();
    cell_at(id.slot).live = false;
    --size_;
    free_.push_back(id.slot);  // grow() reserved the room
  }

  /// Objects that live.
  std::size_t size() const noexcept { return size_; }

  /// Calls visit(SlotId, T&) for each object; visit may erase the one it is given.
  template <class Visit>
  void for_each(Visit visit) {
    for (std::uint32_t slot = 0; slot < capacity(); ++slot) {
      Cell& cell = cell_at(slot);
      if (cell.live) visit(SlotId{slot, cell.generation}, *cell.object());
    }
  }

 private:
  static constexpr std::uint32_t kChunkSlots = 64;

  struct Cell {
    alignas(T) std::byte storage[sizeof(T)];
    std::uint32_t generation = 0;
    bool live = false;

    T* object() noexcept { return std::launder(reinterpret_cast<T*>(storage)); }
  };

  static constexpr std::uint32_t next_generation(std::uint32_t generation) noexcept {
    return generation == UINT32_MAX ? 1 : generation + 1;
  }

  std::uint32_t capacity() const noexcept {
    return static_cast<std::uint32_t>(chunks_.size()) * kChunkSlots;
  }
  Cell& cell_at(std::uint32_t slot) noexcept {
    return chunks_[slot / kChunkSlots][slot % kChunkSlots];
  }
  void grow() {
    const std::uint32_t first = capacity();
    free_.reserve(first + kChunkSlots);
    // Not value-initialised: the storage of 64 connections need not be cleared.
    chunks_.push_back(std::unique_ptr<Cell[]>(new Cell[kChunkSlots]));
    for (std::uint32_t i = kChunkSlots; i > 0; --i)
      free_.push_back(first + i - 1);
  }

  std::vector<std::unique_ptr<Cell[]>> chunks_;
  std::vector<std::uint32_t> free_;
  std::size_t size_ = 0;
};

}  // namespace penstock

#include "failing_allocation.h"

#include <cstdlib>
#include <new>

namespace penstock::test {

namespace {

enum class State { off, armed, happened };

thread_local State state = State::off;
thread_local std::size_t allocations_before_failure = 0;
thread_local std::size_t allocations_made = 0;

void* allocate(std::size_t size) noexcept {
  ++allocations_made;
  if (state == State::armed && allocations_before_failure-- == 0) {
    state = State::happened;
    return nullptr;
  }
  return std::malloc(size == 0 ? 1 : size);
}

}  // namespace

FailingAllocation::FailingAllocation(std::size_t which) noexcept {
  allocations_before_failure = which;
  state = State::armed;
}
FailingAllocation::~FailingAllocation() { state = State::off; }
bool FailingAllocation::happened() const noexcept { return state == State::happened; }

std::size_t allocations() noexcept { return allocations_made; }

}  // namespace penstock::test

// The array forms reach these, or form pairs of their own.
void* operator new(std::size_t size) {
  void* const memory = penstock::test::allocate(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return penstock::test::allocate(size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }

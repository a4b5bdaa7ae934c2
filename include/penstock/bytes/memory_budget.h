// A bound on the memory that the connections of several loops hold together, without a shared
// atomic per send: each loop leases 1 MiB at a time and charges against its lease.
#pragma once

#include <atomic>
#include <cstddef>
#include <utility>

#include "penstock/base/assert.h"
#include "penstock/base/counted.h"

namespace penstock {

/// The bound itself, shared by the loops of a group. Thread-safe.
class MemoryBudget final : public Counted<MemoryBudget> {
 public:
  /// `limit` in bytes.
  explicit MemoryBudget(std::size_t limit) noexcept : limit_(limit) {}

  /// The bound, in bytes.
  std::size_t limit() const noexcept { return limit_; }
  /// Bytes leased out.
  std::size_t leased() const noexcept { return leased_.load(std::memory_order_relaxed); }

  /// Leases `bytes`, or answers false and leases nothing: they do not fit under the limit.
  [[nodiscard]] bool acquire(std::size_t bytes) noexcept {
    std::size_t leased = leased_.load(std::memory_order_relaxed);
    do {
      if (bytes > limit_ || leased > limit_ - bytes) return false;
    } while (!leased_.compare_exchange_weak(leased, leased + bytes, std::memory_order_relaxed));
    return true;
  }
  /// Takes back what acquire() leased.
  void release(std::size_t bytes) noexcept { leased_.fetch_sub(bytes, std::memory_order_relaxed); }

 private:
  const std::size_t limit_;
  std::atomic<std::size_t> leased_{0};
};

/// One loop's share. Single-threaded.
class BudgetLease {
 public:
  /// What a loop leases at a time: 1 MiB, in bytes.
  static constexpr std::size_t kStep = 1024 * 1024;

  /// A share in `budget`, which is not empty; nothing is leased yet.
  explicit BudgetLease(CountedPtr<MemoryBudget> budget) noexcept : budget_(std::move(budget)) {}
  BudgetLease(const BudgetLease&) = delete;
  BudgetLease& operator=(const BudgetLease&) = delete;
  /// Gives the lease back. Everything must have been discharged.
  ~BudgetLease() {
    PENSTOCK_ASSERT(used_ == 0, "memory is still charged to a loop that goes");
    budget_->release(leased_);
  }

  /// Charges `bytes`, or answers false and charges nothing: the budget is exhausted.
  [[nodiscard]] bool charge(std::size_t bytes) noexcept {
    if (bytes > leased_ - used_ && !extend(bytes - (leased_ - used_))) return false;
    used_ += bytes;
    return true;
  }

  /// Takes back a charge. More than 2 MiB of unused lease goes back to the budget.
  void discharge(std::size_t bytes) noexcept {
    PENSTOCK_ASSERT(bytes <= used_, "more discharged than charged");
    used_ -= bytes;
    if (leased_ - used_ > 2 * kStep) shrink();
  }

  /// Bytes charged.
  std::size_t used() const noexcept { return used_; }
  /// The budget it leases from.
  const CountedPtr<MemoryBudget>& budget() const noexcept { return budget_; }

 private:
  bool extend(std::size_t missing) noexcept {
    const std::size_t rounded = (missing + kStep - 1) / kStep * kStep;
    // Near the end of the budget a whole step may not fit where the bytes do.
    for (const std::size_t bytes : {rounded, missing}) {
      if (bytes >= missing && budget_->acquire(bytes)) {
        leased_ += bytes;
        return true;
      }
    }
    return false;
  }

  void shrink() noexcept {
    const std::size_t spare = leased_ - used_ - kStep;
    leased_ -= spare;
    budget_->release(spare);
  }

  CountedPtr<MemoryBudget> budget_;
  std::size_t leased_ = 0;
  std::size_t used_ = 0;
};

}  // namespace penstock

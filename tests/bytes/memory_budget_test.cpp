#include "penstock/bytes/memory_budget.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace penstock {
namespace {

constexpr std::size_t kStep = BudgetLease::kStep;

TEST(MemoryBudget, a_lease_takes_whole_steps_and_charges_within_them) {
  const auto budget = make_counted<MemoryBudget>(16 * kStep);
  BudgetLease lease(budget);
  EXPECT_EQ(budget->leased(), 0U);
  ASSERT_TRUE(lease.charge(1));
  EXPECT_EQ(budget->leased(), kStep);
  EXPECT_EQ(lease.used(), 1U);
  ASSERT_TRUE(lease.charge(kStep - 1));
  EXPECT_EQ(budget->leased(), kStep) << "the step was not used up";
  ASSERT_TRUE(lease.charge(1));
  EXPECT_EQ(budget->leased(), 2 * kStep);
  lease.discharge(kStep + 1);
}

TEST(MemoryBudget, a_charge_larger_than_a_step_leases_what_it_needs) {
  const auto budget = make_counted<MemoryBudget>(16 * kStep);
  BudgetLease lease(budget);
  ASSERT_TRUE(lease.charge(2 * kStep + 1));
  EXPECT_EQ(budget->leased(), 3 * kStep);
  lease.discharge(2 * kStep + 1);
}

TEST(MemoryBudget, an_exhausted_budget_refuses_and_charges_nothing) {
  const auto budget = make_counted<MemoryBudget>(2 * kStep);
  BudgetLease first(budget);
  BudgetLease second(budget);
  ASSERT_TRUE(first.charge(kStep));
  ASSERT_TRUE(second.charge(kStep));
  EXPECT_FALSE(first.charge(1));
  EXPECT_EQ(first.used(), kStep);
  EXPECT_EQ(budget->leased(), 2 * kStep);
  EXPECT_TRUE(first.charge(0));
  first.discharge(kStep);
  second.discharge(kStep);
}

TEST(MemoryBudget, the_last_bytes_can_be_charged_although_no_whole_step_is_left) {
  const auto budget = make_counted<MemoryBudget>(kStep + 100);
  BudgetLease lease(budget);
  ASSERT_TRUE(lease.charge(kStep));
  EXPECT_TRUE(lease.charge(100));
  EXPECT_FALSE(lease.charge(1));
  lease.discharge(kStep + 100);
}

TEST(MemoryBudget, a_limit_below_one_step_is_still_usable_and_kept) {
  const auto budget = make_counted<MemoryBudget>(std::size_t{1000});
  BudgetLease lease(budget);
  EXPECT_TRUE(lease.charge(600));
  EXPECT_FALSE(lease.charge(401));
  EXPECT_TRUE(lease.charge(400));
  EXPECT_EQ(budget->leased(), 1000U);
  lease.discharge(1000);
}

TEST(MemoryBudget, sizes_near_the_end_of_the_range_are_refused_without_wrapping) {
  const auto budget = make_counted<MemoryBudget>(16 * kStep);
  BudgetLease lease(budget);
  ASSERT_TRUE(lease.charge(10));
  for (const std::size_t huge : {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - kStep, SIZE_MAX / 2}) {
    EXPECT_FALSE(lease.charge(huge));
    EXPECT_FALSE(budget->acquire(huge));
  }
  EXPECT_EQ(lease.used(), 10U);
  EXPECT_EQ(budget->leased(), kStep);
  lease.discharge(10);
}

TEST(MemoryBudget, what_is_discharged_goes_back_to_the_other_loops) {
  const auto budget = make_counted<MemoryBudget>(8 * kStep);
  BudgetLease first(budget);
  BudgetLease second(budget);
  ASSERT_TRUE(first.charge(8 * kStep));
  EXPECT_FALSE(second.charge(4 * kStep));
  first.discharge(8 * kStep);
  EXPECT_LE(budget->leased(), 2 * kStep) << "an idle loop keeps at most two steps";
  EXPECT_TRUE(second.charge(4 * kStep));
  second.discharge(4 * kStep);
}

TEST(MemoryBudget, charging_and_discharging_around_a_step_does_not_go_to_the_budget_each_time) {
  const auto budget = make_counted<MemoryBudget>(8 * kStep);
  BudgetLease lease(budget);
  ASSERT_TRUE(lease.charge(kStep));
  ASSERT_TRUE(lease.charge(1));
  const std::size_t leased = budget->leased();
  for (int i = 0; i < 100; ++i) {
    lease.discharge(1);
    EXPECT_EQ(budget->leased(), leased);
    ASSERT_TRUE(lease.charge(1));
    EXPECT_EQ(budget->leased(), leased);
  }
  lease.discharge(kStep + 1);
}

TEST(MemoryBudget, a_lease_that_goes_returns_everything) {
  const auto budget = make_counted<MemoryBudget>(8 * kStep);
  {
    BudgetLease lease(budget);
    ASSERT_TRUE(lease.charge(5 * kStep + 7));
    lease.discharge(5 * kStep + 7);
  }
  EXPECT_EQ(budget->leased(), 0U);
}

TEST(MemoryBudget, leases_of_many_threads_never_pass_the_limit_together) {
  constexpr std::size_t kLimit = 6 * kStep;
  constexpr int kThreads = 4;
  const auto budget = make_counted<MemoryBudget>(kLimit);
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (int index = 0; index < kThreads; ++index) {
    threads.emplace_back([&, index] {
      BudgetLease lease(budget);
      for (int round = 0; round < 2000; ++round) {
        const std::size_t size = (static_cast<std::size_t>(index + round) % 4 + 1) * kStep - 5;
        if (!lease.charge(size)) continue;
        if (budget->leased() > kLimit) over = true;
        lease.discharge(size);
      }
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_FALSE(over);
  EXPECT_EQ(budget->leased(), 0U);
}

}  // namespace
}  // namespace penstock

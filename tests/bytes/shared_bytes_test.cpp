#include "penstock/bytes/shared_bytes.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <new>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "failing_allocation.h"
#include "gtest/gtest.h"

namespace penstock {
namespace {

std::string text_of(const SharedBytes& shared) {
  const std::span<const std::byte> bytes = shared.bytes();
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

TEST(SharedBytes, without_bytes_holds_nothing) {
  EXPECT_TRUE(SharedBytes().empty());
  EXPECT_EQ(SharedBytes().charge(), 0U);
  EXPECT_EQ(SharedBytes(std::string()).charge(), 0U);
  EXPECT_EQ(SharedBytes(std::vector<std::byte>()).bytes().size(), 0U);
  EXPECT_EQ(SharedBytes::copy_of(std::span<const std::byte>()).size(), 0U);
}

TEST(SharedBytes, takes_over_the_memory_of_a_long_string) {
  std::string text(1000, 'x');
  const void* const memory = text.data();
  const SharedBytes shared(std::move(text));
  EXPECT_EQ(shared.bytes().data(), memory);
  EXPECT_EQ(text_of(shared), std::string(1000, 'x'));
  EXPECT_GE(shared.charge(), 1000U);
}

TEST(SharedBytes, holds_a_short_string_that_lives_inside_its_object) {
  EXPECT_EQ(text_of(SharedBytes(std::string("short"))), "short");
}

TEST(SharedBytes, takes_over_the_memory_of_a_vector_and_counts_its_capacity) {
  std::vector<std::byte> bytes(10, std::byte{7});
  bytes.reserve(5000);
  const void* const memory = bytes.data();
  const SharedBytes shared(std::move(bytes));
  EXPECT_EQ(shared.bytes().data(), memory);
  EXPECT_EQ(shared.size(), 10U);
  EXPECT_GE(shared.charge(), 5000U);
}

TEST(SharedBytes, copies_share_the_bytes_and_the_last_one_frees_them) {
  SharedBytes first = SharedBytes::copy_of(std::as_bytes(std::span("hello", 5)));
  SharedBytes second = first;
  EXPECT_EQ(first.bytes().data(), second.bytes().data());
  first = SharedBytes();
  EXPECT_EQ(text_of(second), "hello");
}

TEST(SharedBytes, without_memory_leaves_the_argument_unmoved) {
  std::string text(100, 'x');
  std::vector<std::byte> bytes(100, std::byte{1});
  const auto expect_refused = [](auto& payload) {
    const test::FailingAllocation failing;
    EXPECT_THROW(SharedBytes{std::move(payload)}, std::bad_alloc);
    EXPECT_TRUE(failing.happened());
  };
  expect_refused(text);
  expect_refused(bytes);
  EXPECT_EQ(text, std::string(100, 'x'));
  EXPECT_EQ(bytes.size(), 100U);
}

TEST(SharedBytes, is_copied_and_dropped_by_many_threads_at_a_time) {
  const SharedBytes shared(std::string(100, 'x'));
  std::vector<std::jthread> threads;
  threads.reserve(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([mine = shared] {
      for (int k = 0; k < 10'000; ++k) {
        SharedBytes copy = mine;
        ASSERT_EQ(copy.size(), 100U);
        copy = SharedBytes();
      }
    });
  }
  threads.clear();
  EXPECT_EQ(text_of(shared), std::string(100, 'x'));
}

// -- The charge to a budget --

/// Two threads that charge the same payloads, in the same order, as simultaneously as the machine
/// lets them.
class ChargingThreads {
 public:
  /// Charges each payload from both threads.
  void charge(const std::vector<SharedBytes>& payloads, const CountedPtr<MemoryBudget>& budget) {
    answers = {};
    std::array<std::atomic<std::size_t>, 2> reached{};
    const auto run = [&](std::size_t me, const std::vector<SharedBytes>& mine) {
      for (std::size_t i = 0; i < mine.size(); ++i) {
        reached.at(me) = i;
        // Whoever is ahead waits a while for the other one.
        int looks = 0;
        while (looks < kPatience && reached.at(1 - me) < i)
          ++looks;
        if (me == 0 && reached.at(1) == i) ++meetings_;
        answers.at(me).push_back(mine[i].charge_once(budget));
      }
    };
    const std::jthread other([&run, mine = payloads] { run(1, mine); });
    run(0, payloads);
  }
  /// Whether there should be another round: they have not yet met often, and there is patience left.
  bool again() { return meetings_ < kMeetings && rounds_++ < kRoundsMax; }

  std::array<std::vector<bool>, 2> answers;  ///< Of the last round.

 private:
  static constexpr int kPatience = 200;
  static constexpr std::size_t kMeetings = 20'000;
  static constexpr int kRoundsMax = 50;

  std::size_t meetings_ = 0;
  int rounds_ = 0;
};

constexpr std::size_t kPayloads = 4'000;

std::vector<SharedBytes> small_payloads() {
  std::vector<SharedBytes> payloads;
  payloads.reserve(kPayloads);
  for (std::size_t i = 0; i < kPayloads; ++i)
    payloads.emplace_back(std::string(100, 'x'));
  return payloads;
}

TEST(SharedBytes, charged_by_two_threads_at_a_time_counts_once_and_until_its_last_copy_goes) {
  const auto budget = make_counted<MemoryBudget>(std::size_t{1} << 30);
  ChargingThreads threads;
  while (threads.again()) {
    std::vector<SharedBytes> payloads = small_payloads();
    threads.charge(payloads, budget);
    for (const std::vector<bool>& answers : threads.answers)
      EXPECT_EQ(std::ranges::count(answers, true), std::ssize(payloads));
    EXPECT_EQ(budget->leased(), payloads.size() * payloads.front().charge());
    payloads.clear();
    ASSERT_EQ(budget->leased(), 0U);
  }
}

// A thread that is answered true while the other one is being refused would queue bytes that nobody
// has charged.
TEST(SharedBytes, that_do_not_fit_are_refused_to_each_of_two_threads_at_a_time) {
  const auto budget = make_counted<MemoryBudget>(std::size_t{10});
  const std::vector<SharedBytes> payloads(kPayloads, SharedBytes(std::string(100, 'x')));
  ChargingThreads threads;
  while (threads.again()) {
    threads.charge(payloads, budget);
    for (const std::vector<bool>& answers : threads.answers)
      ASSERT_EQ(std::ranges::count(answers, true), 0);
    ASSERT_EQ(budget->leased(), 0U);
  }
}

// Some fit and some do not: who is answered true has been charged, whichever thread it was.
TEST(SharedBytes, charged_by_two_threads_to_a_budget_that_runs_out_fit_for_both_or_for_neither) {
  ChargingThreads threads;
  while (threads.again()) {
    std::vector<SharedBytes> payloads = small_payloads();
    const std::size_t each = payloads.front().charge();
    constexpr std::size_t kRoom = kPayloads / 2;
    const auto budget = make_counted<MemoryBudget>(kRoom * each);
    threads.charge(payloads, budget);
    EXPECT_EQ(budget->leased(), kRoom * each);
    ASSERT_EQ(threads.answers[0], threads.answers[1]);
    ASSERT_EQ(std::ranges::count(threads.answers[0], true), std::ptrdiff_t{kRoom});
    payloads.clear();
    ASSERT_EQ(budget->leased(), 0U);
  }
}

}  // namespace
}  // namespace penstock

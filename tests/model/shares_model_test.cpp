// What several loops share, under a model checker (XT9): reference counts, a payload that is charged
// once, the memory budget.

#include <gmock/gmock.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "model/search.h"
#include "penstock/base/assert.h"

#define std model_std              // NOLINT(readability-identifier-naming)
#include "bytes/shared_bytes.cpp"  // NOLINT(bugprone-suspicious-include)
#undef std

namespace penstock::test {
namespace {

using testing::StartsWith;

/// Three threads hold an object, leave something in it, and let it go.
struct Sharers : rl::test_suite<Sharers, 3> {
  static constexpr int kThreads = 3;
  struct Thing : Counted<Thing> {
    explicit Thing(int& destroyed) : destroyed_count(destroyed) {}
    ~Thing() {
      for (rl::var<int>& each : left)
        RL_ASSERT(int{each(step("destructor"))} == 1);
      ++destroyed_count;
    }
    rl::var<int> left[kThreads];
    int& destroyed_count;
  };

  CountedPtr<Thing> shares[kThreads];
  int destroyed = 0;

  void before() {
    shares[0] = make_counted<Thing>(destroyed);
    shares[1] = shares[2] = shares[0];
  }
  void thread(unsigned index) {
    CountedPtr<Thing> mine = std::move(shares[index]);
    const CountedPtr<Thing> another = index == 0 ? mine : CountedPtr<Thing>();
    mine->left[index](step("use")) = 1;
  }
  void after() { RL_ASSERT(destroyed == 1); }
};

TEST(SharesModel, TheLastShareDestroysOnceAndSeesWhatAllHaveDone) {
  EXPECT_EQ(search<Sharers>(), "SUCCESS");
}

TEST(SharesModel, WithRelaxedOrdersTheDestructorWouldRace) {
  const WeakenedScope weakened(Weakening::relaxed);
  EXPECT_THAT(search<Sharers>(), StartsWith("DATA RACE"));
}

/// Two loops queue one payload.
struct Chargers : rl::test_suite<Chargers, 2> {
  CountedPtr<MemoryBudget> budget;
  SharedBytes payloads[2];
  std::size_t charge = 0;

  void before() {
    budget = make_counted<MemoryBudget>(std::size_t{1000});
    payloads[0] = SharedBytes(std::string(100, 'p'));
    payloads[1] = payloads[0];
    charge = payloads[0].charge();
  }
  void thread(unsigned index) {
    const SharedBytes mine = std::move(payloads[index]);
    RL_ASSERT(mine.charge_once(budget));
    RL_ASSERT(budget->leased() == charge);
  }
  void after() {
    RL_ASSERT(budget->leased() == 0);
    budget = {};
  }
};

TEST(SharesModel, APayloadIsChargedOnceHoweverManyQueuesTakeIt) {
  EXPECT_EQ(search<Chargers>(), "SUCCESS");
}

/// Three loops want what is enough for two.
struct Lessees : rl::test_suite<Lessees, 3> {
  CountedPtr<MemoryBudget> budget;
  int granted = 0;

  void before() { budget = make_counted<MemoryBudget>(std::size_t{100}); }
  void thread(unsigned) {
    if (!budget->acquire(40)) return;
    ++granted;
    RL_ASSERT(budget->leased() <= 100);
  }
  void after() {
    RL_ASSERT(granted == 2);
    RL_ASSERT(budget->leased() == 80);
    budget = {};
  }
};

TEST(SharesModel, ABudgetIsNeverExceeded) { EXPECT_EQ(search<Lessees>(), "SUCCESS"); }

}  // namespace
}  // namespace penstock::test

// The mailbox under a model checker: all interleavings of small programs, and all values that the
// C++ memory model lets a load answer (XT1, XT2, XT9). What is compiled is src/loop/mailbox.cpp.

#include <gmock/gmock.h>

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "model/search.h"
#include "penstock/base/assert.h"
#include "penstock/base/result.h"
#include "penstock/io/io_backend.h"
#include "penstock/loop/mailbox_hooks.h"
#include "support/wake_only_backend.h"

#define std model_std        // NOLINT(readability-identifier-naming)
#include "loop/mailbox.cpp"  // NOLINT(bugprone-suspicious-include)
#undef std

namespace penstock::test {
namespace {

using testing::StartsWith;

/// What eventfd and the wait in the kernel are to a loop: a wake-up is kept until it is used.
class WaitingBackend final : public WakeOnlyBackend {
 public:
  WaitingBackend() {
    event_.init(false, false, step("event"));
    alive_(step("made")) = 1;
  }
  ~WaitingBackend() override {
    alive_(step("destroyed")) = 0;
    event_.deinit(step("event"));
  }
  void wake() override {
    RL_ASSERT(int{alive_(step("wake"))} == 1);
    event_.set(step("wake"));
  }
  void wait() { event_.wait(false, false, step("wait")); }

 private:
  rl::generic_event event_;
  rl::var<int> alive_;  // who wakes must know that it lives: else there is a race
};

/// The table of all mailboxes lives as long as an execution.
struct FreshTable {
  static void begin() {
    static bool made = false;
    if (made) new (&table()) MailboxTable;
    table();
    made = true;
  }
  static void end() {
    MailboxTable& all = table();
    for (std::uint32_t slot = 0; slot < all.size; ++slot)
      delete all.entries[slot].load();
    all.~MailboxTable();
  }
};

/// Tasks of one producer, and what became of them. A task must see what was written before it was
/// posted.
class Tasks {
 public:
  static constexpr int kMax = 2;

  Task make(int number) {
    written_[number](step("before the post")) = 1;
    return [this, number, life = Life(ended_)] {
      RL_ASSERT(int{written_[number](step("in the task"))} == 1);
      RL_ASSERT(number == ran_);
      ++ran_;
    };
  }
  int ran() const { return ran_; }
  /// Run and destroyed, or only that.
  int ended() const { return ended_; }

 private:
  // Counts the end of a task, wherever it has been moved to.
  class Life {
   public:
    explicit Life(int& ended) : ended_(&ended) {}
    Life(Life&& other) noexcept : ended_(std::exchange(other.ended_, nullptr)) {}
    Life(const Life&) = delete;
    ~Life() {
      if (ended_ != nullptr) ++*ended_;
    }

   private:
    int* ended_;
  };

  rl::var<int> written_[kMax];
  int ran_ = 0;
  int ended_ = 0;
};

/// Runs what mail there is, as EventLoop does at the beginning of a turn.
void run_mail(Mailbox& mailbox) {
  if (!mailbox.has_mail()) return;
  std::vector<Mailbox::Item> items;
  mailbox.take(items);
  for (Mailbox::Item& item : items)
    std::exchange(item.task, {})();
  mailbox.done();
}

/// Producers post; a loop that has nothing else to do turns until all their tasks have run.
template <int kProducers, int kTasksEach>
struct Producers : rl::test_suite<Producers<kProducers, kTasksEach>, 1 + kProducers> {
  static_assert(kTasksEach <= Tasks::kMax);
  WaitingBackend* backend = nullptr;
  Mailbox* mailbox = nullptr;
  Tasks* tasks = nullptr;

  void before() {
    FreshTable::begin();
    backend = new WaitingBackend;
    mailbox = *Mailbox::open(*backend, 1000);
    tasks = new Tasks[kProducers];
  }
  void after() {
    RL_ASSERT(mailbox->post([] {}, 1000) ==
              PostResult::posted);  // all charges have been given back
    mailbox->close().clear();
    delete[] tasks;
    delete backend;
    FreshTable::end();
  }
  bool all_ran() const {
    for (int i = 0; i < kProducers; ++i)
      if (tasks[i].ran() < kTasksEach) return false;
    return true;
  }
  void thread(unsigned index) {
    if (index > 0) {
      for (int i = 0; i < kTasksEach; ++i)
        RL_ASSERT(mailbox->post(tasks[index - 1].make(i), 1) == PostResult::posted);
      return;
    }
    while (true) {
      run_mail(*mailbox);
      if (all_ran()) return;
      if (mailbox->prepare_to_sleep()) backend->wait();  // a lost wake-up is a deadlock here
      mailbox->awake();
    }
  }
};

// XT1, XT9
TEST(MailboxModel, NoInterleavingOfAPostWithALoopThatGoesToSleepLosesTheWakeUp) {
  EXPECT_EQ((search<Producers<1, 1>>()), "SUCCESS");
}

// XT1, XT7, XT9
TEST(MailboxModel, TasksOfOneProducerRunOnceAndInTheirOrder) {
  EXPECT_EQ((search<Producers<1, 2>>({.kind = rl::sched_bound, .switches = 3})), "SUCCESS");
}

// XT1, XT7, XT9
TEST(MailboxModel, TwoProducersLoseNothing) {
  EXPECT_EQ((search<Producers<2, 1>>({.kind = rl::sched_bound, .switches = 1})), "SUCCESS");
  EXPECT_EQ((search<Producers<2, 2>>({.kind = rl::sched_random, .executions = 50'000})), "SUCCESS");
}

// XT9: rule 3 of mailbox.h needs the order that it names. The checker sees what its absence costs.
TEST(MailboxModel, WithoutSequentialConsistencyAWakeUpWouldBeLost) {
  const WeakenedScope weakened(Weakening::no_sequential_consistency);
  EXPECT_THAT((search<Producers<1, 1>>()), StartsWith("DEADLOCK"));
}

/// A loop goes, and another one takes its mailbox over, while a producer posts to the first.
struct LoopThatGoes : rl::test_suite<LoopThatGoes, 2> {
  WaitingBackend* first = nullptr;
  WaitingBackend* second = nullptr;
  Mailbox* mailbox = nullptr;
  LoopId id{};
  Tasks* tasks = nullptr;
  int posted = 0;

  void before() {
    FreshTable::begin();
    first = new WaitingBackend;
    mailbox = *Mailbox::open(*first, 1000);
    id = mailbox->id();
    tasks = new Tasks;
  }
  void after() {
    RL_ASSERT(tasks->ended() == Tasks::kMax);
    RL_ASSERT(tasks->ran() <= posted);
    delete tasks;
    delete second;
    FreshTable::end();
  }
  void thread(unsigned index) {
    if (index > 0) {
      for (int i = 0; i < Tasks::kMax; ++i) {
        Task task = tasks->make(i);
        const PostResult result = Mailbox::post(id, std::move(task), 1);
        RL_ASSERT(result != PostResult::full);
        RL_ASSERT((result == PostResult::closed) == static_cast<bool>(task));
        if (result == PostResult::posted) ++posted;
      }
      return;
    }
    run_mail(*mailbox);
    if (mailbox->prepare_to_sleep()) mailbox->awake();
    mailbox->close().clear();  // what has not run is destroyed
    delete first;
    mailbox->retire();
    second = new WaitingBackend;
    RL_ASSERT(*Mailbox::open(*second, 1000) == mailbox);
    RL_ASSERT(mailbox->id() != id);
    RL_ASSERT(!mailbox->has_mail());
    RL_ASSERT(mailbox->close().empty());  // nothing for the first one has come to the second
  }
};

// XT2, XT9
TEST(MailboxModel, APostToALoopThatGoesIsRunOrDestroyedOrRefused) {
  EXPECT_EQ((search<LoopThatGoes>({.kind = rl::sched_bound, .switches = 3})), "SUCCESS");
  EXPECT_EQ((search<LoopThatGoes>({.kind = rl::sched_random, .executions = 50'000})), "SUCCESS");
}

}  // namespace
}  // namespace penstock::test

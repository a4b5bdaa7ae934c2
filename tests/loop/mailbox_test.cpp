#include "penstock/loop/mailbox.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "penstock/loop/mailbox_hooks.h"
#include "support/loop_thread.h"
#include "support/wake_only_backend.h"

namespace penstock {
namespace {

using mailbox_hooks::Point;
using test::HookScope;

constexpr std::size_t kNoBound = SIZE_MAX;

/// Counts wake-ups; does nothing else.
class CountingBackend final : public test::WakeOnlyBackend {
 public:
  void wake() override { ++wakes; }

  int wakes = 0;
};

/// A mailbox that is open for the test.
struct MailboxTest : testing::Test {
  MailboxTest() : mailbox(open_or_die()) {}
  ~MailboxTest() override {
    if (mailbox != nullptr) go();
  }
  /// What a loop does that goes.
  void go() {
    mailbox->close();
    std::exchange(mailbox, nullptr)->retire();
  }
  Mailbox* open_or_die(std::size_t charge_max = kNoBound) {
    const Result<Mailbox*> opened = Mailbox::open(backend, charge_max);
    EXPECT_TRUE(opened.has_value());
    return opened.value();
  }
  void reopen(std::size_t charge_max) {
    go();
    mailbox = open_or_die(charge_max);
  }
  /// Takes all mail and runs it, as a loop does.
  std::size_t run_mail() {
    std::vector<Mailbox::Item> items;
    mailbox->take(items);
    for (Mailbox::Item& item : items)
      item.task();
    mailbox->done();
    return items.size();
  }

  CountingBackend backend;
  Mailbox* mailbox;
};

TEST_F(MailboxTest, tasks_come_out_in_the_order_posted) {
  std::vector<int> order;
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(mailbox->post([&order, i] { order.push_back(i); }), PostResult::posted);
  }
  EXPECT_TRUE(mailbox->has_mail());
  EXPECT_EQ(run_mail(), 100U);
  EXPECT_FALSE(mailbox->has_mail());
  ASSERT_EQ(order.size(), 100U);
  for (int i = 0; i < 100; ++i)
    EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST_F(MailboxTest, one_wake_up_is_written_for_a_sleeper_and_none_otherwise) {
  static_cast<void>(mailbox->post([] {}));
  EXPECT_EQ(backend.wakes, 0);
  run_mail();
  ASSERT_TRUE(mailbox->prepare_to_sleep());
  for (int i = 0; i < 5; ++i)
    static_cast<void>(mailbox->post([] {}));
  EXPECT_EQ(backend.wakes, 1);
  EXPECT_EQ(mailbox->wakeups_written(), 1U);
  mailbox->awake();
  static_cast<void>(mailbox->post([] {}));
  EXPECT_EQ(backend.wakes, 1);
}

TEST_F(MailboxTest, one_with_mail_may_not_sleep_and_is_not_woken) {
  static_cast<void>(mailbox->post([] {}));
  EXPECT_FALSE(mailbox->prepare_to_sleep());
  static_cast<void>(mailbox->post([] {}));
  EXPECT_EQ(backend.wakes, 0);
  EXPECT_EQ(run_mail(), 2U);
  EXPECT_TRUE(mailbox->prepare_to_sleep());
  mailbox->awake();
}

TEST_F(MailboxTest, a_closed_one_refuses_and_leaves_the_task_to_its_owner) {
  const LoopId id = mailbox->id();
  static_cast<void>(mailbox->post([] {}));
  EXPECT_EQ(mailbox->close().size(), 1U);
  int runs = 0;
  Task task = [&] { ++runs; };
  EXPECT_EQ(mailbox->post(std::move(task)), PostResult::closed);
  EXPECT_EQ(Mailbox::post(id, std::move(task)), PostResult::closed);
  EXPECT_EQ(mailbox->id(), id) << "the name is the loop's until it retires";
  EXPECT_FALSE(mailbox->has_mail());
  std::exchange(mailbox, nullptr)->retire();
  EXPECT_EQ(Mailbox::post(id, std::move(task)), PostResult::closed);
  ASSERT_TRUE(task);
  task();
  EXPECT_EQ(runs, 1);
}

TEST_F(MailboxTest, an_id_that_names_no_loop_answers_closed) {
  EXPECT_EQ(Mailbox::post(LoopId{}, [] {}), PostResult::closed);
  EXPECT_EQ(Mailbox::post(LoopId{.slot = 0, .generation = 0}, [] {}), PostResult::closed);
  EXPECT_EQ(Mailbox::post(LoopId{.slot = Mailbox::kLoopsMax, .generation = 1}, [] {}),
            PostResult::closed);
  EXPECT_EQ(Mailbox::post(LoopId{.slot = UINT32_MAX, .generation = 1}, [] {}), PostResult::closed);
  const LoopId next{.slot = mailbox->id().slot, .generation = mailbox->id().generation + 1};
  EXPECT_EQ(Mailbox::post(next, [] {}), PostResult::closed) << "a generation that is yet to come";
}

TEST_F(MailboxTest, an_old_id_never_reaches_the_next_tenant) {
  std::vector<LoopId> old;
  for (int round = 0; round < 5; ++round) {
    old.push_back(mailbox->id());
    go();
    mailbox = open_or_die();
    EXPECT_EQ(mailbox->id().slot, old.front().slot) << "the test is about reuse";
    for (const LoopId id : old) {
      EXPECT_NE(id, mailbox->id());
      EXPECT_EQ(Mailbox::post(id, [] { FAIL() << "reached another loop"; }), PostResult::closed);
    }
    EXPECT_FALSE(mailbox->has_mail());
    EXPECT_EQ(Mailbox::post(mailbox->id(), [] {}), PostResult::posted);
    EXPECT_EQ(run_mail(), 1U);
  }
}

TEST_F(MailboxTest, a_new_tenant_inherits_neither_mail_nor_wake_flag_nor_charge) {
  reopen(100);
  ASSERT_TRUE(mailbox->prepare_to_sleep());
  EXPECT_EQ(mailbox->post([] {}, 100), PostResult::posted);
  go();
  backend.wakes = 0;
  mailbox = open_or_die(100);
  EXPECT_FALSE(mailbox->has_mail());
  EXPECT_EQ(mailbox->wakeups_written(), 0U);
  EXPECT_EQ(mailbox->post([] {}, 100), PostResult::posted);
  EXPECT_EQ(backend.wakes, 0);
}

TEST_F(MailboxTest, a_charge_over_the_bound_is_refused_and_the_task_left) {
  reopen(100);
  EXPECT_EQ(mailbox->post([] {}, 101), PostResult::full);
  EXPECT_EQ(mailbox->post([] {}, SIZE_MAX), PostResult::full);
  EXPECT_EQ(mailbox->post([] {}, 60), PostResult::posted);
  Task task = [] {};
  EXPECT_EQ(mailbox->post(std::move(task), 41), PostResult::full);
  ASSERT_TRUE(task);
  EXPECT_EQ(Mailbox::post(mailbox->id(), std::move(task), 41), PostResult::full);
  ASSERT_TRUE(task);
  EXPECT_EQ(mailbox->post(std::move(task), 40), PostResult::posted);
  EXPECT_EQ(run_mail(), 2U);
}

TEST_F(MailboxTest, a_task_without_a_charge_is_never_refused) {
  reopen(10);
  EXPECT_EQ(mailbox->post([] {}, 10), PostResult::posted);
  EXPECT_EQ(mailbox->post([] {}), PostResult::posted);
  EXPECT_EQ(run_mail(), 2U);
}

TEST_F(MailboxTest, a_charge_counts_until_what_was_taken_has_been_dealt_with) {
  reopen(100);
  ASSERT_EQ(mailbox->post([] {}, 100), PostResult::posted);
  std::vector<Mailbox::Item> items;
  mailbox->take(items);
  EXPECT_EQ(mailbox->post([] {}, 1), PostResult::full) << "still in the hands of the loop";
  items.clear();
  mailbox->done();
  EXPECT_EQ(mailbox->post([] {}, 100), PostResult::posted);
}

TEST_F(MailboxTest, no_task_is_destroyed_under_the_lock) {
  struct PostsWhenDestroyed {
    explicit PostsWhenDestroyed(LoopId its_id) : id(its_id) {}
    PostsWhenDestroyed(PostsWhenDestroyed&& other) noexcept
        : id(std::exchange(other.id, LoopId{})) {}
    PostsWhenDestroyed& operator=(PostsWhenDestroyed&&) = delete;
    ~PostsWhenDestroyed() {
      // Would wait for ever if the lock were held.
      if (id != LoopId{}) {
        EXPECT_EQ(Mailbox::post(id, [] {}), PostResult::closed);
      }
    }
    LoopId id;
  };
  static_cast<void>(
      mailbox->post([guard = PostsWhenDestroyed(mailbox->id())] { static_cast<void>(guard); }));
  std::vector<Mailbox::Item> left = mailbox->close();
  EXPECT_EQ(left.size(), 1U);
  left.clear();
  std::exchange(mailbox, nullptr)->retire();
}

TEST_F(MailboxTest, the_table_has_room_for_as_many_loops_as_it_says_and_then_answers_so) {
  std::vector<Mailbox*> all;
  Result<Mailbox*> opened = Mailbox::open(backend, kNoBound);
  while (opened) {
    all.push_back(*opened);
    opened = Mailbox::open(backend, kNoBound);
  }
  EXPECT_EQ(opened.error(), make_error_code(Errc::out_of_loops));
  EXPECT_EQ(all.size(), Mailbox::kLoopsMax - 1) << "one is the fixture's";
  all.back()->close();
  EXPECT_EQ(Mailbox::open(backend, kNoBound).error(), make_error_code(Errc::out_of_loops))
      << "closed is not yet gone";
  all.back()->retire();
  all.pop_back();
  opened = Mailbox::open(backend, kNoBound);
  ASSERT_TRUE(opened.has_value());
  all.push_back(*opened);
  for (Mailbox* each : all) {
    each->close();
    each->retire();
  }
}

// -- XT1: a loop that goes to sleep against a producer that posts, one step of either inside each step of the other --------

/// A loop, reduced to what it does with its mailbox.
struct SmallLoop {
  void turn() {
    if (mailbox.has_mail()) {
      std::vector<Mailbox::Item> items;
      mailbox.take(items);
      taken += items.size();
      mailbox.done();
    }
    asleep = mailbox.prepare_to_sleep();
    if (!asleep) mailbox.awake();
  }
  /// What happens once the kernel has seen the wake-up.
  void wake_up() {
    asleep = false;
    mailbox.awake();
  }

  Mailbox& mailbox;
  std::size_t taken = 0;
  bool asleep = false;
};

struct Interleaving {
  Mailbox* mailbox = nullptr;
  int passed = 0;  // points so far
  int first = -1;  // where the other party takes its steps
  int second = -1;
  std::size_t posted = 0;
  bool inside = false;
};
Interleaving interleaving;

void post_at_the_chosen_points(Point) noexcept {
  if (interleaving.inside) return;
  const int point = interleaving.passed++;
  if (point != interleaving.first && point != interleaving.second) return;
  interleaving.inside = true;
  EXPECT_EQ(interleaving.mailbox->post([] {}), PostResult::posted);
  ++interleaving.posted;
  interleaving.inside = false;
}

TEST_F(MailboxTest, a_post_at_any_step_of_two_turns_is_found_or_wakes_the_loop) {
  constexpr int kPointsMax = 10;
  int most_points = 0;
  for (int first = 0; first < kPointsMax; ++first) {
    for (int second = first; second < kPointsMax; ++second) {
      reopen(kNoBound);
      backend.wakes = 0;
      interleaving = {.mailbox = mailbox, .first = first, .second = second};
      SmallLoop loop{.mailbox = *mailbox};
      {
        const HookScope hook(&post_at_the_chosen_points);
        loop.turn();
        // The kernel ends the sleep if a wake-up has been written, and not otherwise.
        if (loop.asleep && backend.wakes == 0) {
          EXPECT_FALSE(mailbox->has_mail())
              << "sleeps on mail, unwoken: " << first << " " << second;
        }
        loop.wake_up();
        const int wakes = backend.wakes;
        loop.turn();
        if (loop.asleep && backend.wakes == wakes) {
          EXPECT_FALSE(mailbox->has_mail())
              << "sleeps on mail, unwoken: " << first << " " << second;
        }
      }
      most_points = std::max(most_points, interleaving.passed);
      loop.wake_up();
      loop.turn();
      loop.turn();
      EXPECT_EQ(loop.taken, interleaving.posted);
      EXPECT_TRUE(loop.asleep);
      mailbox->awake();
    }
  }
  EXPECT_GE(most_points, 5) << "the hook has seen too little";
}

// The other way round: the loop goes through all of its steps inside one of the producer's.
struct ProducerSteps {
  SmallLoop* loop = nullptr;
  Point at = Point::push;
  int turns = 1;
  bool inside = false;
  int reached = 0;
};
ProducerSteps producer_steps;

void turn_at_the_chosen_point(Point point) noexcept {
  if (producer_steps.inside || point != producer_steps.at) return;
  producer_steps.inside = true;
  ++producer_steps.reached;
  for (int turn = 0; turn < producer_steps.turns; ++turn)
    producer_steps.loop->turn();
  producer_steps.inside = false;
}

TEST_F(MailboxTest, a_loop_that_goes_to_sleep_inside_a_post_does_not_miss_it) {
  for (const Point at : {Point::push, Point::wake}) {
    for (const int turns : {1, 2}) {
      reopen(kNoBound);
      backend.wakes = 0;
      SmallLoop loop{.mailbox = *mailbox};
      producer_steps = {.loop = &loop, .at = at, .turns = turns};
      {
        const HookScope hook(&turn_at_the_chosen_point);
        EXPECT_EQ(mailbox->post([] {}), PostResult::posted);
      }
      EXPECT_EQ(producer_steps.reached, 1);
      EXPECT_TRUE(!loop.asleep || !mailbox->has_mail() || backend.wakes > 0)
          << "asleep on mail, unwoken";
      EXPECT_LE(backend.wakes, 1);
      loop.wake_up();
      loop.turn();
      EXPECT_EQ(loop.taken, 1U);
      mailbox->awake();
    }
  }
}

}  // namespace
}  // namespace penstock

// What a pool of workers promises (R18, R27): each task that was taken runs once or is reported as
// dropped, the queue keeps its bound, and stopping leaves nobody waiting.
#include "penstock/loop/worker_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <latch>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bytes/failing_allocation.h"
#include "penstock/os/kernel.h"
#include "support/captured_log.h"
#include "support/sockets.h"

namespace penstock::test {
namespace {

constexpr std::size_t kTasks = 20'000;

/// Keeps every worker of a pool busy until it is opened.
class Gate {
 public:
  Gate(WorkerPool& pool, std::size_t workers) : entered_(static_cast<std::ptrdiff_t>(workers)) {
    for (std::size_t i = 0; i < workers; ++i) {
      EXPECT_EQ(pool.try_post([this, open = open_] {
        entered_.count_down();
        open->wait();
      }),
                PostResult::posted);
    }
    entered_.wait();
  }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate() { open(); }

  void open() {
    if (!std::exchange(opened_, true)) open_->count_down();
  }

 private:
  std::latch entered_;
  std::shared_ptr<std::latch> open_ = std::make_shared<std::latch>(1);  // outlives the last to pass
  bool opened_ = false;
};

// WP2: a worker that finds no memory could not let anybody in.
TEST(WorkerPoolTest, a_worker_needs_no_memory_between_two_tasks_also_to_let_one_in) {
  constexpr std::size_t kMany = 300;
  WorkerPool pool({.threads = 1, .queue_max = 4});
  ASSERT_TRUE(pool.start().has_value());
  Gate gate(pool, 1);
  std::size_t allocated_before = 0;
  std::size_t allocated_between = 0;
  std::size_t ran = 0;
  std::size_t let_in = 0;
  for (std::size_t i = 0; i < kMany; ++i) {
    const Admission admission = pool.post_or_wait(
        [&] {
          if (++ran > 1) allocated_between += allocations() - allocated_before;
          allocated_before = allocations();
        },
        [&] { ++let_in; });
    EXPECT_EQ(admission, i < 4 ? Admission::posted : Admission::waiting);
  }
  gate.open();
  pool.stop();
  EXPECT_EQ(ran, kMany);
  EXPECT_EQ(let_in, kMany - 4);
  EXPECT_EQ(allocated_between, 0U);
}

// WP1: who posts without memory keeps the task.
TEST(WorkerPoolTest, a_post_that_finds_no_memory_throws_and_leaves_the_task_as_it_was) {
  WorkerPool pool({.threads = 1, .queue_max = 1});
  int ran = 0;
  Task task = [&ran] { ++ran; };
  Task admitted = [] {};
  {
    const FailingAllocation failing;
    EXPECT_THROW(static_cast<void>(pool.try_post(std::move(task))), std::bad_alloc);
    EXPECT_TRUE(failing.happened());
  }
  ASSERT_TRUE(task);
  EXPECT_EQ(pool.try_post(std::move(task)), PostResult::posted);
  task = [&ran] { ++ran; };
  {
    const FailingAllocation failing;
    EXPECT_THROW(static_cast<void>(pool.post_or_wait(std::move(task), std::move(admitted))),
                 std::bad_alloc);
    EXPECT_TRUE(failing.happened());
  }
  ASSERT_TRUE(task);
  ASSERT_TRUE(admitted);
  EXPECT_EQ(pool.post_or_wait(std::move(task), std::move(admitted)), Admission::waiting);
  EXPECT_EQ(pool.statistics().queued + pool.statistics().waiting, 2U);
  ASSERT_TRUE(pool.start().has_value());
  pool.stop();
  EXPECT_EQ(ran, 2);
}

TEST(WorkerPoolTest, each_task_runs_once_whichever_thread_posts_it) {
  WorkerPool pool({.threads = 3, .queue_max = 16});
  ASSERT_TRUE(pool.start().has_value());
  EXPECT_EQ(pool.size(), 3U);
  std::vector<std::atomic<int>> runs(kTasks);
  std::vector<std::thread> producers;
  std::atomic<std::uint64_t> refused{0};
  for (std::size_t producer = 0; producer < 4; ++producer) {
    producers.emplace_back([&, producer] {
      for (std::size_t i = producer; i < kTasks; i += 4) {
        Task task = [&runs, i] { ++runs[i]; };
        while (pool.try_post(std::move(task)) == PostResult::full) {
          ++refused;
          std::this_thread::yield();
        }
      }
    });
  }
  for (std::thread& producer : producers)
    producer.join();
  EXPECT_EQ(pool.stop(), 0U);
  EXPECT_EQ(pool.size(), 0U);
  for (const std::atomic<int>& count : runs)
    ASSERT_EQ(count, 1);
  const WorkerPoolStatistics counts = pool.statistics();
  EXPECT_EQ(counts.run, kTasks);
  EXPECT_EQ(counts.refused, refused);
  EXPECT_LE(counts.queued_peak, 16U);
  EXPECT_EQ(counts.queued, 0U);
  EXPECT_EQ(counts.running, 0U);
  EXPECT_EQ(counts.dropped, 0U);
}

TEST(WorkerPoolTest, one_worker_runs_tasks_in_the_order_posted) {
  WorkerPool pool({.threads = 1});
  std::vector<int> order;
  for (int i = 0; i < 100; ++i)
    ASSERT_EQ(pool.try_post([&order, i] { order.push_back(i); }), PostResult::posted);
  EXPECT_TRUE(order.empty()) << "tasks posted before start() wait for it";
  ASSERT_TRUE(pool.start().has_value());
  pool.stop();
  ASSERT_EQ(order.size(), 100U);
  for (int i = 0; i < 100; ++i)
    EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST(WorkerPoolTest, a_full_queue_refuses_and_leaves_the_task_as_it_was) {
  WorkerPool pool({.threads = 2, .queue_max = 3});
  ASSERT_TRUE(pool.start().has_value());
  Gate gate(pool, 2);
  std::atomic<int> ran{0};
  for (int i = 0; i < 3; ++i)
    ASSERT_EQ(pool.try_post([&] { ++ran; }), PostResult::posted);
  Task task = [&] { ran += 10; };
  EXPECT_EQ(pool.try_post(std::move(task)), PostResult::full);
  ASSERT_TRUE(task) << "nothing was taken";
  EXPECT_EQ(pool.statistics().refused, 1U);
  EXPECT_EQ(pool.statistics().queued, 3U);
  EXPECT_EQ(pool.statistics().running, 2U);
  gate.open();
  ASSERT_TRUE(eventually([&] { return ran == 3; }));
  EXPECT_EQ(pool.try_post(std::move(task)), PostResult::posted);
  pool.stop();
  EXPECT_EQ(ran, 13);
  EXPECT_EQ(pool.statistics().queued_peak, 3U);
}

TEST(WorkerPoolTest, what_waits_for_room_is_admitted_in_its_order_and_told_once) {
  WorkerPool pool({.threads = 1, .queue_max = 2});
  ASSERT_TRUE(pool.start().has_value());
  std::vector<int> order;
  std::vector<std::atomic<int>> told(10);
  Gate gate(pool, 1);
  for (int i = 0; i < 10; ++i) {
    Task admitted = [&told, i] { ++told[static_cast<std::size_t>(i)]; };
    const Admission admission =
        pool.post_or_wait([&order, i] { order.push_back(i); }, std::move(admitted));
    EXPECT_EQ(admission, i < 2 ? Admission::posted : Admission::waiting);
  }
  EXPECT_EQ(pool.statistics().waiting, 8U);
  EXPECT_EQ(pool.try_post([] {}), PostResult::full) << "nobody overtakes those that wait";
  gate.open();
  EXPECT_EQ(pool.stop(WorkerStop::finish), 0U);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  for (std::size_t i = 0; i < 10; ++i)
    EXPECT_EQ(told[i], i < 2 ? 0 : 1);
  const WorkerPoolStatistics counts = pool.statistics();
  EXPECT_EQ(counts.queued_peak, 2U);
  EXPECT_EQ(counts.waiting_peak, 8U);
  EXPECT_EQ(counts.waited, 8U);
  EXPECT_EQ(counts.waiting, 0U);
}

TEST(WorkerPoolTest, a_task_that_was_let_in_wakes_an_idle_worker) {
  WorkerPool pool({.threads = 2, .queue_max = 1});
  std::latch both(2);
  // Each can end only beside the other.
  const auto meet = [&] { both.arrive_and_wait(); };
  ASSERT_EQ(pool.try_post(meet), PostResult::posted);
  ASSERT_EQ(pool.post_or_wait(meet, [] {}), Admission::waiting);
  ASSERT_TRUE(pool.start().has_value());
  both.wait();
  EXPECT_EQ(pool.stop(), 0U);
  EXPECT_EQ(pool.statistics().run, 2U);
}

TEST(WorkerPoolTest, a_task_that_throws_is_logged_and_counted_and_the_worker_lives_on) {
  const CapturedLog log;
  WorkerPool pool({.threads = 1});
  ASSERT_TRUE(pool.start().has_value());
  ASSERT_EQ(pool.try_post([] { throw std::runtime_error("no such number"); }), PostResult::posted);
  ASSERT_EQ(pool.try_post([] { throw 1; }), PostResult::posted);
  std::atomic<bool> ran{false};
  ASSERT_EQ(pool.try_post([&] { ran = true; }), PostResult::posted);
  pool.stop();
  EXPECT_TRUE(ran);
  EXPECT_EQ(pool.statistics().threw, 2U);
  EXPECT_EQ(pool.statistics().run, 3U);
  EXPECT_EQ(log.count("worker's task threw: no such number"), 1U);
  EXPECT_EQ(log.count("something that is no std::exception"), 1U);
}

TEST(WorkerPoolTest, a_stop_that_finishes_runs_what_is_queued_and_what_waits) {
  WorkerPool pool({.threads = 2, .queue_max = 2});
  ASSERT_TRUE(pool.start().has_value());
  Gate gate(pool, 2);
  std::atomic<int> ran{0};
  for (int i = 0; i < 8; ++i)
    ASSERT_NE(pool.post_or_wait([&] { ++ran; }, [] {}), Admission::closed);
  std::thread stopper([&] { EXPECT_EQ(pool.stop(WorkerStop::finish), 0U); });
  ASSERT_TRUE(eventually([&] { return pool.try_post([] {}) == PostResult::closed; }));
  EXPECT_EQ(ran, 0);
  gate.open();
  stopper.join();
  EXPECT_EQ(ran, 8);
}

TEST(WorkerPoolTest, a_stop_that_drops_destroys_what_has_not_begun_and_says_how_many) {
  WorkerPool pool({.threads = 1, .queue_max = 2});
  ASSERT_TRUE(pool.start().has_value());
  const auto owned = std::make_shared<int>(0);
  std::atomic<int> ran{0};
  std::atomic<int> admitted{0};
  Gate gate(pool, 1);
  for (int i = 0; i < 5; ++i) {
    ASSERT_NE(pool.post_or_wait([&ran, owned] { ++ran; }, [&] { ++admitted; }), Admission::closed);
  }
  std::size_t dropped = 0;
  std::thread stopper([&] { dropped = pool.stop(WorkerStop::drop); });
  ASSERT_TRUE(eventually([&] { return pool.statistics().dropped == 5; }));
  gate.open();
  stopper.join();
  EXPECT_EQ(dropped, 5U);
  EXPECT_EQ(ran, 0);
  EXPECT_EQ(admitted, 3) << "those that waited were told";
  EXPECT_EQ(owned.use_count(), 1) << "what they held is gone";
  EXPECT_EQ(pool.statistics().run, 1U) << "the one that had begun was finished";
  EXPECT_EQ(pool.stop(), 0U);
}

TEST(WorkerPoolTest, a_task_may_post_and_is_refused_once_the_pool_stops) {
  WorkerPool pool({.threads = 1});
  ASSERT_TRUE(pool.start().has_value());
  std::atomic<int> ran{0};
  std::atomic<bool> refused{false};
  ASSERT_EQ(pool.try_post([&] {
    EXPECT_EQ(WorkerPool::current(), &pool);
    EXPECT_EQ(pool.try_post([&] { ++ran; }), PostResult::posted);
  }),
            PostResult::posted);
  ASSERT_TRUE(eventually([&] { return ran == 1; }));
  std::latch begun(1);
  ASSERT_EQ(pool.try_post([&] {
    begun.count_down();
    while (pool.try_post([] {}) != PostResult::closed)
      std::this_thread::yield();
    refused = true;
  }),
            PostResult::posted);
  begun.wait();
  pool.stop(WorkerStop::drop);
  EXPECT_TRUE(refused);
  EXPECT_EQ(WorkerPool::current(), nullptr);
  Task late = [] {};
  EXPECT_EQ(pool.try_post(std::move(late)), PostResult::closed);
  EXPECT_TRUE(late);
  Task notice = [] {};
  EXPECT_EQ(pool.post_or_wait(std::move(late), std::move(notice)), Admission::closed);
  EXPECT_TRUE(late && notice);
}

// R27: a worker sleeps in its condition variable, and must not be left there.
TEST(WorkerPoolTest, stopping_wakes_idle_workers_however_it_meets_them) {
  for (int round = 0; round < 300; ++round) {
    WorkerPool pool({.threads = 3});
    ASSERT_TRUE(pool.start().has_value());
    if (round % 3 == 1) {
      EXPECT_EQ(pool.try_post([] {}), PostResult::posted);
    }
    if (round % 3 == 2) pool.stop();
  }
}

TEST(WorkerPoolTest, it_has_one_life) {
  WorkerPool pool({.threads = 1});
  ASSERT_TRUE(pool.start().has_value());
  EXPECT_EQ(pool.start().error(), make_error_code(Errc::already_started));
  pool.stop();
  pool.stop();
  EXPECT_EQ(pool.start().error(), make_error_code(Errc::stopped));
}

TEST(WorkerPoolTest, one_that_was_never_started_drops_even_when_told_to_finish) {
  WorkerPool pool;
  ASSERT_EQ(pool.try_post([] {}), PostResult::posted);
  EXPECT_EQ(pool.stop(WorkerStop::finish), 1U);
}

TEST(WorkerPoolTest, no_number_of_threads_means_one_for_each_processor) {
  WorkerPool pool({.queue_max = 0});
  ASSERT_TRUE(pool.start().has_value());
  EXPECT_GE(pool.size(), 1U);
  EXPECT_EQ(pool.size(), std::max(std::thread::hardware_concurrency(), 1U));
  std::latch done(1);
  EXPECT_EQ(pool.try_post([&] { done.count_down(); }), PostResult::posted) << "the least is one";
  done.wait();
}

TEST(WorkerPoolTest, all_signals_are_blocked_in_workers_and_nowhere_else) {
  sigset_t before;
  linux_kernel().signal_mask(SIG_SETMASK, nullptr, &before);
  WorkerPool pool({.threads = 2});
  ASSERT_TRUE(pool.start().has_value());
  std::latch done(2);
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(pool.try_post([&] {
      sigset_t mask;
      linux_kernel().signal_mask(SIG_SETMASK, nullptr, &mask);
      for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGPIPE, SIGALRM})
        EXPECT_EQ(sigismember(&mask, number), 1) << number;
      done.count_down();
    }),
              PostResult::posted);
  }
  done.wait();
  sigset_t after;
  linux_kernel().signal_mask(SIG_SETMASK, nullptr, &after);
  EXPECT_EQ(sigismember(&after, SIGTERM), sigismember(&before, SIGTERM));
}

TEST(WorkerPoolTest, the_hook_runs_first_in_each_worker_and_may_throw) {
  const CapturedLog log;
  std::mutex mutex;
  std::set<std::size_t> indices;
  std::set<std::thread::id> threads;
  std::latch hooked(2);
  WorkerPool pool({.threads = 2, .on_thread_start = [&](std::size_t index) {
                     {
                       const std::scoped_lock lock(mutex);
                       indices.insert(index);
                       threads.insert(std::this_thread::get_id());
                     }
                     hooked.count_down();
                     if (index == 1) throw std::runtime_error("hook fault");
                   }});
  ASSERT_TRUE(pool.start().has_value());
  hooked.wait();
  std::latch both(2);
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(pool.try_post([&] {
      both.arrive_and_wait();  // so that each worker has one
      const std::scoped_lock lock(mutex);
      EXPECT_TRUE(threads.contains(std::this_thread::get_id()));
    }),
              PostResult::posted);
  }
  pool.stop();
  EXPECT_EQ(indices, (std::set<std::size_t>{0, 1}));
  EXPECT_EQ(log.count("thread-start hook threw: hook fault"), 1U);
}

TEST(WorkerPoolDeathTest, a_worker_cannot_stop_its_own_pool) {
  EXPECT_DEATH(
      {
        WorkerPool pool({.threads = 1});
        static_cast<void>(pool.start());
        static_cast<void>(pool.try_post([&] { pool.stop(); }));
        pool.stop();
      },
      "by one of its own workers");
}

}  // namespace
}  // namespace penstock::test

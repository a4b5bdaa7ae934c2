#include "penstock/bytes/message_pool.h"

#include <cstddef>
#include <new>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "failing_allocation.h"
#include "gtest/gtest.h"

namespace penstock::test {
namespace {

std::vector<MessageNode*> acquire_many(MessagePool& pool, std::size_t count) {
  std::vector<MessageNode*> nodes;
  nodes.reserve(count);
  while (nodes.size() < count)
    nodes.push_back(pool.acquire());
  return nodes;
}

void release_all(MessagePool& pool, std::vector<MessageNode*>& nodes) {
  for (MessageNode* node : nodes)
    pool.release(node);
  nodes.clear();
}

TEST(MessagePool, every_node_is_another_and_a_released_one_is_used_again) {
  MessagePool pool;
  std::vector<MessageNode*> nodes = acquire_many(pool, 1000);
  EXPECT_EQ(std::set<MessageNode*>(nodes.begin(), nodes.end()).size(), 1000U);
  const std::size_t before = allocations();
  for (int round = 0; round < 10; ++round) {
    release_all(pool, nodes);
    nodes = acquire_many(pool, 1000);
  }
  EXPECT_LE(allocations() - before, 10U) << "but for the vector of each round";
  release_all(pool, nodes);
}

TEST(MessagePool, a_node_comes_without_a_payload_whoever_had_it_before) {
  MessagePool pool;
  MessageNode* node = pool.acquire();
  SharedBytes shared(std::string(100, 'x'));
  node->hold(SharedBytes(shared), Sharing::together);
  node->droppable = true;
  node->has_key = true;
  pool.release(node);
  MessageNode* again = pool.acquire();
  EXPECT_EQ(again, node);
  EXPECT_TRUE(again->payload.empty());
  EXPECT_FALSE(again->droppable);
  EXPECT_FALSE(again->has_key);
  EXPECT_EQ(again->next, nullptr);
  pool.release(again);
}

TEST(MessagePool, a_hundred_thousand_nodes_take_few_allocations) {
  MessagePool pool;
  std::vector<MessageNode*> nodes;
  nodes.reserve(100'000);
  const std::size_t before = allocations();
  while (nodes.size() < 100'000)
    nodes.push_back(pool.acquire());
  EXPECT_LE(allocations() - before, 25U);
  release_all(pool, nodes);
}

TEST(MessagePool, what_a_burst_took_goes_back_to_the_system) {
  MessagePool pool;
  std::vector<MessageNode*> nodes = acquire_many(pool, 200'000);
  release_all(pool, nodes);
  // One slab more than is kept: the one that was given back last may be needed again.
  EXPECT_LE(pool.kept(), 3 * MessagePool::kKeptMax);
  EXPECT_GE(pool.kept(), MessagePool::kKeptMax);
}

TEST(MessagePool, one_node_of_a_slab_that_is_in_use_keeps_it) {
  MessagePool pool;
  std::vector<MessageNode*> nodes = acquire_many(pool, 200'000);
  MessageNode* kept = nodes[150'000];
  kept->hold(SharedBytes(std::string(100, 'k')), Sharing::alone);
  nodes.erase(nodes.begin() + 150'000);
  release_all(pool, nodes);
  EXPECT_EQ(kept->payload.size(), 100U);
  pool.release(kept);
}

TEST(MessagePool, without_memory_nothing_has_changed) {
  MessagePool pool;
  std::vector<MessageNode*> nodes = acquire_many(pool, 1);
  while (pool.kept() > 0)
    nodes.push_back(pool.acquire());
  {
    const FailingAllocation failing;
    EXPECT_THROW(pool.acquire(), std::bad_alloc);
    EXPECT_TRUE(failing.happened());
  }
  EXPECT_EQ(pool.kept(), 0U);
  nodes.push_back(pool.acquire());
  release_all(pool, nodes);
}

}  // namespace
}  // namespace penstock::test

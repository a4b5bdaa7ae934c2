#include "penstock/bytes/block_pool.h"

#include <cstring>
#include <new>
#include <vector>

#include "failing_allocation.h"
#include "gtest/gtest.h"

namespace penstock {
namespace {

void expect_fresh(const Block& block) {
  EXPECT_EQ(block.next, nullptr);
  EXPECT_EQ(block.size(), 0U);
  EXPECT_EQ(block.room, BlockPool::kPayloadSize);
  EXPECT_EQ(block.charge, BlockPool::kBlockSize);
  EXPECT_EQ(block.destroy, nullptr);
}

TEST(BlockPool, hands_out_an_empty_block_with_all_its_room) {
  BlockPool pool;
  Block* block = pool.acquire();
  expect_fresh(*block);
  EXPECT_EQ(block->begin, block->payload());
  std::memset(block->payload(), 0x5a, BlockPool::kPayloadSize);
  pool.release(block);
}

TEST(BlockPool, a_released_block_is_the_next_one_handed_out_as_good_as_new) {
  BlockPool pool;
  Block* first = pool.acquire();
  first->begin += 3;
  first->end += 10;
  first->room -= 10;
  pool.release(first);
  EXPECT_EQ(pool.kept_blocks(), 1U);
  Block* second = pool.acquire();
  EXPECT_EQ(second, first);
  expect_fresh(*second);
  EXPECT_EQ(pool.kept_blocks(), 0U);
  pool.release(second);
}

TEST(BlockPool, keeps_no_more_free_blocks_than_it_may) {
  BlockPool pool(3);
  std::vector<Block*> blocks;
  blocks.reserve(10);
  for (int i = 0; i < 10; ++i)
    blocks.push_back(pool.acquire());
  EXPECT_EQ(pool.kept_blocks(), 0U);
  for (Block* block : blocks)
    pool.release(block);
  EXPECT_EQ(pool.kept_blocks(), 3U);
}

TEST(BlockPool, keeps_one_mebibyte_by_default) {
  EXPECT_EQ(BlockPool::kKeptBlocksMax * BlockPool::kBlockSize, std::size_t{1} << 20U);
}

TEST(BlockPool, without_memory_throws_and_stays_usable) {
  BlockPool pool;
  {
    const test::FailingAllocation failing;
    EXPECT_THROW(static_cast<void>(pool.acquire()), std::bad_alloc);
    EXPECT_TRUE(failing.happened());
  }
  pool.release(pool.acquire());
}

#if defined(__SANITIZE_ADDRESS__)
TEST(BlockPool, bytes_of_a_free_block_may_not_be_touched) {
  BlockPool pool;
  Block* block = pool.acquire();
  std::byte* const payload = block->payload();
  EXPECT_FALSE(__asan_address_is_poisoned(payload));
  pool.release(block);
  EXPECT_TRUE(__asan_address_is_poisoned(payload));
  EXPECT_TRUE(__asan_address_is_poisoned(payload + BlockPool::kPayloadSize - 1));
}
#endif

}  // namespace
}  // namespace penstock

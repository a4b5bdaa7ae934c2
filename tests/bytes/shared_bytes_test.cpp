#include "penstock/bytes/shared_bytes.h"

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

}  // namespace
}  // namespace penstock

#include "penstock/bytes/output_queue.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "failing_allocation.h"
#include "gtest/gtest.h"
#include "rapidcheck.h"
#include "rapidcheck/gtest.h"

namespace penstock {
namespace {

constexpr std::size_t kPayload = BlockPool::kPayloadSize;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::vector<std::byte> vector_of(std::string_view text) {
  const std::span<const std::byte> bytes = bytes_of(text);
  return {bytes.begin(), bytes.end()};
}

/// Bytes by which a loss, a repetition or an exchange shows.
std::string stream(std::size_t size, std::size_t start = 0) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) {
    text[i] = static_cast<char>(static_cast<unsigned char>(((start + i) * 2654435761U) >> 11U));
  }
  return text;
}

/// A queue with its pool, emptied at the end as a connection's is.
struct PooledQueue {
  BlockPool pool;
  OutputQueue queue;

  PooledQueue() = default;
  PooledQueue(const PooledQueue&) = delete;
  PooledQueue& operator=(const PooledQueue&) = delete;
  ~PooledQueue() { queue.clear(pool); }

  void append_copy(std::string_view text) { queue.append_copy(pool, bytes_of(text)); }

  /// What a kernel would take of a sendmsg with that many entries, cut at `limit` bytes.
  std::string send(std::size_t limit, std::size_t entries = 16) {
    std::vector<iovec> front(entries);
    const std::size_t used = queue.front(front);
    std::string sent;
    for (std::size_t i = 0; i < used; ++i) {
      const std::size_t size = std::min(front[i].iov_len, limit - sent.size());
      sent.append(static_cast<const char*>(front[i].iov_base), size);
    }
    queue.consume(pool, sent.size());
    return sent;
  }

  std::string send_all(std::size_t step, std::size_t entries = 16) {
    std::string sent;
    while (!queue.empty())
      sent += send(step, entries);
    return sent;
  }
};

enum class Kind : std::uint8_t { copy, string, vector, shared };
constexpr std::size_t kKinds = 4;

void append(PooledQueue& output, Kind kind, const std::string& text) {
  switch (kind) {
    case Kind::copy:
      return output.append_copy(text);
    case Kind::string:
      return output.queue.append(std::string(text));
    case Kind::vector:
      return output.queue.append(vector_of(text));
    case Kind::shared:
      return output.queue.append(output.pool, SharedBytes::copy_of(bytes_of(text)));
  }
}

/// Cuts `text` at the given places; each part becomes a node, of kinds that follow each other.
void append_parts(PooledQueue& output, const std::string& text,
                  const std::vector<std::size_t>& cuts, std::size_t first_kind) {
  std::size_t begin = 0;
  for (std::size_t i = 0; i <= cuts.size(); ++i) {
    const std::size_t end = i < cuts.size() ? cuts[i] : text.size();
    append(output, static_cast<Kind>((first_kind + i) % kKinds), text.substr(begin, end - begin));
    begin = end;
  }
}

void expect_every_short_write_harmless(const std::string& text,
                                       const std::vector<std::size_t>& cuts) {
  for (std::size_t step = 1; step <= text.size(); ++step) {
    PooledQueue output;
    append_parts(output, text, cuts, step);
    ASSERT_EQ(output.queue.bytes(), text.size());
    // Two entries only, so that a sendmsg is often cut by their number too.
    ASSERT_EQ(output.send_all(step, 2), text) << "step " << step;
    ASSERT_EQ(output.queue.bytes(), 0U);
    ASSERT_EQ(output.queue.charge(), 0U);
  }
}

TEST(OutputQueue, every_short_write_of_up_to_64_bytes_in_one_or_two_nodes_keeps_the_order) {
  for (std::size_t size = 1; size <= 64; ++size) {
    const std::string text = stream(size);
    expect_every_short_write_harmless(text, {});
    for (std::size_t cut = 1; cut < size; ++cut)
      expect_every_short_write_harmless(text, {cut});
  }
}

TEST(OutputQueue, every_short_write_over_three_and_four_nodes_keeps_the_order) {
  for (const std::size_t size : {3U, 4U, 5U, 8U, 11U}) {
    const std::string text = stream(size);
    for (std::size_t a = 1; a < size; ++a) {
      for (std::size_t b = a + 1; b < size; ++b) {
        expect_every_short_write_harmless(text, {a, b});
        for (std::size_t c = b + 1; c < size; ++c) {
          expect_every_short_write_harmless(text, {a, b, c});
        }
      }
    }
  }
}

TEST(OutputQueue, short_writes_around_the_edge_between_two_blocks_lose_nothing) {
  const std::string text = stream(2 * kPayload);
  for (std::size_t first = kPayload - 3; first <= kPayload + 3; ++first) {
    PooledQueue output;
    output.append_copy(std::string_view(text).substr(0, 100));
    output.append_copy(std::string_view(text).substr(100, kPayload));
    output.append_copy(std::string_view(text).substr(100 + kPayload));
    std::string sent = output.send(first);
    EXPECT_EQ(sent.size(), first);
    sent += output.send_all(kPayload);
    EXPECT_EQ(sent, text);
  }
}

TEST(OutputQueue, small_copies_fill_blocks_without_gaps) {
  PooledQueue output;
  std::string all;
  for (std::size_t i = 0; i < 10'000; ++i) {
    const std::string text = stream(16, i);
    output.append_copy(text);
    all += text;
  }
  const std::size_t blocks = (all.size() + kPayload - 1) / kPayload;
  EXPECT_EQ(output.queue.charge(), blocks * BlockPool::kBlockSize);
  std::vector<iovec> front(100);
  EXPECT_EQ(output.queue.front(front), blocks);
  EXPECT_EQ(output.send_all(100'000), all);
}

TEST(OutputQueue, a_copy_larger_than_a_block_gets_one_node_of_its_size) {
  PooledQueue output;
  const std::string small = stream(10);
  const std::string large = stream(100'000, 10);
  output.append_copy(small);
  output.append_copy(large);
  std::array<iovec, 8> front{};
  ASSERT_EQ(output.queue.front(front), 2U);
  EXPECT_EQ(front[1].iov_len, large.size());
  EXPECT_EQ(output.queue.charge(), BlockPool::kBlockSize + sizeof(Block) + large.size());
  EXPECT_EQ(output.send_all(999), small + large);
}

TEST(OutputQueue, moved_payloads_are_queued_where_they_are) {
  PooledQueue output;
  std::string text = stream(1000);
  std::vector<std::byte> bytes(1000, std::byte{1});
  const SharedBytes shared(stream(1000));
  const std::array<const void*, 3> addresses{text.data(), bytes.data(), shared.bytes().data()};
  output.queue.append(std::move(text));
  output.queue.append(std::move(bytes));
  output.queue.append(output.pool, SharedBytes(shared));
  std::array<iovec, 8> front{};
  ASSERT_EQ(output.queue.front(front), 3U);
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_EQ(front[i].iov_base, addresses[i]);
}

TEST(OutputQueue, front_fills_no_more_entries_than_it_is_given) {
  PooledQueue output;
  for (std::size_t i = 0; i < 5; ++i)
    output.queue.append(stream(10, i));
  std::array<iovec, 5> front{};
  for (std::size_t entries = 0; entries <= 5; ++entries) {
    EXPECT_EQ(output.queue.front(std::span(front).first(entries)), entries);
  }
  EXPECT_EQ(OutputQueue().front(front), 0U);
}

TEST(OutputQueue, payloads_without_bytes_add_nothing) {
  PooledQueue output;
  output.queue.append_copy(output.pool, {});
  output.queue.append(std::string());
  output.queue.append(std::vector<std::byte>());
  output.queue.append(output.pool, SharedBytes());
  output.queue.consume(output.pool, 0);
  EXPECT_TRUE(output.queue.empty());
  EXPECT_EQ(output.queue.charge(), 0U);
  output.append_copy("a");
  const std::size_t charge = output.queue.charge();
  output.queue.append_copy(output.pool, {});
  output.queue.append(std::string());
  EXPECT_EQ(output.queue.charge(), charge);
  EXPECT_EQ(output.queue.bytes(), 1U);
}

TEST(OutputQueue, when_empty_owns_no_memory) {
  PooledQueue output;
  output.append_copy(stream(100));
  EXPECT_EQ(output.pool.kept_blocks(), 0U);
  output.queue.consume(output.pool, 100);
  EXPECT_TRUE(output.queue.empty());
  EXPECT_EQ(output.queue.charge(), 0U);
  EXPECT_EQ(output.pool.kept_blocks(), 1U);
}

TEST(OutputQueue, frees_a_finished_node_at_once) {
  PooledQueue output;
  output.append_copy(stream(3 * kPayload / 2 - kPayload));
  output.append_copy(stream(kPayload));
  const SharedBytes shared(stream(1000));
  output.queue.append(output.pool, SharedBytes(shared));
  const std::size_t charge_of_shared = OutputQueue::charge_of(shared);
  EXPECT_EQ(output.queue.charge(), 2 * BlockPool::kBlockSize + charge_of_shared);
  output.queue.consume(output.pool, kPayload);
  EXPECT_EQ(output.queue.charge(), BlockPool::kBlockSize + charge_of_shared);
  EXPECT_EQ(output.pool.kept_blocks(), 1U);
  output.queue.consume(output.pool, output.queue.bytes() - 1);
  EXPECT_EQ(output.queue.charge(), charge_of_shared);
  EXPECT_EQ(output.pool.kept_blocks(), 2U);
}

TEST(OutputQueue, clear_drops_nodes_of_every_kind) {
  PooledQueue output;
  append_parts(output, stream(40), {10, 20, 30}, 0);
  output.append_copy(stream(100'000));
  output.append_copy(stream(10));
  output.queue.clear(output.pool);
  EXPECT_TRUE(output.queue.empty());
  EXPECT_EQ(output.queue.bytes(), 0U);
  EXPECT_EQ(output.queue.charge(), 0U);
  output.append_copy("again");
  EXPECT_EQ(output.send_all(1), "again");
}

TEST(OutputQueue, lent_bytes_stay_in_place_whatever_is_appended) {
  PooledQueue output;
  output.append_copy(stream(100));
  output.queue.append(stream(5));  // A short string lives inside its object.
  output.append_copy(stream(50, 105));
  output.queue.consume(output.pool, 7);
  std::array<iovec, 8> lent{};
  const std::size_t used = output.queue.front(lent);
  std::string lent_text;
  for (std::size_t i = 0; i < used; ++i) {
    lent_text.append(static_cast<const char*>(lent[i].iov_base), lent[i].iov_len);
  }
  for (std::size_t i = 0; i < 5000; ++i)
    append(output, static_cast<Kind>(i % kKinds), stream(31));
  output.append_copy(stream(50'000));

  std::array<iovec, 8> later{};
  ASSERT_EQ(output.queue.front(later), 8U);
  std::string text;
  for (std::size_t i = 0; i < used; ++i) {
    EXPECT_EQ(later[i].iov_base, lent[i].iov_base);
    EXPECT_GE(later[i].iov_len, lent[i].iov_len);
    text.append(static_cast<const char*>(lent[i].iov_base), lent[i].iov_len);
  }
  EXPECT_EQ(text, lent_text);
}

TEST(OutputQueue, a_tail_that_is_lent_and_partly_sent_takes_more_bytes_behind_them) {
  PooledQueue output;
  output.append_copy("lent ");
  std::array<iovec, 2> lent{};
  ASSERT_EQ(output.queue.front(lent), 1U);
  output.append_copy("and more");
  EXPECT_EQ(output.queue.charge(), BlockPool::kBlockSize);
  output.queue.consume(output.pool, lent[0].iov_len);
  output.append_copy(" still");
  EXPECT_EQ(output.send_all(100), "and more still");
}

TEST(OutputQueue, one_payload_on_two_queues_counts_in_full_on_each) {
  PooledQueue first;
  PooledQueue second;
  SharedBytes shared(stream(10'000));
  first.queue.append(first.pool, SharedBytes(shared));
  second.queue.append(second.pool, std::move(shared));
  EXPECT_EQ(first.queue.charge(), second.queue.charge());
  EXPECT_GE(first.queue.charge(), 10'000U);
  first.queue.clear(first.pool);
  EXPECT_EQ(second.send_all(3000), stream(10'000));
}

TEST(OutputQueue, unused_capacity_of_a_moved_payload_is_charged) {
  PooledQueue output;
  std::string text = "x";
  text.reserve(100'000);
  const std::size_t foreseen = OutputQueue::charge_of(text);
  output.queue.append(std::move(text));
  EXPECT_EQ(output.queue.charge(), foreseen);
  EXPECT_GE(output.queue.charge(), 100'000U);
}

TEST(OutputQueue, the_charge_of_an_impossible_copy_does_not_wrap) {
  const OutputQueue queue;
  EXPECT_EQ(queue.charge_of_copy(SIZE_MAX), SIZE_MAX);
  EXPECT_EQ(queue.charge_of_copy(SIZE_MAX - 1), SIZE_MAX);
}

TEST(OutputQueue, more_than_4_gib_queued_are_counted_and_consumed_without_truncation) {
  PooledQueue output;
  const SharedBytes shared(std::vector<std::byte>(std::size_t{16} << 20U));
  const std::size_t copies = 260;
  for (std::size_t i = 0; i < copies; ++i)
    output.queue.append(output.pool, SharedBytes(shared));
  output.append_copy("end");
  const std::size_t total = copies * shared.size() + 3;
  ASSERT_GT(total, std::size_t{UINT32_MAX});
  EXPECT_EQ(output.queue.bytes(), total);
  EXPECT_GT(output.queue.charge(), total);
  output.queue.consume(output.pool, total - 2);
  EXPECT_EQ(output.send_all(10), "nd");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // Their shadows are touched.
TEST(OutputQueue, one_payload_of_more_than_4_gib_is_one_entry) {
  const std::size_t size = (std::size_t{4} << 30U) + 5;
  std::string text;
  try {
    text.resize_and_overwrite(size, [](char*, std::size_t n) { return n; });  // Untouched memory.
  } catch (const std::bad_alloc&) {
    GTEST_SKIP() << "no 4 GiB of address space to be had";
  }
  text[size - 1] = 'z';
  PooledQueue output;
  output.queue.append(std::move(text));
  output.append_copy("!");
  std::array<iovec, 2> front{};
  ASSERT_EQ(output.queue.front(front), 2U);
  EXPECT_EQ(front[0].iov_len, size);
  EXPECT_EQ(output.queue.bytes(), size + 1);
  output.queue.consume(output.pool, size - 1);
  EXPECT_EQ(output.send_all(10), "z!");
}
#endif

TEST(OutputQueue, without_memory_nothing_is_appended_and_nothing_is_moved) {
  PooledQueue output;
  output.append_copy(stream(kPayload - 10));
  const auto expect_refused = [&output](auto append_it) {
    const std::size_t bytes = output.queue.bytes();
    const std::size_t charge = output.queue.charge();
    const test::FailingAllocation failing;
    EXPECT_THROW(append_it(), std::bad_alloc);
    EXPECT_TRUE(failing.happened());
    EXPECT_EQ(output.queue.bytes(), bytes);
    EXPECT_EQ(output.queue.charge(), charge);
  };
  const std::string small = stream(100);
  const std::string large = stream(2 * kPayload);
  expect_refused([&] { output.append_copy(small); });
  expect_refused([&] { output.append_copy(large); });
  std::string text = stream(100);
  std::vector<std::byte> bytes = vector_of(text);
  SharedBytes shared = SharedBytes::copy_of(bytes);
  expect_refused([&] { output.queue.append(std::move(text)); });
  expect_refused([&] { output.queue.append(std::move(bytes)); });
  expect_refused([&] { output.queue.append(output.pool, std::move(shared)); });
  EXPECT_EQ(text, stream(100));
  EXPECT_EQ(bytes, vector_of(text));
  EXPECT_EQ(shared.size(), 100U);
  EXPECT_EQ(output.send_all(4096), stream(kPayload - 10));
  expect_refused([&, pool = std::make_unique<BlockPool>()] {
    output.queue.append_copy(*pool, bytes_of(small));  // An empty queue, a pool without blocks.
  });
  EXPECT_TRUE(output.queue.empty());
}

TEST(OutputQueue, an_echo_of_small_messages_allocates_nothing_after_the_first) {
  PooledQueue output;
  const std::string message = stream(64);
  output.append_copy(message);
  output.queue.consume(output.pool, 64);
  const std::size_t before = test::allocations();
  for (int i = 0; i < 1000; ++i) {
    output.append_copy(message);
    output.queue.consume(output.pool, 64);
  }
  EXPECT_EQ(test::allocations(), before);
}

TEST(OutputQueueDeathTest, a_queue_must_be_cleared_before_it_goes) {
  EXPECT_DEATH(
      {
        OutputQueue queue;
        queue.append(std::string("left over"));
      },
      "clear\\(\\) the queue");
}

TEST(OutputQueueDeathTest, no_more_can_be_consumed_than_is_queued) {
  PooledQueue output;
  output.append_copy("abc");
  EXPECT_DEATH(output.queue.consume(output.pool, 4), "more consumed than queued");
}

/// What the queue is made of, worked out from its description alone.
class Model {
 public:
  void append(Kind kind, const std::string& text, std::size_t moved_charge) {
    bytes += text;
    if (text.empty()) return;
    if (kind != Kind::copy) {
      nodes.push_back({text.size(), 0, moved_charge});
      return;
    }
    if (!nodes.empty() && nodes.back().room >= text.size()) {
      nodes.back().size += text.size();
      nodes.back().room -= text.size();
    } else if (text.size() > kPayload) {
      nodes.push_back({text.size(), 0, sizeof(Block) + text.size()});
    } else {
      std::size_t rest = text.size();
      if (!nodes.empty()) {
        rest -= nodes.back().room;
        nodes.back().size += std::exchange(nodes.back().room, 0);
      }
      nodes.push_back({rest, kPayload - rest, BlockPool::kBlockSize});
    }
  }

  void consume(std::size_t n) {
    bytes.erase(0, n);
    while (n > 0) {
      const std::size_t part = std::min(n, nodes.front().size);
      nodes.front().size -= part;
      n -= part;
      if (nodes.front().size == 0) nodes.pop_front();
    }
  }

  std::size_t charge() const {
    std::size_t sum = 0;
    for (const Node& node : nodes)
      sum += node.charge;
    return sum;
  }

  struct Node {
    std::size_t size;
    std::size_t room;
    std::size_t charge;
  };
  std::string bytes;
  std::deque<Node> nodes;
};

/// A sendmsg in flight at a completion kernel: where the bytes are and what they were.
struct InFlight {
  std::vector<iovec> entries;
  std::string text;

  static std::string read(const std::vector<iovec>& entries) {
    std::string text;
    for (const iovec& entry : entries) {
      text.append(static_cast<const char*>(entry.iov_base), entry.iov_len);
    }
    return text;
  }
};

RC_GTEST_PROP(OutputQueue, behaves_like_a_string_whatever_is_appended_lent_and_consumed, ()) {
  PooledQueue output;
  Model model;
  InFlight in_flight;
  const auto steps = *rc::gen::container<std::vector<std::pair<std::uint8_t, std::uint16_t>>>(
      rc::gen::arbitrary<std::pair<std::uint8_t, std::uint16_t>>());
  std::size_t position = 0;
  for (const auto& [action, amount] : steps) {
    if (action % 7 < 5) {
      const auto kind = static_cast<Kind>(action % 7 % kKinds);  // Copies are twice as likely.
      const std::string text = stream(amount % (action % 2 == 0 ? 100U : 2 * kPayload), position);
      position += text.size();
      const std::size_t before = output.queue.charge();
      std::size_t foreseen = 0;
      switch (kind) {
        case Kind::copy:
          foreseen = output.queue.charge_of_copy(text.size());
          output.append_copy(text);
          break;
        case Kind::string: {
          std::string moved = text;
          foreseen = OutputQueue::charge_of(moved);
          output.queue.append(std::move(moved));
          break;
        }
        case Kind::vector: {
          std::vector<std::byte> moved = vector_of(text);
          foreseen = OutputQueue::charge_of(moved);
          output.queue.append(std::move(moved));
          break;
        }
        case Kind::shared: {
          const SharedBytes shared = SharedBytes::copy_of(bytes_of(text));
          foreseen = OutputQueue::charge_of(shared);
          output.queue.append(output.pool, SharedBytes(shared));
          break;
        }
      }
      model.append(kind, text, foreseen);
      RC_ASSERT(output.queue.charge() == before + foreseen);
    } else if (in_flight.entries.empty()) {
      in_flight.entries.resize(1 + amount % 5);
      in_flight.entries.resize(output.queue.front(in_flight.entries));
      in_flight.text = InFlight::read(in_flight.entries);
      RC_ASSERT(model.bytes.starts_with(in_flight.text));
    } else {
      RC_ASSERT(InFlight::read(in_flight.entries) == in_flight.text);
      std::vector<iovec> again(in_flight.entries.size());
      RC_ASSERT(output.queue.front(again) == again.size());
      for (std::size_t i = 0; i < again.size(); ++i) {
        RC_ASSERT((again[i].iov_base == in_flight.entries[i].iov_base));
      }
      const std::size_t sent =
          action % 2 == 0 ? in_flight.text.size() : amount % (in_flight.text.size() + 1);
      output.queue.consume(output.pool, sent);
      model.consume(sent);
      in_flight.entries.clear();
    }
    RC_ASSERT(output.queue.bytes() == model.bytes.size());
    RC_ASSERT(output.queue.empty() == model.bytes.empty());
    RC_ASSERT(output.queue.charge() == model.charge());
  }
  RC_ASSERT(output.send_all(1000) == model.bytes);
  RC_ASSERT(output.queue.charge() == 0U);
}

}  // namespace
}  // namespace penstock

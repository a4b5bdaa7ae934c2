#include "penstock/base/slot_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace penstock {
namespace {

/// Knows its name and tells how many of its kind there are.
class Thing {
 public:
  Thing(SlotId own, int& alive, std::string given)
      : id(own), text(std::move(given)), alive_(alive) {
    ++alive_;
  }
  Thing(const Thing&) = delete;
  Thing& operator=(const Thing&) = delete;
  ~Thing() { --alive_; }

  const SlotId id;
  const std::string text;

 private:
  int& alive_;
};

struct Refuses {
  explicit Refuses(SlotId) { throw std::runtime_error("refused"); }
};

TEST(SlotTable, finds_what_it_constructed) {
  int alive = 0;
  SlotTable<Thing> table;
  Thing& first = table.emplace(alive, "first");
  Thing& second = table.emplace(alive, "second");

  EXPECT_EQ(table.size(), 2u);
  EXPECT_NE(first.id, second.id);
  EXPECT_EQ(table.find(first.id), &first);
  EXPECT_EQ(table.find(second.id)->text, "second");
}

TEST(SlotTable, the_default_name_names_nothing) {
  int alive = 0;
  SlotTable<Thing> table;
  EXPECT_EQ(table.find(SlotId{}), nullptr);
  table.emplace(alive, "in some slot");
  for (std::uint32_t slot = 0; slot < 128; ++slot) {
    EXPECT_EQ(table.find({.slot = slot, .generation = 0}), nullptr);
  }
  EXPECT_EQ(table.find({.slot = UINT32_MAX, .generation = 1}), nullptr);
}

TEST(SlotTable, an_old_name_does_not_find_the_new_object_in_its_slot) {
  int alive = 0;
  SlotTable<Thing> table;
  const SlotId old_name = table.emplace(alive, "old").id;
  table.erase(old_name);
  EXPECT_EQ(alive, 0);
  EXPECT_EQ(table.size(), 0u);
  EXPECT_EQ(table.find(old_name), nullptr);

  const Thing& recycled = table.emplace(alive, "new");

  ASSERT_EQ(recycled.id.slot, old_name.slot);
  EXPECT_NE(recycled.id.generation, old_name.generation);
  EXPECT_EQ(table.find(old_name), nullptr);
}

TEST(SlotTable, objects_stay_where_they_are_while_the_table_grows) {
  constexpr int kMany = 1000;
  int alive = 0;
  SlotTable<Thing> table;
  std::vector<Thing*> things;
  for (int i = 0; i < kMany; ++i)
    things.push_back(&table.emplace(alive, std::to_string(i)));

  for (int i = 0; i < kMany; ++i) {
    Thing* thing = things[static_cast<std::size_t>(i)];
    EXPECT_EQ(thing->text, std::to_string(i));
    EXPECT_EQ(table.find(thing->id), thing);
  }
  EXPECT_EQ(std::set<Thing*>(things.begin(), things.end()).size(), things.size());
}

TEST(SlotTable, reuses_slots_before_it_grows) {
  int alive = 0;
  SlotTable<Thing> table;
  std::uint32_t highest = 0;
  for (int i = 0; i < 10000; ++i) {
    const SlotId id = table.emplace(alive, "short-lived").id;
    highest = std::max(highest, id.slot);
    table.erase(id);
  }
  EXPECT_LT(highest, 64u);
}

TEST(SlotTable, visits_each_object_once_and_allows_to_erase_it) {
  int alive = 0;
  SlotTable<Thing> table;
  for (int i = 0; i < 200; ++i)
    table.emplace(alive, std::to_string(i));

  std::set<std::string> visited;
  table.for_each([&](SlotId id, Thing& thing) {
    EXPECT_EQ(id, thing.id);
    EXPECT_TRUE(visited.insert(thing.text).second);
    if (thing.text.ends_with('7')) table.erase(id);
  });

  EXPECT_EQ(visited.size(), 200u);
  EXPECT_EQ(table.size(), 180u);
  EXPECT_EQ(alive, 180);
}

TEST(SlotTable, destroys_its_objects) {
  int alive = 0;
  {
    SlotTable<Thing> table;
    for (int i = 0; i < 100; ++i)
      table.emplace(alive, "x");
    EXPECT_EQ(alive, 100);
  }
  EXPECT_EQ(alive, 0);
}

TEST(SlotTable, a_constructor_that_throws_changes_nothing) {
  SlotTable<Refuses> table;
  EXPECT_THROW(table.emplace(), std::runtime_error);
  EXPECT_EQ(table.size(), 0u);
  table.for_each([](SlotId, Refuses&) { FAIL(); });
}

TEST(SlotTableDeathTest, erasing_what_is_gone_is_a_programming_error) {
  int alive = 0;
  SlotTable<Thing> table;
  const SlotId id = table.emplace(alive, "x").id;
  table.erase(id);
  EXPECT_DEATH(table.erase(id), "no such object");
}

}  // namespace
}  // namespace penstock

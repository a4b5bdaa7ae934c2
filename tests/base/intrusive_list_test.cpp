#include "penstock/base/intrusive_list.h"

#include <gtest/gtest.h>

#include <vector>

namespace penstock {
namespace {

struct Readers;
struct Writers;

struct Item : ListLink<Readers>, ListLink<Writers> {
  explicit Item(int given) : value(given) {}
  int value;
};

using ReaderList = IntrusiveList<Item, Readers>;
using WriterList = IntrusiveList<Item, Writers>;

template <class List>
std::vector<int> values(List& list) {
  std::vector<int> found;
  for (Item* item = list.front(); item != nullptr; item = list.next(*item)) {
    found.push_back(item->value);
  }
  return found;
}

using Values = std::vector<int>;

TEST(IntrusiveList, is_empty_at_first) {
  ReaderList list;
  EXPECT_TRUE(list.empty());
  EXPECT_EQ(list.front(), nullptr);
  EXPECT_EQ(list.pop_front(), nullptr);
}

TEST(IntrusiveList, hands_out_what_was_appended_in_order) {
  ReaderList list;
  Item first(1);
  Item second(2);
  list.push_back(first);
  list.push_back(second);

  EXPECT_FALSE(list.empty());
  EXPECT_EQ(list.front(), &first);
  EXPECT_EQ(list.next(first), &second);
  EXPECT_EQ(list.next(second), nullptr);
  EXPECT_EQ(list.pop_front(), &first);
  EXPECT_EQ(list.pop_front(), &second);
  EXPECT_TRUE(list.empty());
}

TEST(IntrusiveList, an_element_leaves_from_anywhere) {
  ReaderList list;
  Item items[] = {Item(0), Item(1), Item(2), Item(3), Item(4)};
  for (Item& item : items)
    list.push_back(item);

  items[2].ListLink<Readers>::unlink();
  EXPECT_EQ(values(list), (Values{0, 1, 3, 4}));
  items[0].ListLink<Readers>::unlink();
  items[4].ListLink<Readers>::unlink();
  EXPECT_EQ(values(list), (Values{1, 3}));
}

TEST(IntrusiveList, leaving_twice_does_nothing) {
  ReaderList list;
  Item item(1);
  ListLink<Readers>& link = item;
  EXPECT_FALSE(link.linked());
  link.unlink();
  list.push_back(item);
  EXPECT_TRUE(link.linked());
  link.unlink();
  link.unlink();
  EXPECT_FALSE(link.linked());
  EXPECT_TRUE(list.empty());
}

TEST(IntrusiveList, an_element_may_return_at_the_end) {
  ReaderList list;
  Item first(1);
  Item second(2);
  list.push_back(first);
  list.push_back(second);

  list.push_back(*list.pop_front());

  EXPECT_EQ(values(list), (Values{2, 1}));
}

TEST(IntrusiveList, an_element_is_in_a_list_of_each_tag_independently) {
  ReaderList readers;
  WriterList writers;
  Item item(1);
  readers.push_back(item);
  writers.push_back(item);

  EXPECT_EQ(readers.pop_front(), &item);
  EXPECT_TRUE(readers.empty());
  EXPECT_EQ(values(writers), Values{1});
}

TEST(IntrusiveList, a_destroyed_element_leaves) {
  ReaderList list;
  Item first(1);
  list.push_back(first);
  {
    Item second(2);
    list.push_back(second);
  }
  EXPECT_EQ(values(list), Values{1});
}

TEST(IntrusiveList, a_destroyed_list_lets_its_elements_go) {
  Item item(1);
  {
    ReaderList list;
    list.push_back(item);
  }
  EXPECT_FALSE(item.ListLink<Readers>::linked());
  ReaderList another;
  another.push_back(item);
  EXPECT_EQ(another.front(), &item);
}

TEST(IntrusiveList, splicing_appends_all_and_empties_the_other) {
  ReaderList list;
  ReaderList other;
  Item items[] = {Item(0), Item(1), Item(2), Item(3)};
  list.push_back(items[0]);
  list.push_back(items[1]);
  other.push_back(items[2]);
  other.push_back(items[3]);

  list.splice_back(other);

  EXPECT_EQ(values(list), (Values{0, 1, 2, 3}));
  EXPECT_TRUE(other.empty());
  list.splice_back(other);
  EXPECT_EQ(values(list), (Values{0, 1, 2, 3}));
  other.splice_back(list);
  EXPECT_EQ(values(other), (Values{0, 1, 2, 3}));
  EXPECT_TRUE(list.empty());
}

TEST(IntrusiveListDeathTest, an_element_cannot_be_appended_twice) {
  ReaderList list;
  Item item(1);
  list.push_back(item);
  EXPECT_DEATH(list.push_back(item), "the element is in a list already");
}

}  // namespace
}  // namespace penstock

#include "app/load_window.h"

#include <gtest/gtest.h>

#include <vector>

namespace penstock::app {
namespace {

TimePoint at(int nanoseconds) { return TimePoint{} + Duration(nanoseconds); }

// What note_received() records, in nanoseconds.
std::vector<Duration::rep> receive(LoadWindow& window, std::uint64_t bytes, int now) {
  std::vector<Duration::rep> taken;
  window.note_received(bytes, at(now),
                       [&](Duration duration) { taken.push_back(duration.count()); });
  return taken;
}

using Times = std::vector<Duration::rep>;

TEST(LoadWindow, lets_as_many_messages_out_as_its_depth) {
  LoadWindow window(10, 3, 0);
  EXPECT_EQ(window.sendable(), 30U);
  window.note_sent(30, at(0));
  EXPECT_EQ(window.sendable(), 0U);
  EXPECT_EQ(window.owed(), 30U);
  receive(window, 9, 1);
  EXPECT_EQ(window.sendable(), 0U) << "no message is back yet";
  receive(window, 1, 1);
  EXPECT_EQ(window.sendable(), 10U);
  receive(window, 20, 2);
  EXPECT_EQ(window.sendable(), 30U);
  EXPECT_EQ(window.owed(), 0U);
}

TEST(LoadWindow, times_a_message_from_its_first_byte_to_its_last) {
  LoadWindow window(10, 2, 0);
  window.note_sent(4, at(100));
  window.note_sent(6, at(150));
  window.note_sent(10, at(200));
  EXPECT_EQ(receive(window, 9, 300), Times{});
  EXPECT_EQ(receive(window, 1, 400), Times{300});
  EXPECT_EQ(receive(window, 10, 500), Times{300});
}

TEST(LoadWindow, times_many_messages_of_one_send_and_one_receipt) {
  LoadWindow window(1, 4, 0);
  window.note_sent(4, at(0));
  EXPECT_EQ(receive(window, 3, 7), (Times{7, 7, 7}));
  window.note_sent(3, at(10));
  EXPECT_EQ(receive(window, 4, 20), (Times{20, 10, 10, 10})) << "the ring goes round";
}

TEST(LoadWindow, ends_after_its_last_message) {
  LoadWindow window(5, 2, 3);
  window.note_sent(10, at(0));
  receive(window, 10, 1);
  EXPECT_EQ(window.sendable(), 5U);
  EXPECT_FALSE(window.all_sent());
  window.note_sent(5, at(2));
  EXPECT_TRUE(window.all_sent());
  EXPECT_FALSE(window.all_back());
  EXPECT_EQ(receive(window, 5, 3), Times{1});
  EXPECT_TRUE(window.all_back());
  EXPECT_EQ(window.sendable(), 0U);
}

TEST(LoadWindow, one_message_in_all_never_lets_a_second_out) {
  LoadWindow window(8, 4, 1);
  EXPECT_EQ(window.sendable(), 8U);
  window.note_sent(8, at(0));
  receive(window, 8, 1);
  EXPECT_EQ(window.sendable(), 0U);
}

TEST(LoadWindow, begins_anew_with_what_was_under_way_forgotten) {
  LoadWindow window(10, 2, 0);
  window.note_sent(15, at(0));
  receive(window, 3, 1);
  window.reset();
  EXPECT_EQ(window.owed(), 0U);
  EXPECT_EQ(window.sendable(), 20U);
  window.note_sent(10, at(50));
  EXPECT_EQ(receive(window, 10, 60), Times{10});
}

}  // namespace
}  // namespace penstock::app

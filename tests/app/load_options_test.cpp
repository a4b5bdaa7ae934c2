// What `penstock load` refuses before it begins.
#include "app/load_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace penstock::app {
namespace {

using ::testing::HasSubstr;

constexpr LoadMeans kPlenty{.descriptors = 1'000'000, .memory = std::size_t{1} << 36};

LoadOptions good() { return {.to = "127.0.0.1:7000"}; }

std::string refusal(const LoadOptions& options, const LoadMeans& means = kPlenty) {
  return find_contradiction(options, means);
}

TEST(LoadOptions, the_defaults_are_possible_in_every_mode) {
  LoadOptions options = good();
  EXPECT_EQ(refusal(options), "");
  options.churn = true;
  EXPECT_EQ(refusal(options), "");
  options.orderly = true;
  options.rounds = 7;
  EXPECT_EQ(refusal(options), "");
  options = good();
  options.half_close = true;
  options.rounds = 7;
  options.size = LoadOptions::kHalfCloseSize;
  EXPECT_EQ(refusal(options), "");
}

TEST(LoadOptions, addresses_that_cannot_be_connected_to_are_refused) {
  for (const char* to : {"", "nonsense", "127.0.0.1", "127.0.0.1:0", "[::1]:0", "host:99999"}) {
    LoadOptions options = good();
    options.to = to;
    EXPECT_THAT(refusal(options), HasSubstr("--to")) << to;
    EXPECT_THAT(refusal(options), HasSubstr(to));
  }
  for (const char* to : {"unix:/tmp/x", "unix:@x", "[::1]:1", "localhost:1"}) {
    LoadOptions options = good();
    options.to = to;
    EXPECT_EQ(refusal(options), "") << to;
  }
}

TEST(LoadOptions, numbers_without_sense_are_refused_by_name) {
  const auto with = [](auto change) {
    LoadOptions options = good();
    change(options);
    return refusal(options);
  };
  EXPECT_THAT(with([](LoadOptions& o) { o.connections = 0; }), HasSubstr("--connections 0"));
  EXPECT_THAT(with([](LoadOptions& o) { o.size = 0; }), HasSubstr("--size 0"));
  EXPECT_THAT(with([](LoadOptions& o) { o.size = SIZE_MAX; }), HasSubstr("--size"));
  EXPECT_THAT(with([](LoadOptions& o) { o.depth = 0; }), HasSubstr("--depth 0"));
  EXPECT_THAT(with([](LoadOptions& o) { o.depth = SIZE_MAX; }), HasSubstr("--depth"));
  EXPECT_THAT(with([](LoadOptions& o) { o.seconds = 0; }), HasSubstr("--seconds 0"));
  EXPECT_THAT(with([](LoadOptions& o) { o.seconds = -1; }), HasSubstr("--seconds -1"));
  EXPECT_THAT(with([](LoadOptions& o) { o.seconds = 1e300; }), HasSubstr("--seconds"));
  EXPECT_THAT(with([](LoadOptions& o) { o.seconds = std::nan(""); }), HasSubstr("--seconds"));
  EXPECT_THAT(with([](LoadOptions& o) { o.drain = Duration::max(); }), HasSubstr("--drain"));
  EXPECT_THAT(with([](LoadOptions& o) { o.slow_reader_given = true; }),
              HasSubstr("--slow-reader 0"));
}

TEST(LoadOptions, what_excludes_each_other_is_refused) {
  LoadOptions options = good();
  options.churn = options.half_close = true;
  EXPECT_THAT(refusal(options), HasSubstr("--churn and --half-close"));

  options = good();
  options.orderly = true;
  EXPECT_THAT(refusal(options), HasSubstr("--orderly"));

  options = good();
  options.rounds = 1;
  EXPECT_THAT(refusal(options), HasSubstr("--rounds"));

  options = good();
  options.depth = 2;
  options.churn = true;
  EXPECT_THAT(refusal(options), HasSubstr("--depth 2: with --churn"));
  options.churn = false;
  options.half_close = true;
  EXPECT_THAT(refusal(options), HasSubstr("--depth 2: with --half-close"));
}

TEST(LoadOptions, connections_stay_below_the_free_descriptors) {
  LoadOptions options = good();
  options.connections = 92;
  EXPECT_EQ(refusal(options, {.descriptors = 100, .memory = kPlenty.memory}), "");
  options.connections = 93;
  EXPECT_THAT(refusal(options, {.descriptors = 100, .memory = kPlenty.memory}),
              HasSubstr("room for 92"));
  options.connections = 1;
  EXPECT_THAT(refusal(options, {.descriptors = 3, .memory = kPlenty.memory}),
              HasSubstr("room for 0"));
}

TEST(LoadOptions, the_times_of_messages_under_way_fit_into_memory) {
  LoadOptions options = good();
  options.connections = 10'000;
  options.depth = 65'536;
  EXPECT_THAT(refusal(options, {.descriptors = 20'000, .memory = std::size_t{1} << 30}),
              HasSubstr("--depth 65536 on 10000 connections"));
}

}  // namespace
}  // namespace penstock::app

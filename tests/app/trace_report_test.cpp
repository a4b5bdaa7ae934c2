// What TraceReport calls a discrepancy; penstock trace fails with it.
#include "app/trace_report.h"

#include <gtest/gtest.h>

namespace penstock::app {
namespace {

std::string discrepancy_after_nothing(TraceOffer offer) {
  EventLoop loop;
  const SlowReader reader(loop, {}, [] {});
  return TraceReport(linux_kernel(), offer, TraceFormat::json).discrepancy(reader);
}

TEST(TraceReport, finds_missing_bytes) {
  EXPECT_EQ(discrepancy_after_nothing({.bytes = 5}), "5 bytes were offered, 0 sent, 0 received");
}

TEST(TraceReport, finds_a_different_hash) {
  EXPECT_EQ(discrepancy_after_nothing({.bytes = 0, .hash = 1}),
            "the hash of what was offered is 0000000000000001, of what was received "
            "cbf29ce484222325");
}

TEST(TraceReport, is_content_when_all_adds_up) {
  EXPECT_EQ(discrepancy_after_nothing({.bytes = 0, .hash = Fnv1a().value()}), "");
}

}  // namespace
}  // namespace penstock::app

// B9: every k-th allocation failing in the reference scripts, once each. What the loop allocates in its turns is meant; what is made
// before (the loop, the server) says so by an exception. On the real kernel, because the faulty one allocates for itself, and on the
// library's back-ends, because so does the deferring one.

#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <tuple>

#include "faults/scripts.h"
#include "faults/stage.h"
#include "penstock/base/log.h"
#include "support/world.h"

namespace penstock::test {
namespace {

using Parameter = std::tuple<std::size_t, Backend>;

class EveryAllocation : public testing::TestWithParam<Parameter> {
 protected:
  void SetUp() override {
    set_log_sink([](LogLevel, std::string_view) noexcept {});
  }
  void TearDown() override { set_log_sink(nullptr); }

  const Script& script() const { return scripts()[std::get<0>(GetParam())]; }
  Backend backend() const { return std::get<1>(GetParam()); }
};

// B9
TEST_P(EveryAllocation, MayFail) {
  constexpr std::size_t kAllocationsMax = 500;
  script().play(*std::make_unique<Stage>(backend(), Stage::Play::real));  // fills what is made once
  std::size_t which = 0;
  for (bool happened = true; happened; ++which) {
    ASSERT_LT(which, kAllocationsMax) << "there is no end";
    SCOPED_TRACE(testing::Message()
                 << script().name << " on " << backend_word(backend()) << ", allocation " << which);
    const std::size_t descriptors = World::open_descriptors();
    Stage stage(backend(), Stage::Play::real);
    stage.fail_allocation(which);
    script().play(stage);
    happened = stage.allocation_failed();
    stage.fail_no_allocation();
    if (!happened) {
      EXPECT_EQ(stage.outcome(), script().outcome);
    }
    check_invariants(stage, descriptors);
  }
  RecordProperty("allocations", std::to_string(which));
  EXPECT_GT(which, 3u) << "hardly any allocation was reached";
}

std::string test_name(const testing::TestParamInfo<Parameter>& info) {
  const auto& [script, backend] = info.param;
  return std::string(scripts()[script].name) + "_on_" + backend_word(backend);
}

INSTANTIATE_TEST_SUITE_P(Scripts, EveryAllocation,
                         testing::Combine(testing::Range(std::size_t{0}, std::size_t{5}),
                                          testing::Values(Backend::epoll, Backend::epoll_edge,
                                                          Backend::poll)),
                         test_name);

}  // namespace
}  // namespace penstock::test

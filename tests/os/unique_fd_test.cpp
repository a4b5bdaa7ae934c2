#include "penstock/os/unique_fd.h"

#include <gtest/gtest.h>

#include <type_traits>
#include <vector>

#include "penstock/os/forwarding_kernel.h"

namespace penstock {
namespace {

static_assert(!std::is_copy_constructible_v<UniqueFd>);
static_assert(std::is_nothrow_move_constructible_v<UniqueFd>);

/// Notes what is closed and closes nothing: the tests use invented numbers.
class ClosingKernel final : public ForwardingKernel {
 public:
  ClosingKernel() : ForwardingKernel(linux_kernel()) {}
  std::vector<int> closed;

 private:
  int raw_close(int fd) override {
    closed.push_back(fd);
    return 0;
  }
};

using Closed = std::vector<int>;

TEST(UniqueFd, closes_its_descriptor_once) {
  ClosingKernel kernel;
  {
    UniqueFd fd(kernel, 7);
    EXPECT_TRUE(fd);
    EXPECT_EQ(fd.get(), 7);
    EXPECT_EQ(kernel.closed, Closed{});
    fd.reset();
    EXPECT_FALSE(fd);
    fd.reset();
  }
  EXPECT_EQ(kernel.closed, Closed{7});
}

TEST(UniqueFd, closes_when_destroyed) {
  ClosingKernel kernel;
  {
    const UniqueFd fd(kernel, 0);
  }
  EXPECT_EQ(kernel.closed, Closed{0});
}

TEST(UniqueFd, closes_nothing_when_empty) {
  ClosingKernel kernel;
  {
    const UniqueFd never_opened;
    const UniqueFd failed_to_open(kernel, -EMFILE);
    EXPECT_FALSE(never_opened);
    EXPECT_FALSE(failed_to_open);
  }
  EXPECT_EQ(kernel.closed, Closed{});
}

TEST(UniqueFd, a_released_descriptor_is_the_callers) {
  ClosingKernel kernel;
  {
    UniqueFd fd(kernel, 7);
    EXPECT_EQ(fd.release(), 7);
    EXPECT_FALSE(fd);
  }
  EXPECT_EQ(kernel.closed, Closed{});
}

TEST(UniqueFd, moving_hands_the_descriptor_over) {
  ClosingKernel kernel;
  {
    UniqueFd from(kernel, 7);
    const UniqueFd to(std::move(from));
    EXPECT_EQ(to.get(), 7);
  }
  EXPECT_EQ(kernel.closed, Closed{7});
}

TEST(UniqueFd, assignment_closes_what_was_held_before) {
  ClosingKernel first;
  ClosingKernel second;
  {
    UniqueFd fd(first, 7);
    fd = UniqueFd(second, 8);
    EXPECT_EQ(first.closed, Closed{7});
    EXPECT_EQ(fd.get(), 8);
  }
  EXPECT_EQ(first.closed, Closed{7});
  EXPECT_EQ(second.closed, Closed{8}) << "each descriptor goes back to its own kernel";
}

TEST(UniqueFd, assignment_to_itself_changes_nothing) {
  ClosingKernel kernel;
  UniqueFd fd(kernel, 7);
  UniqueFd& same = fd;
  fd = std::move(same);
  EXPECT_EQ(fd.get(), 7);
  EXPECT_EQ(kernel.closed, Closed{});
}

}  // namespace
}  // namespace penstock

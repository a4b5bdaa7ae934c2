// Which back-end is chosen: in code, or by PENSTOCK_BACKEND (R12).
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdlib>
#include <optional>
#include <string>

#include "penstock/io/io_backend.h"
#include "penstock/loop/event_loop.h"
#include "penstock/sim/faulty_kernel.h"

namespace penstock {
namespace {

constexpr const char* kVariable = "PENSTOCK_BACKEND";

/// Sets the variable as a test needs it and puts it back.
class BackendChoice : public testing::Test {
 protected:
  BackendChoice() {
    if (const char* value = std::getenv(kVariable); value != nullptr) previous_ = value;
    unset();
  }
  ~BackendChoice() override {
    if (previous_) {
      set(previous_->c_str());
    } else {
      unset();
    }
  }
  static void set(const char* value) { ASSERT_EQ(::setenv(kVariable, value, 1), 0); }
  static void unset() { ASSERT_EQ(::unsetenv(kVariable), 0); }
  static std::string made(Backend wanted) {
    const auto backend = make_backend(wanted, linux_kernel());
    return backend ? std::string((*backend)->name()) : backend.error().message();
  }

 private:
  std::optional<std::string> previous_;
};

TEST_F(BackendChoice, every_name_is_read_back_as_what_it_names) {
  for (const Backend backend : {Backend::automatic, Backend::epoll, Backend::epoll_edge}) {
    const Result<Backend> parsed = parse_backend(to_string(backend));
    ASSERT_TRUE(parsed.has_value());
    EXPECT_EQ(*parsed, backend);
  }
  EXPECT_EQ(to_string(Backend::automatic), "auto");
  EXPECT_EQ(to_string(Backend::epoll), "epoll");
  EXPECT_EQ(to_string(Backend::epoll_edge), "epoll-et");
}

TEST_F(BackendChoice, an_unknown_name_is_refused_with_the_list_of_the_known_ones) {
  for (const char* name : {"", "Epoll", "epoll ", " epoll", "epoll_et", "select", "epoll-etc"}) {
    const Result<Backend> parsed = parse_backend(name);
    ASSERT_FALSE(parsed.has_value()) << name;
    EXPECT_EQ(parsed.error(), make_error_code(Errc::unknown_backend));
    for (const Backend known : {Backend::automatic, Backend::epoll, Backend::epoll_edge}) {
      EXPECT_NE(parsed.error().message().find(to_string(known)), std::string::npos);
    }
  }
}

TEST_F(BackendChoice, without_the_variable_automatic_is_epoll) {
  EXPECT_EQ(resolve_backend(Backend::automatic).value(), Backend::epoll);
  EXPECT_EQ(made(Backend::automatic), "epoll");
  set("");
  EXPECT_EQ(resolve_backend(Backend::automatic).value(), Backend::epoll);
}

TEST_F(BackendChoice, the_variable_decides_what_automatic_is) {
  set("epoll-et");
  EXPECT_EQ(resolve_backend(Backend::automatic).value(), Backend::epoll_edge);
  EXPECT_EQ(made(Backend::automatic), "epoll-et");
  set("epoll");
  EXPECT_EQ(made(Backend::automatic), "epoll");
  set("auto");
  EXPECT_EQ(made(Backend::automatic), "epoll");
}

TEST_F(BackendChoice, an_explicit_choice_beats_the_variable_even_a_wrong_one) {
  for (const char* value : {"epoll-et", "epoll", "nonsense"}) {
    set(value);
    EXPECT_EQ(made(Backend::epoll), "epoll");
    EXPECT_EQ(made(Backend::epoll_edge), "epoll-et");
    EXPECT_EQ(resolve_backend(Backend::epoll_edge).value(), Backend::epoll_edge);
  }
}

TEST_F(BackendChoice, an_unknown_name_in_the_variable_fails_with_the_list_of_the_known_ones) {
  set("kqueue");
  const std::string message = made(Backend::automatic);
  for (const char* known : {"auto", "epoll", "epoll-et"}) {
    EXPECT_NE(message.find(known), std::string::npos) << message;
  }
  const EventLoop loop;
  EXPECT_EQ(loop.error(), make_error_code(Errc::unknown_backend));
  const auto created = EventLoop::create();
  ASSERT_FALSE(created.has_value());
  EXPECT_EQ(created.error(), make_error_code(Errc::unknown_backend));
}

TEST_F(BackendChoice, what_the_kernel_refuses_is_answered_and_nothing_leaks) {
  FaultyKernel kernel(linux_kernel());
  const std::size_t open = linux_kernel().open_descriptors();
  for (const Call call : {Call::epoll_create, Call::eventfd, Call::epoll_ctl}) {
    for (const int error : {EMFILE, ENFILE, ENOMEM}) {
      const auto rule = kernel.inject({.call = call, .error = error});
      const auto backend = make_backend(Backend::epoll, kernel);
      EXPECT_EQ(kernel.fired(rule), 1U);
      ASSERT_FALSE(backend.has_value());
      EXPECT_EQ(backend.error(), system_error(error));
      EXPECT_EQ(linux_kernel().open_descriptors(), open);
    }
  }
}

}  // namespace
}  // namespace penstock

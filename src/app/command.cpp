#include "app/command.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

#include "app/units.h"

namespace penstock::app {

CLI::Option* add_bytes(CLI::App& app, const std::string& name, std::size_t& value,
                       const std::string& description) {
  return app
      .add_option_function<std::string>(
          name,
          [&value, name](const std::string& text) {
            const auto parsed = parse_bytes(text);
            if (!parsed) {
              throw CLI::ValidationError(
                  name, fmt::format("'{}' is no size; write 65536, 64KiB or 10MiB", text));
            }
            value = *parsed;
          },
          description)
      ->type_name("BYTES")
      ->default_str(option_text(value));
}

CLI::Option* add_duration(CLI::App& app, const std::string& name, Duration& value,
                          const std::string& description) {
  return app
      .add_option_function<std::string>(
          name,
          [&value, name](const std::string& text) {
            const auto parsed = parse_duration(text);
            if (!parsed) {
              throw CLI::ValidationError(
                  name,
                  fmt::format("'{}' is no duration; write 500ms, 30s, 2m, or 0 for off", text));
            }
            value = *parsed;
          },
          description)
      ->type_name("DURATION")
      ->default_str(
          fmt::format("{}s", std::chrono::duration_cast<std::chrono::seconds>(value).count()));
}

CLI::Option* add_backend(CLI::App& app, Backend& value) {
  return app
      .add_option_function<std::string>(
          "--backend",
          [&value](const std::string& text) {
            const Result<Backend> parsed = parse_backend(text);
            if (!parsed) {
              throw CLI::ValidationError("--backend",
                                         fmt::format("'{}': {}", text, parsed.error().message()));
            }
            value = *parsed;
          },
          "How to wait for events: auto (PENSTOCK_BACKEND's choice, or epoll), epoll, epoll-et, "
          "poll")
      ->type_name("NAME")
      ->default_str("auto");
}

void print_error(const std::string& message) { fmt::print(stderr, "penstock: {}\n", message); }

bool check_backend(Backend backend) {
  const Result<Backend> resolved = resolve_backend(backend);
  if (resolved) return true;
  const char* chosen = std::getenv("PENSTOCK_BACKEND");
  print_error(fmt::format("PENSTOCK_BACKEND is '{}': {}", chosen == nullptr ? "" : chosen,
                          resolved.error().message()));
  return false;
}

}  // namespace penstock::app

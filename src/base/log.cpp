#include "penstock/base/log.h"

#include <atomic>
#include <cstdio>
#include <exception>
#include <string>

namespace penstock {
namespace {

void write_to_standard_error(LogLevel level, std::string_view line) noexcept {
  const std::string_view name = to_string(level);
  std::fprintf(stderr, "penstock: %.*s: %.*s\n", static_cast<int>(name.size()), name.data(),
               static_cast<int>(line.size()), line.data());
}

std::atomic<LogSink> current_sink{&write_to_standard_error};
std::atomic<LogLevel> current_level{LogLevel::warning};

}  // namespace

void set_log_sink(LogSink sink) noexcept {
  current_sink.store(sink != nullptr ? sink : &write_to_standard_error);
}

void set_log_level(LogLevel level) noexcept { current_level.store(level); }

bool log_enabled(LogLevel level) noexcept {
  return level != LogLevel::off && level >= current_level.load(std::memory_order_relaxed);
}

void log(LogLevel level, std::string_view line) noexcept {
  if (log_enabled(level)) current_sink.load()(level, line);
}

void log_exception(std::string_view where) noexcept {
  log_composed(LogLevel::error, [where] {
    std::string line = "a " + std::string(where) + " threw: ";
    try {
      throw;
    } catch (const std::exception& exception) {
      line += exception.what();
    } catch (...) {
      line += "something that is no std::exception";
    }
    return line;
  });
}

std::string_view to_string(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::trace:
      return "trace";
    case LogLevel::debug:
      return "debug";
    case LogLevel::info:
      return "info";
    case LogLevel::warning:
      return "warning";
    case LogLevel::error:
      return "error";
    case LogLevel::off:
      return "off";
  }
  return "unknown";
}

}  // namespace penstock

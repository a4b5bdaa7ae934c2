#include "penstock/base/log.h"

#include <atomic>
#include <cstddef>
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

// Bytes of the control character that begins here; 0 for anything else. C1 in UTF-8: C2 80 to C2 9F.
std::size_t control_size(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x20 || byte(0) == 0x7f) return 1;
  return text.size() > 1 && byte(0) == 0xc2 && byte(1) >= 0x80 && byte(1) < 0xa0 ? 2 : 0;
}

bool is_clean(std::string_view line) noexcept {
  for (; !line.empty(); line.remove_prefix(1)) {
    if (control_size(line) > 0) return false;
  }
  return true;
}

std::string escaped(std::string_view line) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string clean;
  while (!line.empty()) {
    const std::size_t control = control_size(line);
    for (std::size_t i = 0; i < control; ++i) {
      const auto byte = static_cast<unsigned char>(line[i]);
      clean += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
    if (control == 0) clean += line.front();
    line.remove_prefix(control == 0 ? 1 : control);
  }
  return clean;
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
  if (!log_enabled(level)) return;
  const LogSink sink = current_sink.load();
  if (is_clean(line)) {
    sink(level, line);
    return;
  }
  try {
    sink(level, escaped(line));
  } catch (...) {
    sink(level, "(there was no memory to say what happened)");
  }
}

std::string describe_exception(std::string_view where) {
  std::string line = "a " + std::string(where) + " threw: ";
  try {
    throw;
  } catch (const std::exception& exception) {
    line += exception.what();
  } catch (...) {
    line += "something that is no std::exception";
  }
  return line;
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

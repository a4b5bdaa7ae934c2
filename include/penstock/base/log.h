// The library's one way of saying something to a human: a sink that a program can replace.
// Thread-safe. The library logs little: what a caller can learn from a result or a callback is not
// logged.
#pragma once

#include <string_view>

namespace penstock {

/// Severity of a log line, least first. `off` silences everything.
enum class LogLevel { trace, debug, info, warning, error, off };

/// Receives each line (no newline at its end). Called from any thread; `line` is valid during the
/// call only.
using LogSink = void (*)(LogLevel level, std::string_view line) noexcept;

/// Replaces the sink; nullptr brings back the default one, which writes `penstock: LEVEL: line` to
/// standard error.
void set_log_sink(LogSink sink) noexcept;

/// Lines below `level` are dropped. Default: warning.
void set_log_level(LogLevel level) noexcept;

/// Whether a line of this level would reach the sink; ask before composing a costly one.
bool log_enabled(LogLevel level) noexcept;

/// Hands one line to the sink if its level is enabled. What a stranger may have put into it can
/// neither end the line nor command a terminal: control characters (C0, DEL, and C1 in UTF-8)
/// arrive as \\xNN, a byte each. Lines that others can cause are held to a rate by BoundedLog.
void log(LogLevel level, std::string_view line) noexcept;

/// The same for a line that must be composed first: compose() answers a std::string, runs only if
/// the level is enabled, and may run out of memory.
template <class Compose>
void log_composed(LogLevel level, Compose compose) noexcept {
  if (!log_enabled(level)) return;
  try {
    log(level, compose());
  } catch (...) {
    log(level, "(there was no memory to say what happened)");
  }
}

/// What to log of the exception that is being handled: "a WHERE threw: ...". Call inside a catch
/// block.
std::string describe_exception(std::string_view where);

/// The level's name in lower case, for instance "warning".
std::string_view to_string(LogLevel level) noexcept;

}  // namespace penstock

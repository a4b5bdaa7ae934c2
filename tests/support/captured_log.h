// What the library logs while an object of this class lives. One at a time.
#pragma once

#include <algorithm>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "penstock/base/log.h"

namespace penstock::test {

class CapturedLog {
 public:
  CapturedLog() {
    const std::scoped_lock lock(mutex());
    kept().clear();
    set_log_sink(&keep);
  }
  CapturedLog(const CapturedLog&) = delete;
  CapturedLog& operator=(const CapturedLog&) = delete;
  ~CapturedLog() { set_log_sink(nullptr); }

  std::vector<std::string> lines() const {
    const std::scoped_lock lock(mutex());
    return kept();
  }
  /// How many lines contain `text`.
  std::size_t count(std::string_view text) const {
    return static_cast<std::size_t>(std::ranges::count_if(
        lines(), [&](const std::string& line) { return line.find(text) != std::string::npos; }));
  }

 private:
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  static std::vector<std::string>& kept() {
    static std::vector<std::string> instance;
    return instance;
  }
  static void keep(LogLevel, std::string_view line) noexcept {
    const std::scoped_lock lock(mutex());
    kept().emplace_back(line);
  }
};

}  // namespace penstock::test

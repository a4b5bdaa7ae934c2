// What a trace prints, a line for each event and a summary, and the sums of it.
// Owned by the trace; used on its loop's thread.
#pragma once

#include <fmt/color.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "app/trace_kernel.h"
#include "app/trace_reader.h"
#include "penstock/base/clock.h"

namespace penstock::app {

enum class TraceFormat : std::uint8_t { text, coloured_text, json };

/// What is to be sent.
struct TraceOffer {
  std::uint64_t bytes = 0;
  std::uint64_t hash = 0;
};

class TraceReport final : public WritePathObserver {
 public:
  /// Times are relative to now, by the clock of `kernel`, which outlives it.
  TraceReport(Kernel& kernel, TraceOffer offer, TraceFormat format);

  void start(std::string_view backend, std::size_t reader_rate, int receive_buffer);
  void high_water(std::size_t queued) noexcept;
  void low_water(std::size_t queued) noexcept;
  void complete() noexcept;
  void reader_ended(const SlowReader& reader) noexcept;
  void summary(const SlowReader& reader);

  /// What does not add up, as a sentence; empty if all does.
  std::string discrepancy(const SlowReader& reader) const;

  // -- WritePathObserver --

  void on_written(std::size_t requested, ssize_t result) noexcept override;
  void on_armed() noexcept override;
  void on_disarmed() noexcept override;
  void on_writable() noexcept override;
  void on_finished() noexcept override;

 private:
  double percent() const noexcept;
  void say(std::string_view event, fmt::text_style style, const std::string& text,
           const std::string& fields) const;

  Kernel& kernel_;
  const TraceOffer offer_;
  const TraceFormat format_;
  const TimePoint start_;
  std::uint64_t sent_ = 0;
  std::uint64_t writes_ = 0;
  std::uint64_t partial_writes_ = 0;
  std::uint64_t refused_writes_ = 0;
  std::uint64_t arms_ = 0;
  std::uint64_t disarms_ = 0;
};

}  // namespace penstock::app

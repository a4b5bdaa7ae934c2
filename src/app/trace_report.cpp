#include "app/trace_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "app/units.h"

namespace penstock::app {

using fmt::terminal_color;

TraceReport::TraceReport(Kernel& kernel, TraceOffer offer, TraceFormat format)
    : kernel_(kernel), offer_(offer), format_(format), start_(kernel.now()) {}

// -- What happens -------------------------------------------------------------------------------------------------------

void TraceReport::start(std::string_view backend, std::size_t reader_rate, int receive_buffer) {
  const std::string rate =
      reader_rate == 0 ? "as fast as it can" : format_bytes(reader_rate) + "/s";
  say("start", terminal_color::white,
      fmt::format("{} bytes, backend {}; the reader: {}, receive buffer {} bytes", offer_.bytes,
                  backend, rate, receive_buffer),
      fmt::format(R"("bytes":{},"backend":"{}","reader_rate":{},"receive_buffer":{})", offer_.bytes,
                  backend, reader_rate, receive_buffer));
}

void TraceReport::on_written(std::size_t requested, ssize_t result) noexcept {
  const auto accepted = static_cast<std::size_t>(std::max<ssize_t>(result, 0));
  const int error = result < 0 ? static_cast<int>(-result) : 0;
  ++writes_;
  sent_ += accepted;
  say("write", terminal_color::white,
      fmt::format("{} bytes requested, {} accepted{}", requested, accepted,
                  error == 0 ? "" : ": " + system_error(error).message()),
      fmt::format(R"("requested":{},"accepted":{},"errno":{})", requested, accepted, error));
  if (error != 0) {
    ++refused_writes_;
  } else if (accepted < requested) {
    ++partial_writes_;
    say("partial_write", terminal_color::yellow,
        fmt::format("{} bytes wait for room", requested - accepted),
        fmt::format(R"("left":{})", requested - accepted));
  }
}

void TraceReport::on_armed() noexcept {
  ++arms_;
  say("arm", terminal_color::magenta, "EPOLLOUT joins the interest",
      fmt::format(R"("arms":{})", arms_));
}

void TraceReport::on_disarmed() noexcept {
  ++disarms_;
  say("disarm", terminal_color::magenta, "EPOLLOUT leaves the interest",
      fmt::format(R"("disarms":{})", disarms_));
}

void TraceReport::on_writable() noexcept {
  ++writables_;
  say("writable", terminal_color::cyan,
      fmt::format("EPOLLOUT; {} bytes sent so far, {:.1f}%", sent_, percent()),
      fmt::format(R"("sent_bytes":{},"percent":{:.1f})", sent_, percent()));
}

void TraceReport::high_water(std::size_t queued) noexcept {
  say("high_water", terminal_color::blue, fmt::format("{} bytes queued, above the mark", queued),
      fmt::format(R"("queued_bytes":{})", queued));
}

void TraceReport::low_water(std::size_t queued) noexcept {
  say("low_water", terminal_color::blue,
      fmt::format("{} bytes queued, the mark is reached", queued),
      fmt::format(R"("queued_bytes":{})", queued));
}

void TraceReport::complete() noexcept {
  say("complete", terminal_color::green,
      fmt::format("the kernel has taken all {} bytes, {:.1f}%", sent_, percent()),
      fmt::format(R"("sent_bytes":{},"percent":{:.1f})", sent_, percent()));
}

void TraceReport::on_finished() noexcept {
  say("fin", terminal_color::white, "FIN follows the last byte",
      fmt::format(R"("sent_bytes":{})", sent_));
}

void TraceReport::reader_ended(const SlowReader& reader) noexcept {
  const bool by_eof = !reader.error();
  say(by_eof ? "eof" : "reader_error", by_eof ? terminal_color::white : terminal_color::red,
      fmt::format("the reader has {} bytes{}{}", reader.received(),
                  by_eof ? " and the end" : ", then: ", by_eof ? "" : reader.error().message()),
      fmt::format(R"("received_bytes":{},"errno":{})", reader.received(), reader.error().value()));
}

// -- What it comes to -----------------------------------------------------------------------------------------------------

std::string TraceReport::discrepancy(const SlowReader& reader) const {
  if (reader.first_wrong_offset()) {
    return fmt::format("the byte at offset {} is wrong", *reader.first_wrong_offset());
  }
  if (reader.received() != offer_.bytes || sent_ != offer_.bytes) {
    return fmt::format("{} bytes were offered, {} sent, {} received", offer_.bytes, sent_,
                       reader.received());
  }
  if (reader.hash() != offer_.hash) {
    return fmt::format("the hash of what was offered is {:016x}, of what was received {:016x}",
                       offer_.hash, reader.hash());
  }
  if (arms_ != disarms_) return fmt::format("{} arms, {} disarms", arms_, disarms_);
  return {};
}

void TraceReport::summary(const SlowReader& reader) {
  const bool adds_up = discrepancy(reader).empty();
  say("summary", adds_up ? terminal_color::green : terminal_color::red,
      fmt::format("{} bytes offered, hash {:016x}\n"
                  "{:26}{} bytes received, hash {:016x}\n"
                  "{:26}{} writes ({} partial, {} refused), {} arms, {} times writable, {} disarms",
                  offer_.bytes, offer_.hash, "", reader.received(), reader.hash(), "", writes_,
                  partial_writes_, refused_writes_, arms_, writables_, disarms_),
      fmt::format(R"("offered_bytes":{},"received_bytes":{},)"
                  R"("offered_hash":"{:016x}","received_hash":"{:016x}",)"
                  R"("writes":{},"partial_writes":{},"refused_writes":{},)"
                  R"("arms":{},"writable":{},"disarms":{},"adds_up":{})",
                  offer_.bytes, reader.received(), offer_.hash, reader.hash(), writes_,
                  partial_writes_, refused_writes_, arms_, writables_, disarms_, adds_up));
}

// Rounded down: 100 means all.
double TraceReport::percent() const noexcept {
  return static_cast<double>(sent_ * 1000 / offer_.bytes) / 10;
}

// One line, out at once. A failing output does not stop the transfer; the command looks at it in the end.
void TraceReport::say(std::string_view event, terminal_color color, const std::string& text,
                      const std::string& fields) const {
  const double time = std::chrono::duration<double, std::milli>(kernel_.now() - start_).count();
  std::string line;
  if (format_ == TraceFormat::json) {
    line = fmt::format("{{\"time_ms\":{:.3f},\"event\":\"{}\",{}}}\n", time, event, fields);
  } else {
    std::string name = fmt::format("{:13}", event);
    std::replace(name.begin(), name.end(), '_', ' ');
    if (format_ == TraceFormat::coloured_text) name = fmt::format(fmt::fg(color), "{}", name);
    line = fmt::format("{:8.3f} ms {} {}\n", time, name, text);
  }
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
}

}  // namespace penstock::app

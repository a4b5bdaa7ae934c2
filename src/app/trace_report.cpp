#include "app/trace_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "app/units.h"

namespace penstock::app {

namespace {

constexpr fmt::text_style kPlain;
constexpr fmt::text_style kGood = fmt::fg(fmt::terminal_color::green);
constexpr fmt::text_style kBad = fmt::fg(fmt::terminal_color::red);
constexpr fmt::text_style kShort = fmt::fg(fmt::terminal_color::yellow);
constexpr fmt::text_style kInterest = fmt::fg(fmt::terminal_color::magenta);
constexpr fmt::text_style kRoom = fmt::fg(fmt::terminal_color::cyan);
constexpr fmt::text_style kMark = fmt::fg(fmt::terminal_color::blue);

}  // namespace

TraceReport::TraceReport(Kernel& kernel, TraceOffer offer, TraceFormat format)
    : kernel_(kernel), offer_(offer), format_(format), start_(kernel.now()) {}

// -- What happens --------------------------------------------------------------------------------

void TraceReport::start(std::string_view backend, std::size_t reader_rate, int receive_buffer) {
  const std::string rate =
      reader_rate == 0 ? "as fast as it can" : format_bytes(reader_rate) + "/s";
  say("start", kPlain,
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
  say("write", kPlain,
      fmt::format("{} bytes requested, {} accepted{}", requested, accepted,
                  error == 0 ? "" : ": " + system_error(error).message()),
      fmt::format(R"("requested":{},"accepted":{},"errno":{})", requested, accepted, error));
  if (error != 0) {
    ++refused_writes_;
  } else if (accepted < requested) {
    ++partial_writes_;
    say("partial_write", kShort, fmt::format("{} bytes wait for room", requested - accepted),
        fmt::format(R"("left":{})", requested - accepted));
  }
}

void TraceReport::on_armed() noexcept {
  ++arms_;
  say("arm", kInterest, "EPOLLOUT joins the interest", fmt::format(R"("arms":{})", arms_));
}

void TraceReport::on_disarmed() noexcept {
  ++disarms_;
  say("disarm", kInterest, "EPOLLOUT leaves the interest",
      fmt::format(R"("disarms":{})", disarms_));
}

void TraceReport::on_writable() noexcept {
  say("writable", kRoom, fmt::format("EPOLLOUT; {} bytes sent so far, {:.1f}%", sent_, percent()),
      fmt::format(R"("sent_bytes":{},"percent":{:.1f})", sent_, percent()));
}

void TraceReport::high_water(std::size_t queued) noexcept {
  say("high_water", kMark,
      fmt::format("{} bytes queued, above the mark: the peer is not read", queued),
      fmt::format(R"("queued_bytes":{})", queued));
}

void TraceReport::low_water(std::size_t queued) noexcept {
  say("low_water", kMark, fmt::format("{} bytes queued, the peer is read again", queued),
      fmt::format(R"("queued_bytes":{})", queued));
}

void TraceReport::complete() noexcept {
  say("complete", kGood,
      fmt::format("the kernel has taken all {} bytes, {:.1f}%", sent_, percent()),
      fmt::format(R"("sent_bytes":{},"percent":{:.1f})", sent_, percent()));
}

void TraceReport::on_finished() noexcept {
  say("fin", kPlain, "FIN follows the last byte", fmt::format(R"("sent_bytes":{})", sent_));
}

void TraceReport::reader_ended(const SlowReader& reader) noexcept {
  const bool by_eof = !reader.error();
  say(by_eof ? "eof" : "reader_error", by_eof ? kPlain : kBad,
      fmt::format("the reader has {} bytes{}{}", reader.received(),
                  by_eof ? " and the end" : ", then: ", by_eof ? "" : reader.error().message()),
      fmt::format(R"("received_bytes":{},"errno":{})", reader.received(), reader.error().value()));
}

// -- What it comes to ----------------------------------------------------------------------------

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
  constexpr std::size_t kIndent = 26;  // time and event
  say("summary", adds_up ? kGood : kBad,
      fmt::format("{1} bytes offered, hash {2:016x}\n"
                  "{0:{10}}{3} bytes received, hash {4:016x}\n"
                  "{0:{10}}writes {5}, partial {6}, refused {7}; arms {8}, disarms {9}",
                  "", offer_.bytes, offer_.hash, reader.received(), reader.hash(), writes_,
                  partial_writes_, refused_writes_, arms_, disarms_, kIndent),
      fmt::format(R"("offered_bytes":{},"received_bytes":{},)"
                  R"("offered_hash":"{:016x}","received_hash":"{:016x}",)"
                  R"("writes":{},"partial_writes":{},"refused_writes":{},)"
                  R"("arms":{},"disarms":{},"adds_up":{})",
                  offer_.bytes, reader.received(), offer_.hash, reader.hash(), writes_,
                  partial_writes_, refused_writes_, arms_, disarms_, adds_up));
}

// Rounded down: 100 means all.
double TraceReport::percent() const noexcept {
  const std::uint64_t tenths = sent_ * 1000 / offer_.bytes;
  return static_cast<double>(tenths) / 10;
}

// One line, out at once. A failing output does not stop the transfer; the command looks at it in the end.
void TraceReport::say(std::string_view event, fmt::text_style style, const std::string& text,
                      const std::string& fields) const {
  const double time = std::chrono::duration<double, std::milli>(kernel_.now() - start_).count();
  std::string line;
  if (format_ == TraceFormat::json) {
    line = fmt::format("{{\"time_ms\":{:.3f},\"event\":\"{}\",{}}}\n", time, event, fields);
  } else {
    std::string name = fmt::format("{:13}", event);
    std::replace(name.begin(), name.end(), '_', ' ');
    if (format_ == TraceFormat::coloured_text) name = fmt::format(style, "{}", name);
    line = fmt::format("{:8.3f} ms {} {}\n", time, name, text);
  }
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
}

}  // namespace penstock::app

// What it costs per message to keep many idle time-outs: virtual time, no I/O. Each of --timers owners
// has an idle time-out of 120 s; messages come to owners in random order, --messages of them spread
// over five minutes. Prints a table in Markdown, medians of interleaved rounds.
//
//   none       messages alone: the reference
//   lazy       as TcpConnection does: a message notes its time; a timer that fires looks at the note
//   reschedule every message sets its owner's timer anew, in the same queue
//   ordered map the same in a std::multimap, as muduo and many others keep their timers

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string_view>
#include <vector>

#include "penstock/base/clock.h"
#include "penstock/loop/timer_queue.h"

namespace {

using namespace penstock;

constexpr Duration kIdleTimeout = std::chrono::seconds(120);
constexpr Duration kSpan = std::chrono::minutes(5);
constexpr std::uint64_t kMessagesPerTurn = 64;
constexpr std::size_t kFiredPerTurn = 1024;

struct Result {
  double nanoseconds_per_message = 0;
  double settings_per_message = 0;  // of timers
};

// The same for every way: cheap, and not what is measured.
class Dice {
 public:
  std::uint64_t next() noexcept {
    state_ ^= state_ << 13U;
    state_ ^= state_ >> 7U;
    state_ ^= state_ << 17U;
    return state_;
  }

 private:
  std::uint64_t state_ = 0x9E37'79B9'7F4A'7C15;
};

/// Plays the messages: `message(owner, now)` for each, `turn(now)` once for 64 of them.
template <class Message, class Turn>
double play(std::uint64_t timers, std::uint64_t messages, Message message, Turn turn) {
  Dice dice;
  TimePoint now{};
  const Duration step = kSpan / static_cast<std::int64_t>(messages / kMessagesPerTurn + 1);
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < messages; ++i) {
    message(static_cast<std::size_t>(dice.next() % timers), now);
    if (i % kMessagesPerTurn != 0) continue;
    now += step;
    turn(now);
  }
  const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
  return took.count() / static_cast<double>(messages);
}

Result none(std::uint64_t timers, std::uint64_t messages) {
  std::vector<TimePoint> last(timers);
  const double took = play(
      timers, messages, [&](std::size_t owner, TimePoint now) { last[owner] = now; },
      [](TimePoint) {});
  return {.nanoseconds_per_message = took};
}

struct Owner {
  Owner(TimerQueue& its_queue, std::uint64_t& its_settings)
      : queue(its_queue), settings(its_settings) {
    queue.schedule(timer, add_clamped(last, kIdleTimeout));
  }
  void on_timer() {
    ++settings;
    queue.schedule(timer, add_clamped(last, kIdleTimeout));
  }

  TimerQueue& queue;
  std::uint64_t& settings;
  TimePoint last{};
  Timer timer = Timer::calling<&Owner::on_timer>(*this);
};

struct Owners {
  explicit Owners(std::uint64_t timers) {
    for (std::uint64_t i = 0; i < timers; ++i)
      all.push_back(std::make_unique<Owner>(queue, settings));
  }
  TimerQueue queue;
  std::uint64_t settings = 0;
  std::vector<std::unique_ptr<Owner>> all;
};

Result lazy(std::uint64_t timers, std::uint64_t messages) {
  Owners owners(timers);
  const double took = play(
      timers, messages, [&](std::size_t owner, TimePoint now) { owners.all[owner]->last = now; },
      [&](TimePoint now) { owners.queue.fire_due(now, kFiredPerTurn); });
  return {took, static_cast<double>(owners.settings) / static_cast<double>(messages)};
}

Result reschedule(std::uint64_t timers, std::uint64_t messages) {
  Owners owners(timers);
  const double took = play(
      timers, messages,
      [&](std::size_t owner, TimePoint now) {
        owners.all[owner]->last = now;
        owners.all[owner]->on_timer();
      },
      [&](TimePoint now) { owners.queue.fire_due(now, kFiredPerTurn); });
  return {took, static_cast<double>(owners.settings) / static_cast<double>(messages)};
}

Result ordered_map(std::uint64_t timers, std::uint64_t messages) {
  using Map = std::multimap<TimePoint, std::size_t>;
  Map map;
  std::vector<Map::iterator> places;
  for (std::size_t owner = 0; owner < timers; ++owner)
    places.push_back(map.emplace(TimePoint{} + kIdleTimeout, owner));
  std::uint64_t settings = 0;
  const auto set = [&](std::size_t owner, TimePoint now) {
    ++settings;
    map.erase(places[owner]);
    places[owner] = map.emplace(now + kIdleTimeout, owner);
  };
  const double took = play(timers, messages, set, [&](TimePoint now) {
    while (!map.empty() && map.begin()->first <= now)
      set(map.begin()->second, now);
  });
  return {took, static_cast<double>(settings) / static_cast<double>(messages)};
}

[[noreturn]] void usage() {
  std::fprintf(stderr, "usage: idle_timers [--timers N] [--messages N] [--rounds N]\n");
  std::exit(2);
}

std::uint64_t number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value == 0) usage();
  return value;
}

}  // namespace

int main(int argument_count, char** arguments) {
  std::uint64_t timers = 100'000;
  std::uint64_t messages = 10'000'000;
  std::uint64_t rounds = 5;
  for (int i = 1; i < argument_count; i += 2) {
    if (i + 1 >= argument_count) usage();
    const std::string_view name(arguments[i]);
    const std::uint64_t value = number(arguments[i + 1]);
    if (name == "--timers") {
      timers = value;
    } else if (name == "--messages") {
      messages = value;
    } else if (name == "--rounds") {
      rounds = value;
    } else {
      usage();
    }
  }
  struct Way {
    const char* name;
    std::function<Result(std::uint64_t, std::uint64_t)> run;
    std::vector<double> took{};
    double settings = 0;
  };
  std::array<Way, 4> ways{Way{.name = "none", .run = none}, Way{.name = "lazy", .run = lazy},
                          Way{.name = "reschedule", .run = reschedule},
                          Way{.name = "ordered map", .run = ordered_map}};
  for (std::uint64_t round = 0; round < rounds; ++round) {
    for (Way& way : ways) {
      const Result result = way.run(timers, messages);
      way.took.push_back(result.nanoseconds_per_message);
      way.settings = result.settings_per_message;
    }
  }
  std::printf(
      "## Idle time-outs\n\n%llu time-outs of 120 s, %llu messages in five minutes of virtual "
      "time; medians (min–max) of %llu interleaved rounds.\n\n",
      static_cast<unsigned long long>(timers), static_cast<unsigned long long>(messages),
      static_cast<unsigned long long>(rounds));
  std::printf(
      "| way | ns per message | above none | timers set per message |\n|---|---|---|---|\n");
  double reference = 0;
  for (Way& way : ways) {
    std::ranges::sort(way.took);
    const double median = way.took[way.took.size() / 2];
    if (reference == 0) reference = median;
    std::printf("| %s | %.1f (%.1f–%.1f) | %.1f | %.4f |\n", way.name, median, way.took.front(),
                way.took.back(), median - reference, way.settings);
  }
  return 0;
}

// A calculator: a line "2 * 21" is answered by "42", anything else by "error: ...".
//
//   build/release/bin/examples/calculator 127.0.0.1:7003     then: nc 127.0.0.1 7003
//
// Shown here: lines out of a stream of bytes, by a codec. A line may come in any number of pieces, and
// many may come at once. A peer that sends more without an end of line, or too slowly, is closed.
#include <charconv>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include <penstock/penstock.h>

namespace {

// The next word of `text`, which loses it.
std::string_view next_word(std::string_view& text) {
  const std::size_t begin = std::min(text.find_first_not_of(' '), text.size());
  const std::size_t end = std::min(text.find(' ', begin), text.size());
  const std::string_view word = text.substr(begin, end - begin);
  text.remove_prefix(end);
  return word;
}

std::optional<long> number(std::string_view word) {
  long value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc{} || end != word.data() + word.size()) return std::nullopt;
  return value;
}

std::string answer(std::string_view line) {
  const auto left = number(next_word(line));
  const std::string_view operation = next_word(line);
  const auto right = number(next_word(line));
  if (!left || !right || !next_word(line).empty()) return "error: write NUMBER + NUMBER\n";
  long result = 0;
  bool overflow = false;
  if (operation == "+") {
    overflow = __builtin_add_overflow(*left, *right, &result);
  } else if (operation == "-") {
    overflow = __builtin_sub_overflow(*left, *right, &result);
  } else if (operation == "*") {
    overflow = __builtin_mul_overflow(*left, *right, &result);
  } else if (operation == "/") {
    if (*right == 0) return "error: division by zero\n";
    overflow = *right == -1 && __builtin_sub_overflow(0L, *left, &result);
    if (*right != -1) result = *left / *right;
  } else {
    return "error: the operations are + - * /\n";
  }
  return overflow ? "error: too large\n" : std::to_string(result) + "\n";
}

}  // namespace

int main(int argc, char** argv) {
  penstock::TcpServer server({.listen = argc > 1 ? argv[1] : "127.0.0.1:7003"});
  server.on_message(penstock::frames(
      penstock::LineCodec({.line_max = 1024}),
      [](penstock::TcpConnection& peer, std::string_view line) { peer.send(answer(line)); }));
  server.on_listening([&server] {
    std::printf("listening on %s\n", server.address().to_string().c_str());
    std::fflush(stdout);
  });
  return server.run();
}

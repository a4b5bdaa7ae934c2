// A calculator: a line "2 * 21" is answered by "42", anything else by "error: ...".
//
//   build/release/bin/examples/calculator 127.0.0.1:7003     then: nc 127.0.0.1 7003
//
// Shown here: lines out of a stream of bytes. A line may come in any number of pieces, and many may
// come at once; what is no whole line yet is left in the buffer, and offered again with what follows.
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
  if (line.ends_with('\r')) line.remove_suffix(1);
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
  penstock::ConnectionLimits limits;
  limits.input_max =
      1024;  // no line is longer; a peer that sends more without a line end is closed
  penstock::TcpServer server({.listen = argc > 1 ? argv[1] : "127.0.0.1:7003", .limits = limits});
  server.on_message([](penstock::TcpConnection& peer, penstock::InputBuffer& in) {
    while (const auto end = in.find('\n')) {
      peer.send(answer(in.text().substr(0, *end)));
      in.consume(*end + 1);
    }
  });
  server.on_listening([&server] {
    std::printf("listening on %s\n", server.address().to_string().c_str());
    std::fflush(stdout);
  });
  return server.run();
}

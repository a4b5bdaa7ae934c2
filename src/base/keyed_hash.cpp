#include "base/keyed_hash.h"

#include <bit>

namespace penstock {
namespace {

// The four words of state; the constants are those of the paper.
class SipState {
 public:
  explicit SipState(const HashKey& key) noexcept
      : words_{key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d,
               key[0] ^ 0x6c7967656e657261, key[1] ^ 0x7465646279746573} {}

  void absorb(std::uint64_t word) noexcept {
    words_[3] ^= word;
    rounds(2);
    words_[0] ^= word;
  }
  std::uint64_t finish() noexcept {
    words_[2] ^= 0xff;
    rounds(4);
    return words_[0] ^ words_[1] ^ words_[2] ^ words_[3];
  }

 private:
  void rounds(int count) noexcept {
    auto& [a, b, c, d] = words_;
    for (int i = 0; i < count; ++i) {
      a += b;
      c += d;
      b = std::rotl(b, 13) ^ a;
      d = std::rotl(d, 16) ^ c;
      a = std::rotl(a, 32);
      c += b;
      a += d;
      b = std::rotl(b, 17) ^ c;
      d = std::rotl(d, 21) ^ a;
      c = std::rotl(c, 32);
    }
  }

  std::array<std::uint64_t, 4> words_;
};

}  // namespace

std::uint64_t keyed_hash(const HashKey& key, std::uint64_t first, std::uint64_t second) noexcept {
  constexpr std::uint64_t kLength = 16;
  SipState state(key);
  state.absorb(first);
  state.absorb(second);
  state.absorb(kLength << 56);  // the last word of the message: nothing left, and its length
  return state.finish();
}

}  // namespace penstock

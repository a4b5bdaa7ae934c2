#include "app/load_statistics.h"

namespace penstock::app {

void LoadErrors::count_connect_failure(std::error_code error) {
  for (auto& [its_error, its_count] : connect) {
    if (its_error == error) {
      ++its_count;
      return;
    }
  }
  connect.emplace_back(error, 1);
}

void LoadErrors::count(const WrongByte& byte) {
  ++wrong;
  if (first_wrong.size() < kExamplesMax) first_wrong.push_back(byte);
}

void LoadErrors::count(const Truncation& truncation) {
  ++truncated;
  if (first_truncated.size() < kExamplesMax) first_truncated.push_back(truncation);
}

std::uint64_t LoadErrors::connect_failures() const noexcept {
  std::uint64_t sum = 0;
  for (const auto& [error, its_count] : connect)
    sum += its_count;
  return sum;
}

}  // namespace penstock::app

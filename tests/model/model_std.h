// The standard library as the model checker Relacy (relacy-dev) has it: atomics whose loads may
// answer any value that the C++ memory model allows, mutexes, and threads that are switched at each
// operation of either. A source of the library that is included behind
//
//     #define std model_std
//
// is compiled against it as it stands. All headers that are to keep the real library (everything but
// what holds the atomics in question) are included before. One operating-system thread; everything
// is made anew for each execution.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <mutex>

// Behind the headers of the library: it defines words of theirs and of the language.
// clang-format off
#include <relacy/relacy.hpp>
// clang-format on
#ifdef __clang__
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdollar-in-identifier-extension"
#undef $
#pragma clang diagnostic pop
#else
#undef $
#endif
#undef VAR
#undef VAR_T
#undef TLS_T
#undef memory_order_relaxed
#undef memory_order_consume
#undef memory_order_acquire
#undef memory_order_release
#undef memory_order_acq_rel
#undef memory_order_seq_cst
#undef new
#undef delete
#undef malloc
#undef calloc
#undef realloc
#undef free
#undef assert
#undef errno

namespace penstock::test {

/// Weakens what the code asks for, to show that the checker would notice.
enum class Weakening {
  none,
  no_sequential_consistency,  ///< seq_cst counts as acquire, release or both.
  relaxed,                    ///< All are relaxed.
};
inline Weakening weakening = Weakening::none;

inline rl::memory_order order_of(std::memory_order order) noexcept {
  if (weakening == Weakening::relaxed) return rl::mo_relaxed;
  switch (order) {
    case std::memory_order_relaxed:
      return rl::mo_relaxed;
    case std::memory_order_consume:
    case std::memory_order_acquire:
      return rl::mo_acquire;
    case std::memory_order_release:
      return rl::mo_release;
    case std::memory_order_acq_rel:
      return rl::mo_acq_rel;
    case std::memory_order_seq_cst:
      return rl::mo_seq_cst;
  }
  return rl::mo_seq_cst;
}
inline rl::memory_order order_of(std::memory_order order, rl::memory_order weaker) noexcept {
  const bool weakened =
      order == std::memory_order_seq_cst && weakening == Weakening::no_sequential_consistency;
  return weakened ? weaker : order_of(order);
}

}  // namespace penstock::test

namespace model_std {

using namespace ::std;  // NOLINT(google-build-using-namespace): what is not declared here

// NOLINTBEGIN(readability-identifier-naming, google-explicit-constructor): they are std's

/// In place of std::atomic. Only what the modelled sources use.
template <class T>
class atomic {
 public:
  atomic() : atomic(T()) {}
  atomic(T value) { value_.store(value, rl::mo_relaxed, rl::debug_info()); }
  atomic(const atomic&) = delete;
  atomic& operator=(const atomic&) = delete;

  T load(memory_order order = memory_order_seq_cst) const {
    return value_.load(penstock::test::order_of(order, rl::mo_acquire), rl::debug_info("load"));
  }
  void store(T value, memory_order order = memory_order_seq_cst) {
    value_.store(value, penstock::test::order_of(order, rl::mo_release), rl::debug_info("store"));
  }
  T exchange(T value, memory_order order = memory_order_seq_cst) {
    return change<rl::rmw_type_swap>(value, order, "exchange");
  }
  T fetch_add(T value, memory_order order = memory_order_seq_cst) {
    return change<rl::rmw_type_add>(value, order, "fetch_add");
  }
  T fetch_sub(T value, memory_order order = memory_order_seq_cst) {
    return change<rl::rmw_type_sub>(value, order, "fetch_sub");
  }
  bool compare_exchange_weak(T& expected, T value, memory_order order = memory_order_seq_cst) {
    return value_.compare_exchange(rl::bool_t<true>(), expected, value,
                                   penstock::test::order_of(order, rl::mo_acq_rel),
                                   rl::debug_info("compare_exchange"));
  }

 private:
  template <rl::rmw_type_e kKind>
  T change(T value, memory_order order, const char* what) {
    return value_.rmw(rl::rmw_type_t<kKind>(), value,
                      penstock::test::order_of(order, rl::mo_acq_rel), rl::debug_info(what));
  }

  rl::atomic<T> value_;
};

/// In place of std::mutex.
class mutex {
 public:
  void lock() { mutex_.lock(rl::debug_info("lock")); }
  void unlock() { mutex_.unlock(rl::debug_info("unlock")); }

 private:
  rl::mutex mutex_;
};

/// In place of std::array. Of a table of atomics, as that of all loops, the first two places are enough.
template <class T, size_t kSize>
class array : public ::std::array<T, kSize> {};
template <class T, size_t kSize>
class array<atomic<T>, kSize> : public ::std::array<atomic<T>, 2> {};
// NOLINTEND(readability-identifier-naming, google-explicit-constructor)

}  // namespace model_std

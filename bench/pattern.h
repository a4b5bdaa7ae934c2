/* The bytes every benchmark program sends and expects.
 *
 * The byte at a position depends on the position alone, so a reader can check each byte without
 * keeping what was sent. The pattern repeats after 65,521 bytes, a prime: a server that repeats or
 * leaves out one of its 4, 16 or 64 KiB buffers shifts the stream by something that is not a
 * multiple of the period, and is found out. Valid C17 and C++; header only; no state.
 */
#ifndef PENSTOCK_BENCH_PATTERN_H
#define PENSTOCK_BENCH_PATTERN_H

#include <stddef.h>
#include <stdint.h>

#define PENSTOCK_BENCH_PATTERN_PERIOD_BYTES UINT64_C(65521)

/* The bulk servers hold one payload of this size and answer no larger request. */
#define PENSTOCK_BENCH_BULK_PAYLOAD_BYTES 10485760U /* 10 MiB */

static inline unsigned char pattern_byte(uint64_t position) {
  uint32_t mixed = position % PENSTOCK_BENCH_PATTERN_PERIOD_BYTES & 0xFFFFFFFFU;
  mixed = (mixed + 1U) * 0x9E3779B1U;
  mixed ^= mixed >> 15;
  mixed *= 0x85EBCA77U;
  mixed ^= mixed >> 13;
  return mixed & 0xFFU;
}

static inline void fill_pattern(unsigned char* bytes, size_t count, uint64_t first_position) {
  for (size_t index = 0; index < count; ++index)
    bytes[index] = pattern_byte(first_position + index);
}

#endif

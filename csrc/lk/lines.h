// Outputs that leave in order, a cache line at a time.
#pragma once
#include "lk/vec.h"

namespace {

// Outputs of a thread on their way to memory: buffer[0] belongs to the line that `to` begins.
struct Lines {
  static constexpr lk::i64 kLine = 16, kFull = 64;
  float *buffer, *to;
  lk::i64 skip;  // elements of the first line that are somebody else's
  bool past;     // the caches

  void put_plain(lk::i64 from, lk::i64 n) {
    __builtin_memcpy(to + from, buffer + from, static_cast<std::size_t>(n) * 4);
  }
  // The first n elements are final; returns how many left.
  lk::i64 flush(lk::i64 n) {
    const lk::i64 lines = n / kLine * kLine;
    lk::i64 i = 0;
    if (skip && lines) {
      put_plain(skip, kLine - skip);
      skip = 0;
      i = kLine;
    }
    if (past)
      for (; i < lines; i += kLanes<float>) vstream(to + i, vload(buffer + i));
    else
      for (; i < lines; i += kLanes<float>) vstore(to + i, vload(buffer + i));
    if (lines) __builtin_memcpy(buffer, buffer + lines, static_cast<std::size_t>(n - lines) * 4);
    to += lines;
    return lines;
  }
  void finish(lk::i64 n) {
    flush(n);
    const lk::i64 rest = n % kLine;
    if (rest > skip) put_plain(skip, rest - skip);
  }
};

}  // namespace

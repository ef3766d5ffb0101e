// Arithmetic of sizes.
#pragma once
#include "lk/cpu.h"

namespace {

constexpr lk::i64 ceil_div(lk::i64 a, lk::i64 b) { return (a + b - 1) / b; }
constexpr lk::i64 floor_div(lk::i64 a, lk::i64 b) { return a >= 0 ? a / b : -ceil_div(-a, b); }
constexpr lk::i64 larger(lk::i64 a, lk::i64 b) { return a > b ? a : b; }
constexpr lk::i64 smaller(lk::i64 a, lk::i64 b) { return a < b ? a : b; }
constexpr lk::i64 round_up(lk::i64 a, lk::i64 b) { return ceil_div(a, b) * b; }

}  // namespace

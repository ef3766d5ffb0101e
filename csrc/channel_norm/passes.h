// What the passes over maps share: the order of the channels, the split among threads, running sums.
#pragma once
#include "channel_norm/params.h"
#include "lk/sizes.h"
#include "lk/vec.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

using namespace lk;
using namespace lk::channel_norm;

using V = Vec<float>;
constexpr i64 L = kLanes<float>;
constexpr i64 kGrain = 1 << 16;  // elements below which no team of threads is opened
constexpr i64 kFlush = 8192;     // elements that are summed in float32 before they go to float64, in L sums

inline double total(V v) {
  double sum = 0;
  for (int i = 0; i < L; ++i) sum += v[i];
  return sum;
}

// Where the outputs of channel c are, in planes: the rectified map's, and the rectified negative's.
struct Where {
  i64 outputs, plus, minus;
  Where(const Params& p, i64 c) : outputs(p.act == Act::crelu ? 2 * p.c : p.c), plus(at(p, c)), minus(at(p, p.c + c)) {}
  i64 at(const Params& p, i64 k) const {
    const i64 each = outputs / p.groups;
    return each ? k % each * p.groups + k / each : k;
  }
};

// Each thread takes some of the channels, or of what else there are `count` of, of all images, image by image: memory
// in its order.
template <class Body>
int in_parts(const Params& p, i64 count, Body body) {
  const i64 wanted = p.n * p.c * p.pixels > kGrain ? smaller(p.threads, count) : 1;
  const int threads = wanted < 1 ? 1 : static_cast<int>(wanted);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int part = 0; part < threads; ++part) body(count * part / threads, count * (part + 1) / threads);
  return ok;
}
template <class Body>
int by_channel(const Params& p, Body body) {
  return in_parts(p, p.c, body);
}

// Up to four running sums a channel: vectors in float32 that are emptied into float64 every so often.
constexpr i64 kChannels = 32;
struct Sums {
  V fast[kChannels][4];
  double slow[kChannels][4];
  void clear() {
    for (i64 c = 0; c < kChannels; ++c)
      for (int i = 0; i < 4; ++i) fast[c][i] = V{}, slow[c][i] = 0;
  }
  void flush(i64 channels) {
    for (i64 c = 0; c < channels; ++c)
      for (int i = 0; i < 4; ++i) slow[c][i] += total(fast[c][i]), fast[c][i] = V{};
  }
};

// Calls plane(n, c, sums) for the channels from..end in blocks, then done(c, slow sums).
template <class Plane, class Done>
void sum_planes(const Params& p, i64 from, i64 end, Plane plane, Done done) {
  Sums sums;
  const i64 images = kFlush / p.pixels < 1 ? 1 : kFlush / p.pixels;
  for (i64 first = from; first < end; first += kChannels) {
    const i64 count = smaller(kChannels, end - first);
    sums.clear();
    for (i64 n = 0; n < p.n; ++n) {
      for (i64 c = 0; c < count; ++c) plane(n, first + c, sums.fast[c], sums.slow[c]);
      if ((n + 1) % images == 0 || n + 1 == p.n) sums.flush(count);
    }
    for (i64 c = 0; c < count; ++c) done(first + c, sums.slow[c]);
  }
}

// Written so that a NaN stays one.
LK_INLINE V rectified(V t) { return t < V{} ? V{} : t; }
LK_INLINE V passed(V t, V g) { return t <= V{} ? V{} : g; }

// Whole vectors of a plane, and what is left over as one that is filled up with zeros.
template <class Body>
LK_INLINE void over(i64 pixels, Body body) {
  i64 i = 0;
  for (; i + L <= pixels; i += L) body(i, L);
  if (i < pixels) body(i, pixels - i);
}
LK_INLINE V load(const float* p, i64 count) { return count == L ? vload<float>(p) : vload(p, static_cast<int>(count)); }
LK_INLINE void store(float* p, V v, i64 count) {
  if (count == L)
    vstore<float>(p, v);
  else
    vstore(p, v, static_cast<int>(count));
}

}  // namespace

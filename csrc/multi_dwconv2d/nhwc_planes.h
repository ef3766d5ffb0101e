// NCHW tensors for the engine that has channels in its vectors: blocks of planes transposed on the way in and out.
#pragma once
#include "lk/transpose.h"
#include "multi_dwconv2d/nhwc_plan.h"

namespace {
namespace nhwc {

// Where planes are worth transposing.
template <class T>
constexpr bool kTransposes = sizeof(Acc<T>) == 4 && kVecBytes >= 32;

// `rows` rows of `width` pixels that follow each other in each of `channels` planes; pixel (i, j) of vector f goes to
// dst + i * row + f * vec + j * V. Here and below the last piece moves back to end with the rows.
template <class T>
void read_planes(const T* src, i64 plane, i64 rows, i64 width, i64 channels, Acc<T>* dst, i64 row, i64 vec) {
  using A = Acc<T>;
  constexpr int V = kLanes<A>;
  const i64 n = rows * width;
  for (; channels > 0; channels -= V, src += V * plane, dst += vec) {
    const int lanes = imin(V, channels);
    i64 i = 0, j = 0;
    for (i64 p = 0; p < n; p += V) {
      if (p + V > n && n >= V) p = n - V, i = p / width, j = p % width;
      const int m = imin(V, n - p);
      Vec<A> v[V];
      if (lanes == V && m == V) {
#pragma GCC unroll 16
        for (int l = 0; l < V; ++l) v[l] = vload(src + l * plane + p);
      } else {
        for (int l = 0; l < V; ++l) v[l] = l < lanes ? vload(src + l * plane + p, m) : Vec<A>{};
      }
      transpose(v);
      A* to = dst + i * row + j * V;
      if (m == V && j + V <= width) {
#pragma GCC unroll 16
        for (int k = 0; k < V; ++k) vstore(to + k * V, v[k]);
        j += V;
        if (j == width) j = 0, ++i;
        continue;
      }
#pragma GCC unroll 16
      for (int k = 0; k < V; ++k) {
        if (k >= m) break;
        vstore(to, v[k]);
        to += V;
        if (++j == width) j = 0, to = dst + ++i * row;
      }
    }
  }
}

// n pixels of one vector, from `src` on, into n neighbouring elements of each of `lanes` planes. Past: past the caches;
// these are whole vectors.
template <class T, bool Past = false>
void write_planes(const Acc<T>* src, i64 n, int lanes, T* dst, i64 plane) {
  using A = Acc<T>;
  constexpr int V = kLanes<A>;
  for (i64 p = 0; p < n; p += V) {
    if (p + V > n && n >= V) p = n - V;
    const int m = imin(V, n - p);
    Vec<A> v[V];
#pragma GCC unroll 16
    for (int k = 0; k < V; ++k) v[k] = vload(src + (p + k) * V);
    transpose(v);
    if (Past) {
#pragma GCC unroll 16
      for (int l = 0; l < V; ++l) vstream(dst + l * plane + p, v[l]);
    } else if (lanes == V && m == V) {
#pragma GCC unroll 16
      for (int l = 0; l < V; ++l) vstore(dst + l * plane + p, v[l]);
    } else {
      for (int l = 0; l < lanes; ++l) vstore(dst + l * plane + p, v[l], m);
    }
  }
}

// n elements, whole lines, past the caches.
template <class T>
void stream_lines(const T* src, i64 n, T* dst) {
  const float* from = reinterpret_cast<const float*>(src);
  float* to = reinterpret_cast<float*>(dst);
  for (i64 i = 0, bytes = n * static_cast<i64>(sizeof(T)); i < bytes;
       i += kVecBytes, from += kLanes<float>, to += kLanes<float>)
    vstream(to, vload(from));
}

}  // namespace nhwc
}  // namespace

// NHWC forward and input gradient: one engine, since both are sums over taps of staged rows.
#pragma once
#include "multi_dwconv2d/nhwc_stage.h"

namespace {
namespace nhwc {

template <class T>
constexpr bool kReadsInPlace = __is_same(T, float);  // one type, for the sake of compile time

constexpr i64 kStreamBytes = 1 << 20;  // output size from which it bypasses the caches
constexpr i64 kKeptBytes = 32 << 10;   // of resolved runs, in the first-level cache beside what they read

// How the work is cut: a unit is one channel block of one strip of rows of one image.
struct Cut {
  i64 blocks, strips;
};

template <class T>
struct Conv {
  using A = Acc<T>;
  static constexpr int V = kLanes<A>;
  const Params& p;
  const Plan& g;
  const Ring<A>& r;
  const T *src, *w, *bias;
  T* dst;
  bool past;      // whether full lines bypass the caches
  bool in_place;  // whether pixels are read where they are
  Stage<T> stage;
  A *packed, *line;
  T* block;      // outputs of one pass, of all planes of a channel block
  i64* columns;  // of each pass in the current panel
  Split* split;
  RunAt<A>* active;
  int (*count)[kRunKinds];
  Stream* streams;
  char* ready;

  i64 block_channels() const { return static_cast<i64>(r.vecs) * V; }
  i64 packed_elements() const { return static_cast<i64>(r.vecs) * g.slots * V; }
  // Where all columns are staged at once, a row's runs are the same in every image, and are resolved once.
  bool keeps() const {
    return !in_place && r.panel >= g.cols && g.rows * g.runs * static_cast<i64>(sizeof(RunAt<A>)) <= kKeptBytes;
  }
  i64 resolved() const { return keeps() ? g.rows : r.rows; }
  void take(Arena& a, i64 chunk) {
    stage.take(a);
    active = a.take<RunAt<A>>(resolved() * g.runs);
    count = a.take<int[kRunKinds]>(resolved() * g.passes);
    streams = a.take<Stream>(g.planar ? g.planes * block_channels() : g.planes * g.in_step_h);
    if (g.planar) block = a.take<T>(block_channels() * r.rows * g.cols);
    columns = a.take<i64>(g.passes);
    split = a.take<Split>(g.passes);
    line = a.take<A>(g.planar ? (r.rows * r.panel + V) * V : r.panel * V * kBlockVecs<T>);
    ready = a.take<char>(chunk);
    packed = a.take<A>(chunk * packed_elements());
  }

  // [vector][slot][V], zero in lanes past the last channel.
  void pack(i64 c0, A* to) const {
    for (int v = 0; v < r.vecs; ++v, c0 += V, to += g.slots * V) {
      const int n = imin(V, g.channels - c0);
      for (int k = 0; k < g.slots; ++k) vstore(to + k * V, Vec<A>{});
      for (int k = 0; k < g.passes; ++k) {
        const Pass& s = g.pass[k];
        if (bias)
          for (int l = 0; l < n; ++l) to[s.slot * V + l] = to_acc(bias[s.channel + c0 + l]);
        for (int t = s.term; t < s.term + s.terms; ++t) {
          const Term& e = g.term[t];
          const Branch& b = p.branches[e.branch];
          const i64 kk = b.kernel * b.kernel;
          const T* from = w + b.weight_start + c0 * kk + e.cell;
          alignas(64) A column[V] = {};
          if (n == V)
#pragma GCC unroll 16
            for (int l = 0; l < V; ++l) column[l] = to_acc(from[l * kk]);
          else
            for (int l = 0; l < n; ++l) column[l] = to_acc(from[l * kk]);
          vstore(to + e.slot * V, vload(to + e.slot * V) + vload(column));
        }
      }
    }
  }

  // Runs that meet the image at grid row i, the d-th of those staged; they are the `at`-th of those resolved.
  void resolve(const T* from, i64 i, i64 j0, int d, i64 at) {
    for (int k = 0; k < g.passes; ++k) {
      const Pass& s = g.pass[k];
      RunAt<A>* to = active + at * g.runs + s.run;
      int* n = count[at * g.passes + k];
      for (int e = 0; e < kRunKinds; ++e) n[e] = 0;
      for (int e = s.run; e < s.run + s.runs; ++e) {
        const Run& t = g.run[e];
        const i64 row = i * g.in_step_h + t.dr;
        if (row < 0 || row >= g.in_h) continue;
        if constexpr (kReadsInPlace<T>)
          to->x = from + g.plane[t.plane].channel + row * g.in.h + (j0 * g.in_step_w + t.dc) * g.in.w;
        if (!in_place) to->x = stage.at(t.plane, t.row + d * static_cast<int>(g.in_step_h)) + t.x;
        to->w = packed + t.w;
        to->lo = t.lo - static_cast<int>(j0);
        to->hi = t.hi - static_cast<int>(j0);
        ++to;
        ++n[t.kind];
      }
    }
  }

  // What the next rows will stage in place of those that grid row i needed last; past the image, the next unit's.
  Ahead ahead(const T* from, i64 next_unit, i64 i, int rows, i64 first, i64 pixels, int rate) {
    Ahead h{streams, 0, rate, 0, pixels};
    for (int q = 0; q < g.planes; ++q)
      for (i64 k = 1; k <= g.in_step_h; ++k) {
        const i64 row = (i + rows - 1) * g.in_step_h + g.plane[q].hi + k;
        if (row < 0 || row >= 2 * g.in_h) continue;
        const T* p = from + g.plane[q].channel + first * g.in.w;
        p += row < g.in_h ? row * g.in.h : next_unit + (row - g.in_h) * g.in.h;
        streams[h.streams++] = {reinterpret_cast<const char*>(p), g.in.w * static_cast<i64>(sizeof(T))};
      }
    return h;
  }

  // Pass k of the `at`-th grid row resolved; `own`: where the vector's weights begin.
  Tile<A> tile_of(int k, i64 at, i64 own, i64 out_step) const {
    const Pass& s = g.pass[k];
    const RunAt<A>* runs = active + at * g.runs + s.run;
    return {runs, count[at * g.passes + k], packed + own + s.slot * V, own, out_step, g.in.w * g.in_step_w, false};
  }
  void row_of(const Tile<A>& tile, int v, A* out, int k, Ahead& ahead) {
    if constexpr (kReadsInPlace<T>)
      if (in_place) return conv_row<A, true>(tile, v * V, out, split[k], ahead);
    conv_row<A, false>(tile, v * r.vec, out, split[k], ahead);
  }

  // One line of channels of one grid row.
  void compute(i64 i, i64 j0, int d, int v0, i64 c0, i64 channels, const A* weights, T* image, Ahead& ahead) {
    constexpr int L = kBlockVecs<T>;
    const i64 w0 = weights - packed;
    for (int k = 0; k < g.passes; ++k) {
      const Pass& s = g.pass[k];
      const i64 y = i * g.out_step_h + s.row0, n = columns[k], step = g.out.w * g.out_step_w;
      if (y >= g.out_h || n <= 0) continue;
      T* to = image + y * g.out.h + (j0 * g.out_step_w + s.col0) * g.out.w + s.channel + c0 + v0 * V;
      const i64 left = channels - v0 * V;
      const bool streaming = past && left >= L * V && s.channel * sizeof(T) % 64 == 0;
      for (int v = v0; v < v0 + L && v * V < channels; ++v, to += V) {
        const i64 own = w0 + static_cast<i64>(v) * g.slots * V;
        const bool whole = channels - v * V >= V;
        Tile<A> tile = tile_of(k, keeps() ? i : d, own, step);
        if constexpr (sizeof(T) == sizeof(A)) {
          if (whole && (L == 1 || !streaming)) {
            tile.stream = streaming;
            row_of(tile, v, to, k, ahead);
            continue;
          }
        }
        A* part = line + (v - v0) * n * V;
        tile.out_step = V;
        row_of(tile, v, part, k, ahead);
        if (streaming) continue;
        if (whole)
          for (i64 j = 0; j < n; ++j) vstore(to + j * step, vload(part + j * V));
        else
          for (i64 j = 0; j < n; ++j) vstore(to + j * step, vload(part + j * V), static_cast<int>(channels - v * V));
      }
      if (streaming && !(sizeof(T) == sizeof(A) && L == 1)) {
        to -= L * V;
        for (i64 j = 0; j < n; ++j, to += step)
#pragma GCC unroll 4
          for (int f = 0; f < L; ++f) vstream(to + f * V, vload(line + (f * n + j) * V));
      }
    }
  }

  // Lines of the planes that the rows after these will stage; past the image, the next unit's.
  Ahead planes_ahead(const T* from, i64 next_unit, i64 i, int rows, i64 channels) {
    i64 row = i + rows + g.hi_row, n = r.rows;
    if (row >= g.in_h) {
      row = 0;
      n += g.hi_row;
      from += next_unit;
    }
    if (n > g.in_h - row) n = g.in_h - row;
    Ahead h{streams, 0, 1, 0, (n * g.in.h * static_cast<i64>(sizeof(T)) + 63) / 64};
    for (int q = 0; q < g.planes; ++q)
      for (i64 c = 0; c < channels; ++c)
        streams[h.streams++] = {reinterpret_cast<const char*>(from + (g.plane[q].channel + c) * g.in.c + row * g.in.h),
                                64};
    return h;
  }

  static bool in_lines(i64 elements) { return elements * static_cast<i64>(sizeof(T)) % 64 == 0; }

  // Some grid rows, whose outputs follow each other in their planes.
  void compute_planes(i64 i, int rows, i64 c0, i64 channels, const A* weights, T* image, Ahead& ahead) {
    const i64 n = rows * g.cols;
    const bool whole = n == g.out.c;  // then the planes follow each other too
    for (int k = 0; k < g.passes; ++k) {
      const Pass& s = g.pass[k];
      T* const to = image + (s.channel + c0) * g.out.c + i * g.out.h;
      const bool streaming = past && in_lines((s.channel + c0) * g.out.c) && in_lines(channels * n) &&
                             (whole || (in_lines(n) && in_lines(g.out.c)));
      const i64 plane = streaming ? n : g.out.c;
      constexpr bool kLines = V * sizeof(T) == 64;  // vectors are lines of memory, and go there as they are
      const bool at_once = kLines && streaming && channels % V == 0 && in_lines(n) && in_lines(g.out.c);
      for (int v = 0; v * V < channels; ++v) {
        const i64 own = weights - packed + static_cast<i64>(v) * g.slots * V;
        for (int d = 0; d < rows; ++d) {
          const Tile<A> tile = tile_of(k, keeps() ? i + d : d, own, V);
          row_of(tile, v, line + d * g.cols * V, k, ahead);
        }
        if (at_once)
          write_planes<T, kLines>(line, n, V, to + v * V * g.out.c, g.out.c);
        else
          write_planes<T>(line, n, imin(V, channels - v * V), (streaming ? block : to) + v * V * plane, plane);
      }
      if (streaming && !at_once)
        for (i64 c = 0; c < channels; c += whole ? channels : 1)
          stream_lines(block + c * n, whole ? channels * n : n, to + c * g.out.c);
    }
  }

  void unit(const T* from, i64 next_unit, T* to, i64 c0, i64 i0, i64 i1, const A* weights) {
    i64 channels = g.channels - c0;
    if (channels > block_channels()) channels = block_channels();
    for (i64 j0 = 0; j0 < g.cols; j0 += r.panel) {
      stage.start(i0);
      i64 runs = 0;
      for (int k = 0; k < g.passes; ++k) {
        const Pass& s = g.pass[k];
        const i64 n = (g.out_w - s.col0 + g.out_step_w - 1) / g.out_step_w - j0;
        columns[k] = n < r.panel ? n : r.panel;
        split[k] = split_columns<A>(columns[k]);
        runs += (split[k].narrow_tiles + split[k].wide_tiles) * s.runs * kBlockVecs<T>;
      }
      const i64 edge = j0 * g.in_step_w + g.lo_c, first = edge < 0 ? 0 : edge;
      i64 pixels = edge + r.class_cols * g.in_step_w;
      pixels = (pixels < g.in_w ? pixels : g.in_w) - first;
      const int rate = runs && pixels > 0 ? static_cast<int>((pixels + runs - 1) / runs) : 0;
      for (i64 i = i0; i < i1; i += r.rows, stage.advance(r.rows)) {
        const int rows = imin(r.rows, i1 - i);
        if (!in_place) stage.fill(from + c0 * g.in.c, i + rows - 1, j0, channels);
        if (!keeps())
          for (int d = 0; d < rows; ++d) resolve(from + c0, i + d, j0, d, d);
        if constexpr (kTransposes<T>)
          if (g.planar) {
            Ahead h = planes_ahead(from + c0 * g.in.c, next_unit, i, rows, channels);
            compute_planes(i, rows, c0, channels, weights, to, h);
            continue;
          }
        for (int v = 0; v * V < channels; v += kBlockVecs<T>)
          for (int d = 0; d < rows; ++d) {
            Ahead h = ahead(from + c0 + v * V, next_unit, i + d, rows, first, pixels, rate);
            compute(i + d, j0, d, v, c0, channels, weights, to, h);
          }
      }
    }
  }

  // Units [from, to) of blocks [b0, b1); the blocks of an image follow each other, so that it stays in cache.
  void work(const Cut& cut, i64 b0, i64 b1, i64 from, i64 to) {
    stage.prepare();
    if (keeps())
      for (i64 i = 0; i < g.rows; ++i) {
        stage.start(i);
        resolve(src, i, 0, 0, i);
      }
    for (i64 b = b0; b < b1; ++b) ready[b - b0] = 0;
    for (i64 u = from; u < to; ++u) {
      const i64 strip = u % cut.strips, b = u / cut.strips % (b1 - b0), n = u / cut.strips / (b1 - b0);
      const i64 c0 = (b0 + b) * block_channels(), i0 = strip * g.rows / cut.strips;
      A* weights = packed + b * packed_elements();
      if (!ready[b]) pack(c0, weights);
      ready[b] = 1;
      const i64 next_unit = b + 1 < b1 - b0 ? block_channels() * g.in.c : g.in.n - b * block_channels() * g.in.c;
      unit(src + n * g.in.n, next_unit, dst + n * g.out.n, c0, i0, (strip + 1) * g.rows / cut.strips, weights);
    }
  }
};

// Whether pixels are read where they are instead of from staged rows: whole vectors of channels, no runs that reach
// further beyond the border than they skip, and no pixels so far apart that a row's fall into few sets of the cache.
template <class T>
bool reads_in_place(const Plan& g) {
  if (!kReadsInPlace<T> || g.planar || g.channels % kLanes<Acc<T>> || g.in.w * g.in_step_w % 512 == 0) return false;
  for (int i = 0; i < g.runs; ++i) {
    const int length = kRunLength[g.run[i].kind], skip = skipped(length);
    if (g.run[i].lo > skip || g.cols + length - 1 - g.run[i].hi > skip) return false;
  }
  return true;
}

// Whether whole lines go to memory past the caches: for outputs that caches would not keep anyway, and where a channel
// block's lines are its own.
template <class T>
bool past_caches(const Params& p, const Plan& g, const T* dst) {
  const i64 bytes = p.n * g.out_h * g.out_w * g.channels * (g.backward ? 1 : g.passes) * static_cast<i64>(sizeof(T));
  const i64 line = 64 / static_cast<i64>(sizeof(T));
  if (!kCanStream || bytes < kStreamBytes || reinterpret_cast<std::uintptr_t>(dst) % 64) return false;
  return g.planar ? g.out.n % line == 0 : g.out.w % line == 0 && g.out.h % line == 0 && g.out.n % line == 0;
}

// False: nothing was computed, the case does not fit the scratch.
template <class T>
bool conv_group(const Params& p, bool backward, int first, int branches, const T* src, const T* w, const T* bias,
                T* dst) {
  using A = Acc<T>;
  Plan g = outline(p, backward, first, branches);
  const double products = static_cast<double>(p.n) * g.channels * p.ho * p.wo * g.slots;
  const int threads = products < kTeamGrain ? 1 : p.threads;
  Arena sizes{nullptr, 0};
  take_plan(g, sizes);
  char* memory = static_cast<char*>(scratch(sizes.used + threads * kThreadBytes));
  if (!memory) return false;
  Arena plan{memory, 0};
  take_plan(g, plan);
  build(p, g, kLongestRun);

  const Ring<A> r = fit_ring<T>(g, p.n, threads);
  if (g.planar && r.panel < g.cols) return false;
  const int vecs = r.vecs;
  Cut cut;
  cut.blocks = (g.channels + vecs * kLanes<A> - 1) / (vecs * kLanes<A>);
  cut.strips = 1;
  const Stage<T> stage{g, r, nullptr, nullptr, nullptr, nullptr, false};
  Conv<T> c{p,
            g,
            r,
            src,
            w,
            bias,
            dst,
            past_caches<T>(p, g, dst),
            reads_in_place<T>(g),
            stage,
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr,
            nullptr};
  Arena fixed{nullptr, 0};
  c.take(fixed, 0);
  const i64 block_bytes = c.packed_elements() * static_cast<i64>(sizeof(A)) + 64;
  const i64 room = static_cast<i64>(kThreadBytes) - static_cast<i64>(fixed.used) - 128;
  if (room < block_bytes) return false;
  i64 chunk = room / block_bytes;
  if (chunk > cut.blocks) chunk = cut.blocks;
  for (i64 b0 = 0; b0 < cut.blocks; b0 += chunk) {
    const i64 b1 = b0 + chunk < cut.blocks ? b0 + chunk : cut.blocks, whole = p.n * (b1 - b0);
    // Rows are cut only where images and blocks alone would leave a thread without its share.
    cut.strips = whole % threads && whole < 4 * threads ? (g.rows < 4 * threads ? g.rows : 4 * threads) : 1;
    const i64 units = whole * cut.strips;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; ++t) {
      Arena own{memory + plan.used + t * kThreadBytes, 0};
      Conv<T> mine = c;
      mine.take(own, chunk);
      mine.work(cut, b0, b1, units * t / threads, units * (t + 1) / threads);
      if (mine.past) stream_fence();
    }
  }
  return true;
}

}  // namespace nhwc
}  // namespace

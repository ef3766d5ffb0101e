#include "condensed_conv2d/cuda_back.cuh"
#include "condensed_conv2d/cuda_grad.cuh"
#include "condensed_conv2d/cuda_launch.h"
#include "lk/simt_entry.cuh"

namespace lk::condensed_conv2d::cuda {
namespace {

// About so many blocks for a weight gradient. A constant, so that its sums have one order everywhere.
#ifdef LK_HOST
constexpr i64 kPrograms = 4;
#else
constexpr i64 kPrograms = 1024;
#endif

constexpr i64 kTile = 128;
using Plain = ProductGrad<float>;

// How the work of a backward lies: what is picked, the parts of scale and shift, those of the weight.
struct Room {
  i64 pitch, tiles, entries, weights, blocks, parts, a_part;

  explicit Room(const Params& p) {
    const i64 pixels = p.n * p.pixels, step = Plain::kChunks * 16 / size_of(p.dtype);
    tiles = ceil_div(pixels, kTile);
    pitch = tiles * kTile;
    entries = p.groups * p.picked;
    weights = p.co * p.picked;
    blocks = p.groups * ceil_div(p.co / p.groups, Plain::kTile) * ceil_div(p.picked, Plain::kTile);
    const i64 steps = ceil_div(pixels, step), most = ceil_div(steps, 4);
    parts = kPrograms / blocks;
    parts = parts < 1 ? 1 : parts > most ? most : parts;
    a_part = ceil_div(steps, parts) * step;
    parts = ceil_div(pixels, a_part);
  }
  i64 picked() const { return entries * pitch; }
  i64 norms() const { return tiles * 2 * entries; }
};

template <class T>
int sum(void* stream, const Acc<T>* part, void* out, void* second, i64 columns, i64 split, i64 parts) {
  using K = SumParts<T>;
  typename K::Args a{part, static_cast<T*>(out), static_cast<T*>(second), columns, split, parts};
  return launch<K>("sum_parts", {ceil_div(columns, kWarp)}, K::shared_bytes(), stream, a);
}

// What both products of a backward read.
template <class K>
typename K::Args given(const Params& call, const Given& t) {
  using E = typename K::E;
  typename K::Args a{};
  Problem& p = a.p = problem_of(call);
  p.x.vector = aligned(p, p.x, t.x, sizeof(E));
  p.y.vector = aligned(p, p.y, t.g, sizeof(E));
  a.g = static_cast<const E*>(t.g);
  a.x = static_cast<const E*>(t.x);
  a.scale = static_cast<decltype(a.scale)>(t.scale);
  a.shift = static_cast<decltype(a.shift)>(t.shift);
  return a;
}

template <class T>
int run_back(const Params& call, void* stream, const Given& t, const Taken& out, const Room& room) {
  constexpr bool kHalf = sizeof(T) == 2;
  using K = ProductBack<T, kHalf ? 64 : 32>;
  using A = Acc<T>;
  typename K::Args a = given<K>(call, t);
  a.w = static_cast<const typename K::E*>(t.w);
  a.picked = static_cast<A*>(t.work);
  a.part = a.picked + room.picked();
  a.pitch = room.pitch;
  spread(a.p, room.tiles, a.together, a.splits);
  if (const int error =
          launch<K>(kHalf ? "mma_back" : "tile_back", {room.tiles * a.splits}, K::shared_bytes(), stream, a))
    return error;
  return sum<A>(stream, a.part, out.scale, out.shift, 2 * room.entries, room.entries, room.tiles);
}

// x's gradient is dense, whatever x is.
template <class T>
int run_collect(const Params& call, void* stream, const Given& t, const Taken& out, const Room& room) {
  using K = Collect<T>;
  typename K::Args a{};
  Problem& p = a.p = problem_of(call);
  p.x = p.last ? Steps{call.c * call.pixels, call.c, 1, false} : Steps{call.c * call.pixels, 1, call.pixels, false};
  p.x.vector = aligned(p, p.x, out.x, sizeof(typename K::E));
  a.picked = static_cast<const Acc<T>*>(t.work);
  a.order = t.order;
  a.bounds = t.bounds;
  a.gx = static_cast<typename K::E*>(out.x);
  a.pitch = room.pitch;
  a.chunks = ceil_div(p.pixels, K::kCopy);
  return launch<K>("collect", {ceil_div(a.chunks * p.c, K::kThreads)}, 0, stream, a);
}

template <class T>
int run_weight(const Params& call, void* stream, const Given& t, const Taken& out, const Room& room) {
  using K = ProductGrad<T>;
  typename K::Args a = given<K>(call, t);
  a.part = static_cast<Acc<T>*>(t.work) + room.picked() + room.norms();
  a.weights = room.weights;
  a.a_part = room.a_part;
  a.rows = static_cast<int>(ceil_div(a.p.each, K::kTile));
  a.columns = static_cast<int>(ceil_div(a.p.picked, K::kTile));
  const Grid grid{room.blocks, static_cast<int>(room.parts)};
  if (const int error = launch<K>(K::kTensor ? "mma_grad" : "tile_grad", grid, K::shared_bytes(), stream, a))
    return error;
  return sum<T>(stream, a.part, out.w, nullptr, room.weights, room.weights, room.parts);
}

template <class T>
int run(const Params& p, void* stream, const Given& t, const Taken& out) {
  const Room room(p);
  if (const int error = run_back<T>(p, stream, t, out, room)) return error;
  if (const int error = run_collect<T>(p, stream, t, out, room)) return error;
  return run_weight<T>(p, stream, t, out, room);
}

}  // namespace

i64 work_size(const Params& p) {
  const Room room(p);
  return (room.picked() + room.norms() + room.parts * room.weights) * (p.dtype == DType::f64 ? 8 : 4);
}

int bwd(const Params& p, void* stream, const Given& t, const Taken& out) { LK_BY_DTYPE(run, p, stream, t, out); }

}  // namespace lk::condensed_conv2d::cuda

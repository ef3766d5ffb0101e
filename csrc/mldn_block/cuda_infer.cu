#include "lk/simt_entry.cuh"
#include "mldn_block/cuda.h"
#include "mldn_block/cuda_infer.cuh"
#include "mldn_block/cuda_pack.cuh"

namespace lk::mldn_block::cuda {
namespace {

bool pairs_so(const Params& p, Shape& s, Pairing pairing) {
  s.pairing = pairing;
  for (int l = 0; l < s.layers; ++l)
    for (int path = 0; path < s.paths; ++path)
      if (p.partner[l * s.paths + path] != s.partner(l, path)) return false;
  return true;
}

// Whether the kernels know how paths are paired.
bool shape_of(const Params& p, Shape& s) {
  auto narrow = [](i64 v) { return static_cast<int>(v); };
  s.images = p.n;
  s.high = narrow(p.h);
  s.wide = narrow(p.w);
  s.first = narrow(p.c / p.paths);
  s.layers = narrow(p.layers);
  s.paths = narrow(p.paths);
  s.kappa = narrow(p.kappa);
  s.mid = narrow(p.mid);
  s.groups = narrow(p.groups);
  s.kernel = narrow(p.kernel);
  s.taps = narrow(p.taps);
  s.sets = narrow(p.sets);
  s.parts = p.index_groups ? narrow(p.index_groups) : 1;
  s.condense = narrow(p.condense);
  s.last = p.nhwc != 0;
  if (s.paths == 1) return pairs_so(p, s, Pairing::none);
  return pairs_so(p, s, Pairing::xor1) || pairs_so(p, s, Pairing::butterfly) || pairs_so(p, s, Pairing::rotate);
}

// Layers that a block of threads can have by itself are one launch.
template <class T, bool kLast>
int layers(InferArgs<T> a, void* stream) {
  constexpr bool kTensor = sizeof(T) == 2;
  using K = std::conditional_t<kTensor, MmaInfer<T, kLast>, TileInfer<T, kLast>>;
  const bool whole = a.room.resident;
  const char* name = kTensor ? whole ? "mma_block" : "mma_layer" : whole ? "tile_block" : "tile_layer";
  const Grid grid{a.s.images * a.room.bands * (a.s.paths / a.room.together)};
  for (; a.layer < a.s.layers; a.layer = a.after) {
    a.after = whole ? a.s.layers : a.layer + 1;
    if (const int error = launch<K>(name, grid, a.room.shared(), stream, a)) return error;
  }
  return 0;
}

template <class T>
int run(const Params& p, void* stream, const Inputs& in, int most, void* work, void* y) {
  using E = typename Stored<T>::type;
  using A = Acc<T>;
  using Packer = Pack<E>;
  constexpr Forms kForms = forms_of(sizeof(E));
  Shape s{};
  if (!shape_of(p, s)) return kUnsupported;
  const Lists second(s, kForms.tensor);
  const Packed packed(s, kForms, second);
  const Room room = plan(s, kForms, most);
  if (!room.rows) return kUnsupported;
  auto elements = [](const void* at) { return static_cast<const E*>(at); };
  auto sums = [](const void* at) { return static_cast<const typename Packer::A*>(at); };
  const typename Packer::Args pack{s,
                                   packed,
                                   second,
                                   p.eps,
                                   elements(in.weight1),
                                   elements(in.weight3),
                                   sums(in.affine1),
                                   sums(in.affine2),
                                   sums(in.running1),
                                   sums(in.running2),
                                   in.cells,
                                   in.index,
                                   static_cast<unsigned char*>(work)};
  const i64 items = packed.items() * s.layers * s.paths;
  if (const int error = launch<Packer>("pack", {ceil_div(items, Packer::kThreads)}, 0, stream, pack)) return error;
  InferArgs<T> a{s, packed, second, room};
  const i64 channels = static_cast<i64>(s.paths) * s.end(), pixels = s.pixels();
  a.image = channels * pixels;
  a.channel = s.last ? 1 : pixels;
  a.pixel = s.last ? channels : 1;
  // Of channels last, every path's first channel is aligned at every pixel.
  const i64 steps = s.last ? channels | s.end() : pixels;
  a.vector = steps % (16 / static_cast<int>(sizeof(E))) == 0 && reinterpret_cast<std::uintptr_t>(y) % 16 == 0;
  a.packs = static_cast<const unsigned char*>(work);
  a.bias = elements(in.bias3);
  a.index = in.index;
  a.y = static_cast<E*>(y);
  if (s.last && !room.resident) return layers<T, true>(a, stream);
  return layers<T, false>(a, stream);
}

Forms forms(const Params& p) { return forms_of(static_cast<int>(size_of(p.dtype))); }

}  // namespace

Cut cut(const Params& p, int most) {
  Shape s{};
  if (!shape_of(p, s)) return {};
  const Room r = plan(s, forms(p), most);
  return {r.rows, r.bands, r.together, r.resident, r.shared()};
}

i64 work_size(const Params& p) {
  Shape s{};
  shape_of(p, s);
  return Packed(s, forms(p), Lists(s, forms(p).tensor)).bytes;
}

int infer(const Params& p, void* stream, const Inputs& in, int most, void* work, void* y) {
  LK_BY_DTYPE(run, p, stream, in, most, work, y);
}

}  // namespace lk::mldn_block::cuda

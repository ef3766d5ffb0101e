// The machine of simt.cuh on the host, for tests: every thread of a block is a context of its own that runs until the
// next barrier or warp-wide operation. It finds what a GPU would do silently: threads of a warp that meet in different
// operations, threads that never arrive, and (by running lanes in either order over poisoned shared memory) results
// that depend on a missing barrier. Not part of any build that is shipped.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstring>
#include <string>
#include <vector>

#define LK_DEVICE inline
#define LK_ANYWHERE inline
#define LK_UNROLL
#define LK_UNROLL_4
#define LK_ROLLED

namespace lk::simt {

struct Launched {
  std::string kernel;
  Grid grid;
  int threads, shared;
};

class Machine {
 public:
  static Machine& get() {
    static Machine machine;
    return machine;
  }

  std::vector<Launched> launches;
  bool reverse = false;  // the order in which lanes run between barriers
  bool dry = false;      // launches are noted and not run
  std::string fault;

  int tid = 0;
  i64 x = 0;
  int y = 0, z = 0;
  unsigned char* memory() { return shared_.data(); }

  void run(void (*body)(const void*), const void* args, const Launched& what) {
    launches.push_back(what);
    if (dry) return;
    body_ = body;
    args_ = args;
    const int n = what.threads;
    if (static_cast<int>(fibers_.size()) < n) fibers_.resize(n);
    shared_.resize(what.shared + 16);
    for (z = 0; z < what.grid.z; ++z)
      for (y = 0; y < what.grid.y; ++y)
        for (x = 0; x < what.grid.x && fault.empty(); ++x) block(n);
  }

  void wait_block() { stop(kBlock); }

  // Deposits bytes for the lanes of this warp and waits for theirs. Two buffers in turn: no lane can be two ahead.
  const unsigned char* exchange(int op, const void* data, std::size_t size) {
    Fiber& me = fibers_[tid];
    auto& buffer = mail_[me.turn ^= 1];
    std::memcpy(&buffer[tid * kSlot], data, size);
    me.op = op;
    stop(kWarpWait);
    return &buffer[(tid / kWarp) * kWarp * kSlot];
  }

  // A copy that has begun: what it writes is spoilt at once and there when its group is awaited, not sooner.
  void copy_later(void* to, const void* from, bool real) {
    const auto offset = static_cast<unsigned char*>(to) - shared_.data();
    const auto addresses = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
    if (offset < 0 || offset + 16 > static_cast<std::ptrdiff_t>(shared_.size()) || addresses % 16) {
      fault = "a copy that is not aligned, or out of shared memory";
      return;
    }
    std::memset(to, 0xff, 16);
    Fiber& me = fibers_[tid];
    me.copies.push_back({to, real ? from : nullptr, me.group});
  }
  void close_copies() { ++fibers_[tid].group; }
  void await_copies(int open) {
    Fiber& me = fibers_[tid];
    std::size_t done = 0;
    for (; done < me.copies.size() && me.copies[done].group < me.group - open; ++done) {
      const Copy& one = me.copies[done];
      one.from ? std::memcpy(one.to, one.from, 16) : std::memset(one.to, 0, 16);
    }
    me.copies.erase(me.copies.begin(), me.copies.begin() + done);
  }

  static constexpr int kSlot = 32;

 private:
  enum State { kReady, kBlock, kWarpWait, kDone };
  struct Copy {
    void* to;
    const void* from;
    int group;
  };
  struct Fiber {
    std::vector<Copy> copies;
    int group;
    ucontext_t context;
    jmp_buf resume;
    std::vector<char> stack;
    State state;
    bool started;
    int turn, op;
  };

  static void start() {
    Machine& m = get();
    m.body_(m.args_);
    m.stop(kDone);
  }

  void stop(State why) {
    Fiber& me = fibers_[tid];
    me.state = why;
    if (_setjmp(me.resume) == 0) _longjmp(scheduler_, 1);
  }

  void resume(int i) {
    tid = i;
    Fiber& f = fibers_[i];
    f.state = kReady;
    if (_setjmp(scheduler_) == 0) {
      if (f.started) _longjmp(f.resume, 1);
      f.started = true;
      setcontext(&f.context);
    }
  }

  void block(int n) {
    std::memset(shared_.data(), 0xff, shared_.size());  // NaN in every type
    for (auto& m : mail_) m.assign(static_cast<std::size_t>(n + kWarp) * kSlot, 0);
    for (int i = 0; i < n; ++i) {
      Fiber& f = fibers_[i];
      f.stack.resize(64 << 10);
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.data();
      f.context.uc_stack.ss_size = f.stack.size();
      f.context.uc_link = nullptr;
      makecontext(&f.context, start, 0);
      f.state = kReady;
      f.started = false;
      f.turn = 0;
      f.copies.clear();
      f.group = 0;
    }
    for (;;) {
      int left = 0;
      bool moved = false;
      // One warp as far as it gets, then the next: what another warp has yet to read is overwritten if it can be.
      const int warps = (n + kWarp - 1) / kWarp;
      for (int q = 0; q < warps; ++q) {
        const int first = (reverse ? warps - 1 - q : q) * kWarp, last = first + kWarp < n ? first + kWarp : n;
        do {
          for (int e = first; e < last; ++e) {
            const int i = reverse ? last - 1 - (e - first) : e;
            if (fibers_[i].state != kReady) continue;
            resume(i);
            moved = true;
          }
        } while (release(first, last, kWarpWait));
      }
      moved |= release(0, n, kBlock);
      for (int i = 0; i < n; ++i) left += fibers_[i].state != kDone;
      if (!left || !fault.empty()) return;
      if (!moved) {
        fault = "threads wait for each other at different barriers";
        return;
      }
    }
  }

  // Lets the threads first..last go on if all that have not ended wait in the same way.
  bool release(int first, int last, State why) {
    int waiting = 0, other = 0, op = -1;
    for (int i = first; i < last; ++i) {
      const Fiber& f = fibers_[i];
      if (f.state == why) {
        ++waiting;
        if (why == kWarpWait) {
          if (op >= 0 && op != f.op) fault = "lanes of a warp meet in different operations";
          op = f.op;
        }
      } else if (f.state != kDone) {
        ++other;
      } else if (why == kWarpWait) {
        ++other;  // a lane that has ended cannot take part
      }
    }
    if (!waiting || other) return false;
    for (int i = first; i < last; ++i)
      if (fibers_[i].state == why) fibers_[i].state = kReady;
    return true;
  }

  std::vector<Fiber> fibers_;
  std::vector<unsigned char> shared_, mail_[2];
  jmp_buf scheduler_;
  void (*body_)(const void*) = nullptr;
  const void* args_ = nullptr;
};

inline int tid() { return Machine::get().tid; }
inline i64 block_x() { return Machine::get().x; }
inline int block_y() { return Machine::get().y; }
inline int block_z() { return Machine::get().z; }
inline unsigned char* shared() {
  auto at = reinterpret_cast<std::uintptr_t>(Machine::get().memory());
  return reinterpret_cast<unsigned char*>((at + 15) & ~std::uintptr_t{15});
}
inline void sync() { Machine::get().wait_block(); }
inline void sync_warp() {
  const char nothing = 0;
  Machine::get().exchange(0, &nothing, 1);
}
template <class A>
inline A shuffle_xor(A v, int lanes) {
  const unsigned char* all = Machine::get().exchange(1, &v, sizeof(A));
  A other;
  std::memcpy(&other, all + ((tid() % kWarp) ^ lanes) * Machine::kSlot, sizeof(A));
  return other;
}

inline float as_float(u32 bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline u32 as_bits(float f) {
  u32 u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float to_acc(float v) { return v; }
inline double to_acc(double v) { return v; }
inline float to_acc(bf16 v) { return as_float(static_cast<u32>(v.bits) << 16); }
inline float to_acc(f16 v) {
  _Float16 h;
  std::memcpy(&h, &v, 2);
  return static_cast<float>(h);
}
template <class T>
inline T from_acc(Acc<T> v) {
  return v;
}
template <>
inline bf16 from_acc<bf16>(float v) {
  const u32 u = as_bits(v);
  if (v != v) return {static_cast<u16>((u >> 16) | 0x40)};
  return {static_cast<u16>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
template <>
inline f16 from_acc<f16>(float v) {
  const _Float16 h = static_cast<_Float16>(v);
  f16 r;
  std::memcpy(&r, &h, 2);
  return r;
}
template <class T>
inline u32 pack_positive(float low, float high) {
  auto one = [](float v) { return static_cast<u32>(from_acc<T>(v < 0 ? 0.0f : v).bits); };
  return one(low) | one(high) << 16;
}

// Every lane's row address, checked to be aligned and inside shared memory; then the numbers that this lane gets.
inline u32 pair_of(const unsigned char* all, int first, int row, int at, bool transposed) {
  u16 half[2];
  for (int e = 0; e < 2; ++e) {
    const unsigned char* p;
    std::memcpy(&p, all + (first + (transposed ? 2 * at + e : row)) * Machine::kSlot, sizeof(p));
    const auto offset = p - shared();
    if (offset < 0 || offset % 16) Machine::get().fault = "a matrix row at an address that is not aligned";
    std::memcpy(&half[e], p + 2 * (transposed ? row : 2 * at + e), 2);
  }
  return half[0] | static_cast<u32>(half[1]) << 16;
}
inline void load_rows2(u32& a, u32& b, const void* row) {
  const int lane = tid() % kWarp;
  const unsigned char* all = Machine::get().exchange(2, &row, sizeof(row));
  a = pair_of(all, 0, lane / 4, lane % 4, false);
  b = pair_of(all, 8, lane / 4, lane % 4, false);
}
inline void load_rows4(u32 (&r)[4], const void* row) {
  const int lane = tid() % kWarp;
  const unsigned char* all = Machine::get().exchange(6, &row, sizeof(row));
  for (int i = 0; i < 4; ++i) r[i] = pair_of(all, 8 * i, lane / 4, lane % 4, false);
}
template <bool>
inline void copy_later(void* to, const void* from, bool real) {
  Machine::get().copy_later(to, from, real);
}
inline void close_copies() { Machine::get().close_copies(); }
template <int kOpen>
inline void await_copies() {
  Machine::get().await_copies(kOpen);
}
inline void load_columns4(u32 (&r)[4], const void* row) {
  const int lane = tid() % kWarp;
  const unsigned char* all = Machine::get().exchange(3, &row, sizeof(row));
  for (int i = 0; i < 4; ++i) r[i] = pair_of(all, 8 * i, lane / 4, lane % 4, true);
}
inline void load_columns2(u32 (&r)[2], const void* row) {
  const int lane = tid() % kWarp;
  const unsigned char* all = Machine::get().exchange(4, &row, sizeof(row));
  for (int i = 0; i < 2; ++i) r[i] = pair_of(all, 8 * i, lane / 4, lane % 4, true);
}
// The layout of mma.m16n8k16's registers, as the PTX manual gives it.
template <class T>
inline void multiply(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  const u32 mine[6] = {a0, a1, a2, a3, b0, b1};
  const int lane = tid() % kWarp;
  const unsigned char* all = Machine::get().exchange(5, mine, sizeof(mine));
  auto half = [&](int from, int reg, int e) {
    u32 word;
    std::memcpy(&word, all + from * Machine::kSlot + 4 * reg, 4);
    return to_acc(T{static_cast<u16>(word >> (16 * e))});
  };
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; ++k) {
      const float a = half(4 * (row % 8) + k % 8 / 2, row / 8 + 2 * (k / 8), k % 2);
      d[i] += a * half(4 * column + k % 8 / 2, 4 + k / 8, k % 2);
    }
  }
}

template <class K>
int launch(const char* name, const Grid& grid, int shared, void*, const typename K::Args& args) {
  Machine& m = Machine::get();
  if (grid.x < 1 || grid.x > 2147483647 || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535 ||
      shared > kLargest) {
    m.fault = "a launch beyond the limits of the device";
    return 1;
  }
  m.run([](const void* a) { K::run(*static_cast<const typename K::Args*>(a)); }, &args,
        {name, grid, K::kThreads, shared});
  return m.fault.empty() ? 0 : 1;
}

}  // namespace lk::simt

// Work of a team of threads in one block of scratch memory.
#pragma once
#ifdef _OPENMP
#include <omp.h>
#endif

#include "lk/sizes.h"

namespace {

// Pieces of one block of memory, each on its own cache lines. First counted, then given out.
struct Arena {
  char* base;
  lk::i64 used;
  template <class E>
  E* take(lk::i64 n) {
    E* at = reinterpret_cast<E*>(base + used);
    used += round_up(n * static_cast<lk::i64>(sizeof(E)), 64) + 64;
    return base ? at : nullptr;
  }
};

// A job has memory shared by its threads and memory of each; every thread of the team calls work() on its own copy,
// where loops are shared among them.
template <class Job>
int run_team(Job& job, int threads) {
  Arena count{nullptr, 0};
  job.share(count);
  const lk::i64 shared = round_up(count.used, 4096);
  count.used = 0;
  job.own(count);
  const lk::i64 each = round_up(count.used, 4096);
  char* const memory = static_cast<char*>(lk::scratch(static_cast<std::size_t>(shared + each * threads)));
  if (!memory) return lk::out_of_memory;
  Arena all{memory, 0};
  job.share(all);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#ifdef _OPENMP
    const int me = omp_get_thread_num();
#else
    const int me = 0;
#endif
    Job mine = job;
    Arena part{memory + shared + me * each, 0};
    mine.own(part);
    mine.work();
  }
  return lk::ok;
}

}  // namespace

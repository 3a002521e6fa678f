// What the scheduler and the waits share: fibers, blocks, and who waits for what.
//
// With ThreadSanitizer every fiber is a thread of its own, and only what orders memory on the
// hardware (barriers, __syncwarp, mbarriers, the end of a block) orders it: a race between CUDA
// threads is reported. For that the kernels are compiled with it, the emulator is not, and
// FASTMMD_EMULATION_RACES is defined.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include "emulator.h"

namespace emulation {

inline constexpr unsigned char poison = 0xFF;  // NaN, and an odd number

#if defined(__x86_64__)
using Context = void*;  // the stack pointer; what a callee must keep lies on the stack
#else
using Context = ucontext_t;
#endif

struct Block;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  Context context;
  void* tracked = nullptr;  // ThreadSanitizer's idea of it
  int quiet = 0;            // how many Quiets live
  Block* block = nullptr;
  uint3 thread{};
  unsigned linear = 0;
  const char* waits_for = nullptr;  // null while it can run
  bool ended = false;
  int64_t cluster_phase = -1;  // of the cluster barrier, that it has arrived at and not waited for
  std::vector<Copy> copies;    // cp.async not waited for
  std::deque<size_t> committed;  // copies in each group, oldest first
};

// For ThreadSanitizer: one address for odd and one for even phases, so that the arrivals at a phase
// do not come before what follows the one before it.
struct Phases {
  unsigned current = 0;
  char order[2];
};

struct Barrier {
  unsigned threads = 0, arrived = 0, votes = 0, result = 0;
  Phases phases;
  std::vector<Fiber*> waiting;
};

struct WarpMeeting {
  uint32_t mask = 0, arrived = 0;
  const char* what = nullptr;
  Phases phases;
  void* brought[32];
  Fiber* who[32];
};

struct WarpgroupMeeting {
  unsigned arrived = 0;
  const char* what = nullptr;
  void* brought[128];
  Fiber* who[128];
};

struct Transfer {
  uint32_t bytes;
  std::function<void()> copy;
};

struct Mbarrier {
  unsigned count = 0, pending = 0;
  int64_t bytes = 0;
  Phases phases;
  std::vector<Fiber*> waiting;
  std::deque<Transfer> transfers;

  bool ended() const { return pending == 0 && bytes == 0; }
  void start_phase();  // the next; wakes who waited for the end of this one
};

struct Block {
  uint3 index{};
  unsigned rank = 0;
  char* shared = nullptr;
  std::vector<Fiber> fibers;
  std::vector<std::vector<WarpMeeting>> warps;  // 32 meetings at most: they never move
  std::vector<WarpgroupMeeting> meetings;
  std::vector<Warpgroup> warpgroups;
  Barrier barriers[16];
  std::map<uintptr_t, Mbarrier> mbarriers;
};

struct Grid {
  dim3 size, block;
  size_t shared_bytes;
  unsigned cluster, num_threads;
  const std::function<void()>& kernel;
  uint64_t seed;
  std::atomic<bool> failed{false};
  std::mutex mutex{};
  std::string error{};
};

struct Stack {
  char* memory;
  void* tracked;
};

// One OS thread's cluster of blocks, with its stacks and shared memory, which later launches reuse.
struct Worker {
  Context context;
  void* tracked = nullptr;
  Grid* grid = nullptr;
  Fiber* self = nullptr;
  std::vector<Block> blocks;
  std::vector<Stack> stacks;
  std::vector<char*> shared;
  size_t shared_capacity = 0;
  std::deque<Fiber*> ready;
  unsigned alive = 0;
  Barrier cluster;
  std::string error;
  char started, ended, abandoned;  // addresses for release and acquire

  ~Worker();
};

extern constinit thread_local Worker* worker;

// Goes on with others until someone wakes the calling fiber.
void park(const char* what);
void wake(Fiber* fiber);
void wake_all(std::vector<Fiber*>& fibers);

// For ThreadSanitizer. What came before `release` comes before what follows an `acquire` of the
// same address. What the emulator does for itself while a Quiet lives is not looked at, except for
// what a kernel's instruction reads.
#if defined(FASTMMD_EMULATION_RACES)
void release(void* address);
void acquire(void* address);
struct Quiet {
  Quiet();
  ~Quiet();
};
#else
inline void release(void*) {}
inline void acquire(void*) {}
struct Quiet {
  ~Quiet() {}
};
#endif

}  // namespace emulation

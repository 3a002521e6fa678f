// Fibers, their scheduler, and what threads wait for.
#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {
namespace {

constexpr size_t stack_bytes = size_t(256) << 10, guard_bytes = size_t(64) << 10;
constexpr unsigned shared_origin = 1024;  // address of the first dynamic byte: 0 is no address
constexpr size_t canary_bytes = 1024;
constexpr unsigned char poison = 0xFF, canary = 0xA5;

// --- switching stacks
// ------------------------------------------------------------------------------

#if defined(__x86_64__)
using Context = void*;  // the stack pointer; what the callee must keep lies on the stack

extern "C" void fastmmd_emulation_switch(Context* from, Context to);
asm(R"(
.pushsection .text
.globl fastmmd_emulation_switch
.hidden fastmmd_emulation_switch
.type fastmmd_emulation_switch, @function
fastmmd_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastmmd_emulation_switch, . - fastmmd_emulation_switch
.popsection
)");

void prepare(Context& context, char* stack, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack + stack_bytes) - 2;
  *top = reinterpret_cast<void*>(entry);  // 8 below a multiple of 16 when entered, as after a call
  std::fill(top - 6, top, nullptr);
  context = top - 6;
}

void switch_context(Context& from, Context& to) { fastmmd_emulation_switch(&from, to); }
#else
using Context = ucontext_t;

void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

// --- state
// -----------------------------------------------------------------------------------------

struct Block;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fiber {
  Context context;
  Block* block = nullptr;
  uint3 thread{};
  unsigned linear = 0;
  const char* waits_for = nullptr;  // null while it can run
  bool ended = false;
  std::vector<Copy> copies;      // cp.async not waited for
  std::deque<size_t> committed;  // copies in each group, oldest first
};

struct Barrier {
  unsigned threads = 0, arrived = 0, votes = 0, result = 0;
  std::vector<Fiber*> waiting;
};

struct WarpMeeting {
  uint32_t mask = 0, arrived = 0;
  const char* what = nullptr;
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
  unsigned count = 0, pending = 0, phase = 0;
  int64_t bytes = 0;
  std::vector<Fiber*> waiting;
  std::deque<Transfer> transfers;
};

struct Block {
  uint3 index{};
  unsigned rank = 0;
  char* shared = nullptr;
  std::vector<Fiber> fibers;
  std::vector<std::vector<WarpMeeting>> warps;
  std::vector<WarpgroupMeeting> meetings;
  std::vector<Warpgroup> warpgroups;
  Barrier barriers[16];
  std::map<uintptr_t, Mbarrier> mbarriers;  // by mbarrier_key
};

struct Grid {
  dim3 size, block;
  size_t shared_bytes;
  unsigned cluster, num_threads;
  const std::function<void()>& kernel;
  uint64_t seed;
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex{};
  std::string error{};
};

// One OS thread's cluster of blocks, with its stacks and shared memory, which later launches reuse.
struct Worker {
  Context context;
  Grid* grid = nullptr;
  Fiber* self = nullptr;
  std::vector<Block> blocks;
  std::vector<char*> stacks;
  std::vector<char*> shared;
  size_t shared_capacity = 0;
  std::deque<Fiber*> ready;
  unsigned alive = 0;
  Barrier cluster;
  std::string error;

  ~Worker() {
    for (char* stack : stacks) munmap(stack - guard_bytes, stack_bytes + guard_bytes);
    for (char* memory : shared) std::free(memory);
  }
};

thread_local Worker* worker = nullptr;

void park(const char* what) {
  Fiber* self = worker->self;
  self->waits_for = what;
  switch_context(self->context, worker->context);
}

void wake(Fiber* fiber) {
  fiber->waits_for = nullptr;
  worker->ready.push_back(fiber);
}

void wake_all(std::vector<Fiber*>& fibers) {
  for (Fiber* fiber : fibers) wake(fiber);
  fibers.clear();
}

void enter() {
  try {
    worker->grid->kernel();
  } catch (const std::exception& error) {
    fail("%s", error.what());
  }
  Fiber* self = worker->self;
  self->ended = true;
  --worker->alive;
  switch_context(self->context, worker->context);
  __builtin_unreachable();
}

std::string name(const Fiber& fiber) {
  char text[160];
  const uint3 b = fiber.block->index, t = fiber.thread;
  std::snprintf(text, sizeof text, "block (%u, %u, %u) thread (%u, %u, %u)", b.x, b.y, b.z, t.x,
                t.y, t.z);
  return text;
}

// Who waits for what, once for each thing of each block, with the first thread that does.
std::string describe_deadlock(const Worker& w) {
  std::string text = "deadlock:";
  for (const Block& block : w.blocks) {
    std::map<std::string, std::pair<const Fiber*, unsigned>> waits;
    for (const Fiber& fiber : block.fibers) {
      auto& entry = waits[fiber.ended ? "nothing, it has ended" : fiber.waits_for];
      if (!entry.first) entry.first = &fiber;
      ++entry.second;
    }
    for (const auto& [what, who] : waits)
      text += " " + name(*who.first) + " and " + std::to_string(who.second - 1) +
              " more of its block wait for " + what + ";";
  }
  return text;
}

// The transfers that someone waits for. False if there are none.
bool do_transfers(Worker& w) {
  bool any = false;
  for (Block& block : w.blocks) {
    for (auto& [address, bar] : block.mbarriers) {
      if (bar.waiting.empty() || bar.transfers.empty()) continue;
      any = true;
      while (!bar.transfers.empty()) {
        bar.transfers.front().copy();
        bar.bytes -= bar.transfers.front().bytes;
        bar.transfers.pop_front();
      }
      if (bar.pending == 0 && bar.bytes == 0) {
        bar.phase ^= 1;
        bar.pending = bar.count;
        wake_all(bar.waiting);
      }
    }
  }
  return any;
}

// A use of the memory by what is still in flight when a block ends is a fault of the kernel.
void check_ended(Worker& w) {
  for (Block& block : w.blocks) {
    for (unsigned i = 0; i < canary_bytes; ++i) {
      if (static_cast<unsigned char>(block.shared[w.grid->shared_bytes + i]) == canary) continue;
      w.error = name(block.fibers[0]) + ": byte " + std::to_string(w.grid->shared_bytes + i) +
                " of the " + std::to_string(w.grid->shared_bytes) + " of shared memory was written";
      return;
    }
    for (auto& [address, bar] : block.mbarriers)
      if (!bar.transfers.empty())
        w.error = name(block.fibers[0]) + ": the block ended before a TMA transfer was waited for";
    for (Warpgroup& group : block.warpgroups)
      if (!group.issued.empty() || !group.groups.empty())
        w.error = name(block.fibers[0]) + ": the block ended before a wgmma was waited for";
  }
}

void set_up(Worker& w, uint64_t cluster_index) {
  Grid& grid = *w.grid;
  if (w.shared_capacity < grid.shared_bytes || w.shared.size() < grid.cluster) {
    for (char* memory : w.shared) std::free(memory);
    w.shared_capacity = grid.shared_bytes;
    w.shared.resize(grid.cluster);
    const size_t bytes = (grid.shared_bytes + canary_bytes + 1023) / 1024 * 1024;
    for (char*& memory : w.shared) memory = static_cast<char*>(std::aligned_alloc(1024, bytes));
  }
  while (w.stacks.size() < size_t(grid.num_threads) * grid.cluster) {
    void* memory = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, guard_bytes, PROT_NONE);
    w.stacks.push_back(static_cast<char*>(memory) + guard_bytes);
  }

  w.blocks.assign(grid.cluster, {});
  w.ready.clear();
  w.error.clear();
  w.cluster = {};
  w.alive = grid.num_threads * grid.cluster;
  for (unsigned rank = 0; rank < grid.cluster; ++rank) {
    Block& block = w.blocks[rank];
    const uint64_t linear = cluster_index * grid.cluster + rank;
    block.index = {unsigned(linear % grid.size.x), unsigned(linear / grid.size.x % grid.size.y),
                   unsigned(linear / grid.size.x / grid.size.y)};
    block.rank = rank;
    block.shared = w.shared[rank];
    std::memset(block.shared, poison, grid.shared_bytes);
    std::memset(block.shared + grid.shared_bytes, canary, canary_bytes);
    block.fibers.resize(grid.num_threads);
    block.warps.resize((grid.num_threads + 31) / 32);
    block.meetings.resize((grid.num_threads + 127) / 128);
    block.warpgroups.resize(block.meetings.size());
    for (unsigned i = 0; i < grid.num_threads; ++i) {
      Fiber& fiber = block.fibers[i];
      fiber.block = &block;
      fiber.linear = i;
      fiber.thread = {i % grid.block.x, i / grid.block.x % grid.block.y,
                      i / grid.block.x / grid.block.y};
      prepare(fiber.context, w.stacks[rank * grid.num_threads + i], enter);
      w.ready.push_back(&fiber);
    }
  }
  if (grid.seed) {
    std::mt19937_64 random(grid.seed + cluster_index);
    std::shuffle(w.ready.begin(), w.ready.end(), random);
  }
}

void run_cluster(Worker& w, uint64_t cluster_index) {
  set_up(w, cluster_index);
  while (w.error.empty()) {
    if (w.ready.empty()) {
      if (!w.alive) {
        check_ended(w);
        break;
      }
      if (!do_transfers(w)) w.error = describe_deadlock(w);
      continue;
    }
    Fiber* fiber = w.ready.front();
    w.ready.pop_front();
    w.self = fiber;
    threadIdx = fiber->thread;
    blockIdx = fiber->block->index;
    switch_context(w.context, fiber->context);
  }
}

void work(Grid& grid) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<Worker>> idle;
  std::unique_ptr<Worker> mine;
  {
    const std::lock_guard lock(mutex);
    if (!idle.empty()) {
      mine = std::move(idle.back());
      idle.pop_back();
    }
  }
  if (!mine) mine = std::make_unique<Worker>();
  mine->grid = &grid;
  worker = mine.get();
  blockDim = grid.block;
  gridDim = grid.size;

  const uint64_t blocks = uint64_t(grid.size.x) * grid.size.y * grid.size.z;
  const uint64_t clusters = blocks / grid.cluster;
  for (uint64_t i; !grid.failed && (i = grid.next++) < clusters;) {
    run_cluster(*mine, grid.seed % 2 ? clusters - 1 - i : i);
    if (mine->error.empty()) continue;
    const std::lock_guard lock(grid.mutex);
    if (!grid.failed.exchange(true)) grid.error = mine->error;
  }
  worker = nullptr;
  const std::lock_guard lock(mutex);
  idle.push_back(std::move(mine));
}

uint64_t setting(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

// The same in every block of a cluster for a place in dynamic shared memory.
uintptr_t mbarrier_key(const uint64_t* bar) {
  check_aligned(bar, 8, "mbarrier");
  const auto address = reinterpret_cast<uintptr_t>(bar);
  const auto shared = reinterpret_cast<uintptr_t>(worker->self->block->shared);
  return address - shared < worker->grid->shared_bytes ? address - shared : address;
}

Mbarrier& find_mbarrier(uint64_t* bar, unsigned rank) {
  auto& bars = worker->blocks[rank].mbarriers;
  const auto found = bars.find(mbarrier_key(bar));
  if (found == bars.end()) fail("an mbarrier is used that was not initialised");
  return found->second;
}

void advance(Mbarrier& bar) {
  if (bar.pending || bar.bytes) return;
  bar.phase ^= 1;
  bar.pending = bar.count;
  wake_all(bar.waiting);
}

void arrive(Barrier& barrier, unsigned threads, bool wait, const char* what) {
  if (barrier.arrived && barrier.threads != threads)
    fail("%s: %u threads are named, others named %u", what, threads, barrier.threads);
  barrier.threads = threads;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    barrier.result = std::exchange(barrier.votes, 0);  // kept until all of the next have arrived
    wake_all(barrier.waiting);
  } else if (wait) {
    barrier.waiting.push_back(worker->self);
    park(what);
  }
}

void do_copy(const Copy& copy) { std::memcpy(copy.to, copy.from, copy.bytes); }

}  // namespace

// --- the interface
// ---------------------------------------------------------------------------------

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  worker->error = name(*worker->self) + ": " + text;
  switch_context(worker->self->context, worker->context);
  std::abort();  // never resumed
}

void run(dim3 size, dim3 block, size_t shared_bytes, unsigned cluster,
         const std::function<void()>& kernel) {
  Grid grid{.size = size,
            .block = block,
            .shared_bytes = shared_bytes,
            .cluster = cluster,
            .num_threads = block.x * block.y * block.z,
            .kernel = kernel,
            .seed = setting("FASTMMD_EMULATION_SEED", 0)};
  const uint64_t clusters = uint64_t(size.x) * size.y * size.z / cluster;
  const uint64_t workers = std::min(setting("FASTMMD_EMULATION_THREADS", 2), clusters);
  // Even the first runs on a thread of its own, so that none finds `__shared__` arrays of the
  // caller.
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < workers; ++i) threads.emplace_back([&grid] { work(grid); });
  for (std::thread& thread : threads) thread.join();
  if (grid.failed) throw Fault(grid.error);
}

char* dynamic_shared() { return worker->self->block->shared; }
unsigned lane() { return worker->self->linear % 32; }
unsigned cluster_rank() { return worker->self->block->rank; }

uint32_t shared_address(const void* pointer) {
  const Block& block = *worker->self->block;
  const ptrdiff_t offset = static_cast<const char*>(pointer) - block.shared;
  if (offset < 0 || size_t(offset) >= worker->grid->shared_bytes)
    fail("an address is needed in dynamic shared memory, this one is outside it");
  return shared_origin + unsigned(offset);
}

char* shared_pointer(uint32_t address, unsigned rank) {
  if (rank >= worker->blocks.size()) fail("block %u is not in the cluster", rank);
  if (address < shared_origin || address - shared_origin >= worker->grid->shared_bytes)
    fail("shared address %u is outside the %zu bytes of the block", address - shared_origin,
         worker->grid->shared_bytes);
  return worker->blocks[rank].shared + (address - shared_origin);
}

char* shared_pointer(uint32_t address) {
  return shared_pointer(address, worker->self->block->rank);
}

void check_aligned(const void* pointer, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes)
    fail("%s: address %p is not a multiple of %zu", what, pointer, bytes);
}

void meet_warp(uint32_t mask, const char* what, void* brought, Compute compute) {
  Fiber* self = worker->self;
  const unsigned warp = self->linear / 32, lane = self->linear % 32;
  const unsigned lanes = std::min(32u, worker->grid->num_threads - warp * 32);
  if (lanes < 32) mask &= (1u << lanes) - 1;
  if (!(mask >> lane & 1)) fail("%s: the mask %#x leaves out the caller", what, mask);

  auto& meetings = self->block->warps[warp];
  WarpMeeting* meeting = nullptr;
  for (WarpMeeting& open : meetings) {
    if (!open.arrived) continue;
    if (open.mask == mask && std::strcmp(open.what, what) == 0 && !(open.arrived >> lane & 1)) {
      meeting = &open;
    } else if ((open.mask >> lane & 1) && (open.arrived & mask)) {
      fail("%s of lanes %#x, while lanes %#x wait at %s of lanes %#x", what, mask, open.arrived,
           open.what, open.mask);
    }
  }
  if (!meeting) {
    for (WarpMeeting& open : meetings)
      if (!open.arrived) meeting = &open;
    if (!meeting) meeting = (meetings.reserve(32), &meetings.emplace_back());
    meeting->mask = mask;
    meeting->what = what;
  }
  meeting->brought[lane] = brought;
  meeting->who[lane] = self;
  meeting->arrived |= 1u << lane;
  if (meeting->arrived != mask) return park(what);
  if (compute) compute(meeting->brought, mask);
  meeting->arrived = 0;
  for (unsigned i = 0; i < 32; ++i)
    if ((mask >> i & 1) && i != lane) wake(meeting->who[i]);
}

void meet_warpgroup(const char* what, void* brought, void (*compute)(void** brought)) {
  Fiber* self = worker->self;
  const unsigned group = self->linear / 128, rank = self->linear % 128;
  WarpgroupMeeting& meeting = self->block->meetings[group];
  if (worker->grid->num_threads < group * 128 + 128) fail("%s: a warpgroup of 128 is needed", what);
  if (meeting.arrived && std::strcmp(meeting.what, what) != 0)
    fail("%s, while others of the warpgroup wait at %s", what, meeting.what);
  meeting.what = what;
  meeting.brought[rank] = brought;
  meeting.who[rank] = self;
  if (++meeting.arrived < 128) return park(what);
  compute(meeting.brought);
  meeting.arrived = 0;
  for (unsigned i = 0; i < 128; ++i)
    if (i != rank) wake(meeting.who[i]);
}

void barrier(unsigned id, unsigned threads, bool wait, const char* what) {
  if (id >= 16) fail("%s: there are barriers 0 to 15, not %u", what, id);
  if (threads > worker->grid->num_threads) fail("%s: %u threads", what, threads);
  arrive(worker->self->block->barriers[id], threads, wait, what);
}

unsigned vote_barrier(bool vote) {
  Barrier& barrier = worker->self->block->barriers[0];
  barrier.votes += vote;
  arrive(barrier, worker->grid->num_threads, true, "__syncthreads");
  return barrier.result;
}

void cluster_barrier() {
  arrive(worker->cluster, worker->grid->num_threads * worker->grid->cluster, true,
         "the cluster barrier");
}

void copy_later(void* shared, const void* global, size_t bytes) {
  check_aligned(shared, bytes, "cp.async");
  check_aligned(global, bytes, "cp.async");
  std::memset(shared, poison, bytes);
  worker->self->copies.push_back({shared, global, bytes});
}

void commit_copies() {
  Fiber& self = *worker->self;
  size_t committed = 0;
  for (const size_t count : self.committed) committed += count;
  self.committed.push_back(self.copies.size() - committed);
}

void wait_copies(size_t groups_in_flight) {
  Fiber& self = *worker->self;
  size_t done = 0;
  while (self.committed.size() > groups_in_flight) {
    for (size_t end = done + self.committed.front(); done < end; ++done) do_copy(self.copies[done]);
    self.committed.pop_front();
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + ptrdiff_t(done));
}

void mbarrier_init(uint64_t* bar, unsigned count) {
  Mbarrier& state = worker->self->block->mbarriers[mbarrier_key(bar)];
  if (state.count) fail("an mbarrier is initialised a second time");
  state.count = state.pending = count;
}

void mbarrier_arrive(uint64_t* bar, uint32_t expected_bytes, unsigned rank) {
  Mbarrier& state = find_mbarrier(bar, rank);
  if (!state.pending) fail("an mbarrier has more arrivals than the %u of a phase", state.count);
  state.bytes += expected_bytes;
  --state.pending;
  advance(state);
}

bool mbarrier_test(uint64_t* bar, unsigned parity) {
  return find_mbarrier(bar, cluster_rank()).phase != (parity & 1);
}

void mbarrier_wait(uint64_t* bar, unsigned parity) {
  Mbarrier& state = find_mbarrier(bar, cluster_rank());
  if (state.phase != (parity & 1)) return;
  state.waiting.push_back(worker->self);
  park("an mbarrier");
}

void transfer_later(uint64_t* bar, unsigned rank, uint32_t bytes, std::function<void()> copy) {
  find_mbarrier(bar, rank).transfers.push_back({bytes, std::move(copy)});
}

Warpgroup& warpgroup() { return worker->self->block->warpgroups[worker->self->linear / 128]; }

}  // namespace emulation

// Fibers, and the order in which they run.
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "worker.h"
#if defined(FASTMMD_EMULATION_RACES)
#include <sanitizer/tsan_interface.h>
extern "C" {  // of the same library, in none of its headers; to ignore reads is to ignore writes
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void __tsan_read_range(void*, unsigned long);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulation {

constinit thread_local Worker* worker = nullptr;

namespace {

constexpr size_t stack_bytes = size_t(256) << 10, guard_bytes = size_t(64) << 10;
constexpr size_t canary_bytes = 1024;  // after the shared memory of a block
constexpr unsigned char canary = 0xA5;

// --- switching stacks ----------------------------------------------------------------------------

#if defined(__x86_64__)
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
  // When `entry` starts, its stack lies 8 below a multiple of 16, as after a call.
  auto* top = reinterpret_cast<void**>(stack + stack_bytes) - 2;
  *top = reinterpret_cast<void*>(entry);
  std::fill(top - 6, top, nullptr);
  context = top - 6;
}

void switch_context(Context& from, Context& to) { fastmmd_emulation_switch(&from, to); }
#else
void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

#if defined(FASTMMD_EMULATION_RACES)
void* new_tracked() { return __tsan_create_fiber(0); }
void* current_tracked() { return __tsan_get_current_fiber(); }
void track(void* tracked) { __tsan_switch_to_fiber(tracked, __tsan_switch_to_fiber_no_sync); }
#else
void* new_tracked() { return nullptr; }
void* current_tracked() { return nullptr; }
void track(void*) {}
#endif

// To AddressSanitizer: what lies in the first bytes from here on is not to be touched, the others
// are free.
#if defined(__SANITIZE_ADDRESS__)
void forbid(char* memory, size_t forbidden, size_t free) {
  __asan_poison_memory_region(memory, forbidden);
  __asan_unpoison_memory_region(memory + forbidden, free);
}
#else
void forbid(char*, size_t, size_t) {}
#endif

// From the calling fiber to the scheduler.
void leave() {
  Fiber* self = worker->self;
  release(&worker->abandoned);
  track(worker->tracked);
  switch_context(self->context, worker->context);
}

void enter() {
  acquire(&worker->started);
  worker->grid->kernel();
  release(&worker->ended);
  worker->self->ended = true;
  --worker->alive;
  leave();
  std::abort();  // never resumed
}

// --- a cluster of blocks -------------------------------------------------------------------------

std::string name(const Fiber& fiber) {
  char text[160];
  const uint3 b = fiber.block->index, t = fiber.thread;
  std::snprintf(text, sizeof text, "block (%u, %u, %u) thread (%u, %u, %u)", b.x, b.y, b.z, t.x,
                t.y, t.z);
  return text;
}

// What is waited for in each block, with the first thread that does and the number of others.
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
    for (auto& [key, bar] : block.mbarriers) {
      if (bar.waiting.empty() || bar.transfers.empty()) continue;
      any = true;
      acquire(&bar.transfers);
      for (; !bar.transfers.empty(); bar.transfers.pop_front()) {
        bar.transfers.front().copy();
        bar.bytes -= bar.transfers.front().bytes;
      }
      release(&bar.phases.order[bar.phases.current % 2]);
      if (bar.ended()) bar.start_phase();
    }
  }
  return any;
}

// What a block left behind that is a fault of the kernel.
void check_ended(Worker& w) {
  for (Block& block : w.blocks) {
    forbid(block.shared, 0, w.shared_capacity + canary_bytes);
    const std::string where = name(block.fibers[0]) + ": ";
    for (unsigned i = 0; i < canary_bytes; ++i) {
      if (static_cast<unsigned char>(block.shared[w.grid->shared_bytes + i]) == canary) continue;
      w.error = where + "byte " + std::to_string(w.grid->shared_bytes + i) + " of the " +
                std::to_string(w.grid->shared_bytes) + " of shared memory was written";
      return;
    }
    for (auto& [key, bar] : block.mbarriers)
      if (!bar.transfers.empty())
        w.error = where + "the block ended before a TMA transfer was waited for";
    for (Warpgroup& group : block.warpgroups)
      if (!group.issued.empty() || !group.groups.empty())
        w.error = where + "the block ended before a wgmma was waited for";
  }
}

void reserve(Worker& w) {
  const Grid& grid = *w.grid;
  if (w.shared_capacity < grid.shared_bytes || w.shared.size() < grid.cluster) {
    for (char* memory : w.shared) std::free(memory);
    w.shared_capacity = std::max(w.shared_capacity, grid.shared_bytes);
    w.shared.resize(std::max<size_t>(w.shared.size(), grid.cluster));
    const size_t bytes = (w.shared_capacity + canary_bytes + 1023) / 1024 * 1024;
    for (char*& memory : w.shared) memory = static_cast<char*>(std::aligned_alloc(1024, bytes));
  }
  while (w.stacks.size() < size_t(grid.num_threads) * grid.cluster) {
    void* memory = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, guard_bytes, PROT_NONE);
    w.stacks.push_back({static_cast<char*>(memory) + guard_bytes, new_tracked()});
  }
}

void set_up_block(Worker& w, Block& block, unsigned rank, uint64_t linear) {
  const Grid& grid = *w.grid;
  block.index = {unsigned(linear % grid.size.x), unsigned(linear / grid.size.x % grid.size.y),
                 unsigned(linear / grid.size.x / grid.size.y)};
  block.rank = rank;
  block.shared = w.shared[rank];
  forbid(block.shared, 0, w.shared_capacity + canary_bytes);
  std::memset(block.shared, poison, grid.shared_bytes);
  std::memset(block.shared + grid.shared_bytes, canary, canary_bytes);
  forbid(block.shared + grid.shared_bytes, canary_bytes, 0);
  block.fibers.resize(grid.num_threads);
  block.warps.resize((grid.num_threads + 31) / 32);
  for (auto& meetings : block.warps) meetings.reserve(32);
  block.meetings.resize((grid.num_threads + 127) / 128);
  block.warpgroups.resize(block.meetings.size());
  for (unsigned i = 0; i < grid.num_threads; ++i) {
    Fiber& fiber = block.fibers[i];
    const Stack& stack = w.stacks[rank * grid.num_threads + i];
    fiber.block = &block;
    fiber.linear = i;
    fiber.thread = {i % grid.block.x, i / grid.block.x % grid.block.y,
                    i / grid.block.x / grid.block.y};
    fiber.tracked = stack.tracked;
    forbid(stack.memory, 0, stack_bytes);  // what an abandoned launch left
    prepare(fiber.context, stack.memory, enter);
    w.ready.push_back(&fiber);
  }
}

void run_cluster(Worker& w, uint64_t cluster_index) {
  const Grid& grid = *w.grid;
  w.blocks.assign(grid.cluster, {});
  w.ready.clear();
  w.error.clear();
  w.cluster = {};
  w.alive = grid.num_threads * grid.cluster;
  for (unsigned rank = 0; rank < grid.cluster; ++rank)
    set_up_block(w, w.blocks[rank], rank, cluster_index * grid.cluster + rank);
  if (grid.seed) {
    std::mt19937_64 random(grid.seed + cluster_index);
    std::shuffle(w.ready.begin(), w.ready.end(), random);
  }
  release(&w.started);

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
    track(fiber->tracked);
    switch_context(w.context, fiber->context);
  }
  acquire(w.error.empty() ? &w.ended : &w.abandoned);
}

// Blocks are dealt out in turn, so that two neighbours run side by side, ordered by nothing.
void work(Worker& mine, Grid& grid, uint64_t rank, uint64_t workers) {
  mine.grid = &grid;
  mine.tracked = current_tracked();
  worker = &mine;
  blockDim = grid.block;
  gridDim = grid.size;
  reserve(mine);

  const uint64_t blocks = uint64_t(grid.size.x) * grid.size.y * grid.size.z;
  const uint64_t clusters = blocks / grid.cluster;
  for (uint64_t i = rank; i < clusters && !grid.failed; i += workers) {
    run_cluster(mine, grid.seed % 2 ? clusters - 1 - i : i);
    if (mine.error.empty()) continue;
    const std::lock_guard lock(grid.mutex);
    if (!grid.failed.exchange(true)) grid.error = mine.error;
  }
  worker = nullptr;
}

// Workers that no launch uses, kept for their stacks.
class Pool {
 public:
  std::unique_ptr<Worker> take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) return std::make_unique<Worker>();
    auto worker = std::move(idle_.back());
    idle_.pop_back();
    return worker;
  }
  void give(std::unique_ptr<Worker> worker) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(worker));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> idle_;
};

std::atomic<uint64_t> launches{0};

}  // namespace

// For tests, of the library that they have loaded.
extern "C" __attribute__((visibility("default"))) uint64_t fastmmd_emulation_launches() {
  return launches;
}

uint64_t setting(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

Worker::~Worker() {
  for (const Stack& stack : stacks) munmap(stack.memory - guard_bytes, guard_bytes + stack_bytes);
  for (char* memory : shared) std::free(memory);
}

void park(const char* what) {
  worker->self->waits_for = what;
  leave();
}

void wake(Fiber* fiber) {
  fiber->waits_for = nullptr;
  worker->ready.push_back(fiber);
}

void wake_all(std::vector<Fiber*>& fibers) {
  for (Fiber* fiber : fibers) wake(fiber);
  fibers.clear();
}

#if defined(FASTMMD_EMULATION_RACES)
void release(void* address) { __tsan_release(address); }
void acquire(void* address) { __tsan_acquire(address); }
Quiet::Quiet() {
  if (++worker->self->quiet > 1) return;
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
}
Quiet::~Quiet() {
  if (--worker->self->quiet) return;
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}
void reads(const void* pointer, size_t bytes) {
  const bool quiet = worker->self->quiet;
  if (quiet) AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  __tsan_read_range(const_cast<void*>(pointer), bytes);
  if (quiet) AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
}
#endif

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  worker->error = name(*worker->self) + ": " + text;
  leave();
  std::abort();  // never resumed
}

void run(dim3 size, dim3 block, size_t shared_bytes, unsigned cluster,
         const std::function<void()>& kernel) {
  ++launches;
  Grid grid{.size = size,
            .block = block,
            .shared_bytes = shared_bytes,
            .cluster = cluster,
            .num_threads = block.x * block.y * block.z,
            .kernel = kernel,
            .seed = setting("FASTMMD_EMULATION_SEED", 0)};
  const uint64_t clusters = uint64_t(size.x) * size.y * size.z / cluster;
  const uint64_t count = std::min(setting("FASTMMD_EMULATION_THREADS", 2), clusters);
  static Pool pool;
  std::vector<std::unique_ptr<Worker>> workers;
  for (uint64_t i = 0; i < count; ++i) workers.push_back(pool.take());
  // New threads: `__shared__` arrays are thread_local, and a launch finds none of another.
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < count; ++i)
    threads.emplace_back([&, i] { work(*workers[i], grid, i, count); });
  for (std::thread& thread : threads) thread.join();
  for (auto& worker : workers) pool.give(std::move(worker));
  if (grid.failed) throw Fault(grid.error);
}

}  // namespace emulation

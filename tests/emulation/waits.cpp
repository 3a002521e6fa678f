// What threads wait for: barriers, each other, copies, mbarriers.
#include <algorithm>
#include <cstring>

#include "worker.h"

namespace emulation {
namespace {

constexpr unsigned shared_origin = 1024;  // address of the first dynamic byte: 0 is no address

// Returns the phase that the caller is counted in.
unsigned arrive(Barrier& barrier, unsigned threads, const char* what, bool releases = true) {
  if (barrier.arrived && barrier.threads != threads)
    fail("%s: %u threads are named, others named %u", what, threads, barrier.threads);
  barrier.threads = threads;
  const unsigned phase = barrier.phases.current;
  if (releases) release(&barrier.phases.order[phase % 2]);
  if (++barrier.arrived == threads) {
    ++barrier.phases.current;
    barrier.arrived = 0;
    barrier.result = std::exchange(barrier.votes, 0);  // stays until all of the next have arrived
    wake_all(barrier.waiting);
  }
  return phase;
}

void wait(Barrier& barrier, unsigned phase, const char* what) {
  if (barrier.phases.current == phase) {
    barrier.waiting.push_back(worker->self);
    park(what);
  }
  acquire(&barrier.phases.order[phase % 2]);
}

// The same in every block of a cluster for a place in dynamic shared memory.
uintptr_t mbarrier_key(const uint64_t* bar) {
  check_aligned(bar, 8, "mbarrier");
  const auto address = reinterpret_cast<uintptr_t>(bar);
  const auto shared = reinterpret_cast<uintptr_t>(worker->self->block->shared);
  return address - shared < worker->grid->shared_bytes ? address - shared : address;
}

Mbarrier& find_mbarrier(uint64_t* bar, unsigned rank) {
  if (rank >= worker->blocks.size()) fail("block %u is not in the cluster", rank);
  auto& bars = worker->blocks[rank].mbarriers;
  const auto found = bars.find(mbarrier_key(bar));
  if (found == bars.end()) fail("an mbarrier is used that was not initialised");
  return found->second;
}

}  // namespace

// --- addresses -----------------------------------------------------------------------------------

char* dynamic_shared() { return worker->self->block->shared; }
unsigned lane() { return worker->self->linear % 32; }
unsigned cluster_rank() { return worker->self->block->rank; }
Warpgroup& warpgroup() { return worker->self->block->warpgroups[worker->self->linear / 128]; }

uint32_t shared_address(const void* pointer) {
  const ptrdiff_t offset = static_cast<const char*>(pointer) - worker->self->block->shared;
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

void load_cluster(void* to, const void* place, size_t bytes, unsigned rank) {
  check_aligned(place, bytes, "a load from the cluster");
  const char* from = shared_pointer(shared_address(place), rank);
  reads(from, bytes);
  const Quiet quiet;
  std::memcpy(to, from, bytes);
}

void check_aligned(const void* pointer, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes)
    fail("%s: address %p is not a multiple of %zu", what, pointer, bytes);
}

// --- collectives ---------------------------------------------------------------------------------

void meet_warp(uint32_t mask, const char* what, void* brought, Compute compute) {
  const Quiet quiet;
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
      // They wait for this lane, this lane waits for them.
      fail("%s of lanes %#x, while lanes %#x wait at %s of lanes %#x", what, mask, open.arrived,
           open.what, open.mask);
    }
  }
  if (!meeting) {
    for (WarpMeeting& open : meetings)
      if (!open.arrived) meeting = &open;
    if (!meeting) meeting = &meetings.emplace_back();
    meeting->mask = mask;
    meeting->what = what;
  }
  // Shuffles, votes and products do not order memory.
  char* order = compute ? nullptr : &meeting->phases.order[meeting->phases.current % 2];
  if (order) release(order);
  meeting->brought[lane] = brought;
  meeting->who[lane] = self;
  meeting->arrived |= 1u << lane;
  if (meeting->arrived == mask) {
    if (compute) compute(meeting->brought, mask);
    ++meeting->phases.current;
    meeting->arrived = 0;
    for (unsigned i = 0; i < 32; ++i)
      if ((mask >> i & 1) && i != lane) wake(meeting->who[i]);
  } else {
    park(what);
  }
  if (order) acquire(order);
}

uint64_t shuffle_bits(const char* what, uint32_t mask, uint64_t bits, int from) {
  struct Lane {
    uint64_t bits;
    int from;
    uint64_t result;
  } mine{bits, from, 0};
  meet_warp(mask, what, &mine, [](void** lanes, uint32_t mask) {
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      Lane& lane = *static_cast<Lane*>(lanes[i]);
      if (!(mask >> lane.from & 1)) fail("a shuffle reads lane %d, which is not in it", lane.from);
      lane.result = static_cast<Lane*>(lanes[lane.from])->bits;
    }
  });
  return mine.result;
}

uint32_t ballot(const char* what, uint32_t mask, bool vote) {
  uint32_t votes = vote;
  meet_warp(mask, what, &votes, [](void** lanes, uint32_t mask) {
    uint32_t all = 0;
    for (int i = 0; i < 32; ++i)
      if (mask >> i & 1) all |= *static_cast<uint32_t*>(lanes[i]) << i;
    for (int i = 0; i < 32; ++i)
      if (mask >> i & 1) *static_cast<uint32_t*>(lanes[i]) = all;
  });
  return votes;
}

void meet_warpgroup(const char* what, void* brought, void (*compute)(void** brought)) {
  const Quiet quiet;
  Fiber* self = worker->self;
  const unsigned group = self->linear / 128, place = self->linear % 128;
  WarpgroupMeeting& meeting = self->block->meetings[group];
  if (worker->grid->num_threads < group * 128 + 128) fail("%s: a warpgroup of 128 is needed", what);
  if (meeting.arrived && std::strcmp(meeting.what, what) != 0)
    fail("%s, while others of the warpgroup wait at %s", what, meeting.what);
  meeting.what = what;
  meeting.brought[place] = brought;
  meeting.who[place] = self;
  if (++meeting.arrived < 128) return park(what);
  compute(meeting.brought);
  release(&warpgroup());
  meeting.arrived = 0;
  for (unsigned i = 0; i < 128; ++i)
    if (i != place) wake(meeting.who[i]);
}

void meet_warpgroup_in_order(const char* what, void* brought, void (*compute)(void** brought)) {
  meet_warpgroup(what, brought, compute);
  acquire(&warpgroup());
}

void barrier(unsigned id, unsigned threads, bool waits, const char* what) {
  if (id >= 16) fail("%s: there are barriers 0 to 15, not %u", what, id);
  if (threads > worker->grid->num_threads || threads % 32)
    fail("%s: %u threads of %u", what, threads, worker->grid->num_threads);
  const Quiet quiet;
  Barrier& named = worker->self->block->barriers[id];
  const unsigned phase = arrive(named, threads, what);
  if (waits) wait(named, phase, what);
}

unsigned vote_barrier(bool vote) {
  const Quiet quiet;
  Barrier& barrier = worker->self->block->barriers[0];
  barrier.votes += vote;
  wait(barrier, arrive(barrier, worker->grid->num_threads, "__syncthreads"), "__syncthreads");
  return barrier.result;
}

void cluster_arrive(bool releases) {
  const Quiet quiet;
  int64_t& phase = worker->self->cluster_phase;
  if (phase >= 0) fail("two arrivals at the cluster barrier without a wait");
  const unsigned threads = worker->grid->num_threads * worker->grid->cluster;
  phase = arrive(worker->cluster, threads, "the cluster barrier", releases);
}

void cluster_wait() {
  const Quiet quiet;
  const int64_t phase = std::exchange(worker->self->cluster_phase, -1);
  if (phase < 0) fail("a wait at the cluster barrier without an arrival");
  wait(worker->cluster, unsigned(phase), "the cluster barrier");
}

// --- cp.async ------------------------------------------------------------------------------------

void copy_later(void* shared, const void* global, size_t bytes) {
  check_aligned(shared, bytes, "cp.async");
  check_aligned(global, bytes, "cp.async");
  std::memset(shared, poison, bytes);
  const Quiet quiet;
  worker->self->copies.push_back({shared, global, bytes});
}

void commit_copies() {
  const Quiet quiet;
  Fiber& self = *worker->self;
  size_t committed = 0;
  for (const size_t count : self.committed) committed += count;
  self.committed.push_back(self.copies.size() - committed);
}

void wait_copies(size_t groups_in_flight) {
  Fiber& self = *worker->self;
  size_t done = 0;
  while (self.committed.size() > groups_in_flight) {
    for (const size_t end = done + self.committed.front(); done < end; ++done) {
      const Copy& copy = self.copies[done];
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
    self.committed.pop_front();
  }
  const Quiet quiet;
  self.copies.erase(self.copies.begin(), self.copies.begin() + ptrdiff_t(done));
}

// --- mbarrier ------------------------------------------------------------------------------------

void Mbarrier::start_phase() {
  ++phases.current;
  pending = count;
  wake_all(waiting);
}

void mbarrier_init(uint64_t* bar, unsigned count) {
  const Quiet quiet;
  Mbarrier& state = worker->self->block->mbarriers[mbarrier_key(bar)];
  if (state.count) fail("an mbarrier is initialised a second time");
  if (!count) fail("an mbarrier is initialised for no arrivals");
  state.count = state.pending = count;
}

void mbarrier_arrive(uint64_t* bar, uint32_t expected_bytes, unsigned rank) {
  const Quiet quiet;
  Mbarrier& state = find_mbarrier(bar, rank);
  if (!state.pending) fail("an mbarrier has more arrivals than the %u of a phase", state.count);
  release(&state.phases.order[state.phases.current % 2]);
  state.bytes += expected_bytes;
  --state.pending;
  if (state.ended()) state.start_phase();
}

void mbarrier_wait(uint64_t* bar, unsigned parity) {
  const Quiet quiet;
  Mbarrier& state = find_mbarrier(bar, cluster_rank());
  parity %= 2;
  if (state.phases.current % 2 == parity) {
    state.waiting.push_back(worker->self);
    park("an mbarrier");
  }
  acquire(&state.phases.order[parity]);
}

void transfer_later(uint64_t* bar, unsigned rank, uint32_t bytes, std::function<void()> copy) {
  const Quiet quiet;
  Mbarrier& state = find_mbarrier(bar, rank);
  state.transfers.push_back({bytes, std::move(copy)});
  release(&state.transfers);
}

}  // namespace emulation

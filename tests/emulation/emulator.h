// A GPU on the CPU, for the logic of kernels: the threads of a block are fibers of one OS thread.
//
// Nothing here is about speed. What is about faults: work that the hardware does some time between
// issue and wait (cp.async, TMA, wgmma) is done at the wait, its destination holding NaN until
// then; dynamic shared memory starts as NaN; the order of threads and blocks can be shuffled
// (FASTMMD_EMULATION_SEED); a block that cannot go on, an index past shared memory, a collective
// that not all of its threads reach or a misaligned address ends the launch with an exception that
// names the thread. FASTMMD_EMULATION_THREADS (2) blocks or clusters run at a time. The device says
// of itself that its compute capability is FASTMMD_EMULATION_MAJOR (9).0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <stdexcept>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Set when a fiber is switched to.
inline constinit thread_local uint3 threadIdx{}, blockIdx{};
inline constinit thread_local dim3 blockDim{}, gridDim{};
inline constexpr int warpSize = 32;

namespace emulation {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Runs the kernel for every thread of the grid; clusters are of `cluster` consecutive blocks in x.
void run(dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster,
         const std::function<void()>& kernel);

// Ends the launch with a Fault that names the calling thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The number that an environment variable has, or else this one.
uint64_t setting(const char* variable, uint64_t otherwise);

char* dynamic_shared();
unsigned lane();
unsigned cluster_rank();

// Addresses as instructions see them: bytes from the start of the block's shared memory, which is
// only the dynamic one here. (Static arrays are one for all blocks of a cluster: kernels of
// clusters must not have them.) `shared_pointer` is the inverse, of this block or of one of its
// cluster.
uint32_t shared_address(const void* pointer);
char* shared_pointer(uint32_t address);
char* shared_pointer(uint32_t address, unsigned rank);
// What lies at that place in another block of the cluster.
void load_cluster(void* to, const void* place, size_t bytes, unsigned rank);
void check_aligned(const void* pointer, size_t bytes, const char* what);

// Where the lanes of `mask`, or all 128 threads of a warpgroup, meet. The last to come calls
// compute(what each lane brought); then all go on.
using Compute = void (*)(void** brought, uint32_t mask);
void meet_warp(uint32_t mask, const char* what, void* brought, Compute compute);
void meet_warpgroup(const char* what, void* brought, void (*compute)(void** brought));
// The same; what the last to come does comes before what the others do next.
void meet_warpgroup_in_order(const char* what, void* brought, void (*compute)(void** brought));

// The bits that lane `from` brought, and the votes of all lanes.
uint64_t shuffle_bits(const char* what, uint32_t mask, uint64_t bits, int from);
uint32_t ballot(const char* what, uint32_t mask, bool vote);

// Barriers of the block (bar.sync, bar.arrive) and of the cluster.
void barrier(unsigned id, unsigned threads, bool wait, const char* what);
void cluster_arrive(bool releases);
void cluster_wait();
// __syncthreads; the number of threads that voted for.
unsigned vote_barrier(bool vote);

// For ThreadSanitizer: an instruction of the kernel reads this.
#if defined(FASTMMD_EMULATION_RACES)
void reads(const void* pointer, size_t bytes);
#else
inline void reads(const void*, size_t) {}
#endif

// cp.async: copies, in groups, of the calling thread.
void copy_later(void* shared, const void* global, size_t bytes);
void commit_copies();
void wait_copies(size_t groups_in_flight);

// mbarrier, of this block or, for arrivals, of another of the cluster.
void mbarrier_init(uint64_t* bar, unsigned count);
void mbarrier_arrive(uint64_t* bar, uint32_t expected_bytes, unsigned rank);
void mbarrier_wait(uint64_t* bar, unsigned parity);
// A transfer that the barrier of block `rank` counts; done once nothing else in the cluster can
// go on and someone waits for it.
void transfer_later(uint64_t* bar, unsigned rank, uint32_t bytes, std::function<void()> copy);

// Tensor-core products of the calling thread's warpgroup: issued, and in committed groups.
struct Warpgroup {
  bool fenced = false;
  std::vector<std::function<void()>> issued;
  std::deque<std::vector<std::function<void()>>> groups;
};
Warpgroup& warpgroup();

}  // namespace emulation

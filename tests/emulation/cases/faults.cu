// Kernels with faults, which the emulator must report. With an argument: one by that name, which a
// sanitizer must report.
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/runtime.cuh"

using namespace fastmmd::cuda;

namespace {

int failures = 0;

void check(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok  " : "FAIL", what.c_str());
  failures += !good;
}

bool message_of(const std::string& expected, void (*kernel)(), unsigned threads,
                unsigned cluster = 1) {
  try {
    launch_cluster(kernel, cluster, threads, 1024, nullptr, cluster);
  } catch (const emulation::Fault& fault) {
    std::printf("     %s\n", fault.what());
    return std::string(fault.what()).find(expected) != std::string::npos;
  }
  return false;
}

// --- faults --------------------------------------------------------------------------------------

__global__ void miss_barrier() {
  if (threadIdx.x < 40) __syncthreads();
}
__global__ void miss_shuffle() {
  if (threadIdx.x % 2) __shfl_xor_sync(0xffffffffu, 1, 1);
}
__global__ void other_collective() {
  if (threadIdx.x % 2) __syncwarp();
  else __shfl_xor_sync(0xffffffffu, 1, 1);
}
__global__ void past_shared() {
  if (threadIdx.x == 0) dynamic_shared()[1024] = 1;
}
__global__ void misaligned() {
  uint32_t r[4];
  ptx::ldmatrix4(r, dynamic_shared() + 8);
}

void test_faults() {
  check(message_of("thread (40, 0, 0) and 23 more of its block wait for nothing", miss_barrier, 64),
        "threads that miss a barrier");
  check(message_of("deadlock", miss_shuffle, 32), "lanes that miss a shuffle");
  check(message_of("while lanes", other_collective, 32), "lanes at different collectives");
  check(message_of("byte 1024 of the 1024", past_shared, 32), "a write past shared memory");
  check(message_of("not a multiple of 16", misaligned, 32), "a misaligned address");
}

// Without the wait it reads what is not there.
__global__ void no_cp_async_wait(const float* row, float* sum) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  ptx::cp_async16(shared + threadIdx.x * 4, row + threadIdx.x * 4);
  ptx::cp_async_commit();
  __syncthreads();
  *sum += shared[threadIdx.x];
}

void test_missing_wait() {
  const std::vector<float> row(128);
  float sum = 0;
  launch(no_cp_async_wait, 1, 32, 512, nullptr, row.data(), &sum);
  check(sum != sum, "a missing cp.async wait");
}

__global__ void no_fence() {
  float d[32] = {};
  const uint64_t tile = ptx::wgmma::descriptor(dynamic_shared());
  ptx::wgmma_bf16<64>(d, tile, tile, false);
}
__global__ void no_wait() {
  float d[32] = {};
  const uint64_t tile = ptx::wgmma::descriptor(dynamic_shared());
  ptx::wgmma::fence();
  ptx::wgmma_bf16<64>(d, tile, tile, false);
  ptx::wgmma::commit();
}
__global__ void three_warps() { ptx::wgmma::fence(); }
__global__ void no_arrival() {
  uint64_t* bar = reinterpret_cast<uint64_t*>(dynamic_shared());
  if (threadIdx.x == 0) ptx::mbarrier::init(bar, 2);
  __syncthreads();
  if (threadIdx.x == 0) ptx::mbarrier::arrive(bar);
  ptx::mbarrier::wait(bar, 0);
}
__global__ void no_init() { ptx::mbarrier::arrive(reinterpret_cast<uint64_t*>(dynamic_shared())); }

void test_async_faults() {
  check(message_of("no wgmma.fence", no_fence, 128), "wgmma without a fence");
  check(message_of("before a wgmma was waited for", no_wait, 128), "wgmma that nobody waits for");
  check(message_of("a warpgroup of 128", three_warps, 96), "a warpgroup that is none");
  check(message_of("wait for an mbarrier", no_arrival, 32), "an mbarrier without its arrivals");
  check(message_of("not initialised", no_init, 32), "an mbarrier that was not initialised");
}

__global__ void no_cluster_arrival() { ptx::cluster_wait(); }
__global__ void two_cluster_arrivals() {
  ptx::cluster_arrive();
  ptx::cluster_arrive();
}
__global__ void missed_cluster_barrier() {
  if (ptx::cluster_rank() == 0) ptx::cluster_sync();
}
__global__ void no_such_rank() {
  ptx::cluster_sync();
  ptx::load_cluster(reinterpret_cast<float*>(dynamic_shared()), 2);
}
__global__ void misaligned_four() {
  ptx::cluster_sync();
  ptx::load_cluster(reinterpret_cast<float4*>(dynamic_shared() + 4), 1);
}

void test_cluster_faults() {
  check(message_of("without an arrival", no_cluster_arrival, 32, 2), "a wait without an arrival");
  check(message_of("two arrivals", two_cluster_arrivals, 32, 2), "arrivals without a wait");
  check(message_of("wait for the cluster barrier", missed_cluster_barrier, 32, 2),
        "a block that misses the cluster barrier");
  check(message_of("block 2 is not in the cluster", no_such_rank, 32, 2), "a rank that is none");
  check(message_of("a multiple of 16", misaligned_four, 32, 2), "a misaligned load of four");
}

// --- for ThreadSanitizer -------------------------------------------------------------------------

__global__ void shared_race(int* out) {
  int* shared = reinterpret_cast<int*>(dynamic_shared());
  shared[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = shared[threadIdx.x ^ 1];  // no __syncwarp
}
// Another block reads what this one writes again.
__global__ void cluster_race(float* out) {
  float* own = reinterpret_cast<float*>(dynamic_shared());
  own[threadIdx.x] = 1;
  ptx::cluster_sync();
  out[blockIdx.x * 32 + threadIdx.x] = ptx::load_cluster(own + threadIdx.x, blockIdx.x ^ 1);
  own[threadIdx.x] = 2;  // no cluster barrier before it
  ptx::cluster_sync();
}
__global__ void global_race(int* out) { *out = int(blockIdx.x); }

// The second row is fetched to where others may still read the first.
__global__ void reuse_race(const float* rows, float* out) {
  float* row = reinterpret_cast<float*>(dynamic_shared());
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    ptx::cp_async16(row + threadIdx.x * 4, rows + i * 128 + threadIdx.x * 4);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    sum += row[127 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

// wgmma reads what a thread of another warp has written, without a barrier between.
__global__ void wgmma_race(float* out) {
  uint32_t* tile = reinterpret_cast<uint32_t*>(dynamic_shared());
  for (int i = int(threadIdx.x); i < 64 * 32; i += 128) tile[i] = 0;
  ptx::fence_proxy_async();
  const uint64_t descriptor = ptx::wgmma::descriptor(tile);
  float d[32] = {};
  ptx::wgmma::fence();
  ptx::wgmma_bf16<64>(d, descriptor, descriptor, false);
  ptx::wgmma::commit();
  ptx::wgmma::wait<0>();
  out[threadIdx.x] = d[0];
}

// --- for AddressSanitizer ------------------------------------------------------------------------

__global__ void past_global(int* out) { out[threadIdx.x] = 0; }

int fault(const std::string& which) {
  int ints[32] = {};
  float floats[256] = {};
  if (which == "shared") launch(shared_race, 1, 32, 1024, nullptr, ints);
  else if (which == "cluster") launch_cluster(cluster_race, 2, 32, 1024, nullptr, 2, floats);
  else if (which == "global") launch(global_race, 2, 1, 0, nullptr, ints);
  else if (which == "reuse") launch(reuse_race, 1, 32, 1024, nullptr, floats, floats);
  else if (which == "wgmma") launch(wgmma_race, 1, 128, 8192, nullptr, floats);
  else if (which == "past-shared") launch(past_shared, 1, 32, 1024, nullptr);
  else if (which == "past-global") launch(past_global, 1, 64, 0, nullptr, ints);
  else return 2;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return fault(argv[1]);
  test_faults();
  test_missing_wait();
  test_async_faults();
  test_cluster_faults();
  return failures != 0;
}

// The emulator against plain loops. Prints what failed; the last line is the verdict.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/runtime.cuh"

using namespace fastmmd;
using namespace fastmmd::cuda;

namespace {

int failures = 0;

void check(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok  " : "FAIL", what.c_str());
  failures += !good;
}

// Values that every operand type holds exactly, so that products are exact in float.
std::vector<float> small_integers(size_t count, unsigned seed) {
  std::vector<float> values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = float(int(seed >> 24) % 17 - 8);
  }
  return values;
}

bool message_of(const std::string& expected, void (*kernel)(), unsigned threads) {
  try {
    launch(kernel, 1, threads, 1024, nullptr);
  } catch (const emulation::Fault& fault) {
    std::printf("     %s\n", fault.what());
    return std::string(fault.what()).find(expected) != std::string::npos;
  }
  return false;
}

// --- threads -------------------------------------------------------------------------------------

__global__ void sum_blocks(const float* x, double* total, int* done, int n) {
  __shared__ double part[32];
  double sum = 0;
  for (int i = int(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += int(gridDim.x * blockDim.x))
    sum += x[i];
  for (int delta = 16; delta; delta /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, delta);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0;
    for (int delta = 16; delta; delta /= 2) sum += __shfl_down_sync(0xffffffffu, sum, delta);
    if (threadIdx.x == 0) {
      atomicAdd(total, sum);
      atomicAdd(done, 1);
    }
  }
}

void test_sums() {
  const auto x = small_integers(5000, 1);
  double expected = 0, total = 0;
  for (const float value : x) expected += value;
  int done = 0;
  launch(sum_blocks, 7, 96, 0, nullptr, x.data(), &total, &done, 5000);
  check(total == expected && done == 7, "sums by shuffles and atomics");
}

__global__ void multiply_tiles(const float* a, const float* b, float* c, int n) {
  float (*tile)[16][16] = reinterpret_cast<float (*)[16][16]>(dynamic_shared());
  const int row = int(blockIdx.y * 16 + threadIdx.y), column = int(blockIdx.x * 16 + threadIdx.x);
  float sum = 0;
  for (int k = 0; k < n; k += 16) {
    tile[0][threadIdx.y][threadIdx.x] = a[row * n + k + int(threadIdx.x)];
    tile[1][threadIdx.y][threadIdx.x] = b[(k + int(threadIdx.y)) * n + column];
    __syncthreads();
#pragma unroll
    for (int l = 0; l < 16; ++l) sum = fmaf(tile[0][threadIdx.y][l], tile[1][l][threadIdx.x], sum);
    __syncthreads();
  }
  c[row * n + column] = sum;
}

void test_tiles() {
  const int n = 48;
  const auto a = small_integers(n * n, 2), b = small_integers(n * n, 3);
  std::vector<float> c(n * n);
  launch(multiply_tiles, dim3(3, 3), dim3(16, 16), 2048, nullptr, a.data(), b.data(), c.data(), n);
  bool good = true;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      float sum = 0;
      for (int k = 0; k < n; ++k) sum += a[i * n + k] * b[k * n + j];
      good &= sum == c[i * n + j];
    }
  check(good, "product by tiles in shared memory");
}

__global__ void half_warps(int* out) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
  int value = int(threadIdx.x);
  if (threadIdx.x % 32 < 16) {
    value = __shfl_sync(mask, value, 5);
  } else {
    value = __shfl_up_sync(mask, value, 1, 16) + (__any_sync(mask, threadIdx.x == 50) ? 1000 : 0);
  }
  __syncwarp();
  out[threadIdx.x] = value + int(__popc(__ballot_sync(~0u, threadIdx.x % 3 == 0))) * 10000;
}

void test_masks() {
  int out[64];
  launch(half_warps, 1, 64, 0, nullptr, out);
  bool good = true;
  for (int t = 0; t < 64; ++t) {
    int expected = 110000;
    if (t % 32 < 16) expected += t / 32 * 32 + 5;
    else expected += (t % 32 == 16 ? t : t - 1) + (t >= 32 ? 1000 : 0);
    good &= out[t] == expected;
  }
  check(good, "half warps apart");
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

// --- products of a warp --------------------------------------------------------------------------

enum class Kind { tf32, bf16, half };

// Both operands K-major: 16 x k and 8 x k (the columns of b), one warp, fragments by ldmatrix.
template <Kind kind>
__global__ void multiply_warp(const char* a, const char* b, float* c) {
  constexpr int row_bytes = 32;  // k elements
  char* shared = dynamic_shared();
  const int lane = int(threadIdx.x);
  ptx::cp_async16(shared + lane * 16, a + lane * 16);
  if (lane < 16) ptx::cp_async16(shared + 512 + lane * 16, b + lane * 16);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncwarp();
  uint32_t fa[4], fb[4];
  ptx::ldmatrix4(fa, shared + lane % 16 * row_bytes + lane / 16 * 16);
  ptx::ldmatrix4(fb, shared + 512 + lane % 8 * row_bytes + lane / 8 % 2 * 16);
  const uint32_t pair[2] = {fb[0], fb[1]};
  float d[4] = {1, 1, 1, 1};
  if constexpr (kind == Kind::tf32) ptx::mma_tf32(d, fa, pair);
  if constexpr (kind == Kind::bf16) ptx::mma_bf16(d, fa, pair);
  if constexpr (kind == Kind::half) ptx::mma_half(d, fa, pair);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// As bits of the operand type; tf32 with noise in the bits that the hardware does not read.
template <Kind kind>
std::vector<char> encode(const std::vector<float>& values) {
  std::vector<char> bytes;
  for (const float value : values) {
    if constexpr (kind == Kind::tf32) {
      const uint32_t bits = __float_as_uint(value) | 0x155;
      bytes.insert(bytes.end(), (const char*)&bits, (const char*)&bits + 4);
    } else {
      const uint16_t bits = kind == Kind::bf16 ? round_bf16(value) : round_half(value);
      bytes.insert(bytes.end(), (const char*)&bits, (const char*)&bits + 2);
    }
  }
  return bytes;
}

template <Kind kind>
void test_mma(const char* name) {
  constexpr int k = kind == Kind::tf32 ? 8 : 16;
  const auto a = small_integers(16 * k, 4), b = small_integers(8 * k, 5);
  const auto a_bytes = encode<kind>(a), b_bytes = encode<kind>(b);
  float c[16][8];
  launch(multiply_warp<kind>, 1, 32, 1024, nullptr, a_bytes.data(), b_bytes.data(), &c[0][0]);
  bool good = true;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 1;
      for (int l = 0; l < k; ++l) sum += a[i * k + l] * b[j * k + l];
      good &= sum == c[i][j];
    }
  check(good, std::string("ldmatrix and mma ") + name);
}

__global__ void transpose(const uint16_t* in, uint32_t* out) {
  uint32_t r[4];
  uint16_t* shared = reinterpret_cast<uint16_t*>(dynamic_shared());
  for (int i = 0; i < 8; ++i) shared[threadIdx.x * 8 + i] = in[threadIdx.x * 8 + i];
  __syncwarp();
  ptx::ldmatrix4_trans(r, shared + threadIdx.x * 8);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = r[i];
}

void test_transpose() {
  uint16_t in[4][8][8];
  uint32_t out[32][4];
  for (int i = 0; i < 256; ++i) in[i / 64][i / 8 % 8][i % 8] = uint16_t(i * 7);
  launch(transpose, 1, 32, 512, nullptr, &in[0][0][0], &out[0][0]);
  bool good = true;
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      good &= out[lane][i] ==
              (in[i][lane % 4 * 2][lane / 4] | uint32_t(in[i][lane % 4 * 2 + 1][lane / 4]) << 16);
  check(good, "ldmatrix.trans");
}

// Adds up rows that arrive through a ring of `stages`; without the wait it reads what is not there.
template <bool waits>
__global__ void sum_pipeline(const float* rows, float* sums, int count) {
  constexpr int stages = 3;
  float* ring = reinterpret_cast<float*>(dynamic_shared());
  const int t = int(threadIdx.x);
  auto fetch = [&](int row) {
    if (row < count) ptx::cp_async16(ring + row % stages * 128 + t * 4, rows + row * 128 + t * 4);
    ptx::cp_async_commit();
  };
  for (int row = 0; row < stages - 1; ++row) fetch(row);
  float sum[4] = {};
  for (int row = 0; row < count; ++row) {
    if (waits) ptx::cp_async_wait<stages - 2>();
    __syncthreads();
    fetch(row + stages - 1);
    for (int i = 0; i < 4; ++i) sum[i] += ring[row % stages * 128 + (t + 1) % 32 * 4 + i];
  }
  for (int i = 0; i < 4; ++i) sums[(t + 1) % 32 * 4 + i] = sum[i];
}

void test_pipeline() {
  const auto rows = small_integers(20 * 128, 6);
  float with[128], without[128];
  launch(sum_pipeline<true>, 1, 32, 3 * 512, nullptr, rows.data(), with, 20);
  launch(sum_pipeline<false>, 1, 32, 3 * 512, nullptr, rows.data(), without, 20);
  bool good = true, seen = true;
  for (int j = 0; j < 128; ++j) {
    float sum = 0;
    for (int i = 0; i < 20; ++i) sum += rows[i * 128 + j];
    good &= sum == with[j];
    seen &= without[j] != without[j];
  }
  check(good, "a pipeline of cp.async");
  check(seen, "a missing cp.async wait shows");
}

// --- products of a warpgroup ---------------------------------------------------------------------

constexpr int step_bytes = 128;  // of a row, one stage of the ring
constexpr int stages = 2;

constexpr int element_bytes(Kind kind) { return kind == Kind::tf32 ? 4 : 2; }
constexpr int step(Kind kind) { return step_bytes / element_bytes(kind); }

template <Kind kind, int N, bool mn_major_b, class A>
void wgmma_step(float (&d)[N / 2], const A& a, uint64_t b) {
  if constexpr (kind == Kind::tf32) ptx::wgmma_tf32<N>(d, a, b, true);
  if constexpr (kind == Kind::bf16) ptx::wgmma_bf16<N, mn_major_b>(d, a, b, true);
  if constexpr (kind == Kind::half) ptx::wgmma_half<N, mn_major_b>(d, a, b, true);
}

// c = a b with 64 rows of a to each block. Warpgroup 1 fills the ring by TMA, warpgroup 0 empties
// it. b is N x k (K-major) or k x N. In a cluster of 2 each block brings one half of b to both.
template <Kind kind, int N, bool from_registers, bool mn_major_b, bool pair>
__global__ void __launch_bounds__(256, 1)
    multiply_warpgroup(const __grid_constant__ TensorMap map_a,
                       const __grid_constant__ TensorMap map_b, const char* a, float* c, int k) {
  constexpr int a_bytes = 64 * step_bytes, b_bytes = N * step_bytes, stage = a_bytes + b_bytes;
  constexpr int tile_bytes = 64 * step_bytes;  // MN-major: 64 columns
  char* shared = dynamic_shared();
  uint64_t* full = reinterpret_cast<uint64_t*>(shared + stages * stage);
  uint64_t* empty = full + stages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      ptx::mbarrier::init(full + s, 1);
      ptx::mbarrier::init(empty + s, pair ? 2 : 1);
    }
    ptx::mbarrier::fence_init();
  }
  if (pair) ptx::cluster_sync();
  __syncthreads();
  const int row = int(blockIdx.x) * 64, rank = pair ? int(ptx::cluster_rank()) : 0;
  const int steps = k / step(kind), blocks = pair ? 2 : 1;

  if (ptx::warpgroup_index() == 1) {
    ptx::setmaxnreg_dec<40>();
    if (ptx::warpgroup_thread() == 0) {
      for (int i = 0; i < steps; ++i) {
        const int s = i % stages, x = i * step(kind);
        char* const to = shared + s * stage;
        ptx::mbarrier::wait(empty + s, (i / stages + 1) % 2);
        ptx::mbarrier::arrive_expect(full + s, stage);
        ptx::tma_load_2d(to, &map_a, full + s, x, row);
        if (mn_major_b) {
          for (int tile = rank; tile < N / 64; tile += blocks)
            ptx::tma_load_2d_multicast(to + a_bytes + tile * tile_bytes, &map_b, full + s,
                                       tile * 64, x, uint16_t((1 << blocks) - 1));
        } else {
          ptx::tma_load_2d_multicast(to + a_bytes + rank * b_bytes / blocks, &map_b, full + s, x,
                                     rank * N / blocks, uint16_t((1 << blocks) - 1));
        }
      }
    }
  } else {
    ptx::setmaxnreg_inc<232>();
    const int t = ptx::warpgroup_thread(), g = t % 32 / 4, q = t % 4;
    float d[N / 2];
    for (float& value : d) value = 1;
    for (int i = 0; i < steps; ++i) {
      const int s = i % stages;
      ptx::mbarrier::wait(full + s, i / stages % 2);
      const uint64_t da = ptx::wgmma::descriptor(shared + s * stage);
      const uint64_t db =
          ptx::wgmma::descriptor(shared + s * stage + a_bytes, 1024, mn_major_b ? tile_bytes : 16);
      uint32_t fragments[4][4];
      for (int l = 0; l < 4; ++l)
        for (int r = 0; r < 4; ++r) {
          const char* at = a + (row + t / 32 * 16 + g + r % 2 * 8) * k * element_bytes(kind) +
                           (i * 4 + l) * 32 + r / 2 * 16 + q * 4;
          memcpy(&fragments[l][r], at, 4);
        }
      ptx::wgmma::hold(d);
      ptx::wgmma::fence();
      for (int l = 0; l < 4; ++l) {
        const uint64_t b = ptx::wgmma::advance(db, mn_major_b ? l * 2048 : l * 32);
        if constexpr (from_registers) wgmma_step<kind, N, mn_major_b>(d, fragments[l], b);
        else wgmma_step<kind, N, mn_major_b>(d, ptx::wgmma::advance(da, l * 32), b);
      }
      ptx::wgmma::commit();
      ptx::wgmma::wait<0>();
      ptx::wgmma::hold(d);
      ptx::named_barrier_sync(1, 128);
      if (t == 0)
        for (int block = 0; block < blocks; ++block)
          ptx::mbarrier::arrive_cluster(empty + s, block);
    }
    for (int e = 0; e < N / 2; ++e)
      c[(row + t / 32 * 16 + g + e % 4 / 2 * 8) * N + e / 4 * 8 + q * 2 + e % 2] = d[e];
  }
  if (pair) ptx::cluster_sync();
}

template <Kind kind, int N, bool from_registers, bool mn_major_b, bool pair>
void test_wgmma(const char* name) {
  const int k = 5 * step(kind), rows = 128, cut = mn_major_b ? 0 : 3;
  const auto a = small_integers(size_t(rows * k), 7), b = small_integers(size_t(N * k), 8);
  // The tensor maps need addresses of 16 bytes: vectors have them.
  const auto a_bytes = encode<kind>(a), b_bytes = encode<kind>(b);
  TensorMap map_a, map_b;
  const int bytes = element_bytes(kind);
  const bool mapped = tensor_map_2d(&map_a, a_bytes.data(), bytes, rows, k, 64) == cudaSuccess &&
                      (mn_major_b ? tensor_map_2d(&map_b, b_bytes.data(), bytes, k, N, 64)
                                  : tensor_map_2d(&map_b, b_bytes.data(), bytes, N - cut, k,
                                                  pair ? N / 2 : N)) == cudaSuccess;
  std::vector<float> c(size_t(rows) * N);
  const size_t shared = size_t(stages) * (64 + N) * step_bytes + 64;
  launch_cluster(multiply_warpgroup<kind, N, from_registers, mn_major_b, pair>, 2, 256, shared,
                 nullptr, pair ? 2 : 1, map_a, map_b, a_bytes.data(), c.data(), k);
  bool good = mapped;
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < N; ++j) {
      float sum = 1;
      if (j < N - cut)
        for (int l = 0; l < k; ++l)
          sum += a[i * k + l] * (mn_major_b ? b[l * N + j] : b[j * k + l]);
      good &= sum == c[i * N + j];
    }
  check(good, std::string("TMA and wgmma ") + name);
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

// --- races: each of these must be reported by ThreadSanitizer
// ----------------------------------------

__global__ void shared_race(int* out) {
  int* shared = reinterpret_cast<int*>(dynamic_shared());
  shared[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = shared[threadIdx.x ^ 1];  // no __syncwarp
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

int race(const std::string& which) {
  int ints[32] = {};
  float floats[256] = {};
  if (which == "shared") launch(shared_race, 1, 32, 1024, nullptr, ints);
  else if (which == "global") launch(global_race, 2, 1, 0, nullptr, ints);
  else if (which == "reuse") launch(reuse_race, 1, 32, 1024, nullptr, floats, floats);
  else if (which == "wgmma") launch(wgmma_race, 1, 128, 8192, nullptr, floats);
  else return 2;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return race(argv[1]);
  test_sums();
  test_tiles();
  test_masks();
  test_faults();
  test_mma<Kind::tf32>("tf32");
  test_mma<Kind::bf16>("bf16");
  test_mma<Kind::half>("half");
  test_transpose();
  test_pipeline();
  test_wgmma<Kind::tf32, 64, false, false, false>("tf32");
  test_wgmma<Kind::tf32, 256, true, false, false>("tf32, A in registers");
  test_wgmma<Kind::bf16, 256, false, false, false>("bf16");
  test_wgmma<Kind::bf16, 128, false, true, false>("bf16, B MN-major");
  test_wgmma<Kind::bf16, 64, true, true, false>("bf16, A in registers, B MN-major");
  test_wgmma<Kind::half, 128, false, false, true>("half, in a cluster");
  test_wgmma<Kind::half, 256, true, true, true>("half, in a cluster, A in registers, B MN-major");
  test_async_faults();
  std::printf(failures ? "%d failed\n" : "passed\n", failures);
  return failures != 0;
}

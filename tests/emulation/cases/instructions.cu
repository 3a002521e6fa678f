// What the instructions of kernels do, against plain loops: on the emulator, and the same on a GPU.
//
// Prints each result; the last line is the verdict. For a GPU:
//   nvcc -std=c++17 -arch=sm_90a -I csrc tests/emulation/cases/instructions.cu
//   csrc/cuda/tensor_map.cu
#include <algorithm>
#include <cmath>
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

template <class To, class From>
To bits_of(From value) {
  To bits;
  static_assert(sizeof bits == sizeof value);
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Memory of the device with these contents.
template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : size_(values.size()) {
    cudaMalloc(&data_, size_ * sizeof(T));
    cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyDefault);
  }
  explicit Buffer(size_t size) : Buffer(std::vector<T>(size)) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }

  T* data() const { return static_cast<T*>(data_); }
  std::vector<T> values() const {
    std::vector<T> values(size_);
    if (cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDefault) != cudaSuccess)
      check(false, cudaGetErrorString(cudaGetLastError()));
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t size_;
};

// --- scalars -------------------------------------------------------------------------------------

__global__ void exponentials(const float* x, float* y) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  y[i] = DeviceMath<float>::exp(x[i]);
}

void test_exponentials() {
  std::vector<float> x(1 << 14);
  for (size_t i = 0; i < x.size(); ++i) x[i] = -float(i) * (100.0f / float(x.size()));
  x[1] = -INFINITY, x[2] = NAN, x[3] = -1e-30f, x[4] = -3e38f;
  const Buffer<float> of_x(x), of_y(x.size());
  launch(exponentials, unsigned(x.size() / 128), 128, 0, nullptr, of_x.data(), of_y.data());
  const auto y = of_y.values();
  double worst = 0;
  for (size_t i = 5; i < x.size(); ++i) {
    const double exact = std::exp(double(x[i]));
    if (exact < 1.2e-38) worst = std::max(worst, y[i] == 0 || exact > 1.17e-38 ? 0.0 : 1e9);
    else worst = std::max(worst, std::abs(y[i] - exact) / std::ldexp(1.0, std::ilogb(exact) - 23));
  }
  char text[64];
  std::snprintf(text, sizeof text, "exp, worst error %.2f ulp", worst);
  check(worst < 2 && y[0] == 1 && y[1] == 0 && y[2] != y[2] && y[3] == 1 && y[4] == 0, text);
}

__global__ void roundings(const float* x, uint32_t* y) {
  y[0] = round_bf16(x[0]) | uint32_t(round_half(x[0])) << 16;
  y[1] = __float_as_uint(round_tf32(x[0]));
  y[2] = ptx::as_tf32(x[0]);
  y[3] = ptx::pack_bf16(x[0], x[1]);
  y[4] = ptx::pack_half(x[0], x[1]);
  y[5] = __float_as_uint(from_bf16(0xC049)) ^ __float_as_uint(from_half(0xC248));
  uint32_t hi, lo;
  ptx::split_tf32(x[2], hi, lo);
  y[6] = hi;
  y[7] = lo;
}

void test_roundings() {
  // 1 + 2^-8 and 1 + 2^-11 lie half way for bfloat16 and for tf32 and half.
  const float near_one = 1 + std::ldexp(1.0f, -8) + std::ldexp(1.0f, -11);
  const Buffer<float> x(std::vector<float>{near_one, -2.5f, 3.14159265f});
  const Buffer<uint32_t> of_y(8);
  launch(roundings, 1, 1, 0, nullptr, x.data(), of_y.data());
  const auto y = of_y.values();
  const float hi = bits_of<float>(y[6]), lo = bits_of<float>(y[7]);
  check(y[0] == (0x3F81u | 0x3C04u << 16) && y[1] == 0x3F80A000u && y[2] == y[1] &&
            y[3] == (0x3F81u | 0xC020u << 16) && y[4] == (0x3C04u | 0xC100u << 16) &&
            y[5] == (0xC0490000u ^ 0xC0490000u) && (y[6] & 0x1fff) == 0 && (y[7] & 0x1fff) == 0 &&
            std::abs(double(hi) + lo - 3.14159265f) < 1e-6,
        "roundings");
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
  double expected = 0;
  for (const float value : x) expected += value;
  const Buffer<float> values(x);
  const Buffer<double> total(1);
  const Buffer<int> done(1);
  launch(sum_blocks, 7, 96, 0, nullptr, values.data(), total.data(), done.data(), 5000);
  check(total.values()[0] == expected && done.values()[0] == 7, "sums by shuffles and atomics");
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
  const Buffer<float> of_a(a), of_b(b), of_c(n * n);
  launch(multiply_tiles, dim3(3, 3), dim3(16, 16), 2048, nullptr, of_a.data(), of_b.data(),
         of_c.data(), n);
  const auto c = of_c.values();
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
  const Buffer<int> buffer(64);
  launch(half_warps, 1, 64, 0, nullptr, buffer.data());
  const auto out = buffer.values();
  bool good = true;
  for (int t = 0; t < 64; ++t) {
    int expected = 110000;
    if (t % 32 < 16) expected += t / 32 * 32 + 5;
    else expected += (t % 32 == 16 ? t : t - 1) + (t >= 32 ? 1000 : 0);
    good &= out[t] == expected;
  }
  check(good, "half warps apart");
}

// --- clusters ------------------------------------------------------------------------------------

// Each thread adds up what its place holds in all blocks of its cluster, twice.
template <int blocks>
__global__ void sum_cluster(const float4* x, float4* sums) {
  float4* const own = reinterpret_cast<float4*>(dynamic_shared());
  const int t = int(threadIdx.x), at = int(blockIdx.x * blockDim.x) + t;
  for (int round = 0; round < 2; ++round) {
    own[t] = x[at];
    if (round) own[t].x = float(ptx::cluster_rank());
    ptx::cluster_sync();
    float4 sum{0, 0, 0, 0};
    for (int rank = 0; rank < blocks; ++rank) {
      const float4 other = ptx::load_cluster(own + t, rank);
      sum.x += ptx::load_cluster(&own[t].x, rank);
      sum.y = 2 * sum.y + other.y, sum.z += other.z, sum.w += other.w;
    }
    ptx::cluster_arrive_relaxed();
    sums[round * int(gridDim.x * blockDim.x) + at] = sum;
    ptx::cluster_wait();
    ptx::cluster_sync();  // all that was read may be written to
  }
}

template <int blocks>
void test_cluster() {
  constexpr int threads = 64, clusters = 3, count = clusters * blocks * threads;
  const auto values = small_integers(size_t(count) * 4, 9);
  std::vector<float4> x(count);
  std::memcpy(x.data(), values.data(), count * sizeof(float4));
  const Buffer<float4> of_x(x), of_sums(size_t(count) * 2);
  const bool launched = launch_cluster(sum_cluster<blocks>, clusters * blocks, threads, 40 << 10,
                                       nullptr, blocks, of_x.data(), of_sums.data()) == cudaSuccess;
  const auto sums = of_sums.values();
  bool good = launched;
  for (int round = 0; round < 2; ++round)
    for (int i = 0; i < count; ++i) {
      const int first = i / (blocks * threads) * blocks * threads + i % threads;
      float4 sum{0, 0, 0, 0};
      for (int rank = 0; rank < blocks; ++rank) {
        const float4 other = x[size_t(first + rank * threads)];
        sum.x += round ? float(rank) : other.x;
        sum.y = 2 * sum.y + other.y, sum.z += other.z, sum.w += other.w;
      }
      const float4 found = sums[size_t(round * count + i)];
      good &= found.x == sum.x && found.y == sum.y && found.z == sum.z && found.w == sum.w;
    }
  check(good, "sums over a cluster of " + std::to_string(blocks));
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
      const uint32_t bits = bits_of<uint32_t>(value) | 0x155;
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
  const Buffer<char> of_a(encode<kind>(a)), of_b(encode<kind>(b));
  const Buffer<float> of_c(16 * 8);
  launch(multiply_warp<kind>, 1, 32, 1024, nullptr, of_a.data(), of_b.data(), of_c.data());
  const auto c = of_c.values();
  bool good = true;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 1;
      for (int l = 0; l < k; ++l) sum += a[i * k + l] * b[j * k + l];
      good &= sum == c[i * 8 + j];
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
  std::vector<uint16_t> in(4 * 8 * 8);
  for (int i = 0; i < 256; ++i) in[i] = uint16_t(i * 7);
  const Buffer<uint16_t> of_in(in);
  const Buffer<uint32_t> of_out(32 * 4);
  launch(transpose, 1, 32, 512, nullptr, of_in.data(), of_out.data());
  const auto out = of_out.values();
  bool good = true;
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      good &= out[lane * 4 + i] == (in[i * 64 + lane % 4 * 16 + lane / 4] |
                                    uint32_t(in[i * 64 + lane % 4 * 16 + 8 + lane / 4]) << 16);
  check(good, "ldmatrix.trans");
}

// Adds up rows that arrive through a ring of `stages`.
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
    ptx::cp_async_wait<stages - 2>();
    __syncthreads();
    fetch(row + stages - 1);
    for (int i = 0; i < 4; ++i) sum[i] += ring[row % stages * 128 + (t + 1) % 32 * 4 + i];
  }
  for (int i = 0; i < 4; ++i) sums[(t + 1) % 32 * 4 + i] = sum[i];
}

void test_pipeline() {
  const auto rows = small_integers(20 * 128, 6);
  const Buffer<float> of_rows(rows), of_sums(128);
  launch(sum_pipeline, 1, 32, 3 * 512, nullptr, of_rows.data(), of_sums.data(), 20);
  const auto sums = of_sums.values();
  bool good = true;
  for (int j = 0; j < 128; ++j) {
    float sum = 0;
    for (int i = 0; i < 20; ++i) sum += rows[i * 128 + j];
    good &= sum == sums[j];
  }
  check(good, "a pipeline of cp.async");
}

// --- products of a warpgroup ---------------------------------------------------------------------

constexpr int step_bytes = 128;  // of a row, one stage of the ring
constexpr int stages = 2;

template <Kind kind>
constexpr int element_bytes = kind == Kind::tf32 ? 4 : 2;
template <Kind kind>
constexpr int step = step_bytes / element_bytes<kind>;

template <Kind kind, int N, bool mn_major_b, class A>
__device__ __forceinline__ void wgmma_step(float (&d)[N / 2], const A& a, uint64_t b) {
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
  const int steps = k / step<kind>, blocks = pair ? 2 : 1;

  if (ptx::warpgroup_index() == 1) {
    ptx::setmaxnreg_dec<40>();
    if (ptx::warpgroup_thread() == 0) {
      for (int i = 0; i < steps; ++i) {
        const int s = i % stages, x = i * step<kind>;
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
          const char* at = a + (row + t / 32 * 16 + g + r % 2 * 8) * k * element_bytes<kind> +
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
  const int k = 5 * step<kind>, rows = 128, cut = mn_major_b ? 0 : 3;
  const auto a = small_integers(size_t(rows * k), 7), b = small_integers(size_t(N * k), 8);
  const Buffer<char> of_a(encode<kind>(a)), of_b(encode<kind>(b));
  const Buffer<float> of_c(size_t(rows) * N);
  TensorMap map_a, map_b;
  const int bytes = element_bytes<kind>, b_rows = mn_major_b ? k : N - cut;
  const int box_rows = mn_major_b ? 64 : pair ? N / 2 : N;
  const bool mapped = tensor_map_2d(&map_a, of_a.data(), bytes, rows, k, 64) == cudaSuccess &&
                      tensor_map_2d(&map_b, of_b.data(), bytes, b_rows, mn_major_b ? N : k,
                                    box_rows) == cudaSuccess;
  const size_t shared = size_t(stages) * (64 + N) * step_bytes + 64;
  launch_cluster(multiply_warpgroup<kind, N, from_registers, mn_major_b, pair>, 2, 256, shared,
                 nullptr, pair ? 2 : 1, map_a, map_b, of_a.data(), of_c.data(), k);
  const auto c = of_c.values();
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

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IONBF, 0);  // what hangs is to be known
  test_exponentials();
  test_roundings();
  test_sums();
  test_tiles();
  test_masks();
  test_mma<Kind::tf32>("tf32");
  test_mma<Kind::bf16>("bf16");
  test_mma<Kind::half>("half");
  test_transpose();
  test_pipeline();
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  if (major >= 9) {
    test_cluster<1>();
    test_cluster<2>();
    test_cluster<4>();
    test_cluster<8>();
  }
  if (major == 9) {
    test_wgmma<Kind::tf32, 64, false, false, false>("tf32");
    test_wgmma<Kind::tf32, 256, true, false, false>("tf32, A in registers");
    test_wgmma<Kind::bf16, 256, false, false, false>("bf16");
    test_wgmma<Kind::bf16, 128, false, true, false>("bf16, B MN-major");
    test_wgmma<Kind::bf16, 64, true, true, false>("bf16, A in registers, B MN-major");
    test_wgmma<Kind::half, 128, false, false, true>("half, in a cluster");
    test_wgmma<Kind::half, 256, true, true, true>("half, in a cluster, A in registers, MN-major");
  }
  if (failures) std::printf("%d failed\n", failures);
  else std::printf("passed\n");
  return failures != 0;
}

// Stand-in for csrc/cuda/ptx.cuh: the same functions, done by the emulator.
#pragma once

#include "cuda/tensor_map.h"
#include "intrinsics.h"

namespace fastmmd::cuda::ptx {

// --- scalars -------------------------------------------------------------------------------------

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
inline float sqrt_approx(float x) { return std::sqrt(x); }
inline float sin_approx(float x) { return std::sin(x); }
inline float cos_approx(float x) { return std::cos(x); }
inline float max_nan(float a, float b) { return a != a ? a : b != b ? b : a < b ? b : a; }

inline uint16_t bf16_bits(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float bf16_value(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }
inline uint16_t half_bits(float x) { return std::bit_cast<uint16_t>(static_cast<_Float16>(x)); }
inline float half_value(uint16_t bits) { return float(std::bit_cast<_Float16>(bits)); }
inline float tf32_value(uint32_t bits) { return __uint_as_float(bits & ~0x1fffu); }

inline uint32_t pack_bf16(float low, float high) {
  return bf16_bits(low) | uint32_t(bf16_bits(high)) << 16;
}
inline uint32_t pack_half(float low, float high) {
  return half_bits(low) | uint32_t(half_bits(high)) << 16;
}
inline uint32_t as_tf32(float x) {
  return std::isfinite(x) ? (__float_as_uint(x) + 0x1000u) & ~0x1fffu : __float_as_uint(x);
}
inline void split_tf32(float x, uint32_t& hi, uint32_t& lo) {
  hi = as_tf32(x);
  lo = as_tf32(x - __uint_as_float(hi));
}
inline uint32_t shared_address(const void* pointer) { return emulation::shared_address(pointer); }

inline void store16(void* global, uint4 words) {
  emulation::check_aligned(global, 16, "a store of 16 bytes");
  std::memcpy(global, &words, 16);
}

// --- copies --------------------------------------------------------------------------------------

inline void cp_async16(void* shared, const void* global) {
  emulation::copy_later(shared, global, 16);
}
inline void cp_async_commit() { emulation::commit_copies(); }
template <int N>
void cp_async_wait() {
  emulation::wait_copies(N);
}

// --- products of a warp --------------------------------------------------------------------------

void ldmatrix4(uint32_t (&r)[4], const void* shared_row);
void ldmatrix4_trans(uint32_t (&r)[4], const void* shared_row);
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// --- roles of warps ------------------------------------------------------------------------------

inline void named_barrier_sync(int id, int threads) {
  emulation::barrier(unsigned(id), unsigned(threads), true, "a named barrier");
}
inline int warpgroup_index() { return int(threadIdx.x / 128); }
inline int warpgroup_thread() { return int(threadIdx.x % 128); }
inline int thread_of_branch() { return int(threadIdx.x); }
template <int N>
void setmaxnreg_inc() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
}
template <int N>
void setmaxnreg_dec() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
}

// --- mbarrier ------------------------------------------------------------------------------------

namespace mbarrier {

inline void init(uint64_t* bar, uint32_t count) { emulation::mbarrier_init(bar, count); }
inline void fence_init() {}
inline void arrive(uint64_t* bar) { emulation::mbarrier_arrive(bar, 0, emulation::cluster_rank()); }
inline void arrive_cluster(uint64_t* bar, uint32_t rank) {
  emulation::mbarrier_arrive(bar, 0, rank);
}
inline void arrive_expect(uint64_t* bar, uint32_t bytes) {
  emulation::mbarrier_arrive(bar, bytes, emulation::cluster_rank());
}
inline bool try_wait(uint64_t* bar, uint32_t parity) {
  emulation::mbarrier_wait(bar, parity);
  return true;
}
inline void wait(uint64_t* bar, uint32_t parity) { emulation::mbarrier_wait(bar, parity); }

}  // namespace mbarrier

// --- clusters and TMA ----------------------------------------------------------------------------

inline uint32_t cluster_rank() { return emulation::cluster_rank(); }
inline void cluster_arrive() { emulation::cluster_arrive(true); }
inline void cluster_arrive_relaxed() { emulation::cluster_arrive(false); }
inline void cluster_wait() { emulation::cluster_wait(); }
inline void cluster_sync() { cluster_arrive(), cluster_wait(); }
template <class T>
T load_cluster(const T* shared, uint32_t rank) {
  T x;
  emulation::load_cluster(&x, shared, sizeof x, rank);
  return x;
}
inline void fence_proxy_async() {}
inline void prefetch_tensor_map(const TensorMap*) {}
void tma_load_2d_multicast(void* shared, const TensorMap* map, uint64_t* bar, int x, int y,
                           uint16_t blocks);
inline void tma_load_2d(void* shared, const TensorMap* map, uint64_t* bar, int x, int y) {
  tma_load_2d_multicast(shared, map, bar, x, y, uint16_t(1u << emulation::cluster_rank()));
}

// --- products of a warpgroup ---------------------------------------------------------------------

namespace wgmma {

void fence();
void commit();
void wait_groups(size_t in_flight);
template <int N>
void wait() {
  wait_groups(N);
}
template <int K>
void hold(float (&)[K]) {}

uint64_t descriptor(const void* shared, uint32_t stride_bytes = 1024, uint32_t leading_bytes = 16);
inline uint64_t advance(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

enum class Type { tf32, bf16, half };

// d of 64 x n; a from registers where they are given, else from the descriptor.
void product(Type type, int n, float* d, uint64_t a, const uint32_t* registers, uint64_t b,
             bool accumulate, bool mn_major_b);

}  // namespace wgmma

template <int N, bool mn_major_b = false>
void wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  wgmma::product(wgmma::Type::bf16, N, d, a, nullptr, b, accumulate, mn_major_b);
}
template <int N, bool mn_major_b = false>
void wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  wgmma::product(wgmma::Type::bf16, N, d, 0, a, b, accumulate, mn_major_b);
}
template <int N, bool mn_major_b = false>
void wgmma_half(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  wgmma::product(wgmma::Type::half, N, d, a, nullptr, b, accumulate, mn_major_b);
}
template <int N, bool mn_major_b = false>
void wgmma_half(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  wgmma::product(wgmma::Type::half, N, d, 0, a, b, accumulate, mn_major_b);
}
template <int N>
void wgmma_tf32(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  wgmma::product(wgmma::Type::tf32, N, d, a, nullptr, b, accumulate, false);
}
template <int N>
void wgmma_tf32(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  wgmma::product(wgmma::Type::tf32, N, d, 0, a, b, accumulate, false);
}

}  // namespace fastmmd::cuda::ptx

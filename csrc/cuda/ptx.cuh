// The instructions that CUDA C++ has no name for, one small typed function each.
//
// Every function exists for every target, so that templates compile everywhere; where the target
// lacks the instruction it traps. All lanes of a warp, for wgmma all four warps of a warpgroup,
// reach a collective together. Layouts of fragments and descriptors: PTX ISA, "Matrix fragments",
// "Shared memory matrix layout".
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/tensor_map.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define FASTMMD_SM80(...) asm volatile(__VA_ARGS__)
#else
#define FASTMMD_SM80(...) __trap()
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define FASTMMD_SM90(...) asm volatile(__VA_ARGS__)
#else
#define FASTMMD_SM90(...) __trap()
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FASTMMD_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define FASTMMD_SM90A(...) __trap()
#endif
#define FASTMMD_PTX __device__ __forceinline__

namespace fastmmd::cuda::ptx {

// --- scalars (any target) ------------------------------------------------------------------------

#define FASTMMD_APPROX(NAME, INSTRUCTION)                   \
  FASTMMD_PTX float NAME(float x) {                         \
    float y;                                                \
    asm(INSTRUCTION ".ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); \
    return y;                                               \
  }
// 2^x, relative error 2^-22; subnormal results are 0.
FASTMMD_APPROX(exp2_approx, "ex2.approx")
// sqrt(x), relative error 2^-23; subnormal x is 0.
FASTMMD_APPROX(sqrt_approx, "sqrt.approx")
// sin(x) and cos(x), absolute error 2^-20.9 for |x| <= pi.
FASTMMD_APPROX(sin_approx, "sin.approx")
FASTMMD_APPROX(cos_approx, "cos.approx")
#undef FASTMMD_APPROX

// The greater of two; NaN if one is NaN, unlike fmaxf. Before sm_80 if a is: a NaN in b loses.
FASTMMD_PTX float max_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return a < b ? b : a;
#endif
}

// Two floats, rounded to nearest, in one register: `low` is the element with the lower index.
FASTMMD_PTX uint32_t pack_bf16(float low, float high) {
  uint32_t packed = 0;
  FASTMMD_SM80("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
FASTMMD_PTX uint32_t pack_half(float low, float high) {
  uint32_t packed = 0;
  FASTMMD_SM80("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// To the nearest tf32, ties away from zero, as a register of mma.
FASTMMD_PTX uint32_t as_tf32(float x) {
  uint32_t y = 0;
  FASTMMD_SM80("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// x = hi + lo up to 2^-22: the products hi hi, hi lo, lo hi have nearly the accuracy of float32.
FASTMMD_PTX void split_tf32(float x, uint32_t& hi, uint32_t& lo) {
  hi = as_tf32(x);
  lo = as_tf32(x - __uint_as_float(hi));
}

// An address in the window of shared memory, as instructions take it.
FASTMMD_PTX uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Stores 16 bytes at once, to an address that is a multiple of 16.
FASTMMD_PTX void store16(void* global, uint4 words) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(global)),
               "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

// --- copies to shared memory behind the back of the thread (sm_80) -------------------------------

// 16 bytes, both addresses multiples of 16.
FASTMMD_PTX void cp_async16(void* shared, const void* global) {
  FASTMMD_SM80("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)) : "memory");
}

// Makes a group of what this thread has issued since the last one.
FASTMMD_PTX void cp_async_commit() { FASTMMD_SM80("cp.async.commit_group;" :: : "memory"); }

// Waits until at most N groups of this thread are in flight. Others see the data after a barrier.
template <int N>
FASTMMD_PTX void cp_async_wait() {
  FASTMMD_SM80("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// --- products of a warp --------------------------------------------------------------------------

// Four 8 x 8 matrices of 16-bit elements (sm_75); lane 8 i + r brings the address of row r of
// matrix i, 16 bytes; r[i] is the lane's share of matrix i: row lane / 4, columns 2 (lane % 4),
// + 1.
FASTMMD_PTX void ldmatrix4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// The same, of the transposed matrices: rows 2 (lane % 4), + 1, column lane / 4.
FASTMMD_PTX void ldmatrix4_trans(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// c += a b, 16 x 8 x 8, tf32 (sm_80). With g = lane / 4, t = lane % 4:
//   a: (g, t) (g + 8, t) (g, t + 4) (g + 8, t + 4)    b: (t, g) (t + 4, g)
//   c: (g, 2t) (g, 2t + 1) (g + 8, 2t) (g + 8, 2t + 1)
FASTMMD_PTX void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  FASTMMD_SM80(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(c[0]),
      "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
      "r"(b[1]));
}

// c += a b, 16 x 8 x 16 (sm_80); c as above, a register holds the column of the lower 16 bits and
// the next (of b: row):
//   a: (g, 2t) (g + 8, 2t) (g, 2t + 8) (g + 8, 2t + 8)    b: (2t, g) (2t + 8, g)
#define FASTMMD_MMA16(NAME, TYPES)                                                           \
  FASTMMD_PTX void NAME(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {     \
    FASTMMD_SM80(                                                                            \
        "mma.sync.aligned.m16n8k16.row.col.f32." TYPES                                       \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(c[0]), \
        "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),     \
        "r"(b[0]), "r"(b[1]));                                                               \
  }
FASTMMD_MMA16(mma_bf16, "bf16.bf16")
FASTMMD_MMA16(mma_half, "f16.f16")
#undef FASTMMD_MMA16

// --- roles of warps ------------------------------------------------------------------------------

// Barrier `id` (1 to 15; 0 is __syncthreads) for `threads` threads, a multiple of 32.
FASTMMD_PTX void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The warpgroup of the thread and the thread's place in it, known to be the same in all its lanes.
FASTMMD_PTX int warpgroup_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0);
}
FASTMMD_PTX int warpgroup_thread() { return static_cast<int>(threadIdx.x % 128); }

// threadIdx.x. What is worked out from it stays in the branch that asks: no register of a loop
// around it holds it.
FASTMMD_PTX int thread_of_branch() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// Gives the warpgroup more, or takes from it all but, N registers a thread (sm_90a; N % 8 == 0).
// Ignored unless the kernel has __launch_bounds__ with a number of blocks.
template <int N>
FASTMMD_PTX void setmaxnreg_inc() {
  FASTMMD_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
FASTMMD_PTX void setmaxnreg_dec() {
  FASTMMD_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// --- mbarrier (sm_90) ----------------------------------------------------------------------------
//
// A barrier in shared memory that counts arrivals and bytes; its phases alternate between parity 0,
// the first, and 1. A phase ends when all of `count` have arrived and all bytes they expected have.

namespace mbarrier {

FASTMMD_PTX void init(uint64_t* bar, uint32_t count) {
  FASTMMD_SM90("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)),
               "r"(count) : "memory");
}

// After init and before a __syncthreads or cluster barrier: makes the barriers known to TMA and to
// the cluster.
FASTMMD_PTX void fence_init() {
  FASTMMD_SM90("fence.mbarrier_init.release.cluster;" :: : "memory");
}

FASTMMD_PTX void arrive(uint64_t* bar) {
  FASTMMD_SM90("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

// The same on the barrier at this place in block `rank` of the cluster.
FASTMMD_PTX void arrive_cluster(uint64_t* bar, uint32_t rank) {
  FASTMMD_SM90(
      "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;"
      " mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote]; }" ::"r"(
          shared_address(bar)),
      "r"(rank) : "memory");
}

// Arrives, and lets the phase wait for that many bytes of TMA.
FASTMMD_PTX void arrive_expect(uint64_t* bar, uint32_t bytes) {
  FASTMMD_SM90("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)),
               "r"(bytes) : "memory");
}

// True if the phase of this parity has ended; may wait a while for it.
FASTMMD_PTX bool try_wait(uint64_t* bar, uint32_t parity) {
  uint32_t ended = 1;
  FASTMMD_SM90(
      "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
      " selp.u32 %0, 1, 0, p; }" : "=r"(ended) : "r"(shared_address(bar)),
      "r"(parity) : "memory");
  return ended != 0;
}

// Waits for the end of the phase of this parity; of a new barrier, parity 1 counts as ended.
FASTMMD_PTX void wait(uint64_t* bar, uint32_t parity) {
  while (!try_wait(bar, parity)) {
  }
}

}  // namespace mbarrier

// --- clusters and TMA (sm_90) --------------------------------------------------------------------

FASTMMD_PTX uint32_t cluster_rank() {
  uint32_t rank = 0;
  FASTMMD_SM90("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// A barrier of all threads of the cluster, in two halves: each thread calls them in turn. What came
// before `arrive` is seen by all after `wait`; before `arrive_relaxed` only what was read counts,
// as having been read.
FASTMMD_PTX void cluster_arrive() {
  FASTMMD_SM90("barrier.cluster.arrive.release.aligned;" :: : "memory");
}
FASTMMD_PTX void cluster_arrive_relaxed() {
  FASTMMD_SM90("barrier.cluster.arrive.relaxed.aligned;" :: : "memory");
}
FASTMMD_PTX void cluster_wait() {
  FASTMMD_SM90("barrier.cluster.wait.acquire.aligned;" :: : "memory");
}

// Both. One before the first remote access, one before the end.
FASTMMD_PTX void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// What lies at this place of the shared memory of block `rank` of the cluster. All 16 bytes at once
// need an address that is a multiple of 16.
FASTMMD_PTX float load_cluster(const float* shared, uint32_t rank) {
  float x = 0;
  FASTMMD_SM90(
      "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %1, %2;"
      " ld.shared::cluster.f32 %0, [remote]; }" : "=f"(x) : "r"(shared_address(shared)),
      "r"(rank) : "memory");
  return x;
}
FASTMMD_PTX float4 load_cluster(const float4* shared, uint32_t rank) {
  float4 x{0, 0, 0, 0};
  FASTMMD_SM90(
      "{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %4, %5;"
      " ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote]; }" : "=f"(x.x),
      "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(shared_address(shared)), "r"(rank) : "memory");
  return x;
}

// Orders this thread's own writes to shared memory before what TMA and wgmma do with it.
FASTMMD_PTX void fence_proxy_async() {
  FASTMMD_SM90("fence.proxy.async.shared::cta;" :: : "memory");
}

// The map is a __grid_constant__ parameter of the kernel.
FASTMMD_PTX void prefetch_tensor_map(const TensorMap* map) {
  FASTMMD_SM90("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Copies the box of `map` whose first element is (row y, column x) to shared memory (1024-byte
// aligned, swizzled) and counts its bytes at `bar`. By one thread.
FASTMMD_PTX void tma_load_2d(void* shared, const TensorMap* map, uint64_t* bar, int x, int y) {
  FASTMMD_SM90(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y) : "memory");
}

// The same to this place in every block of the cluster whose bit is set, counted by its own `bar`
// (sm_90a).
FASTMMD_PTX void tma_load_2d_multicast(void* shared, const TensorMap* map, uint64_t* bar, int x,
                                       int y, uint16_t blocks) {
  FASTMMD_SM90A(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "h"(blocks) : "memory");
}

// --- products of a warpgroup (sm_90a) ------------------------------------------------------------
//
// wgmma_*<N>: d (64 x N) += a b, or = where `accumulate` is false; a is 64 x K, b is K x N, K is 32
// bytes. It runs on: neither d nor what it reads may be touched until `wait`. Thread t of the
// warpgroup, with w = t / 32, g = t % 32 / 4 and q = t % 4, holds in d[4 j + i] row 16 w + g + 8 (i
// / 2), column 8 j + 2 q + i % 2. A in registers: as the a of mma for rows 16 w to 16 w + 15.

namespace wgmma {

// Before the first product, and after registers that it uses were written.
FASTMMD_PTX void fence() { FASTMMD_SM90A("wgmma.fence.sync.aligned;" :: : "memory"); }

// Makes a group of what was issued since the last one.
FASTMMD_PTX void commit() { FASTMMD_SM90A("wgmma.commit_group.sync.aligned;" :: : "memory"); }

// Keeps the compiler from moving uses of d over this point.
template <int K>
FASTMMD_PTX void hold(float (&d)[K]) {
#pragma unroll
  for (int i = 0; i < K; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Waits until at most N groups are in flight; follow it by hold() of the finished d.
template <int N>
FASTMMD_PTX void wait() {
  FASTMMD_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// A tile in shared memory with 128-byte swizzle, as TMA writes it: rows of 128 bytes, their 16-byte
// chunk c at c ^ (row % 8), the tile 1024-byte aligned. `stride_bytes` is from 8 rows to the next 8
// (1024 if they follow each other).
// K-major: the rows run over M or N, a row along K. Step along K within a row by advance().
// MN-major: the rows run over K, a row along M or N (64 16-bit elements); `leading_bytes` is from
// one tile of 64 columns to the next.
FASTMMD_PTX uint64_t descriptor(const void* shared, uint32_t stride_bytes = 1024,
                                uint32_t leading_bytes = 16) {
  return uint64_t(1) << 62 | uint64_t((stride_bytes & 0x3ffff) >> 4) << 32 |
         uint64_t((leading_bytes & 0x3ffff) >> 4) << 16 |
         uint64_t((shared_address(shared) & 0x3ffff) >> 4);
}

// The descriptor of what lies so many bytes further, a multiple of 16.
FASTMMD_PTX uint64_t advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

}  // namespace wgmma

#define FASTMMD_R64                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FASTMMD_R128                                                                 \
  FASTMMD_R64                                                                        \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTMMD_R256                                                                           \
  FASTMMD_R128                                                                                 \
  ", "                                                                                         \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "           \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
  "%111, "                                                                                     \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
#define FASTMMD_F8(i)                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define FASTMMD_F64 FASTMMD_F8(0), FASTMMD_F8(8), FASTMMD_F8(16), FASTMMD_F8(24)
#define FASTMMD_F128 FASTMMD_F64, FASTMMD_F8(32), FASTMMD_F8(40), FASTMMD_F8(48), FASTMMD_F8(56)
#define FASTMMD_F256                                                                            \
  FASTMMD_F128, FASTMMD_F8(64), FASTMMD_F8(72), FASTMMD_F8(80), FASTMMD_F8(88), FASTMMD_F8(96), \
      FASTMMD_F8(104), FASTMMD_F8(112), FASTMMD_F8(120)

// The text and the operands of one product, A in shared memory (SS) or in registers (RS). The
// operands are numbered after the N / 2 of d.
#define FASTMMD_SS(N, TYPES, A, B, ACCUMULATE, TAIL, ...)                          \
  FASTMMD_SM90A("{ .reg .pred p; setp.ne.b32 p, %" #ACCUMULATE                     \
                ", 0;"                                                             \
                " wgmma.mma_async.sync.aligned.m64n" #N TYPES " {" FASTMMD_R##N    \
                "}, %" #A ", %" #B ", p, 1, 1" TAIL "; }" : FASTMMD_F##N : "l"(a), \
                "l"(b), "r"(static_cast<int>(accumulate))__VA_ARGS__)
#define FASTMMD_RS(N, TYPES, A0, A1, A2, A3, B, ACCUMULATE, TAIL, ...)               \
  FASTMMD_SM90A("{ .reg .pred p; setp.ne.b32 p, %" #ACCUMULATE                       \
                ", 0;"                                                               \
                " wgmma.mma_async.sync.aligned.m64n" #N TYPES " {" FASTMMD_R##N      \
                "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1" TAIL \
                "; }" : FASTMMD_F##N : "r"(a[0]),                                    \
                "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                             \
                "r"(static_cast<int>(accumulate))__VA_ARGS__)

// The 16-bit types say of each operand in shared memory whether it is MN-major.
#define FASTMMD_WGMMA16(NAME, TYPES)                                                              \
  template <int N, bool mn_major_b = false>                                                       \
  FASTMMD_PTX void NAME(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {             \
    static_assert(N == 64 || N == 128 || N == 256);                                               \
    if constexpr (N == 64) FASTMMD_SS(64, TYPES, 32, 33, 34, ", 0, %35", , "n"(int(mn_major_b))); \
    else if constexpr (N == 128)                                                                  \
      FASTMMD_SS(128, TYPES, 64, 65, 66, ", 0, %67", , "n"(int(mn_major_b)));                     \
    else FASTMMD_SS(256, TYPES, 128, 129, 130, ", 0, %131", , "n"(int(mn_major_b)));              \
  }                                                                                               \
  template <int N, bool mn_major_b = false>                                                       \
  FASTMMD_PTX void NAME(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
    static_assert(N == 64 || N == 128 || N == 256);                                               \
    if constexpr (N == 64)                                                                        \
      FASTMMD_RS(64, TYPES, 32, 33, 34, 35, 36, 37, ", %38", , "n"(int(mn_major_b)));             \
    else if constexpr (N == 128)                                                                  \
      FASTMMD_RS(128, TYPES, 64, 65, 66, 67, 68, 69, ", %70", , "n"(int(mn_major_b)));            \
    else FASTMMD_RS(256, TYPES, 128, 129, 130, 131, 132, 133, ", %134", , "n"(int(mn_major_b)));  \
  }

FASTMMD_WGMMA16(wgmma_bf16, "k16.f32.bf16.bf16")
FASTMMD_WGMMA16(wgmma_half, "k16.f32.f16.f16")

// tf32 is K-major alone.
template <int N>
FASTMMD_PTX void wgmma_tf32(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(N == 64 || N == 128 || N == 256);
  if constexpr (N == 64) FASTMMD_SS(64, "k8.f32.tf32.tf32", 32, 33, 34, "");
  else if constexpr (N == 128) FASTMMD_SS(128, "k8.f32.tf32.tf32", 64, 65, 66, "");
  else FASTMMD_SS(256, "k8.f32.tf32.tf32", 128, 129, 130, "");
}
template <int N>
FASTMMD_PTX void wgmma_tf32(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                            bool accumulate) {
  static_assert(N == 64 || N == 128 || N == 256);
  if constexpr (N == 64) FASTMMD_RS(64, "k8.f32.tf32.tf32", 32, 33, 34, 35, 36, 37, "");
  else if constexpr (N == 128) FASTMMD_RS(128, "k8.f32.tf32.tf32", 64, 65, 66, 67, 68, 69, "");
  else FASTMMD_RS(256, "k8.f32.tf32.tf32", 128, 129, 130, 131, 132, 133, "");
}

}  // namespace fastmmd::cuda::ptx

#undef FASTMMD_WGMMA16
#undef FASTMMD_RS
#undef FASTMMD_SS
#undef FASTMMD_F256
#undef FASTMMD_F128
#undef FASTMMD_F64
#undef FASTMMD_F8
#undef FASTMMD_R256
#undef FASTMMD_R128
#undef FASTMMD_R64
#undef FASTMMD_PTX
#undef FASTMMD_SM90A
#undef FASTMMD_SM90
#undef FASTMMD_SM80

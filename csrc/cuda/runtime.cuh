// What every kernel needs of CUDA: launches, shared memory, element types, mathematics.
//
// Kernels include this file and ptx.cuh and nothing else of CUDA, launch by `launch` alone, and
// take dynamic shared memory from dynamic_shared(): tests/emulation has stand-ins for both files,
// with which the same kernels run on a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/ptx.cuh"
#include "mmd.h"

namespace fastmmd::cuda {

// --- launches ------------------------------------------------------------------------------------

// Launches the kernel on the stream; clusters are of `cluster` consecutive blocks in x (sm_90).
template <class... P, class... A>
cudaError_t launch_cluster(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                           cudaStream_t stream, unsigned cluster, A&&... args) {
  // A kernel is promised 48 KiB, static arrays included, which take up to 24 KiB here; more has to
  // be asked for, per device.
  if (shared_bytes > (size_t(24) << 10)) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, A&&... args) {
  return launch_cluster(kernel, grid, block, shared_bytes, stream, 1u, args...);
}

// The dynamic shared memory of the block, 1024-byte aligned as swizzled tiles need it.
__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(1024) char dynamic_shared_memory[];
  return dynamic_shared_memory;
}

// --- element types -------------------------------------------------------------------------------

// 16-bit elements travel as their bits.
__host__ __device__ __forceinline__ uint16_t round_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__host__ __device__ __forceinline__ float from_bf16(uint16_t bits) {
  return __bfloat162float(__ushort_as_bfloat16(bits));
}
__host__ __device__ __forceinline__ uint16_t round_half(float x) {
  return __half_as_ushort(__float2half_rn(x));
}
__host__ __device__ __forceinline__ float from_half(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

// To the nearest float with 10 bits of fraction, ties away from zero (cvt.rna.tf32).
__device__ __forceinline__ float round_tf32(float x) {
  if (!isfinite(x)) return x;
  return __uint_as_float((__float_as_uint(x) + 0x1000u) & ~0x1fffu);
}

}  // namespace fastmmd::cuda

#include "cuda/numbers.cuh"

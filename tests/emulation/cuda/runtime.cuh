// Stand-in for csrc/cuda/runtime.cuh: the same names, on the CPU.
#pragma once

#include <tuple>
#include <utility>

#include "cuda/ptx.cuh"
#include "intrinsics.h"
#include "mmd.h"

namespace fastmmd::cuda {

template <class... P, class... A>
cudaError_t launch_cluster(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                           cudaStream_t, unsigned cluster, A&&... args) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu ||
      !threads || threads > 1024 || shared_bytes > (227u << 10) || !cluster || cluster > 8 ||
      grid.x % cluster)
    return cudaErrorInvalidConfiguration;
  const std::tuple<P...> parameters(static_cast<P>(args)...);
  emulation::run(grid, block, shared_bytes, cluster, [&] { std::apply(kernel, parameters); });
  return cudaSuccess;
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, A&&... args) {
  return launch_cluster(kernel, grid, block, shared_bytes, stream, 1u, args...);
}

inline char* dynamic_shared() { return emulation::dynamic_shared(); }

inline uint16_t round_bf16(float x) { return ptx::bf16_bits(x); }
inline float from_bf16(uint16_t bits) { return ptx::bf16_value(bits); }
inline uint16_t round_half(float x) { return ptx::half_bits(x); }
inline float from_half(uint16_t bits) { return ptx::half_value(bits); }

inline float round_tf32(float x) { return __uint_as_float(ptx::as_tf32(x)); }

}  // namespace fastmmd::cuda

#include "cuda/numbers.cuh"

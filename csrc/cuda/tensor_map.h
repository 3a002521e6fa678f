// Descriptions of matrices in global memory that TMA reads boxes of (sm_90).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastmmd::cuda {

// The driver's CUtensorMap. Kernels take it as `const __grid_constant__ TensorMap`.
struct alignas(128) TensorMap {
  unsigned char opaque[128];
};

// Of a row-major matrix of elements of 2 or 4 bytes without gaps, `data` a multiple of 16, in boxes
// of `box_rows` (up to 256) rows of 128 bytes, which arrive with 128-byte swizzle. Rows past the
// end arrive as zeros. Needs no -lcuda: the driver's function is looked up.
cudaError_t tensor_map_2d(TensorMap* map, const void* data, int element_bytes, int64_t rows,
                          int64_t columns, int box_rows);

}  // namespace fastmmd::cuda

// MMD of samples so small that launches and round trips to memory are what they cost.
//
// small_columns_kernel: a thread block centres a slice of the columns of all rows and writes them
// twice, row by row and column by column.
//
// small_tiles_kernel: a thread block takes R rows against all rows. Each thread holds the products
// of those R rows with four others, for a share of the columns, so that an element of z is read
// once, by one thread, straight into registers; what the shares come to is added up in shared
// memory. Kernel values and gradient weights follow, R for each row, and with the rows' roles
// exchanged the same loop makes gradients. Nothing is symmetric: that costs less than another round
// trip through memory. One more warp meanwhile resolves the bandwidth and, in the last block to
// come there, adds the sums up.
//
// The gradient of a tile is made in chunks of columns, by a thread block each. Where they are a
// cluster (sm_90), each makes the products over its own chunk too, and they read from each other
// what these come to: no column is read twice for the same purpose. Elsewhere, and where z is so
// small that each block reads all of it in the time of such an exchange, they make the same
// products.
//
// Rows are scaled by a power of two of their slice, 1 but for data far from 1; where it is not,
// and where pairs lie near each other, distances are made again, from differences.
#pragma once

#include "cuda/small.h"
#include "cuda/tile.cuh"

namespace fastmmd::cuda {

constexpr int small_terms = 32;   // a lane each
constexpr int small_columns = 8;  // of a slice: a sector of float32
constexpr int slice_threads = 256;
// Few rows want many shares, many rows many registers.
template <int R>
constexpr int product_threads = R == 4 ? 512 : 256;
template <int R>
constexpr int small_threads = product_threads<R> + 32;
constexpr int small_chunk = 512;  // columns of the gradient at a time
template <int R>
constexpr int small_ahead = R == 16 ? 2 : 3;  // loads of a thread on their way
constexpr int max_cluster = 8;                // that every GPU with clusters takes
constexpr int products_barrier = 1;

// By value to all kernels. The rows of y follow those of x.
struct Small {
  Rows rows;
  int d, padded, width;  // columns; rows and columns of z, multiples of 16 and 8
  int slices;
  int tile, tiles;    // rows of a thread block
  int chunk, chunks;  // columns of one thread block's gradient
  int cluster;        // thread blocks that share the products of a tile: all of its chunks, or 1
  Sample x, y;
  Estimator estimator;
  Pairs pairs;
  double share;
  int num_terms;
  Unit unit;
  uint8_t family[small_terms];
  double p[small_terms];
  const double *given_scales, *coefficients;
  float* z;            // [batch, padded, width]
  float* columns;      // [batch, width, padded], its transpose
  double* spread;      // [batch, slices] sums of |x_i - mean|^2
  double* largest;     // [batch, slices] magnitudes
  int* exponent;       // [batch, slices] rows are scaled by 2^-exponent
  double* parts;       // [batch, most_tiles, 3] sums of xx, yy, xy of tiles
  double* potentials;  // [batch, padded], as in Points; null if not wanted
  unsigned* arrived;   // [batch] tiles whose parts are written
  double* scales;
  Mmd2Out out;

  FASTMMD_INLINE int count() const { return int(rows.n + rows.m); }
  FASTMMD_INLINE int domain(int i) const { return i >= rows.n; }
  FASTMMD_INLINE int most_tiles() const { return padded / 4; }
};

__device__ __forceinline__ void multiply_add(float4& sum, float a, const float4& b) {
  sum.x = fmaf(a, b.x, sum.x);
  sum.y = fmaf(a, b.y, sum.y);
  sum.z = fmaf(a, b.z, sum.z);
  sum.w = fmaf(a, b.w, sum.w);
}

__device__ inline int small_exponent(double largest) {
  if (!(largest > 0) || largest > 1.7e308) return 0;
  constexpr int margin = 40;
  const int size = ilogb(largest);
  return size > margin ? size - margin : size < -margin ? size + margin : 0;
}

constexpr int slice_stride = small_columns + 1;

template <Dtype dtype>
__global__ void __launch_bounds__(slice_threads)
    small_columns_kernel(const __grid_constant__ Small s) {
  constexpr int groups = slice_threads / small_columns, warps = slice_threads / 32;
  __shared__ double sums[warps][small_columns], sizes[warps], room[warps];
  float* const slice = reinterpret_cast<float*>(dynamic_shared());  // [padded][slice_stride]
  const int64_t b = blockIdx.y, place = b * s.slices + blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int c = threadIdx.x % small_columns, group = threadIdx.x / small_columns;
  const int64_t k = int64_t(blockIdx.x) * small_columns + c;
  const int count = s.count();
  const bool exists = k < s.d;
  auto at = [&](int row) -> float {
    const Sample& from = row < s.rows.n ? s.x : s.y;
    const int64_t i = row < s.rows.n ? row : row - s.rows.n;
    return to_float<float>(from.data, dtype,
                           b * from.batch_stride + i * from.row_stride + k * from.column_stride);
  };

  // Sums are relative to the first row of x, so that equal rows are exactly at their mean.
  const double origin = exists ? at(0) : 0.0f;
  double sum = 0, largest = 0;
  constexpr int ahead = 4;
  for (int first = group; first < count; first += ahead * groups) {
    float value[ahead];
#pragma unroll
    for (int u = 0; u < ahead; ++u) {
      const int row = first + u * groups;
      value[u] = exists && row < count ? at(row) : float(origin);
    }
#pragma unroll
    for (int u = 0; u < ahead; ++u) {
      const int row = first + u * groups;
      const double difference = double(value[u]) - origin;
      sum += difference;
      largest = larger(largest, fabs(difference));
      if (row < count) slice[row * slice_stride + c] = value[u];
    }
  }
#pragma unroll
  for (int other = 16; other; other /= 2) {
    if (other >= small_columns) sum += __shfl_xor_sync(0xffffffffu, sum, other);
    largest = larger(largest, __shfl_xor_sync(0xffffffffu, largest, other));
  }
  if (lane < small_columns) sums[warp][lane] = sum;
  if (lane == 0) sizes[warp] = largest;
  __syncthreads();
  sum = largest = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) {
    sum += sums[w][c];
    largest = larger(largest, sizes[w]);
  }
  const double mean = origin + sum / double(count);
  // What is far from 0 is taken off without a rounding then, so that near rows keep their distance.
  const double centre = float(mean);
  const int exponent = small_exponent(largest);
  const double scale = ldexp(1.0, -exponent);

  double spread = 0;
  float* const z = s.z + b * s.padded * s.width + k;
  for (int row = group; row < s.padded; row += groups) {
    float centred = 0;
    if (exists && row < count) {
      const double x = slice[row * slice_stride + c], away = x - mean;
      spread += away * away;
      centred = float((x - centre) * scale);
    }
    slice[row * slice_stride + c] = centred;
    z[int64_t(row) * s.width] = centred;
  }
  spread = block_sum<slice_threads>(spread, room);  // and all of the slice is written
  static_assert(warps == small_columns);
  float* const column =
      s.columns + (b * s.width + int64_t(blockIdx.x) * small_columns + warp) * s.padded;
  for (int row = lane; row < s.padded; row += 32) column[row] = slice[row * slice_stride + warp];
  if (threadIdx.x == 0) {
    s.spread[place] = spread;
    s.largest[place] = largest;
    s.exponent[place] = exponent;
    if (blockIdx.x == 0) s.arrived[b] = 0;
  }
}

}  // namespace fastmmd::cuda

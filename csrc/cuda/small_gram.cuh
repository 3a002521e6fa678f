// The launch between the two others where all rows are too much for every thread block to read.
#pragma once

#include "cuda/small.cuh"

namespace fastmmd::cuda {

constexpr int gram_threads = 128;
constexpr int gram_tile = 64;
constexpr int gram_step = 8;  // columns at a time

// Inner products of a tile of rows, over a share of the columns, to both places that they have in
// the symmetric matrix. Each thread holds 8 x 4 of them.
__global__ void __launch_bounds__(gram_threads) small_gram_kernel(const __grid_constant__ Small s) {
  __shared__ float4 sides[2][2][gram_step][gram_tile / 4];
  const int64_t b = blockIdx.z, place = b * s.splits + blockIdx.y;
  int J = 0, I = int(blockIdx.x);  // tile number J (J + 1) / 2 + I
  while (I > J) I -= ++J;
  I *= gram_tile, J *= gram_tile;
  const int share = (s.slices + s.splits - 1) / s.splits * small_columns;
  const int begin = int(blockIdx.y) * share;
  const int end = begin + share < s.width ? begin + share : s.width;
  const float* const columns = s.columns + b * s.width * s.padded;

  // Two of the 256 vectors of a step are a thread's.
  constexpr int fours = gram_tile / 4;
  const int four = int(threadIdx.x) % fours, step = int(threadIdx.x) / fours;
  static_assert(gram_threads == fours * gram_step && gram_step == small_columns);
  float4 next[2];
  auto fetch = [&](int k) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int row = (side ? J : I) + four * 4;
      next[side] = {0, 0, 0, 0};
      if (row < s.padded)
        next[side] = *reinterpret_cast<const float4*>(columns + int64_t(k + step) * s.padded + row);
    }
  };
  const int own = int(threadIdx.x) / 16, other = int(threadIdx.x) % 16;
  float4 sum[8];
#pragma unroll
  for (int r = 0; r < 8; ++r) sum[r] = {0, 0, 0, 0};
  if (begin < end) fetch(begin);
  int which = 0;
  for (int k = begin; k < end; k += gram_step, which ^= 1) {
#pragma unroll
    for (int side = 0; side < 2; ++side) sides[which][side][step][four] = next[side];
    __syncthreads();
    if (k + gram_step < end) fetch(k + gram_step);
#pragma unroll
    for (int c = 0; c < gram_step; ++c) {
      const float4 low = sides[which][0][c][2 * own], high = sides[which][0][c][2 * own + 1];
      const float4 of_j = sides[which][1][c][other];
      multiply_add(sum[0], low.x, of_j);
      multiply_add(sum[1], low.y, of_j);
      multiply_add(sum[2], low.z, of_j);
      multiply_add(sum[3], low.w, of_j);
      multiply_add(sum[4], high.x, of_j);
      multiply_add(sum[5], high.y, of_j);
      multiply_add(sum[6], high.z, of_j);
      multiply_add(sum[7], high.w, of_j);
    }
  }

  const int i = I + 8 * own, j = J + 4 * other;
  if (i >= s.padded || j >= s.padded) return;
  float* const gram = s.gram + place * s.padded * s.padded;
#pragma unroll
  for (int r = 0; r < 8; ++r)
    *reinterpret_cast<float4*>(gram + int64_t(i + r) * s.padded + j) = sum[r];
  float* const mirror = gram + int64_t(j) * s.padded + i;
  if (I != J) {
#pragma unroll
    for (int half = 0; half < 8; half += 4) {
      const float4* const of = sum + half;
      auto put = [&](int c, const float4& four_rows) {
        *reinterpret_cast<float4*>(mirror + int64_t(c) * s.padded + half) = four_rows;
      };
      put(0, {of[0].x, of[1].x, of[2].x, of[3].x});
      put(1, {of[0].y, of[1].y, of[2].y, of[3].y});
      put(2, {of[0].z, of[1].z, of[2].z, of[3].z});
      put(3, {of[0].w, of[1].w, of[2].w, of[3].w});
    }
  } else if (j / 8 == i / 8) {
    float* const norms = s.gram_norms + place * s.padded + j;
    const bool upper = j % 8 != 0;
    *reinterpret_cast<float4*>(norms) = upper ? float4{sum[4].x, sum[5].y, sum[6].z, sum[7].w}
                                              : float4{sum[0].x, sum[1].y, sum[2].z, sum[3].w};
  }
}

// What its tiles come to: w[j][r] = <z_I+r, z_j>, with the norms, as small_products says it.
template <int R>
__device__ __forceinline__ void small_gram_sum(const Small& s, int64_t b, int I, float* w,
                                               float* norms) {
  const int64_t whole = int64_t(s.padded) * s.padded;
  const float* const gram = s.gram + b * s.splits * whole + int64_t(I) * s.padded;
  for (int e = threadIdx.x; e < s.padded * (R / 4); e += product_threads<R>) {
    const int r = e / s.padded * 4, j = e % s.padded;
    float4 sum{0, 0, 0, 0};
#pragma unroll 2
    for (int split = 0; split < s.splits; ++split) {
      const float* const from = gram + split * whole + int64_t(r) * s.padded + j;
      sum.x += from[0];
      sum.y += from[s.padded];
      sum.z += from[2 * s.padded];
      sum.w += from[3 * s.padded];
    }
    *reinterpret_cast<float4*>(w + j * R + r) = sum;
  }
  for (int j = threadIdx.x; j < s.padded; j += product_threads<R>) {
    float sum = 0;
#pragma unroll 4
    for (int split = 0; split < s.splits; ++split)
      sum += s.gram_norms[(b * s.splits + split) * s.padded + j];
    norms[j] = sum;
  }
}

}  // namespace fastmmd::cuda

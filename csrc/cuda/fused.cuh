// Value and gradients of narrow rows in one walk over the pairwise matrix: the gradient weights of
// a tile go from the registers in which they were made into the product with the rows.
//
// A thread block owns a block of rows I, which stay in shared memory, and takes tiles of columns J:
// S = Z_I Z_J', gradient weights W of S, O += W Z_J. Warps own 16 rows each, with O in registers;
// float32 operands are twice as wide, so there two warps share 16 rows and halve the columns. Every
// pair is met twice, once from either side, so nothing is added to any rows but I.
#pragma once

#include "cuda/fused_near.cuh"

namespace fastmmd::cuda {

struct FusedArgs {
  Points<float> points;
  int64_t splits;  // of the columns, by different thread blocks
  int stages;      // tiles of columns in shared memory
  float* v[2];     // gradients to x and to y; null if not wanted
  // Of several splits, what each comes to; null if there is one.
  float* rows;   // [splits, padded_rows, depth] sum_j g_ij z_j
  float* pulls;  // [splits, padded_rows] sum_j g_ij
};

// Packed rows [first, first + count) that a block of rows of this domain meets. Where one sample
// has no gradient, the rows of the other stand for pairs across.
struct FusedColumns {
  int64_t first, count;

  FASTMMD_INLINE static FusedColumns of(const FusedArgs& args, int domain) {
    const Rows& rows = args.points.rows;
    const bool own = args.points.estimator != Estimator::cross, across = args.v[domain];
    if (own && across) return {0, rows.padded()};
    if (!own && !across) return {0, 0};
    const bool of_y = own ? domain : !domain;
    return of_y ? FusedColumns{rows.first(1), rows.padded() - rows.first(1)}
                : FusedColumns{0, rows.first(1)};
  }
};

// `gaussian`: all terms are.
template <class P, bool gaussian>
__global__ void __launch_bounds__(P::threads, P::blocks(gaussian))
    fused_kernel(const __grid_constant__ FusedArgs args) {
  char* const shared = dynamic_shared();
  __shared__ Segments<float> segments;
  __shared__ double totals[P::warps][3];  // xx, yy, xy
  __shared__ float slopes[3];             // of pairs within x, within y, and across
  __shared__ float offset;                // of near pairs
  // Each thread's elements that leave the products. There are no registers to keep them in.
  __shared__ uint32_t near_pairs[P::threads];
  const Points<float>& points = args.points;
  const Factor<float>& f = points.factors[0];
  const Resolved<float>& resolved = *points.resolved;
  const bool radial = gaussian || f.geometry == Geometry::radial;
  segments.load(resolved.kernel[0]);
  if (threadIdx.x == 0) offset = resolved.kernel[0].near_offset;
  if (threadIdx.x < 3)
    slopes[threadIdx.x] =
        float((radial ? -4 : 2) * double(resolved.gain) /
              (threadIdx.x < 2 ? resolved.by.within[threadIdx.x] : resolved.by.across));
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warp_row = threadIdx.x / 32 / P::sharers * 16;
  const int warp_column = threadIdx.x / 32 % P::sharers * P::own_columns;
  const int depth = int(f.depth);

  if (lane < 3) totals[threadIdx.x / 32][lane] = 0;
  __syncwarp();

  const int blocks = int(points.padded() / P::rows), items = blocks * int(args.splits);
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const int block = item % blocks;
    const int domain = points.domain(int64_t(block) * P::rows);
    const bool wanted = args.v[domain];
    const FusedColumns range = FusedColumns::of(args, domain);
    auto tile_of_split = [&](int64_t split) {
      return int(range.first / P::columns + range.count / P::columns * split / args.splits);
    };
    const int first_tile = tile_of_split(item / blocks);
    const int last_tile = tile_of_split(item / blocks + 1);

    auto fetch = [&](int tile) {
      if (tile >= last_tile) return;
      fused::load<P, P::columns>(
          points, int64_t(tile) * P::columns,
          shared + P::block_bytes(P::rows) + tile % args.stages * P::block_bytes(P::columns));
    };
    __syncthreads();  // what was read for the last item may be overwritten
    fused::load<P, P::rows>(points, int64_t(block) * P::rows, shared);
    fetch(first_tile);
    ptx::cp_async_commit();
    float o[P::width / 8][4] = {}, pulls[2] = {};

#pragma unroll 1
    for (int tile = first_tile; tile < last_tile; ++tile) {
      const bool across = domain != points.domain(int64_t(tile) * P::columns);
      ptx::cp_async_wait<0>();
      __syncthreads();  // also: nobody reads the room that is filled next
      if (args.stages > 1) {
        fetch(tile + 1);
        ptx::cp_async_commit();
      }
      const char* const stage =
          shared + P::block_bytes(P::rows) + tile % args.stages * P::block_bytes(P::columns);
      const char* const z_I = shared + warp_row * P::pitch;
      const char* const z_J = stage + warp_column * P::pitch;
      const float* const rows =
          reinterpret_cast<const float*>(shared + P::rows * P::pitch) + warp_row + g;
      const float* const columns =
          reinterpret_cast<const float*>(stage + P::columns * P::pitch) + warp_column + 2 * t;
      const int64_t apart =
          int64_t(block) * P::rows + warp_row - int64_t(tile) * P::columns - warp_column;
      float c[P::own_columns / 8][4];
      fused::inner<P>(z_I, z_J, depth, c);
      // Off the diagonal Gaussians leave out what asks for it.
      const bool crosses = !gaussian || (apart > -16 && apart < P::own_columns);
      using Crossing = fused::Tile<P, true>;
      using Apart = fused::Tile<P, !gaussian>;
      const Crossing pairs{rows, columns, int(apart), !points.pairs.self_within};
      const Apart others{rows, columns, int(apart), !points.pairs.self_within};
      if (radial) {
        bool look = crosses ? fused::distances<P>(pairs, offset, c)
                            : fused::distances<P>(others, offset, c);
        if constexpr (P::operand == Operand::tf32x3) {
          look = __any_sync(0xffffffffu, look);
          if (look) fused::differences<P>(z_I, z_J, depth, c);
        } else {
          look = isfinite(offset);
        }
        near_pairs[threadIdx.x] = look ? fused::near_pairs<P>(pairs, offset, c) : 0;
      } else {
        fused::complete<P>(pairs, c);
      }
      const float& slope = slopes[across ? 2 : domain];
      float sum = crosses ? fused::weigh<P, gaussian>(pairs, segments, slope, radial, c)
                          : fused::weigh<P, gaussian>(others, segments, slope, radial, c);
      sum = warp_sum(sum);
      if (lane == 0)
        // Pairs across count from both sides, or twice from one.
        totals[threadIdx.x / 32][across ? 2 : domain] +=
            double(across && !args.v[!domain] ? 2 * sum : sum);
      if (wanted) {
        auto leave = [&] { return __any_sync(0xffffffffu, near_pairs[threadIdx.x] != 0); };
        if (radial && leave()) fused::erase_near(near_pairs[threadIdx.x], c);
        if (!radial && points.has_pulls(0)) fused::add_sums<P>(c, pulls);
        typename Fragment<P::operand>::A w[P::steps];
        fused::as_operand<P>(c, w);
        fused::outer<P>(w, z_J, depth, radial, o, pulls);
        if (radial && leave()) {
          const int thread = ptx::thread_of_branch();
          const int row = thread / 32 / P::sharers * 16;
          const int column = thread / 32 % P::sharers * P::own_columns;
          const float* const of_row = reinterpret_cast<const float*>(shared + P::rows * P::pitch) +
                                      row + thread % 32 / 4 + P::rows;
          const float* const of_columns =
              reinterpret_cast<const float*>(z_J + (P::columns - column) * P::pitch) + column +
              P::columns;
          fused::push_apart<P>(
              near_pairs[thread], thread % 32, shared + row * P::pitch, z_J, depth,
              [&](float D, int h, int j) {
                float k = 0, dk = 0;
                for (int s = 0; s < segments.count; ++s)
                  dispatch(segments.segment[s].family, [&](auto family) {
                    decltype(family)::template grad<DeviceMath<float>>(D, segments.segment[s], k,
                                                                       dk);
                  });
                return slopes[across ? 2 : domain] * dk * of_row[8 * h] * of_columns[j];
              },
              o);
        }
      }
      if (args.stages == 1) {
        __syncthreads();
        fetch(tile + 1);
        ptx::cp_async_commit();
      }
    }

    ptx::cp_async_wait<0>();
    if (!wanted) continue;
    if constexpr (P::sharers == 2) {
      // The second half of the columns comes to the first by way of shared memory.
      float* const at = reinterpret_cast<float*>(shared) + warp_row * 2 * (P::width / 2 + 2) + lane;
      __syncthreads();
      if (warp_column)
#pragma unroll
        for (int e = 0; e < P::width / 2 + 2; ++e)
          at[e * 32] = e < P::width / 2 ? o[e / 4 % (P::width / 8)][e % 4] : pulls[e % 2];
      __syncthreads();
      if (warp_column) continue;
#pragma unroll
      for (int e = 0; e < P::width / 2; ++e) o[e / 4][e % 4] += at[e * 32];
#pragma unroll
      for (int h = 0; h < 2; ++h) pulls[h] += at[(P::width / 2 + h) * 32];
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = int64_t(block) * P::rows + warp_row + g + 8 * h,
                    i = row - points.rows.first(domain);
      if (i >= (domain ? points.rows.m : points.rows.n)) continue;
      float* const to = args.rows ? args.rows + (item / blocks * points.padded() + row) * depth
                                  : args.v[domain] + i * f.d;
#pragma unroll
      for (int n = 0; n < P::width / 8; ++n)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd)
          if (n * 8 + 2 * t + odd < f.d) to[n * 8 + 2 * t + odd] = o[n][2 * h + odd];
      if (t) continue;
      if (args.pulls) args.pulls[item / blocks * points.padded() + row] = pulls[h];
      else f.pulls[row] = double(pulls[h]);
    }
  }
  __syncthreads();
  if (threadIdx.x >= 3) return;
  double sum = 0;
  for (int warp = 0; warp < P::warps; ++warp) sum += totals[warp][threadIdx.x];
  points.sums[int64_t(blockIdx.x) * points.row_of_sums() + threadIdx.x] = sum;
}

}  // namespace fastmmd::cuda

// Value and gradients of narrow rows in one walk over the pairwise matrix: the gradient weights of
// a tile go from the registers in which they were made into the product with the rows.
//
// A thread block owns a block of rows I, which stay in shared memory, and takes tiles of columns J:
// S = Z_I Z_J', gradient weights W of S, O += W Z_J. Warps own 16 rows each, with O in registers;
// float32 operands are twice as wide, so there two warps share 16 rows and halve the columns. Every
// pair is met twice, once from either side, so nothing is added to any rows but I.
#pragma once

#include "cuda/mma.cuh"

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

// Shapes of a thread block for rows of up to `width` elements.
template <Operand operand_, int width_>
struct Fused {
  static constexpr Operand operand = operand_;
  static constexpr int width = width_, pitch = width * int(bytes(operand));
  static constexpr int sharers = pitch > 512 ? 2 : 1;  // warps of the same rows
  static constexpr int threads = 128 * sharers, warps = threads / 32;
  static constexpr int rows = 16 * warps / sharers;
  static constexpr int own_columns = bytes(operand) == 4 ? 32 : 64;  // of a warp
  static constexpr int columns = own_columns * sharers;
  static constexpr int steps = 4;  // products deep of its columns
  static_assert(own_columns == steps * 32 / int(bytes(operand)));
  // Products of a warp's columns with so many pieces of 8 columns of z at a time.
  static constexpr int chains = 4;
  // Of one multiprocessor, so that one is at its products while others look at kernels.
  static constexpr int blocks(bool gaussian) {
    return sharers == 2 ? 1 : gaussian && width <= 128 ? 3 : 2;
  }

  // Rows I; then tiles of columns; each with norms and weights. Afterwards the registers that
  // warps of the same rows exchange.
  static constexpr int block_bytes(int count) { return count * (pitch + 2 * 4); }
  static constexpr int shared_bytes(int stages) {
    return block_bytes(rows) + stages * block_bytes(columns);
  }
  static_assert(shared_bytes(1) >= rows / 16 * 32 * 4 * (width / 2 + 2) || sharers == 1);
};

namespace fused {

// Where a 16-byte chunk of a row lies. Chunks change places within 128 bytes, so that eight rows
// under each other lie in different banks.
template <class P>
__device__ __forceinline__ int place(int row, int chunk) {
  return row * P::pitch + ((chunk ^ (row % 8)) << 4);
}

// Rows [first, first + count) to shared memory, followed by their norms and their weights; count
// is a multiple of 32.
template <class P, int count>
__device__ __forceinline__ void load(const Points<float>& points, int64_t first, char* to) {
  const Factor<float>& f = points.factors[0];
  const int row = threadIdx.x / 8, chunk = threadIdx.x % 8;
  const int64_t pitch = f.depth * int64_t(bytes(P::operand));
  const char* const from = static_cast<const char*>(f.z) + (first + row) * pitch;
#pragma unroll 1
  for (int c = chunk; c * 16 < pitch; c += 8)
#pragma unroll
    for (int r = 0; r < count; r += P::threads / 8)
      ptx::cp_async16(to + place<P>(row, c) + r * P::pitch, from + r * pitch + c * 16);
  if (threadIdx.x < count / 2) {
    const float* const sides = threadIdx.x < count / 4 ? f.norms : points.weights;
    ptx::cp_async16(to + count * P::pitch + threadIdx.x * 16,
                    sides + first + threadIdx.x % (count / 4) * 4);
  }
}

// c = Z_I Z_J' of a warp's 16 rows and its columns.
template <class P, int products>
__device__ __forceinline__ void inner(const char* z_I, const char* z_J, int steps,
                                      float (&c)[products][4]) {
  using F = Fragment<P::operand>;
  const int lane = threadIdx.x % 32;
  // The rows that this lane brings to ldmatrix; a step of k moves on by two chunks.
  const char* const a_row = z_I + lane % 16 * P::pitch;
  const char* const b_row = z_J + (lane / 16 * 8 + lane % 8) * P::pitch;
  const int a_place = ((lane / 16) ^ (lane % 8)) << 4;
  const int b_place = ((lane / 8 % 2) ^ (lane % 8)) << 4;
#pragma unroll
  for (int n = 0; n < products; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0;
#pragma unroll 2
  for (int step = 0; step < steps; ++step) {
    uint32_t r[4];
    ptx::ldmatrix4(r, a_row + (a_place ^ (step << 5)));
    typename F::A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) a.set(i, r[i]);
    typename F::B b[products];
#pragma unroll
    for (int n = 0; n < products; n += 2) {
      ptx::ldmatrix4(r, b_row + n * 8 * P::pitch + (b_place ^ (step << 5)));
#pragma unroll
      for (int i = 0; i < 4; ++i) b[n + i / 2].set(i % 2, r[i]);
    }
    F::multiply_long(c, a, b);
  }
}

// c = |z_i - z_j|^2 of the same, from differences.
template <class P, int products>
__device__ __forceinline__ void differences(const char* z_I, const char* z_J, int depth,
                                            float (&c)[products][4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < products; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0;
#pragma unroll 1
  for (int k = 0; k < depth; ++k) {
    auto at = [&](const char* z, int row) {
      return *reinterpret_cast<const float*>(z + place<P>(row, k / 4) + k % 4 * 4);
    };
    const float a[2] = {at(z_I, g), at(z_I, g + 8)};
#pragma unroll
    for (int n = 0; n < products; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float difference = a[i / 2] - at(z_J, n * 8 + 2 * t + i % 2);
        c[n][i] += difference * difference;
      }
  }
}

// The pairs of a warp's tile: where norms, and after them weights, of rows g and g + 8 and of this
// lane's columns lie. Row i is the same point as column i + shift; `diagonal` says whether there
// are such pairs.
template <class P, bool diagonal_>
struct Tile {
  static constexpr bool diagonal = diagonal_;
  static constexpr int products = P::own_columns / 8;
  const float* rows;
  const float* columns;
  int shift;
  bool mute;  // a point and itself do not count

  __device__ __forceinline__ bool self(int n, int i) const {
    const int lane = threadIdx.x % 32;
    return diagonal && lane / 4 + i / 2 * 8 + shift == n * 8 + lane % 4 * 2 + i % 2;
  }
  __device__ __forceinline__ float norms(int n, int i) const {
    return rows[i / 2 * 8] + columns[n * 8 + i % 2];
  }

  // The weight of a pair. One that does not count must not overflow, as infinity times 0 is no
  // number.
  template <bool radial>
  __device__ __forceinline__ float weight(int n, int i, float& statistic) const {
    float a = rows[P::rows + i / 2 * 8] * columns[P::columns + n * 8 + i % 2];
    if (mute && self(n, i)) a = statistic = 0;
    if (!radial && a == 0) statistic *= 0;
    return a;
  }
};

// Inner products to squared distances; true if some are so small that they are worth making again.
template <class P, class Tile>
__device__ __forceinline__ bool distances(const Tile& tile, float offset,
                                          float (&c)[Tile::products][4]) {
  bool again = false;
#pragma unroll
  for (int n = 0; n < Tile::products; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float norms = tile.norms(n, i);
      const bool self = tile.self(n, i);
      float D = norms - 2 * c[n][i];
      D = D < 0 || self ? 0.0f : D;  // NaN stays
      again |= !self && D < float(near) * (norms - offset);
      c[n][i] = D;
    }
  return again;
}

// Statistics to gradient weights; the weighted sum of the values.
template <class P, bool gaussian, class Tile>
__device__ __forceinline__ float weigh(const Tile& tile, const Segments<float>& segments,
                                       float slope, float (&c)[Tile::products][4]) {
  float sum = 0;
  if constexpr (gaussian) {
    const Evaluate<true, float> evaluate(segments);
#pragma unroll
    for (int n = 0; n < Tile::products; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float a = tile.template weight<true>(n, i, c[n][i]);
        float k, dk;
        evaluate(c[n][i], k, dk);
        sum += a * k;
        c[n][i] = slope * a * dk;
      }
  } else {
    // The families one after another, as there are many pairs to each choice.
    float slopes[Tile::products][4] = {};
    for (int s = 0; s < segments.count; ++s)
      dispatch(segments.segment[s].family, [&](auto family) {
        using Family = decltype(family);
#pragma unroll
        for (int n = 0; n < Tile::products; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float a = tile.template weight<Family::radial>(n, i, c[n][i]);
            float k = 0;
            Family::template grad<DeviceMath<float>>(c[n][i], segments.segment[s], k, slopes[n][i]);
            sum += a * k;
          }
      });
#pragma unroll
    for (int n = 0; n < Tile::products; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        c[n][i] = slope * tile.template weight<true>(n, i, c[n][i]) * slopes[n][i];
  }
  return sum;
}

// Gradient weights, of which registers are elements of C, as fragments of A. For 4-byte operands
// the columns of a step change places: k = t is column 2 t, and k = t + 4 column 2 t + 1.
template <class P, int products>
__device__ __forceinline__ void as_operand(const float (&c)[products][4],
                                           typename Fragment<P::operand>::A (&w)[P::steps]) {
#pragma unroll
  for (int s = 0; s < P::steps; ++s)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (bytes(P::operand) == 4) {
        const float x = c[s][i % 2 * 2 + i / 2];
        w[s].set(i, P::operand == Operand::tf32 ? ptx::as_tf32(x) : __float_as_uint(x));
      } else {
        const float* const pair = c[2 * s + i / 2] + i % 2 * 2;
        w[s].set(i, P::operand == Operand::bfloat16 ? ptx::pack_bf16(pair[0], pair[1])
                                                    : ptx::pack_half(pair[0], pair[1]));
      }
    }
}

// o += W Z_J, and pulls += W 1, for rows g and g + 8. A tile's sums are made first, since the
// tensor cores cut off what they cannot hold of a sum.
template <class P>
__device__ __forceinline__ void outer(const typename Fragment<P::operand>::A (&w)[P::steps],
                                      const char* z_J, int depth, float (&o)[P::width / 8][4],
                                      float (&pulls)[2]) {
  using F = Fragment<P::operand>;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  // 16 bits: the rows of ldmatrix. Else the two rows of this lane.
  const char* const row = z_J + lane % 16 * P::pitch;
  const int row_place = ((lane / 16) ^ (lane % 8)) << 4;
  const char* const even = z_J + 2 * t * P::pitch + g % 4 * 4;
  const int even_place = ((g / 4) ^ (2 * t)) << 4, odd_place = even_place ^ 16;
#pragma unroll
  for (int first = 0; first < P::width / 8; first += P::chains) {
    if (first * 8 >= depth) break;
    float sum[P::chains][4] = {};
#pragma unroll
    for (int s = 0; s < P::steps; ++s) {
      typename F::B b[P::chains];
      if constexpr (bytes(P::operand) == 4) {
#pragma unroll
        for (int n = 0; n < P::chains; ++n) {
          const int chunk = (first + n) * 2;
          auto at = [&](const char* from, int in_row) {
            return *reinterpret_cast<const uint32_t*>(from + s * 8 * P::pitch +
                                                      (in_row ^ (chunk << 4)));
          };
          b[n].set(0, at(even, even_place));
          b[n].set(1, at(even + P::pitch, odd_place));
        }
      } else {
#pragma unroll
        for (int n = 0; n < P::chains; n += 2) {
          uint32_t r[4];
          const int chunk = first + n;
          ptx::ldmatrix4_trans(r, row + s * 16 * P::pitch + (row_place ^ (chunk << 4)));
#pragma unroll
          for (int i = 0; i < 4; ++i) b[n + i / 2].set(i % 2, r[i]);
        }
      }
      F::multiply(sum, w[s], b);
    }
#pragma unroll
    for (int n = 0; n < P::chains; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[first + n][i] += sum[n][i];
  }
  constexpr uint32_t one = P::operand == Operand::bfloat16  ? 0x3f803f80u
                           : P::operand == Operand::float16 ? 0x3c003c00u
                                                            : 0x3f800000u;
  float sum[4] = {};
#pragma unroll
  for (int s = 0; s < P::steps; ++s)
#pragma unroll
    for (int part = F::parts - 1; part >= 0; --part) F::multiply(sum, w[s].r[part], {one, one});
  pulls[0] += sum[0];
  pulls[1] += sum[2];
}

}  // namespace fused

// `gaussian`: all terms are.
template <class P, bool gaussian>
__global__ void __launch_bounds__(P::threads, P::blocks(gaussian))
    fused_kernel(const __grid_constant__ FusedArgs args) {
  char* const shared = dynamic_shared();
  __shared__ Segments<float> segments;
  __shared__ double totals[P::warps][3];  // xx, yy, xy
  __shared__ float slopes[2];             // of pairs within the sample, and across
  const Points<float>& points = args.points;
  const Factor<float>& f = points.factors[0];
  const Resolved<float>& resolved = *points.resolved;
  const bool radial = gaussian || f.geometry == Geometry::radial;
  segments.load(resolved.kernel[0]);
  const float offset = resolved.kernel[0].near_offset;
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
    if (threadIdx.x < 2)
      slopes[threadIdx.x] = float((radial ? -4 : 2) * double(resolved.gain) /
                                  (threadIdx.x ? resolved.by.across : resolved.by.within[domain]));
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
      fused::inner<P>(z_I, z_J, depth * int(bytes(P::operand)) / 32, c);
      auto values = [&](auto diagonal) {
        const fused::Tile<P, diagonal> pairs{rows, columns, int(apart), !points.pairs.self_within};
        if (radial) {
          const bool again = fused::distances<P>(pairs, offset, c);
          if constexpr (P::operand == Operand::tf32x3)
            if (__any_sync(0xffffffffu, again)) fused::differences<P>(z_I, z_J, depth, c);
        }
        return fused::weigh<P, gaussian>(pairs, segments, slopes[across], c);
      };
      float sum;
      if (!gaussian || (apart > -16 && apart < P::own_columns)) sum = values(std::true_type{});
      else sum = values(std::integral_constant<bool, !gaussian>{});
      sum = warp_sum(sum);
      if (lane == 0)
        // Pairs across count from both sides, or twice from one.
        totals[threadIdx.x / 32][across ? 2 : domain] +=
            double(across && !args.v[!domain] ? 2 * sum : sum);
      if (wanted) {
        typename Fragment<P::operand>::A w[P::steps];
        fused::as_operand<P>(c, w);
        fused::outer<P>(w, z_J, depth, o, pulls);
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

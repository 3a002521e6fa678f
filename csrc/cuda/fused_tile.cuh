// The steps of the fused road: what a warp does with a tile of 16 rows and its columns.
#pragma once

#include "cuda/mma.cuh"

namespace fastmmd::cuda {

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
    return sharers == 2 ? 1 : gaussian && width <= 128 && operand != Operand::tf32x3 ? 3 : 2;
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
__device__ __forceinline__ void inner(const char* z_I, const char* z_J, int depth,
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
#pragma unroll 1
  for (int first = 0; first < depth * int(bytes(P::operand)) / 32; first += 2) {
    [[maybe_unused]] float part[products][4] = {};  // as in Mma
#pragma unroll
    for (int step = first; step < first + 2; ++step) {
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
      if constexpr (F::split) F::multiply(part, a, b, F::is_short(depth));
      else F::multiply(c, a, b, false);
    }
    if constexpr (F::split) F::add(c, part);
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
      again |= !self && is_below(near, D, norms, offset);
      c[n][i] = D;
    }
  return again;
}

// The products of rows from those of centred rows.
template <class P, class Tile>
__device__ __forceinline__ void complete(const Tile& tile, float (&c)[Tile::products][4]) {
#pragma unroll
  for (int n = 0; n < Tile::products; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] += tile.norms(n, i);
}

// Statistics to gradient weights; the weighted sum of the values. `radial`: a point does not push
// itself.
template <class P, bool gaussian, class Tile>
__device__ __forceinline__ float weigh(const Tile& tile, const Segments<float>& segments,
                                       const float& slope, bool radial,
                                       float (&c)[Tile::products][4]) {
  float sum = 0;
  if constexpr (gaussian) {
    using Gaussians = Chain<P::operand == Operand::tf32x3, float>;
    const Gaussians first(segments.segment[0], slope);
#pragma unroll
    for (int n = 0; n < Tile::products; ++n) {
      float a[4], k[4] = {}, dk[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = tile.template weight<true>(n, i, c[n][i]);
        first(c[n][i], k[i], dk[i]);
      }
#pragma unroll 1
      for (int s = 1; s < segments.count; ++s) {
        const Gaussians chain(segments.segment[s], slope);
#pragma unroll
        for (int i = 0; i < 4; ++i) chain(c[n][i], k[i], dk[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum += a[i] * k[i];
        c[n][i] = tile.self(n, i) ? 0.0f : a[i] * dk[i];
      }
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
      for (int i = 0; i < 4; ++i) {
        const float a = tile.template weight<true>(n, i, c[n][i]);
        c[n][i] = radial && tile.self(n, i) ? 0.0f : slope * a * slopes[n][i];
      }
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

// pulls += W 1 for rows g and g + 8, of weights that are not rounded: the centre, which they are
// multiplied with, may be far longer than the rows.
template <class P, int products>
__device__ __forceinline__ void add_sums(const float (&c)[products][4], float (&pulls)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < products; ++n) sum += c[n][2 * h] + c[n][2 * h + 1];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    pulls[h] += sum + __shfl_xor_sync(0xffffffffu, sum, 2);
  }
}

// o += W Z_J, and where `sums`, pulls += W 1, for rows g and g + 8. A tile's sums are made first,
// since the tensor cores cut off what they cannot hold of a sum.
template <class P>
__device__ __forceinline__ void outer(const typename Fragment<P::operand>::A (&w)[P::steps],
                                      const char* z_J, int depth, bool sums,
                                      float (&o)[P::width / 8][4], float (&pulls)[2]) {
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
      F::multiply(sum, w[s], b, F::is_short(depth));
    }
#pragma unroll
    for (int n = 0; n < P::chains; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[first + n][i] += sum[n][i];
  }
  if (!sums) return;
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

}  // namespace fastmmd::cuda

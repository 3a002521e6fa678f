// Very near pairs (near.cuh) of the fused road: the warp that owns the rows adds their gradients.
#pragma once

#include "cuda/fused_tile.cuh"

namespace fastmmd::cuda::fused {

// Bit 4 n + i: element (n, i) of this lane, with squared distances c, is very near. Pairs of a
// point with itself are not among them.
template <class P, class Tile>
__device__ __forceinline__ uint32_t near_pairs(const Tile& tile, float offset,
                                               const float (&c)[Tile::products][4]) {
  uint32_t near = 0;
#pragma unroll
  for (int n = 0; n < Tile::products; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (is_below(very_near, c[n][i], tile.norms(n, i), offset) && !tile.self(n, i))
        near |= 1u << (4 * n + i);
  return near;
}

// Their weights become 0.
template <int products>
__device__ __forceinline__ void erase_near(uint32_t near, float (&c)[products][4]) {
#pragma unroll
  for (int n = 0; n < products; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (near >> (4 * n + i) & 1) c[n][i] = 0;
}

// o += g_ij (z_j - z_i) over the pairs of a warp, the distance and the weight made again from
// differences: g = weight(D, h, column) of row g + 8 h. The four lanes that hold a row's gradient
// take its pairs together, one after another.
template <class P, class Weight>
__device__ __forceinline__ void push_apart(uint32_t near, int lane, const char* z_I,
                                           const char* z_J, int depth, const Weight& weight,
                                           float (&o)[P::width / 8][4]) {
  const int g = lane / 4, t = lane % 4;
  // Elements 8 n + 2 t and 8 n + 2 t + 1 of a row. Of its chunk those bits that n decides come
  // last.
  constexpr int size = int(bytes(P::operand));
  auto two = [&](const char* z, int row, int n, float (&values)[2]) {
    const int own = ((row % 8) ^ (2 * t * size / 16)) << 4;
    const char* const from = z + row * P::pitch + (own ^ (8 * n * size)) + 2 * t * size % 16;
    if constexpr (size == 4) {
      const float2 both = *reinterpret_cast<const float2*>(from);
      values[0] = both.x, values[1] = both.y;
    } else {
      const uint32_t both = *reinterpret_cast<const uint32_t*>(from);
      using E = typename Stored<P::operand>::type;
      values[0] = value_of(E{uint16_t(both)}), values[1] = value_of(E{uint16_t(both >> 16)});
    }
  };
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint32_t own = near & (h ? 0xccccccccu : 0x33333333u);
#pragma unroll 1
    while (const unsigned lanes = __ballot_sync(0xffffffffu, own != 0)) {
      const unsigned quad = lanes >> (lane - t) & 15;
      const int from = quad ? lane - t + __ffs(int(quad)) - 1 : lane;
      const uint32_t theirs = __shfl_sync(0xffffffffu, own, from);
      const int bit = quad ? __ffs(int(theirs)) - 1 : 0;
      if (lane == from) own &= own - 1;
      const int column = bit / 4 * 8 + from % 4 * 2 + bit % 2;
      float D = 0, a[2], b[2];
#pragma unroll 1
      for (int n = 0; n < depth / 8; ++n) {
        two(z_I, g + 8 * h, n, a);
        two(z_J, column, n, b);
        D += (b[0] - a[0]) * (b[0] - a[0]) + (b[1] - a[1]) * (b[1] - a[1]);
      }
      D += __shfl_xor_sync(0xffffffffu, D, 1);
      D += __shfl_xor_sync(0xffffffffu, D, 2);
      // Rows that are one do not push each other.
      const float pull = quad && D != 0 ? weight(D, h, column) : 0.0f;
#pragma unroll
      for (int n = 0; n < P::width / 8; ++n) {
        if (n * 8 >= depth) break;
        two(z_I, g + 8 * h, n, a);
        two(z_J, column, n, b);
        o[n][2 * h] += pull * (b[0] - a[0]);
        o[n][2 * h + 1] += pull * (b[1] - a[1]);
      }
    }
  }
}

}  // namespace fastmmd::cuda::fused

// Very near pairs: rows of a tile so close to each other that their gradient leaves the products.
//
// v_i = sum_j g_ij z_j - z_i sum_j g_ij is a difference of two sums that round in proportion to
// |g_ij z_i|, where the pair's own part is g_ij (z_j - z_i): what is large in a sum of steep
// kernels would drown everything else. So the weight of such a pair is 0 in the panel and in its
// sums, and a bit is set for it. Afterwards each row adds g_ij (z_j - z_i) for its bits, in their
// order: the distance and the weight are made again, from differences. Tiles without such pairs are
// not read.
#pragma once

#include "cuda/stage.cuh"

namespace fastmmd::cuda {

// D of a pair is made again from differences below near * (|z_i|^2 + |z_j|^2), where three products
// of tf32 have left it 2^-15 relative accuracy; its gradient is below very_near, where g |z_i| is
// 2^10 times as large as g |z_i - z_j|. `offset` is that of Kernel: what wide Gaussians allow; it
// is infinite where no rows are long enough to be near.
constexpr double near = 1.0 / (1 << 6), very_near = 1.0 / (1 << 20);

template <class T>
__device__ __forceinline__ bool is_below(double part, T D, T norms, T offset) {
  return D < T(part) * (norms - offset);
}

FASTMMD_INLINE constexpr int near_words(int tile) { return (tile + 31) / 32; }

// The place of a tile in near_tiles, by its number in the panel's rows and columns of tiles.
template <class T>
FASTMMD_INLINE int64_t near_place(const TileArgs<T>& args, int tile, int l, int64_t i, int64_t j) {
  return (l * (args.rows / tile) + i) * (args.columns / tile) + j;
}

// The bits of a tile of factor l with squared distances u. True if there are any. All threads call
// it, and agree on `look`: whether there may be such pairs.
template <class Products, class T>
__device__ __forceinline__ bool mark_near(const TileArgs<T>& args, const Tile& at, int l, T offset,
                                          bool look, const Sides<T, Products::tile>& sides,
                                          const T (&u)[Products::elements]) {
  constexpr int tile = Products::tile, words = near_words(tile), elements = Products::elements;
  const int64_t place =
      near_place(args, tile, l, (at.I - args.row) / tile, (at.J - args.column) / tile);
  uint32_t* const pairs = args.near_pairs + place * (tile * words);
  auto is_near = [&](int e) {
    const int i = Products::row(e), j = Products::column(e);
    return is_below(very_near, u[e], sides.norms[0][i] + sides.norms[1][j], offset) &&
           (at.I != at.J || i != j);
  };
  constexpr int count = elements < 32 ? elements : 32;
  uint32_t own[elements / count] = {};  // found once: a second look would keep the norms at hand
  bool any = false;
  if (look) {
#pragma unroll
    for (int e = 0; e < elements; ++e) own[e / count] |= uint32_t(is_near(e)) << e % count;
#pragma unroll
    for (int c = 0; c < elements / count; ++c) any |= own[c] != 0;
    for (int w = ptx::thread_of_branch(); w < tile * words; w += Products::threads) pairs[w] = 0;
    any = __syncthreads_or(any);
  }
  if (threadIdx.x == 0) args.near_tiles[place] = any;
  if (!any) return false;
#pragma unroll
  for (int c = 0; c < elements / count; ++c)
#pragma unroll 1
    for (uint32_t left = own[c]; left; left &= left - 1) {
      const int e = c * count + __ffs(int(left)) - 1, j = Products::column(e);
      atomicOr(pairs + Products::row(e) * words + j / 32, 1u << j % 32);
    }
  return true;
}

// Sets the weights of a tile's bits to 0 in the stage, between two barriers.
template <int tile, class E, class T>
__device__ __forceinline__ void erase_near(const TileArgs<T>& args, const Tile& at, int l,
                                           E* stage) {
  constexpr int words = near_words(tile);
  const int64_t place =
      near_place(args, tile, l, (at.I - args.row) / tile, (at.J - args.column) / tile);
#pragma unroll 1
  for (int w = ptx::thread_of_branch(); w < tile * words; w += blockDim.x)
#pragma unroll 1
    for (uint32_t left = __ldcg(args.near_pairs + place * (tile * words) + w); left;
         left &= left - 1)
      stage[w / words * stage_stride<E, tile>() + w % words * 32 + __ffs(int(left)) - 1] = E{};
}

// Adds the gradients of a panel's very near pairs to those of x and y, after its tiles; null where
// none is wanted.
template <class T>
void add_near_pairs(const TileArgs<T>& args, const Launch& launch, int tile, T* v_x, T* v_y);

}  // namespace fastmmd::cuda

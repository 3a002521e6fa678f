// Tiles of the pairwise matrix: which there are, what is known of their rows, and how what was made
// of them leaves the chip by way of a stage in shared memory.
#pragma once

#include "cuda/points.cuh"

namespace fastmmd::cuda {

template <class T>
struct TileArgs {
  Points<T> points;
  int64_t row, rows, column, columns;  // the rectangle, in packed rows
  bool triangle;                       // only tiles with I <= J, which stand for (J, I) too
  double copies;                       // of other rectangles: 2 if the mirror is meant as well
  // [rows, columns] gradient weights, of distances in operand type, else in T; null if not wanted.
  void* w[max_factors];
  // Sums over a tile's columns, and over its rows, of gradient weights for each factor and, last,
  // of 2 C a_j k_ij: [quantities][columns / tile][rows] and [quantities][rows / tile][columns].
  T* row_parts;
  T* column_parts;
  // Pairs whose gradient does not come from the panel (near.cuh), of each moving factor and tile:
  // whether there are any, and which, a bit for each column of a row. Row by row of tiles.
  uint32_t* near_tiles;  // [num_moving][rows / tile][columns / tile]
  uint32_t* near_pairs;  // [the same][tile][near_words(tile)]
};

struct Tile {
  int64_t I, J;  // first packed rows
};

// Tile number t of a rectangle: bands of eight tile rows, column by column, or of a triangle bands
// of eight tile columns, row by row, so that the tiles that are worked on at one time share their
// rows in the L2 cache.
template <class T>
__device__ inline Tile tile_of(const TileArgs<T>& args, int64_t t, int tile) {
  constexpr int64_t band = 8;
  const int64_t columns = (args.columns + tile - 1) / tile, rows = (args.rows + tile - 1) / tile;
  if (args.triangle) {
    int64_t j = int64_t((sqrt(8.0 * double(t) + 1) - 1) / 2);  // j (j + 1) / 2 tiles are left of j
    while (j * (j + 1) / 2 > t) --j;
    while ((j + 1) * (j + 2) / 2 <= t) ++j;
    const int64_t first = j / band * band, left = columns - first;
    const int64_t width = left < band ? left : band;
    int64_t at = t - first * (first + 1) / 2, i = at / width;
    if (i > first) {  // below the diagonal rows grow shorter
      at -= width * (first + 1);
      for (i = first + 1; at >= width - (i - first); ++i) at -= width - (i - first);
      return {args.row + i * tile, args.column + (i + at) * tile};
    }
    return {args.row + i * tile, args.column + (first + at % width) * tile};
  }
  const int64_t first = t / (band * columns) * band, left = rows - first;
  const int64_t at = t - first * columns;
  if (left >= band)  // divisions of 64 bits are long
    return {args.row + (first + at % band) * tile, args.column + at / band * tile};
  return {args.row + (first + at % left) * tile, args.column + at / left * tile};
}

template <class T>
FASTMMD_INLINE int64_t tiles_of(const TileArgs<T>& args, int tile) {
  const int64_t rows = (args.rows + tile - 1) / tile, columns = (args.columns + tile - 1) / tile;
  return args.triangle ? columns * (columns + 1) / 2 : rows * columns;
}

// Rows of a tile in shared memory: norms and weights of its two sides.
template <class T, int tile>
struct Sides {
  alignas(16) T norms[2][tile], weights[2][tile];

  // The same by copies behind the back of the threads (sm_80), which wait for them and synchronise
  // before they read.
  __device__ void fetch(const Points<T>& points, const Factor<T>& f, const Tile& at) {
    constexpr int count = 16 / int(sizeof(T)), vectors = tile / count;
    for (int v = threadIdx.x; v < 4 * vectors; v += blockDim.x) {
      const int side = v / vectors % 2, i = v % vectors * count;
      const int64_t row = (side ? at.J : at.I) + i;
      const bool second = v >= 2 * vectors;
      ptx::cp_async16((second ? weights : norms)[side] + i,
                      (second ? points.weights : f.norms) + row);
    }
    ptx::cp_async_commit();
  }

  __device__ void load(const Points<T>& points, const Factor<T>& f, const Tile& at) {
    for (int r = threadIdx.x; r < 2 * tile; r += blockDim.x) {
      const int side = r >= tile, i = r % tile;
      const int64_t row = (side ? at.J : at.I) + i;
      norms[side][i] = f.norms[row];
      weights[side][i] = points.weights[row];
    }
  }
};

// A tile of values in shared memory has rows of this many elements.
template <class E, int tile>
constexpr int stage_stride() {
  return tile + 16 / int(sizeof(E));  // 16-byte rows, of which no two begin in one bank
}

// A tile of values in shared memory: to the panel. All threads call it; the stage may be written
// again after the next barrier.
template <Operand operand, int tile, class T>
__device__ void write_tile(const T* stage, const TileArgs<T>& args, const Tile& at, void* w) {
  constexpr int stride = stage_stride<T, tile>();
  const int64_t i0 = at.I - args.row, j0 = at.J - args.column;
  if (!w) return;
  using E = typename Stored<operand>::type;
  constexpr int vector = 16 / int(sizeof(E)), vectors = tile / vector;
  struct alignas(16) Vector {
    E e[vector];
  };
  for (int v = threadIdx.x; v < tile * vectors; v += blockDim.x) {
    const int i = v / vectors, j = v % vectors * vector;
    Vector out;
#pragma unroll
    for (int c = 0; c < vector; ++c) out.e[c] = Stored<operand>::round(stage[i * stride + j + c]);
    *reinterpret_cast<Vector*>(static_cast<E*>(w) + (i0 + i) * args.columns + j0 + j) = out;
  }
}

// The sums over columns of what is staged to the row parts, and over rows to the column parts if
// there are any; `weight(side, i)` is that of a column (side 1) or row in them. All threads call
// it.
template <int tile, class T, class Weight>
__device__ __forceinline__ void write_sums(const T* stage, const TileArgs<T>& args, const Tile& at,
                                           int quantity, const Weight& weight) {
  constexpr int stride = stage_stride<T, tile>();
  const int64_t i0 = at.I - args.row, j0 = at.J - args.column;
  for (int r = threadIdx.x; r < 2 * tile; r += blockDim.x) {
    const bool column = r >= tile;
    if (column && !args.column_parts) continue;
    const int place = r % tile;
    T sum = 0;
    for (int other = 0; other < tile; ++other)
      sum += weight(!column, other) *
             (column ? stage[other * stride + place] : stage[place * stride + other]);
    if (column)
      args.column_parts[(quantity * (args.rows / tile) + i0 / tile) * args.columns + j0 + place] =
          sum;
    else
      args.row_parts[(quantity * (args.columns / tile) + j0 / tile) * args.rows + i0 + place] = sum;
  }
}

// Of gradient weights for factor l.
template <int tile, class T>
__device__ void add_pulls(const T* stage, const TileArgs<T>& args, const Tile& at, int l) {
  write_sums<tile>(stage, args, at, l, [](int, int) { return T(1); });
}

// Of 2 C k_ij.
template <int tile, class T>
__device__ void add_potentials(const T* stage, const Sides<T, tile>& sides, const TileArgs<T>& args,
                               const Tile& at) {
  write_sums<tile>(stage, args, at, args.points.num_moving,
                   [&](int side, int i) { return sides.weights[side][i]; });
}

// Two neighbouring weights of a row to the stage, rounded to the operand.
template <Operand operand, class E, class T>
__device__ __forceinline__ void put_weights(E* to, T first, T second) {
  struct alignas(2 * sizeof(E)) Both {
    E e[2];
  };
  if constexpr (operand == Operand::bfloat16)
    *reinterpret_cast<uint32_t*>(to) = ptx::pack_bf16(first, second);
  else if constexpr (operand == Operand::float16)
    *reinterpret_cast<uint32_t*>(to) = ptx::pack_half(first, second);
  else if constexpr (operand == Operand::tf32)
    *reinterpret_cast<Both*>(to) = {
        {__uint_as_float(ptx::as_tf32(first)), __uint_as_float(ptx::as_tf32(second))}};
  else *reinterpret_cast<Both*>(to) = {{first, second}};
}

// The elements of 16 bytes of the stage.
template <Operand operand, int count, class T>
__device__ __forceinline__ void unpack(const uint4& words, T (&values)[count]) {
  if constexpr (count == 8) {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int c = 0; c < count; ++c)
      if constexpr (operand == Operand::bfloat16)
        values[c] = __uint_as_float(c % 2 ? word[c / 2] & 0xffff0000u : word[c / 2] << 16);
      else values[c] = from_half(uint16_t(word[c / 2] >> (16 * (c % 2))));
  } else {
    memcpy(values, &words, sizeof(words));
  }
}

// A tile of gradient weights in shared memory: to the panel, and their sums over columns to the row
// parts and over rows to the column parts, if there are any. All threads call it; the stage may be
// written again after the next barrier.
template <Operand operand, int tile, int threads, class E, class T>
__device__ __forceinline__ void write_weights(E* stage, const TileArgs<T>& args, const Tile& at,
                                              void* w) {
  constexpr int stride = stage_stride<E, tile>();
  constexpr int vector = 16 / int(sizeof(E)), vectors = tile / vector, rows = threads / vectors;
  static_assert(vectors <= 32 && threads % vectors == 0 && tile % rows == 0);
  static_assert(rows * sizeof(T) <= stride * sizeof(E), "the stage is used twice");
  const int64_t i0 = at.I - args.row, j0 = at.J - args.column;
  const int first = threadIdx.x / vectors, j = threadIdx.x % vectors * vector;
  E* to = static_cast<E*>(w) + (i0 + first) * args.columns + j0 + j;
  T* const row_sums = args.row_parts + j0 / tile * args.rows + i0 + first;
  T of_column[vector] = {};
#pragma unroll 2
  for (int step = 0; step < tile / rows; ++step) {
    const uint4 words = *reinterpret_cast<const uint4*>(stage + (step * rows + first) * stride + j);
    ptx::store16(to, words);
    to += rows * args.columns;
    T weights[vector], of_row = 0;
    unpack<operand>(words, weights);
#pragma unroll
    for (int c = 0; c < vector; ++c) {
      of_row += weights[c];
      of_column[c] += weights[c];
    }
#pragma unroll
    for (int lane = vectors / 2; lane; lane /= 2)
      of_row += __shfl_xor_sync(0xffffffffu, of_row, lane);
    if (j == 0) row_sums[step * rows] = of_row;
  }
  if (!args.column_parts) return;
  T* const parts = reinterpret_cast<T*>(stage);
  __syncthreads();
#pragma unroll
  for (int c = 0; c < vector; ++c) parts[first * tile + j + c] = of_column[c];
  __syncthreads();
  for (int column = threadIdx.x; column < tile; column += threads) {
    T sum = 0;
#pragma unroll
    for (int part = 0; part < rows; ++part) sum += parts[part * tile + column];
    args.column_parts[i0 / tile * args.columns + j0 + column] = sum;
  }
}

}  // namespace fastmmd::cuda

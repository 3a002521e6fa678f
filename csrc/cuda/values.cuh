// Tiles of the points themselves, without padding, and of kernel values, for the passes that use
// these as they are.
#pragma once

#include "cuda/simt.cuh"

namespace fastmmd::cuda {

struct Place {
  int64_t i, j;
};

// Number t = j (j + 1) / 2 + i of the pairs i <= j.
__device__ inline Place triangle(int64_t t) {
  int64_t j = int64_t((sqrt(8.0 * double(t) + 1) - 1) / 2);
  while (j * (j + 1) / 2 > t) --j;
  while ((j + 1) * (j + 2) / 2 <= t) ++j;
  return {t - j * (j + 1) / 2, j};
}

FASTMMD_INLINE int64_t tiles_of_rows(int64_t rows, int tile) { return (rows + tile - 1) / tile; }

// Tile rows that hold a point, and where they lie.
FASTMMD_INLINE int64_t pooled_sides(const Rows& rows, int tile) {
  return tiles_of_rows(rows.n, tile) + tiles_of_rows(rows.m, tile);
}

__device__ inline int64_t pooled_row(const Rows& rows, int64_t side, int tile) {
  const int64_t x = tiles_of_rows(rows.n, tile);
  return side < x ? side * tile : rows.first(1) + (side - x) * tile;
}

__device__ inline Tile pooled_tile(const Rows& rows, const Place& at, int tile) {
  return {pooled_row(rows, at.i, tile), pooled_row(rows, at.j, tile)};
}

// Points among the packed rows [row, row + tile).
__device__ inline int existing(const Rows& rows, int64_t row, int tile) {
  const int64_t left = row < rows.first(1) ? rows.n - row : rows.first(1) + rows.m - row;
  return left < tile ? int(left) : tile;
}

// k at u. A lone chain of Gaussians is kept in registers, as in Evaluate.
template <bool gaussian, class T>
struct Value {
  const Segments<T>& segments;
  const Segment<T> first;

  __device__ explicit Value(const Segments<T>& s) : segments(s), first(s.segment[0]) {}

  __device__ __forceinline__ T operator()(T u) const {
    using Math = DeviceMath<T>;
    T k = 0;
    if constexpr (gaussian) {
      Gaussian::eval<Math>(u, first, k);
      for (int s = 1; s < segments.count; ++s) Gaussian::eval<Math>(u, segments.segment[s], k);
    } else {
      for (int s = 0; s < segments.count; ++s)
        dispatch(segments.segment[s].family, [&](auto family) {
          decltype(family)::template eval<Math>(u, segments.segment[s], k);
        });
    }
    return k;
  }
};

// Tiles of kernel values, products of factors among them, in shared memory. `gaussian`: all terms
// are.
template <class T_, bool gaussian>
struct ValueTiles {
  using T = T_;
  // Small in float64, for the shared memory of any GPU.
  using P = std::conditional_t<sizeof(T) == 8, Simt<Operand::float64, 32, 4>,
                               Simt<Operand::float32, 64, 8>>;
  static constexpr int tile = P::tile, side = P::side, threads = P::threads;
  static constexpr int stride = stage_stride<T, tile>();
  static constexpr int num_warps = threads / 32;
  static constexpr int rows = tile / side;  // of a thread

  // Columns of a right-hand side at a time: `columns` of each thread.
  template <int columns>
  static constexpr int width = side * columns;

  static constexpr int work_bytes(int columns) {
    int most = P::shared_bytes;
    for (int bytes : {tile * tile * int(sizeof(T)), tile * side * columns * int(sizeof(T))})
      if (bytes > most) most = bytes;
    return most;
  }
  static constexpr int stage_bytes = tile * stride * int(sizeof(T));

  // What make() keeps in static shared memory.
  struct Room {
    Segments<T> segments;
    Sides<T, tile> sides;
  };

  // All threads call it, once, before the first tile.
  static __device__ void begin(const Points<T>& points, Room& room) {
    room.segments.load(points.resolved->kernel[0]);
    __syncthreads();
  }

  // stage[column * stride + row] = k, and 0 on padding. `work` may be overwritten when all threads
  // have come here, and when they leave.
  static __device__ void make(const Points<T>& points, const Tile& at, Room& room, char* work,
                              T* stage) {
    for (int l = 0; l < points.num_factors; ++l) {
      const Factor<T>& f = points.factors[l];
      T u[P::elements];
      __syncthreads();
      if (points.num_factors > 1) room.segments.load(points.resolved->kernel[l]);
      for (int r = threadIdx.x; r < 2 * tile; r += threads)
        room.sides.norms[r >= tile][r % tile] = f.norms[(r < tile ? at.I : at.J) + r % tile];
      P::multiply({}, f, at.I, at.J, work, u);
      __syncthreads();
      if (f.geometry == Geometry::radial)
        distances<P>(f, at, points.resolved->kernel[l].near_offset, room.sides, work, u);
      else complete<P>(room.sides, u);
      const int I = existing(points.rows, at.I, tile), J = existing(points.rows, at.J, tile);
      const Value<gaussian, T> value(room.segments);
      // From registers to shared memory, as a loop over registers is code for each; threads read
      // none but their own.
      T* const statistics = reinterpret_cast<T*>(work) + threadIdx.x;
#pragma unroll
      for (int e = 0; e < P::elements; ++e) statistics[e * threads] = u[e];
      constexpr int at_a_time = gaussian ? rows : 1;
#pragma unroll 1
      for (int e = 0; e < P::elements; e += at_a_time)
#pragma unroll
        for (int c = 0; c < at_a_time; ++c) {
          const int i = P::row(e + c), j = P::column(e + c);
          T& k = stage[j * stride + i];
          const T own = value(statistics[(e + c) * threads]);
          k = i >= I || j >= J ? T(0) : l ? k * own : own;
        }
    }
    __syncthreads();
  }

  // Of the products of a tile with a right-hand side, those that are this thread's.
  static __device__ __forceinline__ int row(int r) { return P::position(threadIdx.x / side, r); }
  template <int columns>
  static __device__ __forceinline__ int column(int c) {
    return columns == 1 ? threadIdx.x % side : P::position(threadIdx.x % side, c);
  }
  // sums[r][c] = sum_j k_row(r),j v[j][column(c)], with v [tile, width] in shared memory.
  template <int columns>
  static __device__ __forceinline__ void multiply(const T* stage, const T* v,
                                                  T (&sums)[rows][columns]) {
#pragma unroll
    for (int r = 0; r < rows; ++r)
#pragma unroll
      for (int c = 0; c < columns; ++c) sums[r][c] = 0;
#pragma unroll 4
    for (int j = 0; j < tile; ++j) {
      T a[rows], b[columns];
#pragma unroll
      for (int r = 0; r < rows; ++r) a[r] = stage[j * stride + row(r)];
#pragma unroll
      for (int c = 0; c < columns; ++c) b[c] = v[j * width<columns> + column<columns>(c)];
#pragma unroll
      for (int r = 0; r < rows; ++r)
#pragma unroll
        for (int c = 0; c < columns; ++c) sums[r][c] += a[r] * b[c];
    }
  }
};

}  // namespace fastmmd::cuda

// The tile loop of the GPU: inner products by a policy, kernel values and gradient weights in
// registers, their sums.
//
// A thread block takes tiles (I, J) of the pairwise matrix in turn. `Products`, the policy, says
// how the inner products of a tile are made and where its elements lie:
//
//     T, operand, threads, blocks (of one multiprocessor), tile (rows and columns of a tile),
//     elements (of a thread), shared_bytes, Params (by value to the kernel),
//     params(points), on the host
//     row(e), column(e)                        where element e of this thread lies in the tile
//     multiply(params, f, I, J, shared, u)     u[e] = <z_I+row(e), z_J+column(e)>
//     exact                                    whether near pairs are worth making again, by
//     differences(f, I, J, shared, u)          u[e] = |z_I+row(e) - z_J+column(e)|^2
//
// One that keeps something from tile to tile, or loads before it is asked to, also has
//
//     looks_ahead = true
//     begin(params, shared)                        before the first tile and a barrier
//     look_ahead<staged>(params, f, I, J, shared)  of the next tile; all threads are done with the
//                                                  products of this one. `staged`: the stage is
//                                                  about to be written
//     hand_back()                                  the stage will not be touched any more
//
// Everything after the inner products is written once, here. Signs and factors of the gradient
// weights g are those of the CPU's tile loop: with C a_i a_j k the pair's part of the sum over all
// ordered pairs, g = -4 C a_i a_j k'(D), or 2 C a_i a_j k'(u) for inner products; then
// v_i = sum_j g_ij z_j, less z_i sum_j g_ij for distances.
#pragma once

#include <type_traits>

#include "cuda/points.cuh"

namespace fastmmd::cuda {

// D of a pair is made again from differences below near * (|z_i|^2 + |z_j|^2), where the inner
// product has left it 2^-14 relative accuracy in float32.
constexpr double near = 1.0 / (1 << 10);

template <class T>
struct TileArgs {
  Points<T> points;
  int64_t row, rows, column, columns;  // the rectangle, in packed rows
  bool triangle;                       // only tiles with I <= J, which stand for (J, I) too
  double copies;                       // of other rectangles: 2 if the mirror is meant as well
  void* w[max_factors];  // [rows, columns] gradient weights in operand type; null if not wanted
  // Sums over a tile's columns, and over its rows, of gradient weights for each factor and, last,
  // of 2 C a_j k_ij: [quantities][columns / tile][rows] and [quantities][rows / tile][columns].
  T* row_parts;
  T* column_parts;
};

struct Tile {
  int64_t I, J;  // first packed rows
};

template <class Products, class = void>
struct LooksAhead : std::false_type {};
template <class Products>
struct LooksAhead<Products, std::enable_if_t<Products::looks_ahead>> : std::true_type {};

// Tile number t of a rectangle: bands of eight tile rows, column by column, so that the tiles that
// are worked on at one time share their rows in the L2 cache.
template <class T>
__device__ inline Tile tile_of(const TileArgs<T>& args, int64_t t, int tile) {
  const int64_t columns = args.columns / tile;
  if (args.triangle) {  // number t = j (j + 1) / 2 + i
    int64_t j = int64_t((sqrt(8.0 * double(t) + 1) - 1) / 2);
    while (j * (j + 1) / 2 > t) --j;
    while ((j + 1) * (j + 2) / 2 <= t) ++j;
    return {args.row + (t - j * (j + 1) / 2) * tile, args.column + j * tile};
  }
  constexpr int64_t band = 8;
  const int64_t first = t / (band * columns) * band, left = args.rows / tile - first;
  const int64_t height = left < band ? left : band, at = t - first * columns;
  return {args.row + (first + at % height) * tile, args.column + at / height * tile};
}

template <class T>
FASTMMD_INLINE int64_t tiles_of(const TileArgs<T>& args, int tile) {
  const int64_t rows = args.rows / tile, columns = args.columns / tile;
  return args.triangle ? columns * (columns + 1) / 2 : rows * columns;
}

// The segments of one factor in shared memory; terms gathers what they say of terms by link.
template <class T>
struct Segments {
  Segment<T> segment[max_terms];
  uint8_t order[max_terms][max_chain];
  int count;

  // Called by all threads of the block, which synchronise before they read.
  __device__ void load(const typename Kernel<T>::Range& range) {
    if (threadIdx.x == 0) count = range.num_segments;
    for (int s = threadIdx.x; s < range.num_segments; s += blockDim.x) {
      segment[s] = range.segments[s];
      for (int q = 0; q < segment[s].length; ++q) {
        order[s][q] = uint8_t(segment[s].term[q]);
        segment[s].term[q] = q;
      }
    }
  }
};

// k and its slope at u. A lone chain of Gaussians, by far the most common kernel, is kept in
// registers by those that evaluate many pairs.
template <bool gaussian, class T>
struct Evaluate {
  const Segments<T>& segments;
  const Segment<T> first;
  const bool lone;

  __device__ explicit Evaluate(const Segments<T>& s)
      : segments(s), first(s.segment[0]), lone(s.count == 1) {}

  __device__ __forceinline__ void operator()(T u, T& k, T& dk) const {
    using Math = DeviceMath<T>;
    k = dk = 0;
    if constexpr (gaussian) {
      Gaussian::grad<Math>(u, first, k, dk);
      if (!lone)
        for (int s = 1; s < segments.count; ++s)
          Gaussian::grad<Math>(u, segments.segment[s], k, dk);
    } else {
      for (int s = 0; s < segments.count; ++s)
        dispatch(segments.segment[s].family, [&](auto family) {
          decltype(family)::template grad<Math>(u, segments.segment[s], k, dk);
        });
    }
  }
};

// Which pairs count for nothing though both rows exist.
template <class T>
__device__ __forceinline__ bool is_silent(const Points<T>& points, int64_t i, int64_t j) {
  return i == j && !points.pairs.self_within;
}

// sums[t], of the links of one segment after another, of a tile's elements: one call by all
// threads of the block. `pair(e)` is the weight of an element, u(e) its statistic.
template <int threads, int elements, class T, class Pair, class Statistic>
__device__ void add_terms(const Segments<T>& segments, int num_terms, T* slots, double* room,
                          double* sums, const Pair& pair, const Statistic& u) {
  T* const v_w = slots + threadIdx.x * 2 * max_chain;
  T* const v_c = v_w + max_chain;
  for (int s = 0; s < segments.count; ++s) {
    const Segment<T>& segment = segments.segment[s];
    for (int q = 0; q < 2 * max_chain; ++q) v_w[q] = 0;
    for (int e = 0; e < elements; ++e)
      dispatch(segment.family, [&](auto family) {
        decltype(family)::template terms<DeviceMath<T>>(u(e), segment, pair(e), v_w, v_c);
      });
    for (int q = 0; q < segment.length; ++q) {
      const double w = block_sum<threads>(double(v_w[q]), room);
      const double c = block_sum<threads>(double(v_c[q]), room);
      if (threadIdx.x == 0) {
        sums[3 + segments.order[s][q]] += w;
        sums[3 + num_terms + segments.order[s][q]] += c;
      }
    }
  }
}

// Rows of a tile in shared memory: norms and weights of its two sides.
template <class T, int tile>
struct Sides {
  T norms[2][tile], weights[2][tile];

  __device__ void load(const Points<T>& points, const Factor<T>& f, const Tile& at) {
    for (int r = threadIdx.x; r < 2 * tile; r += blockDim.x) {
      const int side = r >= tile, i = r % tile;
      const int64_t row = (side ? at.J : at.I) + i;
      norms[side][i] = f.norms[row];
      weights[side][i] = points.weights[row];
    }
  }
};

// The sums of a thread's pairs.
struct Totals {
  double xx = 0, yy = 0, xy = 0;

  __device__ void add(int domain, int other, double value) {
    if (domain != other) xy += value;
    else if (domain) yy += value;
    else xx += value;
  }

  // Called by all threads of the block.
  template <int threads>
  __device__ void write(double* room, double* sums) const {
    const double total[3] = {block_sum<threads>(xx, room), block_sum<threads>(yy, room),
                             block_sum<threads>(xy, room)};
    if (threadIdx.x == 0)
#pragma unroll
      for (int which = 0; which < 3; ++which) sums[which] += total[which];
  }
};

// What a pair's part of the sum over all ordered pairs is divided by.
template <class T>
__device__ inline double divisor(const Points<T>& points, const Divisors& by, const Tile& at) {
  const int domain = points.domain(at.I);
  return domain == points.domain(at.J) ? by.within[domain] : by.across;
}

template <class T, int tile>
constexpr int stage_stride() {
  return tile + 16 / int(sizeof(T));  // 16-byte rows, of which no two begin in one bank
}

// A tile of values in shared memory: to the panel, and its sums over columns and over rows. All
// threads call it; the stage may be written again after the next barrier.
template <Operand operand, int tile, class T>
__device__ void write_tile(const T* stage, const TileArgs<T>& args, const Tile& at, void* w,
                           int quantity, T* row_sums, T* column_sums) {
  constexpr int stride = stage_stride<T, tile>();
  const int64_t i0 = at.I - args.row, j0 = at.J - args.column;
  if (w) {
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
  if (row_sums)
    for (int i = threadIdx.x; i < tile; i += blockDim.x) {
      T sum = 0;
      for (int j = 0; j < tile; ++j) sum += stage[i * stride + j];
      row_sums[(quantity * (args.columns / tile) + j0 / tile) * args.rows + i0 + i] = sum;
    }
  if (column_sums)
    for (int j = threadIdx.x; j < tile; j += blockDim.x) {
      T sum = 0;
      for (int i = 0; i < tile; ++i) sum += stage[i * stride + j];
      column_sums[(quantity * (args.rows / tile) + i0 / tile) * args.columns + j0 + j] = sum;
    }
}

// The weighted sums of a staged tile of 2 C k_ij, in the place of quantity `quantity`.
template <int tile, class T>
__device__ void add_potentials(const T* stage, const Sides<T, tile>& sides, const TileArgs<T>& args,
                               const Tile& at, int quantity) {
  constexpr int stride = stage_stride<T, tile>();
  const int64_t i0 = at.I - args.row, j0 = at.J - args.column;
  for (int r = threadIdx.x; r < 2 * tile; r += blockDim.x) {
    const bool column = r >= tile;
    if (column && !args.column_parts) continue;
    const int at_side = r % tile;
    T sum = 0;
    for (int other = 0; other < tile; ++other)
      sum += sides.weights[!column][other] *
             (column ? stage[other * stride + at_side] : stage[at_side * stride + other]);
    if (column)
      args.column_parts[(quantity * (args.rows / tile) + i0 / tile) * args.columns + j0 + at_side] =
          sum;
    else
      args.row_parts[(quantity * (args.columns / tile) + j0 / tile) * args.rows + i0 + at_side] =
          sum;
  }
}

// The dynamic shared memory: the products' rooms, afterwards the stage; then, for kernels that are
// not looped over in registers, statistics of the tile and the slots of add_terms.
template <class Products, bool gaussian, bool gradient>
struct TileShared {
  using T = typename Products::T;
  static constexpr int of_stage = Products::tile * stage_stride<T, Products::tile>() * sizeof(T);
  static constexpr bool staged = gradient || !gaussian;
  static constexpr int first =
      staged && of_stage > Products::shared_bytes ? of_stage : Products::shared_bytes;
  static constexpr int slots = Products::threads * 2 * max_chain * int(sizeof(T));
  static constexpr int bytes = first + (gaussian ? 0 : of_stage + slots);
};

// D = |z_i|^2 + |z_j|^2 - 2 <z_i, z_j> in the place of the inner products.
template <class Products, class T>
__device__ __forceinline__ void distances(const Factor<T>& f, const Tile& at, T offset,
                                          const Sides<T, Products::tile>& sides, char* shared,
                                          T (&u)[Products::elements]) {
  const bool diagonal = at.I == at.J;
  bool again = false;
#pragma unroll
  for (int e = 0; e < Products::elements; ++e) {
    const int i = Products::row(e), j = Products::column(e);
    const T norms = sides.norms[0][i] + sides.norms[1][j];
    const bool self = diagonal && i == j;
    T D = norms - 2 * u[e];
    D = D < 0 || self ? T(0) : D;  // NaN stays
    again |= !self && D < T(near) * (norms - offset);
    u[e] = D;
  }
  if constexpr (Products::exact)
    if (__syncthreads_or(again)) {
      Products::differences(f, at.I, at.J, shared, u);
      __syncthreads();
    }
}

// One factor. `gaussian`: all its terms are, and nobody asks for gradients of weights or terms;
// then the elements of a tile stay in registers.
template <class Products, bool gaussian, bool gradient>
__global__ void __launch_bounds__(Products::threads, gaussian ? Products::blocks : 1)
    tile_kernel(const __grid_constant__ TileArgs<typename Products::T> args,
                const __grid_constant__ typename Products::Params params) {
  using T = typename Products::T;
  using Shared = TileShared<Products, gaussian, gradient>;
  constexpr int tile = Products::tile, elements = Products::elements;
  constexpr int stride = stage_stride<T, tile>();
  char* const shared = dynamic_shared();
  T* const stage = reinterpret_cast<T*>(shared);
  __shared__ Segments<T> segments;
  __shared__ Sides<T, tile> sides;
  __shared__ double room[Products::threads / 32];
  const Points<T>& points = args.points;
  const Factor<T>& f = points.factors[0];
  const Resolved<T>& resolved = *points.resolved;
  const bool radial = gaussian || f.geometry == Geometry::radial;
  double* const sums = points.sums + int64_t(blockIdx.x) * points.row_of_sums();
  segments.load(resolved.kernel[0]);
  Products products;
  constexpr bool looks_ahead = LooksAhead<Products>::value;
  if constexpr (looks_ahead) products.begin(params, shared);
  __syncthreads();
  const T offset = resolved.kernel[0].near_offset;

  Totals totals;
  const int64_t tiles = tiles_of(args, tile);
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const Tile at = tile_of(args, t, tile);
    const int domain = points.domain(at.I), other = points.domain(at.J);
    const double copies = args.triangle ? (at.I == at.J ? 1 : 2) : args.copies;
    const double C = 1 / divisor(points, resolved.by, at);
    const T slope = T((radial ? -4 : 2) * C * double(resolved.gain));
    const bool mute = at.I == at.J && !points.pairs.self_within;
    // Which pairs count for nothing though both rows exist.
    auto silent = [&](int i, int j) { return mute && i == j; };
    T u[elements];
    if constexpr (looks_ahead) products.hand_back();
    __syncthreads();  // what is read of the last tile may be overwritten
    sides.load(points, f, at);
    products.multiply(params, f, at.I, at.J, shared, u);
    __syncthreads();
    if constexpr (looks_ahead)
      if (t + gridDim.x < tiles) {
        const Tile next = tile_of(args, t + gridDim.x, tile);
        products.template look_ahead<Shared::staged>(params, f, next.I, next.J, shared);
      }
    if (radial) distances<Products>(f, at, offset, sides, shared, u);

    const Evaluate<gaussian, T> evaluate(segments);
    T sum = 0;
    // One element: its part of the sum, and its gradient weight, rounded first, so that the sums
    // are of the weights that the products use.
    auto element = [&](int i, int j, T statistic) -> T {
      T a = sides.weights[0][i] * sides.weights[1][j];
      // A pair that does not count must not overflow, as infinity times 0 is no number.
      if (silent(i, j)) a = statistic = 0;
      if (!radial && a == 0) statistic *= 0;
      T k, dk;
      evaluate(statistic, k, dk);
      sum += a * k;
      return gradient ? value_of(Stored<Products::operand>::round(slope * a * dk)) : T(0);
    };
    if constexpr (gaussian) {
#pragma unroll
      for (int e = 0; e < elements; ++e) {
        const int i = Products::row(e), j = Products::column(e);
        const T g = element(i, j, u[e]);
        if constexpr (gradient) stage[i * stride + j] = g;
      }
    } else {
      T* const statistics = reinterpret_cast<T*>(shared + Shared::first);
#pragma unroll
      for (int e = 0; e < elements; ++e)
        statistics[Products::row(e) * stride + Products::column(e)] = u[e];
      // Threads read none but their own.
      auto statistic = [&](int e) {
        return statistics[Products::row(e) * stride + Products::column(e)];
      };
      auto is_silent = [&](int e) { return silent(Products::row(e), Products::column(e)); };
      if (points.num_terms) {
        add_terms<Products::threads, elements>(
            segments, points.num_terms,
            reinterpret_cast<T*>(shared + Shared::first + Shared::of_stage), room, sums,
            [&](int e) {
              return is_silent(e) ? T(0)
                                  : T(copies * C) * sides.weights[0][Products::row(e)] *
                                        sides.weights[1][Products::column(e)];
            },
            [&](int e) { return is_silent(e) ? T(0) : statistic(e); });
      }
      if (points.potentials) {
        for (int e = 0; e < elements; ++e) {
          T k, dk;
          evaluate(statistic(e), k, dk);
          stage[Products::row(e) * stride + Products::column(e)] =
              is_silent(e) ? T(0) : T(2 * C) * k;
        }
        __syncthreads();
        add_potentials<tile>(stage, sides, args, at, points.num_moving);
        __syncthreads();
      }
      for (int e = 0; e < elements; ++e) {
        const int i = Products::row(e), j = Products::column(e);
        const T g = element(i, j, statistic(e));
        if constexpr (gradient) stage[i * stride + j] = g;
      }
    }
    totals.add(domain, other, copies * double(sum));
    if constexpr (gradient) {
      __syncthreads();
      write_tile<Products::operand, tile>(stage, args, at, args.w[0], 0,
                                          radial ? args.row_parts : nullptr,
                                          radial ? args.column_parts : nullptr);
    }
  }
  totals.template write<Products::threads>(room, sums);
}

}  // namespace fastmmd::cuda

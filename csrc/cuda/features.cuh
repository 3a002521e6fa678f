// Tiles of projections t_ji = <w_j, z_i>, rows j frequencies and columns i points: what they are
// turned into. The products are those of tile.cuh; points and frequencies are the two domains of
// one packed sample.
#pragma once

#include "cuda/features.h"
#include "cuda/sincos.cuh"
#include "cuda/tile.cuh"

namespace fastmmd::cuda {

// P and Q of the gradients, by the rates in their order, over rows.
template <class T>
struct Pulls {
  const T *p, *q;  // [rates][pitch]
  int64_t pitch;
};

// What is added up over points, of each rate: a cos, a sin, and with moments a t cos, a t sin.
FASTMMD_INLINE constexpr int kinds(bool moments) { return moments ? 4 : 2; }

template <class T>
struct FeatureTiles {
  TileArgs<T> tiles;  // rows are frequencies, columns points
  const Rates<T>* rates;
  // Of sums: points are cut into so many parts.
  int parts;
  bool moments;
  double* partial;  // [parts, threads of a row][kinds][rates][rows]
  // Of gradients.
  Pulls<T> pulls;
  T* weight_parts;  // [rows / tile][columns]; null if not wanted
};

// Two or four neighbouring numbers of a row.
template <class T>
struct alignas(16) Quad {
  static constexpr int count = 16 / int(sizeof(T));
  T e[count];
};

// The rates in shared memory; by all threads, before a barrier.
template <class T>
__device__ __forceinline__ void load_rates(const Rates<T>* from, Rates<T>& to) {
  static_assert(sizeof(Rates<T>) % sizeof(uint32_t) == 0);
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(from);
  for (int w = threadIdx.x; w < int(sizeof(Rates<T>) / sizeof(uint32_t)); w += blockDim.x)
    reinterpret_cast<uint32_t*>(&to)[w] = words[w];
}

// Up to longest_chain rates of one thread's row, and what is added up of them.
template <bool exact, class T>
struct ChainSums {
  T sums[4][longest_chain] = {};

  template <int count>
  __device__ __forceinline__ void add(T rate, int length, bool moments, const T (&t)[count],
                                      const T (&a)[count]) {
    each_link<exact>(rate, length, t, [&](int q, const T(&sine)[count], const T(&cosine)[count]) {
#pragma unroll
      for (int e = 0; e < count; ++e) {
        sums[0][q] += a[e] * cosine[e];
        sums[1][q] += a[e] * sine[e];
      }
      if (moments)
#pragma unroll
        for (int e = 0; e < count; ++e) {
          const T at = a[e] * t[e];
          sums[2][q] += at * cosine[e];
          sums[3][q] += at * sine[e];
        }
    });
  }

  // To what was there before, unless this is the first. Place k of kind s is at (s rates + k)
  // pitch.
  __device__ __forceinline__ void write(double* to, int64_t rates, int64_t pitch, int length,
                                        bool moments, bool is_first) const {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if (s >= kinds(moments)) break;
#pragma unroll
      for (int q = 0; q < longest_chain; ++q) {
        if (q >= length) break;
        double& sum = to[(s * rates + q) * pitch];
        sum = is_first ? double(sums[s][q]) : sum + double(sums[s][q]);
      }
    }
  }
};

// The slopes of one row's chain, and what its weights pull.
template <bool exact, class T>
struct ChainPulls {
  T p[longest_chain], q[longest_chain], rate[longest_chain];
  int length;

  // Of chain c and row `row` of the pulls.
  __device__ __forceinline__ void load(const Rates<T>& rates, int c, const Pulls<T>& pulls,
                                       int64_t row) {
    const int first = rates.first[c];
    length = rates.first[c + 1] - first;
#pragma unroll
    for (int k = 0; k < longest_chain; ++k) {
      const bool there = k < length;
      rate[k] = there ? rates.rate[first + k] : T(0);
      p[k] = there ? pulls.p[(first + k) * pulls.pitch + row] : T(0);
      q[k] = there ? pulls.q[(first + k) * pulls.pitch + row] : T(0);
    }
  }

  template <int count>
  __device__ __forceinline__ void add(const T (&t)[count], T (&slope)[count],
                                      T (&value)[count]) const {
    each_link<exact>(rate[0], length, t,
                     [&](int k, const T(&sine)[count], const T(&cosine)[count]) {
#pragma unroll
                       for (int e = 0; e < count; ++e) {
                         slope[e] += rate[k] * (p[k] * cosine[e] - q[k] * sine[e]);
                         value[e] += q[k] * cosine[e] + p[k] * sine[e];
                       }
                     });
  }
};

// The loop over tiles that both kernels share: projections, one tile after another, in a stage.
template <class Products>
struct ProjectionTiles {
  using T = typename Products::T;
  static constexpr int tile = Products::tile, threads = Products::threads;
  static constexpr int stride = stage_stride<T, tile>();
  static constexpr int stage_bytes = tile * stride * int(sizeof(T));
  static constexpr int shared_bytes =
      stage_bytes > Products::shared_bytes ? stage_bytes : Products::shared_bytes;
  static constexpr bool looks_ahead = LooksAhead<Products>::value;
  static constexpr int groups = threads / tile;  // threads of a row, each with so many columns
  static constexpr int width = tile / groups;

  // In static shared memory.
  struct Room {
    Rates<T> rates;
    alignas(16) T weights[tile];  // of points
  };

  const FeatureTiles<T>& args;
  const typename Products::Params& params;
  Room& room;
  Products products;

  __device__ T* stage() const { return reinterpret_cast<T*>(dynamic_shared()); }
  // What is this thread's of the stage.
  static __device__ int row() { return threadIdx.x % tile; }
  static __device__ int column() { return threadIdx.x / tile * width; }
  __device__ Quad<T>& at(int c) const {
    return *reinterpret_cast<Quad<T>*>(stage() + row() * stride + column() + c);
  }
  __device__ const Quad<T>& weights(int c) const {
    return *reinterpret_cast<const Quad<T>*>(room.weights + column() + c);
  }

  __device__ void begin() {
    load_rates(args.rates, room.rates);
    if constexpr (looks_ahead) products.begin(params, dynamic_shared());
    __syncthreads();
  }

  // The tile, in the stage; by all threads. `next` comes after it, if `more`.
  __device__ __forceinline__ void make(const Tile& here, bool more, const Tile& next) {
    const Factor<T>& f = args.tiles.points.factors[0];
    T u[Products::elements];
    if constexpr (looks_ahead) products.hand_back(f, dynamic_shared());
    __syncthreads();  // what is read of the last tile may be overwritten
    for (int i = threadIdx.x; i < tile; i += threads)
      room.weights[i] = args.tiles.points.weights[here.J + i];
    products.multiply(params, f, here.I, here.J, dynamic_shared(), u);
    __syncthreads();
    if constexpr (looks_ahead)
      if (more) products.template look_ahead<stage_bytes>(params, f, next, dynamic_shared());
    T* const to = stage();
#pragma unroll
    for (int e = 0; e < Products::elements; ++e)
      to[Products::row(e) * stride + Products::column(e)] = u[e];
    __syncthreads();
  }
};

// Block b takes the rows of number b modulo their number of tiles, and one part of the columns.
template <class Products>
__global__ void __launch_bounds__(Products::threads, Products::blocks)
    feature_sums_kernel(const __grid_constant__ FeatureTiles<typename Products::T> args,
                        const __grid_constant__ typename Products::Params params) {
  using T = typename Products::T;
  using Tiles = ProjectionTiles<Products>;
  constexpr int tile = Tiles::tile, quad = Quad<T>::count;
  __shared__ typename Tiles::Room room;
  Tiles tiles{args, params, room, {}};
  tiles.begin();
  const TileArgs<T>& all = args.tiles;
  const int64_t bands = all.rows / tile, count = all.columns / tile;
  const int64_t band = blockIdx.x % bands, part = blockIdx.x / bands;
  const int64_t begin = part * count / args.parts, end = (part + 1) * count / args.parts;
  const int64_t I = all.row + band * tile, rates = room.rates.count;
  double* const to =
      args.partial +
      (part * Tiles::groups + threadIdx.x / tile) * kinds(args.moments) * rates * all.rows +
      band * tile + Tiles::row();
  for (int64_t j = begin; j < end; ++j) {
    const Tile here{I, all.column + j * tile}, next{I, here.J + tile};
    tiles.make(here, j + 1 < end, next);
#pragma unroll 1
    for (int c = 0; c < room.rates.chains; ++c) {
      const int first = room.rates.first[c], length = room.rates.first[c + 1] - first;
      const T rate = room.rates.rate[first];
      ChainSums<Products::exact, T> sums;
#pragma unroll 1
      for (int i = 0; i < Tiles::width; i += quad)
        sums.add(rate, length, args.moments, tiles.at(i).e, tiles.weights(i).e);
      sums.write(to + first * all.rows, rates, all.rows, length, args.moments, j == begin);
    }
  }
}

// dt of a rectangle to the panel; where wanted, what its weights pull, summed over the rows of
// tiles.
template <class Products>
__global__ void __launch_bounds__(Products::threads, Products::blocks)
    feature_slopes_kernel(const __grid_constant__ FeatureTiles<typename Products::T> args,
                          const __grid_constant__ typename Products::Params params) {
  using T = typename Products::T;
  using Tiles = ProjectionTiles<Products>;
  constexpr int tile = Tiles::tile, quad = Quad<T>::count;
  __shared__ typename Tiles::Room room;
  __shared__ T pulled[tile / 32][tile];  // of the rows of a warp
  Tiles tiles{args, params, room, {}};
  tiles.begin();
  const TileArgs<T>& all = args.tiles;
  const int64_t count = tiles_of(all, tile);
  const int64_t first_row = all.row - all.points.rows.first(1);
  for (int64_t t = blockIdx.x; t < count; t += gridDim.x) {
    const Tile here = tile_of(all, t, tile);
    const bool more = t + gridDim.x < count;
    tiles.make(here, more, more ? tile_of(all, t + gridDim.x, tile) : here);
    const int64_t row = first_row + here.I - all.row + Tiles::row();
    ChainPulls<Products::exact, T> chain;
    chain.load(room.rates, 0, args.pulls, row);
#pragma unroll 1
    for (int i = 0; i < Tiles::width; i += quad) {
      Quad<T>& at = tiles.at(i);
      T slope[quad] = {}, value[quad] = {};
      const Quad<T> angle = at;
      chain.add(angle.e, slope, value);
#pragma unroll 1
      for (int c = 1; c < room.rates.chains; ++c) {
        chain.load(room.rates, c, args.pulls, row);
        chain.add(angle.e, slope, value);
      }
      if (room.rates.chains > 1) chain.load(room.rates, 0, args.pulls, row);
      Quad<T> out;
#pragma unroll
      for (int e = 0; e < quad; ++e) out.e[e] = slope[e] * tiles.weights(i).e[e];
      at = out;
      if (args.weight_parts)
#pragma unroll
        for (int e = 0; e < quad; ++e) {
          const T sum = warp_sum(value[e]);
          if (threadIdx.x % 32 == 0) pulled[Tiles::row() / 32][Tiles::column() + i + e] = sum;
        }
    }
    __syncthreads();
    write_tile<Products::operand, tile>(tiles.stage(), all, here, all.w[0]);
    if (args.weight_parts)
      for (int i = threadIdx.x; i < tile; i += Products::threads) {
        T sum = 0;
#pragma unroll
        for (int warp = 0; warp < tile / 32; ++warp) sum += pulled[warp][i];
        args.weight_parts[(here.I - all.row) / tile * all.columns + here.J - all.column + i] = sum;
      }
  }
}

// ---- launches, a file for each way of making products ----

// Tiles are of so many rows, and a row of one has so many threads.
struct TileShape {
  int tile, groups, blocks;  // resident on a multiprocessor, by registers
};
template <class Products>
void launch_sums(const FeatureTiles<typename Products::T>& args, unsigned blocks,
                 const FeatureLaunch& launch) {
  check(fastmmd::cuda::launch(feature_sums_kernel<Products>, dim3(blocks), dim3(Products::threads),
                              ProjectionTiles<Products>::shared_bytes,
                              static_cast<cudaStream_t>(launch.stream), args,
                              Products::params(args.tiles.points)));
}
template <class Products>
void launch_slopes(const FeatureTiles<typename Products::T>& args, unsigned blocks,
                   const FeatureLaunch& launch) {
  check(fastmmd::cuda::launch(feature_slopes_kernel<Products>, dim3(blocks),
                              dim3(Products::threads), ProjectionTiles<Products>::shared_bytes,
                              static_cast<cudaStream_t>(launch.stream), args,
                              Products::params(args.tiles.points)));
}

template <class T>
struct FeatureKernels {
  TileShape shape;
  // Blocks of sums: as many as tile rows, for each part.
  void (*sums)(const FeatureTiles<T>&, unsigned blocks, const FeatureLaunch&);
  void (*slopes)(const FeatureTiles<T>&, unsigned blocks, const FeatureLaunch&);
};
template <class Products>
FeatureKernels<typename Products::T> feature_kernels() {
  return {{Products::tile, ProjectionTiles<Products>::groups, Products::blocks},
          &launch_sums<Products>,
          &launch_slopes<Products>};
}

template <class T>
FeatureKernels<T> simt_features();
FeatureKernels<float> mma_features(Operand operand);
FeatureKernels<float> wgmma_features(Operand operand);

}  // namespace fastmmd::cuda

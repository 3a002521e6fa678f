// The tile loop of the GPU: inner products by a policy, kernel values and gradient weights in
// registers, their sums.
//
// A thread block takes tiles (I, J) of the pairwise matrix in turn. `Products`, the policy, says
// how the inner products of a tile are made and where its elements lie:
//
//     T, operand, threads, blocks (of one multiprocessor), tile (rows and columns of a tile),
//     elements (of a thread), shared_bytes, Params (by value to the kernel),
//     params(points), on the host
//     row(e), column(e)                        where element e of this thread lies in the tile;
//                                              1 is right of 0, 3 of 2 and so on
//     multiply(params, f, I, J, shared, u)     u[e] = <z_I+row(e), z_J+column(e)>
//     exact                                    whether near pairs are worth making again, by
//     differences(f, I, J, shared, u)          u[e] = |z_I+row(e) - z_J+column(e)|^2
//     oldest                                   target that its kernels are compiled for
//     run                                      where it is not exact: so many elements, from a
//                                              multiple of it on, lie in two rows, by e % 4 / 2
//
// One that keeps something from tile to tile, or loads before it is asked to, also has
//
//     looks_ahead = true
//     begin(params, shared)                        before the first tile and a barrier
//     look_ahead<stage>(params, f, next, shared)   all are done with the products of a tile; so
//                                                  many bytes of shared memory are about to be
//                                                  written. Thread 0 alone may read `next`
//     hand_back(f, shared)                         the stage will not be touched any more
//     cluster                                      thread blocks that make products together, of
//                                                  one tile each: 1, or 4 of 2 x 2 tiles
//
// Everything after the inner products is written once, here. Signs and factors of the gradient
// weights g are those of the CPU's tile loop: with C a_i a_j k the pair's part of the sum over all
// ordered pairs, g = -4 C a_i a_j k'(D), or 2 C a_i a_j k'(u) for inner products; then
// v_i = sum_j g_ij z_j, less z_i sum_j g_ij for distances, and more by the centre times that sum
// for inner products. Weights of distances are rounded to the operand. Those of inner products are
// not, as there most of a gradient may cancel, whoever multiplies them with the rows.
#pragma once

#include <type_traits>

#include "cuda/near.cuh"
#include "cuda/segments.cuh"

namespace fastmmd::cuda {

template <class Products, class = void>
struct LooksAhead : std::false_type {};
template <class Products>
struct LooksAhead<Products, std::enable_if_t<Products::looks_ahead>> : std::true_type {};

// Thread blocks that share rows: a cluster takes a square of so many tiles.
template <class Products>
constexpr int cluster_of() {
  if constexpr (LooksAhead<Products>::value) return Products::cluster;
  else return 1;
}

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

// Neighbouring columns in shared memory, the first of an even number.
template <class T>
struct alignas(2 * sizeof(T)) Two {
  T e[2];
};
template <class T>
__device__ __forceinline__ Two<T> two(const T* at) {
  return *reinterpret_cast<const Two<T>*>(at);
}

// What a pair's part of the sum over all ordered pairs is divided by.
template <class T>
__device__ inline double divisor(const Points<T>& points, const Divisors& by, const Tile& at) {
  const int domain = points.domain(at.I);
  return domain == points.domain(at.J) ? by.within[domain] : by.across;
}

// The shared memory, all of it dynamic: the products' rooms, afterwards the slots of add_terms and
// then the stage; behind them, for kernels that are not looped over in registers, statistics of the
// tile, whose place gradient weights take before they are rounded; at last what the threads tell
// each other.
template <class Products, bool gaussian, bool gradient>
struct TileShared {
  using T = typename Products::T;
  using E = typename Stored<Products::operand>::type;
  template <class U>
  static constexpr int of = Products::tile * stage_stride<U, Products::tile>() * int(sizeof(U));
  static constexpr int slots = Products::threads * 2 * max_chain * int(sizeof(T));
  static constexpr int staged = of<T> > slots ? of<T> : slots;
  static constexpr int stage = !gaussian ? staged : gradient ? of<E> : 0;
  static constexpr int first = stage > Products::shared_bytes ? stage : Products::shared_bytes;
  static constexpr int warps = Products::threads / 32;
  struct Told {
    Sides<T, Products::tile> sides;
    Segments<T> segments;
    double room[warps];
    // Of xx, yy, xy:
    double totals[warps][3];
    double shares[3];  // of a pair in the sum
    T slopes[3];
    Tile next;  // one thread works it out
  };
  static constexpr int told = int(round_up(first + (gaussian ? 0 : of<T>), 16));
  static constexpr int bytes = told + int(sizeof(Told));
};

// Blocks of one multiprocessor that registers are left for: not more than its shared memory holds.
template <class Products, bool gaussian, bool gradient>
constexpr int tile_blocks() {
#if !defined(__CUDA_ARCH__)
  constexpr int room = 227 << 10;
#elif __CUDA_ARCH__ < 800
  constexpr int room = 64 << 10;
#elif __CUDA_ARCH__ < 900
  constexpr int room = 164 << 10;
#elif __CUDA_ARCH__ < 1200
  constexpr int room = 227 << 10;
#else
  constexpr int room = 100 << 10;
#endif
  constexpr int fit = room / (TileShared<Products, gaussian, gradient>::bytes + 1024);
  return !gaussian || fit < 1 ? 1 : fit < Products::blocks ? fit : Products::blocks;
}

// D = |z_i|^2 + |z_j|^2 - 2 <z_i, z_j> in the place of the inner products. Whether some pairs may
// be very near: the same for all threads, all of which call it.
template <class Products, class T>
__device__ __forceinline__ bool distances(const Factor<T>& f, const Tile& at, T offset,
                                          const Sides<T, Products::tile>& sides, char* shared,
                                          T (&u)[Products::elements]) {
  const bool diagonal = at.I == at.J;
  bool again = false;
#pragma unroll
  for (int e = 0; e < Products::elements; ++e) {
    const int i = Products::row(e), j = Products::column(e);
    const T norms = sides.norms[0][i] + sides.norms[1][j];
    const bool self = diagonal && i == j;
    T D = norms + T(-2) * u[e];
    D = D < 0 || self ? T(0) : D;  // NaN stays
    again |= !self && is_below(near, D, norms, offset);
    u[e] = D;
  }
  if constexpr (Products::exact) {
    if (!__syncthreads_or(again)) return false;
    Products::differences(f, at.I, at.J, shared, u);
    __syncthreads();
    return true;
  }
  return isfinite(offset);
}

// The products of rows from those of centred rows.
template <class Products, class T>
__device__ __forceinline__ void complete(const Sides<T, Products::tile>& sides,
                                         T (&u)[Products::elements]) {
#pragma unroll
  for (int e = 0; e < Products::elements; ++e)
    u[e] += sides.norms[0][Products::row(e)] + sides.norms[1][Products::column(e)];
}

// One factor. `gaussian`: all its terms are, and nobody asks for gradients of weights or terms;
// then the elements of a tile stay in registers.
template <class Products, bool gaussian, bool gradient>
__global__ void __launch_bounds__(Products::threads, tile_blocks<Products, gaussian, gradient>())
    tile_kernel(const __grid_constant__ TileArgs<typename Products::T> args,
                const __grid_constant__ typename Products::Params params) {
  using T = typename Products::T;
  using Shared = TileShared<Products, gaussian, gradient>;
  constexpr int tile = Products::tile, elements = Products::elements;
  using E = typename Shared::E;
  char* const shared = dynamic_shared();
  E* const weights = reinterpret_cast<E*>(shared);  // the stage
  // By name, as C++17 does not let lambdas capture what a binding names.
  auto& told = *reinterpret_cast<typename Shared::Told*>(shared + Shared::told);
  auto& sides = told.sides;
  auto& segments = told.segments;
  auto& room = told.room;
  auto& totals = told.totals;
  auto& shares = told.shares;
  auto& slopes = told.slopes;
  Tile& next = told.next;
  const Points<T>& points = args.points;
  const Factor<T>& f = points.factors[0];
  const Resolved<T>& resolved = *points.resolved;
  const bool radial = gaussian || f.geometry == Geometry::radial;
  if (threadIdx.x % 32 < 3) totals[threadIdx.x / 32][threadIdx.x % 32] = 0;
  if (threadIdx.x < 3) {
    const double C = 1 / (threadIdx.x < 2 ? resolved.by.within[threadIdx.x] : resolved.by.across);
    shares[threadIdx.x] = C;
    slopes[threadIdx.x] = T((radial ? -4 : 2) * C * double(resolved.gain));
  }
  segments.load(resolved.kernel[0]);
  const bool centred = !radial && points.has_pulls(0);
  Products products;
  constexpr bool looks_ahead = LooksAhead<Products>::value;
  if constexpr (looks_ahead) products.begin(params, shared);
  // Tile number t, of the square of that number if there is a cluster.
  constexpr int cluster = cluster_of<Products>(), side = cluster == 4 ? 2 : 1;
  auto own_tile = [&](int64_t t) {
    Tile at = tile_of(args, t, side * tile);
    at.I += blockIdx.x % cluster / side * tile;
    at.J += blockIdx.x % side * tile;
    return at;
  };
  auto meet = [] {
    if constexpr (cluster > 1) ptx::cluster_sync();
    else __syncthreads();
  };
  if (threadIdx.x == 0) next = own_tile(blockIdx.x / cluster);
  meet();
  const T offset = resolved.kernel[0].near_offset;

  auto sums = [&] { return points.sums + int64_t(blockIdx.x) * points.row_of_sums(); };
  const int64_t tiles = tiles_of(args, side * tile), step = gridDim.x / cluster;
  for (int64_t t = blockIdx.x / cluster; t < tiles; t += step) {
    T u[elements];
    if constexpr (looks_ahead) products.hand_back(f, shared);
    __syncthreads();  // what is read of the last tile may be overwritten
    const Tile at = next;
    // Of a square at the edge some tiles are not there. Their blocks make the others' products.
    const bool exists =
        cluster == 1 || (at.I < args.row + args.rows && at.J < args.column + args.columns);
    if (!exists) {
    } else if constexpr (Products::oldest >= 80) sides.fetch(points, f, at);
    else sides.load(points, f, at);
    products.multiply(params, f, at.I, at.J, shared, u);
    if constexpr (Products::oldest >= 80) ptx::cp_async_wait<0>();
    __syncthreads();
    if (t + step < tiles) {
      if (threadIdx.x == 0) next = own_tile(t + step);
      if constexpr (looks_ahead)
        products.template look_ahead<Shared::stage>(params, f, next, shared);
    }
    if (!exists) continue;
    const double copies = args.triangle ? (at.I == at.J ? 1 : 2) : args.copies;
    const int domain = points.domain(at.I);
    const int which = domain == points.domain(at.J) ? domain : 2;
    const double C = shares[which];
    const T slope = slopes[which];
    const bool diagonal = at.I == at.J, mute = diagonal && !points.pairs.self_within;
    // Which pairs count for nothing though both rows exist, and which do not push each other.
    auto silent = [&](int i, int j) { return mute && i == j; };
    auto self = [&](int i, int j) { return diagonal && i == j; };
    T sum = 0;
    bool apart = false;  // the gradients of some pairs leave the products
    auto to_distances = [&] {
      const bool look = distances<Products>(f, at, offset, sides, shared, u);
      if constexpr (gradient) apart = mark_near<Products>(args, at, 0, offset, look, sides, u);
    };
    // The gradient weights of elements e and e + 1.
    auto put = [&](int e, const T(&g)[2]) {
      if constexpr (gradient)
        put_weights<Products::operand>(
            weights + Products::row(e) * stage_stride<E, tile>() + Products::column(e), g[0], g[1]);
    };
    if constexpr (gaussian) {
      using Gaussians = Chain<Products::exact, T>;
      bool lone = false;  // by far the most common tile, for which everything else is left out
      if constexpr (!Products::exact) {
        lone = !diagonal && segments.count == 1 && !isfinite(offset);
        if (lone) {
          const Gaussians chain(segments.segment[0], slope);
          T of_row[2][2];  // norms and weights
#pragma unroll
          for (int e = 0; e < elements; e += 4) {
            const int j = Products::column(e);
            const Two<T> norms = two(sides.norms[1] + j), masses = two(sides.weights[1] + j);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              if (e % Products::run == 0) {
                of_row[0][h] = sides.norms[0][Products::row(e + 2 * h)];
                of_row[1][h] = sides.weights[0][Products::row(e + 2 * h)];
              }
              T g[2];
#pragma unroll
              for (int c = 0; c < 2; ++c) {
                const T D = fmaf(T(-2), u[e + 2 * h + c], of_row[0][h] + norms.e[c]);
                g[c] = chain.weigh(ptx::max_nan(D, T(0)), of_row[1][h] * masses.e[c], sum);
              }
              put(e + 2 * h, g);
            }
          }
        }
      }
      if (!lone) {
        to_distances();
        constexpr int group = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
        for (int first = 0; first < elements; first += group) {
          T k[group] = {}, dk[group] = {};
#pragma unroll 1
          for (int s = 0; s < segments.count; ++s) {
            const Gaussians chain(segments.segment[s], slope);
#pragma unroll
            for (int e = 0; e < group; ++e) chain(u[first + e], k[e], dk[e]);
          }
#pragma unroll
          for (int e = 0; e < group; ++e) {
            const int i = Products::row(first + e), j = Products::column(first + e);
            const T a = silent(i, j) ? T(0) : sides.weights[0][i] * sides.weights[1][j];
            sum += a * k[e];
            dk[e] *= self(i, j) ? T(0) : a;
            if (e % 2) put(first + e - 1, {dk[e - 1], dk[e]});
          }
        }
      }
    } else {
      if (radial) to_distances();
      else complete<Products>(sides, u);
      constexpr int stride = stage_stride<T, tile>();
      const Evaluate<false, T> evaluate(segments);
      // An element's part of the sum, and its gradient weight.
      auto element = [&](int e, T statistic) -> T {
        const int i = Products::row(e), j = Products::column(e);
        T a = sides.weights[0][i] * sides.weights[1][j];
        // A pair that does not count must not overflow, as infinity times 0 is no number.
        if (silent(i, j)) a = statistic = 0;
        if (!radial && a == 0) statistic *= 0;
        T k, dk;
        evaluate(statistic, k, dk);
        sum += a * k;
        return radial && self(i, j) ? T(0) : slope * a * dk;
      };
      T* const statistics = reinterpret_cast<T*>(shared + Shared::first);
      auto place = [](int e) { return Products::row(e) * stride + Products::column(e); };
#pragma unroll
      for (int e = 0; e < elements; ++e) statistics[place(e)] = u[e];
      // Until the next barrier threads read none but their own.
      auto statistic = [&](int e) { return statistics[place(e)]; };
      auto is_silent = [&](int e) { return silent(Products::row(e), Products::column(e)); };
      if (points.num_terms) {
        add_terms<Products::threads, elements>(
            segments, points.num_terms, reinterpret_cast<T*>(shared), room, sums(),
            [&](int e) {
              return is_silent(e) ? T(0)
                                  : T(copies * C) * sides.weights[0][Products::row(e)] *
                                        sides.weights[1][Products::column(e)];
            },
            [&](int e) { return is_silent(e) ? T(0) : statistic(e); });
      }
      if (points.potentials) {
        T* const stage = reinterpret_cast<T*>(shared);
        for (int e = 0; e < elements; ++e) {
          T k, dk;
          evaluate(statistic(e), k, dk);
          stage[place(e)] = is_silent(e) ? T(0) : T(2 * C) * k;
        }
        __syncthreads();
        add_potentials<tile>(stage, sides, args, at);
        __syncthreads();
      }
      for (int e = 0; e < elements; e += 2) {
        const T g[2] = {element(e, statistic(e)), element(e + 1, statistic(e + 1))};
        if (radial) put(e, g);
        else if constexpr (gradient)
          for (int c = 0; c < 2; ++c) statistics[place(e + c)] = g[c];
      }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) totals[threadIdx.x / 32][which] += copies * double(sum);
    if constexpr (gradient) {
      __syncthreads();
      if (apart) {
        erase_near<tile>(args, at, 0, weights);
        __syncthreads();
      }
      if (radial) {
        write_weights<Products::operand, tile, Products::threads>(weights, args, at, args.w[0]);
      } else if constexpr (!gaussian) {
        const T* const unrounded = reinterpret_cast<const T*>(shared + Shared::first);
        write_tile<exact_operand<T>, tile>(unrounded, args, at, args.w[0]);
        if (centred) add_pulls<tile>(unrounded, args, at, 0);
      }
    }
  }
  meet();  // also: no block ends before the others of its cluster are done with its barriers
  if (threadIdx.x < 3) {
    double total = 0;
    for (int warp = 0; warp < Shared::warps; ++warp) total += totals[warp][threadIdx.x];
    sums()[threadIdx.x] += total;
  }
}

}  // namespace fastmmd::cuda

// Tiles of a product of kernels, each factor of which looks at its own columns.
#pragma once

#include "cuda/simt.cuh"

namespace fastmmd::cuda {

// Small, as all factors of a tile are kept at once.
template <class T>
constexpr int product_tile = sizeof(T) == 8 ? 16 : 32;

template <class T>
using ProductSimt = Simt<exact_operand<T>, product_tile<T>, product_tile<T> / 16>;

template <class T>
constexpr int product_shared_bytes(int num_factors) {
  using P = ProductSimt<T>;
  constexpr int stage = P::tile * stage_stride<T, P::tile>() * int(sizeof(T));
  constexpr int slots = P::threads * 2 * max_chain * int(sizeof(T));
  constexpr int work = P::shared_bytes > stage ? P::shared_bytes : stage;
  return (work > slots ? work : slots) +
         3 * num_factors * P::threads * P::elements * int(sizeof(T));
}

// As tile_kernel, of several factors: each factor's gradient is weighted by the values of the
// others. Statistics, values and slopes of all factors lie in shared memory, each thread's own.
template <class T, bool gradient>
__global__ void __launch_bounds__(ProductSimt<T>::threads, 1)
    product_tile_kernel(const __grid_constant__ TileArgs<T> args) {
  using P = ProductSimt<T>;
  constexpr int tile = P::tile, elements = P::elements;
  const Points<T>& points = args.points;
  const Resolved<T>& resolved = *points.resolved;
  const int L = points.num_factors;
  T* const own = reinterpret_cast<T*>(dynamic_shared()) + threadIdx.x;
  auto slot = [&](int which, int l, int e) -> T& {
    return own[((which * L + l) * elements + e) * P::threads];
  };
  char* const shared = dynamic_shared() + 3 * L * elements * P::threads * int(sizeof(T));
  T* const stage = reinterpret_cast<T*>(shared);
  __shared__ Segments<T> segments;
  __shared__ Sides<T, tile> sides;
  __shared__ double room[P::threads / 32];
  double* const sums = points.sums + int64_t(blockIdx.x) * points.row_of_sums();

  Totals totals;
  const int64_t tiles = tiles_of(args, tile);
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const Tile at = tile_of(args, t, tile);
    const int domain = points.domain(at.I), other = points.domain(at.J);
    const double copies = args.triangle ? (at.I == at.J ? 1 : 2) : args.copies;
    const double C = 1 / divisor(points, resolved.by, at);
    auto self = [&](int e) { return at.I == at.J && P::row(e) == P::column(e); };
    auto silent = [&](int e) { return is_silent(points, at.I + P::row(e), at.J + P::column(e)); };
    unsigned apart = 0;  // factors of which the gradients of some pairs leave the products
    for (int l = 0; l < L; ++l) {
      const Factor<T>& f = points.factors[l];
      T u[elements];
      __syncthreads();
      sides.load(points, f, at);
      segments.load(resolved.kernel[l]);
      P::multiply({}, f, at.I, at.J, shared, u);
      __syncthreads();
      const bool radial = f.geometry == Geometry::radial;
      if (radial) {
        const T offset = resolved.kernel[l].near_offset;
        const bool look = distances<P>(f, at, offset, sides, shared, u);
        if (gradient && l < points.num_moving)
          apart |= unsigned(mark_near<P>(args, at, l, offset, look, sides, u)) << l;
      } else {
        complete<P>(sides, u);
      }
      const Evaluate<false, T> evaluate(segments);
      for (int e = 0; e < elements; ++e) {
        // A pair that does not count must not overflow, as infinity times 0 is no number. That of
        // a weight of 0 counts for the potentials.
        const T a = sides.weights[0][P::row(e)] * sides.weights[1][P::column(e)];
        if (silent(e) || (!radial && a == 0 && !points.potentials)) u[e] *= 0;
        slot(0, l, e) = u[e];
        evaluate(u[e], slot(1, l, e), slot(2, l, e));
      }
    }

    auto weight = [&](int e) {
      return silent(e) ? T(0) : sides.weights[0][P::row(e)] * sides.weights[1][P::column(e)];
    };
    auto others = [&](int l, int e) {  // the values of the other factors
      T k = 1;
      for (int o = 0; o < L; ++o)
        if (o != l) k *= slot(1, o, e);
      return k;
    };
    T sum = 0;
    for (int e = 0; e < elements; ++e) {
      const T a = weight(e);
      sum += a == 0 ? T(0) : a * others(-1, e);
    }
    totals.add(domain, other, copies * double(sum));
    if (points.potentials) {
      __syncthreads();
      for (int e = 0; e < elements; ++e)
        stage[P::row(e) * stage_stride<T, tile>() + P::column(e)] =
            silent(e) ? T(0) : T(2 * C) * others(-1, e);
      __syncthreads();
      add_potentials<tile>(stage, sides, args, at);
    }
    for (int l = 0; l < L; ++l) {
      const bool radial = points.factors[l].geometry == Geometry::radial;
      if (points.num_terms) {
        __syncthreads();
        segments.load(resolved.kernel[l]);
        __syncthreads();
        add_terms<P::threads, elements>(
            segments, points.num_terms, stage, room, sums,
            [&](int e) { return weight(e) == 0 ? T(0) : T(copies * C) * weight(e) * others(l, e); },
            [&](int e) { return slot(0, l, e); });
      }
      if (gradient && l < points.num_moving) {
        const T slope = T((radial ? -4 : 2) * C * double(resolved.gain));
        __syncthreads();
        for (int e = 0; e < elements; ++e) {
          const T a = weight(e);
          stage[P::row(e) * stage_stride<T, tile>() + P::column(e)] =
              a == 0 || (radial && self(e)) ? T(0) : slope * a * others(l, e) * slot(2, l, e);
        }
        __syncthreads();
        if (apart >> l & 1) {
          erase_near<tile>(args, at, l, stage);
          __syncthreads();
        }
        write_tile<P::operand, tile>(stage, args, at, args.w[l]);
        if (points.has_pulls(l)) add_pulls<tile>(stage, args, at, l);
      }
    }
  }
  totals.template write<P::threads>(room, sums);
}

}  // namespace fastmmd::cuda

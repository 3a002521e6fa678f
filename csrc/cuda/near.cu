#include "cuda/near.cuh"

#include "cuda/tile.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int near_threads = 128;

template <class T>
struct NearArgs {
  TileArgs<T> panel;
  int tile;
  T* v[2];  // gradients to x and to y; null if not wanted
};

// Adds to v the pull of factor l on row i by rows J + b for the bits b. A warp makes the distances
// one after another, and each lane the weight of one of them.
template <Operand operand, class T>
__device__ __forceinline__ void add_pairs(const Points<T>& points, int l, int64_t i, int64_t J,
                                          uint32_t bits, T slope, T* v) {
  using E = typename Stored<operand>::type;
  const Resolved<T>& resolved = *points.resolved;
  const int lane = threadIdx.x % 32;
  T g = slope * points.weights[i];
  for (int o = 0; o < points.num_factors; ++o) {
    const Factor<T>& f = points.factors[o];
    const E* const z_i = static_cast<const E*>(f.z) + i * f.depth;
    const E* const z_J = static_cast<const E*>(f.z) + J * f.depth;
    const bool radial = f.geometry == Geometry::radial;
    T u = 0;
#pragma unroll 1
    for (uint32_t left = bits; left; left &= left - 1) {
      const int b = __ffs(int(left)) - 1;
      const E* const z_j = z_J + b * f.depth;
      T sum = 0;
#pragma unroll 2
      for (int c = lane; c < f.d; c += 32) {
        const T a = value_of(z_i[c]), other = value_of(z_j[c]);
        sum += radial ? (other - a) * (other - a) : other * a;
      }
      sum = warp_sum(sum);
      if (lane == b) u = radial ? sum : sum + f.norms[i] + f.norms[J + b];
    }
    T k = 0, dk = 0;
    const auto& kernel = resolved.kernel[o];
    for (int s = 0; s < kernel.num_segments; ++s)
      dispatch(kernel.segments[s].family, [&](auto family) {
        decltype(family)::template grad<DeviceMath<T>>(u, kernel.segments[s], k, dk);
      });
    // Rows that are one do not push each other.
    if (o == l) bits = __ballot_sync(0xffffffffu, bits >> lane & 1 && u != 0);
    g *= o == l ? dk : k;
  }
  g *= bits >> lane & 1 ? points.weights[J + lane] : T(0);
  const Factor<T>& f = points.factors[l];
  const E* const z_i = static_cast<const E*>(f.z) + i * f.depth;
  const E* const z_J = static_cast<const E*>(f.z) + J * f.depth;
#pragma unroll 1
  for (int c0 = 0; c0 < f.d; c0 += 32) {  // behind the last column there are zeros
    const T own = value_of(z_i[c0 + lane]);
    T sum = 0;
    for (uint32_t left = bits; left; left &= left - 1) {
      const int b = __ffs(int(left)) - 1;
      sum += __shfl_sync(0xffffffffu, g, b) * (value_of(z_J[b * f.depth + c0 + lane]) - own);
    }
    if (c0 + lane < f.d) v[c0 + lane] += sum;
  }
}

// One warp a row of the panel, or a column where it stands for its mirror.
template <Operand operand, class T>
__global__ void __launch_bounds__(near_threads, 4)
    add_near_kernel(const __grid_constant__ NearArgs<T> args) {
  const TileArgs<T>& panel = args.panel;
  const Points<T>& points = panel.points;
  const Resolved<T>& resolved = *points.resolved;
  const int lane = threadIdx.x % 32, tile = args.tile, words = near_words(tile);
  const int64_t at = int64_t(blockIdx.x) * (near_threads / 32) + threadIdx.x / 32;
  const bool mirrored = at >= panel.rows;  // the row is a column of the panel
  const int r = int(mirrored ? at - panel.rows : at);
  const int64_t i = (mirrored ? panel.column : panel.row) + r;
  const int domain = points.domain(i);
  const int64_t row = i - points.rows.first(domain);
  if (!args.v[domain] || row >= (domain ? points.rows.m : points.rows.n)) return;
  T* const v = args.v[domain] + row * points.width();
  const int64_t first = mirrored ? panel.row : panel.column;  // of the rows that it meets
  const int tiles = int(mirrored ? panel.rows : panel.columns) / tile, own = r % tile;
  const double C = 1 / divisor(points, resolved.by, {i, first});
  const T slope = T(-4 * C * double(resolved.gain));

  for (int l = 0; l < points.num_moving; ++l) {
    if (points.factors[l].geometry != Geometry::radial) continue;
    if (!isfinite(resolved.kernel[l].near_offset)) continue;  // nobody has looked
    auto place = [&](int other) {
      return mirrored ? near_place(panel, tile, l, other, r / tile)
                      : near_place(panel, tile, l, r / tile, other);
    };
    for (int t0 = 0; t0 < tiles; t0 += 32) {
      const bool any = t0 + lane < tiles && panel.near_tiles[place(t0 + lane)];
      for (uint32_t left = __ballot_sync(0xffffffffu, any); left; left &= left - 1) {
        const int t = t0 + __ffs(int(left)) - 1;
        const uint32_t* const pairs = panel.near_pairs + place(t) * (tile * words);
        for (int j = 0; j < tile; j += 32) {
          uint32_t bits = 0;
          if (!mirrored) bits = pairs[own * words + j / 32];
          else if (j + lane < tile) bits = pairs[(j + lane) * words + own / 32] >> own % 32 & 1;
          if (mirrored) bits = __ballot_sync(0xffffffffu, bits != 0);
          if (bits)
            add_pairs<operand>(points, l, i, first + int64_t(t) * tile + j, bits, slope,
                               v + points.factors[l].column);
        }
      }
    }
  }
}

}  // namespace

template <class T>
void add_near_pairs(const TileArgs<T>& args, const Launch& launch, int tile, T* v_x, T* v_y) {
  const int64_t warps = args.rows + (args.copies == 2 ? args.columns : 0);
  with_operand(launch.operand, [&](auto operand) {
    if constexpr (std::is_same_v<typename Stored<operand>::compute, T>)
      check(fastmmd::cuda::launch(add_near_kernel<operand, T>,
                                  dim3(unsigned(warps / (near_threads / 32))), dim3(near_threads),
                                  0, static_cast<cudaStream_t>(launch.stream),
                                  NearArgs<T>{args, tile, {v_x, v_y}}));
  });
}

template void add_near_pairs(const TileArgs<float>&, const Launch&, int, float*, float*);
template void add_near_pairs(const TileArgs<double>&, const Launch&, int, double*, double*);

}  // namespace fastmmd::cuda

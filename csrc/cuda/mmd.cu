// The passes of one MMD: prologue, panels, and what their sums come to.
#include "cuda/mmd.h"

#include <algorithm>

#include "cuda/near.cuh"
#include "cuda/product.cuh"
#include "cuda/tiles.cuh"

namespace fastmmd::cuda {
namespace {

constexpr int reduce_threads = 128;

// The sums of a panel's tiles, added to those of its rows, and of its columns off the diagonal.
template <class T>
__global__ void __launch_bounds__(reduce_threads)
    reduce_kernel(const __grid_constant__ TileArgs<T> args, int tile, bool pulls) {
  const Points<T>& points = args.points;
  const int64_t at = int64_t(blockIdx.x) * reduce_threads + threadIdx.x;
  const bool column = at >= args.rows;
  if (at >= args.rows + (args.column_parts ? args.columns : 0)) return;
  const int64_t count = column ? args.columns : args.rows, i = column ? at - args.rows : at;
  const int64_t parts = (column ? args.rows : args.columns) / tile;
  const T* const from = column ? args.column_parts : args.row_parts;
  const int64_t row = (column ? args.column : args.row) + i;
  for (int q = 0; q <= points.num_moving; ++q) {
    double* to = points.potentials;
    if (q < points.num_moving)
      to = pulls && points.has_pulls(q) ? points.factors[q].pulls : nullptr;
    if (!to) continue;
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part)
      sum += double(from[(q * parts + part) * count + i]);
    to[row] += sum;
  }
}

constexpr int row_threads = 256;

// With v_i = sum_j g_ij z_j, to the gradient of the row as it was given: one warp a row. Of kernels
// that are not radial v_i lacks the centre, times sum_j g_ij.
template <Operand operand, class T>
__global__ void __launch_bounds__(row_threads, 4)
    finish_rows_kernel(Points<T> points, Sample x, Sample y, Dtype dtype, T* v_x, T* v_y, int64_t d,
                       bool may_vanish) {
  const int64_t row = int64_t(blockIdx.x) * (row_threads / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, domain = points.domain(row);
  const int64_t i = row - points.rows.first(domain);
  T* const v = domain ? v_y : v_x;
  if (!v || i >= (domain ? points.rows.m : points.rows.n)) return;
  const Resolved<T>& resolved = *points.resolved;
  const bool vanishes = may_vanish && resolved.all_equal;
  for (int l = 0; l < points.num_factors; ++l) {
    const Factor<T>& f = points.factors[l];
    const auto* z = static_cast<const typename Stored<operand>::type*>(f.z) + row * f.depth;
    T* const to = v + i * d + f.column;
    // dz / dx, which T may not hold though it holds the product.
    double scale = ldexp(1.0, -resolved.exponent[l]) / double(resolved.gain);
    if (l >= points.num_moving || vanishes) {
      for (int64_t k = lane; k < f.d; k += 32) to[k] = 0;
      continue;
    }
    const double of_mean = f.feels_centre ? resolved.of_mean[l] : 0;
    const double pull = of_mean == 0 ? 0 : f.pulls[row];
    if (f.geometry == Geometry::cosine) {
      // Along the sphere only, at the row as it was given: what is left is small where all rows
      // point the same way, and feels how a row was rounded.
      // Number by number, as a reference to one of two would bring both to memory.
      const void* const data = domain ? y.data : x.data;
      const int64_t row_stride = domain ? y.row_stride : x.row_stride;
      const int64_t column_stride = domain ? y.column_stride : x.column_stride;
      const double unit = ldexp(1.0, -resolved.exponent[l]);
      auto at = [&](int64_t k) {
        return unit *
               to_float<double>(data, dtype, i * row_stride + (f.column + k) * column_stride);
      };
      double along = 0, square = 0;
      for (int64_t k = lane; k < f.d; k += 32) {
        along += (double(to[k]) + pull * points.centre(l, k, of_mean)) * at(k);
        square += at(k) * at(k);
      }
      along = warp_sum(along);
      square = warp_sum(square);
      const double inverse = square == 0 ? 0 : 1 / square;
      scale *= sqrt(inverse);
      for (int64_t k = lane; k < f.d; k += 32)
        to[k] = T((double(to[k]) + pull * points.centre(l, k, of_mean) - along * inverse * at(k)) *
                  scale);
      continue;
    }
    if (f.geometry == Geometry::dot) {
      for (int64_t k = lane; k < f.d; k += 32)
        to[k] = T((double(to[k]) + pull * points.centre(l, k, of_mean)) * scale);
      continue;
    }
    const T own = T(-f.pulls[row]);
#pragma unroll 4
    for (int64_t k = lane; k < f.d; k += 32)
      to[k] = T(double(to[k] + own * value_of(z[k])) * scale);
  }
}

constexpr int finish_threads = 512;

// Sums to value, and what the chain rule adds for weights and terms. One block.
template <class T>
__global__ void __launch_bounds__(finish_threads)
    finish_kernel(Points<T> points, Mmd2Out out, bool known_diagonal, int64_t num_terms) {
  __shared__ double room[32];
  __shared__ double sums[3 + 2 * max_terms];
  const Resolved<T>& resolved = *points.resolved;
  const int row = points.row_of_sums();
  for (int c = threadIdx.x / 32; c < row; c += finish_threads / 32) {
    double sum = 0;
    for (int b = threadIdx.x % 32; b < sum_rows; b += 32) sum += points.sums[b * row + c];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[c] = sum;
  }
  __syncthreads();
  const bool vanishes = points.estimator != Estimator::cross && resolved.all_equal;
  double at_zero = 0;  // what the tiles have left out of the diagonal
  for (int t = 0; known_diagonal && t < num_terms; ++t)
    at_zero += resolved.terms[t].coefficient * value_at_zero(resolved.terms[t].family);
  double within[2];
  for (int domain = 0; domain < 2; ++domain)
    within[domain] =
        (sums[domain] + at_zero * resolved.squares[domain]) / resolved.by.within[domain];
  if (threadIdx.x == 0)
    *static_cast<T*>(out.value) =
        T(vanishes ? 0.0 : within[0] + within[1] + sums[2] / resolved.by.across);

  // With b = a / rows the normalised weights: d value / d w_i = (h_i - sum_j b_j h_j) / sum w,
  // where h = d value / d b.
  for (int domain = 0; domain < 2; ++domain) {
    double* const v = domain ? out.v_y_weights : out.v_x_weights;
    if (!v) continue;
    const int64_t rows = domain ? points.rows.m : points.rows.n, first = points.rows.first(domain);
    double own = 2 / double(rows) * at_zero;
    if (points.estimator == Estimator::unbiased)
      own = 2 * double(rows) * within[domain] / resolved.by.within[domain];
    double mean = 0;
    for (int64_t i = threadIdx.x; i < rows; i += finish_threads) {
      const double a = double(points.weights[first + i]);
      v[i] = double(rows) * points.potentials[first + i] + own * a;
      mean += a * v[i] / double(rows);
    }
    mean = block_sum<finish_threads>(mean, room);
    for (int64_t i = threadIdx.x; i < rows; i += finish_threads)
      v[i] = vanishes ? 0 : (v[i] - mean) / resolved.sum[domain];
  }
  if (!out.v_scales) return;
  for (int t = threadIdx.x; t < num_terms; t += finish_threads) {
    const Term& term = resolved.terms[t];
    double v_w = sums[3 + t];
    for (int domain = 0; known_diagonal && domain < 2; ++domain)
      v_w += value_at_zero(term.family) * resolved.squares[domain] / resolved.by.within[domain];
    const double v_c = sums[3 + points.num_terms + t];
    out.v_coefficients[t] = vanishes ? 0 : v_w;
    out.v_scales[t] = term.scale == 0 || vanishes ? 0 : term.coefficient * v_c / term.scale;
  }
}

// The layout of a pass and its launches.
template <class T>
class Pass {
 public:
  Pass(const Mmd2Args& args, const Mmd2Out& out, const Launch& launch)
      : args_(args), out_(out), launch_(launch), arena_(args.workspace) {
    points = lay_out<T>(args, out, launch, arena_);
    // All pairs without a panel: potentials are summed up by rectangles all the same.
    if (out.v_x_weights || out.v_y_weights)
      value_room_ = arena_.template take<char>(int64_t(part_bytes(side, side)));
  }

  size_t workspace() const { return arena_.bytes(); }

  size_t panel_bytes(int64_t rows, int64_t columns) const {
    return part_bytes(rows, columns) + near_bytes(rows, columns);
  }

  void begin() const { prepare(args_, launch_, points, args_.size, args_.share); }

  void values() const {
    TileArgs<T> tiles = rectangle(0, points.padded(), 0, points.padded());
    if (!points.potentials && args_.estimator != Estimator::cross) {
      tiles.triangle = true;
      return run(tiles, false);
    }
    for (int a = 0; a < 2; ++a)
      for (int b = a; b < 2; ++b) {
        if (args_.estimator == Estimator::cross && a == b) continue;
        const int64_t end[2] = {points.rows.first(1), points.padded()};
        for (int64_t i = points.rows.first(a); i < end[a]; i += side)
          for (int64_t j = a == b ? i : points.rows.first(b); j < end[b]; j += side)
            rectangle_of_values(i, std::min(side, end[a] - i), j, std::min(side, end[b] - j));
      }
  }

  void panel(const Panel& panel, void* room) const {
    TileArgs<T> tiles = rectangle(panel.row, panel.rows, panel.column, panel.columns);
    std::copy_n(panel.w, max_factors, tiles.w);
    const bool gradient = std::any_of(panel.w, panel.w + max_factors, [](void* w) { return w; });
    if (gradient || points.potentials) give_room(tiles, room);
    run(tiles, gradient);
    if (gradient || points.potentials) reduce(tiles, gradient);
    if (gradient && std::any_of(points.factors, points.factors + points.num_moving,
                                [](const auto& f) { return f.geometry == Geometry::radial; }))
      add_near_pairs(tiles, launch_, tile(), static_cast<T*>(out_.v_x), static_cast<T*>(out_.v_y));
  }

  void finish() const {
    const cudaStream_t stream = static_cast<cudaStream_t>(launch_.stream);
    const int64_t d = points.width();
    bool dot = false;
    for (int l = 0; l < points.num_factors; ++l) dot |= points.factors[l].geometry == Geometry::dot;
    // Equal points have no gradient, unless the pairs of a point with its own sample weigh
    // something else than those with the other one, and the kernel has a slope there.
    const bool may_vanish = args_.estimator != Estimator::cross &&
                            (args_.estimator != Estimator::unbiased || !is_weighted(args_) || !dot);
    const unsigned blocks = unsigned(points.padded() / (row_threads / 32));
    if (out_.v_x || out_.v_y)
      with_operand(launch_.operand, [&](auto operand) {
        if constexpr (std::is_same_v<typename Stored<operand>::compute, T>)
          check(fastmmd::cuda::launch(finish_rows_kernel<operand, T>, dim3(blocks),
                                      dim3(row_threads), 0, stream, points, args_.x, args_.y,
                                      args_.dtype, static_cast<T*>(out_.v_x),
                                      static_cast<T*>(out_.v_y), d, may_vanish));
      });
    check(fastmmd::cuda::launch(finish_kernel<T>, dim3(1), dim3(finish_threads), 0, stream, points,
                                out_,
                                args_.estimator == Estimator::biased && diagonal_is_known(args_),
                                int64_t(args_.num_terms)));
  }

  Points<T> points;

 private:
  static constexpr int64_t side = 4096;  // of rectangles that need no panel

  // All terms are, and only the points, if anything, have gradients.
  bool gaussian() const {
    return !points.num_terms && !out_.v_x_weights && !out_.v_y_weights &&
           std::all_of(args_.terms, args_.terms + args_.num_terms,
                       [](const Term& t) { return t.family == Family::gaussian; });
  }

  // Rows of the tiles of run().
  int tile() const {
    if (points.num_factors > 1) return product_tile<T>;
    if (launch_.products != Products::simt) return 128;
    if constexpr (sizeof(T) == 8) return gaussian() ? SimtDouble::tile : SimtDoubleStaged::tile;
    return SimtFloat::tile;
  }
  int64_t parts(int64_t count) const { return count / tile(); }

  TileArgs<T> rectangle(int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    TileArgs<T> tiles{};
    tiles.points = points;
    tiles.row = row;
    tiles.rows = rows;
    tiles.column = column;
    tiles.columns = columns;
    tiles.copies = row == column ? 1 : 2;
    return tiles;
  }

  size_t part_bytes(int64_t rows, int64_t columns) const {
    const int64_t count = (points.num_moving + 1) * (parts(columns) * rows + parts(rows) * columns);
    return size_t(round_up(count * int64_t(sizeof(T)), 16));
  }

  int64_t near_tiles(int64_t rows, int64_t columns) const {
    return points.num_moving * parts(rows) * parts(columns);
  }

  size_t near_bytes(int64_t rows, int64_t columns) const {
    return size_t(near_tiles(rows, columns) * (1 + tile() * near_words(tile()))) * sizeof(uint32_t);
  }

  void give_room(TileArgs<T>& tiles, void* room) const {
    tiles.near_tiles = reinterpret_cast<uint32_t*>(static_cast<char*>(room) +
                                                   part_bytes(tiles.rows, tiles.columns));
    tiles.near_pairs = tiles.near_tiles + near_tiles(tiles.rows, tiles.columns);
    tiles.row_parts = static_cast<T*>(room);
    // On the diagonal the rectangle holds the mirror of each tile.
    if (tiles.copies == 2)
      tiles.column_parts =
          tiles.row_parts + (points.num_moving + 1) * parts(tiles.columns) * tiles.rows;
  }

  void rectangle_of_values(int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    TileArgs<T> tiles = rectangle(row, rows, column, columns);
    if (points.potentials) give_room(tiles, value_room_);
    run(tiles, false);
    if (points.potentials) reduce(tiles, false);
  }

  void run(const TileArgs<T>& tiles, bool gradient) const {
    if (points.num_factors > 1) return product_tiles(tiles, launch_, gradient);
    if constexpr (sizeof(T) == 4) {
      if (launch_.products == Products::mma) return mma_tiles(tiles, launch_, gaussian(), gradient);
      if (launch_.products != Products::simt)
        return wgmma_tiles(tiles, launch_, gaussian(), gradient);
    }
    simt_tiles(tiles, launch_, gaussian(), gradient);
  }

  void reduce(const TileArgs<T>& tiles, bool pulls) const {
    const int64_t count = tiles.rows + (tiles.column_parts ? tiles.columns : 0);
    check(fastmmd::cuda::launch(
        reduce_kernel<T>, dim3(unsigned(round_up(count, reduce_threads) / reduce_threads)),
        dim3(reduce_threads), 0, static_cast<cudaStream_t>(launch_.stream), tiles, tile(), pulls));
  }

  const Mmd2Args args_;
  const Mmd2Out out_;
  const Launch launch_;
  Arena arena_;
  void* value_room_ = nullptr;
};

// use(the pass in its type), on its device.
template <class Use>
auto with_pass(const Mmd2Args& args, const Mmd2Out& out, const Launch& launch, const Use& use) {
  if (args.dtype == Dtype::float64) return use(Pass<double>(args, out, launch));
  return use(Pass<float>(args, out, launch));
}

}  // namespace

size_t Mmd2::workspace() const {
  return with_pass(args_, out_, launch_, [](const auto& pass) { return pass.workspace(); });
}

size_t Mmd2::panel_workspace(int64_t rows, int64_t columns) const {
  return with_pass(args_, out_, launch_,
                   [&](const auto& pass) { return pass.panel_bytes(rows, columns); });
}

void Mmd2::begin() const {
  const DeviceGuard guard(launch_.device);
  with_pass(args_, out_, launch_, [](const auto& pass) { pass.begin(); });
}

void Mmd2::values() const {
  const DeviceGuard guard(launch_.device);
  with_pass(args_, out_, launch_, [](const auto& pass) { pass.values(); });
}

void Mmd2::panel(const Panel& panel, void* workspace) const {
  const DeviceGuard guard(launch_.device);
  with_pass(args_, out_, launch_, [&](const auto& pass) { pass.panel(panel, workspace); });
}

void Mmd2::finish() const {
  const DeviceGuard guard(launch_.device);
  with_pass(args_, out_, launch_, [](const auto& pass) { pass.finish(); });
}

}  // namespace fastmmd::cuda

// The CPU tile loop, compiled once per instruction set (FASTMMD_ISA names it).
//
// Work on a tile (I, J) of the symmetric pairwise matrix, all of it within the L2 cache:
//
//   1. distances   D = |z_i|^2 + |z_j|^2 - 2 <z_i, z_j> by register blocks
//   2. evaluate    kernel values, summed on the spot; gradient weights g_ij = 4 C a_i a_j k'(D)
//                  written over D
//   3. products    v_I -= G z_J and v_J -= G^T z_I; finish() adds z_i sum_j g_ij
//
// Arithmetic: 2 d flop a pair for step 1 and 4 d for step 3, each pair i < j once.
//
// Nothing here may instantiate inline functions of the standard library: the linker keeps one copy
// of those for the whole module, and it could be one with instructions the machine lacks.

#include <type_traits>

#include "cpu/simd.h"
#include "cpu/source.h"
#include "cpu/tile.h"

namespace fastmmd::cpu::FASTMMD_ISA {
namespace {

// D of a pair is recomputed from differences below near * (|z_i|^2 + |z_j|^2), where the inner
// product has left it 2^-14 relative accuracy in float32.
constexpr double near = 1.0 / (1 << 10);
// Its gradient is added pair by pair below this, where z_i sum g - sum g z_j would cancel: at the
// threshold g |z_i| is 2^10 times the difference, which costs the pair ten bits.
constexpr double very_near = 1.0 / (1 << 20);
// Features summed before the tile is touched: a streamed panel of them stays in the L1 cache, and a
// sum of partial sums loses fewer digits than one long one.
constexpr int64_t chunk_features = 192;

template <class T>
struct Loop {
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr int lanes = S::lanes;
  static constexpr int R = tile_rows;

  // ---- layout ----

  static T* feature_row(const Plan<T>& plan, int64_t p, int64_t row) {
    const Panels& panels = plan.feature_panels;
    return plan.features + (plan.padded_rows * panels.first(p) + row * panels.width(p)) * lanes;
  }

  static int64_t panel_features(const Plan<T>& plan, int64_t p) {
    const int64_t left = plan.d - plan.feature_panels.first(p) * lanes;
    const int64_t width = plan.feature_panels.width(p) * lanes;
    return left < width ? left : width;
  }

  static Panels row_panels(const Block& block) { return {block.vectors, tile_vectors}; }

  static T* column_panel(const Plan<T>& plan, const Block& block, int64_t q) {
    return plan.columns + (block.row + row_panels(block).first(q) * lanes) * plan.d;
  }

  // ---- packing ----

  static void pack(const Plan<T>& plan, const Sample& x, Dtype dtype, const Block& block) {
    const FlushSubnormals flush;
    const T scale = plan.scale;
    const Panels& panels = plan.feature_panels;
    const int64_t padded = int64_t(block.vectors) * lanes;
    for (int64_t p = 0; p < panels.count(); ++p) {
      const int64_t k0 = panels.first(p) * lanes;
      const int64_t width = panels.width(p) * lanes;
      const int64_t features = panel_features(plan, p);
      const double* mean = plan.mean + k0;
      with_source(x, dtype, [&](auto data) {
        for (int64_t i = 0; i < padded; ++i) {
          T* out = feature_row(plan, p, block.row + i);
          int64_t k = 0;
          if (i < block.rows) {
            auto row = data + (block.start + i) * x.row_stride + k0 * x.column_stride;
            for_columns(row, x.column_stride, 0, features,
                        [&](int64_t c, auto v) { out[c] = (T(v) - T(mean[c])) * scale; });
            k = features;
          }
          for (; k < width; ++k) out[k] = 0;
        }
      });
    }

    const Panels rows = row_panels(block);
    for (int64_t q = 0; q < rows.count(); ++q) {
      const int64_t width = rows.width(q) * lanes;
      T* panel = column_panel(plan, block, q);
      for (int64_t v = 0; v < rows.width(q); ++v) {
        const int64_t row = block.row + (rows.first(q) + v) * lanes;
        for (int64_t p = 0; p < panels.count(); ++p) {
          const int64_t stride = panels.width(p) * lanes;
          for (int64_t f = 0; f < panels.width(p); ++f) {
            const T* in = feature_row(plan, p, row) + f * lanes;
            V square[lanes];
#pragma GCC unroll 16
            for (int r = 0; r < lanes; ++r) square[r] = S::load(in + r * stride);
            S::transpose(square);
            const int64_t k0 = (panels.first(p) + f) * lanes;
            const int64_t left = plan.d - k0 < lanes ? plan.d - k0 : lanes;
            T* out = panel + k0 * width + v * lanes;
            for (int64_t k = 0; k < left; ++k) S::store(out + k * width, square[k]);
          }
        }
      }
      // Summed in the order of the inner products, so that equal rows have distance 0 exactly.
      for (int64_t v = 0; v < rows.width(q); ++v) {
        V norm{};
        for (int64_t c = 0; c < chunks(plan); ++c) {
          V sum{};
          for (int64_t k = chunk_begin(plan, c); k < chunk_begin(plan, c + 1); ++k) {
            const V z = S::load(panel + k * width + v * lanes);
            sum += z * z;
          }
          norm = c ? norm + sum : sum;
        }
        S::store(plan.norms + block.row + (rows.first(q) + v) * lanes, norm);
      }
    }

    if (T* v = plan.v[block.domain])
      std::memset(v + block.start * plan.d, 0, size_t(block.rows) * plan.d * sizeof(T));
  }

  // ---- inner products ----

  // Chunks of features are whole panels.
  static int64_t panels_per_chunk() { return chunk_features / (tile_vectors * lanes); }
  static int64_t chunks(const Plan<T>& plan) {
    return (plan.feature_panels.count() + panels_per_chunk() - 1) / panels_per_chunk();
  }
  static int64_t chunk_panel(const Plan<T>& plan, int64_t c) {
    const int64_t p = c * panels_per_chunk();
    return p < plan.feature_panels.count() ? p : plan.feature_panels.count();
  }
  static int64_t chunk_begin(const Plan<T>& plan, int64_t c) {
    const int64_t p = chunk_panel(plan, c);
    return p < plan.feature_panels.count() ? plan.feature_panels.first(p) * lanes : plan.d;
  }

  // acc[r][v] += sum over the features of panels [begin, end) of a_r b_v, or of (a_r - b_v)^2.
  template <int W, bool differences>
  static FASTMMD_INLINE void contract(const Plan<T>& plan, int64_t row, int64_t begin, int64_t end,
                                      const T* b, V (&acc)[R][W]) {
    for (int64_t p = begin; p < end; ++p) {
      const T* a = feature_row(plan, p, row);
      const int64_t stride = plan.feature_panels.width(p) * lanes;
      const int64_t features = panel_features(plan, p);
      for (int64_t k = 0; k < features; ++k, ++a, b += W * lanes) {
        V bv[W];
#pragma GCC unroll 8
        for (int v = 0; v < W; ++v) bv[v] = S::load(b + v * lanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const V ar = S::broadcast(a[r * stride]);
#pragma GCC unroll 8
          for (int v = 0; v < W; ++v) {
            if constexpr (differences) {
              const V t = ar - bv[v];
              acc[r][v] += t * t;
            } else {
              acc[r][v] += ar * bv[v];
            }
          }
        }
      }
    }
  }

  // R x W vectors of the tile at (row, column).
  template <int W>
  static void distance_block(const Plan<T>& plan, const Block& I, const Block& J, int64_t row,
                             int64_t column, const T* panel, int64_t c, T* tile, int64_t ld) {
    V acc[R][W] = {};
    const int64_t row0 = I.row + row, column0 = J.row + column;
    contract<W, false>(plan, row0, chunk_panel(plan, c), chunk_panel(plan, c + 1),
                       panel + chunk_begin(plan, c) * W * lanes, acc);
    T* out = tile + row * ld + column;
    if (c > 0)
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < W; ++v) acc[r][v] = S::load(out + r * ld + v * lanes) + acc[r][v];
    if (c + 1 < chunks(plan)) {
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < W; ++v) S::store(out + r * ld + v * lanes, acc[r][v]);
      return;
    }

    const bool on_diagonal = row0 < column0 + W * lanes && column0 < row0 + R;
    V margin = S::broadcast(1);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T norm = plan.norms[row0 + r];
#pragma GCC unroll 8
      for (int v = 0; v < W; ++v) {
        const V norms = norm + S::load(plan.norms + column0 + v * lanes);
        V D = S::clamp_below(norms - 2 * acc[r][v], 0);
        if (on_diagonal) {
          const int64_t self = row0 + r - (column0 + v * lanes);
          if (self >= 0 && self < lanes) D[self] = norms[self];
        }
        margin = S::min(margin, D - T(near) * (norms - plan.near_offset));
        S::store(out + r * ld + v * lanes, D);
      }
    }
    if (S::any_negative(margin)) recompute<W>(plan, row0, panel, out, ld);
    if (on_diagonal)
      for (int r = 0; r < R; ++r) {
        const int64_t self = row0 + r - column0;
        if (self >= 0 && self < W * lanes) out[r * ld + self] = 2 * plan.norms[row0 + r];
      }
  }

  template <int W>
  static __attribute__((noinline)) void recompute(const Plan<T>& plan, int64_t row0, const T* panel,
                                                  T* out, int64_t ld) {
    V acc[R][W] = {};
    contract<W, true>(plan, row0, 0, plan.feature_panels.count(), panel, acc);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < W; ++v) S::store(out + r * ld + v * lanes, acc[r][v]);
  }

  static void distances(const Plan<T>& plan, const Block& I, const Block& J,
                        const Scratch<T>& scratch) {
    const FlushSubnormals flush;
    const int64_t ld = int64_t(J.vectors) * lanes;
    const Panels columns = row_panels(J);
    for (int64_t c = 0; c < chunks(plan); ++c)
      for (int64_t q = 0; q < columns.count(); ++q) {
        const T* panel = column_panel(plan, J, q);
        const int64_t column = columns.first(q) * lanes;
        for (int64_t row = 0; row < I.rows; row += R) {
          auto run = [&](auto width) {
            distance_block<width>(plan, I, J, row, column, panel, c, scratch.tile, ld);
          };
          with_width(columns.width(q), run);
        }
      }
  }

  template <class Run>
  static FASTMMD_INLINE void with_width(int width, Run&& run) {
    if (width == tile_vectors) return run(std::integral_constant<int, tile_vectors>{});
    if (width == 1) return run(std::integral_constant<int, 1>{});
    if constexpr (tile_vectors > 2) return run(std::integral_constant<int, 2>{});
  }

  // ---- kernel values ----

  // The kernel as one functor for the row loop: a lone segment is resolved outside the loop.
  template <class F>
  struct Single {
    const Segment<T>& segment;
    template <class W>
    FASTMMD_INLINE void eval(const W& D, W& k) const {
      F::template eval<W>(D, segment, k);
    }
    template <class W>
    FASTMMD_INLINE void grad(const W& D, W& k, W& dk) const {
      F::template grad<W>(D, segment, k, dk);
    }
  };

  struct Mixture {
    const Plan<T>& plan;
    template <class W>
    FASTMMD_INLINE void eval(const W& D, W& k) const {
      for (int s = 0; s < plan.num_segments; ++s)
        dispatch(plan.segments[s].family,
                 [&](auto family) { decltype(family)::template eval<W>(D, plan.segments[s], k); });
    }
    template <class W>
    FASTMMD_INLINE void grad(const W& D, W& k, W& dk) const {
      for (int s = 0; s < plan.num_segments; ++s)
        dispatch(plan.segments[s].family, [&](auto family) {
          decltype(family)::template grad<W>(D, plan.segments[s], k, dk);
        });
    }
  };

  template <bool grad, class Kernel>
  static void evaluate(const Plan<T>& plan, const Block& I, const Block& J, const Kernel& kernel,
                       double C, const Scratch<T>& scratch, double* sums) {
    const bool diagonal = I.row == J.row;
    const double copies = diagonal ? 1 : 2;  // the mirrored tile
    const int64_t ld = int64_t(J.vectors) * lanes;
    T* const weights = scratch.weights;
    T* const column_pulls = scratch.column_pulls;
    T* const column_sums = plan.potentials ? scratch.column_sums : nullptr;
    const T* const norms = plan.norms + J.row;
    std::memcpy(weights, plan.weights + J.row, ld * sizeof(T));
    if constexpr (grad) std::memset(column_pulls, 0, ld * sizeof(T));
    if (column_sums) std::memset(column_sums, 0, ld * sizeof(T));

    double total = 0;
    for (int64_t i = 0; i < I.rows; ++i) {
      T* row = scratch.tile + i * ld;
      const T a = plan.weights[I.row + i];
      if (diagonal) weights[i] = 0;
      const T slope = T(4 * C * double(a));
      const T norm = plan.norms[I.row + i] - plan.near_offset;
      V row_sum{}, row_pull{}, margin = S::broadcast(1);
      if (plan.num_terms) evaluate_terms(plan, row, weights, ld, a, copies * C, scratch, sums);
      auto step = [&](auto zero, int64_t j) {
        using W = decltype(zero);
        const W D = W::load(row + j), w = W::load(weights + j);
        W k = zero;
        if constexpr (grad) {
          W dk = zero;
          kernel.grad(D, k, dk);
          const W g = slope * w * dk;
          const W excess = D - T(very_near) * (norm + W::load(norms + j));
          for (const V& part : excess.part) margin = S::min(margin, part);
          // The weight of a very near pair would drown the sums that it is part of.
          const W far = W::each([&](int u) { return excess.part[u] < 0 ? V{} : g.part[u]; });
          const W near_distances =
              W::each([&](int u) { return excess.part[u] < 0 ? D.part[u] : S::broadcast(-1); });
          row_pull += far.sum();
          (W::load(column_pulls + j) + far).store(column_pulls + j);
          near_distances.store(scratch.near_distances + j);
          g.store(row + j);
        } else {
          kernel.eval(D, k);
        }
        if (column_sums) (W::load(column_sums + j) + a * k).store(column_sums + j);
        row_sum += (k * w).sum();
      };
      int64_t j = 0;
      for (; j + side_by_side * lanes <= ld; j += side_by_side * lanes)
        step(Many<T, side_by_side>{}, j);
      for (; j < ld; j += lanes) step(Many<T, 1>{}, j);
      const double sum = double(S::sum(row_sum));
      total += double(a) * sum;
      if (diagonal) weights[i] = plan.weights[J.row + i];
      if (plan.potentials) plan.potentials[I.row + i] += 2 * C * sum;
      if constexpr (grad) {
        plan.pulls[I.row + i] += double(S::sum(row_pull));
        if (S::any_negative(margin)) push_apart(plan, I, J, i, row, scratch);
      }
    }
    sums[I.domain != J.domain] += copies * total;

    if (diagonal) return;
    for (int64_t j = 0; j < J.rows; ++j) {
      if constexpr (grad) plan.pulls[J.row + j] += double(scratch.column_pulls[j]);
      if (plan.potentials) plan.potentials[J.row + j] += 2 * C * double(scratch.column_sums[j]);
    }
  }

  static void evaluate_terms(const Plan<T>& plan, const T* row, const T* weights, int64_t ld, T a,
                             double C, const Scratch<T>& scratch, double* sums) {
    V* v_w = reinterpret_cast<V*>(scratch.terms);
    V* v_c = v_w + max_terms;
    for (int t = 0; t < plan.num_terms; ++t) v_w[t] = v_c[t] = V{};
    for (int64_t j = 0; j < ld; j += lanes) {
      const V D = S::load(row + j);
      const V pair = a * S::load(weights + j);
      for (int s = 0; s < plan.num_segments; ++s)
        dispatch(plan.segments[s].family, [&](auto family) {
          decltype(family)::template terms<S>(D, plan.segments[s], pair, v_w, v_c);
        });
    }
    for (int t = 0; t < plan.num_terms; ++t) {
      sums[2 + t] += C * double(S::sum(v_w[t]));
      sums[2 + plan.num_terms + t] += C * double(S::sum(v_c[t]));
    }
  }

  // Row i has partners so near that their gradient is made from z_i - z_j, outside the products.
  static __attribute__((noinline)) void push_apart(const Plan<T>& plan, const Block& I,
                                                   const Block& J, int64_t i, T* row,
                                                   const Scratch<T>& scratch) {
    T* near_pulls = scratch.near_distances;
    int count = 0;  // never ahead of j: the distances are read before they are overwritten
    for (int64_t j = 0; j < J.rows; ++j) {
      const T D = scratch.near_distances[j];
      if (D < 0) continue;
      const T g = row[j];
      row[j] = 0;
      if (D == 0) continue;
      scratch.near[count] = int(j);
      near_pulls[count++] = g;
    }

    T* const v_I = plan.v[I.domain] ? plan.v[I.domain] + (I.start + i) * plan.d : nullptr;
    // In a tile on the diagonal, (j, i) is a pair of its own.
    T* const v_J =
        plan.v[J.domain] && I.row != J.row ? plan.v[J.domain] + J.start * plan.d : nullptr;
    for (int64_t p = 0; p < plan.feature_panels.count(); ++p) {
      const int64_t features = panel_features(plan, p);
      const int64_t k0 = plan.feature_panels.first(p) * lanes;
      const T* z_i = feature_row(plan, p, I.row + i);
      T sum[tile_vectors * lanes] = {};
      for (int c = 0; c < count; ++c) {
        const T g = near_pulls[c];
        const T* z_j = feature_row(plan, p, J.row + scratch.near[c]);
        T step[tile_vectors * lanes];
        for (int64_t k = 0; k < features; ++k) step[k] = g * (z_i[k] - z_j[k]);
        for (int64_t k = 0; k < features; ++k) sum[k] += step[k];
        if (!v_J) continue;
        T* v_j = v_J + scratch.near[c] * plan.d + k0;
        for (int64_t k = 0; k < features; ++k) v_j[k] -= step[k];
      }
      if (v_I)
        for (int64_t k = 0; k < features; ++k) v_I[k0 + k] += sum[k];
    }
  }

  // ---- gradient products ----

  // v[out] -= sum_s g[out, s] z[s] for the rows of `out` and one panel of features; G is stored
  // [out, s] with leading dimension ld, or transposed.
  template <int W, bool transposed>
  static void product_panel(const Plan<T>& plan, const Block& out, const Block& summed, int64_t p,
                            const T* G, int64_t ld) {
    const T* b0 = feature_row(plan, p, summed.row);
    const int64_t features = panel_features(plan, p);
    T* v0 = plan.v[out.domain] + out.start * plan.d + plan.feature_panels.first(p) * lanes;
    for (int64_t i = 0; i < out.rows; i += R) {
      V acc[R][W] = {};
      const T* a = transposed ? G + i : G + i * ld;
      const T* b = b0;
      T* v_out = v0 + i * plan.d;
      for (int64_t r = 0; r < R && i + r < out.rows; ++r)
        for (int v = 0; v < W; ++v) __builtin_prefetch(v_out + r * plan.d + v * lanes, 1);
      for (int64_t s = 0; s < summed.rows; ++s, b += W * lanes, a += transposed ? ld : 1) {
        V bv[W];
#pragma GCC unroll 8
        for (int v = 0; v < W; ++v) bv[v] = S::load(b + v * lanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const V ar = S::broadcast(a[transposed ? r : r * ld]);
#pragma GCC unroll 8
          for (int v = 0; v < W; ++v) acc[r][v] += ar * bv[v];
        }
      }
      if (i + R <= out.rows && features == W * lanes) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int v = 0; v < W; ++v) {
            T* to = v_out + r * plan.d + v * lanes;
            S::store(to, S::load(to) - acc[r][v]);
          }
      } else {
        for (int64_t r = 0; r < R && i + r < out.rows; ++r) {
          T line[W * lanes];
          for (int v = 0; v < W; ++v) S::store(line + v * lanes, acc[r][v]);
          for (int64_t k = 0; k < features; ++k) v_out[r * plan.d + k] -= line[k];
        }
      }
    }
  }

  template <bool transposed>
  static void product(const Plan<T>& plan, const Block& out, const Block& summed, const T* G,
                      int64_t ld) {
    for (int64_t p = 0; p < plan.feature_panels.count(); ++p)
      with_width(plan.feature_panels.width(p), [&](auto width) {
        product_panel<width, transposed>(plan, out, summed, p, G, ld);
      });
  }

  template <bool grad>
  static void evaluate_kernel(const Plan<T>& plan, const Block& I, const Block& J, double C,
                              const Scratch<T>& scratch, double* sums) {
    if (plan.num_segments == 1)
      dispatch(plan.segments[0].family, [&](auto family) {
        evaluate<grad>(plan, I, J, Single<decltype(family)>{plan.segments[0]}, C, scratch, sums);
      });
    else evaluate<grad>(plan, I, J, Mixture{plan}, C, scratch, sums);
  }

  static void tile(const Plan<T>& plan, const Block& I, const Block& J, double C,
                   const Scratch<T>& scratch, double* sums) {
    const FlushSubnormals flush;
    distances(plan, I, J, scratch);
    if (!plan.v[I.domain] && !plan.v[J.domain])
      return evaluate_kernel<false>(plan, I, J, C, scratch, sums);
    evaluate_kernel<true>(plan, I, J, C, scratch, sums);
    const int64_t ld = int64_t(J.vectors) * lanes;
    if (plan.v[I.domain]) product<false>(plan, I, J, scratch.tile, ld);
    if (plan.v[J.domain] && I.row != J.row) product<true>(plan, J, I, scratch.tile, ld);
  }

  static void finish(const Plan<T>& plan, const Block& block) {
    const T scale = plan.scale;  // dz / dx
    for (int64_t i = 0; i < block.rows; ++i) {
      const T pull = T(plan.pulls[block.row + i]);
      T* v = plan.v[block.domain] + (block.start + i) * plan.d;
      for (int64_t p = 0; p < plan.feature_panels.count(); ++p) {
        const T* z = feature_row(plan, p, block.row + i);
        T* to = v + plan.feature_panels.first(p) * lanes;
        for (int64_t k = 0; k < panel_features(plan, p); ++k) to[k] = (to[k] + pull * z[k]) * scale;
      }
    }
  }

  static constexpr TileKernels<T> kernels = {
      .lanes = lanes,
      .row_unit = lanes > tile_rows ? lanes : tile_rows,
      .panel_vectors = tile_vectors,
      .read_row = read_row,
      .add_columns = add_columns,
      .pack = pack,
      .distances = distances,
      .tile = tile,
      .finish = finish,
  };
};

}  // namespace

const TileKernels<float>& float_kernels() { return Loop<float>::kernels; }
const TileKernels<double>& double_kernels() { return Loop<double>::kernels; }

}  // namespace fastmmd::cpu::FASTMMD_ISA

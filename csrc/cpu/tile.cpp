// The CPU tile loop, compiled once per instruction set (FASTMMD_ISA names it).
//
// Work on a tile (I, J) of the symmetric pairwise matrix, all of it within the L2 cache:
//
//   1. statistics  D = |z_i|^2 + |z_j|^2 - 2 <z_i, z_j>, or the inner products, by register blocks
//   2. evaluate    kernel values, summed on the spot; gradient weights g_ij written over u = D or
//                  <z_i, z_j>: with C a_i a_j k(u_ij) the pair's part of the sum of all ordered
//                  pairs, -4 C a_i a_j k'(D_ij), or 2 C a_i a_j k'(u_ij) for inner products
//   3. products    v_I += G z_J and v_J += G^T z_I; finish() adds -z_i sum_j g_ij for distances
//
// Arithmetic: 2 d flop a pair for step 1 and 4 d for step 3, each pair i < j once.
//
// Nothing here may instantiate inline functions of the standard library: the linker keeps one copy
// of those for the whole module, and it could be one with instructions the machine lacks.

#include "cpu/rotations.h"
#include "cpu/values.h"

namespace fastmmd::cpu::FASTMMD_ISA {
namespace {

// The gradient of a pair is added by itself where D is below this times |z_i|^2 + |z_j|^2, as
// z_i sum g - sum g z_j would cancel: at the threshold g |z_i| is 2^10 times the difference, which
// costs the pair ten bits.
constexpr double very_near = 1.0 / (1 << 20);

template <class T>
struct Loop : Values<T> {
  using P = Packing<T>;
  using Q = Statistics<T>;
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr int lanes = S::lanes;

  // ---- the weights of the pairs of one row ----

  // The weights of the rows of J, as row i of I meets them. They are there already but for what
  // depends on i.
  static FASTMMD_INLINE void pair_weights(const Plan<T>& plan, const Block& I, const Block& J,
                                          int64_t i, int64_t ld, T* weights) {
    const Pairs& pairs = plan.pairs;
    const int64_t position = I.start + i, self = position - J.start;
    if (pairs.masked()) {
      int64_t first = pairs.first(position) - J.start, last = pairs.last(position) - J.start;
      first = first < 0 ? 0 : first;
      last = last < J.rows ? last : J.rows;
      std::memset(weights, 0, ld * sizeof(T));
      for (int64_t j = first; j < last; ++j) weights[j] = plan.weights[J.row + j];
      const bool counts = I.domain == J.domain ? pairs.self_within : pairs.self_across;
      if (!counts && self >= first && self < last) weights[self] = 0;
    } else if (I.row == J.row && !pairs.self_within) {
      if (i > 0) weights[i - 1] = plan.weights[J.row + i - 1];
      weights[i] = 0;
    }
  }

  // A pair that does not count must not overflow, as infinity times 0 is no number: its inner
  // product becomes 0. (Distances overflow nothing: radial kernels are bounded or grow slowly.)
  static FASTMMD_INLINE void silence(const T* weights, int64_t ld, T* row) {
    for (int64_t j = 0; j < ld; j += lanes) {
      const V u = S::load(row + j);
      S::store(row + j, S::load(weights + j) == 0 ? u * 0 : u);
    }
  }

  // ---- gradient weights of one row ----

  // What one row of gradient weights leaves behind beside itself.
  struct Pull {
    const T* norms;  // of the columns; null for inner products
    T norm;          // of the row
    T* columns;      // sums over rows
    T* near_distances;
    V row{}, margin = S::broadcast(1);

    template <bool radial, class W>
    FASTMMD_INLINE void add(T* row_of_tile, int64_t j, const W& D, const W& g) {
      if constexpr (radial) {
        const W excess = D - T(very_near) * (norm + W::load(norms + j));
        for (const V& part : excess.part) margin = S::min(margin, part);
        // The weight of a very near pair would drown the sums that it is part of.
        const W far = W::each([&](int u) { return excess.part[u] < 0 ? V{} : g.part[u]; });
        const W distances =
            W::each([&](int u) { return excess.part[u] < 0 ? D.part[u] : S::broadcast(-1); });
        row -= far.sum();
        (W::load(columns + j) - far).store(columns + j);
        distances.store(near_distances + j);
      }
      g.store(row_of_tile + j);
    }
  };

  static FASTMMD_INLINE Pull pull(const Factor<T>& f, const Block& I, const Block& J, int64_t i,
                                  T* columns, const Scratch<T>& scratch) {
    return {f.norms + J.row, f.norms[I.row + i] - f.near_offset, columns, scratch.near_distances};
  }

  static FASTMMD_INLINE void settle(const Plan<T>& plan, const Factor<T>& f, const Block& I,
                                    const Block& J, int64_t i, T* row, const Pull& pull,
                                    const Scratch<T>& scratch) {
    f.pulls[I.row + i] += double(S::sum(pull.row));
    if (S::any_negative(pull.margin)) push_apart(plan, f, I, J, i, row, scratch);
  }

  // Row i has partners so near that their gradient is made from z_i - z_j, outside the products.
  static __attribute__((noinline)) void push_apart(const Plan<T>& plan, const Factor<T>& f,
                                                   const Block& I, const Block& J, int64_t i,
                                                   T* row, const Scratch<T>& scratch) {
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

    T* const v_I =
        plan.v[I.domain] ? plan.v[I.domain] + (I.start + i) * plan.d + f.column : nullptr;
    // In a tile on the diagonal, (j, i) is a pair of its own.
    T* const v_J = plan.v[J.domain] && I.row != J.row
                       ? plan.v[J.domain] + J.start * plan.d + f.column
                       : nullptr;
    for (int64_t p = 0; p < f.feature_panels.count(); ++p) {
      const int64_t features = P::panel_features(f, p);
      const int64_t k0 = f.feature_panels.first(p) * lanes;
      const T* z_i = P::feature_row(plan, f, p, I.row + i);
      T sum[tile_vectors * lanes] = {};
      for (int c = 0; c < count; ++c) {
        const T g = near_pulls[c];
        const T* z_j = P::feature_row(plan, f, p, J.row + scratch.near[c]);
        T step[tile_vectors * lanes];
        for (int64_t k = 0; k < features; ++k) step[k] = g * (z_j[k] - z_i[k]);
        for (int64_t k = 0; k < features; ++k) sum[k] += step[k];
        if (!v_J) continue;
        T* v_j = v_J + scratch.near[c] * plan.d + k0;
        for (int64_t k = 0; k < features; ++k) v_j[k] -= step[k];
      }
      if (v_I)
        for (int64_t k = 0; k < features; ++k) v_I[k0 + k] += sum[k];
    }
  }

  // What the gradient weights of a pair are multiplied by, beside the slope.
  static FASTMMD_INLINE double slope_of(bool radial, double C, T a) {
    return (radial ? -4 : 2) * C * double(a);
  }

  // ---- evaluation ----

  template <bool grad, bool radial, class Kernel>
  static void evaluate(const Plan<T>& plan, const Block& I, const Block& J, const Kernel& kernel,
                       double C, const Scratch<T>& scratch, double* sums) {
    const Factor<T>& f = plan.factors[0];
    const bool diagonal = I.row == J.row;
    const double copies = diagonal ? 1 : 2;  // the mirrored tile
    const int64_t ld = int64_t(J.vectors) * lanes;
    T* const weights = scratch.weights;
    T* const column_sums = plan.potentials ? scratch.column_sums : nullptr;
    const bool silent = diagonal || !column_sums;  // the gradient to a weight of 0 has its pairs
    std::memcpy(weights, plan.weights + J.row, ld * sizeof(T));
    if constexpr (grad && radial) std::memset(scratch.column_pulls, 0, ld * sizeof(T));
    if (column_sums) std::memset(column_sums, 0, ld * sizeof(T));

    double total = 0;
    for (int64_t i = 0; i < I.rows; ++i) {
      T* row = scratch.tiles + i * ld;
      const T a = plan.weights[I.row + i];
      pair_weights(plan, I, J, i, ld, weights);
      if (!radial && silent) silence(weights, ld, row);
      const T slope = T(slope_of(radial, C, a));
      Pull pulled = pull(f, I, J, i, scratch.column_pulls, scratch);
      V row_sum{};
      if (plan.num_terms) evaluate_terms(plan, f, row, weights, ld, a, copies * C, scratch, sums);
      auto step = [&](auto zero, int64_t j) {
        using W = decltype(zero);
        const W u = W::load(row + j), w = W::load(weights + j);
        W k = zero;
        if constexpr (grad) {
          W dk = zero;
          kernel.grad(u, k, dk);
          pulled.template add<radial>(row, j, u, slope * w * dk);
        } else {
          kernel.eval(u, k);
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
      if (plan.potentials) plan.potentials[I.row + i] += 2 * C * sum;
      if constexpr (grad && radial) settle(plan, f, I, J, i, row, pulled, scratch);
    }
    sums[I.domain != J.domain] += copies * total;
    if (!diagonal) add_columns_of_tile<grad && radial>(plan, J, C, scratch);
  }

  // What the rows of J get from a tile, as the mirrored tile would give it.
  template <bool pulls>
  static void add_columns_of_tile(const Plan<T>& plan, const Block& J, double C,
                                  const Scratch<T>& scratch) {
    for (int64_t j = 0; j < J.rows; ++j) {
      if constexpr (pulls) plan.factors[0].pulls[J.row + j] += double(scratch.column_pulls[j]);
      if (plan.potentials) plan.potentials[J.row + j] += 2 * C * double(scratch.column_sums[j]);
    }
  }

  // The gradients of the terms of one factor; `weights` includes the other factors' values.
  static void evaluate_terms(const Plan<T>& plan, const Factor<T>& f, const T* row,
                             const T* weights, int64_t ld, T a, double C, const Scratch<T>& scratch,
                             double* sums) {
    V* v_w = reinterpret_cast<V*>(scratch.terms);
    V* v_c = v_w + max_terms;
    for (int t = f.first_term; t < f.first_term + f.num_terms; ++t) v_w[t] = v_c[t] = V{};
    for (int64_t j = 0; j < ld; j += lanes) {
      const V u = S::load(row + j);
      const V pair = a * S::load(weights + j);
      for (int s = 0; s < f.num_segments; ++s)
        dispatch(f.segments[s].family, [&](auto family) {
          decltype(family)::template terms<S>(u, f.segments[s], pair, v_w, v_c);
        });
    }
    for (int t = f.first_term; t < f.first_term + f.num_terms; ++t) {
      sums[2 + t] += C * double(S::sum(v_w[t]));
      sums[2 + plan.num_terms + t] += C * double(S::sum(v_c[t]));
    }
  }

  // A product of factors: each factor's gradient is weighted by the values of the others.
  template <bool grad>
  static void evaluate_product(const Plan<T>& plan, const Block& I, const Block& J, double C,
                               const Scratch<T>& scratch, double* sums) {
    const bool diagonal = I.row == J.row;
    const double copies = diagonal ? 1 : 2;
    const int64_t ld = int64_t(J.vectors) * lanes;
    T* const weights = scratch.weights;
    T* const column_sums = plan.potentials ? scratch.column_sums : nullptr;
    const bool silent = diagonal || !column_sums;  // the gradient to a weight of 0 has its pairs
    std::memcpy(weights, plan.weights + J.row, ld * sizeof(T));
    if (grad) std::memset(scratch.column_pulls, 0, plan.num_factors * scratch.block * sizeof(T));
    if (column_sums) std::memset(column_sums, 0, ld * sizeof(T));

    double total = 0;
    for (int64_t i = 0; i < I.rows; ++i) {
      const T a = plan.weights[I.row + i];
      pair_weights(plan, I, J, i, ld, weights);
      for (int l = 0; l < plan.num_factors; ++l) {
        T* row = scratch.tiles + l * scratch.tile + i * ld;
        if (plan.factors[l].geometry != Geometry::radial && silent) silence(weights, ld, row);
        T* const values = scratch.values + l * scratch.block;
        if (grad && l < plan.num_moving)
          Values<T>::template row_values<true>(plan.factors[l], row, ld, values,
                                               scratch.slopes + l * scratch.block);
        else Values<T>::template row_values<false>(plan.factors[l], row, ld, values, nullptr);
      }
      V row_sum{};
      for (int64_t j = 0; j < ld; j += lanes) {
        V k = S::load(scratch.values + j);
        for (int l = 1; l < plan.num_factors; ++l)
          k *= S::load(scratch.values + l * scratch.block + j);
        if (column_sums) S::store(column_sums + j, S::load(column_sums + j) + a * k);
        row_sum += k * S::load(weights + j);
      }
      const double sum = double(S::sum(row_sum));
      total += double(a) * sum;
      if (plan.potentials) plan.potentials[I.row + i] += 2 * C * sum;
      for (int l = 0; l < (plan.num_terms ? plan.num_factors : grad ? plan.num_moving : 0); ++l)
        factor_gradient<grad>(plan, l, I, J, i, a, copies, C, scratch, sums);
    }
    sums[I.domain != J.domain] += copies * total;
    if (diagonal) return;
    add_columns_of_tile<false>(plan, J, C, scratch);
    if constexpr (grad)
      for (int l = 0; l < plan.num_moving; ++l)
        if (plan.factors[l].geometry == Geometry::radial)
          for (int64_t j = 0; j < J.rows; ++j)
            plan.factors[l].pulls[J.row + j] += double(scratch.column_pulls[l * scratch.block + j]);
  }

  template <bool grad>
  static void factor_gradient(const Plan<T>& plan, int l, const Block& I, const Block& J, int64_t i,
                              T a, double copies, double C, const Scratch<T>& scratch,
                              double* sums) {
    const Factor<T>& f = plan.factors[l];
    const int64_t ld = int64_t(J.vectors) * lanes;
    T* const row = scratch.tiles + l * scratch.tile + i * ld;
    for (int64_t j = 0; j < ld; j += lanes) {
      V others = S::load(scratch.weights + j);
      for (int o = 0; o < plan.num_factors; ++o)
        if (o != l) others *= S::load(scratch.values + o * scratch.block + j);
      S::store(scratch.others + j, others);
    }
    if (plan.num_terms)
      evaluate_terms(plan, f, row, scratch.others, ld, a, copies * C, scratch, sums);
    if (grad && l < plan.num_moving) {
      using W = Many<T, 1>;
      const bool radial = f.geometry == Geometry::radial;
      const T slope = T(slope_of(radial, C, a));
      Pull pulled = pull(f, I, J, i, scratch.column_pulls + l * scratch.block, scratch);
      for (int64_t j = 0; j < ld; j += lanes) {
        const W g =
            slope * W::load(scratch.others + j) * W::load(scratch.slopes + l * scratch.block + j);
        if (radial) pulled.template add<true>(row, j, W::load(row + j), g);
        else pulled.template add<false>(row, j, g, g);
      }
      if (radial) settle(plan, f, I, J, i, row, pulled, scratch);
    }
  }

  // ---- the tile ----

  template <bool grad>
  static void evaluate_tile(const Plan<T>& plan, const Block& I, const Block& J, double C,
                            const Scratch<T>& scratch, double* sums) {
    if (plan.num_factors > 1) return evaluate_product<grad>(plan, I, J, C, scratch, sums);
    const Factor<T>& f = plan.factors[0];
    Values<T>::with_kernel(f, [&](auto radial, const auto& kernel) {
      evaluate<grad, radial>(plan, I, J, kernel, C, scratch, sums);
    });
  }

  template <bool transposed>
  static void products(const Plan<T>& plan, const Block& out, const Block& summed, int64_t ld,
                       const Scratch<T>& scratch) {
    for (int l = 0; l < plan.num_moving; ++l) {
      const Factor<T>& f = plan.factors[l];
      T* v = plan.v[out.domain] + out.start * plan.d + f.column;
      for (int64_t p = 0; p < f.feature_panels.count(); ++p)
        Q::with_width(f.feature_panels.width(p), [&](auto width) {
          Q::template product_panel<width, transposed>(
              scratch.tiles + l * scratch.tile, ld, out.rows, summed.rows,
              P::feature_row(plan, f, p, summed.row), P::panel_features(f, p),
              v + f.feature_panels.first(p) * lanes, plan.d);
        });
    }
  }

  static void tile(const Plan<T>& plan, const Block& I, const Block& J, double C,
                   const Scratch<T>& scratch, double* sums) {
    const FlushSubnormals flush;
    for (int l = 0; l < plan.num_factors; ++l)
      Q::statistics(plan, plan.factors[l], I, J, scratch.tiles + l * scratch.tile);
    if (!plan.v[I.domain] && !plan.v[J.domain])
      return evaluate_tile<false>(plan, I, J, C, scratch, sums);
    evaluate_tile<true>(plan, I, J, C, scratch, sums);
    const int64_t ld = int64_t(J.vectors) * lanes;
    if (plan.v[I.domain]) products<false>(plan, I, J, ld, scratch);
    if (plan.v[J.domain] && I.row != J.row) products<true>(plan, J, I, ld, scratch);
  }

  static constexpr TileKernels<T> kernels = {
      .lanes = lanes,
      .row_unit = lanes > tile_rows ? lanes : tile_rows,
      .panel_vectors = tile_vectors,
      .read_row = read_row,
      .add_columns = add_columns,
      .inner_products = inner_products,
      .squares = squares,
      .pack = P::pack,
      .statistics = Q::statistics,
      .tile = tile,
      .finish = P::finish,
      .values = Values<T>::values,
      .add_row_sums = Values<T>::add_row_sums,
      .multiply = Values<T>::multiply,
      .add_forms = Values<T>::add_forms,
      .pack_features = P::pack_features,
      .add_rotations = Rotations<T>::add_rotations,
      .rotate = Rotations<T>::rotate,
      .product = Rotations<T>::product,
      .project = Rotations<T>::project,
      .project_back = Rotations<T>::project_back,
      .unpack_columns = Rotations<T>::unpack_columns,
  };
};

}  // namespace

const TileKernels<float>& float_kernels() { return Loop<float>::kernels; }
const TileKernels<double>& double_kernels() { return Loop<double>::kernels; }

}  // namespace fastmmd::cpu::FASTMMD_ISA

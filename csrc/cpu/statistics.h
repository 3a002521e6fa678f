// Squared distances or inner products of the rows of two blocks, by register blocks.
#pragma once

#include <type_traits>

#include "cpu/pack.h"

namespace fastmmd::cpu::FASTMMD_ISA {
namespace {

// D of a pair is recomputed from differences below near * (|z_i|^2 + |z_j|^2), where the inner
// product has left it 2^-14 relative accuracy in float32.
constexpr double near = 1.0 / (1 << 10);

template <class T>
struct Statistics : Packing<T> {
  using P = Packing<T>;
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr int lanes = S::lanes;
  static constexpr int R = tile_rows;

  // acc[r][v] += sum over the features of panels [begin, end) of a_r b_v, or of (a_r - b_v)^2.
  template <int W, bool differences>
  static FASTMMD_INLINE void contract(const Plan<T>& plan, const Factor<T>& f, int64_t row,
                                      int64_t begin, int64_t end, const T* b, V (&acc)[R][W]) {
    for (int64_t p = begin; p < end; ++p) {
      const T* a = P::feature_row(plan, f, p, row);
      const int64_t stride = f.feature_panels.width(p) * lanes;
      const int64_t features = P::panel_features(f, p);
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

  static FASTMMD_INLINE void store(T* out, int64_t ld, const auto& acc) {
    for (int r = 0; r < R; ++r)
      for (size_t v = 0; v < sizeof(acc[r]) / sizeof(V); ++v)
        S::store(out + r * ld + v * lanes, acc[r][v]);
  }

  // R x W vectors of the tile at (row, column).
  template <int W>
  static void register_block(const Plan<T>& plan, const Factor<T>& f, const Block& I,
                             const Block& J, int64_t row, int64_t column, const T* panel, int64_t c,
                             T* tile, int64_t ld) {
    V acc[R][W] = {};
    const int64_t row0 = I.row + row, column0 = J.row + column;
    contract<W, false>(plan, f, row0, P::chunk_panel(f, c), P::chunk_panel(f, c + 1),
                       panel + P::chunk_begin(f, c) * W * lanes, acc);
    T* out = tile + row * ld + column;
    if (c > 0)
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < W; ++v) acc[r][v] = S::load(out + r * ld + v * lanes) + acc[r][v];
    if (c + 1 < P::chunks(f) || f.geometry != Geometry::radial) return store(out, ld, acc);

    const bool on_diagonal = row0 < column0 + W * lanes && column0 < row0 + R;
    V margin = S::broadcast(1);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T norm = f.norms[row0 + r];
#pragma GCC unroll 8
      for (int v = 0; v < W; ++v) {
        const V norms = norm + S::load(f.norms + column0 + v * lanes);
        V D = S::clamp_below(norms - 2 * acc[r][v], 0);
        if (on_diagonal) {
          const int64_t self = row0 + r - (column0 + v * lanes);
          if (self >= 0 && self < lanes) D[self] = norms[self];
        }
        margin = S::min(margin, D - T(near) * (norms - f.near_offset));
        S::store(out + r * ld + v * lanes, D);
      }
    }
    if (S::any_negative(margin)) differences<W>(plan, f, row0, panel, out, ld);
  }

  template <int W>
  static __attribute__((noinline)) void differences(const Plan<T>& plan, const Factor<T>& f,
                                                    int64_t row0, const T* panel, T* out,
                                                    int64_t ld) {
    V acc[R][W] = {};
    contract<W, true>(plan, f, row0, 0, f.feature_panels.count(), panel, acc);
    store(out, ld, acc);
  }

  static void statistics(const Plan<T>& plan, const Factor<T>& f, const Block& I, const Block& J,
                         T* tile) {
    const FlushSubnormals flush;
    const int64_t ld = int64_t(J.vectors) * lanes;
    const Panels columns = P::row_panels(J);
    const bool few = f.geometry == Geometry::radial && plan.pairs.few();
    for (int64_t c = 0; c < (few ? 1 : P::chunks(f)); ++c)
      for (int64_t q = 0; q < columns.count(); ++q) {
        const T* panel = P::column_panel(f, J, q);
        const int64_t column = columns.first(q) * lanes;
        for (int64_t row = 0; row < I.rows; row += R) {
          auto run = [&](auto width) {
            if (few) differences<width>(plan, f, I.row + row, panel, tile + row * ld + column, ld);
            else register_block<width>(plan, f, I, J, row, column, panel, c, tile, ld);
          };
          with_width(columns.width(q), run);
        }
      }
    if (f.geometry != Geometry::radial || I.row != J.row) return;
    // The distance of a row to itself is to look far where it counts for nothing.
    for (int64_t i = 0; i < I.rows; ++i)
      tile[i * ld + i] = plan.pairs.self_within ? 0 : 2 * f.norms[I.row + i];
  }

  template <class Run>
  static FASTMMD_INLINE void with_width(int width, Run&& run) {
    if (width == tile_vectors) return run(std::integral_constant<int, tile_vectors>{});
    if (width == 1) return run(std::integral_constant<int, 1>{});
    if constexpr (tile_vectors > 2) return run(std::integral_constant<int, 2>{});
  }

  // acc[r][v] += sum_s G[r, s] b[s, v] for R rows of G, stored [r, s] or transposed.
  template <int W, bool transposed>
  static FASTMMD_INLINE void weigh(const T* G, int64_t ld, int64_t rows, const T* b,
                                   V (&acc)[R][W]) {
    for (int64_t s = 0; s < rows; ++s, b += W * lanes, G += transposed ? ld : 1) {
      V bv[W];
#pragma GCC unroll 8
      for (int v = 0; v < W; ++v) bv[v] = S::load(b + v * lanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const V ar = S::broadcast(G[transposed ? r : r * ld]);
#pragma GCC unroll 8
        for (int v = 0; v < W; ++v) acc[r][v] += ar * bv[v];
      }
    }
  }

  // out[i] += sum_s G[i, s] b[s] for `rows` rows of G and the columns of one panel.
  template <int W, bool transposed>
  static void product_panel(const T* G, int64_t ld, int64_t rows, int64_t summed, const T* b,
                            int64_t columns, T* out, int64_t stride) {
    for (int64_t i = 0; i < rows; i += R) {
      V acc[R][W] = {};
      T* to = out + i * stride;
      for (int64_t r = 0; r < R && i + r < rows; ++r)
        for (int v = 0; v < W; ++v) __builtin_prefetch(to + r * stride + v * lanes, 1);
      weigh<W, transposed>(transposed ? G + i : G + i * ld, ld, summed, b, acc);
      if (i + R <= rows && columns == W * lanes) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int v = 0; v < W; ++v) {
            T* cell = to + r * stride + v * lanes;
            S::store(cell, S::load(cell) + acc[r][v]);
          }
      } else {
        for (int64_t r = 0; r < R && i + r < rows; ++r) {
          T line[W * lanes];
          for (int v = 0; v < W; ++v) S::store(line + v * lanes, acc[r][v]);
          for (int64_t k = 0; k < columns; ++k) to[r * stride + k] += line[k];
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastmmd::cpu::FASTMMD_ISA

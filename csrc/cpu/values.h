// Kernel values of a tile, and what passes that have their own use for them do with them.
#pragma once

#include "cpu/statistics.h"

namespace fastmmd::cpu::FASTMMD_ISA {
namespace {

template <class T>
struct Values : Statistics<T> {
  using Q = Statistics<T>;
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int lanes = S::lanes;
  static constexpr int R = tile_rows;

  // The kernel of a factor as one functor for the row loop: a lone segment is resolved outside.
  template <class F>
  struct Single {
    const Segment<T>& segment;
    template <class W>
    FASTMMD_INLINE void eval(const W& u, W& k) const {
      F::template eval<W>(u, segment, k);
    }
    template <class W>
    FASTMMD_INLINE void grad(const W& u, W& k, W& dk) const {
      F::template grad<W>(u, segment, k, dk);
    }
  };

  struct Mixture {
    const Factor<T>& f;
    template <class W>
    FASTMMD_INLINE void eval(const W& u, W& k) const {
      for (int s = 0; s < f.num_segments; ++s)
        dispatch(f.segments[s].family,
                 [&](auto family) { decltype(family)::template eval<W>(u, f.segments[s], k); });
    }
    template <class W>
    FASTMMD_INLINE void grad(const W& u, W& k, W& dk) const {
      for (int s = 0; s < f.num_segments; ++s)
        dispatch(f.segments[s].family,
                 [&](auto family) { decltype(family)::template grad<W>(u, f.segments[s], k, dk); });
    }
  };

  // use(is the kernel radial, kernel)
  template <class Use>
  static FASTMMD_INLINE void with_kernel(const Factor<T>& f, Use&& use) {
    if (f.num_segments == 1)
      dispatch(f.segments[0].family, [&](auto family) {
        using F = decltype(family);
        use(std::bool_constant<F::radial>{}, Single<F>{f.segments[0]});
      });
    else if (f.geometry == Geometry::radial) use(std::true_type{}, Mixture{f});
    else use(std::false_type{}, Mixture{f});
  }

  // The values, and slopes if wanted, of one row of statistics; values may be the row itself.
  template <bool grad>
  static void row_values(const Factor<T>& f, const T* row, int64_t ld, T* values, T* slopes) {
    with_kernel(f, [&](auto, const auto& kernel) {
      auto step = [&](auto zero, int64_t j) {
        using W = decltype(zero);
        const W u = W::load(row + j);
        W k = zero;
        if constexpr (grad) {
          W dk = zero;
          kernel.grad(u, k, dk);
          dk.store(slopes + j);
        } else {
          kernel.eval(u, k);
        }
        k.store(values + j);
      };
      int64_t j = 0;
      for (; j + side_by_side * lanes <= ld; j += side_by_side * lanes)
        step(Many<T, side_by_side>{}, j);
      for (; j < ld; j += lanes) step(Many<T, 1>{}, j);
    });
  }

  static void values(const Plan<T>& plan, const Block& A, const Block& B,
                     const Scratch<T>& scratch) {
    const FlushSubnormals flush;
    const int64_t ld = int64_t(B.vectors) * lanes;
    for (int l = 0; l < plan.num_factors; ++l)
      Q::statistics(plan, plan.factors[l], A, B, scratch.tiles + l * scratch.tile);
    for (int64_t i = 0; i < A.rows; ++i) {
      T* const out = scratch.tiles + i * ld;
      row_values<false>(plan.factors[0], out, ld, out, nullptr);
      for (int l = 1; l < plan.num_factors; ++l) {
        row_values<false>(plan.factors[l], scratch.tiles + l * scratch.tile + i * ld, ld,
                          scratch.values, nullptr);
        for (int64_t j = 0; j < ld; j += lanes)
          S::store(out + j, S::load(out + j) * S::load(scratch.values + j));
      }
      for (int64_t j = B.rows; j < ld; ++j) out[j] = 0;
      if (A.row == B.row && !plan.pairs.self_within) out[i] = 0;
    }
    for (int64_t i = A.rows; i % R; ++i) std::memset(scratch.tiles + i * ld, 0, ld * sizeof(T));
  }

  static void add_row_sums(const Block& A, const Block& B, const Scratch<T>& scratch,
                           double* row_sums) {
    const int64_t ld = int64_t(B.vectors) * lanes;
    T* const columns = scratch.column_sums;
    std::memset(columns, 0, ld * sizeof(T));
    for (int64_t i = 0; i < A.rows; ++i) {
      V sum{};
      for (int64_t j = 0; j < ld; j += lanes) {
        const V k = S::load(scratch.tiles + i * ld + j);
        sum += k;
        S::store(columns + j, S::load(columns + j) + k);
      }
      row_sums[A.row + i] += double(S::sum(sum));
    }
    if (A.row == B.row) return;
    for (int64_t j = 0; j < B.rows; ++j) row_sums[B.row + j] += double(columns[j]);
  }

  static void multiply(const Block& A, const Block& B, const Scratch<T>& scratch,
                       const Panels& panels, const T* v, int64_t rows, int64_t row, T* out,
                       int64_t columns) {
    const FlushSubnormals flush;
    const int64_t ld = int64_t(B.vectors) * lanes;
    for (int64_t p = 0; p < panels.count(); ++p) {
      const int64_t first = panels.first(p) * lanes, width = panels.width(p) * lanes;
      const int64_t left = columns - first < width ? columns - first : width;
      Q::with_width(panels.width(p), [&](auto w) {
        Q::template product_panel<w, false>(scratch.tiles, ld, A.rows, B.rows,
                                            v + rows * first + row * width, left, out + first,
                                            columns);
      });
    }
  }

  // ---- forms of sign vectors ----

  // Bits to numbers: `width` vectors of a row.
  static FASTMMD_INLINE V spread(uint64_t bits, int v, T minus) {
    I bit, word = I{} + typename Bits<T>::type(bits >> (v * lanes) & ((uint64_t(1) << lanes) - 1));
    for (int u = 0; u < lanes; ++u) bit[u] = typename Bits<T>::type(1) << u;
    return (word & bit) != 0 ? S::broadcast(1) : S::broadcast(minus);
  }

  template <int W>
  static void spread_rows(const Block& block, const uint64_t* signs, T minus, T* out) {
    for (int64_t i = 0; i < int64_t(block.vectors) * lanes; ++i)
      for (int v = 0; v < W; ++v) S::store(out + (i * W + v) * lanes, spread(signs[i], v, minus));
  }

  static void add_forms(const Block& A, const Block& B, const Scratch<T>& scratch, int width,
                        const uint64_t* signs, T minus, double factor, T* room, double* sums) {
    const FlushSubnormals flush;
    Q::with_width(width, [&](auto w) {
      constexpr int W = w;
      const int64_t ld = int64_t(B.vectors) * lanes;
      T* const a = room + scratch.block * tile_vectors * lanes;
      spread_rows<W>(B, signs + B.row, minus, room);
      if (A.row != B.row) spread_rows<W>(A, signs + A.row, minus, a);
      const T* const left = A.row != B.row ? a : room;
      for (int64_t i = 0; i < A.rows; i += R) {
        V acc[R][W] = {}, total[W] = {};
        Q::template weigh<W, false>(scratch.tiles + i * ld, ld, B.rows, room, acc);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int v = 0; v < W; ++v)
            total[v] += acc[r][v] * S::load(left + ((i + r) * W + v) * lanes);
        T line[W * lanes];
        for (int v = 0; v < W; ++v) S::store(line + v * lanes, total[v]);
        for (int k = 0; k < W * lanes; ++k) sums[k] += factor * double(line[k]);
      }
    });
  }
};

}  // namespace
}  // namespace fastmmd::cpu::FASTMMD_ISA

// What a tile of projections t_ji = <w_j, z_i>, rows j frequencies and columns i points, is turned
// into; and the projections themselves where frequencies are products of Hadamard matrices.
#pragma once

#include "cpu/sincos.h"
#include "cpu/values.h"

namespace fastmmd::cpu::FASTMMD_ISA {
namespace {

template <class T>
struct Rotations : Statistics<T> {
  using P = Packing<T>;
  using Q = Statistics<T>;
  using S = Simd<T>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int lanes = S::lanes;

  // use(k, cosine, sine) of r_k t for all rates. Where one rate is twice another, its cosine and
  // sine follow from the other's.
  template <class W, class Use>
  static FASTMMD_INLINE void each_rate(const Rates<T>& rates, const W& t, Use&& use) {
    constexpr I magnitude = I{} + (sizeof(T) == 4 ? typename Bits<T>::type(INT32_MAX)
                                                  : typename Bits<T>::type(INT64_MAX));
    V size{};  // NaN is left out, as it stays NaN anyway
    for (const V& part : t.part) {
      const V of_part = V(I(part) & magnitude);
      size = size < of_part ? of_part : size;
    }
    if (S::any_negative(Angles<T>::largest - rates.largest * size)) {
      for (int k = 0; k < rates.count; ++k) {
        W sine, cosine;
        sincos_of_any(rates.rate[k], t, sine, cosine);
        use(k, cosine, sine);
      }
      return;
    }
    for (int chain = 0; chain < rates.chains; ++chain) {
      int k = rates.first[chain];
      const int end = rates.first[chain + 1];
      W sine, cosine;
      sincos(rates.rate[k] * t, sine, cosine);
      for (;;) {
        use(k, cosine, sine);
        if (++k == end) break;
        double_angle<T>(sine, cosine);
      }
    }
  }

  // sums[(s K + place of k) stride + j] += sum_i a_i times the cosines (s = 0) and sines (1) of r_k
  // t_ji, and with moments times t_ji and these (2 and 3).
  static void add_rotations(const T* tile, int64_t ld, int64_t rows, const Rates<T>& rates,
                            const T* weights, bool moments, double* sums, int64_t stride) {
    const FlushSubnormals flush;
    for (int64_t j = 0; j < rows; ++j)
      if (moments) add_row<true>(tile + j * ld, ld, rates, weights, sums + j, stride);
      else add_row<false>(tile + j * ld, ld, rates, weights, sums + j, stride);
  }

  template <bool moments>
  static void add_row(const T* row, int64_t ld, const Rates<T>& rates, const T* weights,
                      double* sums, int64_t stride) {
    constexpr int kinds = moments ? 4 : 2;
    V totals[kinds * max_rates];
    for (int k = 0; k < kinds * rates.count; ++k) totals[k] = V{};
    auto step = [&](auto zero, int64_t i) {
      using W = decltype(zero);
      const W t = W::load(row + i), a = W::load(weights + i);
      [[maybe_unused]] const W at = a * t;
      each_rate(rates, t, [&](int k, const W& cosine, const W& sine) {
        V* to = totals + k * kinds;
        to[0] += (a * cosine).sum();
        to[1] += (a * sine).sum();
        if constexpr (moments) {
          to[2] += (at * cosine).sum();
          to[3] += (at * sine).sum();
        }
      });
    };
    int64_t i = 0;
    for (; i + side_by_side * lanes <= ld; i += side_by_side * lanes)
      step(Many<T, side_by_side>{}, i);
    for (; i < ld; i += lanes) step(Many<T, 1>{}, i);
    for (int s = 0; s < kinds; ++s)
      for (int k = 0; k < rates.count; ++k)
        sums[(s * rates.count + rates.place[k]) * stride] += double(S::sum(totals[k * kinds + s]));
  }

  // t_ji becomes a_i sum_k r_k (p_jk cos(r_k t_ji) - q_jk sin(r_k t_ji)), and to column_sums[i], if
  // wanted, sum_jk q_jk cos(r_k t_ji) + p_jk sin(r_k t_ji) is added.
  static void rotate(T* tile, int64_t ld, int64_t rows, const Rates<T>& rates, const T* weights,
                     const T* p, const T* q, T* column_sums) {
    const FlushSubnormals flush;
    for (int64_t j = 0; j < rows; ++j) {
      const T *of_p = p + j * rates.count, *of_q = q + j * rates.count;
      if (column_sums) rotate_row<true>(tile + j * ld, ld, rates, weights, of_p, of_q, column_sums);
      else rotate_row<false>(tile + j * ld, ld, rates, weights, of_p, of_q, nullptr);
    }
  }

  template <bool columns>
  static void rotate_row(T* row, int64_t ld, const Rates<T>& rates, const T* weights, const T* p,
                         const T* q, T* column_sums) {
    auto step = [&](auto zero, int64_t i) {
      using W = decltype(zero);
      const W t = W::load(row + i);
      W slope = zero;
      [[maybe_unused]] W sum = zero;
      each_rate(rates, t, [&](int k, const W& cosine, const W& sine) {
        slope += rates.rate[k] * (p[k] * cosine - q[k] * sine);
        if constexpr (columns) sum += q[k] * cosine + p[k] * sine;
      });
      if constexpr (columns) (W::load(column_sums + i) + sum).store(column_sums + i);
      (slope * W::load(weights + i)).store(row + i);
    };
    int64_t i = 0;
    for (; i + side_by_side * lanes <= ld; i += side_by_side * lanes)
      step(Many<T, side_by_side>{}, i);
    for (; i < ld; i += lanes) step(Many<T, 1>{}, i);
  }

  // out[i, k] += sum_j G_ij v[j, k] for `rows` rows of G and `summed` columns, or with G transposed
  // for as many columns and rows of it, and the columns k of panels [begin, end); v is packed as
  // features are, with v_rows rows, of which that of the first j is `v_row`.
  static void product(bool transposed, const T* G, int64_t ld, int64_t rows, int64_t summed,
                      const Panels& panels, int64_t begin, int64_t end, const T* v, int64_t v_rows,
                      int64_t v_row, T* out, int64_t columns) {
    const FlushSubnormals flush;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = panels.first(p) * lanes, width = panels.width(p) * lanes;
      const int64_t left = columns - first < width ? columns - first : width;
      const T* panel = v + v_rows * first + v_row * width;
      Q::with_width(panels.width(p), [&](auto w) {
        if (transposed)
          Q::template product_panel<w, true>(G, ld, rows, summed, panel, left, out + first,
                                             columns);
        else
          Q::template product_panel<w, false>(G, ld, rows, summed, panel, left, out + first,
                                              columns);
      });
    }
  }

  // ---- products of Hadamard matrices ----

  // Butterflies of `count` rows of W vectors, in place: rows become H rows.
  template <int W>
  static void hadamard(T* rows, int64_t count) {
    constexpr int64_t width = W * lanes;
    int64_t h = 1;
    for (; 4 * h <= count; h *= 4)
      for (int64_t base = 0; base < count; base += 4 * h)
        for (int64_t r = base; r < base + h; ++r) {
          T *a = rows + r * width, *b = a + h * width, *c = b + h * width, *d = c + h * width;
#pragma GCC unroll 8
          for (int v = 0; v < W; ++v, a += lanes, b += lanes, c += lanes, d += lanes) {
            const V A = S::load(a), B = S::load(b), C = S::load(c), D = S::load(d);
            const V ab = A + B, a_b = A - B, cd = C + D, c_d = C - D;
            S::store(a, ab + cd);
            S::store(b, a_b + c_d);
            S::store(c, ab - cd);
            S::store(d, a_b - c_d);
          }
        }
    if (h < count)
      for (int64_t r = 0; r < h; ++r) {
        T *a = rows + r * width, *b = a + h * width;
        for (int v = 0; v < W; ++v, a += lanes, b += lanes) {
          const V A = S::load(a), B = S::load(b);
          S::store(a, A + B);
          S::store(b, A - B);
        }
      }
  }

  template <int W>
  static void change_signs(T* rows, int64_t count, const int8_t* signs) {
    for (int64_t r = 0; r < count; ++r)
      for (int v = 0; v < W; ++v) {
        T* at = rows + (r * W + v) * lanes;
        S::store(at, T(signs[r]) * S::load(at));
      }
  }

  // The projections of block J of points, packed in `columns`, on `rows` frequencies.
  static void project(const Block& J, const T* columns, int64_t d, const int8_t* signs,
                      int64_t width, const T* radii, int64_t rows, T* room, T* tile) {
    const FlushSubnormals flush;
    const Panels panels = P::row_panels(J);
    const int64_t ld = int64_t(J.vectors) * lanes;
    for (int64_t q = 0; q < panels.count(); ++q)
      Q::with_width(panels.width(q), [&](auto w) {
        constexpr int W = w;
        const T* points = columns + panels.first(q) * lanes * d;
        for (int64_t r = 0; r < d; ++r)
          for (int v = 0; v < W; ++v)
            S::store(room + (r * W + v) * lanes,
                     T(signs[r]) * S::load(points + (r * W + v) * lanes));
        std::memset(room + d * W * lanes, 0, (width - d) * W * lanes * sizeof(T));
        hadamard<W>(room, width);
        change_signs<W>(room, width, signs + width);
        hadamard<W>(room, width);
        change_signs<W>(room, width, signs + 2 * width);
        hadamard<W>(room, width);
        T* out = tile + panels.first(q) * lanes;
        for (int64_t r = 0; r < rows; ++r)
          for (int v = 0; v < W; ++v)
            S::store(out + r * ld + v * lanes, radii[r] * S::load(room + (r * W + v) * lanes));
      });
  }

  // The transposed of project(): what its projections are weighted by is added up in `columns`.
  static void project_back(const Block& J, T* columns, int64_t d, const int8_t* signs,
                           int64_t width, const T* radii, int64_t rows, T* room, const T* tile) {
    const FlushSubnormals flush;
    const Panels panels = P::row_panels(J);
    const int64_t ld = int64_t(J.vectors) * lanes;
    for (int64_t q = 0; q < panels.count(); ++q)
      Q::with_width(panels.width(q), [&](auto w) {
        constexpr int W = w;
        const T* in = tile + panels.first(q) * lanes;
        for (int64_t r = 0; r < rows; ++r)
          for (int v = 0; v < W; ++v)
            S::store(room + (r * W + v) * lanes, radii[r] * S::load(in + r * ld + v * lanes));
        std::memset(room + rows * W * lanes, 0, (width - rows) * W * lanes * sizeof(T));
        hadamard<W>(room, width);
        change_signs<W>(room, width, signs + 2 * width);
        hadamard<W>(room, width);
        change_signs<W>(room, width, signs + width);
        hadamard<W>(room, width);
        T* points = columns + panels.first(q) * lanes * d;
        for (int64_t r = 0; r < d; ++r)
          for (int v = 0; v < W; ++v) {
            T* to = points + (r * W + v) * lanes;
            S::store(to, S::load(to) + T(signs[r]) * S::load(room + (r * W + v) * lanes));
          }
      });
  }

  // Rows of a block from the layout of `columns`, out [J.rows, d].
  static void unpack_columns(const Block& J, const T* columns, int64_t d, T* out) {
    const Panels panels = P::row_panels(J);
    for (int64_t q = 0; q < panels.count(); ++q) {
      const int64_t width = panels.width(q) * lanes, first = panels.first(q) * lanes;
      const T* panel = columns + first * d;
      const int64_t rows = J.rows - first < width ? J.rows - first : width;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t k = 0; k < d; ++k) out[(first + i) * d + k] = panel[k * width + i];
    }
  }
};

}  // namespace
}  // namespace fastmmd::cpu::FASTMMD_ISA

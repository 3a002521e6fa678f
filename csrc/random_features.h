// The contract of random features: means of cosines and sines of projections.
//
// With frequencies w_j, rates r_k, weights a_i and c some point among the samples,
//
//     C_kj = sum_i a_i cos(r_k t_ij),   S_kj = sum_i a_i sin(r_k t_ij),   t_ij = <x_i - c, w_j>,
//
// from which, with s_j = <c, w_j>, the mean of cos(r_k <x, w_j> + b_j) follows by turning (C, S) by
// the angle r_k s_j + b_j, and everything about b_j with it. The n x F matrix of projections is
// never stored: a tile of it is turned into cosines and sines and used up.
//
// Numeric trap: an angle has an absolute error of its size times the precision. Rows are centred,
// and the angles of the centre, which no cosine is taken of here, are made in float64.
#pragma once

#include "mmd.h"

namespace fastmmd {

constexpr int max_rates = 128;

// Rates in an order in which as many as possible are twice the one before: chains, of which the
// cosine and sine of the first angle give those of the others. Doubling an angle doubles its error,
// so a chain has few links.
constexpr int longest_chain = 4;

template <class T>
struct Rates {
  int count, chains;
  T largest;  // magnitude
  T rate[max_rates];
  int place[max_rates];  // among the rates as they were given
  int first[max_rates + 1];

  // By one thread. `largest_number`: of T.
  FASTMMD_INLINE void fill(const double* given, int number, double largest_number) {
    // Places by size, those of equal rates in their order; counted from -1 downwards once taken.
    int* const sorted = first + 1;  // a chain is written behind what it is read from
    for (int k = 0; k < number; ++k) {
      int at = k;
      for (; at > 0 && given[k] < given[sorted[at - 1]]; --at) sorted[at] = sorted[at - 1];
      sorted[at] = k;
    }
    count = number;
    chains = 0;
    largest = 0;
    int k = 0;
    for (int start = 0; start < number; ++start) {
      if (sorted[start] < 0) continue;
      first[chains++] = k;
      int at = start;
      for (int link = 1;; ++link) {
        const double one = given[sorted[at]], twice = 2 * one;
        place[k] = sorted[at];
        rate[k++] = T(one < -largest_number  ? -largest_number
                      : one > largest_number ? largest_number
                                             : one);
        sorted[at] = ~sorted[at];
        do ++at;
        while (at < number && (sorted[at] < 0 || !(distance(given[sorted[at]], twice) <=
                                                   1e-14 * (twice < 0 ? -twice : twice))));
        if (at == number || link == longest_chain) break;
      }
    }
    first[chains] = k;
    for (k = 0; k < number; ++k) {
      const T size = rate[k] < 0 ? -rate[k] : rate[k];
      if (!(size <= largest)) largest = size;  // NaN, too
    }
  }

 private:
  static FASTMMD_INLINE double distance(double a, double b) { return a < b ? b - a : a - b; }
};

// sin(r) and cos(r) for |r| <= pi / 4: the series of Cephes (float32) and fdlibm (float64). M is T
// or a vector of it.
template <class T, class M>
FASTMMD_INLINE void sincos_series(const M& r, M& s, M& c) {
  const M z = r * r;
  if constexpr (sizeof(T) == 4) {
    s = T(8.3321608736e-3) + T(-1.9515295891e-4) * z;
    s = T(-1.6666654611e-1) + s * z;
    c = T(-1.388731625493765e-3) + T(2.443315711809948e-5) * z;
    c = T(4.166664568298827e-2) + c * z;
  } else {
    s = T(-2.50507602534068634195e-08) + T(1.58969099521155010221e-10) * z;
    s = T(2.75573137070700676789e-06) + s * z;
    s = T(-1.98412698298579493134e-04) + s * z;
    s = T(8.33333333332248946124e-03) + s * z;
    s = T(-1.66666666666666324348e-01) + s * z;
    c = T(2.08757232129817482790e-09) + T(-1.13596475577881948265e-11) * z;
    c = T(-2.75573143513906633035e-07) + c * z;
    c = T(2.48015872894767294178e-05) + c * z;
    c = T(-1.38888888888741095749e-03) + c * z;
    c = T(4.16666666666666019037e-02) + c * z;
  }
  s = r + r * (z * s);
  c = T(1) + z * (T(-0.5) + z * c);
}

// The sine and cosine of twice the angle.
template <class T, class M>
FASTMMD_INLINE void double_angle(M& sine, M& cosine) {
  const M twice = sine + sine, half = cosine;
  cosine = T(1) - twice * sine;
  sine = twice * half;
}

// Frequencies that are rows of products of Hadamard matrices H and signs D, turned by radii:
//
//     w_j = radius_j (row j mod width of H D_2 H D_1 H D_0)
//
// with new signs for each `width` frequencies. H has entries of +-1; width is a power of two, not
// less than d.
struct Transforms {
  const int8_t* signs;  // [ceil(F / width), 3, width]; null: the frequencies are given
  int64_t width;
  const double* radii;  // [F]
};

struct FeatureArgs {
  Dtype dtype;
  Sample x;  // with weights that are taken as they are; null = 1 / rows
  int64_t d;
  Sample frequencies;  // result type [F, d], any strides; rows = F
  Transforms transforms;
  const double* rates;  // [num_rates]
  int num_rates;
  void* workspace;
  int threads;
  bool (*interrupted)(void*);
  void* interrupted_context;
};

struct FeatureSumsArgs : FeatureArgs {
  double* center;  // [d] c
  double* shifts;  // [F] s_j
  // [2, num_rates, F] C and S; with moments [4, num_rates, F], sum_i a_i t_ij cos(r_k t_ij) and the
  // like with sines being the other two
  double* sums;
  bool moments;
};

// Of sum_kj P_kj sin(r_k t_ij) / r_k + Q_kj cos(r_k t_ij) / r_k, with t_ij as a function of the
// points and frequencies: dt_ij = a_i sum_k r_k (P_kj cos(r_k t_ij) - Q_kj sin(r_k t_ij)) leads to
// the gradients v_x = dt W, v_w = dt' (x - c). Null pointers are outputs that are not wanted.
struct FeatureGradientsArgs : FeatureArgs {
  const double* center;  // [d] as the sums were made with
  const double* p;       // [num_rates, F]
  const double* q;       // [num_rates, F]
  void* v_x;             // result type [n, d]
  void* v_frequencies;   // result type [F, d]; of given frequencies
  double* v_weights;     // [n] sum_kj Q_kj cos(r_k t_ij) + P_kj sin(r_k t_ij); wanted with v_x
};

namespace cpu {

// As those of mmd.h.
size_t workspace(const FeatureSumsArgs& args);
size_t workspace(const FeatureGradientsArgs& args);
void feature_sums(const FeatureSumsArgs& args);
void feature_gradients(const FeatureGradientsArgs& args);

}  // namespace cpu
}  // namespace fastmmd

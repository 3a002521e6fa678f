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

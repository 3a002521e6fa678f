// The contract of the native core: raw pointers with their shapes, no torch and no Python.
//
// With the pooled sample z = [x; y] and weights a that sum to one in each domain,
//
//     MMD^2 = c_x sum_xx a_i a_j k(z_i, z_j) + c_y sum_yy a_i a_j k + 2 c_xy sum_xy a_i a_j k,
//
// where the estimator says which pairs are counted and what c is, one pass over the tiles of the
// symmetric pairwise matrix gives the value and every gradient asked for. Nothing of size n x m is
// stored. The kernel may be a product of factors, each of which looks at its own columns of x, y.
//
// Numeric trap: D = |z_i|^2 + |z_j|^2 - 2 <z_i, z_j> cancels. Rows are centred by the pooled mean
// first, and pairs whose D is small against |z_i|^2 + |z_j|^2 are recomputed from differences.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>

#include "kernels.h"

namespace fastmmd {

enum class Dtype : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

// What scales are divided by: 1; over the pooled sample, the mean (i != j) or lower median (i < j)
// of |z_i - z_j|^2; the lower median of all n^2 squared distances of x, zeros included; the width
// of the factor.
enum class Unit : int { fixed = 0, mean = 1, median = 2, x_median = 3, width = 4 };

// Which pairs are counted, and how they are averaged. Positions count from 0 in each sample, L is
// the lesser of n and m; the last three of the first five know no weights.
enum class Estimator : int {
  biased = 0,      // all pairs
  unbiased = 1,    // all but i = j within a sample
  linear = 2,      // i != j of one of the L / 2 groups {2g, 2g + 1}, within samples and across
  block = 3,       // the unbiased estimate of each of the L / size groups of `size`, averaged
  incomplete = 4,  // 0 < |i - j| <= size, within samples and across
  cross = 5,       // sum_xy a_i a_j k alone
  resolve = 6,     // none: only the scales are wanted
};

struct Sample {
  const void* data;  // [batch, rows, d], element strides below, any sign or zero
  int64_t rows;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t column_stride;
  const double* weights;  // [batch, rows], not normalised; null = uniform
};

// One term of a factor of the kernel. Its scale is c = scale / unit; unit = 0 makes c = 0.
struct Term {
  Family family;
  Unit unit;
  int factor;  // non-decreasing along the terms
  double scale;
  double coefficient;
  double p, q;  // rational quadratic: alpha, -; polynomial: degree, coef0
};

constexpr int max_terms = 128;
constexpr int max_factors = 8;

// What every pass is given. The columns of x and y are those of the factors side by side; the terms
// of one factor have one geometry.
struct Problem {
  Dtype dtype;
  Sample x, y;
  const int64_t* widths;  // [num_factors], with sum d
  int num_factors;
  const Term* terms;
  int num_terms;
  double* scales;   // [batch, num_terms] out: the c that were used
  void* workspace;  // as many bytes as the pass asks for
  int threads;
  // Called now and then on the calling thread; true stops the call.
  bool (*interrupted)(void*);
  void* interrupted_context;
};

// Outputs of mmd2; a null pointer is an output that is not wanted. "Result type" is float64 for
// float64 samples and float32 otherwise.
struct Mmd2Out {
  void* value;             // result type [batch]
  void* v_x;               // result type [batch, n, d], contiguous: gradient to x
  void* v_y;               // result type [batch, m, d]
  double* v_x_weights;     // [batch, n], to the weights as given (before normalisation)
  double* v_y_weights;     // [batch, m]
  double* v_scales;        // [batch, terms], unit held fixed; wanted with v_coefficients
  double* v_coefficients;  // [batch, terms]
};

struct Mmd2Args : Problem {
  int64_t batch;
  Estimator estimator;
  int64_t size;              // of `block` and `incomplete`
  int constant_factors = 0;  // the last so many have gradients of 0 to their columns
  double share = 1;          // what the result is multiplied by
};

struct KernelSumArgs : Problem {
  const void* v;  // result type [m, columns], contiguous
  int64_t columns;
  void* out;  // result type [n, columns]: K(x, y) v
};

// How the vectors of sign_forms are drawn. Permutation: 1/n on n of the pooled points and -1/m on
// the others. Wild bootstrap: w_i / n on x_i and -w_i / n on y_i with signs w.
enum class Scheme : int { permutation = 0, wild_bootstrap = 1 };

// For vectors v_0, the one of the samples as given, and v_1 ... v_count, random ones, with K0 the
// kernel matrix of the pooled sample without its diagonal, r = K0 1 and kappa that diagonal.
struct SignFormsArgs : Problem {
  Scheme scheme;
  uint64_t seed;
  int64_t count;
  double* forms;     // [count + 1] v_b' K0 v_b
  double* linear;    // [count + 1] v_b' r
  double* diagonal;  // [count + 1] v_b' kappa
  double* totals;    // [2] 1' r, 1' kappa
};

struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

namespace cpu {

// All of these throw Interrupted, and are deterministic: the bits depend on the inputs and the
// instruction set alone. The workspace functions look at sizes, terms, and at which outputs are
// wanted; not at data.
size_t workspace(const Mmd2Args& args, const Mmd2Out& out);
size_t workspace(const KernelSumArgs& args);
size_t workspace(const SignFormsArgs& args);
void mmd2(const Mmd2Args& args, const Mmd2Out& out);
void kernel_sum(const KernelSumArgs& args);
void sign_forms(const SignFormsArgs& args);

const char* instruction_set();
bool instruction_set_available(const char* name);  // compiled in and runnable here
bool use_instruction_set(const char* name);        // false if it is not available

}  // namespace cpu
}  // namespace fastmmd

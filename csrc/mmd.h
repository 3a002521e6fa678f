// The contract of the native core: raw pointers with their shapes, no torch and no Python.
//
// With the pooled sample z = [x; y], weights a that sum to one in each domain, and
//
//     MMD^2 = q_x sum_xx a_i a_j k(z_i, z_j) + q_y sum_yy a_i a_j k - 2 sum_xy a_i a_j k,
//
// where the biased estimate has q = 1 and all pairs, the unbiased one q = 1 / (1 - sum_i a_i^2) and
// no pair i = j, one pass over the tiles of the symmetric pairwise matrix gives the value and every
// gradient asked for. Nothing of size n x m is stored.
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
enum class Unit : int { fixed = 0, mean = 1, median = 2 };

struct Sample {
  const void* data;  // [rows, d], element strides below, any sign or zero
  int64_t rows;
  int64_t row_stride;
  int64_t column_stride;
  const double* weights;  // [rows], not normalised; null = uniform
};

// One term of the kernel. Its scale is c = scale / unit, where unit is 1 or, over the pooled
// sample, the mean (i != j) or lower median (i < j) of |z_i - z_j|^2; unit = 0 makes c = 0.
struct Term {
  Family family;
  Unit unit;
  double scale;
  double coefficient;
};

// Outputs; a null pointer is an output that is not wanted. "Result type" is float64 for float64
// samples and float32 otherwise.
struct Mmd2Out {
  void* value;             // result type [1]
  void* v_x;               // result type [n, d], contiguous: gradient to x
  void* v_y;               // result type [m, d]
  double* v_x_weights;     // [n], to the weights as given (before normalisation)
  double* v_y_weights;     // [m]
  double* v_scales;        // [terms], unit held fixed; wanted together with v_coefficients
  double* v_coefficients;  // [terms]
  double* scales;          // [terms] the c that were used
};

struct Mmd2Args {
  Dtype dtype;
  Sample x, y;
  int64_t d;
  const Term* terms;
  int num_terms;
  bool unbiased;
  void* workspace;  // mmd2_workspace() bytes
  int threads;
  // Called now and then on the calling thread; true stops the call.
  bool (*interrupted)(void*);
  void* interrupted_context;
};

constexpr int max_terms = 128;

struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

namespace cpu {

// Bytes of scratch memory that mmd2 needs.
size_t mmd2_workspace(int64_t n, int64_t m, int64_t d, Dtype dtype, int threads);

// Throws Interrupted. Deterministic: the bits depend on the inputs and the instruction set alone.
void mmd2(const Mmd2Args& args, const Mmd2Out& out);

const char* instruction_set();
bool instruction_set_available(const char* name);  // compiled in and runnable here
bool use_instruction_set(const char* name);        // false if it is not available

}  // namespace cpu
}  // namespace fastmmd

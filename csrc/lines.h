// The contract of the pass over lines: the MMD of the negative distance between samples of
// numbers, exact, by sorting.
//
// With weights a of s and b of t that sum to one each, of every line
//
//     U = 2 sum_ij a_i b_j |s_i - t_j| - q_x S_x - q_y S_y,   S_x = sum_ij a_i a_j |s_i - s_j|,
//
// in O((n + m) log(n + m)). Between neighbours of the sorted pool no distance changes which points
// lie on which side: with F and G the distribution functions there, |s - t| integrates to
//
//     U = int 2 (F - G)^2 + 2 (1 - q_x) F (1 - F) + 2 (1 - q_y) G (1 - G).
//
// Numeric trap: written like this nothing cancels for q = 1; written as three sums, all does.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmmd {

struct LinesArgs {
  bool wide;      // float64 positions, else float32: the result type
  const void* s;  // [lines, n], contiguous
  const void* t;  // [lines, m]
  int64_t lines, n, m;
  const double* s_weights;  // [n], with sum one; null = uniform
  const double* t_weights;  // [m]
  double q[2];
  double* value;        // [lines]
  double* within;       // [lines, 2] S_x and S_y
  void* v_s;            // result type [lines, n], gradient of U; ties count as distance 0, whose
  void* v_t;            // slope is 0. They may take the place of s and t. Null: not wanted
  double* v_s_weights;  // [lines, n], q held fixed; null: not wanted
  double* v_t_weights;
  void* workspace;
  int threads;
  bool (*interrupted)(void*);  // as in Problem
  void* interrupted_context;
};

namespace cpu {

size_t workspace(const LinesArgs& args);
void lines(const LinesArgs& args);  // throws Interrupted

}  // namespace cpu
}  // namespace fastmmd

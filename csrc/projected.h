// The contract of the MMD of images act(W x + b), W and b learned, with its gradients to all of it.
//
// With h = W x + b and V the gradient of the MMD to the images,
//
//     v_h = V act'(h),   v_x = v_h W,   v_W = v_hx' X + v_hy' Y,   v_b = sum_i v_hi:
//
// as the MMD is a scalar, all of it is known when the value is, and made in one call.
#pragma once

#include "mmd.h"

namespace fastmmd {

enum class Activation : int { none = 0, relu = 1, tanh = 2, gelu = 3 };  // gelu: x Phi(x)

struct ProjectedArgs {
  // Of the images: one of a batch, one factor of width p, of which x and y lack data and strides.
  // dtype, that of everything here, is float32 or float64, T below.
  Mmd2Args images;
  Sample x, y;  // T [rows, d]
  int64_t d;
  Sample weight;     // T [p, d]
  const void* bias;  // T [p]; null = 0
  Activation activation;
};

struct ProjectedOut {
  Mmd2Out images;  // the value, and gradients to what is not images; v_x and v_y are not read
  void* v_x;       // T [n, d], contiguous, as are the others; null: not wanted
  void* v_y;       // T [m, d]
  void* v_weight;  // T [p, d]
  void* v_bias;    // T [p]

  bool any() const { return v_x || v_y || v_weight || v_bias; }
};

namespace cpu {

// As those of mmd.h. The workspace, that of `images`, is O((n + m + p) d + (n + m) p).
size_t workspace(const ProjectedArgs& args, const ProjectedOut& out);
void projected_mmd2(const ProjectedArgs& args, const ProjectedOut& out);

}  // namespace cpu
}  // namespace fastmmd

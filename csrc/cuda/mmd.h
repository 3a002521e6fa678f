// The contract of the CUDA side of the native core: what the host may know of a pass.
//
// The equations are those of mmd.h. Every pointer but those to widths and terms is to memory of the
// device, scales and coefficients of the kernel too: the host never waits for a number. All work
// goes onto the stream that is given; nothing is allocated here.
//
// The packed sample z holds the centred and scaled rows in the type that the products of a tile are
// made of. Distances are made of the rounded z alone, so that the only error is the rounding of the
// rows, and no cancellation; to inner products the centre, which is not rounded, adds its part.
// Samples are padded with zero rows of weight 0 to whole blocks, rows with zero columns: no tile
// crosses from one sample to the other or needs a check of bounds.
#pragma once

#include "estimators.h"
#include "mmd.h"

namespace fastmmd::cuda {

// What z, and the gradient weights of distances, are stored as. tf32: float32 rounded to 10 bits;
// tf32x3: float32, of which each product is made of three of tf32.
enum class Operand : int {
  float32 = 0,
  float64 = 1,
  float16 = 2,
  bfloat16 = 3,
  tf32 = 4,
  tf32x3 = 5,
};
constexpr int num_operands = 6;

// What makes the inner products of a tile: multiply-adds of each thread, mma.sync (sm_80 and
// later), wgmma (sm_90a), wgmma of thread blocks that load rows for each other.
enum class Products : int { simt = 0, mma = 1, wgmma = 2, clusters = 3 };

constexpr int64_t block_rows = 128;  // samples are padded to multiples of it
constexpr int64_t depth_unit = 32;   // and rows, in elements

constexpr int64_t round_up(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }
constexpr int64_t depth(int64_t width) { return round_up(width, depth_unit); }

constexpr size_t bytes(Operand operand) {
  return operand == Operand::float64                                   ? 8
         : operand == Operand::float16 || operand == Operand::bfloat16 ? 2
                                                                       : 4;
}

// A launch that the driver refused; the message is its own.
struct Error : std::exception {
  explicit Error(int code) : code(code) {}
  const char* what() const noexcept override;
  int code;  // a cudaError_t
};

// What every pass is given beside what the CPU is given. Of the terms, family, unit, factor, p and
// q count; scale and coefficient are on the device.
struct Launch {
  const double* given_scales;  // [num_terms]
  const double* coefficients;  // [num_terms]
  Products products;
  Operand operand;
  void* z[max_factors];  // out: [padded_rows, depth(widths[l])], 16-byte aligned
  void* stream;          // a cudaStream_t
  int device;            // of all pointers; it need not be the current one
};

// Rows of the packed sample.
struct Rows {
  int64_t n, m;

  constexpr int64_t first(int domain) const { return domain ? round_up(n, block_rows) : 0; }
  constexpr int64_t padded() const { return first(1) + round_up(m, block_rows); }
};

// A rectangle of the pairwise matrix: packed rows [row, row + rows) against [column, column +
// columns), whole blocks, each of one domain; it stands for its mirror too unless it is on the
// diagonal. Gradient weights go to w[l], [rows, columns], null where no gradient to that factor's
// columns is wanted: those of distances in the operand's storage type, of inner products in float32
// or float64, as the points are computed with.
struct Panel {
  int64_t row, rows, column, columns;
  void* w[max_factors];
};

// The MMD of one pair of samples, in this order:
//   begin   centres, packs, resolves the bandwidths; nothing else is needed for the estimator
//           `resolve`
//   values  all pairs, if no gradient to x or y is wanted; else
//   panel   for each rectangle; then the caller adds w z_J to v_I and, off the diagonal, w' z_I to
//           v_J, for every factor that moves
//   pairs   all pairs of a masked estimator, with their gradients
//   finish  sums to value and gradients; v_x and v_y in place
// or all of it at once:
//   small   n + m up to small_rows, for what `takes_small` says
//   fused   rows no wider than fused_width, likewise
// v_x and v_y are zero before the first panel.
class Mmd2 {
 public:
  Mmd2(const Mmd2Args& args, const Mmd2Out& out, const Launch& launch)
      : args_(args), out_(out), launch_(launch) {}

  size_t workspace() const;  // bytes, of sizes, terms and what is wanted alone
  size_t panel_workspace(int64_t rows, int64_t columns) const;  // for the largest panel

  void begin() const;
  void values() const;
  void panel(const Panel& panel, void* workspace) const;
  void pairs() const;
  void finish() const;

  bool takes_small() const;
  void small() const;
  bool takes_fused() const;
  void fused() const;

 private:
  Mmd2Args args_;  // workspace on the device; threads and interrupted are not used
  Mmd2Out out_;
  Launch launch_;
};

constexpr int64_t small_rows = 1024;
constexpr int64_t fused_width = 256;

size_t workspace(const KernelSumArgs& args, const Launch& launch);
size_t workspace(const SignFormsArgs& args, const Launch& launch);
void kernel_sum(const KernelSumArgs& args, const Launch& launch);
void sign_forms(const SignFormsArgs& args, const Launch& launch);

}  // namespace fastmmd::cuda

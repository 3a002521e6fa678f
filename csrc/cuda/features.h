// The contract of random features on the device; the equations are those of random_features.h.
//
// All pointers of the arguments are to memory of the device, and the centre, of which every number
// is one of the type that is computed with, is given. Nothing is allocated, and nothing waited for.
#pragma once

#include "cuda/mmd.h"
#include "random_features.h"

namespace fastmmd::cuda {

// The packed rows are those of the points, less the centre, and of the frequencies, in the type
// that projections are made of: the two samples of `Rows`.
struct FeatureLaunch {
  Products products;  // of structured frequencies: simt
  Operand operand;    // neither float16, whose range some frequencies leave; float32 or float64
  void* z;            // out: [padded rows, depth(d)], 16-byte aligned; null for structured ones
  void* stream;       // a cudaStream_t
  int device;
};

// Bytes, of sizes alone.
size_t workspace(const FeatureSumsArgs& args, const FeatureLaunch& launch);
void feature_sums(const FeatureSumsArgs& args, const FeatureLaunch& launch);

// For given frequencies, in this order:
//   begin    packs
//   panel    dt of packed frequencies [row, row + rows) and points [column, column + columns),
//            whole blocks, in the operand's storage type to w[rows, columns]; the caller adds w'
//            times the frequencies to v_x, and w times the points to v_frequencies. To v_weights,
//            where wanted, is added here; it is zero before the first panel.
// For structured ones:
//   all      at once, v_x too
class FeatureGradients {
 public:
  FeatureGradients(const FeatureGradientsArgs& args, const FeatureLaunch& launch)
      : args_(args), launch_(launch) {}

  size_t workspace(int64_t rows, int64_t columns) const;  // of the largest panel; 0, 0 without
  void begin() const;
  void panel(int64_t row, int64_t rows, int64_t column, int64_t columns, void* w) const;
  void all() const;

 private:
  FeatureGradientsArgs args_;
  FeatureLaunch launch_;
};

}  // namespace fastmmd::cuda

#include "cuda/features.cuh"
#include "cuda/simt.cuh"

namespace fastmmd::cuda {

template <>
FeatureKernels<float> simt_features() {
  return feature_kernels<SimtFloat>();
}
template <>
FeatureKernels<double> simt_features() {
  return feature_kernels<SimtDouble>();
}

}  // namespace fastmmd::cuda

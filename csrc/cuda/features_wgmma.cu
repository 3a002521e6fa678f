#include "cuda/features.cuh"
#include "cuda/wgmma.cuh"

namespace fastmmd::cuda {

FeatureKernels<float> wgmma_features(Operand operand) {
  switch (operand) {
    case Operand::tf32: return feature_kernels<Wgmma<Operand::tf32>>();
    case Operand::bfloat16: return feature_kernels<Wgmma<Operand::bfloat16>>();
    default: throw Error(int(cudaErrorInvalidValue));
  }
}

}  // namespace fastmmd::cuda

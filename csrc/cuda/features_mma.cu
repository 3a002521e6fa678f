#include "cuda/features.cuh"
#include "cuda/mma.cuh"

namespace fastmmd::cuda {

FeatureKernels<float> mma_features(Operand operand) {
  switch (operand) {
    case Operand::tf32: return feature_kernels<Mma<Operand::tf32>>();
    case Operand::tf32x3: return feature_kernels<Mma<Operand::tf32x3>>();
    case Operand::bfloat16: return feature_kernels<Mma<Operand::bfloat16>>();
    default: throw Error(int(cudaErrorInvalidValue));
  }
}

}  // namespace fastmmd::cuda

#include "cuda/tiles.cuh"
#include "cuda/wgmma.cuh"

namespace fastmmd::cuda {

void wgmma_tiles(const TileArgs<float>& args, const Launch& launch, bool gaussian, bool gradient) {
  switch (launch.operand) {
    case Operand::tf32: return launch_tiles<Wgmma<Operand::tf32>>(args, launch, gaussian, gradient);
    case Operand::bfloat16:
      return launch_tiles<Wgmma<Operand::bfloat16>>(args, launch, gaussian, gradient);
    case Operand::float16:
      return launch_tiles<Wgmma<Operand::float16>>(args, launch, gaussian, gradient);
    default: throw Error(int(cudaErrorInvalidValue));
  }
}

}  // namespace fastmmd::cuda

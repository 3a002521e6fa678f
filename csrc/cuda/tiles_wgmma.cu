#include "cuda/tiles.cuh"
#include "cuda/wgmma.cuh"

namespace fastmmd::cuda {

namespace {

template <Operand operand>
void launch_wgmma(const TileArgs<float>& args, const Launch& launch, bool gaussian, bool gradient) {
  // Panels by clusters; tiles of a triangle have no square.
  if (launch.products == Products::clusters && gaussian && gradient)
    return launch_tiles<Wgmma<operand, 4>, true, true>(args, launch);
  launch_tiles<Wgmma<operand>>(args, launch, gaussian, gradient);
}

}  // namespace

void wgmma_tiles(const TileArgs<float>& args, const Launch& launch, bool gaussian, bool gradient) {
  switch (launch.operand) {
    case Operand::tf32: return launch_wgmma<Operand::tf32>(args, launch, gaussian, gradient);
    case Operand::bfloat16:
      return launch_wgmma<Operand::bfloat16>(args, launch, gaussian, gradient);
    case Operand::float16: return launch_wgmma<Operand::float16>(args, launch, gaussian, gradient);
    default: throw Error(int(cudaErrorInvalidValue));
  }
}

}  // namespace fastmmd::cuda

#include "cuda/mma.cuh"
#include "cuda/tiles.cuh"

namespace fastmmd::cuda {

void mma_tiles(const TileArgs<float>& args, const Launch& launch, bool gaussian, bool gradient) {
  auto run = [&](auto operand) {
    launch_tiles<Mma<decltype(operand)::value>>(args, launch, gaussian, gradient);
  };
  switch (launch.operand) {
    case Operand::tf32: return run(std::integral_constant<Operand, Operand::tf32>{});
    case Operand::tf32x3: return run(std::integral_constant<Operand, Operand::tf32x3>{});
    case Operand::bfloat16: return run(std::integral_constant<Operand, Operand::bfloat16>{});
    case Operand::float16: return run(std::integral_constant<Operand, Operand::float16>{});
    default: check(cudaErrorInvalidValue);
  }
}

}  // namespace fastmmd::cuda

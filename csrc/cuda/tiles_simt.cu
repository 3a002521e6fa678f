#include "cuda/product.cuh"
#include "cuda/simt.cuh"
#include "cuda/tiles.cuh"

namespace fastmmd::cuda {

template <>
void simt_tiles(const TileArgs<float>& args, const Launch& launch, bool gaussian, bool gradient) {
  launch_tiles<SimtFloat>(args, launch, gaussian, gradient);
}

template <>
void simt_tiles(const TileArgs<double>& args, const Launch& launch, bool gaussian, bool gradient) {
  if (gaussian) launch_tiles<SimtDouble, true>(args, launch, gradient);
  else launch_tiles<SimtDoubleStaged, false>(args, launch, gradient);
}

template <class T>
void product_tiles(const TileArgs<T>& args, const Launch& launch, bool gradient) {
  using P = ProductSimt<T>;
  const dim3 grid(grid_of(tiles_of(args, P::tile), 2, launch)), block(P::threads);
  const size_t shared = size_t(product_shared_bytes<T>(args.points.num_factors));
  const cudaStream_t stream = static_cast<cudaStream_t>(launch.stream);
  check(gradient
            ? fastmmd::cuda::launch(product_tile_kernel<T, true>, grid, block, shared, stream, args)
            : fastmmd::cuda::launch(product_tile_kernel<T, false>, grid, block, shared, stream,
                                    args));
}

template void product_tiles(const TileArgs<float>&, const Launch&, bool);
template void product_tiles(const TileArgs<double>&, const Launch&, bool);

}  // namespace fastmmd::cuda

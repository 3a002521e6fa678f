// Launches of the tile loop, a file for each way of making products.
#pragma once

#include <algorithm>

#include "cuda/tile.cuh"

namespace fastmmd::cuda {

// All tiles of args. `gaussian` and `gradient` choose the kernel as in tile_kernel.
template <class T>
void simt_tiles(const TileArgs<T>& args, const Launch& launch, bool gaussian, bool gradient);
template <class T>
void product_tiles(const TileArgs<T>& args, const Launch& launch, bool gradient);
void mma_tiles(const TileArgs<float>& args, const Launch& launch, bool gaussian, bool gradient);
void wgmma_tiles(const TileArgs<float>& args, const Launch& launch, bool gaussian, bool gradient);

// As many thread blocks as the device holds at a time, at most one a tile.
inline unsigned grid_of(int64_t tiles, int blocks, const Launch& launch) {
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, launch.device));
  return unsigned(std::min<int64_t>({tiles, int64_t(processors) * blocks, sum_rows}));
}

template <class P, bool gaussian>
void launch_tiles(const TileArgs<typename P::T>& args, const Launch& launch, bool gradient) {
  const dim3 grid(grid_of(tiles_of(args, P::tile), P::blocks, launch)), block(P::threads);
  auto run = [&](auto wanted) {
    check(fastmmd::cuda::launch(
        tile_kernel<P, gaussian, wanted>, grid, block, TileShared<P, gaussian, wanted>::bytes,
        static_cast<cudaStream_t>(launch.stream), args, P::params(args.points)));
  };
  gradient ? run(std::true_type{}) : run(std::false_type{});
}

// One of the two, known at run time.
template <class P>
void launch_tiles(const TileArgs<typename P::T>& args, const Launch& launch, bool gaussian,
                  bool gradient) {
  if (gaussian) launch_tiles<P, true>(args, launch, gradient);
  else launch_tiles<P, false>(args, launch, gradient);
}

}  // namespace fastmmd::cuda

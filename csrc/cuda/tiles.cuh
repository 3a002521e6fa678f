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

template <class P>
void launch_tiles(const TileArgs<typename P::T>& args, const Launch& launch, bool gaussian,
                  bool gradient) {
  const cudaStream_t stream = static_cast<cudaStream_t>(launch.stream);
  const dim3 grid(grid_of(tiles_of(args, P::tile), P::blocks, launch)), block(P::threads);
  const typename P::Params params = P::params(args.points);
  auto run = [&](auto g, auto v) {
    check(fastmmd::cuda::launch(tile_kernel<P, g, v>, grid, block, TileShared<P, g, v>::bytes,
                                stream, args, params));
  };
  using Yes = std::true_type;
  using No = std::false_type;
  if (gaussian) gradient ? run(Yes{}, Yes{}) : run(Yes{}, No{});
  else gradient ? run(No{}, Yes{}) : run(No{}, No{});
}

}  // namespace fastmmd::cuda

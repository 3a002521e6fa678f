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

// As many thread blocks as the device holds at a time, at most one a tile; whole clusters.
inline unsigned grid_of(int64_t tiles, int blocks, const Launch& launch, int cluster = 1) {
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, launch.device));
  const int64_t most = std::min<int64_t>({tiles, int64_t(processors) * blocks, sum_rows});
  return unsigned(std::max<int64_t>(most / cluster, 1) * cluster);
}

template <class P, bool gaussian, bool gradient>
void launch_tiles(const TileArgs<typename P::T>& args, const Launch& launch) {
  constexpr int cluster = cluster_of<P>(), side = cluster == 4 ? 2 : 1;
  const int64_t tiles = tiles_of(args, side * P::tile) * cluster;
  const dim3 grid(grid_of(tiles, P::blocks, launch, cluster)), block(P::threads);
  check(launch_cluster(
      tile_kernel<P, gaussian, gradient>, grid, block, TileShared<P, gaussian, gradient>::bytes,
      static_cast<cudaStream_t>(launch.stream), unsigned(cluster), args, P::params(args.points)));
}

// Known at run time.
template <class P, bool gaussian>
void launch_tiles(const TileArgs<typename P::T>& args, const Launch& launch, bool gradient) {
  if (gradient) launch_tiles<P, gaussian, true>(args, launch);
  else launch_tiles<P, gaussian, false>(args, launch);
}
template <class P>
void launch_tiles(const TileArgs<typename P::T>& args, const Launch& launch, bool gaussian,
                  bool gradient) {
  if (gaussian) launch_tiles<P, true>(args, launch, gradient);
  else launch_tiles<P, false>(args, launch, gradient);
}

}  // namespace fastmmd::cuda

// The kernels of the instruction set in use.
#pragma once

#include "cpu/tile.h"

namespace fastmmd::cpu {

struct Kernels {
  const TileKernels<float>& (*float_kernels)();
  const TileKernels<double>& (*double_kernels)();
};

const Kernels& kernels();

template <class T>
const TileKernels<T>& tile_kernels() {
  if constexpr (sizeof(T) == 4) return kernels().float_kernels();
  else return kernels().double_kernels();
}

}  // namespace fastmmd::cpu
